"""A card for each sampler: which candidates its stages leave or make on a frozen encoder, and whose sampler agrees with it."""

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from contrastneg.analysis.classes import Labels
from contrastneg.analysis.errors import mean, numbers_of, ratio
from contrastneg.analysis.queries import (
    Asked,
    Embeddings,
    Positives,
    ask_either,
    check_above_0,
    check_share,
    filled,
    place,
    unit_views,
)
from contrastneg.analysis.relations import check_column
from contrastneg.negatives import (
    Clock,
    Facts,
    HardestSubset,
    HardnessBand,
    HardnessWeight,
    MoCHi,
    Negatives,
    OracleSameLabel,
    Pipeline,
    SameCluster,
    SemiHardSubset,
    SoftmaxSubset,
    Stage,
    UniformSubset,
    run_stages,
)
from contrastneg.negatives.core import of_image
from contrastneg.randomness import derive_seed, generator

BATCH = 32
"""Queries of one table, as in a step of training: stages that compare queries depend on it, and their draws do."""
DRAWS = 1000  # of which the distinct images are told

Samplers = Mapping[str, Sequence[Stage]]
"""Lists of stages by the name of the sampler; an empty list leaves all candidates as they are."""


def mixes_for(images: int) -> MoCHi:
    """MoCHi in the sizes of a queue that holds all images: an eighth of them, at most 1,024, is the pool."""
    count = max(1, min(1024, images // 8))
    return MoCHi(pool=count, pair_mixes=count, query_mixes=max(1, count // 8), warmup_epochs=0.0)


def usual_samplers(images: int, clusters: int, *, labels: bool = True) -> dict[str, list[Stage]]:
    """Samplers of the catalogue that are worth a first look, alone and combined, in sizes that suit the data.

    Args:
        images: Images that are compared, at least 2.
        clusters: Clusters that elimination works with, about as many as you expect classes.
        labels: Whether the oracle, which removes by true class, is among them.
    """
    count = max(1, min(1024, images // 8))
    mixes = mixes_for(images)
    found: dict[str, list[Stage]] = {
        "all": [],
        "uniform": [UniformSubset(count)],
        "hardest": [HardestSubset(count)],
        "hardest 5 % without 0.1 %": [HardnessBand(lower=0.001, upper=0.05)],
        "semi-hard": [SemiHardSubset(count)],
        "softmax": [SoftmaxSubset(count)],
        "hard-weighted": [HardnessWeight()],
        "mixes": [mixes],
        "without own cluster": [SameCluster(clusters=(clusters,), acceptance=1.0)],
        "without top 1 %": [HardnessBand(lower=0.01, upper=1.0)],
        "without own cluster, mixes": [SameCluster(clusters=(clusters,), acceptance=1.0), mixes],
    }
    return {**found, "oracle": [OracleSameLabel()]} if labels else found


def sampler_cards(
    embeddings: Embeddings,
    positives: Positives,
    samplers: Samplers,
    labels: Labels = None,
    *,
    columns: Mapping[str, Tensor | Sequence[Any]] | None = None,
    support: Float[Tensor, "M S D"] | None = None,
    temperature: float = 0.2,
    hard: float = 0.05,
    visits: int = 0,
    epochs: int = 100,
    candidates: int = 65_536,
    queries: int = 512,
    seed: int = 0,
) -> pd.DataFrame:
    r"""What each sampler offers a query: how many candidates, how hard, how false, and what gradient they give.

    Each sampler is a list of stages of :mod:`contrastneg.negatives`, in any combination that a method could have. They run
    on the table of all candidates as at the end of training: schedules at their end, warm-ups over, graphs and clusters
    made of these embeddings, memories filled with them. Candidates that a stage attracts are no negatives: they count as
    those that are removed. With w the weights that a sampler leaves and S its table,

    .. math:: P_{ij} = \frac{w_{ij} e^{s_{ij}/t}}{e^{s_{i+}/t} + \sum_{l \in S} w_{il} e^{s_{il}/t}} \qquad
        r_{ij} = P_{ij} \Big/ \sum_{l \in S} P_{il}

    ================== ============================================================================================
    kept               candidates with weight above 0 per query, those that were made included
    synthetic          those of them that were made: no image is behind them
    same_class         share of the kept images that are of the query's class: the rate of false negatives
    false_kept         share of the candidates of the query's class that are kept
    hard_kept          share of the hardest candidates of other classes that are kept
    similarity         mean cosine of query and kept candidate
    rank_share         mean share of all candidates that are more similar than a kept one: 0.5 is no choice, 0 the hardest
    effective          e to the entropy of r
    push               sum of P: the share of the probability that is not the positive's
    gradient_norm      length of :math:`\sum_j P_{ij} k_j / t`, the gradient of negatives with respect to the unit query
    hard_gradient      share of r on candidates as similar as the hardest of all
    false_gradient     share of r on candidates of the query's class
    distinct           images that are expected to differ among 1000 draws, query and kept image drawn uniformly
    state_bytes        memory of what the stages remember
    milliseconds       per query, of the stages alone, on this machine
    ================== ============================================================================================

    Ours, after the figure of KGPolicy (arXiv:2003.05753) that looks at the negatives themselves.

    Args:
        embeddings: Of all images.
        positives: Of a second view of each image, row by row: the positive of each query.
        samplers: Stages in order, by name; see :func:`usual_samplers`. They are copied, never changed.
        labels: Classes for the columns on classes, which are NaN without, and for stages that are oracles.
        columns: Metadata of each image by name, for stages that ask for them.
        support: Embeddings of S further views of each image, for stages that ask for them.
        temperature: t above 0, also that of the stages that take the method's.
        hard: The hardest candidates, as a share of all, rounded up; between 0 and 1.
        visits: Times that each query is met in training before it is measured, at least 0. What learns or counts from steps (thresholds,
            hit rates, learned banks and policies) is untrained at 0; nothing else changes.
        epochs: Length of the run at whose end stages are looked at.
        candidates: Images that are candidates at most, drawn by the seed; a queue would hold as many.
        queries: How many are asked at most.
        seed: Of the draws of queries, of candidates and of the stages, each sampler drawing for itself.

    Returns:
        One row per sampler: ``sampler``; ``stages``, their classes in order; ``oracle``, whether one uses labels; the columns
        above, means over queries (ratios of two sums for shares of candidates) with standard errors, ``..._se``, but for the
        last three; ``base_rate``, the same class among all candidates; ``temperature``, ``hard``, ``visits``, ``candidates``.

    Raises:
        ValueError: No sampler is given, stages cannot follow each other or lack labels, columns or support, or a number is
            out of range.
    """
    check_share("hard", hard)
    asked = ask_either(embeddings, labels, queries=queries, seed=seed, positives=positives)
    given = _Given.of(asked, columns, support, len(embeddings))
    bench = _Bench.of(asked, samplers, given, _end_of_run(epochs, temperature, seed), candidates, visits)
    tallies = {name: _Tally(bench) for name in samplers}
    for number, rows in bench.parts():
        table = bench.table(rows)
        view = _View.of(bench, rows, table, hard)
        for name, tally in tallies.items():
            began = time.perf_counter()
            after = bench.run(name, table, number)
            tally.add(view, after, time.perf_counter() - began, number * BATCH)
    rows_of = [{**bench.named(name), **tally.columns(name)} for name, tally in tallies.items()]
    about = {"temperature": temperature, "hard": hard, "visits": visits, "candidates": len(bench.pool)}
    return pd.concat([asked.table({**row, **about}) for row in rows_of], ignore_index=True)


def sampler_agreement(
    embeddings: Embeddings,
    positives: Positives,
    samplers: Samplers,
    labels: Labels = None,
    *,
    columns: Mapping[str, Tensor | Sequence[Any]] | None = None,
    support: Float[Tensor, "M S D"] | None = None,
    temperature: float = 0.2,
    visits: int = 0,
    epochs: int = 100,
    candidates: int = 65_536,
    queries: int = 512,
    seed: int = 0,
) -> pd.DataFrame:
    r"""How much the images that two samplers keep for a query are the same ones, for all pairs of samplers.

    .. math:: \text{jaccard} = \frac{1}{Q} \sum_i \frac{|A_i \cap B_i|}{|A_i \cup B_i|} \qquad
        \text{chance} = \frac{1}{Q} \sum_i \frac{a_i b_i / n}{a_i + b_i - a_i b_i / n}

    with A and B the kept images of query i, a and b their numbers and n all candidates: what two samplers would have that
    draw uniformly and know nothing of each other. Candidates that were made are left out.

    Args:
        embeddings: See :func:`sampler_cards`, as for all other arguments.
        positives: See there.
        samplers: See there; at least two.
        labels: See there.
        columns: See there.
        support: See there.
        temperature: See there.
        visits: See there.
        epochs: See there.
        candidates: See there.
        queries: See there.
        seed: See there.

    Returns:
        One row per pair: ``sampler``, ``other``; ``jaccard`` and its standard error over queries, ``jaccard_se``, queries for
        which neither keeps an image left out; ``chance``; ``candidates``.

    Raises:
        ValueError: As :func:`sampler_cards`, or there are fewer than two samplers.
    """
    if len(samplers) < 2:
        raise ValueError(f"samplers has {len(samplers)}: give at least two to compare")
    asked = ask_either(embeddings, labels, queries=queries, seed=seed, positives=positives)
    given = _Given.of(asked, columns, support, len(embeddings))
    bench = _Bench.of(asked, samplers, given, _end_of_run(epochs, temperature, seed), candidates, visits)
    pairs = list(combinations(samplers, 2))
    shape = (len(asked.rows), len(pairs), 2)
    found = filled(shape, (_agreements(bench, number, rows, pairs) for number, rows in bench.parts()))
    tables = [_agreement_row(asked, pair, part) for pair, part in zip(pairs, found.unbind(dim=1), strict=True)]
    return pd.concat(tables, ignore_index=True).assign(candidates=len(bench.pool))


_COUNTED = (
    "kept", "shown", "same", "hard_kept", "similarity", "rank_share", "hard_gradient", "false_gradient", "effective", "push",
    "norm", "some", "same_before", "hard_before", "offered",
)  # fmt: skip


@dataclass(frozen=True)
class _Given:
    """What stages may ask for beside embeddings, of the images that are compared."""

    columns: dict[str, Any]
    support: Float[Tensor, "N S D"] | None

    @classmethod
    def of(cls, asked: Asked, columns: Mapping[str, Any] | None, support: Tensor | None, images: int) -> "_Given":
        further = None if support is None else unit_views(support, asked, images)
        kept: dict[str, Any] = {}
        for name, column in (columns or {}).items():
            check_column(name, column, images)
            kept[name] = [column[image] for image in asked.position.tolist()]
        return cls(kept, further)


def _end_of_run(epochs: int, temperature: float, seed: int) -> Clock:
    check_above_0("epochs", epochs)
    check_above_0("temperature", temperature)
    return Clock(1, 1, float(epochs), seed, temperature=temperature)


@dataclass(frozen=True)
class _Bench:
    """Samplers ready to run on the queries of a measure."""

    asked: Asked
    pool: Int64[Tensor, " K"]
    """Images that are candidates of all queries."""
    given: _Given
    clock: Clock
    """The end of a run."""
    pipelines: dict[str, Pipeline]

    @classmethod
    def of(
        cls,
        asked: Asked,
        samplers: Samplers,
        given: _Given,
        clock: Clock,
        candidates: int,
        visits: int,
    ) -> "_Bench":
        if not samplers:
            raise ValueError("samplers is empty: give at least one list of stages")
        check_above_0("candidates", candidates)
        if visits < 0:
            raise ValueError(f"visits is {visits}: give at least 0")
        order = torch.randperm(len(asked.x), generator=generator(clock.seed, "pool"))
        bench = cls(asked, order[:candidates].sort().values, given, clock, {})
        facts = Facts(len(asked.x), asked.x.shape[1], asked.label, given.columns)
        for name, stages in samplers.items():
            try:
                bench.pipelines[name] = bench._prepared(name, stages, facts)
            except ValueError as error:
                raise ValueError(f"sampler {name}: {error}") from error
            bench._visit(name, visits)
        return bench

    def _prepared(self, name: str, stages: Sequence[Stage], facts: Facts) -> Pipeline:
        provides = {"id", "queue", *(() if self.given.support is None else ("support",))}
        pipeline = Pipeline(copy.deepcopy(list(stages)), provides, facts.dim, capacity=len(self.pool))
        pipeline.begin(_Known(facts))
        for number, stage in enumerate(pipeline.stages):
            begins = min(self.clock.epoch, math.ceil(stage.first_epoch(self.clock.epoch)))
            stage.refresh(lambda: self.asked.x, replace(self.clock_of(name), stage=number, epoch=begins))
        for rows in torch.arange(len(self.asked.x)).split(1024):
            pipeline.update(self.asked.x[rows], rows, self.clock_of(name))
        return pipeline.eval()

    def _visit(self, name: str, visits: int) -> None:
        """Meet each query as training does, so many times."""
        pipeline = self.pipelines[name].train()
        parts = list(self.parts())
        for visit in range(visits):
            for number, rows in parts:
                clock = replace(self.clock_of(name), batch=(visit + 1) * len(parts) + number)
                run_stages(self.table(rows), pipeline.stages, clock)
                pipeline.update(self.asked.x[rows], rows, clock)
        pipeline.eval()

    def clock_of(self, name: str) -> Clock:
        """The end of the run, with draws of its own for each sampler."""
        return replace(self.clock, seed=derive_seed(self.clock.seed, "sampler", name))

    def named(self, name: str) -> dict[str, Any]:
        stages = self.pipelines[name].stages
        classes = " + ".join(type(stage).__name__ for stage in stages) or "none"
        return {"sampler": [name], "stages": classes, "oracle": any(stage.oracle for stage in stages)}

    def parts(self) -> Iterator[tuple[int, Int64[Tensor, " b"]]]:
        yield from enumerate(self.asked.rows.split(BATCH))

    def table(self, rows: Int64[Tensor, " b"]) -> Negatives:
        """All candidates of some queries."""
        assert self.asked.second is not None
        x, further = self.asked.x, self.given.support
        support = None if further is None else further[rows]
        query = x[rows].requires_grad_()
        keys = x[self.pool]
        return Negatives.of(query, self.asked.second[rows], keys, query_id=rows, key_id=self.pool, support=support)

    def run(self, name: str, table: Negatives, number: int) -> Negatives:
        return run_stages(table, self.pipelines[name].stages, replace(self.clock_of(name), batch=number))

    def offered(self, table: Negatives) -> Int64[Tensor, " b"]:
        return table.kept.sum(dim=1)

    def images(self, table: Negatives) -> Bool[Tensor, "b N"]:
        """Which images are kept for each query."""
        image = table.key_id.expand_as(table.similarity)
        kept = (table.repelled & (image >= 0)).to(torch.uint8)
        found = torch.zeros(len(image), len(self.asked.x), dtype=torch.uint8)
        return found.scatter_reduce_(1, image.clamp(min=0), kept, "amax").bool()


@dataclass(frozen=True)
class _Known:
    """What a data module tells a pipeline."""

    known: Facts

    def facts(self, dim: int) -> Facts:
        return self.known


@dataclass(frozen=True)
class _View:
    """What all samplers are measured against, of some queries."""

    table: Negatives
    own: Int64[Tensor, " b"] | None
    """Class of each query."""
    ascending: Float[Tensor, "b C"]
    """Cosines of all candidates."""
    above: Float[Tensor, "b C"]
    """Share of all candidates that are more similar than each."""
    offered: Int64[Tensor, " b"]
    threshold: Float[Tensor, "b 1"]
    """Cosine of the last of the hardest candidates."""
    same: Float64[Tensor, " b"]
    """Candidates of the query's class."""
    true_hard: Float64[Tensor, " b"]
    """Hardest candidates of other classes."""

    @classmethod
    def of(cls, bench: _Bench, rows: Int64[Tensor, " b"], table: Negatives, hard: float) -> "_View":
        label, offered = bench.asked.label, bench.offered(table)
        similarity = table.similarity.detach().masked_fill(~table.kept, torch.inf)
        ascending, order = similarity.sort(dim=1)
        harder = (offered[:, None] - 1 - torch.arange(order.shape[1])).clamp(min=0) / offered[:, None]
        above = torch.empty_like(ascending).scatter_(1, order, harder)
        rank = torch.tensor([int(n) - place(hard, int(n)) for n in offered])[:, None]
        threshold = ascending.gather(1, rank)
        own = None if label is None else label[rows]
        same = torch.zeros_like(table.kept) if own is None else table.kept & _same(bench, own, table)
        true_hard = table.kept & ~same & (similarity >= threshold)
        counts = (_total(kind) for kind in (same, true_hard))
        return cls(table, own, ascending, above, offered, threshold, *counts)

    def more_similar(self, after: Negatives) -> Float[Tensor, "b M"]:
        """Share of all candidates that are more similar than each of a sampler's."""
        known = self.table.n_keys if after.keys is self.table.keys else 0
        others = after.similarity.detach()[:, known:].contiguous()
        beyond = torch.searchsorted(self.ascending, others, right=True)
        shares = (self.offered[:, None] - beyond).clamp(min=0) / self.offered[:, None]
        return torch.cat([self.above[:, :known], shares], dim=1)


def _same(bench: _Bench, own: Int64[Tensor, " b"], table: Negatives) -> Bool[Tensor, "b M"]:
    """Which candidates are images of each query's class."""
    return (of_image(bench.asked.labels, table.key_id, -1) == own[:, None]).expand_as(table.similarity)


def _total(values: Tensor) -> Float64[Tensor, " b"]:
    return values.sum(dim=1, dtype=torch.float64)


class _Tally:
    """The measures of one sampler, query by query."""

    def __init__(self, bench: _Bench) -> None:
        self.bench = bench
        self.seconds = 0.0
        self.law = torch.zeros(len(bench.asked.x), dtype=torch.float64)  # of an image that is kept
        # filled in place: small results kept between large tables would split the heap, and memory would grow
        self.of = {name: torch.empty(len(bench.asked.rows), dtype=torch.float64) for name in _COUNTED}

    def add(self, view: _View, after: Negatives, seconds: float, start: int) -> None:
        """Measure a sampler's table, that of the queries from ``start`` on."""
        self.seconds += seconds
        kept, similarity = after.repelled, after.similarity.detach()
        image = after.key_id.expand_as(similarity)
        shown = kept & (image >= 0)
        same = torch.zeros_like(kept) if view.own is None else shown & _same(self.bench, view.own, after)
        hardest = similarity >= view.threshold
        share, push, norm = _gradient(after, self.bench.clock.temperature)
        images = _total(shown)
        weight = shown / images.clamp(min=1)[:, None]
        self.law.index_add_(0, image.clamp(min=0).flatten(), weight.flatten())
        some = (push > 0).double()
        measured = {
            "kept": _total(kept),
            "shown": images,
            "same": _total(same),
            "hard_kept": _total(shown & hardest & ~same),
            "similarity": _total(kept * similarity),
            "rank_share": _total(kept * view.more_similar(after)),
            "hard_gradient": _total(share * hardest),
            "false_gradient": _total(share * same),
            "effective": _total(torch.special.entr(share)).exp() * some,
            "push": push,
            "norm": norm,
            "some": some,
            "same_before": view.same,
            "hard_before": view.true_hard,
            "offered": view.offered,
        }
        for name, values in measured.items():
            self.of[name][start : start + len(values)] = values

    def columns(self, name: str) -> dict[str, Any]:
        """The row of the table."""
        of, classed = self.of, torch.nan if self.bench.asked.label is None else 1.0
        measures = {
            "kept": mean(of["kept"]),
            "synthetic": mean(of["kept"] - of["shown"]),
            "same_class": ratio(classed * of["same"], of["shown"]),
            "false_kept": ratio(classed * of["same"], of["same_before"]),
            "hard_kept": ratio(classed * of["hard_kept"], of["hard_before"]),
            "similarity": ratio(of["similarity"], of["kept"]),
            "rank_share": ratio(of["rank_share"], of["kept"]),
            "effective": ratio(of["effective"], of["some"]),
            "push": mean(of["push"]),
            "gradient_norm": mean(of["norm"]),
            "hard_gradient": ratio(of["hard_gradient"], of["some"]),
            "false_gradient": ratio(classed * of["false_gradient"], of["some"]),
        }
        values: dict[str, Any] = {}
        for key, measured in measures.items():
            values |= numbers_of(key, measured)
        law = (self.law / len(of["kept"])).clamp(max=1 - 1e-12)
        buffers = self.bench.pipelines[name].states.buffers()
        return {
            **values,
            "distinct": float(-torch.expm1(DRAWS * torch.log1p(-law)).sum()),
            "state_bytes": sum(buffer.numel() * buffer.element_size() for buffer in buffers),
            "milliseconds": 1000 * self.seconds / len(of["kept"]),
            "base_rate": classed * float(ratio(of["same_before"], of["offered"])[0]),
        }


def _gradient(after: Negatives, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Share of each candidate in the gradient, probability of all of them, and length of their gradient per query."""
    own = after.positive_similarity.detach()[:, None] / temperature
    logits = after.similarity.detach() / temperature + after.log_weight.detach()
    logits = logits.masked_fill(~after.repelled, -torch.inf)
    law = torch.cat([own, logits], dim=1).softmax(dim=1)[:, 1:]
    push = law.sum(dim=1)
    # the graph of the whole table is asked once for each sampler
    (gradient,) = torch.autograd.grad(after.similarity, after.query, law / temperature, retain_graph=True)
    share = law / push.clamp(min=torch.finfo(push.dtype).tiny)[:, None]
    return share, push.double(), gradient.double().norm(dim=1)


def _agreements(
    bench: _Bench, number: int, rows: Int64[Tensor, " b"], pairs: Sequence[tuple[str, str]]
) -> Float64[Tensor, "b pairs 2"]:
    """How much the images agree that the samplers of each pair keep, see :func:`_jaccard`."""
    table = bench.table(rows)
    kept = {name: bench.images(bench.run(name, table, number)) for name in bench.pipelines}
    return torch.stack([_jaccard(kept[one], kept[other], bench.offered(table)) for one, other in pairs], dim=1)


def _jaccard(
    one: Bool[Tensor, "b N"], other: Bool[Tensor, "b N"], offered: Int64[Tensor, " b"]
) -> Float64[Tensor, "b 2"]:
    """Share that is common to two sets of images, and what chance gives; NaN where both are empty."""
    a, b, common = (part.sum(dim=1).double() for part in (one, other, one & other))
    expected = a * b / offered
    return torch.stack([common / (a + b - common), expected / (a + b - expected)], dim=1)


def _agreement_row(asked: Asked, pair: tuple[str, str], found: Float64[Tensor, "Q 2"]) -> pd.DataFrame:
    some = found[~found.isnan().any(dim=1)]
    value, error = mean(some) if len(some) else (found.new_full((2,), torch.nan), found.new_full((2,), torch.nan))
    names = {"sampler": [pair[0]], "other": pair[1]}
    return asked.table({**names, "jaccard": float(value[0]), "jaccard_se": float(error[0]), "chance": float(value[1])})
