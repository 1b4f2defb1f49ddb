"""Estimates of the negative term of the loss beside the truth by labels: what false negatives do to it, and each cure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from contrastneg.analysis.classes import EstimatedClasses, Labels, of_images
from contrastneg.analysis.errors import mean
from contrastneg.analysis.queries import (
    QUERIES,
    Asked,
    Embeddings,
    Positives,
    ask_by_class,
    check_above_0,
    weighted_sum,
)
from contrastneg.logsumexp import table_logsumexp
from contrastneg.losses import debiased_logsumexp, tilted_logsumexp

ORACLE, HARD_ORACLE = "oracle", "hard oracle"
KEPT, TRUE, OUTSIDE = "all candidates", "those of other classes", "those of other clusters"


@dataclass(frozen=True)
class _Row:
    """A row of the table: an estimate, what it is compared with, and the mean that it is made of."""

    estimate: str
    target: str
    among: str
    tilted: bool
    class_prior: float = math.nan
    """Of the debiased estimates; NaN leaves the mean as it is."""


@dataclass(frozen=True)
class _Term:
    """A mean term of some queries."""

    log_value: Float64[Tensor, " b"]
    gradient: Float64[Tensor, "b D"]
    """Of the logarithm, with respect to the unit queries."""
    floored: Bool[Tensor, " b"]
    """Queries at the floor of a debiased estimate."""


def negative_terms(
    embeddings: Embeddings,
    labels: Labels,
    positives: Positives,
    *,
    temperature: float = 0.5,
    class_priors: Sequence[float | None] = (None,),
    beta: float = 1.0,
    clusters: EstimatedClasses | None = None,
    size_groups: int = 1,
    queries: int = QUERIES,
    seed: int = 0,
) -> pd.DataFrame:
    r"""The mean negative term of each query, estimated in several ways, against that of its true negatives.

    ================== ============================================================================================
    biased             :math:`g = \mathrm{mean}_j\, e^{s_{ij}/t}` over all candidates: what InfoNCE takes
    debiased           :math:`\max\{(g - \tau e^{s_{i+}/t}) / (1 - \tau),\, e^{-1/t}\}` (arXiv:2007.00224)
    hard-weighted      the same with g the mean under weights :math:`e^{\beta s_{ij}/t}` (HCL, arXiv:2010.04592)
    cluster-eliminated mean over the candidates outside of the query's cluster, over all where none are (as IFND,
                       arXiv:2106.03719, with every pseudo-label believed)
    oracle             mean over the candidates of other classes: the truth
    hard oracle        the same under the weights of hard-weighted: its truth
    ================== ============================================================================================

    For an estimate g and its truth :math:`g^*`, with gradients of :math:`\log g` with respect to the unit query,

    .. math:: \text{log error} = \overline{\log g - \log g^*} \quad \text{relative error} = \overline{|g / g^* - 1|} \quad
        \text{cosine} = \overline{\cos(\nabla \log g, \nabla \log g^*)}

    Args:
        embeddings: Of all images.
        labels: Their classes, for the truth.
        positives: Positives of a second view of each image, row by row: the positive of each query.
        temperature: t above 0.
        class_priors: Each :math:`\tau` in [0, 1); None stands for the mean share of candidates that are of the query's class.
        beta: Tilt of the hard-weighted estimate in units of 1 / t, at least 0.
        clusters: Clusters, one per image; none leaves the cluster-eliminated estimate out.
        size_groups: Parts into which queries are cut by the size of their class, small classes first, as even as classes
            allow: estimates err otherwise for rare classes than for frequent ones. At least 1.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per part, estimate and prior: ``size_group`` from 0; ``smallest`` and ``largest`` class in it, in images;
        ``group_queries``; ``estimate``; ``target``, what it is compared with; ``class_prior``, NaN where it has
        none; ``term``, the mean of g; ``log_error``, ``relative_error``, ``gradient_cosine``, each with its standard error
        over queries, ``..._se``; ``floored``, share of queries at the floor of a debiased estimate; ``temperature``, ``beta``.

    Raises:
        ValueError: Labels are missing, positives or clusters are not as many as images, or a number is out of range.
    """
    check_above_0("temperature", temperature)
    check_above_0("size_groups", size_groups)
    if beta < 0:
        raise ValueError(f"beta is {beta}: give at least 0")
    asked = ask_by_class(embeddings, labels, queries=queries, seed=seed, positives=positives)
    share = float(asked.base_rate().mean())
    priors = [share if prior is None else prior for prior in class_priors]
    cluster_of = None if clusters is None else of_images(clusters, len(embeddings), "clusters")[asked.position]
    if not all(0 <= prior < 1 for prior in priors):
        raise ValueError(f"class_priors is {priors}: give numbers of at least 0 and below 1")
    rows = _rows(priors, clustered=cluster_of is not None)
    found = _found(asked, rows, cluster_of, temperature, beta)
    tables = [
        _table(asked, row, part[members], size)
        for members, size in _size_groups(asked, size_groups)
        for row, part in zip(rows, found, strict=True)
    ]
    return pd.concat(tables, ignore_index=True).assign(temperature=temperature, beta=beta)


def _found(
    asked: Asked, rows: list[_Row], cluster_of: Int64[Tensor, " N"] | None, temperature: float, beta: float
) -> list[Float64[Tensor, "Q 5"]]:
    """What each estimate comes to for each query, see :func:`_compared`."""
    parts: list[list[Tensor]] = [[] for _ in rows]
    for queries_now, cosine in asked.parts():
        terms = _Terms(asked, queries_now, cosine, cluster_of, temperature, beta)
        truth = {ORACLE: terms.mean(TRUE, tilted=False), HARD_ORACLE: terms.mean(TRUE, tilted=True)}
        for row, found in zip(rows, parts, strict=True):
            term = terms.mean(row.among, tilted=row.tilted)
            if not math.isnan(row.class_prior):
                term = terms.debiased(term, row.class_prior)
            found.append(_compared(term, truth[row.target]))
    return [torch.cat(found) for found in parts]


def _size_groups(asked: Asked, number: int) -> list[tuple[Bool[Tensor, " Q"], dict[str, int]]]:
    """Queries of each part by the size of their class; classes of one size are in one part."""
    size = asked.labels.bincount()[asked.labels[asked.rows]]
    place = (torch.searchsorted(size.sort().values, size) * number).div(len(size), rounding_mode="floor")
    groups = []
    for group in place.unique().tolist():
        members = place == group
        smallest, largest = (int(end) for end in size[members].aminmax())
        about = {"size_group": group, "smallest": smallest, "largest": largest, "group_queries": int(members.sum())}
        groups.append((members, about))
    return groups


class _Terms:
    """Negative terms of some queries. Each mean is taken once, whatever estimates are made of it: it costs a pass over all images."""

    def __init__(
        self,
        asked: Asked,
        rows: Int64[Tensor, " b"],
        cosine: Float64[Tensor, "b N"],
        cluster_of: Int64[Tensor, " N"] | None,
        temperature: float,
        beta: float,
    ) -> None:
        assert asked.second is not None
        self.asked, self.temperature, self.beta = asked, temperature, beta
        kept = cosine > -torch.inf
        self.among = {KEPT: kept, TRUE: kept & ~asked.same_class(rows)}
        if cluster_of is not None:
            own = cluster_of[rows][:, None]
            outside = kept & ~((cluster_of == own) & (own >= 0))
            self.among[OUTSIDE] = torch.where(outside.any(dim=1, keepdim=True), outside, kept)
        self.similarity = cosine.masked_fill(~kept, 0).requires_grad_()
        self.positive_key = asked.second[rows].double()
        self.positive = asked.positive(rows).requires_grad_()
        self._means: dict[tuple[str, bool], _Term] = {}

    def mean(self, among: str, *, tilted: bool) -> _Term:
        """The mean over some candidates, plain or under the law tilted by beta."""
        tilted = tilted and self.beta > 0
        if (among, tilted) not in self._means:
            self._means[among, tilted] = self._mean(among, tilted=tilted)
        return self._means[among, tilted]

    def _mean(self, among: str, *, tilted: bool) -> _Term:
        log_weight = self.among[among].double().log()
        count = self.among[among].sum(dim=1).double().log()
        log_mean = self._tilted(log_weight, count) if tilted else self._sum(log_weight, 1.0) - count
        (by_similarity,) = torch.autograd.grad(log_mean.sum(), [self.similarity])
        gradient = weighted_sum(by_similarity, self.asked.x)
        return _Term(log_mean.detach(), gradient, torch.zeros_like(log_mean, dtype=torch.bool))

    def _tilted(self, log_weight: Float64[Tensor, "b N"], count: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        raised, weights = self._sum(log_weight, 1 + self.beta), self._sum(log_weight, self.beta)
        return tilted_logsumexp(raised, weights, count, beta=self.beta) - count

    def _sum(self, log_weight: Float64[Tensor, "b N"], power: float) -> Float64[Tensor, " b"]:
        return table_logsumexp(self.similarity, log_weight, temperature=self.temperature / power)

    def debiased(self, mean: _Term, class_prior: float) -> _Term:
        """The mean without what candidates of the query's class are expected to add; the gradient follows by the chain rule."""
        log_mean = mean.log_value.clone().requires_grad_()
        # of a single candidate: the mean in the place of the sum
        term, floored = debiased_logsumexp(
            self.positive,
            log_mean,
            torch.zeros_like(log_mean),
            temperature=self.temperature,
            class_prior=class_prior,
        )
        by_mean, by_positive = torch.autograd.grad(
            term.sum(), [log_mean, self.positive], allow_unused=True, materialize_grads=True
        )
        gradient = by_mean[:, None] * mean.gradient + by_positive[:, None] * self.positive_key
        return _Term(term.detach(), gradient, floored)


