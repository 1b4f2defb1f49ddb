"""MoCo and SimCLR: the two training steps.

A step is read top to bottom: embed both views, take the candidates (queue or batch), let the stages edit their table,
score, enqueue. Nothing here is called back from a leaf. Losses are means over all images of the step on all ranks, times
the method's ``loss_scale``.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn

from contrastneg import distributed, loading
from contrastneg.adversary import CLAE, attacked, with_own_batch_norm
from contrastneg.batchnorm import convert_split_batch_norm
from contrastneg.contrast import contrast, needs_no_table, unit
from contrastneg.data.module import TwoViews
from contrastneg.encoders import Backbone, Head, build_backbone, build_head, make_key_branch, update_key_branch_
from contrastneg.mixing import InputMix, Rows
from contrastneg.negatives import Pipeline, Record, Stage
from contrastneg.objectives import InfoNCE, Objective, check_objective, check_parts
from contrastneg.optim import Optimizer, build_optimizer
from contrastneg.queue import KeyQueue
from contrastneg.randomness import generator
from contrastneg.schedules import Schedule, over_run, value
from contrastneg.stateful import check_views
from contrastneg.stepping import (
    clock_of,
    effective_rate,
    foreign,
    is_told,
    keep_settings,
    record_of_step,
    refresh_stages,
    run_length,
    step_outputs,
)


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
        mixing: Queries from several images, by class name (IMix, UnMix); None leaves them alone.
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
        mixing: InputMix | None = None,
        optimizer: Optimizer = Optimizer(),
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        check_parts(stages, loss)
        keep_settings(self, locals())
        if temperature <= 0:
            raise ValueError(f"method.temperature is {temperature}: give a number above 0")
        if queue_size < 0:
            raise ValueError(f"method.queue_size is {queue_size}: give 0 (no queue) or a positive number of keys")
        if not all(0 <= number <= 1 for number in over_run(momentum)):
            raise ValueError(f"method.momentum is {momentum}: give a number, or a schedule, within 0 and 1")
        if bn_splits < 1:
            raise ValueError(f"method.bn_splits is {bn_splits}: give at least 1")
        provides = {"id", "support", "queue" if queue_size else "batch"}
        self.pipeline = Pipeline(stages or [], provides, projector.out, loss, queue_size or None)
        check_objective(loss, self.stages, temperature)
        check_views(loss, mixing)
        self.temperature, self.objective, self.momentum, self.mixing = temperature, loss, momentum, mixing
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
        """Tell the stages and the loss what is known of the images."""
        self.pipeline.begin(self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_train_batch_start(self, batch: TwoViews, batch_idx: int) -> None:
        """Let the stages look at all images once an epoch (a resumed run may enter one without the hook of its start)."""
        refresh_stages(self, self.key_encoder)

    def training_step(self, batch: TwoViews, batch_idx: int) -> dict[str, Tensor]:
        """One MoCo step: embed, gather candidates, score, enqueue."""
        features, query, rows = self._queries(batch.view1)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:  # once per optimizer step
            update_key_branch_(self.key_encoder, self.encoder, self._momentum_now(), self.key_buffers)
        key = self._keys(batch.view2, batch_idx)
        directions = [(query, key, rows)]
        if self.symmetric:
            _, query, rows = self._queries(batch.view2, direction=1)
            directions.append((query, self._keys(batch.view1, batch_idx), rows))

        support = self._support(batch, batch_idx)
        scored = [self._contrast(*one, batch.image_id, support, i) for i, one in enumerate(directions)]
        values = self.scale * torch.stack([values for values, _, _ in scored]).sum(dim=0)  # (B,)
        loss = distributed.global_mean(values)

        for i, (_, key, _) in enumerate(directions):  # last: no query may meet its own key as a negative
            self._remember(distributed.all_gather(key), distributed.all_gather(batch.image_id), i)
        if is_told(self.trainer):
            self.log("train/momentum", self._momentum_now(), batch_size=len(query))
        return step_outputs(self, loss, values, features, batch.image_id, *scored[0][1:])

    def _queries(self, view: Tensor, direction: int = 0) -> tuple[Tensor, Tensor, Rows]:
        """Backbone features of the first images embedded, unit queries with gradient, and what they are to be like."""
        batches, rows = [view], Rows()
        if self.mixing is not None:
            batches, rows = self.mixing(view, replace(clock_of(self), direction=direction))
        features = [self.backbone(images) for images in batches]
        query = torch.cat([unit(self.predictor(self.encoder.projector(each))) for each in features])
        return features[0], rows.queries(query), rows

    def _contrast(
        self,
        query: Tensor,
        key: Tensor,
        rows: Rows,
        image_id: Tensor,
        support: Tensor | None = None,
        direction: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        clock = replace(clock_of(self), direction=direction)
        stages = self.stages if self.training else self.pipeline.stages_of_foreign_images
        record = None
        if direction == 0:
            record = self.record = record_of_step(self)
        keys, key_id = self._candidates(key, image_id, copy=not needs_no_table(self.objective, stages, record))
        shown = None if support is None else rows.targets(support)
        edits = (stages, self.temperature, clock, self.objective, record, shown)
        losses, *hits = contrast(query, rows.targets(key), rows.targets(image_id), keys, key_id, *edits)
        first, contrasted = (hit[: len(key)] for hit in hits)  # of each image's first row
        return rows.combined(losses, len(key)), first, contrasted

    def _candidates(self, key: Tensor, image_id: Tensor, copy: bool) -> tuple[Tensor, Tensor]:
        """Keys of the queue, of the batch, or of both, and their images."""
        if self.queue is None:
            return distributed.all_gather(key), distributed.all_gather(image_id)
        keys, key_id = self.queue.candidates(copy=copy)
        if self.mixing is None or not self.mixing.batch_keys:
            return keys, key_id
        return torch.cat([distributed.all_gather(key), keys]), torch.cat([distributed.all_gather(image_id), key_id])

    def _remember(self, keys: Tensor, image_id: Tensor, direction: int) -> None:
        if self.queue is not None:
            self.queue.push(keys, image_id)
        self.pipeline.update(keys, image_id, replace(clock_of(self), direction=direction))

    @torch.no_grad()
    def _keys(self, view: Tensor, batch_idx: int) -> Tensor:
        """Unit keys of a view, in its order; the key branch may see the images in another order (batch norm)."""
        if self.batch_norm not in ("shuffle", "split"):
            return unit(self.key_encoder(view))
        same_on_all_ranks = generator(self.seed, "shuffle", self.trainer.current_epoch, batch_idx)
        shuffled, undo = distributed.shuffle_batch(view, same_on_all_ranks)
        return distributed.unshuffle_batch(unit(self.key_encoder(shuffled)), undo)

    def _support(self, batch: TwoViews, batch_idx: int) -> Tensor | None:
        """Keys (B, S, D) of further views of each image, where a stage asked for them."""
        if batch.support is None:
            return None
        return torch.stack([self._keys(view, batch_idx) for view in batch.support.unbind(1)], dim=1)

    def _momentum_now(self) -> float:
        return value(self.momentum, clock_of(self).progress)

    def validation_step(self, batch: TwoViews, batch_idx: int) -> Tensor:
        """Loss against the queue as it stands, without source stages; queue, key branch and statistics stay as they are.

        The images are taken for others than those pretrained on, whatever their index.
        """
        query = unit(self.predictor(self.encoder(batch.view1)))
        loss, _, _ = self._contrast(query, unit(self.key_encoder(batch.view2)), Rows(), foreign(batch.image_id))
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
        adversary: Adversarial third views; None leaves them out.
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
        adversary: CLAE | None = None,
        optimizer: Optimizer = Optimizer(name="lars", lr=0.3, warmup_epochs=10),
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        check_parts(stages, loss)
        keep_settings(self, locals())
        if temperature <= 0:
            raise ValueError(f"method.temperature is {temperature}: give a number above 0")
        self.pipeline = Pipeline(stages or [], {"id", "support", "batch", "key_gradient"}, projector.out, loss)
        check_objective(loss, self.stages, temperature)
        check_views(loss, adversary)
        self.temperature, self.objective, self.adversary = temperature, loss, adversary
        self.batch_norm, self.optimizer_settings = batch_norm, optimizer
        self.scale = {"mean": 1.0, "sum": 2.0}[loss_scale]
        self.seed = 0
        self.record: Record | None = None

        network: Any = build_backbone(backbone, image_size)
        self.encoder = Encoder(network, build_head(network.num_features, projector))
        if adversary is not None:
            self.adversarial_encoder = with_own_batch_norm(self.encoder, adversary.norm_momentum)

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
        """Tell the stages and the loss what is known of the images."""
        self.pipeline.begin(self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_train_batch_start(self, batch: TwoViews, batch_idx: int) -> None:
        """Let the stages look at all images once an epoch (a resumed run may enter one without the hook of its start)."""
        refresh_stages(self, self.encoder)

    def training_step(self, batch: TwoViews, batch_idx: int) -> dict[str, Tensor]:
        """One SimCLR step: embed both views in one pass, gather, score."""
        features = self.backbone(torch.cat([batch.view1, batch.view2]))
        view1, view2 = unit(self.encoder.projector(features)).chunk(2)  # each (B, D)
        support = self._support(batch)
        values, first, contrasted = self._contrast(view1, view2, batch.image_id, support)
        if self.adversary is not None:
            adversarial = self._adversarial(batch.view1, batch.image_id)
            further, _, _ = self._contrast(view1, adversarial, batch.image_id, support, direction=1)
            values = values + value(self.adversary.weight, clock_of(self).progress) * further
        values = self.scale * values
        loss = distributed.global_mean(values)
        self._remember(view1, view2, batch.image_id)  # last: no query may meet itself in what a stage remembers
        return step_outputs(self, loss, values, features.chunk(2)[0], batch.image_id, first, contrasted)

    def _contrast(
        self, view1: Tensor, view2: Tensor, image_id: Tensor, support: Tensor | None = None, direction: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both views against all views of all ranks; an image's own two views are never among its candidates."""
        query, partner = torch.cat([view1, view2]), torch.cat([view2, view1])
        query_id = image_id.repeat(2)
        keys, key_id = distributed.all_gather_with_grad(query), distributed.all_gather(query_id)
        clock, record = replace(clock_of(self), direction=direction), None
        if direction == 0:
            record = self.record = record_of_step(self)
        stages = self.stages if self.training else self.pipeline.stages_of_foreign_images
        edits = (stages, self.temperature, clock, self.objective, record, support)
        return contrast(query, partner, query_id, keys, key_id, *edits)

    def _adversarial(self, view: Tensor, image_id: Tensor) -> Tensor:
        """Embeddings (B, D), with gradient, of the images moved against the loss."""
        assert self.adversary is not None
        clock = clock_of(self)
        step = value(self.adversary.step, clock.progress)
        return unit(self.adversarial_encoder(attacked(view, self.adversarial_encoder, image_id, step, clock)))

    def _remember(self, view1: Tensor, view2: Tensor, image_id: Tensor) -> None:
        if self.stages:
            keys, key_id = distributed.all_gather(torch.cat([view1, view2])), distributed.all_gather(image_id.repeat(2))
            self.pipeline.update(keys, key_id, clock_of(self))

    @torch.no_grad()
    def _support(self, batch: TwoViews) -> Tensor | None:
        """Embeddings (2B, S, D) of further views of each image, the same for both of its views, where a stage asked."""
        if batch.support is None:
            return None
        views = [unit(self.encoder(view)) for view in batch.support.unbind(1)]
        return torch.stack(views, dim=1).repeat(2, 1, 1)

    def validation_step(self, batch: TwoViews, batch_idx: int) -> Tensor:
        """NT-Xent of a batch, without source stages; nothing is changed.

        The images are taken for others than those pretrained on, whatever their index.
        """
        view1, view2 = (unit(self.encoder(view)) for view in (batch.view1, batch.view2))
        loss, _, _ = self._contrast(view1, view2, foreign(batch.image_id))
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
