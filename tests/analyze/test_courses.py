"""Several encoders: each is measured by itself, in order, and the page names them."""

import pandas as pd
import pytest
import torch
from clouds import cloud
from materials import material


@pytest.fixture(scope="module")
def two():
    from contrastneg.analyze.material import Checkpoint

    first, _, its = cloud(seed=3)
    return material(others=[Checkpoint("step <b>1</b>", first, its)])


def test_each_encoder_is_measured_by_itself(two):
    from contrastneg.analysis import hardness_bins, matching_probability
    from contrastneg.analyze.courses import draw_course, measure_course

    tables = measure_course(two)
    for place, one in enumerate(two.checkpoints):
        bins = tables["bins_by_encoder"]
        mine = bins[bins["place"] == place + 1].drop(columns=["place", "encoder"]).reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, hardness_bins(one.embeddings, two.labels, queries=512))
        matching = tables["matching_by_encoder"]
        first = matching_probability(one.embeddings, one.positives, temperatures=[0.2], queries=512)["probability"][0]
        assert matching[matching["place"] == place + 1]["probability"].iloc[0] == first
    drawn = draw_course(tables)
    assert len(drawn) == 5
    assert all("Encoders: 1 step <b>1</b>, 2 this one." in one.caption for one in drawn)
    assert len(drawn[3].plot.lines) == tables["detectors_by_encoder"].groupby("place").size().max()


def test_the_verdict_on_scores_that_vary_is_that_of_the_table(two):
    from contrastneg.analyze.courses import draw_variance, measure_variance, verdict

    tables = measure_variance(two)
    claim, deviations = draw_variance(tables)
    assert "Here it is not shown: the interval is " in claim.caption
    unmeasured = pd.Series({"auc": float("nan"), "auc_se": float("nan"), "supported": False})
    assert verdict(unmeasured) == "Here it could not be measured."
    for supported in (True, False):
        table = tables["score_variance_claim"].assign(supported=supported)
        caption = draw_variance({**tables, "score_variance_claim": table})[0].caption
        assert ("is borne out" in caption) == supported
    assert [line.label for line in deviations.plot.lines] == ["false negatives", "true ones"]


def test_curricula_follow_the_encoders_in_order(two):
    from contrastneg.analyze.courses import draw_curricula, measure_curricula

    tables = measure_curricula(two)
    table = tables["curriculum_curves"]
    assert table.drop_duplicates("checkpoint")["encoder"].tolist() == ["step <b>1</b>", "this one"]
    assert table.drop_duplicates("checkpoint")["progress"].tolist() == [0.5, 1.0]
    for drawn in draw_curricula(tables):
        assert [line.label for line in drawn.plot.lines] == ["easy first", "hard first", "random", "all"]


def test_encoders_whose_steps_are_known_stand_at_them(two):
    from dataclasses import replace

    from contrastneg.analyze.courses import draw_curricula, measure_curricula

    known = replace(two, step=400, others=[replace(two.others[0], step=100)])
    tables = measure_curricula(known)
    first = tables["curriculum_curves"].drop_duplicates("checkpoint")
    assert first["progress"].tolist() == [0.25, 1.0]
    assert first["step"].tolist() == [100, 400]
    assert "stand at their optimizer steps" in draw_curricula(tables)[0].caption
    assert "stand evenly along the run" in draw_curricula(measure_curricula(two))[0].caption
    assert replace(known, step=None).progress is None


def test_an_early_state_of_a_run_stands_before_the_later_ones(two):
    from dataclasses import replace

    from contrastneg.analyze.answers import answers_of
    from contrastneg.analyze.courses import measure_course, measure_curricula

    late = [replace(two.others[0], name=name, step=step) for name, step in (("half", 200), ("whole", 400))]
    early = replace(two, step=40, others=late)
    assert [one.name for one in early.checkpoints] == ["this one", "half", "whole"]
    assert early.progress == [0.1, 0.5, 1.0]
    first = measure_curricula(early)["curriculum_curves"].drop_duplicates("checkpoint")
    assert first["encoder"].tolist() == ["this one", "half", "whole"]
    assert first["progress"].tolist() == [0.1, 0.5, 1.0]
    told = " ".join(one for answer in answers_of(measure_course(early), 0.2, []) for one in answer.sentences)
    assert "under this one, the first, and" in told
    assert "under whole, the last." in told
    assert [one.name for one in replace(early, step=None).checkpoints] == ["half", "whole", "this one"]
    assert [one.name for one in replace(early, step=400).checkpoints] == ["half", "whole", "this one"]  # equal steps


def test_checkpoints_of_a_folder_come_by_step_and_runs_are_no_folders_of_them(tmp_path):
    from contrastneg.analyze.opening import checkpoints_in

    for name, step in (("b", 10), ("a", 200), ("c", 30)):
        torch.save({"global_step": step}, tmp_path / f"{name}.ckpt")
    assert [path.stem for path in checkpoints_in(tmp_path)] == ["b", "c", "a"]
    (tmp_path / "config.yaml").touch()
    assert checkpoints_in(tmp_path) == checkpoints_in(tmp_path / "none") == []
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "c.ckpt").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"c\.ckpt cannot be read"):
        checkpoints_in(tmp_path)
