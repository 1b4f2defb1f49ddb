"""Numbers that change over a run: wherever a setting takes a number it may take a schedule of training progress.

Progress is the share of optimizer steps done, from 0 at the first step to 1 at the end.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

__all__ = ["Cosine", "Growth", "Linear", "Power", "Ramp", "Schedule", "Staircase", "Step", "value"]

LOOKED_AT = 100  # equal parts of the run at whose ends a schedule is asked before it starts


class Schedule(ABC):
    """A number as a function of training progress."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """The number at ``progress`` in [0, 1]."""


@dataclass(frozen=True)
class Linear(Schedule):
    """From ``start`` to ``end`` in a straight line."""

    start: float
    """Value until ``begin``."""
    end: float
    """Value from ``finish`` on."""
    begin: float = 0.0
    """Progress at which the change begins."""
    finish: float = 1.0
    """Progress at which the change is complete."""

    def __post_init__(self) -> None:
        check_span(self, self.begin, self.finish)

    def __call__(self, progress: float) -> float:
        """The number at ``progress``."""
        share = passed(progress, self.begin, self.finish)
        return self.start * (1 - share) + self.end * share


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""From ``start`` to ``end`` along half a cosine wave, slow at both ends.

    .. math:: v(x) = end + (start - end) (1 + \cos \pi x) / 2

    ``Cosine(0.99, 1.0)`` is the key momentum of MoCo v3 (arXiv:2104.02057).
    """

    start: float
    """Value until ``begin``."""
    end: float
    """Value from ``finish`` on."""
    begin: float = 0.0
    """Progress at which the change begins."""
    finish: float = 1.0
    """Progress at which the change is complete."""

    def __post_init__(self) -> None:
        check_span(self, self.begin, self.finish)

    def __call__(self, progress: float) -> float:
        """The number at ``progress``."""
        wave = (1 + math.cos(math.pi * passed(progress, self.begin, self.finish))) / 2
        return self.end * (1 - wave) + self.start * wave


