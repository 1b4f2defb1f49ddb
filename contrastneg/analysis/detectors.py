"""Detectors of false negatives: what each finds, how much of it is false, and which true hard negatives are lost with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from contrastneg.analysis.classes import Labels
from contrastneg.analysis.errors import numbers_of, ratio
from contrastneg.analysis.queries import (
    QUERIES,
    Asked,
    Embeddings,
    Positives,
    above_quantile,
    ask_by_class,
    check_share,
    hardest_first,
    place,
    unit_views,
)
from contrastneg.analysis.relations import Column, column_groups, sharing
from contrastneg.negatives.core import Clock, Negatives
from contrastneg.negatives.graph import knn_graph
from contrastneg.negatives.support import resembling
from contrastneg.pseudolabels import accepted, kmeans
from contrastneg.randomness import derive_seed

_END = Clock(1, 1, 0.0, 0)  # settings here are numbers: where a run stands changes none


@dataclass(frozen=True)
class _Seen:
    """What a detector may look at: never the labels."""

    asked: Asked
    rows: Int64[Tensor, " b"]
    cosine: Float64[Tensor, "b N"]
    """-inf with the query itself."""


@dataclass(frozen=True)
class _Detector:
    name: str
    find: Callable[[_Seen], Bool[Tensor, "b N"]]
    settings: Mapping[str, float] = field(default_factory=dict)
    column: str = ""


def false_negative_detectors(
    embeddings: Embeddings,
    labels: Labels,
    *,
    thresholds: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9),
    shares: Sequence[float] = (0.001, 0.01, 0.05, 0.1),
    clusters: Sequence[int] = (),
    acceptance: Sequence[float] = (0.5, 1.0),
    positives: Positives | None = None,
    support: Float[Tensor, "M S D"] | None = None,
    top: int = 10,
    support_threshold: float = 0.7,
    gaps: Sequence[float] = (),
    neighbours: Sequence[int] = (),
    columns: Mapping[str, Column] | None = None,
    hard: float = 0.05,
    queries: int = QUERIES,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Precision and recall of detectors of false negatives, and what they cost in true hard negatives.

    ================ ==============================================================================================
    above similarity :math:`s_{ij} > \theta`, for each of ``thresholds``
    quantile         :math:`s_{ij}` above the :math:`1 - \alpha` quantile of the query's candidates, for each of ``shares``:
                     the point at which the thresholds of GloFND (arXiv:2502.20612) come to rest
    clusters         candidates in the query's cluster by k-means, both among the most confident share that is accepted, for
                     each of ``clusters`` and ``acceptance``: one clustering of IFND (arXiv:2106.03719; our confidence, the
                     margin of cosines, as in :class:`contrastneg.negatives.SameCluster`)
    support views    among the ``top`` most similar to any view of the query's image and above ``support_threshold`` (FNC,
                     arXiv:2011.11765); with ``positives`` and ``support`` only
    above positive   :math:`s_{ij} > s_{i+} - g`, for each g of ``gaps``: candidates above the positive less g, see
                     :class:`contrastneg.negatives.AbovePositive`; with ``positives``
    mutual           query and candidate are each among the k nearest of the other, for each k of ``neighbours``
    metadata         the same value in a column, for each of ``columns``
    ================ ==============================================================================================

    For candidates found D, false negatives F and the hardest share H of each query, summed over queries,

    .. math:: \text{precision} = \frac{|D \cap F|}{|D|} \quad \text{recall} = \frac{|D \cap F|}{|F|} \quad
        \text{left} = \frac{|F \setminus D|}{|\text{candidates} \setminus D|} \quad
        \text{hard lost} = \frac{|D \cap H \setminus F|}{|H \setminus F|}

    Args:
        embeddings: Of all images.
        labels: Their classes: the truth, which no detector sees.
        thresholds: Cosines, from -1 to 1.
        shares: alpha, each between 0 and 1.
        clusters: Numbers of clusters; one, two and four times the classes that you expect is a fair choice.
        acceptance: Shares of images whose cluster is believed, from 0 to 1.
        positives: Positives of a second view of each image, row by row.
        support: Embeddings of S further views of each image; without them query and positive are the views.
        top: Candidates that support views find at most per query, at least 1.
        support_threshold: Cosine above which support views find.
        gaps: Each g, in cosine.
        neighbours: Each k, at least 1 and at most all candidates.
        columns: Values of metadata for each image by the name of the column; -1, NaN, None and False stand for none.
        hard: The hardest candidates, whose loss counts, as a share of all, rounded up; between 0 and 1.
        queries: How many are asked at most.
        seed: Of the draw of queries and of the clusters' starts.

    Returns:
        One row per detector and setting: ``detector``; ``threshold``, ``alpha``, ``clusters``, ``acceptance``, ``top``,
        ``gap``, ``neighbours``, NaN where the detector has no such setting; ``column``, "" where none; ``found`` per query;
        ``precision``, ``recall``, ``left`` and ``hard_lost``, each with its standard error over queries, ``..._se``;
        ``base_rate``, the precision of chance; ``hard``.

    Raises:
        ValueError: Labels are missing, support comes without positives or not for all images, there are more clusters than
            images, or a number is out of range.
    """
    check_share("hard", hard)
    asked = ask_by_class(embeddings, labels, queries=queries, seed=seed, positives=positives)
    detectors = [
        *(_above(threshold) for threshold in thresholds),
        *(_quantile(share) for share in shares),
        *(detector for number in clusters for detector in _clusters(asked, number, acceptance, seed)),
        *(_mutual(asked, number) for number in neighbours),
        *(_metadata(asked, name, column, len(embeddings)) for name, column in (columns or {}).items()),
    ]
    if positives is not None:
        detectors.append(_support(_views(support, asked, len(embeddings)), top, support_threshold))
        detectors += [_above_positive(gap) for gap in gaps]
    _check_asked(detectors, positives, support, gaps)
    found = _tallies(asked, detectors, place(hard, asked.candidates))
    return pd.concat(
        [_row(asked, d, tally) for d, tally in zip(detectors, found, strict=True)], ignore_index=True
    ).assign(base_rate=float(asked.base_rate().mean()), hard=hard)


