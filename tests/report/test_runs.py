"""The page of several runs: every curve with a line a run, the settings that differ, scores, in a browser without network."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from browser import chromium, opened

from contrastneg.evaluate.results import Evaluation, Score, write_evaluation
from contrastneg.report.runs import evaluations

HOSTILE = "<script>alert(1)</script>"


def write_run(folder, config, knn=None, columns=(), steps=6, per_epoch=2):
    """A run's folder: a row a step, at the end of each epoch one with the epoch's loss; columns rise by 1 a step."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text(json.dumps({"command": [str(folder)], "torch": "2.9.0", "cpu": HOSTILE}))
    if knn is not None:
        table = [{"features": "pretrained encoder", "knn_top1": knn, "knn_k": 20, "linear_top1": knn + 1}]
        summary = {"method": "MoCo", "data": "shapes", "table": table, "train_seconds": 60.0, "images_per_second": 9.5}
        (folder / "summary.json").write_text(json.dumps(summary))
    lines = [",".join(["step", "epoch", "seconds", "train/loss", "epoch/loss", *columns])]
    for step in range(steps):
        cells = [start + step for start in dict(columns).values()]
        lines.append(",".join(map(str, [step, step // per_epoch, step, 9 - step, "", *cells])))
        if (step + 1) % per_epoch == 0:
            lines.append(",".join(map(str, [step, step // per_epoch, step, "", 5 - step / 2, *("" for _ in columns)])))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def moco(*stages, **settings):
    parts = [{"class_path": name, "init_args": own} for name, own in stages]
    return {
        "method": {"class_path": "MoCo", "init_args": {"temperature": 0.2, "stages": parts}},
        "data": "shapes",
        "seed": 0,
        **settings,
    }


@pytest.fixture
def runs(tmp_path):
    """One without stages, one with two, one not finished with an older form of the first."""
    hardness = {"hardness/effective": 10, "hardness/same_class_hardest": 0.5}
    first = {"negatives/all/same_class": 0.5, "negatives/1_SameCluster/same_class": 0.25}
    return [
        write_run(tmp_path / "plain", moco(), 50.0, {**hardness, "candidates/same_class": 0.125}),
        write_run(
            tmp_path / "both",
            moco(("SameCluster", {"clusters": [5, 10]}), ("MoCHi", {"pool": 8}), run="runs/x"),
            52.5,
            {**hardness, **first, "negatives/2_MoCHi/same_class": 0.2, "negatives/1_SameCluster/precision": 0.75},
        ),
        write_run(
            tmp_path / HOSTILE.replace("/", "_"),
            moco(("HardestSubset", {"count": 8}), ("SameCluster", {"clusters": [5]}), epochs=3),
            None,
            {"negatives/2_SameCluster/precision": 0.5},
            steps=8,
            per_epoch=4,
        ),
    ]


def page_of(runs, tmp_path):
    from contrastneg.report.runs import write_runs

    return write_runs(runs, tmp_path / "runs.html")


def lines_of(page):
    """Of each chart its title, and of each line there the mark at its end."""
    return dict(
        page.evaluate("""[...document.querySelectorAll('figure')].filter(f => f.querySelector('.mark')).map(f =>
            [f.querySelector('b').textContent, [...f.querySelectorAll('.mark')].map(t => t.textContent)])""")
    )


def test_every_curve_has_a_line_a_run_and_tables_tell_scores_and_what_differs(runs, tmp_path):
    path = page_of(runs, tmp_path)
    with chromium() as browser:
        with opened(browser, path) as page:
            assert lines_of(page) == {
                "Loss (nats)": ["1", "2", "3"],
                "Same class among the candidates (%)": ["1", "2"],
                "Precision of what is found: SameCluster (%)": ["2", "3"],
                "Effective number by softmax (per query)": ["1", "2"],
                "Same class by hardness: hardest 0.1 % (%)": ["1", "2"],
            }
            texts = page.evaluate(
                "[...document.querySelectorAll('#settings tbody tr')].map(r => r.innerText.split('\\t'))"
            )
            scores = page.evaluate(
                "[...document.querySelectorAll('#scores tbody tr')].map(r => r.innerText.split('\\t'))"
            )
            keys = page.evaluate(
                "[...document.querySelectorAll('#curves .legend li')].map(e => e.className + e.innerText)"
            )
            ends = page.evaluate("[...document.querySelectorAll('#curves svg')][0].getAttribute('aria-label')")
        with opened(browser, path, 390, "dark") as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            assert page.evaluate(
                "[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().height > 100)"
            )
            outside = """[...document.querySelectorAll('.mark')].filter(t => t.getBoundingClientRect().right >
                t.closest('svg').getBoundingClientRect().right + 0.5).length"""
            assert page.evaluate(outside) == 0
    name = runs[2].name
    assert [[row[0].strip(), *row[1:]] for row in texts] == [
        [
            "method.stages",
            "–",
            "SameCluster(clusters=[5, 10]), MoCHi(pool=8)",
            "HardestSubset(count=8), SameCluster(clusters=[5])",
        ],
        ["epochs", "–", "–", "3"],
    ]
    assert [row[0].strip() for row in scores] == ["1 plain", "2 both", f"3 {name}"]
    assert [row[2:4] for row in scores] == [["50.0", "51.0"], ["52.5", "53.5"], ["–", "–"]]
    assert keys == ["stage11 plain", "stage22 both", f"stage33 {name}"]
    assert f"(3 {name}): from 3.5 to 1.5 nats in 2 epochs" in ends
    assert HOSTILE not in path.read_text()


def test_runs_that_have_finished_no_epoch_are_drawn_over_steps_and_a_run_is_named_once(runs, tmp_path):
    from contrastneg.report.runs import write_runs

    young = write_run(tmp_path / "young", moco(), steps=2, per_epoch=9)
    text = page_of([*runs, young], tmp_path).read_text()
    assert "optimizer steps</text>" in text
    assert "epochs</text>" not in text
    assert "young: The run is not finished; logged up to epoch 1 of ?." in text
    with pytest.raises(ValueError, match="plain is named twice: give each run once"):
        write_runs([runs[0], runs[0]], tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_more_runs_than_lines_can_be_told_apart_are_refused(runs, tmp_path, capsys, monkeypatch):
    from contrastneg.__main__ import main

    monkeypatch.chdir(tmp_path)
    several = [str(tmp_path / str(number)) for number in range(13)]
    for path in several:
        Path(path).symlink_to(runs[0])
    assert main(["report", *several]) == 2
    assert "13 runs are named: one page tells 12 apart at most, give fewer" in capsys.readouterr().err
    assert not (tmp_path / "runs.html").exists()


def test_the_verb_writes_one_page_of_several_runs_where_it_is_told(runs, tmp_path, capsys, monkeypatch):
    from contrastneg.__main__ import main

    monkeypatch.chdir(tmp_path)
    assert main(["report", str(runs[0]), str(runs[1])]) == 0
    assert capsys.readouterr().out == "runs.html\n"
    assert "2 runs side by side" in (tmp_path / "runs.html").read_text()
    assert not (runs[0] / "report.html").exists()
    refusals = {
        ("plain", "nowhere"): "nowhere is not a run folder",
        ("plain", "--out", "x.html"): "out is given but there is one run",
        ("plain", "both", "--out", "no/x.html"): "give a file in a folder that is there",
        ("plain", "plain"): "plain is named twice",
    }
    for arguments, told in refusals.items():
        assert main(["report", *arguments]) == 2
        assert told in capsys.readouterr().err


def evaluated(run, name, right):
    context = {
        "encoder": name, "layer": "backbone", "data": "shapes", "bank": 10, "queries": len(right),
        "weights": name, "queries_fingerprint": "q", "bank_fingerprint": "b", "precision": "float32",
    }  # fmt: skip
    scores = [Score("encoder", "knn", "top-1", 100 * right.mean(), len(right))]
    write_evaluation(run / "evaluation" / "shapes", Evaluation(context, scores, [], {"encoder/knn top-1": right}))


def test_two_runs_that_were_evaluated_on_one_set_are_compared_on_the_page(runs, tmp_path):
    right = np.arange(200) % 2 == 0
    evaluated(runs[0], "plain", right)
    evaluated(runs[1], "both", right | (np.arange(200) < 40))
    [compared], notes = evaluations(runs)
    assert notes == []
    assert (compared.names, compared.rows[0][2][0]) == (["plain", "both"], "50.0")
    assert compared.rows[0][2][1] in page_of(runs, tmp_path).read_text().replace("&#39;", "'")


def test_evaluations_that_cannot_be_read_are_told(runs):
    assert evaluations(runs) == ([], [])
    for run in runs[:2]:
        (run / "evaluation" / "shapes").mkdir(parents=True)
        (run / "evaluation" / "shapes" / "summary.json").write_text("{}")
    compared, [note] = evaluations(runs)
    assert compared == []
    assert note.startswith("Evaluations are not compared: ")


def test_a_list_of_stages_is_told_in_one_cell_by_the_settings_that_are_not_their_defaults():
    from contrastneg.report.runs import flat

    ramp = {"class_path": "Linear", "init_args": {"start": 0.0, "end": 1.0}}
    stages = [
        {
            "class_path": "contrastneg.negatives.MoCHi",
            "init_args": {"pool": 64, "pair_mixes": 1024, "warmup_epochs": 10.0},
        },
        {"class_path": "SameCluster", "init_args": {"clusters": [5], "acceptance": ramp, "action": "eliminate"}},
        {"class_path": "mine.DropHardest", "init_args": {"count": 5}},
        {"class_path": "mine.MoCHi", "init_args": {"pair_mixes": 1024}},
        {"class_path": "UniformSubset"},
        "UniformSubset",
    ]
    assert dict(flat({"stages": stages})) == {
        "stages": "MoCHi(pool=64), SameCluster(clusters=[5], acceptance=Linear(start=0.0, end=1.0)), DropHardest(count=5), "
        "MoCHi(pair_mixes=1024), UniformSubset, UniformSubset"
    }


def test_captions_tell_what_each_chart_has():
    from contrastneg.report.candidates import HARDNESS
    from contrastneg.report.runs import of_hardness, of_negatives

    told = {one.measure.title: one.measure.meaning for one in [*of_negatives([]), *of_hardness()]}
    assert told["Candidates kept, after the last stage"] == (
        "candidates that act as negatives: neither removed nor attracted as positives"
    )
    assert told["Similarity of the negatives: most similar"] == "cosine with the query of the most similar negative"
    of_lines = [measure for measure, lines in HARDNESS if len(lines) > 1]
    assert not {measure.meaning for measure in of_lines} & set(told.values())  # of all lines together
