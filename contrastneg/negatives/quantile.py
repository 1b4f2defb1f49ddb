"""False negatives by quantiles: the most similar share of all images, found on the fly."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg import distributed
from contrastneg.checks import check_range
from contrastneg.negatives.core import Clock, Facts, Negatives, StageWithState, of_image
from contrastneg.negatives.eliminate import Action, treat
from contrastneg.schedules import Schedule, value

DECAYS = (0.9, 0.98)  # of Adam's two means, as released
EPSILON = 1e-8


@dataclass(eq=False)
class GlobalQuantile(StageWithState):
    r"""Remove, or attract, candidates above a learned threshold of the query's image (GloFND, arXiv:2502.20612).

    Each image i has a threshold that tends to the quantile above which a share :math:`\alpha` of all images lies,

    .. math:: \lambda_i = \arg\min_\lambda \; \alpha \lambda + E_j [s_{ij} - \lambda]_+ \qquad
        g_i = \alpha - \operatorname{mean}_j 1[s_{ij} > \lambda_i] \qquad F_i = \{ j : s_{ij} > \lambda_i \}

    One step of Adam with the stochastic gradient g is taken each time the image is a query. Verdict: faithful to the
    released code in start (1), rate, decays, share and clamp; candidates are those of the method (queue or batch), and the
    bias correction counts the visits of an image, which is its epochs there.
    """

    kind: ClassVar[str] = "eliminate"
    needs: ClassVar[frozenset[str]] = frozenset({"id"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})
    threshold: Tensor = field(init=False, repr=False)
    mean: Tensor = field(init=False, repr=False)
    square: Tensor = field(init=False, repr=False)
    visits: Tensor = field(init=False, repr=False)

    share: float | Schedule = 0.01
    """Share of the images taken for false negatives (alpha), in [0, 1]. A number or a schedule."""
    rate: float | Schedule = 0.05
    """Learning rate of the thresholds, at least 0. A number or a schedule."""
    begin_at: float = 0.35
    """Progress of the run from which candidates are removed, in [0, 1] (epoch 70 of 200); thresholds learn from the start."""
    action: Action = "eliminate"
    """Remove what is found, or attract it as further positives."""
    mass: Literal["preserve", "plain"] = "preserve"
    """Whether the candidates that stay take over the weight of the removed, as released for SimCLR."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "share", "begin_at", least=0, most=1)
        check_range(self, "rate", least=0)
        self._told: list[tuple[Tensor, Tensor]] = []  # image and gradient of the queries since the last update
        self._set_tables(0)

    @property
    def attracts(self) -> bool:
        """Whether it marks further positives."""
        return self.action == "attract"

    def first_epoch(self, epochs: float) -> float:
        """Where ``begin_at`` lies."""
        return self.begin_at * epochs

    def begin(self, facts: Facts) -> None:
        """Make room for the thresholds of all images."""
        self._set_tables(facts.images)

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table without candidates above their query's threshold."""
        similarity, kept = negatives.similarity.detach(), negatives.kept
        bar = of_image(self.threshold, negatives.query_id, 1.0).to(similarity.dtype)
        above = kept & (similarity > bar[:, None])
        above[:, negatives.n_keys :] = False
        if self.training and torch.is_grad_enabled():
            keys = kept[:, : negatives.n_keys].sum(dim=1)
            gradient = value(self.share, clock.progress) - above.sum(dim=1) / keys.clamp(min=1)
            asked = torch.where(keys > 0, negatives.query_id, -1)  # without candidates there is nothing to learn from
            self._told.append((asked, gradient.to(self.mean.dtype)))
        if clock.progress < self.begin_at:
            return negatives
        treated = treat(negatives, above, self.action)
        if self.mass == "plain" or self.action == "attract":
            return treated
        return replace(treated, log_weight=treated.log_weight + _taken_over(negatives, treated))

    def update(self, keys: Float[Tensor, "B D"], image_id: Int64[Tensor, " B"], clock: Clock) -> None:
        """One step of Adam for the thresholds of the images that were queries, with the mean gradient of their views."""
        if not self._told:
            return
        image, gradient = (distributed.all_gather(torch.cat(parts)) for parts in zip(*self._told, strict=True))
        self._told = []
        known = (image >= 0) & (image < len(self.threshold))
        image, place, views = image[known].unique(return_inverse=True, return_counts=True)
        total = torch.zeros(len(image), dtype=gradient.dtype, device=gradient.device)
        step = total.index_add_(0, place, gradient[known]) / views
        visits = self.visits[image] + 1
        mean = torch.lerp(step, self.mean[image], DECAYS[0])
        square = torch.lerp(step**2, self.square[image], DECAYS[1])
        move = mean / (1 - DECAYS[0] ** visits) / ((square / (1 - DECAYS[1] ** visits)).sqrt() + EPSILON)
        moved = self.threshold[image] - value(self.rate, clock.progress) * move
        self.threshold[image], self.mean[image], self.square[image] = moved.clamp(-1, 1), mean, square
        self.visits[image] = visits

    def report(self) -> dict[str, Tensor]:
        """Mean threshold of the images that were queries."""
        return {"threshold": self.threshold[self.visits > 0].mean()}

    def _set_tables(self, images: int) -> None:
        device = self.threshold.device if hasattr(self, "threshold") else None
        self.register_buffer("threshold", torch.ones(images, device=device))
        self.register_buffer("mean", torch.zeros(images, device=device))
        self.register_buffer("square", torch.zeros(images, device=device))
        self.register_buffer("visits", torch.zeros(images, dtype=torch.long, device=device))


def _taken_over(before: Negatives, after: Negatives) -> Float[Tensor, "B 1"]:
    """Log of (weight before) / (weight after) of each row; 0 where nothing was removed or nothing stays."""
    total, rest = before.log_weight.logsumexp(dim=1), after.log_weight.logsumexp(dim=1)
    return torch.where(rest > -torch.inf, total - rest, 0)[:, None]
