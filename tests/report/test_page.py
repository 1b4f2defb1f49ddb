"""The page of a run: whole, escaped, readable in a browser, and written from whatever records there are."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from browser import chromium, opened

HOSTILE = "<script>alert(1)</script>"
CLASSES = ["disc", "ring", HOSTILE]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished MoCo run's folder, with a class name that is markup and a last line of metrics that is cut."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = {
        "method": {"class_path": "MoCo", "init_args": {"backbone": {"name": "resnet9"}}},
        "data": "shapes",
        "epochs": 4,
        "batch_size": 256,
        "seed": 0,
        "note": f"&{HOSTILE}",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    command = ["contrastneg", "pretrain", "a folder/with 'quotes'", "--epochs", "4", "--name", HOSTILE]
    environment = {
        "command": command,
        "contrastneg": "0.1.0",
        "torch": "2.9.0",
        "accelerators": [],
        "processor": HOSTILE,
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    summary = {
        "command": command,
        "method": "MoCo",
        "data": "shapes",
        "train_seconds": 372.4,
        "images_per_second": 1624.9,
        "parameters": 411664,
        "table": [
            score_row("pretrained encoder", 71.25, 76.5),
            score_row("untrained encoder", 36.1, 41.0),
            score_row("raw pixels", 28.05, None),
        ],
        "notes": [f"SyncBatchNorm needs GPUs {HOSTILE}"],
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.csv").write_text(metrics_text())
    write_pictures(folder / "pictures.npz", side=32)
    return folder


def score_row(features: str, knn: float, linear: float | None) -> dict:
    """A row of the summary's table."""
    return {"features": features, "knn_top1": knn, "knn_k": 20, "knn_temperature": 0.07, "linear_top1": linear}


def metrics_text() -> str:
    """Four epochs of ten logged steps; scores once an epoch; the last line ends within a number."""
    names = "step,epoch,seconds,train/loss,train/accuracy,candidates/queue_fill,candidates/own,candidates/same_class"
    lines = [
        f"{names},train/lr,train/momentum,epoch/loss,epoch/accuracy,speed/images_per_second,knn/top1,probe/accuracy"
    ]
    for step in range(40):
        loss, share = 8 / (1 + step / 10), step / 40
        lines.append(
            f"{step},{step // 10},{9.3 * step},{loss},{share},{share},0.001,0.0625,{0.004 * (1 - share)},0.99,,,,,"
        )
        if step % 10 == 9:
            lines.append(f"{step},{step // 10},{9.3 * step},,,,,,,,{loss},{share},1600.5,{0.3 + share / 2},{share}")
    return "\n".join([*lines, "40,4,372.0,7777.77"])


def write_pictures(path: Path, side: int) -> None:
    """Pairs of views and neighbours of random pixels, the hardest to compress."""
    draw = np.random.default_rng(0)

    def pixels(*shape: int) -> np.ndarray:
        return draw.integers(0, 256, (*shape, 3, side, side), dtype=np.uint8)

    np.savez_compressed(
        path,
        view1=pixels(12),
        view2=pixels(12),
        neighbour_query=pixels(12),
        neighbour=pixels(12, 6),
        neighbour_similarity=np.linspace(0.99, 0.5, 72, dtype=np.float32).reshape(12, 6),
        query_label=np.arange(12) % 3,
        neighbour_label=np.arange(72).reshape(12, 6) % 4 - 1,
        class_names=np.array(CLASSES),
    )


def page_of(run: Path) -> str:
    """The written page's text."""
    from contrastneg.report.page import write_report

    page = write_report(run)
    assert page == run / "report.html"
    return page.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Start tags with their attributes, and the text without markup."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every element of a kind."""
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_key_score_stands_beside_its_baselines(run: Path) -> None:
    text = " ".join(Elements(page_of(run)).text.split())
    assert "MoCo on shapes" in text
    head = text[text.index("MoCo on shapes encoder") : text.index("features")]
    assert re.search(r"71\.2 %.*36\.1 %.*35\.1 points higher.*28\.1 %.*43\.2 points higher", head)
    assert "k = 20" in head
    assert "temperature 0.07" in text


