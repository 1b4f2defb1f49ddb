"""From settings to a scored encoder: data, method, Trainer, run folder.

``pretrain`` reads top to bottom: open the data, check that a run is possible, write the run folder, train, score, write
the report. A run that cannot work stops before anything is written.
"""

import copy
import functools
import importlib.util
import inspect
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from contrastneg import distributed
from contrastneg.allocator import keep_freed_memory
from contrastneg.batchnorm import SyncBatchNorm
from contrastneg.candidates import CandidateShares, check_batch
from contrastneg.card import (
    StartCard,
    batches_notes,
    late_stage_notes,
    oracle_notes,
    queue_notes,
    stage_notes,
    threshold_notes,
    warmup_notes,
)
from contrastneg.config import Pretrain, plain
from contrastneg.console import EpochLine, Output, RunProgress, score_table, shown
from contrastneg.data.module import PretrainData, check_steps
from contrastneg.data.opening import OpenedData, open_data
from contrastneg.data.usable import BAD_IMAGES
from contrastneg.device import (
    LIGHTNING_PRECISION,
    Device,
    batch_norm_notes,
    encoder_dtype,
    resolve_device,
    synchronised,
)
from contrastneg.evaluate.final import Pictures, final_scores, pictures_without_labels, view_pairs
from contrastneg.evaluate.online import OnlineKnn, OnlineProbe
from contrastneg.memory import check_memory, is_out_of_memory, out_of_memory
from contrastneg.randomness import derive_seed
from contrastneg.report.page import write_report
from contrastneg.runfolder import (
    AtomicCheckpoints,
    Checkpoints,
    MetricsCsv,
    command_line,
    environment,
    first_command,
    lasting_address,
    new_run_folder,
    newest_checkpoint,
    read_checkpoint,
    write_json,
)
from contrastneg.signals import Signals
from contrastneg.stepping import all_embeddings
from contrastneg.subjects import write_encoder
from contrastneg.wording import asked_images
from contrastneg.writing import write_text

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
        Diverged: If the loss or the weights are no longer finite; the last good checkpoint stays.
        OutOfMemory: If a step or a score needs more memory than there is.
    """
    device = resolve_device(config)
    if config.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise ValueError("wandb names a project but the package is not installed: pip install 'contrastneg[wandb]'")
    if config.run and resume is None and RUN_VARIABLE not in os.environ:
        new_run_folder(Path(config.run), "", "")  # refuses one that is in use before all images are looked through
    check_memory(config, device)
    opened = open_data(config)
    check_steps(len(opened.train), config.batch_size, device.world_size, config.drop_last)
    check_batch(config.method, config.batch_size * device.world_size)
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
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(config, device) from error
        raise
    finally:
        del os.environ[RUN_VARIABLE]


def _run(config: Pretrain, opened: OpenedData, device: Device, folder: Path, checkpoint: Path | None) -> dict[str, Any]:
    output = Output(enabled=distributed.is_first_process())
    told = [
        *device.notes,
        *opened.notes,
        *batch_norm_notes(config.method, device),
        *queue_notes(config.method, config, len(opened.train), device.world_size),
        *late_stage_notes(config.method, config, len(opened.train), device.world_size),
        *threshold_notes(config.method, config, len(opened.train), device.world_size),
        *warmup_notes(config.method, config, len(opened.train), device.world_size),
        *oracle_notes(config.method),
        *stage_notes(config.method, config.batch_size * device.world_size),
        *batches_notes(config.method, config),
    ]
    notes = list(dict.fromkeys(told))
    if config.allocator and device.accelerator == "cpu" and not keep_freed_memory():
        notes.append("allocator setting not available on this system: large buffers go back to the kernel each step")
    method: Any = config.method
    method.seed = config.seed
    if config.channels_last:
        method.to(memory_format=torch.channels_last)
    untrained = copy.deepcopy(method.backbone)  # before a checkpoint is loaded: its weights are a function of the seed
    if config.compile:
        for encoder in (method.encoder, getattr(method, "key_encoder", None)):
            if encoder is not None:
                encoder.backbone.compile()
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
        skip_bad_images=config.on_bad_image == "skip",
        batches=config.batches,
    )
    data.embed = functools.partial(all_embeddings, method, getattr(method, "key_encoder", method.encoder))
    method.pipeline.begin(data)
    if checkpoint is None and distributed.is_first_process():
        write_run_folder(folder, config)
        if opened.bad:
            write_text(folder / BAD_IMAGES, "".join(f"{name}: {why}\n" for name, why in opened.bad))

    progress = RunProgress(output, config.progress)
    knn = OnlineKnn(config.knn_every, k=config.knn_k, temperature=config.knn_temperature) if data.scored else None
    card = StartCard(output, config, opened, device, notes, folder)
    quiet_lightning()
    with Signals(checkpoint) as signals:
        trainer = build_trainer(config, device, folder, data, progress, knn, card, checkpoint, signals)
        trainer.fit(method, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        if not progress.stepped:
            again = "scores and page are" if config.final_scores else "the page is"
            output.print(f"this run has finished its training: no step was taken, {again} made anew")
        return finish(config, trainer, method, untrained, data, progress, output, folder, notes)


def build_trainer(
    config: Pretrain,
    device: Device,
    folder: Path,
    data: PretrainData,
    progress: RunProgress,
    knn: OnlineKnn | None,
    card: Callback,
    checkpoint: Path | None,
    signals: Signals | None = None,
) -> pl.Trainer:
    """The Lightning Trainer of a run. Order of callbacks: clock, seeds, scores, line, checkpoint."""
    label_table = data.label_table()
    callbacks: list[Callback] = [progress, card, StepSeed(config.seed), CandidateShares(label_table)]
    if label_table is not None and config.probe:
        callbacks.append(OnlineProbe(int(label_table.max()) + 1, label_table))
    if knn is not None:
        callbacks.append(knn)
    callbacks += [
        EpochLine(progress.output, progress, knn),
        Checkpoints(folder / "checkpoints", config.checkpoint_every, signals=signals),
    ]
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
        precision=LIGHTNING_PRECISION[device.precision],
        max_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip,
        logger=build_loggers(config, folder, progress, checkpoint),
        callbacks=callbacks,
        plugins=[AtomicCheckpoints(), *([SyncBatchNorm()] if synchronised(config.method, device) else [])],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=config.log_every,
        deterministic=config.deterministic,
        default_root_dir=folder,
    )


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
        # torch.manual_seed asks about every kind of device, which takes 2 ms where there is none
        sow = torch.default_generator.manual_seed if pl_module.device.type == "cpu" else torch.manual_seed
        sow(derive_seed(self.seed, "step", trainer.current_epoch, batch_idx, trainer.global_rank))


def write_run_folder(folder: Path, config: Pretrain) -> None:
    """The folder with all settings, defaults included, the command and the environment, before anything is derived.

    Local paths are written absolute, so that the run can be resumed from another folder.

    Raises:
        ValueError: If the folder cannot be made or written to.
    """
    settings = plain_config(config)
    settings |= {name: lasting_address(settings[name]) for name in ("data", "val")}
    settings["root"] = settings["root"] and os.path.abspath(settings["root"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        write_json(folder / "environment.json", {"command": command_line(), **environment()})
    except OSError as error:
        raise ValueError(f"run folder {folder} cannot be written: {error.strerror}: give another --run") from error


def plain_config(config: Pretrain) -> dict[str, Any]:
    """All settings as a config file would give them."""
    return {name: plain(getattr(config, name)) for name in config.__dataclass_fields__}


def finish(
    config: Pretrain,
    trainer: pl.Trainer,
    method: Any,
    untrained: nn.Module,
    data: PretrainData,
    progress: RunProgress,
    output: Output,
    folder: Path,
    notes: list[str],
) -> dict[str, Any]:
    """Scores beside their baselines, the encoder, the summary and the page."""
    if trainer.is_global_zero:  # before anything that could fail
        save_encoder(folder / "encoder.safetensors", config, method)
    table: list[dict[str, Any]] = []
    score_notes: list[str] = []
    device, dtype = trainer.strategy.root_device, encoder_dtype(trainer)
    if not config.final_scores:
        pictures = Pictures(view_pairs(data))
    elif not data.scored:
        pictures = pictures_without_labels(method.backbone, data, device, dtype, config.seed)
    else:
        table, score_notes, pictures = final_scores(
            config, method.backbone, untrained.to(method.dtype), data, device, dtype, say=output.print
        )
    summary = {
        "command": first_command(folder),
        "method": type(method).__name__,
        "data": config.data,
        "train_seconds": round(progress.seconds, 1),
        "images_per_second": round(progress.images_per_second(), 1),
        "parameters": sum(p.numel() for p in method.backbone.parameters()),
        "table": table,
        "notes": list(dict.fromkeys([*notes, *score_notes])),
    }
    if trainer.is_global_zero:
        pictures.save(folder / "pictures.npz")
        write_json(folder / "summary.json", summary)
        page = write_report(folder)
        if table:
            output.print(score_table(table, len(data.labels("test")), asked_images(notes)))
        for note in score_notes:
            output.print(f"[yellow]note[/] {shown(note)}")
        output.print(shown(f"encoder {folder / 'encoder.safetensors'}\nreport  {page}"))
    return summary


def save_encoder(path: Path, config: Pretrain, method: Any) -> None:
    """The backbone's weights with what is needed to use them: its settings and the views' normalisation."""
    write_encoder(path, method.backbone, dict(method.hparams)["backbone"], config.views)


def quiet_lightning() -> None:
    """Silence what Lightning says that the start card says better, and advice that does not apply to our loader."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",
        r".*smaller than the logging interval.*",
        r".*Trying to infer the `batch_size`.*",
        r".*defined a `validation_step` but have no `val_dataloader`.*",
        # These are the same on all ranks when they are logged, but for the speed, which is that of rank 0's clock.
        r".*recommended to use `self.log\('(epoch/\w+|candidates/empty_rows|speed/\w+|knn/top1|probe/accuracy)', .*",
        r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)
