"""Losses that are square in the similarity: exact over all pairs through a D x D matrix, without forming a pair.

``sum_j c_j (q.k_j)^2 = q' (sum_j c_j k_j k_j') q``: the second moment of the keys says all that a query must know, at
D^2 per query for any number of keys. It is a sum over keys, so a queue or a group of images can be added and subtracted.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg.losses.rows import check_table, empty_rows, weighted_mean, wide


def spectral(
    pos: Float[Tensor, " B"], neg: Float[Tensor, "B M"], log_weight: Float[Tensor, "B M"] | None = None
) -> Float[Tensor, " B"]:
    r"""Spectral contrastive loss (arXiv:2106.04156), one value per query.

    .. math:: -2 p + \frac{1}{\sum_j w_j} \sum_j w_j n_j^2

    Args:
        pos: Similarity of each query to its positive; the paper's embeddings are bounded in length, not of unit length.
        neg: Similarity of each query to each candidate negative; M may be 0.
        log_weight: ``log w``: 0 counts a candidate once, ``-inf`` drops it. None means all 0.

    Returns:
        Losses, negative for good embeddings; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: The shapes do not fit.
    """
    check_table(pos, neg, log_weight)
    loss = weighted_mean(wide(neg).square(), log_weight) - 2 * wide(pos)
    return loss.masked_fill(empty_rows(neg, log_weight), 0)


def square(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    negative_weight: float,
    target: float = 0.0,
) -> Float[Tensor, " B"]:
    r"""Square loss on cosines (as in EHCF and NS-KGE), one value per query.

    .. math:: (1 - p)^2 + \frac{c}{\sum_j w_j} \sum_j w_j (n_j - \theta)^2

    It draws candidates to the target from both sides: it decorrelates rather than repels.

    Args:
        pos: See :func:`spectral`.
        neg: See :func:`spectral`.
        log_weight: See :func:`spectral`.
        negative_weight: c > 0, what all candidates together weigh.
        target: theta, the cosine that candidates should have.

    Returns:
        Losses >= 0; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: The shapes do not fit.
    """
    check_table(pos, neg, log_weight)
    loss = (1 - wide(pos)).square() + negative_weight * weighted_mean((wide(neg) - target).square(), log_weight)
    return loss.masked_fill(empty_rows(neg, log_weight), 0)


@dataclass(frozen=True)
class KeyMoments:
    """Sums over weighted keys, one set or one per group, that give square losses without the keys.

    The rows of :attr:`matrix` and the like may be added to and subtracted from each other: a queue that changes takes
    ``moments + KeyMoments.of(new) - KeyMoments.of(old)``, rebuilt once per round against float32 drift.
    """

    matrix: Float[Tensor, "*groups D D"]
    """Sum of ``c k k'``."""
    vector: Float[Tensor, "*groups D"]
    """Sum of ``c k``."""
    mass: Float[Tensor, "*groups"]
    """Sum of ``c``."""

    @classmethod
    def of(cls, keys: Float[Tensor, "K D"], weight: Float[Tensor, " K"] | None = None) -> "KeyMoments":
        """Moments of keys, differentiable in them.

        Args:
            keys: Embeddings; summed in float32 at least.
            weight: c >= 0 of each key; None means 1.
        """
        keys = wide(keys)
        weight = keys.new_ones(len(keys)) if weight is None else weight.to(keys.dtype)
        with torch.autocast(keys.device.type, enabled=False):
            weighted = keys * weight[:, None]
            return cls(weighted.T @ keys, weighted.sum(dim=0), weight.sum())

    @classmethod
    def of_groups(
        cls,
        keys: Float[Tensor, "K D"],
        group: Int64[Tensor, " K"],
        groups: int,
        weight: Float[Tensor, " K"] | None = None,
    ) -> "KeyMoments":
        """Moments of each group of keys (a cluster, a label, a place); groups x D x D numbers.

        Args:
            keys: See :meth:`of`.
            group: Group of each key, below ``groups``; -1 belongs to none.
            groups: How many there are.
            weight: See :meth:`of`.
        """
        each = [group == number for number in range(groups)]
        parts = [cls.of(keys[own], None if weight is None else weight[own]) for own in each]
        return cls(*(torch.stack([getattr(part, name) for part in parts]) for name in ("matrix", "vector", "mass")))

    def __add__(self, other: "KeyMoments") -> "KeyMoments":
        return KeyMoments(self.matrix + other.matrix, self.vector + other.vector, self.mass + other.mass)

    def __sub__(self, other: "KeyMoments") -> "KeyMoments":
        return self + other.scaled(-1)

    def __getitem__(self, group: Int64[Tensor, " B"]) -> "KeyMoments":
        """The moments of each query's group, all zero for group -1."""
        known = group >= 0
        index = group.clamp(min=0)
        return KeyMoments(
            self.matrix[index] * known[:, None, None], self.vector[index] * known[:, None], self.mass[index] * known
        )

    def scaled(self, factor: float) -> "KeyMoments":
        """Every weight times a factor; ``m * moments + (1 - m) * new`` is a queue without end."""
        return KeyMoments(self.matrix * factor, self.vector * factor, self.mass * factor)

    def square_sum(self, query: Float[Tensor, "B D"], target: float = 0.0) -> Float[Tensor, " B"]:
        r"""``sum_j c_j (q.k_j - target)^2`` of each query, D^2 operations each.

        Args:
            query: Embeddings; the moments are one set for all of them or one per query.
            target: Number subtracted from each similarity.
        """
        query = wide(query)
        with torch.autocast(query.device.type, enabled=False):
            # One set for all queries, or each query its own, as [group] gives them.
            pushed = query @ self.matrix if self.matrix.ndim == 2 else (query[:, None] @ self.matrix).squeeze(1)
            second, first = (pushed * query).sum(dim=1), (query * self.vector).sum(dim=1)
        return second - 2 * target * first + target**2 * self.mass