def test_the_table_shows_a_missing_score_as_a_dash(run: Path) -> None:
    assert re.search(r"raw pixels</th><td class=\"number\">28\.1</td><td class=\"number\">–</td>", page_of(run))


def test_a_top_5_score_and_the_neighbours_that_voted_are_shown_where_they_are_recorded(run: Path) -> None:
    assert "top-5" not in page_of(run)
    summary = json.loads((run / "summary.json").read_text())
    summary["table"][0] |= {"knn_top5": 93.5, "knn_k": 18}
    (run / "summary.json").write_text(json.dumps(summary))
    page = page_of(run)
    assert re.search(r">kNN top-5 \(%\)</th>", page)
    assert re.search(r"pretrained encoder</th><td class=\"number\">71\.2</td><td class=\"number\">93\.5</td>", page)
    assert re.search(r"raw pixels</th><td class=\"number\">28\.1</td><td class=\"number\">–</td>", page)
    assert "18 or 20 nearest" in page


def test_a_run_that_is_not_better_by_either_score_says_so_once_and_as_the_run_did(run: Path) -> None:
    from contrastneg.report.records import shortfall

    assert "is not better than" not in page_of(run)
    summary = json.loads((run / "summary.json").read_text())
    summary["table"][0]["linear_top1"] = 41.0
    summary["notes"] += [shortfall(summary["table"])] * 2 + ["one", "one"]
    (run / "summary.json").write_text(json.dumps(summary))
    page = page_of(run)
    assert (
        page.count(
            "The pretrained encoder is not better than the untrained encoder (linear 41.0 against 41.0 %): train"
        )
        == 1
    )
    assert page.count("is not better than") == 1
    assert page.count("<li>one</li>") == 1


def test_equal_scores_held_out_images_and_a_run_that_steps_ended_are_told_as_they_are(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["table"][1]["knn_top1"] = summary["table"][0]["knn_top1"]
    summary["notes"] = ["no test images: every 10th labelled image is asked about"]
    (run / "summary.json").write_text(json.dumps(summary))
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "epochs": 100, "max_steps": 40}))
    text = " ".join(Elements(page_of(run)).text.split())
    assert "pretrained is as high" in text
    assert "0.0 points" not in text
    assert "Both are scored on held-out images." in text
    assert "40 optimizer steps" in text
    assert "100 epochs" not in text


def test_pictures_without_labels_are_shown_without_classes(run: Path) -> None:
    with np.load(run / "pictures.npz") as file:
        arrays = {
            name: file[name] for name in ("view1", "view2", "neighbour_query", "neighbour", "neighbour_similarity")
        }
    np.savez_compressed(run / "pictures.npz", **arrays, searched=np.array(999))
    elements = Elements(page_of(run))
    assert len(elements.all("img")) == 2 * 12 + 12 * 7
    texts = [str(image["alt"]) for image in elements.all("img")]
    assert "neighbour 2 of image 1, similarity 0.98" in texts
    assert "the nearest of 999 others" in " ".join(elements.text.split())
    section = elements.text.partition("Nearest neighbours")[2].partition("Notes")[0]
    assert not any(word in section + " ".join(texts) for word in ("no label", "class unknown", "test image", "✓"))
    assert not any("sign" in str(span.get("class")) for span in elements.all("span"))


def test_everything_from_the_records_is_escaped(run: Path) -> None:
    page = page_of(run)
    assert Elements(page).all("script") == []
    assert HOSTILE not in page
    assert (
        page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    )  # classes, alt texts, note, command, settings, machine