def _check_asked(
    detectors: Sequence[_Detector], positives: Positives | None, support: Tensor | None, gaps: Sequence[float]
) -> None:
    """Refuse to do nothing, and what asks for positives without them."""
    if positives is None and (support is not None or gaps):
        what = "gaps" if support is None else "support"
        raise ValueError(f"{what} is given but positives is None: give the second view of each image, too")
    if not detectors:
        raise ValueError(
            "no detector is asked for: give thresholds, shares, clusters, neighbours, columns or positives"
        )


def _above(threshold: float) -> _Detector:
    if not -1 <= threshold <= 1:
        raise ValueError(f"thresholds has {threshold}: give cosines from -1 to 1")
    return _Detector("above similarity", lambda seen: seen.cosine > threshold, {"threshold": threshold})


def _quantile(share: float) -> _Detector:
    check_share("shares", share)
    return _Detector("quantile", lambda seen: above_quantile(seen.cosine, share), {"alpha": share})


def _clusters(asked: Asked, number: int, shares: Sequence[float], seed: int) -> list[_Detector]:
    found = kmeans(asked.x, number, seed=derive_seed(seed, "clusters"))
    believed = [found.label.masked_fill(~accepted(found.label, found.confidence, share), -1) for share in shares]

    def together(label: Int64[Tensor, " N"], seen: _Seen) -> Bool[Tensor, "b N"]:
        own = label[seen.rows][:, None]
        return (own == label) & (own >= 0) & (seen.cosine > -torch.inf)

    return [
        _Detector("clusters", partial(together, label), {"clusters": number, "acceptance": share})
        for label, share in zip(believed, shares, strict=True)
    ]


