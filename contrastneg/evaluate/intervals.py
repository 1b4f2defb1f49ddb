"""Bootstrap intervals: how much a score would move had other test images of the same kind been drawn."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.stats import binom
from torch import Tensor

from contrastneg.randomness import generator

RESAMPLES = 2_000
CONFIDENCE = 0.95
CELLS = 2**22  # numbers of one block of resamples: 32 MiB in float64


class Interval(NamedTuple):
    """A percentile bootstrap interval of 95 %."""

    low: float
    high: float


def interval_of_mean(values: Float[Tensor, " N"], seed: int = 0, group: Int64[Tensor, " N"] | None = None) -> Interval:
    """The interval of the mean of one value per test image.

    Images of one group, for instance frames of one film, are drawn together (cluster bootstrap): they are not so many
    independent witnesses. Without groups, where every value is 0 or 1 the bootstrap distribution is binomial and its
    quantiles are exact; else they come from 2,000 resamples.

    Args:
        values: Finite, at least one.
        seed: Of the resamples.
        group: Of each image; None: every image is drawn on its own.

    Raises:
        ValueError: There is no value.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value")
    if group is not None:
        return percentiles(resampled_means(values, seed, group))
    if bool(((values == 0) | (values == 1)).all()):
        n = len(values)
        ends = binom.ppf([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], n, float(values.double().mean())) / n
        return Interval(*ends.tolist())
    return percentiles(resampled_means(values, seed))


def paired_difference(
    first: Float[Tensor, " N"],
    second: Float[Tensor, " N"],
    seed: int = 0,
    group: Int64[Tensor, " N"] | None = None,
) -> tuple[float, Interval]:
    """Mean of first - second over the same images, and its interval; images are resampled, so what both find hard cancels.

    Args:
        first: One value per image.
        second: The same images in the same order.
        seed: Of the resamples.
        group: Of each image, where those of a group are drawn together.

    Raises:
        ValueError: They are not as many, or none.
    """
    if first.shape != second.shape or not len(first):
        raise ValueError(f"paired values must be as many: got {len(first)} and {len(second)}")
    difference = first.double() - second.double()
    return float(difference.mean()), percentiles(resampled_means(difference, seed, group))


def resampled_means(
    values: Float[Tensor, " N"], seed: int, group: Int64[Tensor, " N"] | None = None
) -> Float64[Tensor, " R"]:
    """The means of 2,000 resamples with replacement, of images or of whole groups.

    Sums and sizes of groups are counted first: what is drawn is how often each different pair comes up, one multinomial
    draw per resample.
    """
    sums, sizes = values.double(), torch.ones(len(values), dtype=torch.float64)
    if group is not None:
        number = group.unique(return_inverse=True)[1]
        sizes = torch.bincount(number).double()
        sums = torch.zeros_like(sizes).index_add_(0, number, values.double())
    different, counts = torch.stack([sums, sizes], dim=1).unique(dim=0, return_counts=True)
    draws = np.random.default_rng(int(torch.randint(2**62, (), generator=generator(seed, "bootstrap"))))
    share, n = (counts / counts.sum()).numpy().astype(np.float64), int(counts.sum())
    rows = max(1, CELLS // len(different))
    totals = [
        draws.multinomial(n, share, size=min(rows, RESAMPLES - start)) @ different.numpy()
        for start in range(0, RESAMPLES, rows)
    ]
    drawn = torch.from_numpy(np.concatenate(totals))
    return drawn[:, 0] / drawn[:, 1]


def percentiles(values: Float64[Tensor, " R"]) -> Interval:
    """The middle 95 % of resampled scores."""
    ends = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    low, high = values.quantile(ends).tolist()
    return Interval(low, high)
