"""The page of a comparison: for each score a plot of the runs with their intervals, and the table, in one self-contained file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contrastneg.evaluate.comparison import Comparison, Row, cell
from contrastneg.evaluate.results import ENCODER
from contrastneg.report.plots import Tick, nice_ticks, tick_text
from contrastneg.report.templating import render
from contrastneg.writing import write_text

WIDTH, LEFT, RIGHT, TOP, LINE = 360, 110, 340, 10, 22  # of a drawing, in its own units
NAME_LENGTH = 17  # letters of a run's name that stand beside its line; all of it is in the hover text


@dataclass(frozen=True)
class Whisker:
    """One run's score in a drawing."""

    y: float
    name: str
    at: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Whiskers:
    """The runs' scores of one kind."""

    title: str
    description: str
    whiskers: list[Whisker]
    ticks: list[Tick]
    bottom: float
    height: float
    width: int = WIDTH
    left: int = LEFT
    right: int = RIGHT


@dataclass(frozen=True)
class ComparedSet:
    """One set of the page."""

    data: str
    names: list[str]
    drawings: list[Whiskers]
    rows: list[tuple[str, str, list[str]]]
    notes: list[str]


def write_comparison(comparisons: Sequence[Comparison], path: Path) -> Path:
    """Write the page.

    Args:
        comparisons: One for each set.
        path: The file, replaced if it is there.

    Returns:
        The path.
    """
    write_text(path, render("comparison.html", sets=compared_sets(comparisons)))
    return path


def compared_sets(comparisons: Sequence[Comparison]) -> list[ComparedSet]:
    """What a page shows of each set."""
    return [
        ComparedSet(
            comparison.data,
            comparison.names,
            [
                drawn
                for row in comparison.rows
                if row.features == ENCODER and (drawn := whiskers(row, comparison.names)) is not None
            ],
            [(row.protocol, row.label.strip(), cells_of(row)) for row in comparison.rows],
            comparison.notes,
        )
        for comparison in comparisons
    ]


def cells_of(row: Row) -> list[str]:
    """The cells of a row, one per run."""
    return [cell(score, against) for score, against in zip(row.scores, row.differences, strict=True)]


def whiskers(row: Row, names: Sequence[str]) -> Whiskers | None:
    """The plot of one row; None for a number without intervals, or of one run."""
    found = [(n, s) for n, s in zip(names, row.scores, strict=True) if s is not None and s.low is not None]
    if len(found) < 2:
        return None
    ends = [end for _, score in found for end in (score.low, score.high) if end is not None]
    marks = nice_ticks(min(ends), max(ends), 4)

    def across(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (value - marks[0]) / (marks[-1] - marks[0]), 1)

    drawn = []
    for place, (name, score) in enumerate(found):
        assert score.low is not None and score.high is not None
        short = name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"
        y, text = TOP + LINE * (place + 0.5), f"{name}: {score.text()} %"
        drawn.append(Whisker(y, short, across(score.value), across(score.low), across(score.high), text))
    bottom = TOP + LINE * len(found)
    title = f"{row.protocol}, {row.label}"
    told = "; ".join(whisker.text for whisker in drawn)
    ticks = [Tick(across(mark), tick_text(mark, marks[1] - marks[0])) for mark in marks]
    return Whiskers(title, f"{title}: {told}", drawn, ticks, bottom, bottom + 24)