def _rows(priors: list[float], *, clustered: bool) -> list[_Row]:
    return [
        _Row("biased", ORACLE, KEPT, tilted=False),
        *(_Row("debiased", ORACLE, KEPT, tilted=False, class_prior=prior) for prior in priors),
        *(_Row("hard-weighted", HARD_ORACLE, KEPT, tilted=True, class_prior=prior) for prior in priors),
        *([_Row("cluster-eliminated", ORACLE, OUTSIDE, tilted=False)] if clustered else []),
        _Row(ORACLE, ORACLE, TRUE, tilted=False),
        _Row(HARD_ORACLE, HARD_ORACLE, TRUE, tilted=True),
    ]


def _compared(found: _Term, truth: _Term) -> Float64[Tensor, "b 5"]:
    """Term, log error, relative error, cosine of gradients and whether at the floor, of each query."""
    log_ratio = found.log_value - truth.log_value
    cosine = torch.nn.functional.cosine_similarity(found.gradient, truth.gradient, dim=1, eps=1e-300)
    columns = [found.log_value.exp(), log_ratio, log_ratio.expm1().abs(), cosine, found.floored.double()]
    return torch.stack(columns, dim=1)


def _table(asked: Asked, row: _Row, found: Float64[Tensor, "q 5"], group: dict[str, int]) -> pd.DataFrame:
    values, errors = (part.tolist() for part in mean(found))
    columns = {"estimate": [row.estimate], "target": row.target, "class_prior": row.class_prior, **group}
    names = ("term", "log_error", "relative_error", "gradient_cosine")
    for name, value, error in zip(names, values, errors, strict=False):
        columns |= {name: value, f"{name}_se": error}
    return asked.table({**columns, "floored": values[-1]})
