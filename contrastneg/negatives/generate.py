"""Negatives made by a small network that learns to raise the loss."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.losses import info_nce
from contrastneg.negatives.ascent import Climber
from contrastneg.negatives.core import Clock, Facts, Negatives, StageWithState, whole
from contrastneg.negatives.mixes import row_parts
from contrastneg.schedules import Schedule, value


@dataclass(eq=False)
class GeneratedNegatives(StageWithState):
    r"""Append negatives that a small network makes of the query and noise, and that raise the loss (NEGCUT, ICCV 2021).

    .. math::
        n_{im} = \frac{g(q_i, e_m)}{\|g(q_i, e_m)\|}, \quad e_m \sim N(0, I), \qquad
        \max_g \; L(q, p, n) + \texttt{diversity} \cdot \mathrm{mean} \, | n_{\text{first half}} - n_{\text{second half}} |

    L is InfoNCE over the made negatives alone. Each training step first moves the network, two layers, one Adam step up
    with the queries constant, then makes the negatives that the query is contrasted with; those are constants. The noise
    of a step is shared by its queries. On several processes the network's gradient is averaged over their queries. The
    made points need (B, count, D) numbers; the network's inner layer is computed a few queries at a time.

    An analogy: NEGCUT translates images, its queries are patches and its network sees features of a second, slowly moving
    encoder; here it sees the query itself. Sizes, rate, temperature and the weight of the diversity are those of its code.

    Costly: a step takes about 38 times as long as one of the plain loss over 4,096 keys.
    """

    kind: ClassVar[str] = "synthesize"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})
    network: Climber = field(init=False, repr=False)

    count: int | Schedule = 256
    """Negatives made per query. A number or a schedule."""
    noise: int = 64
    """Width of the noise, at least 1."""
    hidden: int = 256
    """Width of the inner layer, at least 1."""
    rate: float | Schedule = 2e-4
    """Learning rate of the network's Adam; 0 leaves it as it is. A number or a schedule."""
    diversity: float | Schedule = 1.0
    """Weight of the distance between negatives of different noise. A number or a schedule."""
    temperature: float = 0.07
    """Temperature of the loss that the network raises, above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "count", "rate", "diversity", least=0)
        check_range(self, "noise", "hidden", least=1)
        check_range(self, "temperature", above=0)
        self.network = Climber()

    def begin(self, facts: Facts) -> None:
        """Give the network its first weights, unless it has some."""
        self._start(facts.dim)

    def _start(self, dim: int) -> None:
        layers = [(dim + self.noise, self.hidden), (self.hidden, dim)]
        self.network.start("GeneratedNegatives", [(1 + rows, columns) for rows, columns in layers])

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with ``count`` columns more; in training, the network is a step further."""
        count = whole(self.count, clock)
        if negatives.n_keys == 0 or count == 0:
            return negatives
        query = negatives.query
        self._start(query.shape[1])
        draws = clock.generator("GeneratedNegatives", query.device)
        noise = torch.randn(count, self.noise, generator=draws, device=query.device, dtype=query.dtype)
        with torch.autocast(query.device.type, enabled=False):
            if self.training:
                self._ascend(query.detach(), negatives.positive.detach(), noise, clock)
            with torch.no_grad():
                parts = [self.points(query[part], noise) for part in self._parts(query, count)]
            similarity = torch.einsum("bd,bsd->bs", query, torch.cat(parts))
        kept = None if negatives.untouched else negatives.kept.any(dim=1, keepdim=True)
        return negatives.appended(similarity, kept=kept)

    def points(
        self, query: Float[Tensor, "b D"], noise: Float[Tensor, "S E"], weights: Tensor | None = None
    ) -> Float[Tensor, "b S D"]:
        """The negatives that the network makes, of unit length.

        Args:
            query: What they are made for.
            noise: One row per negative.
            weights: Of the network, as one list of numbers; None means its own.
        """
        weights = (self.network.weights if weights is None else weights).to(query.dtype)
        dim = query.shape[1]
        split = (1 + dim + self.noise) * self.hidden
        first, second = weights[:split].view(-1, self.hidden), weights[split:].view(-1, dim)
        of_query = (
            query @ first[1 : 1 + dim] + first[0]
        )  # the noise is shared, so the first layer is two small products
        inner = F.relu(of_query[:, None] + noise @ first[1 + dim :])  # (b, S, hidden)
        return F.normalize(inner @ second[1:] + second[0], dim=2)

    @torch.enable_grad()
    def objective(
        self, query: Float[Tensor, "b D"], positive: Float[Tensor, "b D"], points: Float[Tensor, "b S D"], weight: float
    ) -> Float[Tensor, " b"]:
        """What the network raises, per query: the loss, and ``weight`` times the distance between the two halves."""
        similarity = torch.einsum("bd,bsd->bs", query, points)
        loss = info_nce((query * positive).sum(dim=1), similarity, temperature=self.temperature)
        half = points.shape[1] // 2
        if half == 0:
            return loss
        return loss + weight * (points[:, :half] - points[:, half : 2 * half]).abs().mean(dim=(1, 2))

    @torch.enable_grad()
    def _ascend(self, query: Tensor, positive: Tensor, noise: Tensor, clock: Clock) -> None:
        positive, weight = positive.to(query.dtype), value(self.diversity, clock.progress)
        gradient = torch.zeros_like(self.network.weights)
        for part in self._parts(query, len(noise)):
            weights = self.network.weights.detach().requires_grad_()
            points = self.points(query[part], noise, weights)
            gain = self.objective(query[part], positive[part], points, weight).sum()
            gradient += torch.autograd.grad(gain, weights)[0]
        self.network.climb(gradient, len(query), value(self.rate, clock.progress))

    def _parts(self, query: Tensor, count: int):
        return row_parts(query, count * self.hidden, 16)
