"""Batch norm for contrastive pairs: statistics per group of a batch, or over all devices.

With one batch statistic per device, queries and keys of one image share what only their batch knows, and the pretext task
can be solved by that. MoCo shuffles key batches across devices; on one device, normalising groups of the shuffled batch
separately does the same (the official CIFAR-10 notebook of MoCo).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pytorch_lightning.plugins.layer_sync import LayerSync
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


class SplitBatchNorm1d(nn.BatchNorm1d):
    """As :class:`SplitBatchNorm2d`, for rows of features: the batch norm of heads."""

    splits: int = 1

    def forward(self, input: Float[Tensor, "B C *L"]) -> Float[Tensor, "B C *L"]:
        """Normalise."""
        return normalise_groups(self, input) if self.training else super().forward(input)


class SplitBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that normalises groups of a training batch separately, as if each were on its own device.

    Groups are neighbouring images, so a batch must be shuffled for two views of an image to fall into different ones.
    Parameters and buffers have the names of plain batch norm, and in evaluation it is plain batch norm. Running
    statistics move towards the plain average of the groups' statistics, as in the notebook.

    Args:
        num_features: Channels C.
        splits: Groups of a batch, at least 1; sizes differ by at most one image.
        options: Further arguments of :class:`torch.nn.BatchNorm2d`.

    Raises:
        ValueError: ``splits`` is below 1, or a training batch leaves a group less than two values per channel.
    """

    def __init__(self, num_features: int, splits: int, **options) -> None:
        super().__init__(num_features, **options)
        self.splits = checked_splits(splits)

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise."""
        return normalise_groups(self, input) if self.training else super().forward(input)


class SplitBatchNormAct2d(BatchNormAct2d):
    """As :class:`SplitBatchNorm2d`, followed by the dropout and activation of timm's layer."""

    splits: int = 1
    act: Callable[[Tensor], Tensor]  # type: ignore[assignment]
    drop: Callable[[Tensor], Tensor]  # type: ignore[assignment]

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise, then activate."""
        return self.act(self.drop(normalise_groups(self, x))) if self.training else super().forward(x)


SPLIT = {
    nn.BatchNorm1d: SplitBatchNorm1d,
    nn.BatchNorm2d: SplitBatchNorm2d,
    BatchNormAct2d: SplitBatchNormAct2d,
}


def normalise_groups(norm: Any, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B C *S"]:
    """Training-mode batch norm of each of ``norm.splits`` groups of neighbouring rows, without activation.

    Args:
        norm: One of the split batch norms.
        x: The whole batch.
    """
    values = x[0, 0].numel() if len(x) else 0
    if len(x) // norm.splits * values < 2:
        raise ValueError(
            f"split batch norm parts {len(x)} images into {norm.splits} groups and each needs at least two values per "
            "channel: lower method.bn_splits or raise batch_size"
        )
    groups = x.tensor_split(norm.splits)
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return torch.cat([F.batch_norm(g, None, None, norm.weight, norm.bias, True, 0.0, norm.eps) for g in groups])
    norm.num_batches_tracked.add_(1)
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    means = norm.running_mean.repeat(norm.splits, 1)  # one row per group, each updated in place by its group
    variances = norm.running_var.repeat(norm.splits, 1)
    parts = [
        F.batch_norm(group, mean, variance, norm.weight, norm.bias, True, momentum, norm.eps)
        for group, mean, variance in zip(groups, means, variances, strict=True)
    ]
    norm.running_mean.copy_(means.mean(dim=0))
    norm.running_var.copy_(variances.mean(dim=0))
    return torch.cat(parts)


def convert_split_batch_norm(module: nn.Module, splits: int) -> nn.Module:
    """Make every batch norm of a module normalise ``splits`` groups of the batch separately, in place.

    Parameters and buffers stay the same tensors under the same names, so exports hold plain batch norm.

    Args:
        module: The encoder, with its head if that has batch norm.
        splits: Groups of a batch, at least 1.

    Returns:
        The module itself.

    Raises:
        ValueError: ``splits`` is below 1, or the module has a batch norm that cannot be split, such as a synchronised one.
    """
    checked_splits(splits)
    for name, layer in module.named_modules():
        if type(layer) in SPLIT:
            layer.__class__ = SPLIT[type(layer)]  # only forward differs
        if isinstance(layer, tuple(SPLIT.values())):
            layer.splits = splits  # type: ignore[assignment]
        elif isinstance(layer, _BatchNorm):
            raise ValueError(
                f"layer {name or 'itself'} is a {type(layer).__name__}, which cannot be split: choose method.batch_norm plain or "
                "shuffle, or another backbone"
            )
    return module


@torch.no_grad()
def fold_batch_norm_(network: nn.Module) -> None:
    """Multiply what batch norms do in evaluation into the convolutions right before them, in place: the same features, sooner.

    Only where a ``Sequential`` says that one follows the other; elsewhere something else might read the convolution, too.

    Args:
        network: In evaluation mode and for no further training.
    """
    stacks = [module for module in network.modules() if isinstance(module, nn.Sequential)]
    for layers in [stack for stack in stacks if type(stack).forward is nn.Sequential.forward]:
        for (first, conv), (second, norm) in pairwise(list(layers.named_children())):
            if (
                type(conv) is nn.Conv2d
                and isinstance(norm, nn.BatchNorm2d)
                and not isinstance(norm, BatchNormAct2d)
                and norm.track_running_stats
            ):
                setattr(layers, first, fuse_conv_bn_eval(conv, norm))
                setattr(layers, second, nn.Identity())


def checked_splits(splits: int) -> int:
    """``splits``, if it is at least 1."""
    if splits < 1:
        raise ValueError(f"bn_splits is {splits}: give at least 1")
    return splits


class SyncBatchNorm(LayerSync):
    """Synchronised batch norm for Lightning's ``Trainer(plugins=[SyncBatchNorm()])``, on GPUs.

    Lightning's own (``sync_batchnorm=True``) silently drops the activation that timm keeps inside some batch norms
    (EfficientNet and others); this keeps it.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Let every batch norm take its statistics over all processes; names and values stay."""
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Nothing to do: in evaluation, synchronised batch norm is plain batch norm."""
        return model
