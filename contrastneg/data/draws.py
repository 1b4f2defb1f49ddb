"""What a view may undergo, and the random parameters of each picture.

All random numbers of a batch are drawn at once on the CPU, one row per picture, whatever is then switched on. So a
picture's parameters depend on the generator and its row in the batch: not on the chunks the batch is worked off in, on
which operations its neighbours met, on the probabilities in the settings, or on the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrastneg.checks import WrongSetting, check_kinds, check_range
from contrastneg.data.augment import Interpolation

CROP_TRIES = 10  # as torchvision's RandomResizedCrop


@dataclass(frozen=True)
class Augment:
    """How one view is made: crop, flip, colour jitter, grey, blur, solarize, in this order."""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the picture's area that a crop keeps, in (0, 1]."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width : height of a crop."""
    interpolation: Interpolation = "bilinear"
    """Filter that resizes the crop, always antialiased: bilinear or bicubic."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of brightness, contrast, saturation (factor in 1 +- strength) and hue (turns, at most 0.5)."""
    jitter_prob: float = 0.8
    """Probability of the colour jitter; its four operations come in random order."""
    gray_prob: float = 0.2
    """Probability of turning grey."""
    gray_first: bool = False
    """Turn grey before the colour jitter instead of after it (MoCo v1)."""
    blur_prob: float = 0.0
    """Probability of a Gaussian blur; its kernel spans about a tenth of the view."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels."""
    solarize_prob: float = 0.0
    """Probability of inverting the bright half of the pixel values."""

    def __post_init__(self) -> None:
        check_kinds(self)
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            trouble = f"is {self.crop_scale}: give two shares of the area, 0 < low <= high <= 1"
            raise WrongSetting(self, "crop_scale", trouble)
        for name in ("crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise WrongSetting(self, name, f"is {(low, high)}: give two numbers, 0 < low <= high")
        if not all(0 <= strength < math.inf for strength in self.jitter) or self.jitter[3] > 0.5:
            trouble = f"is {self.jitter}: give four strengths >= 0, the last (hue) at most 0.5"
            raise WrongSetting(self, "jitter", trouble)
        check_range(self, "flip", "jitter_prob", "gray_prob", "blur_prob", "solarize_prob", least=0, most=1)


@dataclass(frozen=True)
class Crops:
    """One box and flip per picture, in source pixels."""

    top: Float[Tensor, " N"]
    left: Float[Tensor, " N"]
    height: Float[Tensor, " N"]
    width: Float[Tensor, " N"]
    mirror: Bool[Tensor, " N"]


@dataclass(frozen=True)
class Colors:
    """Everything after the crop, per picture. An operation that a picture was spared has its neutral parameter."""

    factors: Float[Tensor, "N 4"]
    """Brightness, contrast, saturation factors (neutral 1) and hue shift (neutral 0)."""
    order: Int[Tensor, "N 4"]
    """Order of those four."""
    gray: Bool[Tensor, " N"]
    sigma: Float[Tensor, " N"]
    """Of the blur; 0 is none."""
    solarize: Bool[Tensor, " N"]


Parameters = TypeVar("Parameters", Crops, Colors)


def rows_of(parameters: Parameters, part: slice) -> Parameters:
    """The parameters of a stretch of a batch."""
    return type(parameters)(**{name: column[part] for name, column in vars(parameters).items()})


def joined(parts: Sequence[Parameters]) -> Parameters:
    """The parameters of several batches, one after the other."""
    return type(parts[0])(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def draw_crops(n: int, height: int, width: int, augment: Augment, generator: torch.Generator) -> Crops:
    """Boxes with the law of torchvision's ``RandomResizedCrop``, and flips, for ``n`` pictures of one size.

    Ten (area, ratio) pairs are drawn and the first box that fits the picture counts; if none does, the largest centred
    box of a legal ratio. Every size from 1 x 1 upwards has an answer.
    """
    uniform = torch.rand(n, 2 * CROP_TRIES + 3, generator=generator)
    area = height * width * _between(uniform[:, :CROP_TRIES], *augment.crop_scale)
    ratio_range = [math.log(ratio) for ratio in augment.crop_ratio]
    ratio = _between(uniform[:, CROP_TRIES : 2 * CROP_TRIES], *ratio_range).exp()
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)  # of equal maxima argmax gives the first
    any_fits = fits.any(dim=1)
    centred_height, centred_width = _largest_legal_box(height, width, augment.crop_ratio)
    box_height = torch.where(any_fits, heights.gather(1, first)[:, 0], float(centred_height))
    box_width = torch.where(any_fits, widths.gather(1, first)[:, 0], float(centred_width))
    room_down, room_right = height - box_height, width - box_width
    u, v, w = uniform[:, 2 * CROP_TRIES :].unbind(dim=1)
    top = torch.where(any_fits, (u * (room_down + 1)).floor(), (room_down / 2).floor())
    left = torch.where(any_fits, (v * (room_right + 1)).floor(), (room_right / 2).floor())
    return Crops(
        torch.minimum(top, room_down), torch.minimum(left, room_right), box_height, box_width, w < augment.flip
    )


def _largest_legal_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    if width / height < ratio[0]:
        return max(1, round(width / ratio[0])), width
    if width / height > ratio[1]:
        return height, max(1, round(height * ratio[1]))
    return height, width


def draw_colors(n: int, augment: Augment, generator: torch.Generator) -> Colors:
    """Jitter with the law of torchvision's ``ColorJitter`` (order per picture included), grey, blur, solarize."""
    uniform = torch.rand(n, 13, generator=generator)
    on = uniform[:, :1] < augment.jitter_prob
    strength = torch.tensor(augment.jitter, dtype=torch.float32)
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0])
    low, high = neutral - strength, neutral + strength
    low[:3].clamp_(min=0)  # a strength above 1 does not make a factor negative
    return Colors(
        factors=torch.where(on, _between(uniform[:, 1:5], low, high), neutral),
        order=uniform[:, 5:9].argsort(dim=1),
        gray=uniform[:, 9] < augment.gray_prob,
        sigma=_between(uniform[:, 11], *augment.blur_sigma) * (uniform[:, 10] < augment.blur_prob),
        solarize=uniform[:, 12] < augment.solarize_prob,
    )


def _between(uniform: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    return low + (high - low) * uniform
