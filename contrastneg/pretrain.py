"""From settings to a scored encoder: data, method, Trainer, run folder.

``pretrain`` reads top to bottom: open the data, check that a run is possible, write the run folder, train, score, write
the report. A run that cannot work stops before anything is written.
"""

import inspect
import json
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.strategies import DDPStrategy
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from contrastneg import distributed
from contrastneg.allocator import keep_freed_memory
from contrastneg.candidates import CandidateShares
from contrastneg.config import Pretrain, plain
from contrastneg.console import EpochLine, Output, RunProgress, human, score_table, start_card
from contrastneg.data.module import PretrainData, check_steps
from contrastneg.data.opening import OpenedData, open_data
from contrastneg.data.views import describe
from contrastneg.evaluate.final import final_scores
from contrastneg.evaluate.online import OnlineKnn, OnlineProbe
from contrastneg.methods import effective_rate
from contrastneg.randomness import derive_seed
from contrastneg.report.page import write_report
from contrastneg.runfolder import (
    AtomicCheckpoints,
    Checkpoints,
    MetricsCsv,
    command_line,
    environment,
    new_run_folder,
    newest_checkpoint,
    read_checkpoint,
    write_json,
    write_text,
)

RUN_VARIABLE = "CONTRASTNEG_RUN"  # tells the other processes of a run which folder its first process chose


def pretrain(config: Pretrain, *, resume: Path | None = None) -> dict[str, Any]:
    """Pretrain an encoder and score it.

    Args:
        config: All settings; for a resumed run those of its ``config.yaml``.
        resume: Run folder to continue from its newest checkpoint, exactly as if it had not stopped.

    Returns:
        The content of ``summary.json``.

    Raises:
        ValueError: If the settings cannot work with each other, the data or this machine.
        Interrupted: If a signal asked the run to stop; its state is saved.
    """
    device = resolve_device(config)
    opened = open_data(config)
    check_steps(len(opened.train), config.batch_size, device.world_size, config.drop_last)
    checkpoint = newest_checkpoint(resume) if resume else None
    if RUN_VARIABLE in os.environ:
        folder = Path(os.environ[RUN_VARIABLE])
    else:
        folder = resume or new_run_folder(
            Path(config.run) if config.run else None, opened.train.name, type(config.method).__name__
        )
    os.environ[RUN_VARIABLE] = str(folder)
    try:
        return _run(config, opened, device, folder, checkpoint)
    finally:
        del os.environ[RUN_VARIABLE]


def _run(
    config: Pretrain, opened: OpenedData, device: "Device", folder: Path, checkpoint: Path | None
) -> dict[str, Any]:
    output = Output(enabled=int(os.environ.get("LOCAL_RANK", "0")) == 0)
    notes = [*device.notes, *opened.notes, *batch_norm_notes(config.method, device)]
    if config.allocator and device.accelerator == "cpu" and not keep_freed_memory():
        notes.append("allocator setting not available on this system: large buffers go back to the kernel each step")
    method: Any = config.method
    method.seed = config.seed
    if config.channels_last:
        method.to(memory_format=torch.channels_last)
    if config.compile:
        method.backbone.compile()
    data = PretrainData(
        opened.train,
        config.views,
        opened.bank,
        opened.queries,
        batch_size=config.batch_size,
        loading=opened.loading,
        workers=config.workers,
        seed=config.seed,
        drop_last=config.drop_last,
        channels_last=config.channels_last,
    )
    if checkpoint is None and distributed.is_first_process():
        write_run_folder(folder, config)

    progress = RunProgress(output, config.progress)
    knn = OnlineKnn(config.knn_every, k=config.knn_k, temperature=config.knn_temperature) if data.scored else None
    card = StartCard(output, config, opened, device, notes, folder)
    quiet_lightning()
    trainer = build_trainer(config, device, folder, data, progress, knn, card, checkpoint)
    trainer.fit(method, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return finish(config, trainer, method, data, progress, output, folder, notes)


@dataclass(frozen=True)
class Device:
    """Where and in what arithmetic a run computes."""

    accelerator: str
    devices: int
    nodes: int
    precision: str
    notes: list[str]

    @property
    def world_size(self) -> int:
        """Training processes in all."""
        return self.devices * self.nodes


def resolve_device(config: Pretrain) -> Device:
    """Settings of "auto" made definite for this machine.

    Raises:
        ValueError: If a device is asked for that is not there.
    """
    there = {"gpu": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    accelerator = config.accelerator
    if accelerator == "auto":
        accelerator = next((name for name, count in there.items() if count), "cpu")
    if accelerator != "cpu" and not there[accelerator]:
        raise ValueError(f"accelerator is {accelerator} but this machine has none: give --accelerator cpu or auto")
    devices = config.devices
    if devices == "auto":
        launched = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE")
        devices = int(launched) if launched else max(1, there.get(accelerator, 1))
    if devices < 1 or devices > there.get(accelerator, devices):
        raise ValueError(f"devices is {devices} but this machine has {there.get(accelerator)} ({accelerator})")
    precision, notes = resolve_precision(config.precision, accelerator)
    return Device(accelerator, devices, config.nodes, precision, notes)


def resolve_precision(asked: str, accelerator: str) -> tuple[str, list[str]]:
    """The arithmetic that will really be used, and a note where it is not the one asked for."""
    fast_bf16 = {
        "cpu": getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)(),
        "gpu": torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False),
        "mps": False,
    }[accelerator]
    if asked == "auto":
        return ("bfloat16" if fast_bf16 else "float32"), []
    unsupported = {"cpu": {"float16"}, "mps": {"bfloat16", "float16", "float64"}, "gpu": set()}[accelerator]
    if asked in unsupported:
        return "float32", [f"{asked} is not supported on {accelerator}: float32 is used"]
    if asked == "bfloat16" and not fast_bf16:
        return asked, ["bfloat16 is emulated on this hardware and slower than float32"]
    return asked, []


