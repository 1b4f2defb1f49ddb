"""Scores of an evaluation: one record per number with all that is needed to compare it, on the disk and in a table."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from contrastneg.writing import whole_file, write_text

BETTER = {
    "RankMe": "↑",
    "LiDAR": "↑",
    "alpha-ReQ": "(best near 1)",
    "uniformity": "↓",
    "alignment": "↓",
    "tolerance": "↑",
    "axes for 90 % of variance": "↑",
}
"""Which way a number that is no share is better, other things being equal."""
LEGEND = "↑ ↓ which way is better"
ENCODER, RANDOM, PIXELS = "encoder", "random encoder", "raw pixels"
SUMMARY, TABLE, VALUES = "summary.json", "scores.csv", "values.npz"
GROUP = "group"  # of the values: which test images are of one origin
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

    @property
    def label(self) -> str:
        """What is counted, with its unit or which way is better."""
        if self.unit == "%":
            return f"{self.metric} (%)"
        return f"{self.metric} {BETTER[self.metric]}" if self.metric in BETTER else self.metric

    def text(self, interval: bool = True) -> str:
        """The number as it is printed: shares to a tenth of a point, others to three digits; with its interval."""
        if self.unit != "%":
            if float(self.value).is_integer():
                return f"{self.value:,.0f}"
            return f"{self.value:#.3g}".removesuffix(".") if abs(self.value) < 999.5 else f"{self.value:,.0f}"
        if not interval or self.low is None or self.high is None:
            return f"{self.value:.1f}"
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True)
class Note:
    """What a reader must know."""

    text: str
    """In words."""
    features: str = ""
    """Which features it is about; empty: all, of the set and the encoder."""
    protocol: str = ""
    """Which protocol it is about; empty: all."""

    def __str__(self) -> str:
        return f"{self.features}, {self.protocol}: {self.text}" if self.protocol else self.text


@dataclass(frozen=True)
class Evaluation:
    """All scores of one encoder on one data set."""

    context: dict[str, Any]
    """Encoder, layer, data, fingerprints, seed, versions: what all its numbers share."""
    scores: list[Score]
    """The numbers."""
    notes: list[Note]
    """What a reader must know."""
    values: dict[str, np.ndarray] = field(default_factory=dict)
    """One value per test image, by key: what paired comparisons need; NaN at images that a score left out.

    Under ``group`` stands which images are of one origin."""


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
        "notes": [asdict(note) for note in evaluation.notes],
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
        notes = [Note(**note) for note in content.pop("notes")]
        with np.load(folder / VALUES) as file:
            values = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no evaluation: run `contrastneg evaluate` first") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"the evaluation in {folder} is damaged ({error}): run `contrastneg evaluate` again"
        ) from error
    return Evaluation(content, scores, notes, values)


def table_of(evaluation: Evaluation, width: int | None = None) -> Table:
    """Headline scores for the terminal, one row per number, what was scored side by side.

    Args:
        evaluation: What is shown.
        width: Characters of a line; a number's interval stands below it where both would not fit.
    """
    columns = list(dict.fromkeys(score.features for score in evaluation.scores))
    rows = rows_of(evaluation.scores, columns)
    caption = escape(f"[low, high]: 95 % bootstrap interval over {resampled(evaluation)}; {LEGEND}")
    table = Table(title=escape(title_of(evaluation)), title_justify="left", caption=caption, caption_justify="left")
    table.add_column("protocol")
    table.add_column("score")
    for name in columns:
        table.add_column(escape(column_title(name, evaluation)), justify="right")
    below = width is not None and table_width(rows) > width
    before = ""
    for protocol, metric, cells in rows:
        lines = [cell.replace(" [", "\n[") if below else cell for cell in cells]
        table.add_row("" if protocol == before else protocol, metric, *lines)
        before = protocol
    return table


def table_width(rows: Sequence[tuple[str, str, list[str]]]) -> int:
    """Characters of a line of a table, its rules included."""
    lines = [[protocol, metric, *cells] for protocol, metric, cells in rows]
    return sum(max(map(len, column)) + 3 for column in zip(*lines, strict=True)) + 1


def column_title(features: str, evaluation: Evaluation) -> str:
    """What was scored, by its own name."""
    if features != ENCODER:
        return features
    random = " (random encoder)" if evaluation.context.get("random_init") else ""
    return f"{evaluation.context.get('name', ENCODER)}{random}"


def resampled(evaluation: Evaluation) -> str:
    """What intervals resample."""
    group = evaluation.context.get("group")
    return f"test images, those of one {group} together" if group else "test images"


def title_of(evaluation: Evaluation) -> str:
    """What was scored on what."""
    facts = evaluation.context
    sets = f"scores learn from {facts['bank']:,} images and are tested on {facts['queries']:,}"
    return f"{facts['encoder']} ({facts['layer']}) on {facts['data']}: {sets}"


def rows_of(scores: Sequence[Score], columns: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """Protocol, score and one cell per kind of features, of the headline scores.

    Args:
        scores: In their order.
        columns: Kinds of features.
    """
    headline = [score for score in scores if score.headline]
    rows = []
    for key in dict.fromkeys(score.key for score in headline):
        of_key = {score.features: score for score in headline if score.key == key}
        first = next(iter(of_key.values()))
        cells = [of_key[name].text() if name in of_key else NOTHING for name in columns]
        rows.append((first.protocol, first.label, cells))
    return rows
