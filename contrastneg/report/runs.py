"""The page of several runs: scores, settings that differ, and every curve of all runs in one chart, in one self-contained file."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from contrastneg import negatives
from contrastneg.evaluate.comparison import compare, unlike
from contrastneg.evaluate.results import SUMMARY
from contrastneg.report.candidates import (
    HARDNESS,
    LOSS,
    MEASURES,
    OF_ONE_LINE,
    QUEUE,
    Measure,
    numbers_of_stages,
    title_of,
)
from contrastneg.report.comparison import ComparedSet, compared_sets
from contrastneg.report.curves import CURVES, LAST_COLUMN, Axis, Column, Curve, remark
from contrastneg.report.page import as_list, data_name, plain_text, score_text, title, verdict
from contrastneg.report.plots import STAGE_STYLES, Chart, Series, draw
from contrastneg.report.records import Records, finite, number, read_records
from contrastneg.report.templating import render
from contrastneg.wording import duration
from contrastneg.writing import write_text

OF_THE_FOLDER = ("run",)
"""Settings that differ between any two runs, and say nothing."""
NONE = "–"
OF_THE_TABLE = ("kept", "effective", "same_class", "empty_rows")
"""What is measured of the candidates before the stages and after each."""


@dataclass(frozen=True)
class Run:
    """One of the runs: how it is told apart, and what it left."""

    number: int
    name: str
    style: str
    records: Records


@dataclass(frozen=True)
class Drawn:
    """What one chart shows of every run."""

    measure: Measure
    columns: tuple[str, ...]
    """Of these columns the last that a run has numbers in."""


@dataclass(frozen=True)
class RunRow:
    """A run's line in the table of scores."""

    run: Run
    title: str
    cells: list[str]


@dataclass(frozen=True)
class RunsPage:
    """All that the template shows."""

    runs: list[Run]
    headings: list[str]
    rows: list[RunRow]
    notes: list[str]
    settings: list[tuple[str, list[str]]]
    environment: list[tuple[str, list[str]]]
    compared: list[ComparedSet]
    parts: list[tuple[str, str, list[tuple[Chart, str]]]]
    """Anchor, title and charts."""
    axis: str


def write_runs(folders: Sequence[Path], path: Path) -> Path:
    """Write the page of several runs from their records; one whose records are missing says so in a note.

    Args:
        folders: Run folders, finished or not.
        path: The file, replaced if it is there.

    Returns:
        The path.

    Raises:
        ValueError: A folder is none or is named twice, or there are more than lines can be told apart.
    """
    if len(folders) > len(STAGE_STYLES):
        raise ValueError(f"{len(folders)} runs are named: one page tells {len(STAGE_STYLES)} apart at most, give fewer")
    for place, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:place]]:
            raise ValueError(f"{folder} is named twice: give each run once")
    names = unlike([folder.resolve().name for folder in folders])
    runs = [
        Run(place + 1, name, STAGE_STYLES[place], read_records(folder))
        for place, (name, folder) in enumerate(zip(names, folders, strict=True))
    ]
    compared, notes = evaluations(folders)
    write_text(path, render("runs.html", page=build_page(runs, compared, notes)))
    return path


def build_page(runs: list[Run], compared: list[ComparedSet], notes: Sequence[str] = ()) -> RunsPage:
    """Everything the page shows, from the records of the runs and the comparisons of their evaluations."""
    axes, axis = axes_of(runs)
    metrics = [metrics_by_stage(run.records.metrics) for run in runs]
    parts = [
        ("curves", "Curves", [of_curve(curve) for curve in CURVES]),
        ("negatives", "Negatives", of_negatives(metrics)),
        ("hardness", "Hardness of the negatives", of_hardness()),
    ]
    columns = score_columns(runs)
    return RunsPage(
        runs=runs,
        headings=[heading for heading, _ in columns],
        rows=[
            RunRow(run, title(run.records), [cells[place] for _, cells in columns]) for place, run in enumerate(runs)
        ],
        notes=[*notes_of(runs), *notes],
        settings=differing([dict(flat(shown_settings(run.records.config))) for run in runs]),
        environment=differing(
            [{k: plain_text(v) for k, v in run.records.environment.items() if k != "command"} for run in runs]
        ),
        compared=compared,
        parts=[(anchor, heading, charts_of(drawn, runs, metrics, axes)) for anchor, heading, drawn in parts],
        axis=axis,
    )


def evaluations(folders: Sequence[Path]) -> tuple[list[ComparedSet], list[str]]:
    """Comparisons of the runs that were evaluated on one set, and why there are none where two were evaluated."""
    evaluated = [folder for folder in folders if any((folder / "evaluation").glob(f"*/{SUMMARY}"))]
    if len(evaluated) < 2:
        return [], []
    try:
        return compared_sets(compare(evaluated)), []
    except (ValueError, KeyError) as error:
        told = f"a record has no {error}" if isinstance(error, KeyError) else error
        return [], [f"Evaluations are not compared: {told}."]


