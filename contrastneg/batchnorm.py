"""Batch norm for contrastive pairs: statistics per group of a batch, or over all devices.

With one batch statistic per device, queries and keys of one image share what only their batch knows, and the pretext task
can be solved by that. MoCo shuffles key batches across devices; on one device, normalising groups of the batch
separately does the same (the official CIFAR-10 notebook of MoCo).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import BatchNormAct2d
from torch import Tensor, nn


class SplitBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that normalises groups of a training batch separately, as if each were on its own device.

    Parameters and buffers have the names of plain batch norm, and in evaluation it is plain batch norm. Running
    statistics move towards the average of the groups' statistics.

    Args:
        num_features: Channels C.
        splits: Groups of a batch, at least 1; sizes differ by at most one image.
        options: Further arguments of :class:`torch.nn.BatchNorm2d`.
    """

    def __init__(self, num_features: int, splits: int, **options) -> None:
        super().__init__(num_features, **options)
        if splits < 1:
            raise ValueError(f"bn_splits is {splits}: give at least 1")
        self.splits = splits

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise."""
        return self.normalised(input)

    def normalised(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise group by group in training, with the running statistics in evaluation."""
        if not self.training or self.splits == 1:
            return super().forward(input)
        if len(input) < self.splits or len(input) // self.splits * input[0, 0].numel() < 2:
            raise ValueError(
                f"split batch norm parts {len(input)} images into {self.splits} groups and each needs at least two "
                "values per channel: lower bn_splits or raise batch_size"
            )
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        means, variances, parts = [], [], []
        for group in input.tensor_split(self.splits):
            means.append(self.running_mean.clone())
            variances.append(self.running_var.clone())
            parts.append(
                F.batch_norm(group, means[-1], variances[-1], self.weight, self.bias, True, momentum, self.eps)
            )
        with torch.no_grad():
            self.running_mean.copy_(torch.stack(means).mean(dim=0))
            self.running_var.copy_(torch.stack(variances).mean(dim=0))
        return torch.cat(parts)


class SplitBatchNormAct2d(SplitBatchNorm2d):
    """Split batch norm followed by the dropout and activation of timm's :class:`BatchNormAct2d`."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise, then activate."""
        return self.act(self.drop(self.normalised(input)))


def convert_split_batch_norm(module: nn.Module, splits: int) -> nn.Module:
    """Replace every 2-d batch norm in a module; names and values of parameters and buffers stay.

    Args:
        module: The encoder; changed in place.
        splits: Groups of a batch.

    Returns:
        The module (a new one if it is itself a batch norm).
    """
    for name, child in module.named_children():
        module._modules[name] = convert_split_batch_norm(child, splits)
    if not isinstance(module, nn.BatchNorm2d) or isinstance(module, SplitBatchNorm2d):
        return module
    options = {"eps": module.eps, "momentum": module.momentum, "affine": module.affine}
    if isinstance(module, BatchNormAct2d):
        split = SplitBatchNormAct2d(module.num_features, splits, **options)
        split.drop, split.act = module.drop, module.act
    else:
        split = SplitBatchNorm2d(module.num_features, splits, **options)
    split.load_state_dict(module.state_dict(), strict=False)
    return split.train(module.training)