@dataclass(frozen=True)
class Step(Schedule):
    """``start``, multiplied by ``factor`` at each place in ``at``.

    ``Step(1.0, 0.1, (0.6, 0.8))`` is the course of MoCo v1's learning rate: a tenth after 120 and 160 of 200 epochs.
    """

    start: float
    """Value at first."""
    factor: float
    """What the value is multiplied by, each time."""
    at: tuple[float, ...] = (0.5,)
    """Progress of each change, in rising order, above 0 and at most 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", tuple(self.at))  # a YAML file gives a list
        if not self.at or list(self.at) != sorted(set(self.at)) or not (self.at[0] > 0 and self.at[-1] <= 1):
            raise ValueError(f"Step.at is {list(self.at)}: give rising places above 0 and at most 1")

    def __call__(self, progress: float) -> float:
        """The number at ``progress``."""
        return self.start * self.factor ** sum(progress >= place for place in self.at)


@dataclass(frozen=True)
class Staircase(Schedule):
    """From ``start`` to ``end`` in equal steps; the first value holds for two periods, as in HCL's code (arXiv:2010.04592).

    There a period is the whole part of a ninth of the epochs: 44 of 400, 0.11 of the run, so that beta changes first at
    epoch 88 and reaches the end at epoch 396.
    """

    start: float
    """Value at first."""
    end: float
    """Value at last."""
    values: int = 9
    """Different values, ``start`` and ``end`` among them, at least 2."""
    period: float = 0.11
    """Share of the run between two changes, above 0 and at most 1 / values, so that the end is reached."""

    def __post_init__(self) -> None:
        if self.values < 2:
            raise ValueError(f"Staircase.values is {self.values}: give at least 2")
        if not 0 < self.period * self.values <= 1:
            raise ValueError(
                f"Staircase.period is {self.period}: give a share above 0 and at most {1 / self.values:.4g}"
            )

    def __call__(self, progress: float) -> float:
        """The number at ``progress``."""
        periods = math.floor(progress / self.period + 1e-9)  # 0.99 / 0.11 is a hair below 9
        share = min(max(periods - 1, 0), self.values - 1) / (self.values - 1)
        return self.start * (1 - share) + self.end * share


@dataclass(frozen=True)
class Power(Schedule):
    r"""From ``start`` to ``end`` as a power of progress: the pacing of a curriculum (CuCo, IJCAI 2021).

    .. math:: v(x) = start + (end - start) x^{exponent}

    Exponents 1/2, 1 and 2 are its root, linear and quadratic pacing: below 1 fast at first, above 1 slow at first.
    """

    start: float
    """Value until ``begin``."""
    end: float
    """Value from ``finish`` on."""
    exponent: float = 0.5
    """Power of progress, above 0."""
    begin: float = 0.0
    """Progress at which the change begins."""
    finish: float = 1.0
    """Progress at which the change is complete."""

    def __post_init__(self) -> None:
        check_span(self, self.begin, self.finish)
        if self.exponent <= 0:
            raise ValueError(f"Power.exponent is {self.exponent}: give a number above 0")

    def __call__(self, progress: float) -> float:
        """The number at ``progress``."""
        share = passed(progress, self.begin, self.finish) ** self.exponent
        return self.start * (1 - share) + self.end * share


@dataclass(frozen=True)
class Growth(Schedule):
    """``start``, multiplied by ``factor`` again and again until it meets ``limit``.

    The fixed exponential pacing of curriculum learning (arXiv:1904.03626) opens 0.04 of the examples and 1.9 times as
    many every 100 steps, which here is a share of the run.
    """

    start: float = 0.04
    """Value at first, not 0."""
    factor: float = 1.9
    """What the value is multiplied by each time, above 0; below 1 it shrinks."""
    every: float = 0.05
    """Share of the run between two changes, above 0 and at most 1."""
    limit: float = 1.0
    """Value beyond which it does not go."""

    def __post_init__(self) -> None:
        if not 0 < self.every <= 1:
            raise ValueError(f"Growth.every is {self.every}: give a share of the run above 0 and at most 1")
        if self.factor <= 0:
            raise ValueError(f"Growth.factor is {self.factor}: give a number above 0")

    def __call__(self, progress: float) -> float:
        """The number at ``progress``."""
        times = math.floor(progress / self.every + 1e-9)  # 0.3 / 0.1 is a hair below 3
        grown = self.start * self.factor**times
        return min(grown, self.limit) if self.start < self.limit else max(grown, self.limit)


@dataclass(frozen=True)
class Ramp(Schedule):
    """``start``, and ``by`` more in each of ``parts`` equal parts of the run.

    With as many parts as epochs it is the growth of PinSage (arXiv:1806.01973), n - 1 hard negatives in epoch n:
    ``Ramp(0, 1, epochs)``.
    """

    start: float
    """Value in the first part."""
    by: float
    """What is added from each part to the next."""
    parts: int = 10
    """Parts of the run, for instance its epochs; at least 1."""

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise ValueError(f"Ramp.parts is {self.parts}: give at least 1")

    def __call__(self, progress: float) -> float:
        """The number at ``progress``."""
        return self.start + self.by * min(self.parts - 1, math.floor(progress * self.parts + 1e-9))


def value(setting: float | int | Schedule, progress: float) -> float:
    """The number that a setting stands for at a point of the run.

    Args:
        setting: A number, or a schedule.
        progress: Share of the run done, in [0, 1].
    """
    return setting(progress) if isinstance(setting, Schedule) else float(setting)


def over_run(setting: float | int | Schedule) -> list[float]:
    """The numbers that a setting stands for from the start of the run to its end, at 101 places."""
    if not isinstance(setting, Schedule):
        return [float(setting)]
    return [setting(place / LOOKED_AT) for place in range(LOOKED_AT + 1)]


def passed(progress: float, begin: float, finish: float) -> float:
    """Share of the span from ``begin`` to ``finish`` that lies behind."""
    return min(1.0, max(0.0, (progress - begin) / (finish - begin)))


def check_span(schedule: Schedule, begin: float, finish: float) -> None:
    """Refuse a span that is empty or leaves the run."""
    if not 0 <= begin < finish <= 1:
        name = type(schedule).__name__
        raise ValueError(f"{name} goes from progress {begin} to {finish}: give 0 <= begin < finish <= 1")
