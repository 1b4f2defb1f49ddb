"""The start card: what will run, once everything derived is known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from contrastneg.candidates import batch_candidates, source_of
from contrastneg.config import Pretrain
from contrastneg.console import Output, human, last_epoch, start_card
from contrastneg.data.batches import ShuffledBatches
from contrastneg.data.opening import OpenedData
from contrastneg.data.views import describe
from contrastneg.device import Device
from contrastneg.doubts import doubts
from contrastneg.negatives import GlobalQuantile, NeighbourPositive, Stage
from contrastneg.negatives.pipeline import key_of
from contrastneg.optim import Optimizer, warmup_steps
from contrastneg.schedules import over_run
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
            ("scores", scores_line(self.opened, self.config)),
            ("views", "\n".join(describe(config.views))),
            ("method", method_line(pl_module, global_batch)),
            *image_rows(pl_module, config),
            *stage_rows(pl_module.stages),
            ("loss", f"{settings_line(pl_module.objective)} at temperature {pl_module.temperature:g}"),
            ("encoder", f"{backbone_name(pl_module)}, {human(trained)} parameters"),
            ("schedule", schedule_line(trainer, global_batch, config, len(self.opened.train))),
            ("learning rate", effective_rate(pl_module).text),
            ("device", device_line(device)),
            ("run folder", str(self.folder)),
        ]
        if trainer.global_step:
            rows.append(("resumed", f"at step {trainer.global_step}, epoch {trainer.current_epoch + 1}"))
        self.output.print(start_card("contrastneg pretrain", rows, self.notes))


def scores_line(opened: OpenedData, config: Pretrain) -> str:
    """What kNN and linear classifiers will learn from, and what they will be asked about."""
    if not (config.final_scores or config.knn_every or config.probe):
        return "none: final_scores, knn_every and probe are off"
    if opened.bank is None or opened.queries is None:
        return "none: there is no labelled image to ask about"
    learned, asked = (count_of(len(images), "labelled image") for images in (opened.bank, opened.queries))
    return f"kNN and linear classifiers learn from {learned} and are asked about {asked} that they have not seen"


def method_line(method: Any, global_batch: int) -> str:
    """Method, momentum and negatives per query in words."""
    queue, source = getattr(method, "queue", None), source_of(method)
    if source is not None:
        candidates = f"candidates of {type(source).__name__}"
    elif queue is not None:
        candidates = f"up to {len(queue.keys):,} queued keys per query"
    else:
        candidates = f"{batch_candidates(method, global_batch):,} batch negatives per query"
    momentum = f", momentum {value_text(method.momentum)}" if hasattr(method, "momentum") else ""
    return f"{type(method).__name__}{momentum}, {candidates}"


def image_rows(method: Any, config: Pretrain) -> list[tuple[str, str]]:
    """A row for what changes images, and one for what puts them into batches; none where nothing does."""
    changes = [getattr(method, name, None) for name in ("mixing", "adversary")]
    rows = [("images become", settings_line(change)) for change in changes if change is not None]
    if not isinstance(config.batches, ShuffledBatches):
        rows.append(("batches", settings_line(config.batches)))
    return rows


def stage_rows(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """A row with each stage on a line of its own; none without stages."""
    lines = [
        f"{place}. {settings_line(stage)}{' (uses true labels)' if stage.oracle else ''}"
        for place, stage in enumerate(stages, start=1)
    ]
    return [("stages", "\n".join(lines))] if lines else []


def settings_line(thing: Any) -> str:
    """A stage, loss or schedule by its class's name, with all its settings, defaults included."""
    told = [f"{field.name} {value_text(getattr(thing, field.name))}" for field in fields(thing) if field.init]
    return f"{type(thing).__name__} ({', '.join(told)})" if told else type(thing).__name__


def value_text(setting: Any) -> str:
    """A setting as a reader would write it."""
    if is_dataclass(setting):
        return settings_line(setting)
    if isinstance(setting, (list, tuple)):
        return "[" + ", ".join(map(value_text, setting)) + "]"
    if setting is None or isinstance(setting, bool):
        return {None: "none", True: "true", False: "false"}[setting]
    return f"{setting:g}" if isinstance(setting, float) else str(setting)


def backbone_name(method: pl.LightningModule) -> str:
    """Name of the encoder as the settings give it."""
    settings = dict(method.hparams)["backbone"]
    return f"{settings['name']} ({settings['stem']} stem)"


def schedule_line(trainer: pl.Trainer, global_batch: int, config: Pretrain, images: int) -> str:
    """Length of the run in words."""
    steps, windows = int(trainer.estimated_stepping_batches), config.accumulate
    per_step = f"{global_batch} images" if windows == 1 else f"{windows} x {global_batch} images"
    left_out = images % global_batch
    if not config.drop_last and left_out * config.batch_size // global_batch >= 2:  # images per process
        left_out = 0
    rest = (
        f"; {count_of(left_out, 'image')} of each epoch, drawn anew, fill no batch and are left out" if left_out else ""
    )
    epochs = f"within {count_of(last_epoch(trainer), 'epoch')} of the {config.epochs} asked for"
    if last_epoch(trainer) == config.epochs:
        epochs = count_of(config.epochs, "epoch")
    return f"{epochs}, {count_of(steps, 'optimizer step')} of {per_step}{rest}"


def device_line(device: Device) -> str:
    """Devices and arithmetic in words."""
    count = f"{device.nodes} x {device.devices}" if device.nodes > 1 else str(device.devices)
    threads = f", {count_of(torch.get_num_threads(), 'thread')}" if device.accelerator == "cpu" else ""
    return f"{count} x {device.accelerator}, {device.precision}{threads}"