def square_all_pairs(
    view1: Float[Tensor, "T D"],
    view2: Float[Tensor, "T D"],
    *,
    negative_weight: float,
    positive_weight: float = 1.0,
    target: float = 0.0,
    key_weight: Float[Tensor, " T"] | None = None,
    group: Int64[Tensor, " T"] | None = None,
) -> Float[Tensor, " T"]:
    r"""Square loss of every image against every other, at T D^2 instead of T^2 D, one value per image.

    .. math:: c_+ (1 - s_{ii})^2 + c \sum_{j \ne i} c_j (s_{ij} - \theta)^2

    Args:
        view1: Unit-norm embeddings of one view, with gradient.
        view2: Unit-norm embeddings of the other view, row by row of the same images; with gradient if they require it.
        negative_weight: c > 0 of each pair of different images.
        positive_weight: c+ > 0.
        target: theta, the cosine that different images should have.
        key_weight: c_j of each image as a negative, for instance by its popularity; None means 1.
        group: Images of one group are no negatives of each other; -1 belongs to none.

    Returns:
        Losses >= 0.
    """
    view1, view2 = wide(view1), wide(view2)
    weight = view2.new_ones(len(view2)) if key_weight is None else key_weight
    own = (view1 * view2).sum(dim=1)
    negative = KeyMoments.of(view2, weight).square_sum(view1, target)
    if group is None:
        negative = negative - weight * (own - target).square()
    else:
        order = group.argsort()
        members = order[(group < 0).sum() :]
        for rows in members.split(group[members].bincount().tolist()):  # one D x D at a time, not one per image
            same = KeyMoments.of(view2[rows], weight[rows]).square_sum(view1[rows], target)
            negative = negative.index_add(0, rows, -same)
        negative = negative - (group < 0) * weight * (own - target).square()
    return positive_weight * (1 - own).square() + negative_weight * negative


def spectral_contrastive(
    view1: Float[Tensor, "B D"], view2: Float[Tensor, "B D"], *, radius: float | None = None
) -> Float[Tensor, " B"]:
    r"""Spectral contrastive loss of a batch (arXiv:2106.04156) through its second moment, one value per image.

    .. math:: \frac{1}{\mu} \left[ -2 s_{ii} + \frac{1}{B - 1} \sum_{j \ne i} s_{ij}^2 \right]

    Args:
        view1: Embeddings of one view, of any length.
        view2: Embeddings of the other view, row by row of the same images.
        radius: Square root of mu: longer rows are cut back to it, as in the official code (1 for CIFAR-10, square root
            of 10 for ImageNet). None leaves all lengths alone and mu at 1.

    Returns:
        Losses; exactly 0, with zero gradient, for a single image.
    """
    view1, view2, scale = wide(view1), wide(view2), 1.0
    if radius is not None:
        view1, view2, scale = clip_norm(view1, radius), clip_norm(view2, radius), radius**2
    own = (view1 * view2).sum(dim=1)
    if len(own) < 2:
        return own * 0
    others = KeyMoments.of(view2).square_sum(view1) - own.square()
    return (others / (len(own) - 1) - 2 * own) / scale


def clip_norm(embedding: Float[Tensor, "B D"], radius: float) -> Float[Tensor, "B D"]:
    """Rows longer than ``radius`` cut back to it, others as they are.

    Args:
        embedding: Any rows.
        radius: Largest length, above 0.
    """
    length = embedding.norm(dim=1, keepdim=True)
    return torch.where(length > radius, embedding * (radius / length.clamp(min=radius)), embedding)
