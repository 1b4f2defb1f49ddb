"""Losses by name, for settings: what a method takes the mean of, once the stages have edited its table.

Each is a thin record over a function of :mod:`contrastneg.losses`, which states the formula. Numbers may be schedules. A
query without candidates has loss exactly 0 and zero gradient under every one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from contrastneg import distributed, losses
from contrastneg.checks import check_range, shown
from contrastneg.negatives import Clock, Negatives, Stage
from contrastneg.negatives.core import PHRASES
from contrastneg.negatives.pipeline import named
from contrastneg.objective import Measure, Objective, SumObjective, ignore
from contrastneg.schedules import Schedule, value
from contrastneg.stateful import SogCLR
from contrastneg.sums import Sums

__all__ = [
    "BPR",
    "RINCE",
    "AlignUniform",
    "BinaryCrossEntropy",
    "CosineContrastive",
    "Debiased",
    "Decoupled",
    "DecoupledWeighted",
    "DualAMN",
    "DualTemperature",
    "HardWeighted",
    "InfoNCE",
    "MultiPositive",
    "Objective",
    "Sigmoid",
    "Sincere",
    "SogCLR",
    "Spectral",
    "Square",
    "Triplet",
]


def check_objective(loss: Objective, stages: Sequence[Stage], temperature: float) -> None:
    """Refuse a loss whose conditions the stages break, or that cannot work at the temperature.

    Args:
        loss: The loss.
        stages: The stages that run before it.
        temperature: The method's temperature.

    Raises:
        ValueError: A stage breaks what the loss needs, or attracts where the loss has one positive only, or a try on two
            images fails at either end of the run.
    """
    name = f"method.loss {type(loss).__name__}"
    for number, stage in enumerate(stages):
        breaks = stage.breaks if stage.kind == "source" or stage.whole_groups else stage.breaks | {"every pair"}
        for need in sorted(loss.needs & breaks):
            raise ValueError(
                f"{name} needs {PHRASES.get(need, need)}, which it cannot have after {named(number, stage)}: "
                "leave the stage out, or take another loss"
            )
        if stage.attracts and not loss.takes_attracted:
            raise ValueError(
                f"{named(number, stage)} attracts candidates but {name} has one positive only: "
                "use MultiPositive or Sincere, or let the stage eliminate"
            )
    two, ids = torch.eye(2), torch.arange(2)
    with torch.no_grad():  # nothing is learned from them
        for step in (0, 1):
            loss(Negatives.of(two, two, two, query_id=ids, key_id=ids), temperature, Clock(step, 1, float(step), 0))


@dataclass(frozen=True)
class InfoNCE(SumObjective):
    """Softmax cross-entropy of the positive against the candidates (arXiv:1807.03748)."""

    def of_sums(self, sums: Sums, temperature: float, clock: Clock, record: Measure = ignore) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.info_nce`."""
        lse = sums.logsumexp(temperature)
        return losses.info_nce_from_logsumexp(sums.positive, lse, temperature=temperature)


