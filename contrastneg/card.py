"""The start card: what will run, once everything derived is known."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from contrastneg.config import Pretrain
from contrastneg.console import Output, human, start_card
from contrastneg.data.opening import OpenedData
from contrastneg.data.views import describe
from contrastneg.device import Device
from contrastneg.methods import effective_rate


class StartCard(Callback):
    """Says what will run, once everything derived (steps, learning rate) is known."""

    def __init__(
        self, output: Output, config: Pretrain, opened: OpenedData, device: Device, notes: list[str], folder: Path
    ) -> None:
        self.output, self.config, self.opened = output, config, opened
        self.device, self.notes, self.folder = device, notes, folder

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print the card."""
        if not trainer.is_global_zero:
            return
        config, device = self.config, self.device
        trained = sum(p.numel() for p in pl_module.backbone.parameters())
        global_batch = config.batch_size * device.world_size
        rows = [
            ("images", "\n".join(self.opened.lines)),
            ("views", "\n".join(describe(config.views))),
            ("method", method_line(pl_module, global_batch)),
            ("encoder", f"{backbone_name(pl_module)}, {human(trained)} parameters"),
            ("schedule", schedule_line(trainer, global_batch, config.accumulate)),
            ("learning rate", effective_rate(pl_module).text),
            ("device", device_line(device)),
            ("run folder", str(self.folder)),
        ]
        if trainer.global_step:
            rows.append(("resumed", f"at step {trainer.global_step}, epoch {trainer.current_epoch + 1}"))
        self.output.print(start_card("contrastneg pretrain", rows, self.notes))


def method_line(method: Any, global_batch: int) -> str:
    """Method, loss unless it is InfoNCE, temperature and negatives per query in words."""
    queue = getattr(method, "queue", None)
    if queue is not None:
        candidates = f"up to {len(queue.keys):,} queued keys per query"
    else:
        views = 2 * global_batch - 2 if type(method).__name__ == "SimCLR" else global_batch - 1
        candidates = f"{views:,} batch negatives per query"
    stages = f"; stages: {', '.join(type(stage).__name__ for stage in method.stages)}" if method.stages else ""
    loss = type(method.objective).__name__
    named = "" if loss == "InfoNCE" else f", loss {loss}"
    return f"{type(method).__name__}{named}, temperature {method.temperature:g}, {candidates}{stages}"


def backbone_name(method: pl.LightningModule) -> str:
    """Name of the encoder as the settings give it."""
    settings = dict(method.hparams)["backbone"]
    return f"{settings['name']} ({settings['stem']} stem)"


def schedule_line(trainer: pl.Trainer, global_batch: int, accumulate: int) -> str:
    """Length of the run in words."""
    steps = int(trainer.estimated_stepping_batches)
    per_step = (
        f"{global_batch} images per step" if accumulate == 1 else f"{accumulate} x {global_batch} images per step"
    )
    return f"{trainer.max_epochs} epochs, {steps:,} optimizer steps of {per_step}"


def device_line(device: Device) -> str:
    """Devices and arithmetic in words."""
    count = f"{device.nodes} x {device.devices}" if device.nodes > 1 else str(device.devices)
    threads = f", {torch.get_num_threads()} threads" if device.accelerator == "cpu" else ""
    return f"{count} x {device.accelerator}, {device.precision}{threads}"