def test_the_page_needs_nothing_but_itself(run: Path) -> None:
    elements = Elements(page_of(run))
    addresses = [
        value for _, attributes in elements.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert len(addresses) > 100
    assert all(str(address).startswith("data:") for address in addresses)
    assert "@import" not in page_of(run)


def test_every_picture_and_chart_has_a_text(run: Path) -> None:
    elements = Elements(page_of(run))
    images, charts = elements.all("img"), elements.all("svg")
    assert len(images) == 2 * 12 + 12 * 7
    assert all(image["alt"] for image in images)
    assert len({image["alt"] for image in images}) == len(images)
    assert "neighbour 2 of test image 1: disc, similarity 0.98, same class" in [image["alt"] for image in images]
    assert "neighbour 1 of test image 1: no label, similarity 0.99, class unknown" in [image["alt"] for image in images]
    assert all("from" in str(chart["aria-label"]) for chart in charts)


def test_each_logged_quantity_has_its_chart(run: Path) -> None:
    labels = [str(chart["aria-label"]) for chart in Elements(page_of(run)).all("svg")]
    for title in (
        "Loss",
        "Proxy",
        "kNN",
        "Linear probe",
        "Learning rate",
        "Momentum",
        "Speed",
        "Queue",
        "Own",
        "Same class",
    ):
        assert any(label.startswith(title) for label in labels), title
    assert len(labels) == 10
    assert "Own image among the candidates (excluded)" in page_of(run)
    knn = next(label for label in labels if label.startswith("kNN"))
    assert "from 41.25 to 78.75 % in 6.045 min" in knn


NUMBERS_OF_STAGES = {
    "negatives/all/kept": 510,
    "negatives/all/effective": 510,
    "negatives/all/same_class": 0.1,
    "negatives/all/empty_rows": 0,
    "negatives/2_MoCHi/kept": 538,
    "negatives/2_MoCHi/effective": 533,
    "negatives/2_MoCHi/same_class": 0.025,
    "negatives/2_MoCHi/empty_rows": 0.5,
    "negatives/1_SameCluster/kept": 506,
    "negatives/1_SameCluster/effective": 506,
    "negatives/1_SameCluster/same_class": 0.025,
    "negatives/1_SameCluster/empty_rows": 0.25,
    "negatives/1_SameCluster/found": 4,
    "negatives/1_SameCluster/precision": "nan",
    "negatives/1_SameCluster/recall": 0.75,
    "negatives/1_SameCluster/accepted": 0.125,
    "negatives/1_SameCluster/of_ones_own": 7,
    "loss/accuracy": 0.625,
}


def write_stages(run: Path, numbers: dict) -> None:
    """Metrics of two logged steps of a run; where precision is known only in the second."""
    names = ["step", "epoch", "seconds", "train/loss", "candidates/same_class", *numbers]
    second = {**numbers, **({"negatives/1_SameCluster/precision": 0.5} if numbers else {})}
    rows = [["0", "0", "1", "5", "0.1", *numbers.values()], ["1", "0", "2", "4", "0.1", *second.values()]]
    (run / "metrics.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in [names, *rows]))


def test_what_the_stages_did_has_a_chart_a_number_with_a_line_a_stage_and_its_definition(run: Path) -> None:
    write_stages(run, NUMBERS_OF_STAGES)
    page = page_of(run)
    section = page[page.index('id="negatives"') : page.index('id="views"')]
    labels = [str(chart["aria-label"]) for chart in Elements(section).all("svg")]
    assert [label.partition(" (")[0] for label in labels] == [
        "Candidates kept", "Removed or added", "Effective number of negatives", "Same class among the candidates",
        "False negatives found", "Precision of what is found", "Recall of what is found", "Queries with nothing left",
        "Clustered images believed", "Of ones own", "Proxy accuracy after the stages",
    ]  # fmt: skip
    told = dict(zip([label.partition(" (")[0] for label in labels], labels, strict=True))
    assert re.search(
        r"before the stages\): from 510 .*\(1. SameCluster\): from 506 .*\(2. MoCHi\): from 538 ", labels[0]
    )
    change = "(1. SameCluster): from -4 to -4 per query in 2 s, between -4 and -4; Removed or added (2. MoCHi): from 32 to 32 "
    assert change in told["Removed or added"]
    assert "from 10 to 10 %" in told["Same class among the candidates"]
    assert "(1. SameCluster): from 2.5 to 2.5 %" in told["Same class among the candidates"]
    assert told["Recall of what is found"].startswith("Recall of what is found (1. SameCluster): from 75 to 75 %")
    assert told["Precision of what is found"].endswith("(1. SameCluster): 50 % after 2 s")
    text = " ".join(Elements(section).text.split())
    assert (
        "share of the found candidates that are of the query's true class; no number where none is found; 1 value left out"
        in text
    )
    assert "as the stage reports it" in text
    assert "a line for each stage" in text
    legend = [str(entry["class"]) for entry in Elements(section).all("li")][:3]
    assert legend == ["before", "stage1", "stage2"]
    drawn = [str(group["class"]) for group in Elements(section).all("g") if "line" in str(group.get("class"))][:3]
    assert drawn == [f"line {name}" for name in legend]


def test_a_chart_of_changes_has_no_change_on_its_axis() -> None:
    from contrastneg.report.plots import Series, draw

    for low, high in ((-40, -4), (4, 40), (0, 0)):
        chart = draw("Change", "", [Series("a", [(0.0, low), (1.0, high)])], x_title="", x_unit="s", from_zero=True)
        assert chart is not None
        assert 0 in [float(tick.text) for tick in chart.y_ticks]


def test_a_run_without_stages_shows_its_queue_and_one_with_nothing_says_so(run: Path) -> None:
    section = page_of(run).partition('id="negatives"')[2].partition('id="views"')[0]
    assert "No stage edits the candidates of this run" in section
    assert len(Elements(section).all("svg")) == 3
    assert "thin: logged steps, thick: last step of each epoch" in section
    (run / "metrics.csv").write_text("step,epoch,seconds,train/loss\n0,0,1,5\n")
    section = page_of(run).partition('id="negatives"')[2].partition('id="views"')[0]
    assert (
        '<p class="absent">The run logged nothing of its candidates: that takes stages, a queue, or labels.' in section
    )
    assert "<svg" not in section


def test_a_cut_last_line_of_metrics_is_left_out(run: Path) -> None:
    page = page_of(run)
    assert "7777" not in page
    assert "7,777" not in page


def test_values_that_are_not_finite_are_counted_not_drawn(run: Path) -> None:
    with (run / "metrics.csv").open("a") as file:
        file.write("\n41,4,373.0,nan,,,,,,,,,,,\n42,4,374.0,inf,,,,,,,,,,,\n")
    page = page_of(run)
    assert "2 values left out: infinite, or no number as there was nothing to count" in page
    assert not re.search(r'd="[^"]*(nan|inf)', page)


def test_the_command_can_be_pasted_into_a_shell(run: Path) -> None:
    import shlex

    text = Elements(page_of(run)).text
    line = next(line for line in text.splitlines() if line.startswith("contrastneg pretrain"))
    assert shlex.split(line) == json.loads((run / "summary.json").read_text())["command"]


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "metrics.csv", "summary.json", "pictures.npz"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "other"])
def test_a_missing_or_damaged_record_costs_only_its_sections(run: Path, name: str, damage: str) -> None:
    path = run / name
    if damage == "gone":
        path.unlink()
    else:
        content = {"empty": b"", "cut": path.read_bytes()[: path.stat().st_size // 2], "other": b"[1, 2]\n"}[damage]
        path.write_bytes(content)
    page = page_of(run)
    assert page.count("<h2>") >= 7
    if damage in ("gone", "empty"):
        assert re.search(rf'class="absent">{re.escape(name)} ', page)
    if name != "pictures.npz":
        assert page.count("<img") == 2 * 12 + 12 * 7
    if name != "summary.json":
        assert "71.2 %" in page


def test_an_empty_folder_gives_a_page_of_sentences(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert page.count('class="absent"') == 9
    assert "<img" not in page


def test_an_unfinished_run_tells_how_far_it_is(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "pictures.npz").unlink()
    text = Elements(page_of(run)).text
    assert "The run is not finished; logged up to epoch 4 of 4; last kNN top-1 while training: 78.8 %." in text
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "epochs": 100, "max_steps": 40}))
    ended = Elements(page_of(run)).text
    assert "logged up to epoch 4; last kNN top-1" in ended
    assert "of 100" not in ended
    assert re.search(r"Command\s+contrastneg pretrain", text)  # it is recorded when a run begins
    assert "command" not in text[text.index("Environment") :]