@dataclass(frozen=True)
class Debiased(SumObjective):
    """InfoNCE less the expected share of false negatives (arXiv:2007.00224).

    Records ``floor``: the queries whose corrected sum is below its least possible value, so that their negatives get no
    gradient. If they are many, the prior is too large.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"iid"})

    class_prior: float | Schedule = 0.1
    """Probability that a candidate has the query's class, at least 0 and below 1; 1 / classes if they are balanced."""

    def __post_init__(self) -> None:
        check_range(self, "class_prior", least=0, below=1)

    def of_sums(self, sums: Sums, temperature: float, clock: Clock, record: Measure = ignore) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.debiased_info_nce`."""
        mass, floored = losses.debiased_logsumexp(
            sums.positive,
            sums.logsumexp(temperature),
            sums.log_count(),
            temperature=temperature,
            class_prior=value(self.class_prior, clock.progress),
        )
        record("floor", floored)
        return losses.info_nce_from_logsumexp(sums.positive, mass, temperature=temperature)


@dataclass(frozen=True)
class HardWeighted(SumObjective):
    """Debiased, with hard negatives weighted up (HCL, arXiv:2010.04592). Records ``floor``, as Debiased does.

    The official run can lower beta in steps: ``beta: {class_path: Staircase, init_args: {start: 1.0, end: 0.0}}``.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"iid"})

    beta: float | Schedule = 1.0
    """Tilt towards hard candidates, at least 0, in units of 1 / temperature as in the official code; 0 is Debiased."""
    class_prior: float | Schedule = 0.1
    """Probability that a candidate has the query's class, at least 0 and below 1; 1 / classes if they are balanced."""
    detach_weights: bool = False
    """Treat the weights as constants; off as published, where easy negatives may be attracted a little."""

    def __post_init__(self) -> None:
        check_range(self, "beta", least=0)
        check_range(self, "class_prior", least=0, below=1)

    def of_sums(self, sums: Sums, temperature: float, clock: Clock, record: Measure = ignore) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.hard_info_nce`."""
        beta, count = value(self.beta, clock.progress), sums.log_count()
        mass = sums.logsumexp(temperature / (1 + beta))
        if beta > 0:
            weights = sums.logsumexp(temperature / beta, constant=self.detach_weights)
            mass = losses.tilted_logsumexp(mass, weights, count, beta=beta, detach_weights=self.detach_weights)
        prior = value(self.class_prior, clock.progress)
        mass, floored = losses.debiased_logsumexp(
            sums.positive, mass, count, temperature=temperature, class_prior=prior
        )
        record("floor", floored)
        return losses.info_nce_from_logsumexp(sums.positive, mass, temperature=temperature)


@dataclass(frozen=True)
class Decoupled(SumObjective):
    """InfoNCE without the positive in the denominator (DCL, arXiv:2110.06848). Values may be negative."""

    ignores_mass = True

    def of_sums(self, sums: Sums, temperature: float, clock: Clock, record: Measure = ignore) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.decoupled_info_nce`."""
        return losses.decoupled_from_logsumexp(sums.positive, sums.logsumexp(temperature), temperature=temperature)


@dataclass(frozen=True)
class DecoupledWeighted(SumObjective):
    """Decoupled, with less weight on pairs that are close already (DCLW, arXiv:2110.06848).

    Weights are shared out among the queries of all processes; those of a step without gradient, among those of its own.
    """

    ignores_mass = True

    sigma: float | Schedule = 0.5
    """Concentration of the weights, above 0, in units of cosine."""
    detach_weights: bool = True
    """Treat the weights as constants; public implementations differ."""

    def __post_init__(self) -> None:
        check_range(self, "sigma", above=0)

    def of_sums(self, sums: Sums, temperature: float, clock: Clock, record: Measure = ignore) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.von_mises_fisher_weight`."""
        lse, sigma = sums.logsumexp(temperature), value(self.sigma, clock.progress)
        positive, counted = of_all_ranks(sums.positive, lse)
        weight = losses.von_mises_fisher_weight(positive, counted, sigma=sigma, detach=self.detach_weights)
        weight = of_own_rank(weight, len(lse))
        return losses.decoupled_from_logsumexp(sums.positive, lse, temperature=temperature, positive_weight=weight)


@dataclass(frozen=True)
class DualTemperature(SumObjective):
    """InfoNCE whose weight per query comes from a second, higher temperature (arXiv:2203.17248)."""

    ratio: float | Schedule = 10.0
    """Second temperature over the method's, above 0; 1 is InfoNCE."""

    def __post_init__(self) -> None:
        check_range(self, "ratio", above=0)

    def of_sums(self, sums: Sums, temperature: float, clock: Clock, record: Measure = ignore) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.dual_temperature_info_nce`."""
        ratio = value(self.ratio, clock.progress)
        lse, across = sums.logsumexp(temperature), sums.logsumexp(ratio * temperature, constant=True)
        return losses.dual_temperature_from_logsumexp(sums.positive, lse, across, temperature=temperature, ratio=ratio)


@dataclass(frozen=True)
class RINCE(SumObjective):
    """Robust InfoNCE, for positives that may be wrong (arXiv:2201.04309)."""

    exponent: float | Schedule = 0.5
    """From near 0, InfoNCE, to 1, robust; 0.5 in the official code, 0.1 for ImageNet."""
    density: float | Schedule = 0.001
    """Weight of the denominator, between 0 and 1; 0.001 in the official code, 0.01 for ImageNet."""
    bounded: bool = False
    """Divide by e^(exponent / temperature): the same loss at another learning rate, safe at small temperatures."""

    def __post_init__(self) -> None:
        check_range(self, "exponent", above=0, most=1)
        check_range(self, "density", above=0, below=1)

    def of_sums(self, sums: Sums, temperature: float, clock: Clock, record: Measure = ignore) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.rince`."""
        return losses.rince_from_logsumexp(
            sums.positive,
            sums.logsumexp(temperature),
            temperature=temperature,
            exponent=value(self.exponent, clock.progress),
            density=value(self.density, clock.progress),
            bounded=self.bounded,
        )


