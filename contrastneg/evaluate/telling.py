"""What ``contrastneg evaluate`` says on the terminal, and the pages that it leaves."""

from collections.abc import Sequence
from pathlib import Path

from contrastneg import distributed
from contrastneg.console import Output, shown
from contrastneg.evaluate.comparison import Comparison, compare, table_of_comparison
from contrastneg.evaluate.judge import evaluate
from contrastneg.evaluate.results import TABLE, table_of
from contrastneg.evaluate.settings import Evaluate
from contrastneg.report.comparison import write_comparison
from contrastneg.report.page import write_report


def evaluate_and_tell(config: Evaluate) -> None:
    """Evaluate, with a table for each set and a line for each step on the way."""
    output = Output(enabled=distributed.is_first_process())
    for folder, evaluation in evaluate(config, say=lambda line: output.print(f"[dim]{shown(line)}[/]")):
        output.print(table_of(evaluation))
        for note in evaluation.notes:
            output.print(f"[yellow]note[/] {shown(note)}")
        output.print(shown(f"scores {folder / TABLE}"))
        run = folder.parent.parent
        if folder.parent.name == "evaluation" and (run / "config.yaml").exists() and distributed.is_first_process():
            output.print(shown(f"report {write_report(run)}"))


def compare_runs(folders: Sequence[Path]) -> None:
    """Print one table per data set that several runs were scored on, and write a page with the plot."""
    output = Output()
    found: list[Comparison] = compare(folders)
    for comparison in found:
        output.print(table_of_comparison(comparison))
        for note in comparison.notes:
            output.print(f"[yellow]note[/] {shown(note)}")
    output.print(shown(f"page {write_comparison(found, Path('comparison.html'))}"))
