"""Adversarial views: images moved a step against the contrastive loss, embedded with batch norm of their own."""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from contrastneg import distributed
from contrastneg.checks import check_range
from contrastneg.contrast import contrast, unit
from contrastneg.negatives import Clock
from contrastneg.schedules import Schedule


@dataclass(frozen=True)
class CLAE:
    r"""A third view of each image, which the encoder finds hard to tell from the others (CLAE, arXiv:2010.12050).

    .. math::
        x^{adv} = x_1 + \epsilon \operatorname{sign} \nabla_{x'} L(z'(x_1), z'(x')) |_{x' = x_1} \qquad
        L = L(z(x_1), z(x_2)) + \alpha L(z(x_1), z'(x^{adv}))

    z is the encoder and z' the same weights with batch norm layers of their own, scales and offsets included. The attack is
    one step on NT-Xent at the method's temperature over the batches of all processes, whatever loss and stages are; it
    starts where the pair is identical, so its direction comes from the other images. The loss of both terms is that of the
    method, after its stages; what stages are told after a step is of the plain views alone.

    Verdict: faithful to the official code in start, step, pairs, branch and momentum; images are not clipped afterwards. Its
    attack takes two passes where one has the same gradient. Cost: two forward and two backward passes of one view more,
    which makes a step about twice as long.
    """

    step: float | Schedule = 0.03
    """Largest change epsilon of each pixel, at least 0, in units of the normalised images. The default is of the published
    commands; the code's own is 0.01. A number or a schedule."""
    weight: float | Schedule = 1.0
    """Weight alpha of the adversarial term, at least 0. A number or a schedule."""
    norm_momentum: float = 0.01
    """Momentum of the running statistics of adversarial images, above 0 and at most 1. Training does not use them."""

    def __post_init__(self) -> None:
        check_range(self, "step", "weight", least=0)
        check_range(self, "norm_momentum", above=0, most=1)


def with_own_batch_norm(encoder: nn.Module, momentum: float) -> nn.Module:
    """A twin of an encoder with the very same parameters, but for those of its batch norm layers, which are copies.

    Args:
        encoder: Any network; without batch norm the twin shares everything.
        momentum: Of the running statistics of the twin's batch norm layers.
    """
    norms = {id(p) for layer in encoder.modules() if isinstance(layer, _BatchNorm) for p in layer.parameters()}
    shared = {id(parameter): parameter for parameter in encoder.parameters() if id(parameter) not in norms}
    twin = copy.deepcopy(encoder, shared)  # what deepcopy believes to have copied already stays itself
    for layer in twin.modules():
        if isinstance(layer, _BatchNorm):
            layer.momentum = momentum
    return twin


def attacked(
    images: Float[Tensor, "B C H W"],
    encoder: nn.Module,
    image_id: Int64[Tensor, " B"],
    step: float,
    clock: Clock,
) -> Float[Tensor, "B C H W"]:
    """Images moved by one step of the sign of the gradient of NT-Xent between them and themselves, which stay where they are.

    No parameter gets a gradient. Call it on all ranks.

    Args:
        images: One view of this process's images.
        encoder: From images to embeddings.
        image_id: Their images.
        step: Change of each pixel.
        clock: Where the run stands; its temperature is that of the loss.
    """
    moving = images.detach().requires_grad_()
    embedding = unit(encoder(moving))
    still, ids = embedding.detach(), image_id.repeat(2)
    query, partner = torch.cat([embedding, still]), torch.cat([still, embedding])
    keys, key_id = distributed.all_gather_with_grad(query), distributed.all_gather(ids)
    values, _, _ = contrast(query, partner, ids, keys, key_id, [], clock.temperature, clock)
    (uphill,) = torch.autograd.grad(values.sum(), moving)
    return images + step * uphill.sign()
