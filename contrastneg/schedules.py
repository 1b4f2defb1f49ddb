"""Numbers that change over a run: wherever a setting takes a number it may take a schedule of training progress.

Progress is the share of optimizer steps done, from 0 at the first step to 1 at the end.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

__all__ = ["Cosine", "Linear", "Schedule", "Staircase", "Step", "value"]


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


def value(setting: float | int | Schedule, progress: float) -> float:
    """The number that a setting stands for at a point of the run.

    Args:
        setting: A number, or a schedule.
        progress: Share of the run done, in [0, 1].
    """
    return setting(progress) if isinstance(setting, Schedule) else float(setting)


def passed(progress: float, begin: float, finish: float) -> float:
    """Share of the span from ``begin`` to ``finish`` that lies behind."""
    return min(1.0, max(0.0, (progress - begin) / (finish - begin)))


def check_span(schedule: Schedule, begin: float, finish: float) -> None:
    """Refuse a span that is empty or leaves the run."""
    if not 0 <= begin < finish <= 1:
        name = type(schedule).__name__
        raise ValueError(f"{name} goes from progress {begin} to {finish}: give 0 <= begin < finish <= 1")
