"""Laws that negatives may be drawn by: what popularity to a power costs in false negatives, and what a tilt saves in variance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from contrastneg.analysis.classes import Labels
from contrastneg.analysis.errors import columns_of, mean, numbers_of
from contrastneg.analysis.queries import (
    QUERIES,
    Asked,
    Embeddings,
    ask,
    ask_by_class,
    ask_either,
    check_above_0,
    filled,
    weighted_sum,
)
from contrastneg.negatives.graph import knn_graph
from contrastneg.randomness import generator

EXPONENTS = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0)
TILTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def exponent_sweep(
    embeddings: Embeddings,
    labels: Labels,
    popularity: Mapping[str, Tensor | np.ndarray | pd.Series | Sequence[float]] | None = None,
    *,
    exponents: Sequence[float] = EXPONENTS,
    floor: float = 1.0,
    queries: int = QUERIES,
    seed: int = 0,
) -> pd.DataFrame:
    r"""What it costs and brings to draw negatives by a power of their popularity: exact expectations, nothing is drawn.

    With f the popularity of an image and the law of query i over its candidates

    .. math:: \pi_{ij} = \frac{\max(f_j, floor)^\alpha}{\sum_{l \ne i} \max(f_l, floor)^\alpha}

    ============== ================================================================================================
    false_rate     :math:`\frac{1}{Q} \sum_i \sum_j \pi_{ij} 1[y_j = y_i]`: expected rate of false negatives
    similarity     :math:`\frac{1}{Q} \sum_i \sum_j \pi_{ij} s_{ij}`: how hard what is drawn is
    effective      :math:`1 / \sum_j \pi_j^2` over all images: among how many the draws are spread
    classes_drawn  e to the entropy of the class of a draw: among how many classes they are spread
    ============== ================================================================================================

    With class size as popularity and classes of n images the false rate is about
    :math:`\sum_c p_c n_c^{1 + \alpha} / \sum_d n_d^{1 + \alpha}` with p_c the share of queries, which rises with
    :math:`\alpha`. These are powers at entry level: 0 is a queue, and word2vec's 0.75 over types is -0.25 here
    (arXiv:1310.4546; see :class:`contrastneg.negatives.PopularSubset`).

    Args:
        embeddings: Of all images.
        labels: Their classes.
        popularity: Numbers of at least 0 for each image by the name of what they are, for instance the ``occurrence`` of
            :func:`k_occurrence`, the ``hits`` of :func:`hardness_hits` without labels, or sizes of clusters. None is the
            size of the image's class.
        exponents: Each alpha.
        floor: Least popularity of an image, above 0.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per popularity and exponent: ``popularity``, ``exponent``; ``false_rate`` and ``similarity``, each with its
        standard error over queries, ``..._se``; ``effective``, ``classes_drawn``; ``base_rate``, the false rate at 0.

    Raises:
        ValueError: Labels are missing, or popularity is not one number of at least 0 for each image.
    """
    check_above_0("floor", floor)
    asked = ask_by_class(embeddings, labels, queries=queries, seed=seed)
    if popularity is None:
        known = {"class size": asked.labels.bincount()[asked.labels].double()}
    else:
        known = {name: _numbers(name, values, len(embeddings))[asked.position] for name, values in popularity.items()}
    rows = [
        {"popularity": [name], "exponent": exponent, **_drawn_by(asked, values.clamp(min=floor).log() * exponent)}
        for name, values in known.items()
        for exponent in exponents
    ]
    base = float(asked.base_rate().mean())
    return pd.concat([asked.table({**row, "base_rate": base}) for row in rows], ignore_index=True)


def partition_variance(
    embeddings: Embeddings,
    labels: Labels = None,
    *,
    tilts: Sequence[float] = TILTS,
    negatives: int = 256,
    draws: int = 64,
    temperature: float = 0.2,
    queries: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    r"""How well M weighted draws estimate the partition sum of all candidates, by how far their law leans to hard ones.

    The law of MCNS (arXiv:2005.09863) draws candidate j with

    .. math:: \pi_{ij} \propto p_{ij}^a, \qquad p_{ij} = \frac{e^{s_{ij}/t}}{Z_i}, \quad Z_i = \sum_j e^{s_{ij}/t}

    and :math:`\hat Z = \frac{1}{M} \sum_m e^{s_{im}/t} / \pi_{im}` is unbiased for Z with

    .. math:: M \, \mathrm{Var}(\hat Z / Z) = \sum_j \frac{p_{ij}^2}{\pi_{ij}} - 1
        = \sum_j p_{ij}^{2 - a} \sum_j p_{ij}^a - 1

    which is 0 at a = 1 (ours: importance sampling; the paper argues from another error, for a sub-linear power, which we
    have not verified). What it says nothing of is that the rate of false negatives, beside it here, rises as well. The
    variance of log Z is that of R simulated estimates.

    Args:
        embeddings: Of all images.
        labels: Classes for ``false_rate``, which is NaN without.
        tilts: Each a.
        negatives: M, at least 1, drawn with replacement.
        draws: R, at least 2.
        temperature: t above 0.
        queries: How many are asked at most.
        seed: Of the draws of queries and of candidates.

    Returns:
        One row per tilt: ``tilt``; ``variance``, that of Z-hat over Z, by the formula; ``log_variance`` and ``log_bias``, of
        the simulated logarithms; ``effective``, e to the entropy of the law; ``false_rate``, expected; each a mean over
        queries with its standard error, ``..._se``; ``negatives``, ``draws``, ``temperature``.

    Raises:
        ValueError: A number is out of range.
    """
    check_above_0("temperature", temperature)
    check_above_0("negatives", negatives)
    if draws < 2:
        raise ValueError(f"draws is {draws}: a variance needs at least 2")
    asked = ask_either(embeddings, labels, queries=queries, seed=seed)
    found = filled(
        (len(asked.rows), len(tilts), 5),
        (
            _simulated(asked, rows, cosine / temperature, tilts, (draws, negatives), seed)
            for rows, cosine in asked.parts()
        ),
    )
    names = ("variance", "log_variance", "log_bias", "effective", "false_rate")
    columns: dict[str, Any] = {"tilt": list(tilts)}
    for number, name in enumerate(names):
        classed = torch.nan if asked.label is None and name == "false_rate" else 1.0
        columns |= columns_of(name, mean(classed * found[:, :, number]))
    return asked.table({**columns, "negatives": negatives, "draws": draws, "temperature": temperature})


def chain_mixing(
    embeddings: Embeddings,
    *,
    tilts: Sequence[float] = TILTS,
    moves: Sequence[int] = (0, 1, 2, 5, 10, 20, 50, 100),
    neighbours: int = 20,
    temperature: float = 0.2,
    images: int = 1000,
    queries: int = 16,
    seed: int = 0,
) -> pd.DataFrame:
    r"""How many moves a Metropolis-Hastings chain of MCNS needs to forget where it began: exact, no chain is run.

    The chain of :class:`contrastneg.negatives.MetropolisChain` proposes any of n images, or a neighbour of where it stands,
    with probability one half each, and accepts by the ratio of Hastings for the target
    :math:`\pi_{ij} \propto e^{a s_{ij} / t}`. With T the matrix of its moves and :math:`\mu_0` uniform over the candidates,

    .. math:: \mathrm{TV}(m) = \frac{1}{2} \sum_j | (\mu_0 T^m)_j - \pi_{ij} | \qquad
        \text{acceptance} = \sum_x \pi_{ix} \sum_{y \ne x} T_{xy}

    The matrix has n squared entries, so that images are a sample; chains over all images need more moves.

    Args:
        embeddings: Of all images.
        tilts: Each a: 0 is uniform, 1 the law of positives.
        moves: Each m, 0 or more.
        neighbours: Of each image in the graph of nearest ones.
        temperature: t above 0.
        images: Images that are candidates at most, drawn by the seed.
        queries: How many of them are asked at most.
        seed: Of the draws of images and of queries.

    Returns:
        One row per tilt and number of moves: ``tilt``, ``moves``; ``total_variation`` and ``acceptance``, means over queries
        each with its standard error, ``..._se``; ``neighbours``, ``temperature``.

    Raises:
        ValueError: A number is out of range.
    """
    check_above_0("temperature", temperature)
    check_above_0("neighbours", neighbours)
    check_above_0("images", images)
    if not moves or min(moves) < 0:
        raise ValueError(f"moves is {list(moves)}: give numbers of at least 0")
    everybody = torch.randperm(len(embeddings), generator=generator(seed, "images"))[:images].sort().values
    asked = ask(torch.as_tensor(embeddings)[everybody], queries=queries, seed=seed)
    proposal = _proposals(asked, neighbours)
    tables = [
        asked.table({"tilt": tilt, "moves": list(moves), **_mixing(asked, tilt, temperature, proposal, moves)})
        for tilt in tilts
    ]
    return pd.concat(tables, ignore_index=True).assign(neighbours=neighbours, temperature=temperature)


def _numbers(name: str, values: Any, images: int) -> Float64[Tensor, " N"]:
    plain = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, dtype=np.float64))
    numbers = plain.double()
    if len(numbers) != images:
        raise ValueError(f"popularity has {len(numbers)} entries for {name} but there are {images} images")
    if not bool((numbers >= 0).all()):  # NaN is not
        raise ValueError(f"popularity has a number for {name} that is not at least 0: give one for each image")
    return numbers


def _drawn_by(asked: Asked, log_law: Float64[Tensor, " N"]) -> dict[str, float]:
    """Expectations under a law over all images, the query left out."""
    law = log_law.softmax(dim=0)
    rest = 1 - law[asked.rows]
    of_class = torch.zeros(len(asked.class_names), dtype=torch.float64).index_add_(0, asked.labels, law)
    false = (of_class[asked.labels[asked.rows]] - law[asked.rows]) / rest
    centre = weighted_sum(law[None], asked.x)
    query = asked.x[asked.rows].double()
    similarity = ((query @ centre.T).squeeze(1) - law[asked.rows] * query.square().sum(dim=1)) / rest
    return {
        **numbers_of("false_rate", mean(false)),
        **numbers_of("similarity", mean(similarity)),
        "effective": 1 / float(law.square().sum()),
        "classes_drawn": float(torch.special.entr(of_class).sum().exp()),
    }


def _simulated(
    asked: Asked,
    rows: Int64[Tensor, " b"],
    logits: Float64[Tensor, "b N"],
    tilts: Sequence[float],
    draws: tuple[int, int],
    seed: int,
) -> Float64[Tensor, "b tilts 5"]:
    """What each law gives each query, see :func:`_estimated`, all laws from the same random numbers."""
    same = torch.zeros_like(logits, dtype=torch.bool) if asked.label is None else asked.same_class(rows)
    found = torch.empty(len(rows), len(tilts), 5, dtype=torch.float64)
    for part, row, logit, false in zip(found, rows.tolist(), logits, same, strict=True):
        uniform = torch.rand(draws, generator=generator(seed, "partition", row), dtype=torch.float64)
        for values, tilt in zip(part, tilts, strict=True):
            values.copy_(_estimated(logit, false, tilt, uniform))
    return found


def _estimated(
    logit: Float64[Tensor, " N"], false: Bool[Tensor, " N"], tilt: float, uniform: Float64[Tensor, "R M"]
) -> Float64[Tensor, " 5"]:
    """What the law of one query gives: variance by the formula, simulated variance and bias, entropy, false rate."""
    log_p = logit.log_softmax(dim=0)  # -inf for the query itself
    log_law = (tilt * log_p).masked_fill(log_p == -torch.inf, -torch.inf).log_softmax(dim=0)
    law = log_law.exp()
    log_worth = (log_p - log_law).nan_to_num(nan=-torch.inf)  # of a draw, in units of Z
    exact = (law * log_worth.exp().square()).sum() - 1
    ends = law.cumsum(dim=0)
    drawn = torch.searchsorted(ends, uniform * ends[-1], right=True).clamp(max=len(law) - 1)
    log_sum = log_worth[drawn].logsumexp(dim=1) - torch.tensor(uniform.shape[1], dtype=torch.float64).log()
    effective = torch.special.entr(law).sum().exp()
    moments = (exact / uniform.shape[1], log_sum.var(), log_sum.mean(), effective, law[false].sum())
    return torch.stack(moments)


def _proposals(asked: Asked, neighbours: int) -> Float64[Tensor, "N N"]:
    """Probability of each image to be proposed from each: any with one half, a neighbour with the other."""
    n, count = len(asked.x), min(neighbours, asked.candidates)
    edges: Int64[Tensor, "N k"] = knn_graph(asked.x, count)[0]
    near = torch.zeros(n, n, dtype=torch.float64).scatter_(1, edges, 1 / count)
    return (near + 1 / n) / 2


def _mixing(
    asked: Asked, tilt: float, temperature: float, proposal: Float64[Tensor, "N N"], moves: Sequence[int]
) -> dict[str, Tensor | float]:
    """Distance after each number of moves, and acceptance, of the chains of all queries with one target."""
    courses = [
        _course(torch.softmax(logit * tilt / temperature, dim=0), proposal, row, moves)
        for rows, cosine in asked.parts()
        for row, logit in zip(rows.tolist(), cosine.masked_fill(cosine == -torch.inf, -1e300), strict=True)
    ]
    distance, accepted = torch.stack([course for course, _ in courses]), torch.tensor([a for _, a in courses])
    return {**columns_of("total_variation", mean(distance)), **numbers_of("acceptance", mean(accepted))}


def _course(
    target: Float64[Tensor, " N"], proposal: Float64[Tensor, "N N"], own: int, moves: Sequence[int]
) -> tuple[Float64[Tensor, " moves"], float]:
    """Distance to the target after each number of moves, and the rate of acceptance there."""
    target = target.clone().index_fill_(0, torch.tensor([own]), 0.0)
    target = target / target.sum()
    flow = target[:, None] * proposal
    step = torch.minimum(flow, flow.T) / target[:, None].clamp(min=torch.finfo(torch.float64).tiny)
    step.fill_diagonal_(0)
    leaving = step.sum(dim=1)
    law = torch.full_like(target, 1 / (len(target) - 1)).index_fill_(0, torch.tensor([own]), 0.0)
    distance = []
    for _ in range(max(moves) + 1):
        distance.append(float((law - target).abs().sum()) / 2)
        law = law @ step + law * (1 - leaving)
    return torch.tensor([distance[move] for move in moves], dtype=torch.float64), float((target * leaving).sum())
