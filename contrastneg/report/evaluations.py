"""The evaluations of a run's encoder, as tables for its page."""

from dataclasses import dataclass
from pathlib import Path

from contrastneg.evaluate.results import LEGEND, SUMMARY, column_title, read_evaluation, resampled, rows_of, title_of


@dataclass(frozen=True)
class EvaluationTable:
    """One evaluation."""

    title: str
    """What was scored on what."""
    columns: list[str]
    """What was scored: the encoder and its baselines."""
    rows: list[tuple[str, str, list[str]]]
    """Protocol, score, and a cell for each column."""
    notes: list[str]
    """What a reader must know; where the results cannot be read, why."""


def evaluation_tables(run: Path) -> list[EvaluationTable]:
    """The evaluations in a run folder; one that cannot be read says so."""
    return [evaluation_table(path.parent) for path in sorted((run / "evaluation").glob(f"*/{SUMMARY}"))]


def evaluation_table(folder: Path) -> EvaluationTable:
    """The headline scores of one evaluation."""
    try:
        found = read_evaluation(folder)
        columns = list(dict.fromkeys(score.features for score in found.scores))
        titles = [column_title(name, found) for name in columns]
        notes = [f"intervals resample {resampled(found)}; {LEGEND}", *map(str, found.notes)]
        return EvaluationTable(title_of(found), titles, rows_of(found.scores, columns), notes)
    except (ValueError, KeyError) as error:
        return EvaluationTable(folder.name, [], [], [str(error)])
