"""Features of a whole labelled set, computed without leaving a trace in the encoder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from contrastneg import distributed
from contrastneg.data.module import PretrainData

Progress = Callable[[int, int], None]
"""Called with (done, in all): epochs of a training, images of a set."""
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Features:
    """Features of N images and their labels, on the CPU, in the order of the set; images that cannot be read have no row."""

    x: Float[Tensor, "N F"]
    """Features, float32."""
    labels: Int64[Tensor, " N"]
    """Labels, -1 where unknown."""
    position: Int64[Tensor, " N"] | None = None
    """Position of each row in the set; None where there is no set."""

    def only(self, positions: Int64[Tensor, " n"]) -> "Features":
        """The rows of some positions of the set; no copy where that is all."""
        assert self.position is not None
        kept = torch.isin(self.position, positions)
        return self if kept.all() else Features(self.x[kept], self.labels[kept], self.position[kept])


def extract(
    encoder: nn.Module,
    data: PretrainData,
    split: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    only: Int64[Tensor, " n"] | None = None,
) -> Features:
    """Features and labels of the ``train`` (bank) or ``test`` (queries) images; see :func:`encode_set`."""
    x, position = encode_set(encoder, data, split, device, dtype, only)
    return Features(x, data.labels(split)[position], position)


@torch.no_grad()
def encode_set(
    encoder: nn.Module,
    data: PretrainData,
    split: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    only: Int64[Tensor, " n"] | None = None,
    progress: Progress | None = None,
) -> tuple[Float[Tensor, "N F"], Int64[Tensor, " N"]]:
    """Features and positions of a set's readable images under the evaluation transform, on the CPU, in order.

    The encoder is in evaluation mode while it works and every part of it is put back into the mode it was in; statistics,
    counters and random generators are not touched. Under data parallelism each rank does its share with the batch-norm
    statistics of rank 0, and every rank gets all rows. Images that turn out to be unreadable are left out, where the data
    allow it.

    Args:
        encoder: (B, C, S, S) to (B, F).
        data: Gives batches.
        split: "pretrain", "train" or "test".
        device: Where the encoder is.
        dtype: Arithmetic of the encoder: half precisions through autocast, float64 as it is.
        only: Positions of the images; None takes all.
        progress: Told of every batch: images done, and all.
    """
    rows, positions = [], []
    with evaluating(encoder), torch.autocast(device.type, dtype=dtype, enabled=dtype in HALF):
        for images, position in data.feature_batches(split, device, only):
            rows.append(encoder(images.double() if dtype == torch.float64 else images).float())
            positions.append(position)
            if progress is not None:
                source = data.sets[split]
                total = len(only) if only is not None else len(source) if source is not None else 0
                progress(min(total, sum(map(len, positions)) * distributed.world_size()), total)
    width = distributed.largest(rows[0].shape[1] if rows else 0)  # a rank without images learns the width from others
    own = torch.cat([torch.empty(0, width, device=device), *rows])
    order = torch.cat([torch.empty(0, dtype=torch.long), *positions]).to(device)
    x, position = distributed.all_gather(own).cpu(), distributed.all_gather(order).cpu()
    order = position.argsort()
    return x[order], position[order]


def finite_rows(x: Float[Tensor, "N F"]) -> Bool[Tensor, " N"]:
    """Which rows hold finite numbers only."""
    return x.amax(dim=1).isfinite() & x.amin(dim=1).isfinite()  # both carry NaN, and neither copies x


def check_labels(labels: Int64[Tensor, " N"], num_classes: int, where: str) -> None:
    """Refuse labels that are not among the classes, before they index anything.

    Args:
        labels: Labels, -1 unknown.
        num_classes: Number of classes.
        where: What the labels belong to, for the message.

    Raises:
        ValueError: A label is num_classes or more.
    """
    if len(labels) and int(labels.max()) >= num_classes:
        raise ValueError(
            f"label {int(labels.max())} of the {where} is not among {num_classes} classes (0 to {num_classes - 1}): "
            "give as many classes as there are, or number the labels without gaps"
        )


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """Evaluation mode with rank 0's buffers on all ranks; modes, own buffers and random generators are restored afterwards."""
    modes = [(module, module.training) for module in encoder.modules()]
    own = {name: buffer.clone() for name, buffer in encoder.named_buffers()} if distributed.world_size() > 1 else {}
    devices = {p.device for p in encoder.parameters() if p.device.type == "cuda"}
    encoder.eval()
    try:
        for name, buffer in encoder.named_buffers():
            if name in own:
                dist.broadcast(buffer, src=0)
        with torch.random.fork_rng(list(devices)):  # a loader draws its workers' seed from the global generator
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for name, buffer in encoder.named_buffers():
            if name in own:
                buffer.copy_(own[name])
