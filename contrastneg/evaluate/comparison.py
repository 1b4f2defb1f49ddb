"""Several evaluations of the same images side by side, with paired bootstrap differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.table import Table

from contrastneg.evaluate.intervals import Interval, paired_difference
from contrastneg.evaluate.results import (
    ENCODER,
    GROUP,
    NOTHING,
    PIXELS,
    RANDOM,
    SUMMARY,
    Evaluation,
    Score,
    read_evaluation,
)


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
    features: str = ENCODER
    """What was scored; baselines stand below the encoder and are not compared."""

    @property
    def label(self) -> str:
        """What is counted, or which baseline counts it."""
        shown = next(score for score in self.scores if score is not None)
        return shown.label if self.features == ENCODER else f"  {self.features}"


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
        ValueError: A folder is named twice or holds no evaluation, or no two of them share a set.
    """
    if len(folders) < 2:
        raise ValueError("a comparison needs at least two runs: contrastneg evaluate --compare RUN RUN ...")
    by_images: dict[str, list[tuple[str, Evaluation]]] = {}
    for number, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise ValueError(f"{folder} is named twice: give each run once")
        for place in evaluations_in(folder):
            evaluation = read_evaluation(place)
            name = f"{folder.resolve().name}{mark(evaluation)}"
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


def mark(evaluation: Evaluation) -> str:
    """What tells several evaluations of a run on one set apart: a checkpoint, a layer or a random encoder."""
    facts = evaluation.context
    checkpoint = Path(str(facts["encoder"]))
    extra = [checkpoint.stem] if checkpoint.suffix == ".ckpt" else []
    extra += [facts["layer"]] if facts["layer"] != "backbone" else []
    extra += ["random encoder"] if facts.get("random_init") else []
    return f" ({', '.join(extra)})" if extra else ""


def side_by_side(runs: Sequence[tuple[str, Evaluation]]) -> Comparison:
    """The numbers of several evaluations of the same images, each followed by those of its baselines."""
    keys = dict.fromkeys(
        score.key
        for _, evaluation in runs
        for score in evaluation.scores
        if score.features == ENCODER and score.headline
    )
    rows = [row for key in keys for features in (ENCODER, RANDOM, PIXELS) if (row := row_of(runs, key, features))]
    return Comparison(str(runs[0][1].context["data"]), unlike([name for name, _ in runs]), rows, notes_of(runs))


def notes_of(runs: Sequence[tuple[str, Evaluation]]) -> list[str]:
    """What differs beside the encoders, and encoders that do not differ."""
    notes = []
    for name, what in (
        ("layer", "layers"),
        ("bank_fingerprint", "training images"),
        ("precision", "precisions"),
        ("group", "groups of test images"),
    ):
        if len({str(evaluation.context.get(name)) for _, evaluation in runs}) > 1:
            notes.append(f"the runs differ in {what}: differences are not of the encoders alone")
    values = runs[0][1].values
    group = values.get(GROUP)
    if group is not None and any(rows.shape != group.shape for key, rows in values.items() if key.startswith(ENCODER)):
        notes.append(
            "not all test images could be read: differences resample single images, not those of one origin together"
        )
    same: dict[tuple[str, str], list[str]] = {}
    for name, evaluation in runs:
        same.setdefault((str(evaluation.context["weights"]), str(evaluation.context["layer"])), []).append(name)
    notes += [f"{' and '.join(names)} are the same weights" for names in same.values() if len(names) > 1]
    return notes


def row_of(runs: Sequence[tuple[str, Evaluation]], key: str, features: str) -> Row | None:
    """One number of all runs; None where none has it."""
    scores = [headline(evaluation, key, features) for _, evaluation in runs]
    shown = next((score for score in scores if score is not None), None)
    if shown is None:
        return None
    differences: list[Difference | None] = [None] * len(runs)
    if features == ENCODER:
        differences[1:] = [difference(runs[0][1], evaluation, key) for _, evaluation in runs[1:]]
    return Row(shown.protocol, shown.metric, shown.unit, scores, differences, features)


def headline(evaluation: Evaluation, key: str, features: str) -> Score | None:
    """A number of an evaluation."""
    found = (s for s in evaluation.scores if s.features == features and s.headline and s.key == key)
    return next(found, None)


def difference(first: Evaluation, second: Evaluation, key: str) -> Difference | None:
    """How much the second is above the first."""
    own, other = (evaluation.values.get(f"{ENCODER}/{key}") for evaluation in (second, first))
    if own is None or other is None or own.shape != other.shape:
        return None
    both = np.isfinite(own) & np.isfinite(other)
    own, other = (torch.from_numpy(values[both]).double() for values in (own, other))
    group = first.values.get(GROUP)
    together = torch.from_numpy(group[both]) if group is not None and group.shape == both.shape else None
    points, interval = paired_difference(own, other, group=together)
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
        cells = [cell(score, against) for score, against in zip(row.scores, row.differences, strict=True)]
        style = None if row.features == ENCODER else "dim"
        table.add_row(row.protocol if row.features == ENCODER else "", row.label, *cells, style=style)
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
