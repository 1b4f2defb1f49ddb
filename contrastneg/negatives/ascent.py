"""Networks inside stages: their weights, and the steps that a stage takes with them by itself."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.adam import adam

from contrastneg import distributed
from contrastneg.negatives.core import take_saved_sizes
from contrastneg.randomness import derive_seed


class Climber(nn.Module):
    """Weights that climb what a stage wants raised, by Adam's rule, whatever the encoder's optimizer does.

    All are buffers: in the checkpoint, equal on all processes as every step is, and unknown to the optimizer of the encoder.
    """

    weights: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("weights", "mean", "square"):  # the weights, and Adam's averages of the gradient and its square
            self.register_buffer(name, torch.zeros(0))
        self.register_buffer("steps", torch.zeros(()))

    def start(self, purpose: str, shapes: Sequence[tuple[int, int]]) -> None:
        """Draw first weights, the same in every process, unless there are some.

        Args:
            purpose: Name of the stage.
            shapes: Rows and columns of each layer, which is drawn from U(-1, 1) / sqrt(rows).
        """
        if self.weights.numel():
            return
        seed = derive_seed(purpose, *(number for shape in shapes for number in shape))
        generator = torch.Generator().manual_seed(seed)
        layers = [(2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(shape[0]) for shape in shapes]
        self.weights = torch.cat([layer.flatten() for layer in layers]).to(self.steps)
        self.mean, self.square = torch.zeros_like(self.weights), torch.zeros_like(self.weights)

    @torch.no_grad()
    def climb(self, gradient: Float[Tensor, " P"], rows: int | Tensor, rate: float) -> None:
        """One Adam step up, by the gradient averaged over the rows of all processes.

        Args:
            gradient: Sum over this process's rows of the gradient of what is to be raised.
            rows: How many those are.
            rate: Learning rate.
        """
        everywhere = distributed.total(torch.cat([gradient, gradient.new_tensor([float(rows)])]))
        adam(
            [self.weights],
            [everywhere[:-1] / everywhere[-1].clamp(min=1)],
            [self.mean],
            [self.square],
            [],
            [self.steps],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=True,
        )

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        take_saved_sizes(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