@dataclass(frozen=True)
class MultiPositive(Objective):
    """InfoNCE with the candidates that stages attract as further positives, which stay in the denominator.

    The attraction of IFND (ICLR 2022) and FNC (arXiv:2011.11765). With ``OracleSameLabel(action="attract")`` it is SupCon
    (arXiv:2004.11362), L_out as recommended there; the temperature's factor of its code is left out.
    """

    takes_attracted: ClassVar[bool] = True

    inside: bool = False
    """Sum over the positives inside the logarithm (L_in) in place of outside (L_out)."""

    def __call__(
        self, negatives: Negatives, temperature: float, clock: Clock, record: Measure = ignore
    ) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.multi_positive_info_nce`."""
        return losses.multi_positive_info_nce(
            *columns(negatives), temperature=temperature, is_positive=attracted(negatives), inside=self.inside
        )


@dataclass(frozen=True)
class Sincere(Objective):
    """Each positive, those that stages attract among them, against the true negatives alone (arXiv:2309.14277)."""

    takes_attracted: ClassVar[bool] = True

    margin: float | Schedule = 0.0
    """Taken from the positive's logit in the denominator, 0 or more; 0.25 gives epsilon-SupInfoNCE. A number or a schedule."""

    def __post_init__(self) -> None:
        check_range(self, "margin", least=0)

    def __call__(
        self, negatives: Negatives, temperature: float, clock: Clock, record: Measure = ignore
    ) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.sincere_info_nce`."""
        return losses.sincere_info_nce(
            *columns(negatives),
            temperature=temperature,
            is_positive=attracted(negatives),
            margin=value(self.margin, clock.progress),
        )


@dataclass(frozen=True)
class CosineContrastive(Objective):
    """Only candidates above a margin count, all alike (SimpleX, arXiv:2109.12613). The temperature plays no part.

    A correction of the sampling is one of the softmax, which is not here: SamplingCorrection is refused.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"no correction"})

    margin: float | Schedule = 0.4
    """Cosine above which a candidate counts, from -1 to 1. The default is ours; the paper's library has 0."""
    negative_weight: float | Schedule = 10.0
    """What all candidates together weigh, or each of them under "sum"; above 0. The default is ours."""
    negatives: Literal["mean", "sum"] = "mean"
    """Mean or sum over the candidates; the paper's library sums with weight 1 unless told."""

    @property
    def ignores_mass(self) -> bool:  # type: ignore[override]
        """Whether it is a mean."""
        return self.negatives == "mean"

    def __post_init__(self) -> None:
        check_range(self, "margin", least=-1, most=1)
        check_range(self, "negative_weight", above=0)

    def __call__(
        self, negatives: Negatives, temperature: float, clock: Clock, record: Measure = ignore
    ) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.cosine_contrastive`."""
        return losses.cosine_contrastive(
            *columns(negatives),
            margin=value(self.margin, clock.progress),
            negative_weight=value(self.negative_weight, clock.progress),
            mean=self.negatives == "mean",
        )


@dataclass(frozen=True)
class BPR(Objective):
    """Bayesian personalised ranking (arXiv:1205.2618): each candidate alone should score below the positive."""

    ignores_mass = True

    def __call__(
        self, negatives: Negatives, temperature: float, clock: Clock, record: Measure = ignore
    ) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.bpr`."""
        return losses.bpr(*columns(negatives), temperature=temperature)


@dataclass(frozen=True)
class Triplet(Objective):
    """Triplet loss over all candidates (arXiv:1503.03832). The temperature plays no part."""

    ignores_mass = True

    margin: float | Schedule = 0.1
    """How far a candidate's cosine should lie below the positive's, from 0 to 2; half of FaceNet's margin of 0.2."""

    def __post_init__(self) -> None:
        check_range(self, "margin", least=0, most=2)

    def __call__(
        self, negatives: Negatives, temperature: float, clock: Clock, record: Measure = ignore
    ) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.triplet`."""
        return losses.triplet(*columns(negatives), margin=value(self.margin, clock.progress))


@dataclass(frozen=True)
class Sigmoid(Objective):
    """Each pair a yes-or-no question, summed over the candidates (SigLIP, arXiv:2303.15343)."""

    bias: float | Schedule = -10.0
    """Added to all logits; -10 where the paper's learned bias starts [as recalled, not read]."""

    def __post_init__(self) -> None:
        check_range(self, "bias")

    def __call__(
        self, negatives: Negatives, temperature: float, clock: Clock, record: Measure = ignore
    ) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.sigmoid`."""
        return losses.sigmoid(*columns(negatives), temperature=temperature, bias=value(self.bias, clock.progress))


@dataclass(frozen=True)
class BinaryCrossEntropy(Objective):
    """Each pair a yes-or-no question; the candidates together count as much as the positive."""

    ignores_mass = True

    bias: float | Schedule = 0.0
    """Added to all logits."""

    def __post_init__(self) -> None:
        check_range(self, "bias")

    def __call__(
        self, negatives: Negatives, temperature: float, clock: Clock, record: Measure = ignore
    ) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.binary_cross_entropy`."""
        return losses.binary_cross_entropy(
            *columns(negatives), temperature=temperature, bias=value(self.bias, clock.progress)
        )


