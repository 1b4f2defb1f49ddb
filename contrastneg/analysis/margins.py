"""A margin in the place of a temperature: which negatives of the cosine contrastive loss act at all, and how many are false."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from contrastneg.analysis.classes import Labels
from contrastneg.analysis.errors import columns_of, mean, ratio
from contrastneg.analysis.queries import Asked, Embeddings, ask_by_class

TEMPERATURES = tuple(float(t) for t in np.geomspace(0.02, 2.0, 24))


def margin_shares(
    embeddings: Embeddings,
    labels: Labels,
    *,
    margins: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8),
    queries: int = 512,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Which candidates are above the margin of the cosine contrastive loss, beside InfoNCE with as many that act.

    Negatives of the loss of SimpleX (arXiv:2109.12613), :math:`\sum_j [s_{ij} - m]_+`, have gradient 1 above the margin and
    none below. So with F the candidates of the query's class, summed over queries,

    .. math:: \text{active} = \frac{1}{Q} \sum_i \sum_j 1[s_{ij} > m] \quad
        \text{false gradient} = \frac{\sum_i |\{j \in F_i: s_{ij} > m\}|}{\sum_i |\{j: s_{ij} > m\}|}

    InfoNCE is looked at with the temperature at which the mean of its effective number of negatives, e to the entropy of
    the softmax, is the mean number of active ones: which loss then puts more of its gradient on false negatives? The
    temperature is found between 0.02 and 2 by interpolation; NaN where none does.

    Args:
        embeddings: Of all images.
        labels: Their classes.
        margins: Each m, from -1 to 1.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per margin: ``margin``; ``active`` candidates per query; ``active_false`` and ``active_true``, the shares of
        the candidates of the query's class and of others that act; ``false_gradient``, each with its standard error over
        queries, ``..._se``; ``temperature`` of InfoNCE and ``info_nce_false_gradient``, its mean share of gradient on the
        query's class; ``base_rate``.

    Raises:
        ValueError: Labels are missing, or a margin is not a cosine.
    """
    for margin in margins:
        if not -1 <= margin <= 1:
            raise ValueError(f"margins has {margin}: give cosines from -1 to 1")
    asked = ask_by_class(embeddings, labels, queries=queries, seed=seed)
    counts, softmax = _acting(asked, margins)
    base = asked.base_rate()[:, None]
    active, false = counts.unbind(dim=2)
    temperature, share = _matched(active.mean(dim=0), *softmax.mean(dim=0).unbind(dim=1))
    return asked.table(
        {
            "margin": list(margins),
            **columns_of("active", mean(active)),
            **columns_of("active_false", ratio(false, base * asked.candidates)),
            **columns_of("active_true", ratio(active - false, (1 - base) * asked.candidates)),
            **columns_of("false_gradient", ratio(false, active)),
            "temperature": temperature,
            "info_nce_false_gradient": share,
            "base_rate": float(base.mean()),
        }
    )


def _acting(
    asked: Asked, margins: Sequence[float]
) -> tuple[Float64[Tensor, "Q margins 2"], Float64[Tensor, "Q temperatures 2"]]:
    """Candidates above each margin and the false among them; effective number and share on false ones of each softmax."""
    counts = torch.empty(len(asked.rows), len(margins), 2, dtype=torch.float64)
    softmax = torch.empty(len(asked.rows), len(TEMPERATURES), 2, dtype=torch.float64)
    done = 0
    for rows, cosine in asked.parts():
        same = asked.same_class(rows)
        for place, margin in enumerate(margins):
            active = cosine > margin
            pair = torch.stack([active.sum(dim=1), (active & same).sum(dim=1)], dim=1)
            counts[done : done + len(rows), place] = pair.double()
        for place, temperature in enumerate(TEMPERATURES):
            law = (cosine / temperature).softmax(dim=1)
            pair = [torch.special.entr(law).sum(dim=1).exp(), (law * same).sum(dim=1)]
            softmax[done : done + len(rows), place] = torch.stack(pair, dim=1)
        done += len(rows)
    return counts, softmax


def _matched(
    wanted: Float64[Tensor, " margins"],
    effective: Float64[Tensor, " temperatures"],
    share: Float64[Tensor, " temperatures"],
) -> tuple[np.ndarray, np.ndarray]:
    """Temperature and share of gradient on false negatives at which as many candidates act as wanted."""
    here, scale = np.log(effective.numpy()), np.log(np.array(TEMPERATURES))
    target = np.log(wanted.clamp(min=1e-9).numpy())
    inside = (target >= here[0]) & (target <= here[-1])
    temperature = np.exp(np.interp(target, here, scale))
    return np.where(inside, temperature, np.nan), np.where(inside, np.interp(target, here, share.numpy()), np.nan)
