"""Mixed images as queries, each to be like the keys of both images as much as it shows of either.

Mixing happens before the encoder, so it is a part of the training step and no stage: a mix says which images are embedded
and which rows are contrasted, and the rows' losses are added up.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.negatives import Clock

__all__ = ["IMix", "InputMix", "UnMix"]


@dataclass(frozen=True)
class Rows:
    """What a batch of B images is contrasted as: R rows, B after B. Without numbers each image is a row of its own."""

    query: Int64[Tensor, " R"] | None = None
    """Embedded image that is the row's query."""
    key: Int64[Tensor, " R"] | None = None
    """Image whose key is the row's positive."""
    share: Float[Tensor, " R"] | None = None
    """How much the row's loss counts."""

    def queries(self, embedding: Float[Tensor, "E D"]) -> Float[Tensor, "R D"]:
        """Of embedded images the query of each row."""
        return embedding if self.query is None else embedding[self.query]

    def targets(self, of_image: Shaped[Tensor, "B *rest"]) -> Shaped[Tensor, "R *rest"]:
        """Of numbers for each image those of the image that each row is to be like."""
        return of_image if self.key is None else of_image[self.key]

    def combined(self, losses: Float[Tensor, " R"], images: int) -> Float[Tensor, " B"]:
        """The loss of each of so many images from the losses of the rows."""
        return losses if self.share is None else (self.share * losses).view(-1, images).sum(dim=0)


Batch = Float[Tensor, "B C H W"]


class InputMix(ABC):
    """A way to make queries of several images."""

    batch_keys: ClassVar[bool] = False
    """Whether the keys of the batch are candidates besides those of a queue."""

    @abstractmethod
    def __call__(self, images: Batch, clock: Clock) -> tuple[list[Batch], Rows]:
        """The batches of images to embed, one by one, and the rows to contrast.

        Args:
            images: One view of the images of this process.
            clock: Where the run stands: all draws are functions of it.
        """


@dataclass(frozen=True)
class IMix(InputMix):
    r"""Contrast mixed images, and nothing else, with the keys of the plain ones (i-Mix, arXiv:2010.08887).

    .. math:: \tilde x_i = \lambda_i x_i + (1 - \lambda_i) x_{\pi(i)} \qquad
        L_i = \lambda_i L(\tilde x_i, k_i) + (1 - \lambda_i) L(\tilde x_i, k_{\pi(i)})

    with lambda = max(l, 1 - l), l ~ Beta(alpha, alpha) for each image and pi a permutation of the images of a process. With
    InfoNCE this is the cross-entropy with two labels over the keys of the batch and the queue, both of which are candidates.

    Verdict: faithful for MoCo, but that older keys of an image are no candidates where it is the target. The classifier
    trained alongside sees features of the mixed images. Cost: twice the rows after the encoder.
    """

    batch_keys: ClassVar[bool] = True

    alpha: float = 1.0
    """Both parameters of the Beta law, above 0; near 0 nothing is mixed, and large numbers mix half and half."""

    def __post_init__(self) -> None:
        check_range(self, "alpha", above=0)

    def __call__(self, images: Batch, clock: Clock) -> tuple[list[Batch], Rows]:
        """The mixed images; two rows for each."""
        draws, count = draws_of("IMix", clock), len(images)
        drawn = draws.beta(self.alpha, self.alpha, count)
        share = torch.as_tensor(np.maximum(drawn, 1 - drawn)).to(images)
        partner = torch.as_tensor(draws.permutation(count)).to(images.device)
        mixed = torch.lerp(images[partner], images, share[:, None, None, None])
        itself = torch.arange(count, device=images.device)
        return [mixed], Rows(itself.repeat(2), torch.cat([itself, partner]), torch.cat([share, 1 - share]))


@dataclass(frozen=True)
class UnMix(InputMix):
    r"""Contrast plain images and mixes with the batch in reverse order (Un-Mix, arXiv:2003.05438).

    .. math:: L = L(x_i, k_i) + \lambda L(\tilde x_i, k_i) + (1 - \lambda) L(\tilde x_i, k_{B + 1 - i})

    with lambda ~ Beta(alpha, alpha), one for the images of a process. A mix is the weighted sum of both images, or the first
    with a box of the other that covers 1 - lambda of it, less what falls outside, for which lambda is corrected.

    Verdict: faithful to the official code. The terms are added up and not averaged, as published: the loss has twice the
    scale of the plain one, and where nothing is mixed it is the plain one twice. Cost: a second forward and backward pass of
    the query encoder, and three times the rows after it.
    """

    alpha: float = 1.0
    """Both parameters of the Beta law, above 0; near 0 nothing is mixed, and large numbers mix half and half."""
    box: float = 0.5
    """Probability that a batch is mixed by boxes and not by sums, in [0, 1]."""

    def __post_init__(self) -> None:
        check_range(self, "alpha", above=0)
        check_range(self, "box", least=0, most=1)

    def __call__(self, images: Batch, clock: Clock) -> tuple[list[Batch], Rows]:
        """Plain and mixed images; a row for each plain one and two for each mix."""
        draws, count = draws_of("UnMix", clock), len(images)
        share = draws.beta(self.alpha, self.alpha)
        other = images.flip(0)
        if draws.random() < self.box:
            mixed = images.clone(memory_format=torch.preserve_format)
            rows, columns = (span(side, share, int(draws.integers(side))) for side in images.shape[2:])
            mixed[:, :, rows, columns] = other[:, :, rows, columns]
            share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / images[0, 0].numel()
        else:
            mixed = torch.lerp(other, images, share)
        itself = torch.arange(count, device=images.device)
        shares = images.new_tensor([1.0, share, 1 - share]).repeat_interleave(count)
        query, key = [itself, itself + count, itself + count], [itself, itself, itself.flip(0)]
        return [images, mixed], Rows(torch.cat(query), torch.cat(key), shares)


def span(side: int, share: float, centre: int) -> slice:
    """Where a box that covers 1 - ``share`` of a picture lies along one side: around a centre, cut off at the edges."""
    half = int(side * (1 - share) ** 0.5) // 2
    return slice(max(0, centre - half), min(side, centre + half))


def draws_of(purpose: str, clock: Clock) -> np.random.Generator:
    """Random numbers of one step; numpy's, whose Beta law takes a generator."""
    return np.random.default_rng(clock.generator(purpose).initial_seed())
