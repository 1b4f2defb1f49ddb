"""Bootstrap intervals: how much a score would move had other test images of the same kind been drawn."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
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


def interval_of_mean(values: Float[Tensor, " N"], seed: int = 0) -> Interval:
    """The interval of the mean of one value per test image.

    Where every value is 0 or 1 the bootstrap distribution is binomial and its quantiles are exact; else they come from
    2,000 resamples of the images.

    Args:
        values: Finite, at least one.
        seed: Of the resamples.

    Raises:
        ValueError: There is no value.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value")
    if bool(((values == 0) | (values == 1)).all()):
        n = len(values)
        ends = binom.ppf([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], n, float(values.double().mean())) / n
        return Interval(*ends.tolist())
    return percentiles(resampled_means(values, seed))


def paired_difference(first: Float[Tensor, " N"], second: Float[Tensor, " N"], seed: int = 0) -> tuple[float, Interval]:
    """Mean of first - second over the same images, and its interval; images are resampled, so what both find hard cancels.

    Args:
        first: One value per image.
        second: The same images in the same order.
        seed: Of the resamples.

    Raises:
        ValueError: They are not as many, or none.
    """
    if first.shape != second.shape or not len(first):
        raise ValueError(f"paired values must be as many: got {len(first)} and {len(second)}")
    difference = first.double() - second.double()
    return float(difference.mean()), percentiles(resampled_means(difference, seed))


def resampled_means(values: Float[Tensor, " N"], seed: int) -> Float64[Tensor, " R"]:
    """The means of 2,000 resamples with replacement.

    Values are counted first: what is drawn is how often each different value comes up, one multinomial draw per resample.
    """
    different, counts = values.double().unique(return_counts=True)
    draws = np.random.default_rng(int(torch.randint(2**62, (), generator=generator(seed, "bootstrap"))))
    share, n = (counts / counts.sum()).numpy().astype(np.float64), int(counts.sum())
    rows = max(1, CELLS // len(different))
    means = [
        draws.multinomial(n, share, size=min(rows, RESAMPLES - start)) @ different.numpy() / n
        for start in range(0, RESAMPLES, rows)
    ]
    return torch.from_numpy(np.concatenate(means))


def percentiles(values: Float64[Tensor, " R"]) -> Interval:
    """The middle 95 % of resampled scores."""
    ends = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    low, high = values.quantile(ends).tolist()
    return Interval(low, high)
