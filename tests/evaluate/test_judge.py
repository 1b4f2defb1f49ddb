"""From an address to scores: complete, comparable, found again, and the same on two processes."""

import csv
import io
import json

import pytest
import torch
from processes import two_commands
from small_runs import write_encoder

QUICK = {"limit_images": 300, "limit_test_images": 101}


def judged(run, **settings):
    from contrastneg.evaluate.judge import evaluate
    from contrastneg.evaluate.settings import Evaluate

    return evaluate(Evaluate(encoder=str(run), **{**QUICK, **settings}))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    run = write_encoder(tmp_path_factory.mktemp("runs") / "shapes-1")
    return run, *judged(run)[0]


def test_every_number_carries_what_it_depends_on(usual):
    run, folder, evaluation = usual
    assert folder == run / "evaluation" / "shapes"
    with (folder / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(evaluation.scores)
    facts = ("features", "protocol", "metric", "value", "n", "layer", "split", "seed", "bank_fingerprint", "weights")
    assert all(row[name] for row in rows for name in facts)
    assert {row["k"] for row in rows if row["protocol"] == "knn"} == {"1", "5", "10", "20", "50", "100", "200"}
    assert all(row["temperature"] for row in rows if row["protocol"] == "knn")
    assert all(row["lr"] and row["weight_decay"] for row in rows if row["protocol"] == "linear")
    assert all(row["low"] for row in rows if row["protocol"] in ("knn", "logistic", "retrieval"))
    for score in evaluation.scores:
        assert score.low is None or score.low <= score.value <= score.high


def test_baselines_stand_beside_every_score(usual):
    from contrastneg.evaluate.results import rows_of

    _, _, evaluation = usual
    rows = rows_of(evaluation.scores, ["encoder", "random encoder", "raw pixels"])
    lacking = [(protocol, metric) for protocol, metric, cells in rows if "–" in cells]
    assert lacking == [("geometry", "alignment ↓"), ("geometry", "LiDAR ↑")]  # raw pixels are seen in no views


def test_numbers_are_those_of_the_protocols_themselves(usual):
    from contrastneg import Views
    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.data.subsets import limit_images
    from contrastneg.evaluate.features import extract
    from contrastneg.evaluate.knn import knn_score
    from contrastneg.evaluate.linear import linear_score
    from contrastneg.subjects import open_subject

    run, _, evaluation = usual
    bank, queries = (limit_images(shapes(split), count, 0) for split, count in (("train", 300), ("test", 101)))
    data = PretrainData(bank, Views(size=16), bank, queries, batch_size=2)
    network = open_subject(str(run)).network
    known, asked = (extract(network, data, split, torch.device("cpu")) for split in ("train", "test"))
    found = {s.key: s for s in evaluation.scores if s.features == "encoder" and s.headline}
    knn = knn_score(known, asked, k=20, temperature=0.07, num_classes=data.num_classes)
    linear = linear_score(known, asked, num_classes=data.num_classes, seed=0)
    assert found["knn top-1"].value == pytest.approx(100 * knn.top1, abs=1e-4)
    assert found["knn top-5"].value == pytest.approx(100 * knn.top5, abs=1e-4)
    assert found["logistic top-1"].value == pytest.approx(100 * linear.top1, abs=1e-4)
    assert {found[key].n for key in ("knn top-1", "logistic top-1")} == {101}


def test_features_are_computed_once_and_new_protocols_join_the_old(tmp_path, monkeypatch):
    from contrastneg.evaluate import cache

    run = write_encoder(tmp_path / "run")
    [(folder, first)] = judged(run, protocols=("knn",), baselines=False)

    def fail(*_, **__):
        raise AssertionError("encoded again")

    monkeypatch.setattr(cache, "encode_set", fail)
    [(_, second)] = judged(run, protocols=("logistic",), baselines=False)
    assert {score.protocol for score in first.scores} == {"knn"}
    assert {score.protocol for score in second.scores} == {"knn", "logistic"}
    assert json.loads((folder / "summary.json").read_text())["scores"]


def test_scores_of_other_weights_are_not_mixed_in(tmp_path):
    run = write_encoder(tmp_path / "run")
    options = {"protocols": ("knn",), "baselines": False, "out": tmp_path / "out"}
    judged(run, **options)
    other = write_encoder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="other weights: give --out for this one, or --overwrite"):
        judged(other, **options)
    [(_, replaced)] = judged(other, overwrite=True, **options)
    assert len({score.key for score in replaced.scores}) == 2


