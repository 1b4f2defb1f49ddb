"""A run's page: what was trained, scores beside baselines, curves, pictures, settings, in one self-contained file."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contrastneg.report.candidates import candidate_charts, hardness_charts, has_stages
from contrastneg.report.curves import charts
from contrastneg.report.evaluations import EvaluationTable, evaluation_tables
from contrastneg.report.pictures import Row, Shown, neighbour_rows, view_pairs
from contrastneg.report.plots import Chart
from contrastneg.report.records import Records, finite, number, read_records, shortfall, voters
from contrastneg.report.templating import render
from contrastneg.wording import asked_images, count_of, duration, percent
from contrastneg.writing import write_text


@dataclass(frozen=True)
class Score:
    """One score of the headline."""

    name: str
    value: str
    remark: str


@dataclass(frozen=True)
class TableRow:
    """One row of the score table, as text."""

    features: str
    knn: str
    knn5: str | None
    """None in all rows where there are too few classes for a top-5 score."""
    linear: str


@dataclass(frozen=True)
class Page:
    """All that the template shows; ``absent`` has the sentence for each section that is left out."""

    title: str
    facts: list[str]
    scores: list[Score]
    verdict: str
    table: list[TableRow]
    table_remark: str
    charts: list[tuple[Chart, str]]
    negatives: list[tuple[Chart, str]]
    negatives_remark: str
    hardness: list[tuple[Chart, str]]
    pairs: list[tuple[Shown, Shown]]
    neighbours: list[Row]
    neighbour_remark: str
    notes: list[str]
    command: str
    environment: list[tuple[str, str]]
    config: str
    absent: dict[str, str]
    evaluations: list[EvaluationTable] = field(default_factory=list)


def write_report(run: Path) -> Path:
    """Write ``report.html`` of a run from its records; sections whose records are missing say so in a sentence.

    Args:
        run: Run folder, finished or not.

    Returns:
        The page's path.

    Raises:
        ValueError: If ``run`` is not a folder.
    """
    run = Path(run)
    text = render("page.html", page=build_page(read_records(run), evaluation_tables(run)))
    page = run / "report.html"
    write_text(page, text)
    return page


def build_page(records: Records, evaluations: Sequence[EvaluationTable] = ()) -> Page:
    """Everything the page shows, from the records of a run and the evaluations of its encoder."""
    rows = [row for row in as_list(records.summary.get("table")) if isinstance(row, dict)]
    neighbours = neighbour_rows(records.pictures)
    command = as_list(records.environment.get("command")) or as_list(records.summary.get("command"))
    return Page(
        title=title(records),
        facts=facts(records),
        scores=[score(row, rows[0]) for row in rows],
        verdict=verdict(records, rows),
        table=score_rows(rows),
        table_remark=table_remark(rows, asked_images(told(records))),
        charts=charts(records.metrics, rows),
        negatives=candidate_charts(records.metrics),
        negatives_remark=negatives_remark(records),
        hardness=hardness_charts(records.metrics),
        pairs=view_pairs(records.pictures),
        neighbours=neighbours,
        neighbour_remark=neighbour_remark(records, neighbours),
        notes=notes(records, rows),
        command=shlex.join(map(str, command)),
        environment=[(str(k), plain_text(value)) for k, value in records.environment.items() if k != "command"],
        config=records.config_text.strip(),
        absent=absent(records.problems),
        evaluations=list(evaluations),
    )


def absent(problems: dict[str, str]) -> dict[str, str]:
    """The sentence of each section that may have nothing to show."""
    return {
        "scores": problems.get(
            "summary.json", "No scores: the run was not scored, or its data have no labels or test images."
        ),
        "curves": problems.get("metrics.csv", "metrics.csv has no numbers yet."),
        "negatives": problems.get(
            "metrics.csv", "The run logged nothing of its candidates: that takes stages, a queue, or labels."
        ),
        "hardness": problems.get(
            "metrics.csv", "The run logged nothing of how hard its negatives are: that is done once in log_every steps."
        ),
        "views": problems.get("pictures.npz", "pictures.npz holds no pairs of views."),
        "neighbours": problems.get("pictures.npz", "pictures.npz holds no neighbours."),
        "command": problems.get("environment.json", "environment.json names no command."),
        "environment": problems.get("environment.json", "environment.json is empty."),
        "settings": problems.get("config.yaml", "config.yaml is empty."),
    }


def title(records: Records) -> str:
    """Method and data."""
    method = records.config.get("method")
    name = method.get("class_path") if isinstance(method, dict) else method
    return f"{records.summary.get('method') or name or 'A run'} on {data_name(records)}"


def data_name(records: Records) -> str:
    """What it was trained on: a generated or named set as the settings give it, a folder by its last name."""
    data = str(records.summary.get("data") or records.config.get("data") or "unknown data")
    return Path(data).name if Path(data).is_absolute() else data


def facts(records: Records) -> list[str]:
    """Encoder, length, time and speed in a few words, as far as they are known."""
    config, summary = records.config, records.summary
    method = config.get("method")
    settings = method.get("init_args") if isinstance(method, dict) else None
    backbone = settings.get("backbone") if isinstance(settings, dict) else None
    found = []
    if isinstance(backbone, dict) and backbone.get("name"):
        found.append(f"encoder {backbone['name']}")
    if math.isfinite(parameters := number(summary.get("parameters"))):
        found.append(f"{parameters:,.0f} parameters")
    if math.isfinite(epochs := number(config.get("epochs"))):
        steps = ended_by_steps(records)
        found.append(count_of(steps, "optimizer step") if steps else count_of(int(epochs), "epoch"))
    if math.isfinite(batch := number(config.get("batch_size"))):
        found.append(f"batches of {batch:.0f}")
    if math.isfinite(seconds := number(summary.get("train_seconds"))):
        found.append(f"{duration(seconds)} of training")
    if math.isfinite(speed := number(summary.get("images_per_second"))):
        found.append(f"{speed:,.0f} images/s")
    if config.get("seed") is not None:
        found.append(f"seed {config['seed']}")
    return found


def ended_by_steps(records: Records) -> int | None:
    """How many optimizer steps the run was given, where they ended it before its epochs did."""
    most, reached = records.config.get("max_steps"), finite(records.metrics.get("step", []))
    return most if most is not None and reached and max(reached) + 1 >= most else None


def score(row: dict[str, Any], key: dict[str, Any]) -> Score:
    """A headline score: kNN, and how far the key score is above or below it."""
    value, name = number(row.get("knn_top1")), str(row.get("features", "?"))
    settings = f"kNN top-1, k = {row.get('knn_k', '?')}"
    remark = settings if row is key else gain_remark(number(key.get("knn_top1")) - value)
    return Score(name, f"{score_text(value)} %" if math.isfinite(value) else "–", remark)


def gain_remark(gain: float) -> str:
    """How far the key score is above another one, in points; nothing where one of them is missing."""
    if not math.isfinite(gain):
        return ""
    points = percent(abs(gain))
    if float(points) == 0:
        return "pretrained is as high"
    return f"pretrained is {points} points {'higher' if gain > 0 else 'lower'}"


def verdict(records: Records, rows: list[dict[str, Any]]) -> str:
    """What the scores say, or how far an unscored run is."""
    if rows:
        return sentence(shortfall(rows))
    epochs = finite(records.metrics.get("epoch", []))
    state = "The run is not scored" if records.summary else "The run is not finished"
    if not epochs:
        return f"{state}; nothing is logged yet."
    knn_scores = finite(records.metrics.get("knn/top1", []))
    knn = f"; last kNN top-1 while training: {percent(100 * knn_scores[-1])} %" if knn_scores else ""
    whole = "" if ended_by_steps(records) else f" of {records.config.get('epochs') or '?'}"
    return f"{state}; logged up to epoch {max(epochs) + 1:.0f}{whole}{knn}."


def notes(records: Records, rows: list[dict[str, Any]]) -> list[str]:
    """What a reader must know, each once; what the verdict says already is left out."""
    return [note for note in dict.fromkeys(told(records)) if note != shortfall(rows)]


def told(records: Records) -> list[str]:
    """The notes of the run."""
    return [str(note) for note in as_list(records.summary.get("notes"))]


def sentence(text: str) -> str:
    """A note as a sentence."""
    return f"{text[0].upper()}{text[1:]}." if text else ""


def score_rows(rows: list[dict[str, Any]]) -> list[TableRow]:
    """The score table as text."""
    ranked = any("knn_top5" in row for row in rows)
    return [
        TableRow(
            str(row.get("features", "?")),
            score_text(row.get("knn_top1")),
            score_text(row.get("knn_top5")) if ranked else None,
            score_text(row.get("linear_top1")),
        )
        for row in rows
    ]


def table_remark(rows: list[dict[str, Any]], asked: str) -> str:
    """Settings of the kNN score, and the baselines in a sentence."""
    if not rows:
        return ""
    temperature = rows[0].get("knn_temperature", "?")
    return (
        f"kNN: weighted vote of the {voters(rows)} nearest training images at temperature {temperature}. Linear: a classifier on frozen"
        f" features. Both are scored on {asked}."
    )


def negatives_remark(records: Records) -> str:
    """Whose numbers the charts of the candidates show."""
    if has_stages(records.metrics):
        return "What the stages did to the candidates of a query, at the logged steps: a line for each stage, in their order."
    return "No stage edits the candidates of this run: they are those of its queue or batch."


def neighbour_remark(records: Records, rows: list[Row]) -> str:
    """What the neighbours are, and how many are right of those whose class is known."""
    alike = "by cosine similarity of the pretrained features"
    if "query_label" not in records.pictures:
        searched = records.pictures.get("searched", "the")
        return f"Pretraining images (outlined) and the nearest of {searched} others {alike}. The number is the cosine."
    kinds = [near.kind for row in rows for near in row.near if near.kind != "unknown"]
    right = (
        f" {kinds.count('right')} of {len(kinds)} shown neighbours have the outlined image's class (✓), the others do not (✗)."
        if kinds
        else ""
    )
    asked = sentence(asked_images(told(records))).rstrip(".")
    return f"{asked} (outlined) and their nearest training images {alike}.{right} The number is the cosine."


def score_text(value: Any) -> str:
    """A score in percent; a dash where there is none."""
    return percent(number(value)) if math.isfinite(number(value)) else "–"


def plain_text(value: Any) -> str:
    """A value of a JSON record as a reader would write it."""
    if isinstance(value, list):
        return ", ".join(map(plain_text, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {plain_text(entry)}" for name, entry in value.items())
    return str(value)


def as_list(value: Any) -> list[Any]:
    """A list as it is, anything else as an empty one."""
    return value if isinstance(value, list) else []