def test_no_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    from contrastneg.report.page import write_report

    with pytest.raises(ValueError, match="nowhere is not a folder"):
        write_report(tmp_path / "nowhere")


def test_large_pictures_and_long_runs_stay_below_5_mb(run: Path) -> None:
    write_pictures(run / "pictures.npz", side=224)
    lines = (run / "metrics.csv").read_text().splitlines()[:-1]
    rows = [f"{step},{step // 100},{step},{1 + step % 7},0.5,,,,,,,,,," for step in range(20_000)]
    (run / "metrics.csv").write_text("\n".join([lines[0], *rows]) + "\n")
    assert len(page_of(run).encode()) < 5_000_000


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (3.9, 5.6, [3.5, 4.0, 4.5, 5.0, 5.5, 6.0]),
        (0.0, 97.0, [0.0, 50.0, 100.0]),
        (0.0, 0.004, [0.0, 0.001, 0.002, 0.003, 0.004]),
        (0.99, 0.99, [0.9, 0.95, 1.0, 1.05]),
        (0.0, 0.0, [0.0, 0.5, 1.0]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, expected: list[float]) -> None:
    from contrastneg.report.plots import nice_ticks

    assert nice_ticks(low, high) == pytest.approx(expected)


def test_labels_of_near_levels_do_not_cover_each_other() -> None:
    from contrastneg.report.plots import BOTTOM, LABEL_GAP, draw_levels

    levels = draw_levels([(101.0, "b"), (100.0, "a"), (50.0, "c")])
    assert [level.label for level in levels] == ["c", "a", "b"]
    assert levels[2].label_y - levels[1].label_y >= LABEL_GAP
    lowest, above = sorted((level.label_y for level in draw_levels([(BOTTOM, "a"), (BOTTOM, "b")])), reverse=True)
    assert lowest < BOTTOM  # not among the labels of the horizontal axis
    assert lowest - above >= LABEL_GAP


