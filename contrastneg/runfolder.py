"""A run's folder: its name, its records, its metrics and its checkpoints.

Everything is written atomically (a temporary file beside the target, then a rename), so a run that is killed at any
moment leaves files that can be read.
"""

import csv
import json
import math
import os
import platform
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from contrastneg import distributed
from contrastneg.data.archives import expand_braces
from contrastneg.data.named import NAMED
from contrastneg.divergence import check_weights
from contrastneg.signals import Interrupted, Signals
from contrastneg.writing import UNREADABLE, whole_file, write_text

FLOAT32_MAX = float(np.finfo(np.float32).max)
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "numpy")


def new_run_folder(asked: Path | None, data: str, method: str) -> Path:
    """The folder of a new run, not made yet.

    Only the first process looks whether the folder is empty: the others of a launch may come after it has written there.

    Raises:
        ValueError: If the asked folder holds something already, or several processes start at once without a name.
    """
    if asked is not None:
        taken = asked.exists() and (not asked.is_dir() or any(asked.iterdir()))
        if taken and distributed.is_first_process():
            resume = f", or continue it with --resume {asked}" if (asked / "checkpoints").exists() else ""
            raise ValueError(f"run folder {asked} exists already: give another --run{resume}")
        return asked
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise ValueError("several processes start together and must agree on the run folder: name it with --run DIR")
    number = 1
    while (folder := Path("runs") / f"{data}-{method.lower()}-{number}").exists():
        number += 1
    return folder


