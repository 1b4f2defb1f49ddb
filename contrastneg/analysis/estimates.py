"""Estimates of the negative term of the loss beside the truth by labels: what false negatives do to it, and each cure."""

from collections.abc import Callable, Sequence
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
from contrastneg.losses.rows import log_count

ORACLE, HARD_ORACLE = "oracle", "hard oracle"


@dataclass(frozen=True)
class _Row:
    """A row of the table: an estimate, what it is compared with, and how it is made."""

    estimate: str
    target: str
    term: Callable[["_Terms"], tuple[Tensor, Tensor | None]]
    """Log of the mean term of each query, and the queries at the floor of the debiased estimate."""
    class_prior: float = float("nan")


def negative_terms(
    embeddings: Embeddings,
    labels: Labels,
    positives: Positives,
    *,
    temperature: float = 0.5,
    class_priors: Sequence[float] | None = None,
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
        class_priors: Each :math:`\tau` in [0, 1); none takes the share of candidates that are of the query's class.
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
    priors = [float(asked.base_rate().mean())] if class_priors is None else list(class_priors)
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
        truth = {
            name: terms.measured(terms.true_negatives(tilted=name == HARD_ORACLE)) for name in (ORACLE, HARD_ORACLE)
        }
        for row, found in zip(rows, parts, strict=True):
            found.append(_compared(terms.measured(row.term(terms)), truth[row.target]))
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
    """Negative terms of some queries, differentiable in their similarities."""

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
        self.kept = cosine > -torch.inf
        self.true = self.kept & ~asked.same_class(rows)
        self.outside = self.kept
        if cluster_of is not None:
            own = cluster_of[rows][:, None]
            outside = self.kept & ~((cluster_of == own) & (own >= 0))
            self.outside = torch.where(outside.any(dim=1, keepdim=True), outside, self.kept)
        self.similarity = cosine.masked_fill(~self.kept, 0).requires_grad_()
        self.positive_key = asked.second[rows].double()
        self.positive = asked.positive(rows).requires_grad_()

    def over(self, among: Bool[Tensor, "b N"]) -> tuple[Tensor, None]:
        log_weight = among.double().log()
        mass = table_logsumexp(self.similarity, log_weight, temperature=self.temperature)
        return mass - log_count(self.similarity, log_weight), None

    def tilted(self, among: Bool[Tensor, "b N"]) -> Tensor:
        if self.beta == 0:
            return self.over(among)[0]
        log_weight = among.double().log()
        count = log_count(self.similarity, log_weight)
        raised = table_logsumexp(self.similarity, log_weight, temperature=self.temperature / (1 + self.beta))
        weights = table_logsumexp(self.similarity, log_weight, temperature=self.temperature / self.beta)
        return tilted_logsumexp(raised, weights, count, beta=self.beta) - count

    def true_negatives(self, *, tilted: bool) -> tuple[Tensor, None]:
        return (self.tilted(self.true), None) if tilted else self.over(self.true)

    def debiased(self, class_prior: float, *, tilted: bool) -> tuple[Tensor, Tensor]:
        mean_term = self.tilted(self.kept) if tilted else self.over(self.kept)[0]
        # of a single candidate: the mean in the place of the sum
        return debiased_logsumexp(
            self.positive,
            mean_term,
            torch.zeros_like(mean_term),
            temperature=self.temperature,
            class_prior=class_prior,
        )

    def measured(
        self, term: tuple[Tensor, Tensor | None]
    ) -> tuple[Float64[Tensor, " b"], Float64[Tensor, "b D"], Bool[Tensor, " b"]]:
        """Log mean term, its gradient with respect to the unit queries, and whether it is at the floor."""
        log_mean, floored = term
        by_similarity, by_positive = torch.autograd.grad(
            log_mean.sum(), [self.similarity, self.positive], allow_unused=True
        )
        gradient = weighted_sum(by_similarity, self.asked.x)
        if by_positive is not None:
            gradient = gradient + by_positive[:, None] * self.positive_key
        floored = torch.zeros_like(log_mean, dtype=torch.bool) if floored is None else floored
        return log_mean.detach(), gradient, floored


def _rows(priors: list[float], *, clustered: bool) -> list[_Row]:
    rows = [_Row("biased", ORACLE, lambda terms: terms.over(terms.kept))]
    for prior in priors:
        rows.append(_Row("debiased", ORACLE, lambda terms, prior=prior: terms.debiased(prior, tilted=False), prior))
    for prior in priors:
        rows.append(
            _Row("hard-weighted", HARD_ORACLE, lambda terms, prior=prior: terms.debiased(prior, tilted=True), prior)
        )
    if clustered:
        rows.append(_Row("cluster-eliminated", ORACLE, lambda terms: terms.over(terms.outside)))
    rows.append(_Row(ORACLE, ORACLE, lambda terms: terms.true_negatives(tilted=False)))
    rows.append(_Row(HARD_ORACLE, HARD_ORACLE, lambda terms: terms.true_negatives(tilted=True)))
    return rows


def _compared(found: tuple[Tensor, Tensor, Tensor], truth: tuple[Tensor, Tensor, Tensor]) -> Float64[Tensor, "b 5"]:
    """Term, log error, relative error, cosine of gradients and whether at the floor, of each query."""
    log_ratio = found[0] - truth[0]
    cosine = torch.nn.functional.cosine_similarity(found[1], truth[1], dim=1, eps=1e-300)
    columns = [found[0].exp(), log_ratio, log_ratio.expm1().abs(), cosine, found[2].double()]
    return torch.stack(columns, dim=1)


def _table(asked: Asked, row: _Row, found: Float64[Tensor, "q 5"], group: dict[str, int]) -> pd.DataFrame:
    values, errors = (part.tolist() for part in mean(found))
    columns = {"estimate": [row.estimate], "target": row.target, "class_prior": row.class_prior, **group}
    names = ("term", "log_error", "relative_error", "gradient_cosine")
    for name, value, error in zip(names, values, errors, strict=False):
        columns |= {name: value, f"{name}_se": error}
    return asked.table({**columns, "floored": values[-1]})
