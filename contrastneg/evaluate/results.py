"""Scores of an evaluation: one record per number with all that is needed to compare it, on the disk and in a table."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from contrastneg.writing import whole_file, write_text

ENCODER, RANDOM, PIXELS = "encoder", "random encoder", "raw pixels"
SUMMARY, TABLE, VALUES = "summary.json", "scores.csv", "values.npz"
NOTHING = "–"


@dataclass(frozen=True)
class Score:
    """One number."""

    features: str
    """What was scored: ``encoder``, ``random encoder`` or ``raw pixels``."""
    protocol: str
    """How: ``knn``, ``linear`` and so on."""
    metric: str
    """What is counted."""
    value: float
    """The number, in its unit."""
    n: int
    """Images that it is a mean over, or made of."""
    unit: str = "%"
    """``%`` for shares; empty for numbers of their own kind."""
    low: float | None = None
    """Lower end of the 95 % bootstrap interval over test images; None where resampling would change what is measured."""
    high: float | None = None
    """Its upper end."""
    settings: dict[str, Any] = field(default_factory=dict)
    """k, temperature, learning rate: what the number depends on."""
    headline: bool = True
    """Whether the table in the terminal shows it; the files hold all."""

    @property
    def key(self) -> str:
        """What the number is, whatever was scored."""
        return f"{self.protocol} {self.metric}"

    def text(self, interval: bool = True) -> str:
        """The number as it is printed, with its interval."""
        digits = 1 if self.unit == "%" else 2 if abs(self.value) < 100 else 1
        if not interval or self.low is None or self.high is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def short(self) -> str:
        """The number as a narrow column shows it, with half the width of its interval."""
        if self.low is None or self.high is None:
            return self.text()
        return f"{self.text(interval=False)} ± {(self.high - self.low) / 2:.1f}"


@dataclass(frozen=True)
class Evaluation:
    """All scores of one encoder on one data set."""

    context: dict[str, Any]
    """Encoder, layer, data, fingerprints, seed, versions: what all its numbers share."""
    scores: list[Score]
    """The numbers."""
    notes: list[str]
    """What a reader must know."""
    values: dict[str, np.ndarray] = field(default_factory=dict)
    """One value per test image, by key: what paired comparisons need; NaN at images that a score left out."""


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Write ``scores.csv``, ``values.npz`` and, last, ``summary.json``, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row_of(score, evaluation.context) for score in evaluation.scores]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with whole_file(folder / TABLE) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    with whole_file(folder / VALUES) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **evaluation.values)  # type: ignore[arg-type]
    content = {
        **evaluation.context,
        "scores": [asdict(score) for score in evaluation.scores],
        "notes": evaluation.notes,
    }
    write_text(folder / SUMMARY, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def row_of(score: Score, context: dict[str, Any]) -> dict[str, Any]:
    """A number and everything it depends on, in one row."""
    flat = {name: value for name, value in context.items() if isinstance(value, (str, int, float))}
    number = {name: value for name, value in asdict(score).items() if name not in ("settings", "headline")}
    return {**number, **score.settings, **flat}


def read_evaluation(folder: Path) -> Evaluation:
    """Scores that were written earlier.

    Raises:
        ValueError: There are none, or they are damaged.
    """
    try:
        content = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        scores = [Score(**score) for score in content.pop("scores")]
        notes = content.pop("notes")
        with np.load(folder / VALUES) as file:
            values = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no evaluation: run `contrastneg evaluate` first") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"the evaluation in {folder} is damaged ({error}): run `contrastneg evaluate` again"
        ) from error
    return Evaluation(content, scores, notes, values)


def table_of(evaluation: Evaluation) -> Table:
    """Headline scores for the terminal, one row per number, what was scored side by side."""
    columns = list(dict.fromkeys(score.features for score in evaluation.scores))
    caption = "±: half the width of the 95 % bootstrap interval over test images"
    table = Table(title=title_of(evaluation), title_justify="left", caption=caption, caption_justify="left")
    table.add_column("protocol")
    table.add_column("score")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    before = ""
    for protocol, metric, cells in rows_of(evaluation.scores, columns, Score.short):
        table.add_row("" if protocol == before else protocol, metric, *cells)
        before = protocol
    return table


def title_of(evaluation: Evaluation) -> str:
    """What was scored on what."""
    facts = evaluation.context
    return (
        f"{facts['encoder']} ({facts['layer']}) on {facts['data']}: {facts['bank']:,} images answer, {facts['queries']:,} are "
        "asked about"
    )


def rows_of(
    scores: Sequence[Score], columns: Sequence[str], text: Callable[[Score], str] = Score.text
) -> list[tuple[str, str, list[str]]]:
    """Protocol, metric and one cell per kind of features, of the headline scores.

    Args:
        scores: In their order.
        columns: Kinds of features.
        text: How a number is shown.
    """
    headline = [score for score in scores if score.headline]
    rows = []
    for key in dict.fromkeys(score.key for score in headline):
        of_key = {score.features: score for score in headline if score.key == key}
        first = next(iter(of_key.values()))
        metric = f"{first.metric} (%)" if first.unit == "%" else first.metric
        cells = [text(of_key[name]) if name in of_key else NOTHING for name in columns]
        rows.append((first.protocol, metric, cells))
    return rows
