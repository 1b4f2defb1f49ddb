"""What ``contrastneg evaluate`` says on the terminal, and the pages that it leaves."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from contrastneg import distributed
from contrastneg.allocator import keep_freed_memory
from contrastneg.console import Output, shown
from contrastneg.evaluate.comparison import Comparison, compare, table_of_comparison
from contrastneg.evaluate.judge import evaluate
from contrastneg.evaluate.place import device_of
from contrastneg.evaluate.results import TABLE, Evaluation, table_of
from contrastneg.evaluate.settings import Evaluate
from contrastneg.report.comparison import write_comparison
from contrastneg.report.page import write_report


class Meter:
    """A bar under the line of a long step; on a terminal only, and gone when the step ends.

    Args:
        console: Where it is shown.
    """

    def __init__(self, console: Console) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def update(self, done: int, total: int) -> None:
        """Show how much is done."""
        if done >= total:
            return self.end()
        if not self.bar.task_ids:
            self.bar.add_task("", total=total)
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], completed=done, total=total)

    def end(self) -> None:
        """Take the bar away."""
        if self.bar.live.is_started:  # one that is not would answer with an empty line
            self.bar.stop()
        for task in self.bar.task_ids:
            self.bar.remove_task(task)


def evaluate_and_tell(config: Evaluate) -> None:
    """Evaluate, with a line for each step on the way, a bar for long ones, and each set's table when it is done."""
    output, meter = Output(enabled=distributed.is_first_process()), Meter(Console(stderr=True))

    def say(line: str) -> None:
        meter.end()
        output.print(f"[dim]{shown(line)}[/]")

    def tell(folder: Path, evaluation: Evaluation) -> None:
        meter.end()
        output.print(table_of(evaluation, output.console.width))
        for note in evaluation.notes:
            output.print(f"[yellow]note[/] {shown(str(note))}")
        output.print(shown(f"scores {folder / TABLE}"))
        run = folder.parent.parent
        if folder.parent.name == "evaluation" and (run / "config.yaml").exists() and distributed.is_first_process():
            output.print(shown(f"report {write_report(run)}"))

    if device_of(config.accelerator).type == "cpu":
        keep_freed_memory()
    try:
        evaluate(config, say, tell, meter.update if output.enabled else lambda done, total: None)
    finally:
        meter.end()


def compare_runs(folders: Sequence[Path], page: Path = Path("comparison.html")) -> None:
    """Print one table per data set that several runs were scored on, and write a page with the plot.

    Args:
        folders: Runs that were evaluated.
        page: File to write, replaced if it is there.
    """
    output = Output()
    found: list[Comparison] = compare(folders)
    for comparison in found:
        output.print(table_of_comparison(comparison))
        output.print(
            "[dim]differences are to the first run, in percentage points with the 95 % interval; * leaves out 0[/]"
        )
        for note in comparison.notes:
            output.print(f"[yellow]note[/] {shown(note)}")
    output.print(shown(f"page {write_comparison(found, page)}"))