def notes_of(runs: Sequence[Run]) -> list[str]:
    """What a reader must know of each run: how far it is, where it is no better than a baseline, what is missing."""
    found = []
    for run in runs:
        rows = [row for row in as_list(run.records.summary.get("table")) if isinstance(row, dict)]
        lost = [run.records.problems.get(name) for name in ("config.yaml", "metrics.csv")]
        found += [f"{run.name}: {text}" for text in (verdict(run.records, rows), *lost) if text]
    if len({data_name(run.records) for run in runs}) > 1:
        found.append("The runs are of different data: scores on different test images cannot be compared.")
    return found


def score_columns(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The columns of the table of scores with a cell for each run; those that no run fills are left out."""
    tables = [
        {str(row.get("features")): row for row in as_list(run.records.summary.get("table")) if isinstance(row, dict)}
        for run in runs
    ]
    columns = [
        (f"{features}, {label} (%)", [score_text(table.get(features, {}).get(key)) for table in tables])
        for features in dict.fromkeys(features for table in tables for features in table)
        for key, label in (("knn_top1", "kNN top-1"), ("linear_top1", "linear top-1"))
    ]
    last = [finite(run.records.metrics.get("knn/top1", []))[-1:] for run in runs]
    columns.append(("last kNN while training (%)", [score_text(100 * one[0]) if one else NONE for one in last]))
    summaries = [run.records.summary for run in runs]
    seconds, speeds = ([number(s.get(key)) for s in summaries] for key in ("train_seconds", "images_per_second"))
    columns.append(("training", [duration(s) if math.isfinite(s) else NONE for s in seconds]))
    columns.append(("images/s", [f"{s:,.0f}" if math.isfinite(s) else NONE for s in speeds]))
    return [(heading, cells) for heading, cells in columns if set(cells) != {NONE}]


def shown_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that name the run's folder."""
    return {name: setting for name, setting in config.items() if name not in OF_THE_FOLDER}


def flat(setting: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each single setting by its key; the class of a part stands under the part's own key, as error messages name it.

    A list of parts fills one cell, each as :func:`called` writes it.
    """
    if isinstance(setting, dict) and "class_path" in setting:
        yield key, str(setting["class_path"])
        setting = setting.get("init_args") or {}
    if isinstance(setting, dict):
        for name, entry in setting.items():
            yield from flat(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(setting, list) and any(isinstance(entry, dict) for entry in setting):
        yield key, ", ".join(map(called, setting))
    elif setting != [] and setting is not None:
        yield key, plain_text(setting)


def called(part: Any) -> str:
    """A part with the settings that are not its defaults, as one writes it in Python; of classes not ours with all."""
    if isinstance(part, list):
        return f"[{', '.join(map(called, part))}]"
    if not isinstance(part, dict):
        return plain_text(part)
    path = str(part.get("class_path", ""))
    name = path.rpartition(".")[2]
    settings = part if not name else part.get("init_args") or {}
    usual = defaults_of(path)
    told = {key: called(entry) for key, entry in settings.items() if key not in usual or usual[key] != called(entry)}
    inner = ", ".join(f"{key}={text}" for key, text in told.items())
    return f"{name}({inner})" if inner or not name else name


def defaults_of(path: str) -> dict[str, str]:
    """The plain defaults of a stage of ours as :func:`called` writes them; none of a class of another module."""
    module, _, name = path.rpartition(".")
    kind = getattr(negatives, name, None) if not module or module.split(".")[0] == "contrastneg" else None
    known = fields(kind) if isinstance(kind, type) and is_dataclass(kind) else ()
    plain = [field for field in known if field.default is None or isinstance(field.default, (bool, int, float, str))]
    return {field.name: called(field.default) for field in plain}


def differing(settings: Sequence[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """The keys whose values are not the same in all runs, with each run's value; a dash where it has none."""
    keys = dict.fromkeys(key for one in settings for key in one)
    rows = [(key, [one.get(key, NONE) for one in settings]) for key in keys]
    return [(key, cells) for key, cells in rows if len(set(cells)) > 1]


def axes_of(runs: Sequence[Run]) -> tuple[list[Axis], str]:
    """The horizontal axis of each run and what it is: epochs, or optimizer steps where a run has finished no epoch."""
    lengths = [steps_per_epoch(run.records.metrics) for run in runs if finite(run.records.metrics.get("step", []))]
    by_epoch = all(length is not None for length in lengths)
    name, unit = ("epochs", "epochs") if by_epoch else ("optimizer steps", "steps")
    axes = []
    for run in runs:
        steps = run.records.metrics.get("step", [])
        per = (steps_per_epoch(run.records.metrics) or 1.0) if by_epoch else 1.0
        axes.append(Axis(name, unit, [math.nan if step is None else (step + 1) / per for step in steps]))
    return axes, name


def steps_per_epoch(metrics: dict[str, Column]) -> float | None:
    """Optimizer steps of an epoch, by the last one that ended; None if none did."""
    columns = (metrics.get(name, []) for name in ("step", "epoch", "epoch/loss"))
    ends = [
        (step + 1) / (epoch + 1)
        for step, epoch, loss in zip(*columns, strict=False)
        if step is not None and epoch is not None and loss is not None
    ]
    return ends[-1] if ends else None


def metrics_by_stage(metrics: dict[str, Column]) -> dict[str, Column]:
    """The columns with those of stages by names under which runs with other stages compare.

    What the last stage leaves is ``last/MEASURE``; what a stage tells of itself ``stage/MEASURE/STAGE``, without its place;
    several stages of one class are numbered.
    """
    found = {name: column for name, column in metrics.items() if not name.startswith("negatives/")}
    for measure, columns in numbers_of_stages(metrics).items():
        if measure in OF_THE_TABLE:
            found[f"last/{measure}"] = list(columns.values())[-1]
            continue
        names = unlike([stage for _, stage in columns])
        found |= {f"stage/{measure}/{name}": column for name, column in zip(names, columns.values(), strict=True)}
    return found


def of_curve(curve: Curve) -> Drawn:
    """What a chart of one run shows in two lines, in one."""
    meaning = "; ".join(filter(None, (remark(replace(curve, lines=""), []), LAST_COLUMN.get(curve.lines, ""))))
    return Drawn(Measure(curve.title, curve.unit, meaning, curve.scale, curve.from_zero), curve.columns)


def of_hardness() -> list[Drawn]:
    """Each line of the charts of hardness as a chart of its own."""
    return [
        Drawn(
            measure
            if len(lines) == 1
            else replace(measure, title=f"{measure.title}: {label}", meaning=OF_ONE_LINE[name]),
            (f"hardness/{name}",),
        )
        for measure, lines in HARDNESS
        for name, label in lines.items()
    ]


def of_negatives(metrics: Sequence[dict[str, Column]]) -> list[Drawn]:
    """What the stages leave, what each tells of itself in any run, and the queue."""
    same_class = next(curve for curve in QUEUE if "candidates/same_class" in curve.columns)
    found = [
        Drawn(replace(MEASURES[name], title=f"{MEASURES[name].title}, after the last stage"), (f"last/{name}",))
        for name in OF_THE_TABLE
        if name != "same_class"
    ]
    meaning = f"{MEASURES['same_class'].meaning}; after the last stage, where there is one"
    found.append(Drawn(replace(MEASURES["same_class"], meaning=meaning), (*same_class.columns, "last/same_class")))
    for name in dict.fromkeys(name for one in metrics for name in one if name.startswith("stage/")):
        measure, _, stage = name.removeprefix("stage/").rpartition("/")
        meant = MEASURES.get(measure) or Measure(title_of(measure), "", "as the stage reports it", from_zero=False)
        found.append(Drawn(replace(meant, title=f"{meant.title}: {stage}"), (name,)))
    found += [Drawn(measure, (name,)) for name, measure in LOSS.items()]
    return [*found, *(of_curve(curve) for curve in QUEUE if curve is not same_class)]


def charts_of(
    drawn: Sequence[Drawn], runs: Sequence[Run], metrics: Sequence[dict[str, Column]], axes: Sequence[Axis]
) -> list[tuple[Chart, str]]:
    """Those of some charts that a run has numbers for, with the meaning under each title."""
    found = []
    for one in drawn:
        lines = [
            Series(f"{run.number} {run.name}", axis.points(column, one.measure.scale), run.style, str(run.number))
            for run, columns, axis in zip(runs, metrics, axes, strict=True)
            if (column := last_known(one.columns, columns)) is not None
        ]
        chart = draw(
            one.measure.title,
            one.measure.unit,
            lines,
            x_title=axes[0].title,
            x_unit=axes[0].unit,
            from_zero=one.measure.from_zero,
            legend=True,
        )
        if chart is not None:
            found.append((chart, one.measure.meaning))
    return found


def last_known(names: Iterable[str], metrics: dict[str, Column]) -> Column | None:
    """The last of some columns that has a number."""
    known = [metrics[name] for name in names if finite(metrics.get(name, []))]
    return known[-1] if known else None
