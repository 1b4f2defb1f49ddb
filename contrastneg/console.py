"""What a run says on the terminal: the start card, the bar, one line per epoch, the final table."""

import math
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from contrastneg import distributed
from contrastneg.candidates import choosing, source_of
from contrastneg.divergence import check_loss
from contrastneg.evaluate.online import OnlineKnn
from contrastneg.report.records import voters
from contrastneg.wording import duration, percent
from contrastneg.writing import printable


class PatientConsole(Console):
    """A rich console that reports a closed pipe as what it is, where rich would end the process."""

    def on_broken_pipe(self) -> None:
        """Called by rich when nobody reads any more."""
        raise BrokenPipeError


class Output:
    """A console that falls silent when its reader goes away: trouble with output never ends a training run."""

    def __init__(self, enabled: bool = True) -> None:
        self.console = PatientConsole(highlight=False, soft_wrap=True)
        self.enabled = enabled

    def print(self, *renderables: Any) -> None:
        """Print on rank 0 of a run, if anybody still listens."""
        if not self.enabled:
            return
        try:
            self.console.print(*renderables)
        except OSError:
            self.enabled = False
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())  # what is still buffered would fail again when the process ends
            os.close(nowhere)


def shown(text: str) -> str:
    """Text that may hold names of files, to be shown as it is: brackets are no markup, control characters are escapes."""
    return escape(printable(text))


def start_card(title: str, rows: Sequence[tuple[str, str]], notes: Sequence[str]) -> Panel:
    """What will run, before it runs."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(name, shown(text))
    for note in notes:
        grid.add_row("[yellow]note[/]", shown(note))
    return Panel(grid, title=title, title_align="left", expand=False)


def score_table(rows: Sequence[dict[str, Any]], queries: int, asked: str = "test images") -> Table:
    """The final table: the encoder beside what it must beat, by as many neighbours as did vote; top-5 where it is known."""
    table = Table(title=f"Scores on {queries:,} {asked} (top-1, %)", title_justify="left")
    voted, ranked = voters(rows), any("knn_top5" in row for row in rows)
    table.add_column("features")
    table.add_column(f"kNN, k={voted}", justify="right")
    if ranked:
        table.add_column("kNN top-5", justify="right")
    table.add_column("linear", justify="right")
    for row in rows:
        top5 = [percent(row["knn_top5"]) if "knn_top5" in row else "–"] if ranked else []
        table.add_row(row["features"], percent(row["knn_top1"]), *top5, percent(row["linear_top1"]))
    return table


METERED = ("loss", "accuracy", "empty")


class EpochMeter:
    """This rank's epoch so far, as plain sums and counts: a resumed epoch reports what the unbroken one would."""

    def __init__(self, numbers: Sequence[float] = (0.0,) * 2 * len(METERED)) -> None:
        self.numbers = list(numbers)  # the sums, then the counts

    def add(self, sums: Sequence[float], counts: Sequence[float]) -> None:
        """Add observations: for each metered name their sum and their number."""
        self.numbers = [old + new for old, new in zip(self.numbers, [*sums, *counts], strict=True)]

    def means(self) -> dict[str, float]:
        """Mean of each name over this rank's observations."""
        return means_of([self.numbers])

    def global_means(self) -> dict[str, float]:
        """Mean of each name over all ranks' observations; all ranks must ask."""
        return means_of(distributed.collect(self.numbers))


def means_of(collected: Sequence[Sequence[float]]) -> dict[str, float]:
    """Mean of each metered name from the ranks' sums and counts."""
    totals = [sum(numbers) for numbers in zip(*collected, strict=True)]
    sums, counts = totals[: len(METERED)], totals[len(METERED) :]
    return {name: total / max(1, count) for name, total, count in zip(METERED, sums, counts, strict=True)}