@dataclass(frozen=True)
class Length:
    """How much a run does."""

    steps: int
    """Optimizer steps."""
    steps_per_epoch: int
    """Optimizer steps of one epoch."""
    images_per_epoch: int
    """Images of one epoch, on all devices."""
    images: int
    """Images of the whole run, on all devices."""

    @classmethod
    def of(cls, config: Pretrain, images: int, world_size: int) -> "Length":
        """That of a run on so many images and processes."""
        global_batch = config.batch_size * world_size
        batches = images // global_batch if config.drop_last else -(-images // global_batch)
        per_epoch = max(1, -(-batches // config.accumulate))
        shown = images // global_batch * global_batch if config.drop_last else images
        steps, seen = config.epochs * per_epoch, config.epochs * shown
        if config.max_steps is not None:
            steps = min(steps, config.max_steps)
            seen = min(seen, config.max_steps * config.accumulate * global_batch)
        return cls(steps, per_epoch, shown, seen)

    @property
    def epochs(self) -> float:
        """Epochs of the whole run."""
        return self.steps / self.steps_per_epoch


def queue_notes(method: Any, config: Pretrain, images: int, world_size: int) -> list[str]:
    """What queues that do not suit the number of images mean for the run.

    Args:
        method: The method.
        config: Settings of the run.
        images: Images pretrained on.
        world_size: Processes.
    """
    length = Length.of(config, images, world_size)
    views = 1 + getattr(method, "symmetric", True)  # SimCLR remembers the embeddings of both
    pushed, per_epoch = views * length.images, views * length.images_per_epoch
    notes = [
        f"{key_of(place)}: the support queue of {stage.size:,} embeddings never fills: the run makes {pushed:,}, and until its "
        f"end neighbours are looked for among fewer (lower its size)"
        for place, stage in enumerate(method.stages)
        if isinstance(stage, NeighbourPositive) and stage.size > pushed
    ]
    queue = getattr(method, "queue", None)
    if queue is None or source_of(method) is not None:
        return notes
    size = len(queue.keys)
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


def late_stage_notes(method: Any, config: Pretrain, images: int, world_size: int) -> list[str]:
    """A warning for each stage whose beginning lies beyond the end of the run.

    Args:
        method: The method.
        config: Settings of the run.
        images: Images pretrained on.
        world_size: Processes.
    """
    length = Length.of(config, images, world_size)
    return [
        f"stage {type(stage).__name__} does nothing in this run: it begins at epoch {first:g} and the run ends after "
        f"{length.epochs:.3g} (lower its warmup_epochs, begin_at or start, or train longer)"
        for stage in method.stages
        if (first := stage.first_epoch(length.epochs)) > (length.steps - 1) / length.steps_per_epoch
    ]


def threshold_notes(method: Any, config: Pretrain, images: int, world_size: int) -> list[str]:
    """A warning for each stage of learned thresholds in a run so short that these cannot come down to 0 by its end.

    Where they have only not come down when the stage begins to act, as with an early ``begin_at``, they do so later.

    Args:
        method: The method.
        config: Settings of the run.
        images: Images pretrained on.
        world_size: Processes.
    """
    length = Length.of(config, images, world_size)
    notes = []
    for place, stage in enumerate(method.stages):
        if not isinstance(stage, GlobalQuantile):
            continue
        rate, first = max(over_run(stage.rate)), math.ceil(stage.begin_at * length.steps)
        then, last = (1 - rate * steps / length.steps_per_epoch for steps in (first, length.steps))
        if last > 0 and first < length.steps:
            notes.append(
                f"{key_of(place)} {type(stage).__name__} acts from step {first:,} of {length.steps:,} on (begin_at "
                f"{stage.begin_at:g}), when the thresholds, which begin at 1 and fall by at most {rate:g} an epoch, can have come down "
                f"to {then:.2f}, and to {last:.2f} by the end: nothing below such a cosine is found (train longer, or raise rate)"
            )
    return notes


def warmup_notes(method: Any, config: Pretrain, images: int, world_size: int) -> list[str]:
    """A warning for a learning rate that is still on its way up when the run ends.

    Args:
        method: The method.
        config: Settings of the run.
        images: Images pretrained on.
        world_size: Processes.
    """
    length = Length.of(config, images, world_size)
    settings: Optimizer = method.optimizer_settings
    warmup = warmup_steps(settings, length.steps_per_epoch)
    if warmup <= length.steps:
        return []
    return [
        f"the learning rate warms up for {settings.warmup_epochs:g} epochs and the run ends after {length.epochs:.3g}, at "
        f"{100 * length.steps / warmup:.0f} % of the rate (lower --method.optimizer.warmup_epochs, or train longer)"
    ]


def batches_notes(method: Any, config: Pretrain) -> list[str]:
    """A warning where an order of batches cannot do what it is for."""
    if isinstance(config.batches, ShuffledBatches) or getattr(method, "queue", None) is None:
        return []
    return [
        f"{type(config.batches).__name__} makes the negatives within a batch harder, but candidates come from the queue: set "
        "--method.queue_size 0, or take SimCLR"
    ]


def oracle_notes(method: Any) -> list[str]:
    """A warning for each stage that looks at true labels, which goes into the summary and onto the page."""
    return [
        f"stage {type(stage).__name__} uses true labels: what this run reaches is a bound, not learning without labels"
        for stage in method.stages
        if stage.oracle
    ]


def stage_notes(method: Any, global_batch: int) -> list[str]:
    """A warning for each pair of stages, or stage and loss or mix, that only looks as if it composed."""
    others = batch_candidates(method, global_batch)
    return doubts(method.stages, method.objective, others, getattr(method, "mixing", None))