def settings_file(run: Path) -> Path:
    """The settings of a run.

    Raises:
        ValueError: The folder is no run's.
    """
    if not (run / "config.yaml").exists():
        raise ValueError(f"{run} is not a run folder: it holds no config.yaml")
    return run / "config.yaml"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a record atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def environment() -> dict[str, Any]:
    """What the run ran on: versions, machine, devices, threads."""
    return {
        "contrastneg": version("contrastneg"),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def processor_name() -> str:
    """The processor's own name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


class MetricsCsv(Logger):
    """metrics.csv: one row per logged step, appended at once; a resumed run drops the rows it is about to repeat.

    Args:
        path: The file.
        seconds: Tells the seconds of training so far, the ``seconds`` column.
        resume_step: Optimizer step that the run continues from; later rows of an existing file are dropped.
    """

    def __init__(self, path: Path, seconds: Callable[[], float], resume_step: int | None = None) -> None:
        super().__init__()
        self.path = path
        self.seconds = seconds
        self.columns = ["step", "epoch", "seconds"]
        self._last: tuple[int | None, str] = (None, "")
        if resume_step is not None and path.exists():
            self._keep_rows_before(resume_step)

    @property
    def name(self) -> str:
        """Name in Lightning's sense."""
        return "metrics"

    @property
    def version(self) -> int:
        """Version in Lightning's sense."""
        return 0

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Settings are in config.yaml already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Append one row, unless it was the last one already; a name met for the first time becomes a new column."""
        written = (step, repr(metrics))  # in words: NaN is not equal to itself
        if written == self._last:
            return
        self._last = written
        row = {"step": step, "seconds": round(self.seconds(), 2), **{name: shortest(v) for name, v in metrics.items()}}
        new = [name for name in row if name not in self.columns]
        if new or not self.path.exists():
            self.columns += new
            self._write(self._rows())
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return [
                row for row in csv.DictReader(file) if None not in row.values()
            ]  # a killed run's last row may be cut

    def _write(self, rows: list[dict[str, str]]) -> None:
        with whole_file(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(rows)

    @rank_zero_only
    def _keep_rows_before(self, step: int) -> None:
        rows = [row for row in self._rows() if int(row["step"]) < step]
        with self.path.open(newline="", encoding="utf-8") as file:
            self.columns = next(csv.reader(file), self.columns)
        self._write(rows)


def shortest(value: Any) -> Any:
    """A number that was a 32-bit one by its shortest decimal form, 0.1175 and not 0.11749999970197678; others as they are."""
    if not isinstance(value, float) or not math.isfinite(value) or abs(value) > FLOAT32_MAX:
        return value
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are whole or absent: written beside the target, flushed to disk, renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path`` atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


class Checkpoints(Callback):
    """``checkpoints/last.ckpt`` every n optimizer steps and after each epoch; ``best.ckpt`` by kNN; a stop on signals.

    SIGINT and SIGTERM are noted and obeyed after the current optimizer step, on all ranks together: the state goes to
    ``checkpoints/interrupted.ckpt`` and :class:`contrastneg.signals.Interrupted` ends the run. Weights that are not finite
    are never saved: :class:`contrastneg.divergence.Diverged` ends the run instead.

    Args:
        folder: The checkpoint folder.
        every: Optimizer steps between checkpoints within an epoch; None saves after epochs only.
        monitor: Logged metric whose largest value marks the best checkpoint; values that are not numbers never do.
        signals: Tells of SIGINT and SIGTERM; by default nobody does.
    """

    def __init__(
        self, folder: Path, every: int | None, monitor: str = "knn/top1", signals: Signals | None = None
    ) -> None:
        self.folder = folder
        self.every = every
        self.monitor = monitor
        self.best: float | None = None
        self.saved_step = -1
        self.signals = signals or Signals()

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the best score so far."""
        self.best = state_dict["best"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on signals are noted, no longer obeyed at once; Lightning has taken SIGTERM for itself meanwhile."""
        self.saved_step = trainer.global_step
        self.signals.at_once = False
        self.signals.take()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when due, stop when asked; both only between optimizer steps and never on an epoch's last batch."""
        if trainer.fit_loop._should_accumulate() or batch_idx + 1 >= trainer.num_training_batches:
            return
        due = self.every is not None and trainer.global_step - self.saved_step >= self.every
        signum = distributed.largest(self.signals.signum or 0)  # rank 0, which writes the row, may not have been told
        if due or signum:
            write_row_of_step(trainer)
        self._stop(trainer, signum)
        if due:
            self._save(trainer, "last.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after each epoch; last in the list of callbacks, so that the others' epoch is complete."""
        score = trainer.callback_metrics.get(self.monitor)
        improved = score is not None and bool(torch.isfinite(score)) and (self.best is None or float(score) > self.best)
        improved = bool(trainer.strategy.broadcast(improved))  # rank 0 decides: a rank that differs would wait for ever
        if improved and score is not None:
            self.best = float(score)
        write_row_of_epoch(trainer)
        self._save(trainer, "last.ckpt")
        if improved:
            self._save(trainer, "best.ckpt")
        if trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            self._stop(trainer, distributed.largest(self.signals.signum or 0))

    def _stop(self, trainer: pl.Trainer, signum: int) -> None:
        if signum:
            self._save(trainer, "interrupted.ckpt")
            raise Interrupted(signum, self.folder / "interrupted.ckpt")

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        check_weights(trainer)
        trainer.save_checkpoint(self.folder / name, weights_only=False)  # optimizer and loops, too
        self.saved_step = trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on signals are obeyed at once; obey one that came during the last epoch's scores."""
        self.signals.checkpoint, self.signals.at_once = self.folder / "last.ckpt", True
        if signum := distributed.largest(self.signals.signum or 0):
            raise Interrupted(signum, self.folder / "last.ckpt")


def write_row_of_step(trainer: pl.Trainer) -> None:
    """Log the metrics of the step that has just ended, which Lightning would do after the callbacks.

    A checkpoint must not be ahead of the metrics: a kill between the two would lose a row for good. The second time, when
    Lightning logs them, :class:`MetricsCsv` finds the row there.
    """
    connector = trainer._logger_connector
    if connector.should_update_logs:
        connector.log_metrics(connector.metrics["log"])


def write_row_of_epoch(trainer: pl.Trainer) -> None:
    """As :func:`write_row_of_step`, for the metrics of the epoch that has just ended, under its last step."""
    loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    loop._batches_that_stepped -= 1
    connector.log_metrics(connector.metrics["log"])
    loop._batches_that_stepped += 1


def newest_checkpoint(run: Path) -> Path:
    """The checkpoint of a run that is furthest on.

    Raises:
        ValueError: If there is none, or one is damaged: which of the others is whole, and how to go on from it, is said.
    """
    folder = run / "checkpoints"
    found = [path for name in ("last.ckpt", "interrupted.ckpt") if (path := folder / name).exists()]
    if not found:
        raise ValueError(f"{run} holds no checkpoint to resume from: start it anew with another --run")
    steps: dict[Path, int] = {}
    damaged: list[ValueError] = []
    for path in found:
        try:
            steps[path] = read_checkpoint(path)["global_step"]
        except ValueError as error:
            damaged.append(error)
    if damaged and steps:
        whole, step = next(iter(steps.items()))
        bad = next(path for path in found if path not in steps)
        raise ValueError(
            f"{damaged[0]}; {whole.name} (step {step}) is whole: remove {bad} and --resume goes on from that"
        ) from damaged[0]
    if damaged:
        raise damaged[0]
    return max(steps, key=steps.__getitem__)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, with only plain data and tensors allowed in it.

    Raises:
        ValueError: If the file is not there or is not a whole checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    except UNREADABLE as error:
        size = path.stat().st_size
        raise ValueError(
            f"checkpoint {path} cannot be read: its {size:,} bytes are damaged or no checkpoint"
        ) from error
    if not isinstance(checkpoint, dict) or "global_step" not in checkpoint:
        raise ValueError(f"checkpoint {path} cannot be read: it is no checkpoint of a run")
    return checkpoint


def lasting_address(address: str | None) -> str | None:
    """A data address that means the same from every folder: paths that exist made absolute, names of sets as they are."""
    if address is None or address == "shapes" or address in NAMED:
        return address
    prefix = "hf:" if address.startswith("hf:") else ""
    local = str(Path(address.removeprefix(prefix)).expanduser())
    names = expand_braces(local) if local.endswith(".tar") else [local]
    return prefix + os.path.abspath(local) if any(map(os.path.exists, names)) else address


def command_line() -> list[str]:
    """The command that started this process, as a reader would type it."""
    return ["contrastneg", *sys.argv[1:]]


def first_command(run: Path) -> list[str]:
    """The command that started a run, from its records; this process's own where none tells it."""
    for name in ("environment.json", "summary.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return list(json.loads((run / name).read_text(encoding="utf-8"))["command"])
    return command_line()
