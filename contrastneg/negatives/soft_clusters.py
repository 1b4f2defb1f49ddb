"""Weights by soft clusters: candidates that share the query's clusters count less."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.negatives.core import Clock, Facts, Negatives, StageWithState
from contrastneg.negatives.groups import clustered
from contrastneg.negatives.popularity import due
from contrastneg.negatives.select import Mass, scaling
from contrastneg.negatives.weight import tilted
from contrastneg.randomness import derive_seed


@dataclass(eq=False)
class SoftClusterWeight(StageWithState):
    r"""Weigh each candidate by the chance that it is in another cluster than the query (after GDCL, IJCAI 2021).

    .. math:: \omega_j = 1 - r_q \cdot r_{k_j}, \quad
        r_c(z) \propto \left( 1 + \frac{\|z - \mu_c\|^2}{\nu h^2} \right)^{-(\nu + 1)/2}

    The centres come from k-means on the embeddings before the epoch, and weights are constants. An analogy: GDCL draws
    its negatives from the other clusters of nodes of a graph and trains the centres too; its script differs from the
    paper, and the intent of the paper is followed. The bandwidth h is ours, because unit vectors are too close to each
    other for h = 1, and so is the product of two assignments as a weight. Synthetic candidates keep their weight.
    """

    kind: ClassVar[str] = "weight"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid"})
    centers: Tensor = field(init=False, repr=False)

    clusters: int = 100
    """Clusters, at least 2."""
    freedom: float = 1.0
    """Degrees of freedom of the assignment (nu), above 0."""
    bandwidth: float = 0.1
    """Distance over which an assignment falls off (h), above 0; small values make it hard."""
    start: int = 1
    """First epoch with clusters; before it all weights stay."""
    every: int = 1
    """Epochs from one clustering to the next."""
    mass: Mass = "preserve"
    """Keep each row's total weight, or let it fall."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "clusters", least=2)
        check_range(self, "freedom", "bandwidth", above=0)
        check_range(self, "start", least=0)
        check_range(self, "every", least=1)
        object.__setattr__(self, "breaks", self.breaks | scaling(self.mass))
        self.register_buffer("centers", torch.zeros(self.clusters, 0))
        self._clustered = (
            False  # whether there are centres, for the host: looking would wait for the device at every step
        )

    def first_epoch(self, epochs: float) -> float:
        """The first clustering."""
        return self.start

    def begin(self, facts: Facts) -> None:
        """Make room for the centres."""
        self.centers = self.centers.new_zeros(self.clusters, facts.dim)

    def refresh(self, embeddings: Callable[[], Float[Tensor, "T D"]], clock: Clock) -> None:
        """Cluster, if it is time."""
        if due(clock, self.start, self.every):
            seed = derive_seed(clock.seed, "SoftClusterWeight", round(clock.epoch), clock.stage)
            found = clustered(embeddings(), self.clusters, seed).centroids
            self.centers.zero_()[: len(found)] = found
            self._clustered = bool(self.centers.any())

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with other weights."""
        if not self._clustered:
            return negatives
        with torch.no_grad(), torch.autocast(negatives.similarity.device.type, enabled=False):
            query, keys = (self.assignment(x.to(negatives.similarity.dtype)) for x in (negatives.query, negatives.keys))
            together = query @ keys.T if keys.ndim == 2 else (keys @ query[:, :, None]).squeeze(2)
        apart = torch.ones_like(negatives.similarity)
        apart[:, : negatives.n_keys] -= together
        return tilted(negatives, apart.clamp(min=0).log(), mass=self.mass)

    def assignment(self, z: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows C"]:
        """How much each unit vector belongs to each cluster; the rows sum to 1."""
        distance = (2 - 2 * z @ self.centers.to(z.dtype).T).clamp(min=0)
        log = -(self.freedom + 1) / 2 * torch.log1p(distance / (self.freedom * self.bandwidth**2))
        missing = ~self.centers.any(dim=1)  # there may be fewer images than clusters
        return log.masked_fill(missing, -torch.inf).softmax(dim=-1)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._clustered = bool(self.centers.any())
