"""Losses with state: what they remember of each image is in the checkpoint."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from contrastneg import distributed, losses
from contrastneg.checks import check_range
from contrastneg.negatives import Clock, Facts
from contrastneg.negatives.core import take_saved_sizes
from contrastneg.objective import Measure, Objective, SumObjective, ignore
from contrastneg.schedules import Schedule, value
from contrastneg.sums import Sums


@dataclass(eq=False)
class SogCLR(SumObjective, nn.Module):
    r"""Decoupled, against a moving average of each image's negatives in the place of the batch's sum (arXiv:2202.12387).

    With t the temperature, for each image and view

    .. math:: u_i \leftarrow (1 - \gamma) u_i + \gamma \operatorname{mean}_j e^{s_{ij} / t} \qquad
        \nabla L_i = -\nabla s_i^+ + \operatorname{mean}_j \frac{e^{s_{ij} / t}}{u_i} \nabla s_{ij}

    and u is the mean itself at the first visit. With gamma 1 the gradient is t times that of Decoupled: learning rates are
    in proportion. Outside training u is not moved.

    Verdict: gradient, averages, first visit and gamma are those of the official code; the value is t log u - s+, which the
    gradient descends on average, and not its surrogate. Memory: 10 bytes per image. Under several processes all hold the
    averages of all images.
    """

    ignores_mass = True
    log_average: Tensor = field(init=False, repr=False)
    visited: Tensor = field(init=False, repr=False)

    gamma: float | Schedule = 0.9
    """Share of the new mean in the average, above 0 and at most 1. A number or a schedule."""

    def __post_init__(self) -> None:
        check_range(self, "gamma", above=0, most=1)
        nn.Module.__init__(self)
        self._set_tables(0)

    def begin(self, facts: Facts) -> None:
        """Make room for the averages of all images, for either view."""
        self._set_tables(facts.images)

    def _set_tables(self, images: int) -> None:
        like = self.log_average if "log_average" in self._buffers else torch.zeros(0)
        self.register_buffer("log_average", like.new_zeros(2, images))
        self.register_buffer("visited", torch.zeros(2, images, dtype=torch.bool, device=like.device))

    def of_sums(self, sums: Sums, temperature: float, clock: Clock, record: Measure = ignore) -> Float[Tensor, " B"]:
        """See :func:`contrastneg.losses.moving_average_info_nce`."""
        lse, count = sums.logsumexp(temperature), sums.log_count()
        keep = self.training and torch.is_grad_enabled()
        average = self._average((lse - count).detach(), sums.image_id, clock, keep)
        return losses.moving_average_from_logsumexp(
            sums.positive, lse, count, temperature=temperature, log_average=average
        )

    @torch.no_grad()
    def _average(
        self, log_mean: Float[Tensor, " B"], image_id: Int64[Tensor, " B"], clock: Clock, keep: bool
    ) -> Float[Tensor, " B"]:
        """The averages with this visit, in logarithms; of images that are not known the mean itself."""
        images = self.log_average.shape[1]
        known = (image_id >= 0) & (image_id < images) & ~log_mean.isnan()  # NaN without candidates
        if images == 0:
            return log_mean
        view = (times_before(image_id) + clock.direction) % 2
        place = torch.where(known, view * images + image_id, 0)
        gamma = torch.full_like(log_mean, value(self.gamma, clock.progress))
        old = self.log_average.flatten()[place].to(log_mean.dtype)
        moved = torch.logaddexp(old + (1 - gamma).log(), log_mean + gamma.log())
        average = torch.where(known & self.visited.flatten()[place], moved, log_mean)
        if keep:
            self._keep(torch.where(known, place, -1), average)
        return average

    def _keep(self, place: Int64[Tensor, " B"], average: Float[Tensor, " B"]) -> None:
        """Write the averages of all processes' queries; of a view that was several queries, the first."""
        place, average = distributed.all_gather(place), distributed.all_gather(average)
        slot, group = place.unique(return_inverse=True)
        order = torch.arange(len(place), device=place.device)
        first = torch.full_like(slot, len(place)).scatter_reduce_(0, group, order, "amin")[slot >= 0]
        self.log_average.view(-1)[place[first]] = average[first].to(self.log_average.dtype)
        self.visited.view(-1)[place[first]] = True

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        take_saved_sizes(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def times_before(image_id: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """How many earlier rows show the same image: 0 for its first view and 1 for its second."""
    return (image_id[:, None] == image_id).tril(-1).sum(dim=1)


def check_views(loss: Objective, change: Any) -> None:
    """Refuse a loss that remembers what views were like beside a setting that adds other views or mixes them.

    Args:
        loss: The loss.
        change: The setting, None without one.

    Raises:
        ValueError: There is such a setting, and the loss has state.
    """
    if change is not None and isinstance(loss, nn.Module):
        raise ValueError(
            f"loss {type(loss).__name__} keeps an average for each view of an image, and {type(change).__name__} makes views "
            "that it knows nothing of: leave one of them out"
        )