LIGHTNING_PRECISION = {
    "float32": "32-true",
    "bfloat16": "bf16-mixed",
    "float16": "16-mixed",
    "float64": "64-true",
}


def build_trainer(
    config: Pretrain,
    device: Device,
    folder: Path,
    data: PretrainData,
    progress: RunProgress,
    knn: Callback | None,
    card: Callback,
    checkpoint: Path | None,
) -> pl.Trainer:
    """The Lightning Trainer of a run. Order of callbacks: clock, seeds, scores, line, checkpoint."""
    label_table = data.label_table()
    callbacks: list[Callback] = [progress, card, StepSeed(config.seed), CandidateShares(label_table)]
    if label_table is not None and config.probe:
        callbacks.append(OnlineProbe(int(label_table.max()) + 1, label_table))
    if knn is not None:
        callbacks.append(knn)
    callbacks += [EpochLine(progress.output, progress), Checkpoints(folder / "checkpoints", config.checkpoint_every)]
    strategy: Any = "auto"
    if device.world_size > 1:
        # Buffers are equal on all ranks by construction (queue) or local by intent (batch norm): none is sent each step.
        renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        options: Any = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        backend = "nccl" if device.accelerator == "gpu" else "gloo"
        strategy = DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True, **options)
    return pl.Trainer(
        accelerator=device.accelerator,
        devices=device.devices,
        num_nodes=device.nodes,
        strategy=strategy,
        precision=LIGHTNING_PRECISION[device.precision],  # type: ignore[arg-type]
        max_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip,
        logger=build_loggers(config, folder, progress, checkpoint),
        callbacks=callbacks,
        plugins=[AtomicCheckpoints()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        sync_batchnorm=synchronised(config.method, device),
        log_every_n_steps=config.log_every,
        deterministic=config.deterministic,
        default_root_dir=folder,
    )


def synchronised(method: Any, device: Device) -> bool:
    """Whether batch norm statistics are taken over all devices; torch does so on GPUs only."""
    return method.batch_norm == "sync" and device.accelerator == "gpu" and device.world_size > 1


def batch_norm_notes(method: Any, device: Device) -> list[str]:
    """What a batch norm setting cannot do here."""
    if method.batch_norm == "sync" and not synchronised(method, device):
        return [f"batch_norm sync needs several GPUs: on {device.accelerator} each process keeps its own statistics"]
    if method.batch_norm == "shuffle" and device.world_size == 1:
        return ["batch_norm shuffle protects nothing on one device: use split, which normalises groups of the batch"]
    return []


def build_loggers(config: Pretrain, folder: Path, progress: RunProgress, checkpoint: Path | None) -> list[Logger]:
    """CSV and TensorBoard always, Weights & Biases when a project is named."""
    step = read_checkpoint(checkpoint)["global_step"] if checkpoint else None
    loggers: list[Logger] = [
        MetricsCsv(folder / "metrics.csv", progress.training_seconds, step),
        TensorBoardLogger(folder, name="", version="tensorboard", **({"purge_step": step} if step else {})),
    ]
    if config.wandb is not None:
        loggers.append(WandbLogger(project=config.wandb, name=folder.name, save_dir=folder, id=folder.name))
    return loggers


class StepSeed(Callback):
    """Seeds torch's global generator before each step, so that dropout, too, is a function of the position in the run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed this step on this rank."""
        torch.manual_seed(derive_seed(self.seed, "step", trainer.current_epoch, batch_idx, trainer.global_rank))


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
    """Method, temperature and negatives per query in words."""
    queue = getattr(method, "queue", None)
    if queue is not None:
        candidates = f"up to {len(queue.keys):,} queued keys per query"
    else:
        views = 2 * global_batch - 2 if type(method).__name__ == "SimCLR" else global_batch - 1
        candidates = f"{views:,} batch negatives per query"
    stages = f"; stages: {', '.join(type(stage).__name__ for stage in method.stages)}" if method.stages else ""
    return f"{type(method).__name__}, temperature {method.temperature:g}, {candidates}{stages}"


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


def write_run_folder(folder: Path, config: Pretrain) -> None:
    """The folder with the settings as given and the environment, before anything is derived."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(plain_config(config), sort_keys=False, allow_unicode=True))
    write_json(folder / "environment.json", environment())


def plain_config(config: Pretrain) -> dict[str, Any]:
    """All settings as a config file would give them."""
    return {name: plain(getattr(config, name)) for name in config.__dataclass_fields__}


def finish(
    config: Pretrain,
    trainer: pl.Trainer,
    method: Any,
    data: PretrainData,
    progress: RunProgress,
    output: Output,
    folder: Path,
    notes: list[str],
) -> dict[str, Any]:
    """Scores beside their baselines, the encoder, the summary and the page."""
    table: list[dict[str, Any]] = []
    if data.scored and config.final_scores:
        table, pictures = final_scores(config, method, data, trainer.strategy.root_device, encoder_dtype(trainer))
        if trainer.is_global_zero:
            pictures.save(folder / "pictures.npz")
    summary = {
        "command": command_line(),
        "method": type(method).__name__,
        "data": config.data,
        "train_seconds": round(progress.seconds, 1),
        "images_per_second": round(progress.images_per_second(), 1),
        "parameters": sum(p.numel() for p in method.backbone.parameters()),
        "table": table,
        "notes": notes,
    }
    if trainer.is_global_zero:
        save_encoder(folder / "encoder.safetensors", config, method)
        write_json(folder / "summary.json", summary)
        page = write_report(folder)
        if table:
            output.print(score_table(table, config.knn_k, len(data.labels("test"))))
        output.print(f"encoder {folder / 'encoder.safetensors'}\nreport  {page}")
    return summary


def encoder_dtype(trainer: pl.Trainer) -> torch.dtype:
    """Arithmetic of the encoder, for evaluation."""
    return {
        "32-true": torch.float32,
        "bf16-mixed": torch.bfloat16,
        "16-mixed": torch.float16,
        "64-true": torch.float64,
    }[str(trainer.precision)]


def save_encoder(path: Path, config: Pretrain, method: Any) -> None:
    """The backbone's weights with what is needed to use them: its settings and the views' normalisation."""
    weights = {name: tensor.contiguous().clone() for name, tensor in method.backbone.state_dict().items()}
    facts = {"backbone": dict(method.hparams)["backbone"], "views": plain(config.views)}
    partial = path.with_name(path.name + ".partial")
    save_file(weights, partial, metadata={"contrastneg": json.dumps(facts)})
    os.replace(partial, path)


def quiet_lightning() -> None:
    """Silence what Lightning says that the start card says better, and advice that does not apply to our loader."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",
        r".*smaller than the logging interval.*",
        r".*Trying to infer the `batch_size`.*",
        r".*defined a `validation_step` but have no `val_dataloader`.*",
        r".*recommended to use `self.log\(.*sync_dist=True\)`.*",  # they are equal on all ranks already
        r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)
