"""MoCo and SimCLR: the two training steps.

A step is read top to bottom: embed both views, take the candidates (queue or batch), let the stages edit their table,
score, enqueue. Nothing here is called back from a leaf. Losses are means over all images of the step on all ranks, times
the method's ``loss_scale``.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from contrastneg import distributed, loading
from contrastneg.batchnorm import convert_split_batch_norm
from contrastneg.config import plain
from contrastneg.data.module import TwoViews
from contrastneg.device import encoder_dtype
from contrastneg.encoders import Backbone, Head, build_backbone, build_head, make_key_branch, update_key_branch_
from contrastneg.evaluate.features import encode_set
from contrastneg.logsumexp import own_pairs
from contrastneg.negatives import Clock, Negatives, Pipeline, Record, Stage, run_stages
from contrastneg.objectives import InfoNCE, Objective, SumObjective, check_objective, ignore
from contrastneg.optim import EffectiveRate, Optimizer, build_optimizer, learning_rate
from contrastneg.queue import KeyQueue
from contrastneg.randomness import generator
from contrastneg.schedules import Schedule, value
from contrastneg.sums import KeySums


def unit(embedding: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """Rows scaled to unit length, in float32 at least: bf16 has too few digits for a temperature of 0.1."""
    wide = embedding if embedding.dtype == torch.float64 else embedding.float()
    return F.normalize(wide, dim=1)


def contrast(
    query: Float[Tensor, "B D"],
    positive: Float[Tensor, "B D"],
    image_id: Int64[Tensor, " B"],
    keys: Float[Tensor, "K D"],
    key_id: Int64[Tensor, " K"],
    stages: Sequence[Stage],
    temperature: float,
    clock: Clock,
    objective: Objective = InfoNCE(),
    record: Record | None = None,
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"]]:
    """Loss of each query against its positive and the keys of other images, through the stages.

    Keys without gradient, no stages and a loss that is algebra on sums take passes over the keys that never hold the
    (B, K) table; otherwise the table is built, edited by each stage in turn and scored.

    Returns:
        Loss per query; whether its positive is more similar than every candidate; whether it had a candidate.
    """
    if needs_no_table(objective, stages) and not keys.requires_grad:
        sums = KeySums(query, positive, keys, own_pairs(image_id, key_id))
        loss = objective.of_sums(sums, temperature, clock, record or ignore)
        return loss, sums.positive.detach() > sums.hardest, sums.hardest > -torch.inf
    negatives = Negatives.of(query, positive, keys, query_id=image_id, key_id=key_id)
    negatives = run_stages(negatives, stages, clock, record)
    loss = objective(negatives, temperature, clock, record or ignore)
    kept = negatives.log_weight > -torch.inf
    nothing = negatives.similarity.new_full((len(query), 1), -torch.inf)  # an empty queue gives no column at all
    hardest = torch.cat([nothing, negatives.similarity.detach().masked_fill(~kept, -torch.inf)], dim=1).amax(dim=1)
    return loss, negatives.positive_similarity.detach() > hardest, kept.any(dim=1)


def needs_no_table(objective: Objective, stages: Sequence[Stage]) -> TypeGuard[SumObjective]:
    """Whether a loss can be had from the keys alone; then nothing of them is kept for the backward pass."""
    return isinstance(objective, SumObjective) and not stages


class Encoder(nn.Module):
    """Backbone and projector, from images to embeddings: what a key branch copies."""

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, images: Float[Tensor, "B C S S"]) -> Float[Tensor, "B D"]:
        """Embeddings, not yet of unit length."""
        return self.projector(self.backbone(images))


class MoCo(pl.LightningModule):
    """Momentum contrast: keys from a slowly moving copy of the encoder, negatives from a queue of past keys.

    v1 arXiv:1911.05722, v2 arXiv:2003.04297, and with ``queue_size`` 0 and a predictor v3 arXiv:2104.02057.

    Args:
        backbone: The encoder that is kept after pretraining.
        projector: Head whose unit-length output is compared.
        predictor: Second head on the query side only (MoCo v3); None leaves it out.
        temperature: Softmax temperature, above 0.
        loss: Loss over the table of negatives, by class name; its numbers may be schedules.
        queue_size: Keys in the queue; 0 contrasts with the keys of the batch (MoCo v3).
        queue_dtype: Storage of the keys; bfloat16 halves the memory and rounds each number to 8 bits.
        momentum: Share of the old key branch kept per optimizer step, in [0, 1]; a number or a schedule.
        key_buffers: Batch-norm statistics of the key branch: its ``own`` (official code) or a ``copy`` of the query's.
        symmetric: Also contrast view 2 against keys of view 1. Both losses are taken before either key set is pushed.
        loss_scale: ``mean`` or ``sum`` of the directions, or ``2t_sum``: 2 x temperature x sum (MoCo v3).
        batch_norm: ``plain`` per device; ``split`` in groups on one device; ``shuffle`` key batches across devices;
            ``sync`` statistics over all GPUs: ``contrastneg pretrain`` sees to it, a Trainer of your own needs
            ``plugins=[contrastneg.batchnorm.SyncBatchNorm()]``.
        bn_splits: Groups of the ``split`` batch norm.
        stages: Edits of the table of negatives, in order.
        optimizer: Optimizer, learning-rate rule and warm-up.
        image_size: Side of the views, which vision transformers must know in advance.

    Raises:
        ValueError: If a setting is out of range or the stages cannot be combined.
    """

    def __init__(
        self,
        backbone: Backbone = Backbone(),
        projector: Head = Head.moco_v2(),
        predictor: Head | None = None,
        temperature: float = 0.2,
        loss: Objective = InfoNCE(),
        queue_size: int = 65536,
        queue_dtype: Literal["float32", "bfloat16"] = "float32",
        momentum: float | Schedule = 0.999,
        key_buffers: Literal["own", "copy"] = "own",
        symmetric: bool = False,
        loss_scale: Literal["mean", "sum", "2t_sum"] = "mean",
        batch_norm: Literal["plain", "split", "shuffle", "sync"] = "plain",
        bn_splits: int = 8,
        stages: list[Stage] | None = None,
        optimizer: Optimizer = Optimizer(),
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        keep_settings(self, locals())
        if temperature <= 0:
            raise ValueError(f"method.temperature is {temperature}: give a number above 0")
        if queue_size < 0:
            raise ValueError(f"method.queue_size is {queue_size}: give 0 (no queue) or a positive number of keys")
        self.pipeline = Pipeline(stages or [], {"id", "queue" if queue_size else "batch"}, projector.out)
        check_objective(loss, self.stages, temperature)
        self.temperature, self.objective, self.momentum = temperature, loss, momentum
        self.key_buffers: Literal["own", "copy"] = key_buffers
        self.symmetric, self.batch_norm, self.optimizer_settings = symmetric, batch_norm, optimizer
        self.scale = loss_scale_factor(loss_scale, temperature, directions=2 if symmetric else 1)
        self.seed = 0
        self.record: Record | None = None

        network: Any = build_backbone(backbone, image_size)
        self.encoder = Encoder(network, build_head(network.num_features, projector))
        if batch_norm == "split":
            convert_split_batch_norm(self.encoder, bn_splits)
        self.predictor = nn.Identity() if predictor is None else build_head(projector.out, predictor)
        self.key_encoder = make_key_branch(self.encoder)
        self.queue = KeyQueue(queue_size, projector.out, getattr(torch, queue_dtype)) if queue_size else None

    @property
    def backbone(self) -> nn.Module:
        """The encoder that is kept after pretraining: (B, C, S, S) to (B, F)."""
        return self.encoder.backbone

    def forward(self, images: Float[Tensor, "B C S S"]) -> Float[Tensor, "B F"]:
        """Backbone features."""
        return self.backbone(images)

    @property
    def stages(self) -> list[Stage]:
        """Edits of the table of negatives, in order."""
        return self.pipeline.stages

    def setup(self, stage: str) -> None:
        """Tell the stages what is known of the images."""
        self.pipeline.begin(self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_train_batch_start(self, batch: TwoViews, batch_idx: int) -> None:
        """Let the stages look at all images once an epoch (a resumed run may enter one without the hook of its start)."""
        refresh_stages(self, self.key_encoder)

    def training_step(self, batch: TwoViews, batch_idx: int) -> dict[str, Tensor]:
        """One MoCo step: embed, gather candidates, score, enqueue."""
        features = self.backbone(batch.view1)
        query = unit(self.predictor(self.encoder.projector(features)))  # (B, D), carries the gradient
        if batch_idx % self.trainer.accumulate_grad_batches == 0:  # once per optimizer step
            update_key_branch_(self.key_encoder, self.encoder, self._momentum_now(), self.key_buffers)
        key = self._keys(batch.view2, batch_idx)
        directions = [(query, key)]
        if self.symmetric:
            other = unit(self.predictor(self.encoder(batch.view2)))
            directions.append((other, self._keys(batch.view1, batch_idx)))

        scored = [self._contrast(query, key, batch.image_id, i) for i, (query, key) in enumerate(directions)]
        values = self.scale * torch.stack([values for values, _, _ in scored]).sum(dim=0)  # (B,)
        loss = distributed.global_mean(values)

        for _, key in directions:  # last: no query may meet its own key as a negative
            self._remember(distributed.all_gather(key), distributed.all_gather(batch.image_id))
        return step_outputs(self, loss, values, features, batch.image_id, *scored[0][1:])

    def _contrast(
        self, query: Tensor, key: Tensor, image_id: Tensor, direction: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        clock = replace(clock_of(self), direction=direction)
        if self.queue is not None:
            keys, key_id = self.queue.candidates(copy=not needs_no_table(self.objective, self.stages))
        else:
            keys, key_id = distributed.all_gather(key), distributed.all_gather(image_id)
        if direction == 0:
            self.record = record_of_step(self)
        return contrast(
            query,
            key,
            image_id,
            keys,
            key_id,
            self.stages,
            self.temperature,
            clock,
            self.objective,
            self.record if direction == 0 else None,
        )

    def _remember(self, keys: Tensor, image_id: Tensor) -> None:
        if self.queue is not None:
            self.queue.push(keys, image_id)
        self.pipeline.update(keys, image_id, clock_of(self))

    @torch.no_grad()
    def _keys(self, view: Tensor, batch_idx: int) -> Tensor:
        """Unit keys of a view, in its order; the key branch may see the images in another order (batch norm)."""
        if self.batch_norm not in ("shuffle", "split"):
            return unit(self.key_encoder(view))
        same_on_all_ranks = generator(self.seed, "shuffle", self.trainer.current_epoch, batch_idx)
        shuffled, undo = distributed.shuffle_batch(view, same_on_all_ranks)
        return distributed.unshuffle_batch(unit(self.key_encoder(shuffled)), undo)

    def _momentum_now(self) -> float:
        return value(self.momentum, clock_of(self).progress)

    def validation_step(self, batch: TwoViews, batch_idx: int) -> Tensor:
        """Loss against the queue as it stands; queue, key branch and statistics stay as they are."""
        query = unit(self.predictor(self.encoder(batch.view1)))
        loss, _, _ = self._contrast(query, unit(self.key_encoder(batch.view2)), batch.image_id)
        self.log("val/loss", loss.mean(), sync_dist=True, batch_size=len(query))
        return loss.mean()

    test_step = validation_step

    def predict_step(self, images: Float[Tensor, "B C S S"], batch_idx: int = 0) -> Float[Tensor, "B F"]:
        """Backbone features."""
        return self.backbone(images)

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimizer and warm-up cosine schedule by optimizer step."""
        return build_optimizer(self.optimizer_settings, self, *run_length(self), effective_rate(self).value)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, **_: Any) -> pl.LightningModule:  # type: ignore[override]
        """As :func:`contrastneg.load`: the settings come from the checkpoint."""
        return loading.load(checkpoint_path)