@dataclass(frozen=True)
class DualAMN(Objective):
    """Log-sum-exp over scores standardised within the row (Dual-AMN, WWW 2021). The temperature plays no part."""

    ignores_mass = True

    scale: float | Schedule = 30.0
    """How much the hardest candidates stand out, above 0."""

    def __post_init__(self) -> None:
        check_range(self, "scale", above=0)

    def __call__(
        self, negatives: Negatives, temperature: float, clock: Clock, record: Measure = ignore
    ) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.normalised_hard`."""
        return losses.normalised_hard(*columns(negatives), scale=value(self.scale, clock.progress))


@dataclass(frozen=True)
class Spectral(SumObjective):
    """Spectral contrastive loss on unit vectors (arXiv:2106.04156). The temperature plays no part.

    The paper bounds the length of embeddings instead of fixing it: see :func:`contrastneg.losses.spectral_contrastive`.
    It is a loss over every pair: stages that choose, make or weigh candidates for a query by itself are refused; those that
    drop groups (clusters, labels, metadata) or weigh images may stand before it, and cost the table.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"every pair"})
    ignores_mass = True

    def of_sums(self, sums: Sums, temperature: float, clock: Clock, record: Measure = ignore) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.spectral`; through the second moment of the keys."""
        mean, empty = square_mean(sums, 0.0)
        return (mean - 2 * sums.positive).masked_fill(empty, 0)


@dataclass(frozen=True)
class Square(SumObjective):
    """Square loss on cosines, as of whole-data methods (EHCF, NS-KGE). The temperature plays no part.

    It is a loss over every pair, as :class:`Spectral` is, and takes the same stages only.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"every pair"})
    ignores_mass = True

    negative_weight: float | Schedule = 5.0
    """What all candidates together weigh against the positive, above 0. The default is ours."""
    target: float | Schedule = 0.0
    """Cosine that candidates should have, from -1 to 1."""

    def __post_init__(self) -> None:
        check_range(self, "negative_weight", above=0)
        check_range(self, "target", least=-1, most=1)

    def of_sums(self, sums: Sums, temperature: float, clock: Clock, record: Measure = ignore) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.square`; through the second moment of the keys."""
        mean, empty = square_mean(sums, value(self.target, clock.progress))
        weight = value(self.negative_weight, clock.progress)
        return ((1 - sums.positive).square() + weight * mean).masked_fill(empty, 0)


@dataclass(frozen=True)
class AlignUniform(SumObjective):
    """Alignment of the views plus uniformity over queries and candidates (arXiv:2005.10242), without temperature.

    Uniformity is one number for the queries of all processes (of its own in a step without gradient); the paper takes it
    within each view of a batch.
    """

    ignores_mass = True

    scale: float | Schedule = 2.0
    """Sharpness of the uniformity, above 0."""
    align_weight: float | Schedule = 1.0
    """Weight of the alignment, at least 0."""
    uniform_weight: float | Schedule = 1.0
    """Weight of the uniformity, at least 0."""
    exponent: float | Schedule = 2.0
    """Power of the distance between the two views, above 0."""

    def __post_init__(self) -> None:
        check_range(self, "scale", "exponent", above=0)
        check_range(self, "align_weight", "uniform_weight", least=0)

    def of_sums(self, sums: Sums, temperature: float, clock: Clock, record: Measure = ignore) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.align_uniform`."""
        scale = value(self.scale, clock.progress)
        values = losses.align_uniform(
            *of_all_ranks(sums.positive, sums.logsumexp(1 / (2 * scale)), sums.log_count()),
            scale=scale,
            exponent=value(self.exponent, clock.progress),
            align_weight=value(self.align_weight, clock.progress),
            uniform_weight=value(self.uniform_weight, clock.progress),
        )
        return of_own_rank(values, len(sums.positive))


def of_all_ranks(*values: Float[Tensor, " b"]) -> tuple[Float[Tensor, " B"], ...]:
    """Values per query of all ranks, with gradient; of this rank alone where none is asked for.

    A step without gradient is no training step, and other ranks need not be taking one.
    """
    if not torch.is_grad_enabled():
        return values
    return tuple(distributed.all_gather_with_grad(part) for part in values)


def of_own_rank(values: Float[Tensor, " B"], queries: int) -> Float[Tensor, " b"]:
    """This rank's part of what was computed from :func:`of_all_ranks`, for so many queries."""
    if not torch.is_grad_enabled():
        return values
    start = distributed.row_offset(queries)
    return values[start : start + queries]


