"""What a loss over the table of negatives is, and one that is algebra on sums over the candidates."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from contrastneg.checks import Checked
from contrastneg.negatives import Clock, Negatives
from contrastneg.sums import Sums, TableSums

Measure = Callable[[str, Tensor], None]
"""Takes the name of a measurement and one value per query."""


def ignore(name: str, values: Tensor) -> None:
    """Record nothing."""


class Objective(Checked, ABC):
    """A loss over the table of negatives."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What must still hold after the stages: "iid" (candidates are drawn alike from the data), "no correction" (their draw is
    not corrected), "every pair" (none is chosen, made or weighed for a query by itself)."""
    ignores_mass: bool = False
    """Whether the sum of a query's weights has no effect on what is learned, only their proportions."""
    takes_attracted: ClassVar[bool] = False
    """Whether candidates that a stage attracts are further positives; others would push them away all the same."""

    @abstractmethod
    def __call__(
        self, negatives: Negatives, temperature: float, clock: Clock, record: Measure = ignore
    ) -> Float[Tensor, " B"]:
        """One loss per query.

        Args:
            negatives: The table after all stages.
            temperature: The method's temperature.
            clock: Where the run stands.
            record: Receives measurements of the loss, one value per query.
        """


class SumObjective(Objective):
    """A loss that is algebra on sums over the candidates: without stages it needs no table."""

    @abstractmethod
    def of_sums(self, sums: Sums, temperature: float, clock: Clock, record: Measure = ignore) -> Float[Tensor, " B"]:
        """As :meth:`Objective.__call__`, of sums over a table or over keys."""

    def __call__(
        self, negatives: Negatives, temperature: float, clock: Clock, record: Measure = ignore
    ) -> Float[Tensor, " B"]:
        """See :class:`Objective`."""
        return self.of_sums(TableSums(negatives), temperature, clock, record)