class SimCLR(pl.LightningModule):
    """Contrast the two views of each image with all views of the other images in the batch (arXiv:2002.05709).

    NT-Xent over the global batch: both views are anchors, 2B - 2 candidates each, gathered with gradient.

    Args:
        backbone: The encoder that is kept after pretraining.
        projector: Head whose unit-length output is compared.
        temperature: Softmax temperature, above 0.
        loss: Loss over the table of negatives, by class name; its numbers may be schedules.
        loss_scale: ``mean`` over the 2B anchors, or ``sum`` of the means of the two views (official code, twice that).
        batch_norm: ``plain`` statistics per device or ``sync`` over all GPUs: ``contrastneg pretrain`` sees to it, a
            Trainer of your own needs ``plugins=[contrastneg.batchnorm.SyncBatchNorm()]``.
        stages: Edits of the table of negatives, in order.
        optimizer: Optimizer, learning-rate rule and warm-up.
        image_size: Side of the views, which vision transformers must know in advance.

    Raises:
        ValueError: If a setting is out of range or the stages cannot be combined.
    """

    def __init__(
        self,
        backbone: Backbone = Backbone(),
        projector: Head = Head.simclr(),
        temperature: float = 0.1,
        loss: Objective = InfoNCE(),
        loss_scale: Literal["mean", "sum"] = "mean",
        batch_norm: Literal["plain", "sync"] = "plain",
        stages: list[Stage] | None = None,
        optimizer: Optimizer = Optimizer(name="lars", lr=0.3, warmup_epochs=10),
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        keep_settings(self, locals())
        if temperature <= 0:
            raise ValueError(f"method.temperature is {temperature}: give a number above 0")
        self.pipeline = Pipeline(stages or [], {"id", "batch"}, projector.out)
        check_objective(loss, self.stages, temperature)
        self.temperature, self.objective = temperature, loss
        self.batch_norm, self.optimizer_settings = batch_norm, optimizer
        self.scale = {"mean": 1.0, "sum": 2.0}[loss_scale]
        self.seed = 0
        self.record: Record | None = None

        network: Any = build_backbone(backbone, image_size)
        self.encoder = Encoder(network, build_head(network.num_features, projector))

    @property
    def backbone(self) -> nn.Module:
        """The encoder that is kept after pretraining: (B, C, S, S) to (B, F)."""
        return self.encoder.backbone

    def forward(self, images: Float[Tensor, "B C S S"]) -> Float[Tensor, "B F"]:
        """Backbone features."""
        return self.backbone(images)

    @property
    def stages(self) -> list[Stage]:
        """Edits of the table of negatives, in order."""
        return self.pipeline.stages

    def setup(self, stage: str) -> None:
        """Tell the stages what is known of the images."""
        self.pipeline.begin(self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_train_batch_start(self, batch: TwoViews, batch_idx: int) -> None:
        """Let the stages look at all images once an epoch (a resumed run may enter one without the hook of its start)."""
        refresh_stages(self, self.encoder)

    def training_step(self, batch: TwoViews, batch_idx: int) -> dict[str, Tensor]:
        """One SimCLR step: embed both views in one pass, gather, score."""
        features = self.backbone(torch.cat([batch.view1, batch.view2]))
        view1, view2 = unit(self.encoder.projector(features)).chunk(2)  # each (B, D)
        values, first, contrasted = self._contrast(view1, view2, batch.image_id)
        values = self.scale * values
        loss = distributed.global_mean(values)
        return step_outputs(self, loss, values, features.chunk(2)[0], batch.image_id, first, contrasted)

    def _contrast(self, view1: Tensor, view2: Tensor, image_id: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both views against all views of all ranks; an image's own two views are never among its candidates."""
        query, partner = torch.cat([view1, view2]), torch.cat([view2, view1])
        query_id = image_id.repeat(2)
        keys, key_id = distributed.all_gather_with_grad(query), distributed.all_gather(query_id)
        self.record, clock = record_of_step(self), clock_of(self)
        scored = contrast(
            query, partner, query_id, keys, key_id, self.stages, self.temperature, clock, self.objective, self.record
        )
        if self.training:
            self.pipeline.update(keys.detach(), key_id, clock)
        return scored

    def validation_step(self, batch: TwoViews, batch_idx: int) -> Tensor:
        """NT-Xent of a batch; nothing is changed."""
        view1, view2 = (unit(self.encoder(view)) for view in (batch.view1, batch.view2))
        loss, _, _ = self._contrast(view1, view2, batch.image_id)
        self.log("val/loss", loss.mean(), sync_dist=True, batch_size=len(view1))
        return loss.mean()

    test_step = validation_step

    def predict_step(self, images: Float[Tensor, "B C S S"], batch_idx: int = 0) -> Float[Tensor, "B F"]:
        """Backbone features."""
        return self.backbone(images)

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimizer and warm-up cosine schedule by optimizer step."""
        return build_optimizer(self.optimizer_settings, self, *run_length(self), effective_rate(self).value)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, **_: Any) -> pl.LightningModule:  # type: ignore[override]
        """As :func:`contrastneg.load`: the settings come from the checkpoint."""
        return loading.load(checkpoint_path)


def loss_scale_factor(loss_scale: str, temperature: float, directions: int) -> float:
    """Factor on the sum of the directions' mean losses that gives the named convention."""
    return {"mean": 1 / directions, "sum": 1.0, "2t_sum": 2 * temperature}[loss_scale]


def keep_settings(module: pl.LightningModule, arguments: dict[str, Any]) -> None:
    """Keep constructor arguments as plain values, so that the checkpoint alone can rebuild the module."""
    settings = {name: plain(v) for name, v in arguments.items() if name not in ("self", "__class__")}
    module._set_hparams({**settings, "class_name": type(module).__name__})
    module._hparams_initial = module.hparams  # type: ignore[assignment]


def refresh_stages(module: MoCo | SimCLR, encoder: nn.Module) -> None:
    """Let the stages look at the embeddings of all images, which are computed at most once, and only if one asks."""
    data: Any = module.trainer.datamodule  # type: ignore[attr-defined]

    @functools.cache
    def embeddings() -> Float[Tensor, "T D"]:
        rows, position = encode_set(encoder, data, "pretrain", module.device, encoder_dtype(module.trainer))
        image_id = data.sets["pretrain"].image_id
        table = rows.new_full((int(image_id.max()) + 1, rows.shape[1]), torch.nan)
        table[image_id[position]] = unit(rows)
        return table

    module.pipeline.refresh(embeddings, clock_of(module), module.trainer.current_epoch)


def record_of_step(module: MoCo | SimCLR) -> Record | None:
    """An empty record in steps that are logged, for what the stages and the loss do in them."""
    return Record(module.pipeline.labels) if module.training and is_logged(module.trainer) else None


def clock_of(module: MoCo | SimCLR) -> Clock:
    """Where the run stands, for schedules and the stages' draws; outside training, its end."""
    trainer = module.trainer
    if trainer.state.fn != "fit":
        return Clock(1, 1, float("inf"), module.seed, distributed.rank())
    steps, per_epoch = run_length(module)
    step = trainer.global_step
    return Clock(step, steps, step / per_epoch, module.seed, distributed.rank(), trainer.fit_loop.batch_idx)


def run_length(module: MoCo | SimCLR) -> tuple[int, int]:
    """Optimizer steps of the whole run and of one epoch; the last, incomplete accumulation window of an epoch counts."""
    trainer = module.trainer
    steps = int(trainer.estimated_stepping_batches)
    if trainer.num_training_batches == float(
        "inf"
    ):  # Lightning has not looked at the loader when max_steps alone is set
        trainer.fit_loop.setup_data()
    return steps, max(1, -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches))


def effective_rate(module: MoCo | SimCLR) -> EffectiveRate:
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
            f"optimizer.scale is {settings.scale} but neither the data module nor the loader has a batch_size: "
            "give it one, or set scale to none"
        )
    return learning_rate(settings, images, trainer.world_size, trainer.accumulate_grad_batches)


def is_logged(trainer: pl.Trainer) -> bool:
    """Whether Lightning will log the micro-batch that is being trained on: the last one of every n-th optimizer step.

    Lightning's own condition but for ``should_stop``, which ranks may set at different moments: all must agree on when to
    reduce what they log.
    """
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
    return every > 0 and step % every == 0 and not trainer.fit_loop._should_accumulate()


def step_outputs(
    module: MoCo | SimCLR,
    loss: Tensor,
    values: Float[Tensor, " N"],
    features: Float[Tensor, "B F"],
    image_id: Int64[Tensor, " B"],
    first: Bool[Tensor, " N"],
    contrasted: Bool[Tensor, " N"],
) -> dict[str, Tensor]:
    """What a training step returns and logs. Logged rows are means over all ranks; between them, over this rank.

    Args:
        module: The method.
        loss: Of the whole step, for the backward pass.
        values: Loss of each query; their mean over all ranks is what is logged.
        features: Backbone features of view 1, for classifiers trained alongside.
        image_id: Their images.
        first: Queries whose positive is more similar than every candidate.
        contrasted: Queries that had a candidate; the others have loss 0 and do not count for the accuracy.
    """
    queries = values.new_full((), len(values))
    sums = torch.stack([values.detach().sum(), queries, (first & contrasted).sum(), contrasted.sum()])
    shown = distributed.total(sums) if is_logged(module.trainer) else sums
    module.log("train/loss", shown[0] / shown[1], batch_size=len(first))
    module.log("train/accuracy", shown[2] / shown[3], batch_size=len(first))
    if module.record is not None and module.record.numbers:
        own = torch.stack(list(module.record.numbers.values())).to(sums.dtype)
        numbers = distributed.total(own * queries) / shown[1]
        for name, number in zip(module.record.numbers, numbers, strict=True):
            module.log(name, number, batch_size=len(first))
    module.log("train/lr", module.trainer.optimizers[0].param_groups[0]["lr"], batch_size=len(first))
    return {
        "loss": loss,
        "features": features.detach(),
        "image_id": image_id,
        "sums": sums,  # loss, queries, hits, queries with a candidate; of this rank
    }
