"""False negatives by support views: candidates that resemble the query's image in any of its views."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.negatives.core import Clock, Facts, Negatives, Stage, StageWithState, whole
from contrastneg.negatives.eliminate import Action, treat
from contrastneg.schedules import Schedule, value


@dataclass(frozen=True)
class SupportViews(Stage):
    r"""Remove, or attract, candidates that resemble any view of the query's image (FNC, arXiv:2011.11765).

    With z over the query, its positive and ``views`` further views of the same image, embedded without gradient,

    .. math:: F_i = \operatorname{top}_k \left( \max_z z \cdot k_j \right) \cap \{ j : \max_z z \cdot k_j > \theta \}

    Verdict: faithful in the detection, k, threshold and number of views, which are those of the released code; it only
    attracts, the paper also eliminates. Here the query alone is an anchor, not its support views. What is found is the same
    for both views of an image only if both meet the same candidates.
    """

    kind: ClassVar[str] = "eliminate"
    needs: ClassVar[frozenset[str]] = frozenset({"id", "support"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})

    views: int = 8
    """Further views of each image that the method makes and embeds for this, at least 1."""
    top: int | Schedule = 10
    """At most this many false negatives per query (k). A number or a schedule."""
    threshold: float | Schedule = 0.7
    """Cosine above which a candidate may be one; 1 finds none. A number or a schedule."""
    action: Action = "eliminate"
    """Remove what is found, or attract it as further positives."""

    def __post_init__(self) -> None:
        check_range(self, "views", least=1)
        check_range(self, "top", least=0)
        check_range(self, "threshold", least=-1, most=1)

    @property
    def attracts(self) -> bool:
        """Whether it marks further positives."""
        return self.action == "attract"

    @property
    def support_views(self) -> int:
        """Further views of each image that must be made and embedded for it."""
        return self.views

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table without candidates that resemble a view of the query's image.

        Raises:
            ValueError: The table has no support views.
        """
        if negatives.support is None:
            raise ValueError(
                "SupportViews met a table without support views: fill Negatives.support, or use SupportMemory"
            )
        found = resembling(negatives, negatives.support, self.top, self.threshold, clock)
        return treat(negatives, found, self.action)


@dataclass(eq=False)
class SupportMemory(StageWithState):
    r"""As SupportViews, with past keys of the same image in place of further views: no image is embedded more often.

    The last ``depth`` keys of every image are remembered by image index, from the epochs before. Verdict: analogy to FNC
    (arXiv:2011.11765): the views are of several epochs, so embeddings of an older encoder. With ``depth`` 0 the query and
    its positive alone are compared. Memory: 4 bytes x images x depth x width of the embedding (25 MB per key of 50,000
    images at 128 numbers).
    """

    kind: ClassVar[str] = "eliminate"
    needs: ClassVar[frozenset[str]] = frozenset({"id"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})
    past: Tensor = field(init=False, repr=False)
    seen: Tensor = field(init=False, repr=False)

    depth: int = 2
    """Past keys kept of each image, at least 0."""
    top: int | Schedule = 10
    """At most this many false negatives per query (k). A number or a schedule."""
    threshold: float | Schedule = 0.7
    """Cosine above which a candidate may be one; 1 finds none. A number or a schedule."""
    action: Action = "eliminate"
    """Remove what is found, or attract it as further positives."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "depth", "top", least=0)
        check_range(self, "threshold", least=-1, most=1)
        self.register_buffer("past", torch.zeros(0, self.depth, 1))
        self.register_buffer("seen", torch.zeros(0, dtype=torch.long))  # keys of each image so far

    @property
    def attracts(self) -> bool:
        """Whether it marks further positives."""
        return self.action == "attract"

    def begin(self, facts: Facts) -> None:
        """Make room for the past keys of all images."""
        self.past = torch.zeros(facts.images, self.depth, facts.dim, device=self.past.device)
        self.seen = torch.zeros(facts.images, dtype=torch.long, device=self.seen.device)

    def update(self, keys: Float[Tensor, "B D"], image_id: Int64[Tensor, " B"], clock: Clock) -> None:
        """Write the keys over the oldest of their images."""
        if self.depth == 0:
            return
        order = image_id.argsort(stable=True)  # keys of one image one after the other, in the order given
        image, rows = image_id[order], keys[order].to(self.past.dtype)
        which = torch.arange(len(image), device=image.device)
        first = torch.searchsorted(image, image)
        count = torch.searchsorted(image, image, right=True) - first
        stays = which - first >= count - self.depth  # of more keys than there is room for, the last
        slot = (self.seen[image] + which - first) % self.depth
        self.past[image[stays], slot[stays]] = rows[stays]
        self.seen.index_add_(0, image, torch.ones_like(image))

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table without candidates that resemble a view of the query's image, now or before."""
        known = (negatives.query_id >= 0) & (negatives.query_id < len(self.past))
        if len(self.past):
            image = negatives.query_id.clamp(0, len(self.past) - 1)
            filled = torch.arange(self.depth, device=image.device) < self.seen[image, None]
            views = self.past[image].masked_fill(~(filled & known[:, None])[:, :, None], torch.nan)
        else:
            views = negatives.query.new_zeros(len(known), 0, negatives.query.shape[1])
        return treat(negatives, resembling(negatives, views, self.top, self.threshold, clock), self.action)


def resembling(
    negatives: Negatives,
    views: Float[Tensor, "B S D"],
    top: int | Schedule,
    threshold: float | Schedule,
    clock: Clock,
) -> Bool[Tensor, "B M"]:
    """Keys among the ``top`` most similar to any view of the query's image, and above the threshold.

    Args:
        negatives: The table; removed and synthetic candidates are never found.
        views: Unit-norm views of each query's image beside query and positive; NaN where there is none.
        top: Number found at most per query.
        threshold: Cosine above which a candidate may be found.
        clock: Where the run stands.
    """
    score = support_score(negatives, views)
    count = min(whole(top, clock), negatives.n_keys)
    highest, column = score.topk(count, dim=1)
    found = torch.zeros_like(negatives.kept)
    return found.scatter(1, column, highest > value(threshold, clock.progress))


@torch.no_grad()
def support_score(negatives: Negatives, views: Float[Tensor, "B S D"]) -> Float[Tensor, "B K"]:
    """Largest cosine of each key with a view of the query's image; -inf for removed keys."""
    keys = negatives.keys.detach()
    wide = negatives.similarity.dtype
    score = negatives.similarity.detach()[:, : negatives.n_keys]
    with torch.autocast(score.device.type, enabled=False):
        keys = keys.to(wide)
        for view in (negatives.positive.detach(), *views.detach().unbind(1)):
            cosine = view.to(wide) @ keys.T if keys.ndim == 2 else (keys @ view.to(wide)[:, :, None]).squeeze(2)
            score = torch.where(cosine > score, cosine, score)  # NaN is not larger
    return score.masked_fill(~negatives.kept[:, : negatives.n_keys], -torch.inf)