@pytest.fixture
def browser():
    """A headless Chromium, without the network."""
    with chromium() as started:
        yield started


@pytest.mark.parametrize("stages", [False, True])
def test_a_browser_shows_the_page_at_all_widths_and_in_the_dark(run: Path, browser, stages: bool) -> None:
    if stages:
        write_stages(run, NUMBERS_OF_STAGES)
    page_of(run)
    backgrounds = {}
    for width, scheme in ((1280, "light"), (390, "light"), (390, "dark")):
        with opened(browser, run / "report.html", width, scheme) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            assert page.evaluate(
                "[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().height > 100)"
            )
            assert page.evaluate("getComputedStyle(document.images[0]).imageRendering") == "pixelated"
            backgrounds[width, scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert backgrounds[390, "dark"] != backgrounds[390, "light"] == backgrounds[1280, "light"]


def test_hardness_has_a_chart_a_measure_and_a_run_without_labels_none_of_classes():
    from contrastneg.report.candidates import HARDNESS, hardness_charts

    names = [name for _, lines in HARDNESS for name in lines]
    metrics: dict = {"step": [0.0, 10.0, 20.0]}
    metrics |= {f"hardness/{name}": [None, 0.25 + place, 0.5 + place] for place, name in enumerate(names)}
    charts = {chart.title: chart for chart, _ in hardness_charts(metrics)}
    assert list(charts) == [measure.title for measure, _ in HARDNESS]
    cosines = charts["Similarity of the negatives"]
    assert [line.label for line in cosines.lines] == list(HARDNESS[0][1].values())
    assert cosines.legend
    assert len({line.style for line in cosines.lines}) == 4
    assert not charts["Effective number by softmax"].legend
    assert "(on false negatives): from 1,425 to 1,450 %" in charts["InfoNCE's gradient on false negatives"].description
    unlabelled = {name: column for name, column in metrics.items() if "class" not in name and "false" not in name}
    fewer = [chart.title for chart, _ in hardness_charts(unlabelled)]
    assert set(charts) - set(fewer) == {"Same class by hardness", "InfoNCE's gradient on false negatives"}
