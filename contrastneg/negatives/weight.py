"""Stages that let some candidates count more than others."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.logsumexp import table_logsumexp
from contrastneg.negatives.core import Clock, Negatives, Stage
from contrastneg.negatives.select import Mass, scaling
from contrastneg.schedules import Schedule, value


@dataclass(frozen=True)
class HardnessWeight(Stage):
    r"""Weigh candidates by their hardness, the total weight of each row staying what it was (HCL, arXiv:2010.04592).

    .. math:: \omega_j \propto e^{\beta s_j / t}

    Before InfoNCE this is the loss HardWeighted with class prior 0, before Debiased with any prior; do not use it before
    HardWeighted itself, which would tilt twice. Faithful to the official code, where the weights carry gradient and easy
    negatives may be attracted a little, so that hard ones weigh less. Constant weights are the self-adversarial ones of
    RotatE (arXiv:1902.10197).
    """

    kind: ClassVar[str] = "weight"
    breaks: ClassVar[frozenset[str]] = frozenset({"plain mass"})

    beta: float | Schedule = 1.0
    """Tilt towards hard candidates, 0 or more, in units of 1 / temperature as in the official code. A number or a schedule."""
    temperature: float | None = None
    """Temperature of the tilt, above 0; none is the method's. 0.5 in the paper."""
    detach_weights: bool = False
    """Treat the weights as constants; off as published."""

    def __post_init__(self) -> None:
        check_range(self, "beta", least=0)
        check_range(self, "temperature", above=0)

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with other weights."""
        similarity = negatives.similarity.detach() if self.detach_weights else negatives.similarity
        return tilted(
            negatives, value(self.beta, clock.progress) / (self.temperature or clock.temperature) * similarity
        )


@dataclass(frozen=True)
class GaussianWeight(Stage):
    r"""Weigh candidates by a Gaussian of their similarity, the total weight of each row staying what it was (ADNCE).

    .. math:: \omega_j \propto \exp\left( -\frac{(s_j - \mu)^2}{2 \sigma^2} \right)

    arXiv:2310.11048, faithful to the official code: constant weights of cosines, normalised per query. There CIFAR-10
    has mu 0.7, sigma 0.5 at temperature 0.4; CIFAR-100 0.5, 1.0 at 0.3; STL-10 0.8, 1.0 at 0.2. A large sigma is
    InfoNCE.
    """

    kind: ClassVar[str] = "weight"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "plain mass"})

    center: float | Schedule = 0.7
    """Similarity with the largest weight (mu). A number or a schedule."""
    width: float | Schedule = 0.5
    """Standard deviation in units of similarity (sigma), above 0. A number or a schedule."""

    def __post_init__(self) -> None:
        check_range(self, "center")
        check_range(self, "width", above=0)

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with other weights."""
        center, width = value(self.center, clock.progress), value(self.width, clock.progress)
        return tilted(negatives, -0.5 * ((negatives.similarity.detach() - center) / width).square())


@dataclass(frozen=True)
class FixedMass(Stage):
    r"""Scale the weights of each row to one total, however many candidates there are (EqCo, arXiv:2010.01929).

    .. math:: \omega_j \leftarrow a\, \omega_j / \sum_l \omega_l

    As many candidates as ``total`` are InfoNCE; of equal weights it is a margin :math:`t \log(a / K)` on the positive.
    So the number of candidates can be changed without the strength of the loss. From memory, not verified against the
    paper.
    """

    kind: ClassVar[str] = "weight"
    whole_groups: ClassVar[bool] = True
    breaks: ClassVar[frozenset[str]] = frozenset({"plain mass"})

    total: float | Schedule = 256.0
    """Weight of all candidates of a query together (a), above 0. A number or a schedule."""

    def __post_init__(self) -> None:
        check_range(self, "total", above=0)

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with other weights."""
        return tilted(negatives, 0.0, math.log(value(self.total, clock.progress)))


@dataclass(frozen=True)
class SamplingCorrection(Stage):
    r"""Undo the law that candidates were drawn by, or a part of it (logQ correction, as in sampled softmax).

    .. math:: \log \omega_j \leftarrow \log \omega_j - \gamma \log \pi_j

    where :math:`\pi_j` is the probability with which j was kept. Candidates drawn from the law of the data leave the
    optimal score short of the logarithm of an image's frequency, as inverse propensity weights would (CLRec,
    arXiv:2005.12964, an analogy: no image was shown to anybody). The positive's weight stays 1.

    With ``mass`` "preserve" each row's total stays what it was: self-normalised importance sampling, right after a
    selector of either mass, consistent and with a small bias. "plain" after a selector of mass "plain" is unbiased for
    the sum over all candidates at ``strength`` 1; after one that preserved the mass, or weights that kept a total, it
    would count twice, and is refused. Before a law of popularity alike, it leaves of that law only the variance.
    """

    kind: ClassVar[str] = "weight"
    needs: ClassVar[frozenset[str]] = frozenset({"log_prob", "all ranks"})
    breaks: ClassVar[frozenset[str]] = frozenset({"no correction"})

    strength: float | Schedule = 1.0
    """Part of the law that is undone (gamma), from 0 to 1. A number or a schedule."""
    mass: Mass = "preserve"
    """Keep each row's total weight, or add the correction as it stands."""

    def __post_init__(self) -> None:
        check_range(self, "strength", least=0, most=1)
        if self.mass == "plain":
            object.__setattr__(self, "needs", self.needs | {"plain mass"})
        object.__setattr__(self, "breaks", self.breaks | scaling(self.mass))

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with other weights.

        Raises:
            ValueError: Nothing before it recorded the law of its draw.
        """
        if negatives.log_prob is None:
            raise ValueError(
                "SamplingCorrection met candidates whose law nobody recorded: put a selector that does before it"
            )
        known = negatives.log_prob.isfinite()  # not so for candidates that nobody drew
        rise = torch.where(known, -value(self.strength, clock.progress) * negatives.log_prob, 0.0)
        return tilted(negatives, rise, mass=self.mass)


def tilted(
    negatives: Negatives,
    rise: Float[Tensor, "B M"] | float,
    log_total: float | None = None,
    mass: Mass = "preserve",
) -> Negatives:
    """The table with each log-weight raised and, unless ``mass`` is "plain", each row scaled to a total weight.

    Args:
        negatives: The table.
        rise: What is added to the logarithm of each weight.
        log_total: Logarithm of the total weight of each row; None keeps the total that it had.
        mass: "plain" adds and does not scale.
    """
    raised = negatives.log_weight + rise
    if mass == "plain":
        return replace(negatives, log_weight=raised)
    now = table_logsumexp(raised, temperature=1.0)
    before = table_logsumexp(negatives.log_weight, temperature=1.0) if log_total is None else log_total
    scale = torch.where(now > -torch.inf, before - now, 0.0)  # nothing to scale in a row with nothing left
    return replace(negatives, log_weight=raised + scale[:, None])
