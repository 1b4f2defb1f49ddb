"""Scores while an encoder trains, as Lightning callbacks that leave no trace in what is trained."""

import copy
import time
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from contrastneg import distributed
from contrastneg.device import encoder_dtype
from contrastneg.evaluate.features import check_labels, extract, finite_rows
from contrastneg.evaluate.knn import knn_score
from contrastneg.randomness import generator


class OnlineKnn(Callback):
    """kNN score of the backbone features every n epochs and after the last, logged as ``knn/top1``.

    ``history`` lists (epoch, score in [0, 1]), ``seconds`` says how much time all scores took, for clocks that leave it out.

    Args:
        every_n_epochs: Epochs between scores; 0 takes none, not even after the last epoch.
        k: Neighbours that vote.
        temperature: Temperature of the votes.
    """

    def __init__(self, every_n_epochs: int = 1, k: int = 20, temperature: float = 0.07) -> None:
        self.every_n_epochs = every_n_epochs
        self.k = k
        self.temperature = temperature
        self.history: list[tuple[int, float]] = []
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The scores so far."""
        return {"history": list(self.history), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the list of scores."""
        self.history = [(epoch, score) for epoch, score in state_dict["history"]]
        self.seconds = state_dict["seconds"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Score, if it is time; all ranks get the same number."""
        if not self.every_n_epochs or not ((trainer.current_epoch + 1) % self.every_n_epochs == 0 or is_last(trainer)):
            return
        began = time.perf_counter()
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        dtype = encoder_dtype(trainer)
        bank, queries = (
            extract(pl_module.backbone, data, split, pl_module.device, dtype) for split in ("train", "test")
        )
        score = knn_score(
            bank,
            queries,
            k=self.k,
            temperature=self.temperature,
            num_classes=data.num_classes,
            across_ranks=True,
        )
        self.history.append((trainer.current_epoch, score.top1))
        pl_module.log("knn/top1", score.top1)
        self.seconds += time.perf_counter() - began


class OnlineProbe(Callback):
    """A linear classifier on the detached backbone features of view 1, trained along; logged as ``probe/accuracy``.

    It belongs to this callback alone: its own weights, optimizer and random numbers. The accuracy of an epoch is that of
    each batch before the classifier has learned from it.

    Args:
        num_classes: Number of classes.
        label_table: Label of each image by its stable index, -1 unknown.
        lr: Learning rate of Adam, 0 or more.

    Raises:
        ValueError: A label is not among the classes.
    """

    def __init__(self, num_classes: int, label_table: Int64[Tensor, " T"], lr: float = 1e-3) -> None:
        check_labels(label_table, num_classes, "pretraining images")
        self.num_classes = num_classes
        self.label_table = label_table
        self.lr = lr
        self.layer: nn.Linear | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.right: Tensor | int = 0  # counts of the epoch so far stay on the device: reading them would wait for it
        self.seen: Tensor | int = 0
        self.epoch = -1
        self._gaps = bool((label_table < 0).any())
        self._saved: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer and the epoch so far on every rank; asked for on all of them, as Lightning does."""
        if self.layer is None or self.optimizer is None:
            return self._saved
        weights = {name: tensor.cpu() for name, tensor in self.layer.state_dict().items()}
        return {
            "layer": weights,
            "optimizer": self.optimizer.state_dict(),
            "counts": distributed.collect([int(self.right), int(self.seen)]),
            "epoch": self.epoch,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with what was saved, whatever this probe has learned already."""
        self._saved, self.layer, self.optimizer = state_dict, None, None
        if state_dict:
            self.right, self.seen = map(int, distributed.own_part(state_dict["counts"]))
            self.epoch = state_dict["epoch"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Answer, then learn."""
        if self.epoch != trainer.current_epoch:  # a resumed run may begin an epoch without on_train_epoch_start
            self.right, self.seen, self.epoch = 0, 0, trainer.current_epoch
        self.label_table = self.label_table.to(outputs["image_id"].device)
        self.learn(outputs["features"].detach().float(), self.label_table[outputs["image_id"]])

    def learn(self, features: Float[Tensor, "B F"], labels: Int64[Tensor, " B"]) -> None:
        """One step of the classifier on the rows of all ranks that have a label and are finite.

        Args:
            features: Constants, float32.
            labels: Classes, -1 unknown.
        """
        valid = (labels >= 0) & finite_rows(features)
        if self._gaps and not distributed.largest(int(valid.any())):
            return  # a step without a gradient would still follow Adam's momentum
        features, labels = torch.where(valid[:, None], features, 0), labels.clamp(min=0)
        layer, optimizer = self._classifier(features.shape[1], features.device)
        with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
            logits = layer(features)
            optimizer.zero_grad()
            distributed.global_mean(F.cross_entropy(logits, labels, reduction="none"), valid).backward()
        self.right = self.right + ((logits.argmax(dim=1) == labels) & valid).sum()
        self.seen = self.seen + valid.sum()
        for parameter in layer.parameters():
            if parameter.grad is not None and distributed.world_size() > 1:
                dist.all_reduce(parameter.grad)
                parameter.grad /= distributed.world_size()
        optimizer.step()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the accuracy over all ranks."""
        right, seen = distributed.mean(float(self.right)), distributed.mean(float(self.seen))
        if seen:
            pl_module.log("probe/accuracy", right / seen)

    def _classifier(self, width: int, device: torch.device) -> tuple[nn.Linear, torch.optim.Optimizer]:
        """The classifier, made when the width of the features is known."""
        if self.layer is None or self.optimizer is None:
            layer: Any = nn.utils.skip_init(nn.Linear, width, self.num_classes)
            with torch.no_grad():
                layer.weight.copy_(initial_weights(self.num_classes, width))
                layer.bias.zero_()
            if self._saved:
                layer.load_state_dict(self._saved["layer"])
            optimizer = torch.optim.Adam(layer.to(device).parameters(), lr=self.lr)
            if self._saved:
                # Adam would write into the saved tensors
                optimizer.load_state_dict(copy.deepcopy(self._saved["optimizer"]))
            self.layer, self.optimizer = layer, optimizer
            return layer, optimizer
        return self.layer, self.optimizer


def is_last(trainer: pl.Trainer) -> bool:
    """Whether no epoch follows the one that ends now."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    return trainer.should_stop or trainer.current_epoch + 1 == epochs or 0 <= steps <= trainer.global_step


def initial_weights(num_classes: int, width: int) -> Float[Tensor, "C F"]:
    """Small normal weights from a generator of their own."""
    return 0.01 * torch.randn(num_classes, width, generator=generator("OnlineProbe"))
