"""Scores while an encoder trains, as Lightning callbacks that leave no trace in what is trained."""

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
from contrastneg.evaluate.features import extract
from contrastneg.evaluate.knn import knn_score
from contrastneg.randomness import generator

ARITHMETIC = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "64-true": torch.float64}


class OnlineKnn(Callback):
    """kNN score of the backbone features every n epochs, logged as ``knn/top1``.

    Args:
        every_n_epochs: Epochs between scores; 0 takes none.
        k: Neighbours that vote.
        temperature: Temperature of the votes.
    """

    def __init__(self, every_n_epochs: int = 1, k: int = 20, temperature: float = 0.07) -> None:
        self.every_n_epochs = every_n_epochs
        self.k = k
        self.temperature = temperature
        self.history: list[tuple[int, float]] = []
        self.seconds = 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Score, if it is time; all ranks get the same number."""
        if not self.every_n_epochs or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        began = time.perf_counter()
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        dtype = ARITHMETIC.get(str(trainer.precision), torch.float32)
        bank, queries = (
            extract(pl_module.backbone, data, split, pl_module.device, dtype) for split in ("train", "test")
        )
        score = knn_score(bank, queries, k=self.k, temperature=self.temperature, num_classes=data.num_classes)
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
    """

    def __init__(self, num_classes: int, label_table: Int64[Tensor, " T"], lr: float = 1e-3) -> None:
        self.num_classes = num_classes
        self.label_table = label_table
        self.lr = lr
        self.layer: nn.Linear | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.right = 0.0
        self.seen = 0
        self._saved: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer and the epoch so far."""
        if self.layer is None or self.optimizer is None:
            return self._saved
        weights = {name: tensor.cpu() for name, tensor in self.layer.state_dict().items()}
        return {
            "layer": weights,
            "optimizer": self.optimizer.state_dict(),
            "right": float(self.right),
            "seen": self.seen,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with what was saved; the epoch's count now, before a new epoch may begin."""
        self._saved = state_dict
        self.right, self.seen = state_dict.get("right", 0.0), state_dict.get("seen", 0)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a fresh count."""
        self.right, self.seen = 0.0, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Answer, then learn."""
        labels = self.label_table[outputs["image_id"].cpu()]
        features, labels = outputs["features"].detach().float()[labels >= 0], labels[labels >= 0]
        layer, optimizer = self._classifier(outputs["features"].shape[1], features.device)
        with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
            self._learn(layer, optimizer, features, labels.to(features.device))

    def _learn(self, layer: nn.Linear, optimizer: torch.optim.Optimizer, features: Tensor, labels: Tensor) -> None:
        logits = layer(features)
        self.right += (logits.argmax(dim=1) == labels).sum().item()
        self.seen += len(labels)
        optimizer.zero_grad()
        distributed.global_mean(F.cross_entropy(logits, labels, reduction="none")).backward()
        for parameter in layer.parameters():
            if parameter.grad is not None and distributed.world_size() > 1:
                dist.all_reduce(parameter.grad)
                parameter.grad /= distributed.world_size()
        optimizer.step()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the accuracy over all ranks."""
        right, seen = distributed.mean(self.right), distributed.mean(float(self.seen))
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
                optimizer.load_state_dict(self._saved["optimizer"])
            self.layer, self.optimizer = layer, optimizer
            return layer, optimizer
        return self.layer, self.optimizer


def initial_weights(num_classes: int, width: int) -> Float[Tensor, "C F"]:
    """Small normal weights from a generator of their own."""
    return 0.01 * torch.randn(num_classes, width, generator=generator("OnlineProbe"))
