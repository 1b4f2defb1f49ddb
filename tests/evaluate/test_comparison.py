"""Runs are compared over the same images, and what cannot be compared is not."""

import re

import numpy as np
import pytest


def evaluation(right, name="run", images="abc", layer="backbone"):
    from contrastneg.evaluate.results import Evaluation, Score

    value = 100 * float(np.mean(right))
    context = {
        "encoder": name, "layer": layer, "data": "shapes", "bank": 10, "queries": len(right),
        "weights": name, "queries_fingerprint": images, "bank_fingerprint": "b", "precision": "float32",
    }  # fmt: skip
    scores = [
        Score("encoder", "knn", "top-1", value, len(right), low=value - 1, high=value + 1),
        Score("encoder", "geometry", "RankMe", 12.5, len(right), unit=""),
        Score("raw pixels", "knn", "top-1", 1.0, len(right)),
    ]
    return Evaluation(context, scores, [], {"encoder/knn top-1": np.asarray(right)})


def written(folder, found):
    from contrastneg.evaluate.results import write_evaluation

    write_evaluation(folder / "evaluation" / "shapes", found)
    (folder / "config.yaml").write_text("data: shapes\n")
    return folder


@pytest.fixture
def runs(tmp_path):
    first = np.arange(200) % 2 == 0
    better = first.copy()
    better[:40] = True
    return [written(tmp_path / name, evaluation(right, name)) for name, right in (("plain", first), ("hard", better))]


def test_a_difference_is_over_the_same_images_and_marked_where_its_interval_leaves_out_zero(runs):
    from contrastneg.evaluate.comparison import cell, compare

    [found] = compare(runs)
    assert found.names == ["plain", "hard"]
    top1, pixels, rankme = found.rows
    difference = top1.differences[1]
    assert difference.points == pytest.approx(10)
    assert difference.clear
    assert cell(top1.scores[1], difference).startswith("60.0  +10.0 [")
    assert cell(top1.scores[1], difference).endswith(" *")
    assert rankme.differences == [None, None]  # no mean over images
    assert (pixels.features, [score.value for score in pixels.scores]) == ("raw pixels", [1.0, 1.0])
    assert pixels.differences == [None, None]


def test_a_run_is_compared_with_itself_neither_by_name_nor_unsaid(runs, tmp_path):
    import shutil

    from contrastneg.evaluate.comparison import compare

    with pytest.raises(ValueError, match="plain is named twice: give each run once"):
        compare([runs[0], runs[1].parent / "hard" / ".." / "plain"])
    [found] = compare([runs[0], shutil.copytree(runs[0], tmp_path / "copies" / "plain")])
    assert found.names == ["plain #1", "plain #2"]
    assert found.notes == ["plain and plain are the same weights"]
    assert not found.rows[0].differences[1].clear


def test_several_evaluations_of_a_run_are_told_apart_by_what_they_say_of_themselves():
    from contrastneg.evaluate.comparison import mark

    found = evaluation(np.ones(3), "runs/best-projector/checkpoints/last.ckpt", layer="projector")
    assert mark(found) == " (last, projector)"
    assert mark(evaluation(np.ones(3), "runs/best-random-projector")) == ""


def test_images_of_a_group_are_drawn_together(runs):
    from contrastneg.evaluate.comparison import difference

    first, second = (evaluation(np.arange(200) % 20 < count) for count in (10, 11))
    alone = difference(first, second, "knn top-1").interval
    first.values["group"] = np.arange(200) % 20
    together = difference(first, second, "knn top-1").interval
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_other_images_are_not_compared(runs, tmp_path):
    from contrastneg.evaluate.comparison import compare

    other = written(tmp_path / "other", evaluation(np.ones(200, dtype=bool), "other", images="xyz"))
    with pytest.raises(ValueError, match="no two of the runs were scored on the same images"):
        compare([runs[0], other])
    [found] = compare([*runs, other])
    assert found.names == ["plain", "hard"]


def test_what_differs_beside_the_encoder_is_said(runs, tmp_path):
    from contrastneg.evaluate.comparison import compare

    head = written(tmp_path / "head", evaluation(np.ones(200, dtype=bool), "head", layer="projector"))
    [found] = compare([runs[0], head])
    assert found.notes == ["the runs differ in layers: differences are not of the encoders alone"]


def test_runs_that_were_not_evaluated_are_named(tmp_path, runs):
    from contrastneg.evaluate.comparison import compare

    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="bare holds no evaluation: run `contrastneg evaluate"):
        compare([runs[0], tmp_path / "bare"])
    with pytest.raises(ValueError, match="at least two"):
        compare(runs[:1])


def test_the_command_prints_a_table_and_writes_a_page(runs, tmp_path, capsys, monkeypatch):
    from contrastneg.__main__ import main

    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--compare", *map(str, runs)]) == 0
    printed = capsys.readouterr().out
    assert "+10.0" in printed
    assert "raw pixels" in printed
    assert main(["evaluate", "--compare", *map(str, runs), "--out", "other.html"]) == 0
    page = (tmp_path / "comparison.html").read_text()
    assert (tmp_path / "other.html").read_text() == page
    assert page.count("<svg") == 1
    assert re.search(r"hard: 60\.0 \[59\.0, 61\.0\] %", page)


def test_only_images_that_both_runs_were_asked_about_are_paired():
    from contrastneg.evaluate.comparison import difference

    first, second = (evaluation(np.array(values)) for values in ([0.0, 1.0, np.nan, 0.5], [np.nan, 1.0, 0.0, 1.0]))
    assert difference(first, second, "knn top-1").points == pytest.approx(25)
