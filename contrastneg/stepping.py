"""What training steps of all methods share: settings kept, where the run stands, what a step logs and returns."""

import functools
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from contrastneg import distributed
from contrastneg.checks import check_numbers
from contrastneg.config import plain
from contrastneg.contrast import unit
from contrastneg.device import encoder_dtype
from contrastneg.evaluate.features import encode_set
from contrastneg.negatives import Clock, Record
from contrastneg.optim import EffectiveRate, learning_rate


def keep_settings(module: pl.LightningModule, arguments: dict[str, Any]) -> None:
    """Keep constructor arguments as plain values, so that the checkpoint alone can rebuild the module.

    Raises:
        ValueError: A number among them is not finite, or a schedule leaves the range of its setting.
    """
    for name, argument in arguments.items():
        check_numbers(argument, f"method.{name}")
    settings = {name: plain(v) for name, v in arguments.items() if name not in ("self", "__class__")}
    module._set_hparams({**settings, "class_name": type(module).__name__})
    module._hparams_initial = module.hparams  # type: ignore[assignment]


def clock_of(module: Any) -> Clock:
    """Where the run stands, for schedules and the stages' draws; outside training, its end."""
    trainer = module.trainer
    if trainer.state.fn != "fit":
        return Clock(1, 1, float("inf"), module.seed, distributed.rank(), temperature=module.temperature)
    steps, per_epoch = run_length(module)
    step = trainer.global_step
    place = (step, steps, step / per_epoch, module.seed, distributed.rank(), trainer.fit_loop.batch_idx)
    return Clock(*place, temperature=module.temperature)


def run_length(module: Any) -> tuple[int, int]:
    """Optimizer steps of the whole run and of one epoch; the last, incomplete accumulation window of an epoch counts."""
    trainer = module.trainer
    steps = int(trainer.estimated_stepping_batches)
    if trainer.num_training_batches == float(
        "inf"
    ):  # Lightning has not looked at the loader when max_steps alone is set
        trainer.fit_loop.setup_data()
    return steps, max(1, -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches))


def effective_rate(module: Any) -> EffectiveRate:
    """The learning rate after scaling, with its factors in words.

    Raises:
        ValueError: The rate is scaled with the batch, and neither the data module nor the loader tells its size.
    """
    trainer: Any = module.trainer
    images = getattr(trainer.datamodule, "batch_size", None)
    if images is None:
        trainer.fit_loop.setup_data()
        images = getattr(trainer.train_dataloader, "batch_size", None)
    settings = module.optimizer_settings
    if images is None and settings.scale == "none":
        return EffectiveRate(settings.lr, f"{settings.lr:g} (not scaled)")
    if images is None:
        raise ValueError(
            f"method.optimizer.scale is {settings.scale} but neither the data module nor the loader has a batch_size: "
            "give it one, or set scale to none"
        )
    return learning_rate(settings, images, trainer.world_size, trainer.accumulate_grad_batches)


def refresh_stages(module: Any, encoder: nn.Module) -> None:
    """Let the stages look at the embeddings of all images, which are computed at most once, and only if one asks."""
    embeddings = functools.cache(lambda: all_embeddings(module, encoder))
    module.pipeline.refresh(embeddings, clock_of(module), module.trainer.current_epoch)


def all_embeddings(module: Any, encoder: nn.Module) -> Float[Tensor, "T D"]:
    """Unit embeddings of all pretraining images by stable index, the same on every rank; NaN where there is no image.

    Args:
        module: The method, in training.
        encoder: Which of its encoders.
    """
    data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
    rows, position = encode_set(encoder, data, "pretrain", module.device, encoder_dtype(module.trainer))
    image_id = data.sets["pretrain"].image_id
    table = rows.new_full((int(image_id.max()) + 1, rows.shape[1]), torch.nan)
    table[image_id[position]] = unit(rows)
    return table


def foreign(image_id: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """Ids for images that are not the pretraining images of the same number: below -1, where no table of a stage has a row
    and no key of the queue is theirs, but their own views still find each other."""
    return -2 - image_id


def record_of_step(module: Any) -> Record | None:
    """An empty record in steps that are logged, for what the stages and the loss do in them.

    Also in the last of an epoch where sources choose the candidates, which only the step itself can tell of.
    """
    if not module.training:
        return None
    trainer = module.trainer
    chosen = any(stage.chooses for stage in module.stages)
    if not (is_told(trainer) if chosen else is_logged(trainer)):
        return None
    return Record(module.pipeline.labels(module.device))


def is_logged(trainer: pl.Trainer) -> bool:
    """Whether Lightning will log the micro-batch that is being trained on: the last one of every n-th optimizer step.

    Lightning's own condition but for ``should_stop``, which ranks may set at different moments: all must agree on when to
    reduce what they log.
    """
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
    return every > 0 and step % every == 0 and not trainer.fit_loop._should_accumulate()


def is_told(trainer: pl.Trainer) -> bool:
    """Whether a step gives its numbers to Lightning: where they are written down, and in the last of an epoch, so that
    there are some after a short one. To give them in every step takes 2 % of the time of a small encoder; so
    ``callback_metrics`` holds those of the last step that was told."""
    return is_logged(trainer) or ends_epoch(trainer, trainer.fit_loop.batch_idx)


def ends_epoch(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a micro-batch is the last of its epoch, or of the run.

    Args:
        trainer: In training.
        batch_idx: Place of the micro-batch in the epoch.
    """
    return batch_idx + 1 >= trainer.num_training_batches or 0 < trainer.max_steps <= trainer.global_step + 1


def step_outputs(
    module: Any,
    loss: Tensor,
    values: Float[Tensor, " N"],
    features: Float[Tensor, "B F"],
    image_id: Int64[Tensor, " B"],
    first: Bool[Tensor, " N"],
    contrasted: Bool[Tensor, " N"],
) -> dict[str, Tensor]:
    """What a training step returns and, where it is told (:func:`is_told`), logs: means over all ranks.

    Args:
        module: The method.
        loss: Of the whole step, for the backward pass.
        values: Loss of each query; their mean over all ranks is what is logged.
        features: Backbone features of view 1, for classifiers trained alongside.
        image_id: Their images.
        first: Queries whose positive is more similar than every key of another image, before the stages.
        contrasted: Queries that had a candidate; the others have loss 0 and do not count for the accuracy.
    """
    queries = values.new_full((), len(values))
    sums = torch.stack([values.detach().sum(), queries, (first & contrasted).sum(), contrasted.sum()])
    noted = {} if module.record is None else module.record.reduced()
    if is_told(module.trainer):
        total = distributed.total(sums)
        rate = module.trainer.optimizers[0].param_groups[0]["lr"]
        shown = {"train/loss": total[0] / total[1], "train/accuracy": total[2] / total[3], "train/lr": rate, **noted}
        module.log_dict(shown, batch_size=len(first))
    return {
        "loss": loss,
        "features": features.detach(),
        "image_id": image_id,
        "sums": sums,  # loss, queries, hits, queries with a candidate; of this rank
        **{name: number for name, number in noted.items() if name.startswith("candidates/")},
    }