def test_without_labels_only_geometry_is_left_and_the_rest_is_refused(tmp_path):
    from torchvision.transforms.v2.functional import to_pil_image

    pixels = torch.randint(0, 256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (tmp_path / "flat").mkdir()
    for number, picture in enumerate(pixels):
        to_pil_image(picture).save(tmp_path / "flat" / f"{number}.png")
    run = write_encoder(tmp_path / "run")
    [(_, evaluation)] = judged(run, data=str(tmp_path / "flat"), baselines=False)
    assert {score.protocol for score in evaluation.scores} == {"geometry"}
    assert "tolerance" not in {score.metric for score in evaluation.scores}
    assert any("no labels" in note.text for note in evaluation.notes)
    with pytest.raises(ValueError, match="has no labels, which knn need"):
        judged(run, data=str(tmp_path / "flat"), protocols=("knn",))


def test_an_encoder_is_transferred_to_further_sets(tmp_path):
    run = write_encoder(tmp_path / "run")
    found = judged(run, protocols=("geometry",), transfer=("shapes",), baselines=False, out=tmp_path / "out")
    assert [{score.protocol for score in evaluation.scores} for _, evaluation in found][1] >= {"knn", "logistic"}


def test_published_models_without_their_weights_are_refused_in_one_line(capsys):
    from contrastneg.__main__ import main

    assert main(["evaluate", "timm:resnet18.a1_in1k", "shapes"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "could not be fetched" in error
    assert "--random-init" in error


def test_a_published_architecture_is_judged_with_random_weights(tmp_path):
    [(_, evaluation)] = judged(
        "timm:resnet18.a1_in1k", data="shapes", random_init=True, size=32, protocols=("knn",), out=tmp_path / "out"
    )
    assert {score.features for score in evaluation.scores} == {"encoder", "raw pixels"}
    assert any("a random encoder by seed 0" in note.text for note in evaluation.notes)
    assert any("images are 32 pixels as asked" in note.text for note in evaluation.notes)


def test_protocols_that_train_leave_the_encoder_as_it_was_and_name_their_images(tmp_path):
    from contrastneg.evaluate.cache import weights_of
    from contrastneg.subjects import open_subject

    run = write_encoder(tmp_path / "run")
    before = weights_of(open_subject(str(run)).network)
    options = {"label_shares": (10.0,), "augmented_epochs": 1, "finetune_epochs": 1, "baselines": False}
    [(folder, evaluation)] = judged(run, protocols=("augmented", "finetune"), **options)
    assert {score.protocol for score in evaluation.scores} == {"augmented", "finetune 10 %"}
    assert {score.settings["precision"] for score in evaluation.scores} <= {"float32", "bfloat16"}
    assert weights_of(open_subject(str(run)).network) == before == evaluation.context["weights"]
    listed = (folder / "labels_10_percent.txt").read_text().split()
    assert (
        len(listed) == len(set(listed)) == next(s for s in evaluation.scores if "fine" in s.protocol).settings["labels"]
    )


def test_two_processes_give_the_numbers_of_one(tmp_path):
    """101 test images do not divide by two."""
    run = write_encoder(tmp_path / "run")
    [(_, alone)] = judged(run, protocols=("knn", "logistic", "geometry"), out=tmp_path / "one", baselines=False)
    options = ["--protocols", "knn,logistic,geometry", "--out", str(tmp_path / "two"), "--baselines", "false"]
    limits = ["--limit-images", "300", "--limit-test-images", "101"]
    for process in two_commands("evaluate", run, *options, *limits):
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    from contrastneg.evaluate.results import read_evaluation

    both = read_evaluation(tmp_path / "two")
    assert [(s.key, s.settings, s.n) for s in both.scores] == [(s.key, s.settings, s.n) for s in alone.scores]
    shares = [(s.value, t.value) for s, t in zip(both.scores, alone.scores, strict=True) if s.unit == "%"]
    assert all(two == one for two, one in shares)
    rest = [(s.value, t.value) for s, t in zip(both.scores, alone.scores, strict=True) if s.unit != "%"]
    assert all(two == pytest.approx(one, rel=1e-4) for two, one in rest)


def test_frames_of_one_sequence_neither_answer_for_each_other_nor_count_as_so_many_witnesses(usual, tmp_path):
    run, _, evaluation = usual
    options = {"protocols": ("knn", "retrieval"), "baselines": False, "out": tmp_path / "out"}
    [(_, apart)] = judged(run, group="none", **options)
    found, single = (
        {s.key: s for s in e.scores if s.features == "encoder" and s.headline} for e in (evaluation, apart)
    )
    assert (evaluation.context["group"], apart.context["group"]) == ("sequence", None)
    assert found["knn top-1"].value == single["knn top-1"].value
    widths = [scores["knn top-1"].high - scores["knn top-1"].low for scores in (found, single)]
    assert widths[0] > widths[1]
    assert found["retrieval Recall@1"].value < single["retrieval Recall@1"].value
    with pytest.raises(ValueError, match="group is patient but shapes has no such column: it has family, location"):
        judged(run, group="patient", **options)


def test_notes_of_a_protocol_go_with_its_numbers_when_it_is_taken_again(tmp_path):
    from contrastneg.evaluate.earlier import merged
    from contrastneg.evaluate.protocols import Sheet

    def sheet(protocol, note=None):
        made = Sheet("encoder", 0)
        made.share(protocol, "top-1", torch.tensor([True, False]))
        made.note(protocol, (note,) if note else ())
        return made

    first = merged(None, [sheet("knn", "few votes"), sheet("linear", "a small grid")], {}, ["of the set"])
    assert list(map(str, first.notes)) == ["of the set", "encoder, knn: few votes", "encoder, linear: a small grid"]
    second = merged(first, [sheet("knn")], {}, ["of the set"])
    assert list(map(str, second.notes)) == ["of the set", "encoder, linear: a small grid"]
    left_out = Sheet("encoder", 0)
    left_out.note("linear", ("left out",))
    third = merged(second, [left_out], {}, [])
    assert list(map(str, third.notes)) == ["encoder, linear: left out"]
    assert [score.protocol for score in third.scores] == ["knn"]
    assert list(third.values) == ["encoder/knn top-1"]


def test_every_set_is_opened_before_the_first_is_judged_and_told_when_it_is_done(tmp_path):
    from contrastneg.evaluate.judge import evaluate
    from contrastneg.evaluate.settings import Evaluate

    run, said = write_encoder(tmp_path / "run"), []
    options = {"protocols": ("knn",), "baselines": False, "out": tmp_path / "out", "limit_test_images": 100}
    config = Evaluate(encoder=str(run), transfer=("shapes", str(tmp_path / "missing")), **options)
    with pytest.raises(ValueError, match="missing"):
        evaluate(config, said.append)
    assert said == []
    assert not (tmp_path / "out").exists()
    config = Evaluate(encoder=str(run), transfer=("shapes",), limit_images=100, **options)
    evaluate(config, said.append, lambda folder, evaluation: said.append(len(evaluation.scores)))
    order = [line for line in said if line == "on shapes" or isinstance(line, int)]
    assert [type(step) for step in order] == [str, int, str, int]


def test_it_is_said_where_features_were_found(tmp_path):
    from contrastneg.evaluate.judge import evaluate
    from contrastneg.evaluate.settings import Evaluate

    config = Evaluate(encoder=str(write_encoder(tmp_path / "run")), protocols=("knn",), baselines=False, **QUICK)
    first, second, steps = [], [], []
    evaluate(config, first.append, progress=lambda *done: steps.append(done))
    evaluate(config, second.append)
    features = tmp_path / "run" / "evaluation" / "shapes" / "features"
    told = f"encoder: both found in {features} (--cache false computes anew)"
    assert told not in first
    assert told in second
    assert steps == [(300, 300), (101, 101)]


def test_the_table_names_the_encoder_and_shows_both_ends_of_intervals(usual):
    from rich.console import Console

    from contrastneg.evaluate.results import table_of

    _, _, evaluation = usual
    console = Console(width=130, record=True, file=io.StringIO())
    console.print(table_of(evaluation, 130))
    text = console.export_text()
    knn = next(score for score in evaluation.scores if score.key == "knn top-1" and score.headline)
    assert f"{knn.value:.1f} [{knn.low:.1f}, {knn.high:.1f}]" in text
    header = next(line for line in text.splitlines() if "protocol" in line)
    assert "shapes-1" in header
    words = "[low, high]: 95 % bootstrap interval over test images, those of one sequence together"
    assert words in " ".join(text.split())
    assert "uniformity ↓" in text
    narrow = Console(width=72, record=True, file=io.StringIO())
    narrow.print(table_of(evaluation, 72))
    assert f"[{knn.low:.1f}, {knn.high:.1f}]" in narrow.export_text()