def _support(views: Float[Tensor, "N S D"], top: int, threshold: float) -> _Detector:
    if top < 1:
        raise ValueError(f"top is {top}: give at least 1")

    def find(seen: _Seen) -> Bool[Tensor, "b N"]:
        asked, rows = seen.asked, seen.rows
        assert asked.second is not None
        image_id = torch.arange(len(asked.x))
        table = Negatives.of(asked.x[rows], asked.second[rows], asked.x, query_id=rows, key_id=image_id)
        return resembling(table, views[rows], top, threshold, _END)

    return _Detector("support views", find, {"threshold": threshold, "top": top})


def _above_positive(gap: float) -> _Detector:
    def find(seen: _Seen) -> Bool[Tensor, "b N"]:
        return seen.cosine > seen.asked.positive(seen.rows)[:, None] - gap

    return _Detector("above positive", find, {"gap": gap})


def _mutual(asked: Asked, number: int) -> _Detector:
    if not 1 <= number <= asked.candidates:
        raise ValueError(f"neighbours has {number} but a query has {asked.candidates} candidates: give 1 to that")
    graph = knn_graph(asked.x, number, mutual=True)[0]

    def find(seen: _Seen) -> Bool[Tensor, "b N"]:
        near = graph[seen.rows]
        found = torch.zeros(seen.cosine.shape, dtype=torch.uint8)
        return found.scatter_reduce_(1, near.clamp(min=0), (near >= 0).to(torch.uint8), "amax").bool()

    return _Detector("mutual", find, {"neighbours": number})


def _metadata(asked: Asked, name: str, column: Column, images: int) -> _Detector:
    code = column_groups(name, column, images)[asked.position]
    return _Detector("metadata", lambda seen: sharing(code, seen.rows) & (seen.cosine > -torch.inf), column=name)


def _views(support: Tensor | None, asked: Asked, images: int) -> Float[Tensor, "N S D"]:
    """Unit support views of the images that are compared; none for each without any."""
    if support is None:
        return asked.x.new_zeros(len(asked.x), 0, asked.x.shape[1])
    return unit_views(support, asked, images)


def _tallies(asked: Asked, detectors: list[_Detector], hardest: int) -> Float64[Tensor, "detectors Q 6"]:
    """Of each query and detector: found, false among them, false in all, true hard found, true hard in all, not found."""
    # filled in place: small results kept between large tables would split the heap, and memory would grow
    tallies = torch.empty(len(detectors), len(asked.rows), 6, dtype=torch.float64)
    done = 0
    for rows, cosine in asked.parts():
        seen, false = _Seen(asked, rows, cosine), asked.same_class(rows)
        order = hardest_first(cosine)[:, :hardest]
        true_hard = torch.zeros_like(false).scatter_(1, order, True) & ~false
        for tally, detector in zip(tallies, detectors, strict=True):
            found = detector.find(seen)
            kinds = (found, found & false, false, found & true_hard, true_hard)
            counts = [kind.sum(dim=1) for kind in kinds]
            tally[done : done + len(rows)] = torch.stack([*counts, asked.candidates - counts[0]], dim=1)
        done += len(rows)
    return tallies


def _row(asked: Asked, detector: _Detector, tally: Float64[Tensor, "Q 6"]) -> pd.DataFrame:
    found, hits, false, hard_found, hard, rest = tally.unbind(dim=1)
    settings = {name: detector.settings.get(name, float("nan")) for name in _SETTINGS}
    columns = {"detector": [detector.name], **settings, "column": detector.column, "found": float(found.mean())}
    shares = {
        "precision": (hits, found),
        "recall": (hits, false),
        "left": (false - hits, rest),
        "hard_lost": (hard_found, hard),
    }
    for name, (part, whole) in shares.items():
        columns |= numbers_of(name, ratio(part, whole))
    return asked.table(columns)


_SETTINGS = ("threshold", "alpha", "clusters", "acceptance", "top", "gap", "neighbours")
