"""Several evaluations of the same images side by side, with paired bootstrap differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.table import Table

from contrastneg.evaluate.intervals import Interval, paired_difference
from contrastneg.evaluate.results import ENCODER, NOTHING, SUMMARY, Evaluation, Score, read_evaluation


class Difference(NamedTuple):
    """How much a run is above the first one, in points, over the same images."""

    points: float
    interval: Interval

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.interval.low <= 0 <= self.interval.high


@dataclass(frozen=True)
class Row:
    """One number of all runs."""

    protocol: str
    metric: str
    unit: str
    scores: list[Score | None]
    """By run; None where a run has no such number."""
    differences: list[Difference | None]
    """To the first run; None for itself, and where images are not the same ones or no mean was taken over them."""


@dataclass(frozen=True)
class Comparison:
    """Runs that were scored on the same set."""

    data: str
    names: list[str]
    rows: list[Row]
    notes: list[str]


def compare(folders: Sequence[Path]) -> list[Comparison]:
    """One comparison for each set that at least two of the runs were scored on.

    Args:
        folders: Run folders that were evaluated, or folders of results.

    Raises:
        ValueError: A folder holds no evaluation, or no two of them share a set.
    """
    if len(folders) < 2:
        raise ValueError("a comparison needs at least two runs: contrastneg evaluate --compare RUN RUN ...")
    by_images: dict[str, list[tuple[str, Evaluation]]] = {}
    for folder in folders:
        for place in evaluations_in(folder):
            evaluation = read_evaluation(place)
            name = (
                folder.name
                if place == folder or place.parent.name != "evaluation"
                else f"{folder.name}{mark(place, folder)}"
            )
            by_images.setdefault(str(evaluation.context["queries_fingerprint"]), []).append((name, evaluation))
    found = [side_by_side(runs) for runs in by_images.values() if len(runs) > 1]
    if not found:
        sets = ", ".join(dict.fromkeys(str(runs[0][1].context["data"]) for runs in by_images.values()))
        raise ValueError(f"no two of the runs were scored on the same images ({sets}): evaluate them on one set")
    return found


def evaluations_in(folder: Path) -> list[Path]:
    """Folders of results of a run, or the folder itself.

    Raises:
        ValueError: There are none.
    """
    inside = sorted(path.parent for path in (folder / "evaluation").glob(f"*/{SUMMARY}"))
    if not inside and (folder / SUMMARY).exists() and not (folder / "config.yaml").exists():
        inside = [folder]
    if not inside:
        raise ValueError(f"{folder} holds no evaluation: run `contrastneg evaluate {folder}` first")
    return inside


def mark(place: Path, folder: Path) -> str:
    """What tells several evaluations of a run on one set apart: a checkpoint or a layer."""
    extra = [word for word in place.name.split("-") if word in ("projector", "random", "best", "last", "interrupted")]
    return f" ({', '.join(extra)})" if extra else ""


def side_by_side(runs: Sequence[tuple[str, Evaluation]]) -> Comparison:
    """The numbers of several evaluations of the same images."""
    notes = []
    for name, what in (("layer", "layers"), ("bank_fingerprint", "images that answer"), ("precision", "precisions")):
        if len({str(evaluation.context.get(name)) for _, evaluation in runs}) > 1:
            notes.append(f"the runs differ in {what}: differences are not of the encoders alone")
    keys = dict.fromkeys(
        score.key
        for _, evaluation in runs
        for score in evaluation.scores
        if score.features == ENCODER and score.headline
    )
    first = runs[0][1]
    rows = []
    for key in keys:
        scores = [headline(evaluation, key) for _, evaluation in runs]
        shown = next(score for score in scores if score is not None)
        differences = [None, *(difference(first, evaluation, key) for _, evaluation in runs[1:])]
        rows.append(Row(shown.protocol, shown.metric, shown.unit, scores, differences))
    return Comparison(str(first.context["data"]), unlike([name for name, _ in runs]), rows, notes)


def headline(evaluation: Evaluation, key: str) -> Score | None:
    """The encoder's number of an evaluation."""
    found = (s for s in evaluation.scores if s.features == ENCODER and s.headline and s.key == key)
    return next(found, None)


def difference(first: Evaluation, second: Evaluation, key: str) -> Difference | None:
    """How much the second is above the first."""
    own, other = (evaluation.values.get(f"{ENCODER}/{key}") for evaluation in (second, first))
    if own is None or other is None or own.shape != other.shape:
        return None
    both = np.isfinite(own) & np.isfinite(other)
    own, other = (torch.from_numpy(values[both]).double() for values in (own, other))
    points, interval = paired_difference(own, other)
    return Difference(100 * points, Interval(*(100 * end for end in interval)))


def unlike(names: Sequence[str]) -> list[str]:
    """The names, numbered where several are equal."""
    return [
        f"{name} #{names[: place + 1].count(name)}" if list(names).count(name) > 1 else name
        for place, name in enumerate(names)
    ]


def table_of_comparison(comparison: Comparison) -> Table:
    """For the terminal: each number, and below it how far it is above the first run's."""
    first = comparison.names[0]
    table = Table(title=f"On {comparison.data}; differences to {first} over the same images", title_justify="left")
    table.add_column("protocol")
    table.add_column("score")
    for name in comparison.names:
        table.add_column(name, justify="right")
    for row in comparison.rows:
        metric = f"{row.metric} (%)" if row.unit == "%" else row.metric
        cells = [cell(score, against) for score, against in zip(row.scores, row.differences, strict=True)]
        table.add_row(row.protocol, metric, *cells)
    return table


def cell(score: Score | None, against: Difference | None) -> str:
    """A number, and its difference with the interval; a star where that leaves out 0."""
    if score is None:
        return NOTHING
    if against is None:
        return score.text()
    low, high = against.interval
    return (
        f"{score.text(interval=False)}  {against.points:+.1f} [{low:+.1f}, {high:+.1f}]{' *' if against.clear else ''}"
    )