class RunProgress(Callback):
    """The training clock, the bar and the epoch lines.

    The clock counts seconds spent on training steps (data and augmentation included, evaluation and checkpoints not) and
    survives a resume.

    Args:
        output: Where to print.
        bar: Whether to draw a progress bar (on a terminal only).
    """

    def __init__(self, output: Output, bar: bool = True) -> None:
        self.output = output
        self.show_bar = bar and output.console.is_terminal
        self.seconds = 0.0
        self.images = 0
        self.meter = EpochMeter()
        self._resumed_from = (0.0, 0)
        self._started: float | None = None
        self._pending: list[tuple[int, Tensor]] = []
        self._not_finite: tuple[int, float] | None = None
        self._step = 0
        self._bar: Progress | None = None

    def state_dict(self) -> dict[str, Any]:
        """The clock and the epoch so far on every rank; asked for on all of them, as Lightning does for a checkpoint."""
        self._settle()
        return {
            "seconds": self.training_seconds(),
            "images": self.images,
            "meter": distributed.collect(self.meter.numbers),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the clock and the epoch."""
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]
        self.meter = EpochMeter(distributed.own_part(state_dict["meter"]))
        self._resumed_from = (self.seconds, self.images)

    def training_seconds(self) -> float:
        """Seconds of training so far."""
        running = time.perf_counter() - self._started if self._started is not None else 0.0
        return self.seconds + running

    @property
    def stepped(self) -> bool:
        """Whether a step was taken since the start or the last resume."""
        return self.images > self._resumed_from[1]

    def images_per_second(self) -> float:
        """Images (not views) trained on per second since the start or the last resume, or before it if none came after."""
        seconds, images = self._resumed_from if self.stepped else (0.0, 0)
        return (self.images - images) / max(self.training_seconds() - seconds, 1e-9)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a fresh epoch."""
        self.meter = EpochMeter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock with the first batch after a pause."""
        self._step = trainer.global_step
        if self._started is None:
            self._started = time.perf_counter()
        if self._bar is None and self.show_bar and trainer.is_global_zero:
            self._bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
                console=self.output.console,
                transient=True,
            )
            self._bar.add_task("", total=trainer.estimated_stepping_batches, epoch="", numbers="")
            self._draw(trainer)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the step; numbers are read from the device after an epoch's first step and then every 10 steps.

        Raises:
            Diverged: A loss is not finite.
        """
        self.images += len(outputs["image_id"]) * trainer.world_size
        self._pending.append((self._step, outputs["sums"]))
        if len(self._pending) >= 10 or batch_idx == 0:
            self._settle()
            check_loss(trainer, self._not_finite)
        if self._bar is not None:
            self._draw(trainer)

    def _settle(self) -> None:
        """Move pending device numbers into the meter."""
        for step, sums in self._pending:
            loss, queries, hits, contrasted = sums.tolist()
            if self._not_finite is None and not math.isfinite(loss):
                self._not_finite = (step, loss)
            self.meter.add((loss, hits, queries - contrasted), (queries, contrasted, queries))
        self._pending.clear()

    def _draw(self, trainer: pl.Trainer) -> None:
        assert self._bar is not None
        known = any(self.meter.numbers)  # before an epoch's first step there is no loss, nor a speed to speak of
        numbers = f"{self.images_per_second():.0f} images/s  loss {self.meter.means()['loss']:.3f}" if known else ""
        try:
            self._bar.update(
                self._bar.task_ids[0],
                completed=trainer.global_step,
                epoch=f"{trainer.current_epoch + 1}/{last_epoch(trainer)}",
                numbers=numbers,
            )
        except OSError:
            self.show_bar, self._bar = False, None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock; first in the list of callbacks, so that evaluation is not counted.

        Raises:
            Diverged: A loss is not finite.
        """
        self._settle()
        check_loss(trainer, self._not_finite)
        self.pause()
        means = self.meter.global_means()
        metrics = {
            "epoch/loss": means["loss"],
            "epoch/accuracy": means["accuracy"],
            "candidates/empty_rows": means["empty"],
            "speed/images_per_second": self.images_per_second(),
        }
        for name, value in metrics.items():
            pl_module.log(name, value)

    def pause(self) -> None:
        """Stop the clock and take the bar away."""
        self.seconds, self._started = self.training_seconds(), None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal in order."""
        self.pause()


LEGEND = {
    "accuracy": "queries whose positive is more similar than every key of another image, before the stages",
    "kNN": "images asked about whose nearest answering images vote for their class",
    "probe": "training images that a linear classifier gets right before it learns from them",
    "queue": "slots filled before the epoch's last step; more negatives make a higher loss",
    "own": "candidates of the epoch's last step that show the query's own image (they are masked)",
    "same class": "candidates of the epoch's last step that are of the query's class, before the stages: false negatives",
}


class EpochLine(Callback):
    """One line per epoch, after the scores of that epoch are known, and a legend under the first."""

    def __init__(self, output: Output, progress: RunProgress, knn: OnlineKnn | None = None) -> None:
        self.output = output
        self.progress = progress
        self.knn = knn
        self._explained = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print the line."""
        if not trainer.is_global_zero:
            return
        line = epoch_line(trainer, self.progress, self.knn)
        self.output.print(line)
        if not self._explained:
            self.output.print(
                "[dim]  time: of training so far, scores not counted; images/s: since the run began or was resumed[/]"
            )
            for word, meaning in LEGEND.items():
                if f"  {word} " in line:
                    meant = meaning if pl_module.stages else meaning.replace(", before the stages", "")
                    if word == "same class" and choosing(pl_module):
                        meant = meant.replace("before the stages", "after the sources")
                    self.output.print(f"[dim]  {word}: {meant}[/]")
            if choosing(pl_module):
                self.output.print(f"[dim]  candidates: {whose_candidates(pl_module)}[/]")
            self._explained = True


def whose_candidates(method: Any) -> str:
    """Who chose the candidates of a method with sources."""
    names = ", ".join(type(stage).__name__ for stage in choosing(method))
    if source_of(method) is not None:
        return f"chosen by {names}"
    return f"those of the queue or batch, and those added by {names}"


def epoch_line(trainer: pl.Trainer, progress: RunProgress, knn: OnlineKnn | None) -> str:
    """Epoch, training time, loss, proxy accuracy, kNN, queue fill and candidate shares, as far as they are known."""
    logged = {name: float(v) for name, v in trainer.callback_metrics.items() if isinstance(v, Tensor) and v.ndim == 0}
    if knn is None or not knn.history or knn.history[-1][0] != trainer.current_epoch:
        logged.pop("knn/top1", None)  # Lightning still holds the score of an earlier epoch
    parts = [
        f"epoch {trainer.current_epoch + 1:>3}/{last_epoch(trainer)}",
        f"{duration(progress.seconds):>9}",
        f"{progress.images_per_second():6.0f} images/s",
        f"loss {logged['epoch/loss']:.3f}",
        f"accuracy {percent(100 * logged['epoch/accuracy'])} %",
    ]
    shown = (
        ("knn/top1", "kNN", percent),
        ("probe/accuracy", "probe", percent),
        ("epoch/queue_fill", "queue", "{:.0f}".format),
        ("epoch/own", "own", "{:.2g}".format),
        ("epoch/same_class", "same class", percent),
    )
    empty = float(logged["candidates/empty_rows"])
    if empty == 1 or (trainer.current_epoch > 0 and empty > 0):  # at first an empty queue is no news
        parts.append(f"[yellow]{percent(100 * empty)} % of queries had no candidate left[/]")
    parts += [
        f"{word} {text(100 * logged[name])} %"
        for name, word, text in shown
        if not math.isnan(logged.get(name, math.nan))
    ]
    return "  ".join(parts)


def last_epoch(trainer: pl.Trainer) -> int:
    """Number of epochs that the run begins: those asked for, or fewer where optimizer steps end it earlier."""
    epochs = trainer.max_epochs or 0
    if trainer.max_steps < 0:
        return epochs
    per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return min(epochs, math.ceil(trainer.max_steps / per_epoch))


def human(count: float) -> str:
    """A count in thousands or millions."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"
