"""What each method would do with each candidate of some queries: the stages themselves, run on one frozen encoder."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from contrastneg.analysis.cards import mixes_for
from contrastneg.analysis.queries import above_quantile, hardest_first, quantile_count
from contrastneg.analyze.material import Material
from contrastneg.evaluate.neighbours import unit_rows
from contrastneg.negatives import AbovePositive, Clock, Facts, HardnessWeight, MoCHi, Negatives, SameCluster
from contrastneg.negatives.mixes import Pool
from contrastneg.negatives.support import resembling

AT_A_TIME = 8  # queries whose tables are in memory together
SHARE = 0.01  # of the candidates that the quantile removes
TOP, THRESHOLD = 10, 0.7  # of the support views, as released


@dataclass(frozen=True)
class Effects:
    """What methods do with R candidates of each of Q queries, all N - 1 other images being its candidates."""

    candidate: Int64[Tensor, "Q R"]
    """Row of each."""
    cosine: Float[Tensor, "Q R"]
    """Similarity."""
    positive: Float[Tensor, " Q"]
    """That of the positive."""
    gradient: Float64[Tensor, "Q R"]
    """Share of the gradient of InfoNCE on negatives."""
    removed: dict[str, Bool[Tensor, "Q R"]]
    """By each detector of false negatives."""
    weight: Float64[Tensor, "Q R"]
    """Of hardness weights, 1 on average over all candidates."""
    parents: Int64[Tensor, "Q R"]
    """Mixes of MoCHi that the candidate is a parent of."""
    share: Float64[Tensor, "Q R"]
    """Mean share of the candidate in them; NaN where it is in none."""


def effects_of(material: Material, rows: Int64[Tensor, " Q"], ranks: Sequence[int]) -> Effects:
    """Run the methods on the tables of some queries and keep what they do at some ranks.

    Args:
        material: Embeddings and positives.
        rows: The queries, among those that were asked.
        ranks: Ranks by similarity from 0, the hardest.
    """
    x = unit_rows(material.embeddings)
    clock = Clock(1, 1, 0.0, material.seed, temperature=material.temperature)
    cluster = SameCluster(clusters=(material.clusters,), acceptance=1.0, emptied="remove")
    cluster.begin(Facts(len(x), x.shape[1]))
    cluster.refresh(lambda: x, clock)
    parts = []
    for number, part in enumerate(rows.split(AT_A_TIME)):
        second = unit_rows(material.positives[part])
        table = Negatives.of(x[part], second, x, query_id=part, key_id=torch.arange(len(x)))
        parts.append(_effects(table, cluster, ranks, replace(clock, batch=number)))
    names = parts[0].removed
    joined = {
        field.name: torch.cat([getattr(p, field.name) for p in parts])
        for field in fields(Effects)
        if field.name != "removed"
    }
    return Effects(**joined, removed={name: torch.cat([p.removed[name] for p in parts]) for name in names})


def _effects(table: Negatives, cluster: SameCluster, ranks: Sequence[int], clock: Clock) -> Effects:
    """The same for the queries of one table."""
    cosine = table.similarity.masked_fill(~table.kept, -torch.inf)
    column = hardest_first(cosine.double())[:, list(ranks)]
    no_views = table.keys.new_zeros(len(cosine), 0, table.keys.shape[1])
    removed = {
        "own cluster": table.kept & ~cluster(table, clock).kept,
        "support views": resembling(table, no_views, TOP, THRESHOLD, clock),
        "above the positive": table.kept & ~AbovePositive()(table, clock).kept,
        "top 1 %": above_quantile(cosine, SHARE),
    }
    parents, share = parents_of(table, mixes_for(len(table.keys)), clock)
    return Effects(
        column,
        cosine.gather(1, column),
        table.positive_similarity,
        (cosine.double() / clock.temperature).softmax(dim=1).gather(1, column),
        {name: found.gather(1, column) for name, found in removed.items()},
        HardnessWeight()(table, clock).log_weight.double().exp().gather(1, column),
        parents.gather(1, column),
        share.gather(1, column),
    )


def parents_of(table: Negatives, mixes: MoCHi, clock: Clock) -> tuple[Int64[Tensor, "Q N"], Float64[Tensor, "Q N"]]:
    """In how many of the mixes of one step each candidate is, and its mean share in them."""
    pool = Pool.of(table, int(mixes.pool))  # type: ignore[arg-type]
    (x, y, a), (z, b) = mixes.drawn(pool, clock)
    rank, share = torch.cat([x, y, z], dim=1), torch.cat([a, 1 - a, 1 - b], dim=1).double()
    column = pool.column.gather(1, rank)
    count = torch.zeros(table.similarity.shape, dtype=torch.long).scatter_add_(1, column, torch.ones_like(column))
    total = torch.zeros(count.shape, dtype=torch.float64).scatter_add_(1, column, share)
    return count, total / count.where(count > 0, torch.nan)


def methods_of(material: Material) -> dict[str, str]:
    """Each method with its settings, in a sentence."""
    mixes = mixes_for(len(material.embeddings))
    candidates = len(material.embeddings) - 1
    pairs, singles = mixes.pair_mixes, mixes.query_mixes
    return {
        "InfoNCE": f"share of the gradient on negatives at temperature {material.temperature:g}",
        "own cluster": f"removes candidates of the query's cluster, of {material.clusters} by k-means (IFND, all believed)",
        "support views": f"removes up to {TOP} candidates most similar to the query or its view, above {THRESHOLD:g} (FNC)",
        "above the positive": "removes candidates that are more similar than the positive (the survey's filter "
        "below the positive; ASA's own rule only prefers candidates below it)",
        "top 1 %": f"removes the most similar hundredth, {quantile_count(SHARE, candidates):,} of {candidates:,} (where the "
        "thresholds of GloFND come to rest)",
        "hard weights": f"weight with beta 1, 1 on average (HCL), at temperature {material.temperature:g}",
        "MoCHi": f"parent of so many of the {pairs:,} mixes of two and {singles:,} with the query, of the {mixes.pool:,} hardest",
    }
