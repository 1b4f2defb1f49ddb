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
from contrastneg.stepping import effective_rate
from contrastneg.wording import count_of


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
            ("schedule", schedule_line(trainer, global_batch, config, len(self.opened.train))),
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
    sources = [
        stage for stage in method.stages if stage.kind == "source" and getattr(stage, "combine", "replace") == "replace"
    ]
    if sources:
        candidates = f"candidates of {type(sources[-1]).__name__}"
    elif queue is not None:
        candidates = f"up to {len(queue.keys):,} queued keys per query"
    else:
        views = 2 * global_batch - 2 if type(method).__name__ == "SimCLR" else global_batch - 1
        candidates = f"{views:,} batch negatives per query"
    names = [type(stage).__name__ + (" (true labels)" if stage.oracle else "") for stage in method.stages]
    stages = f"; stages: {', '.join(names)}" if names else ""
    loss = type(method.objective).__name__
    named = "" if loss == "InfoNCE" else f", loss {loss}"
    return f"{type(method).__name__}{named}, temperature {method.temperature:g}, {candidates}{stages}"


def backbone_name(method: pl.LightningModule) -> str:
    """Name of the encoder as the settings give it."""
    settings = dict(method.hparams)["backbone"]
    return f"{settings['name']} ({settings['stem']} stem)"


def schedule_line(trainer: pl.Trainer, global_batch: int, config: Pretrain, images: int) -> str:
    """Length of the run in words."""
    steps, windows = int(trainer.estimated_stepping_batches), config.accumulate
    per_step = f"{global_batch} images" if windows == 1 else f"{windows} x {global_batch} images"
    left_out = images % global_batch if config.drop_last else 0
    rest = (
        f"; {count_of(left_out, 'image')} of each epoch, drawn anew, fill no batch and are left out" if left_out else ""
    )
    return f"{count_of(trainer.max_epochs or 0, 'epoch')}, {steps:,} optimizer steps of {per_step}{rest}"


def device_line(device: Device) -> str:
    """Devices and arithmetic in words."""
    count = f"{device.nodes} x {device.devices}" if device.nodes > 1 else str(device.devices)
    threads = f", {count_of(torch.get_num_threads(), 'thread')}" if device.accelerator == "cpu" else ""
    return f"{count} x {device.accelerator}, {device.precision}{threads}"


def queue_notes(method: Any, config: Pretrain, images: int, world_size: int) -> list[str]:
    """What a queue that does not suit the number of images means for the run.

    Args:
        method: MoCo, or a method without a queue.
        config: Settings of the run.
        images: Images pretrained on.
        world_size: Processes.
    """
    queue = getattr(method, "queue", None)
    if queue is None:
        return []
    size, global_batch = len(queue.keys), config.batch_size * world_size
    per_epoch = (images // global_batch * global_batch if config.drop_last else images) * (1 + method.symmetric)
    pushed = per_epoch * config.epochs
    if config.max_steps is not None:
        pushed = min(pushed, config.max_steps * config.accumulate * global_batch * (1 + method.symmetric))
    notes = []
    if size > pushed:
        notes.append(
            f"the queue of {size:,} keys never fills: the run makes {pushed:,}, and until its end the loss rises with the "
            "number of negatives (set --method.queue_size)"
        )
    elif size > per_epoch:
        notes.append(
            f"the queue of {size:,} keys is larger than an epoch of {per_epoch:,}: it holds keys of earlier epochs, several "
            f"of each image, and the loss rises until it is full after {size / per_epoch:.1f} epochs"
        )
    return notes


def oracle_notes(method: Any) -> list[str]:
    """A warning for each stage that looks at true labels, which goes into the summary and onto the page."""
    return [
        f"stage {type(stage).__name__} uses true labels: what this run reaches is a bound, not learning without labels"
        for stage in method.stages
        if stage.oracle
    ]