def attracted(negatives: Negatives) -> Bool[Tensor, "B M"]:
    """The further positives of a table."""
    if negatives.attracted is None:
        return torch.zeros_like(negatives.similarity, dtype=torch.bool)
    return negatives.attracted


def columns(negatives: Negatives) -> tuple[Float[Tensor, " B"], Float[Tensor, "B M"], Float[Tensor, "B M"]]:
    """What the functions of :mod:`contrastneg.losses` take: positives, candidates, log-weights."""
    return negatives.positive_similarity, negatives.similarity, negatives.log_weight


def square_mean(sums: Sums, target: float) -> tuple[Tensor, Tensor]:
    """Mean of ``(s - target)^2`` over each query's candidates, and the queries that have none."""
    count = sums.log_count()
    empty = count == -torch.inf
    return sums.square_sum(target) / count.masked_fill(empty, 0).exp(), empty


PARTS: dict[type, tuple[str, str]] = {Stage: ("a stage", "method.stages"), Objective: ("a loss", "method.loss")}
"""What a part of a method is called, and the setting that it belongs to."""


def check_parts(stages: Any, loss: Any) -> None:
    """Refuse, of a method made in Python, what is no list of stages and what is no loss.

    Raises:
        ValueError: Something is no object of the kind that stands there.
    """
    if not isinstance(stages, (list, tuple, NoneType)):
        raise ValueError(f"method.stages is {shown(stages)}: give a list of stages, for instance [MoCHi()]")
    for number, stage in enumerate(stages or ()):
        check_part(stage, Stage, f"method.stages[{number}]")
    check_part(loss, Objective, "method.loss")


def check_part(part: Any, kind: type, key: str) -> None:
    """Refuse what is no object of a kind, a stage or a loss, where one must stand."""
    if isinstance(part, kind):
        return
    if isinstance(part, type) and issubclass(part, kind):
        raise ValueError(f"{key} is {shown(part)}: give an object, {part.__name__}(...)")
    wanted = PARTS[kind][0]
    for other, (what, home) in PARTS.items():
        if isinstance(part, other):
            raise ValueError(f"{key}: {type(part).__name__} is {what}, not {wanted}: it belongs to {home}")
    raise ValueError(
        f"{key} is {shown(part)}: give {wanted}, for instance {'MoCHi()' if kind is Stage else 'InfoNCE()'}"
    )
