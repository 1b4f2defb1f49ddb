"""Two augmented views of each picture, and the single view used for evaluation.

Two ways in, one law of views. Pictures in memory: :func:`two_views` crops and colours a whole uint8 batch on its device.
Pictures from a stream: workers call :func:`crop_pair` on each picture, and :func:`finish_views` does the rest on the
stacked crops, wherever they then are. Two things differ: a streamed crop is rounded to 8 bits before its colours change,
and its box is drawn from a generator of its own, not of the batch. So the same seed gives other views when loading changes.
Randomness comes from the CPU generator handed in and from nothing else.

Axes: B pictures, C channels (1 or 3), H and W source pixels, S pixels per side of a view.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from contrastneg.checks import check_side
from contrastneg.data.augment import blur_, blur_kernel_size, color_jitter_, crop_resize, grayscale_, solarize_
from contrastneg.data.draws import Augment, Colors, Crops, draw_colors, draw_crops, joined, rows_of

__all__ = [
    "Augment",
    "Views",
    "crop_batch",
    "crop_one",
    "crop_pair",
    "describe",
    "eval_crop",
    "eval_view",
    "finish_views",
    "normalized",
    "two_views",
]

# Values per working tensor. On a CPU it should be worth its launches and stay near the cache (512 pictures of 32 x 32: with
# 256 a picture took 10-15 % longer, with 128 half as long again, with 2,048 the same); elsewhere it only bounds memory.
_CHUNK_CPU = 512 * 3 * 32 * 32
_CHUNK_ACCELERATOR = 32 * 2**20

EXACT_SIZE_UP_TO = 64
"""Evaluation views up to this size show the whole short side; larger ones its middle 7/8, as ImageNet protocols do."""


@dataclass(frozen=True)
class Views:
    """The recipe of both views."""

    size: int = 32
    """Pixels per side of a view, from 1 to 10,000; for networks that cut images into patches a multiple of the patch."""
    view1: Augment = field(default_factory=Augment)
    """How the first view is made."""
    view2: Augment | None = None
    """How the second view is made; none: like the first."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel for pixels in [0, 1] (default: ImageNet). One-channel pictures use the average."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel for pixels in [0, 1] (default: ImageNet)."""

    def __post_init__(self) -> None:
        check_side(self.size)
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std):
            raise ValueError(
                f"views.mean has {len(self.mean)} values and views.std {len(self.std)}: give 3 each (or 1 each)"
            )
        if not all(0 <= value <= 1 for value in self.mean):
            raise ValueError(f"views.mean is {self.mean}: pixels lie in [0, 1], divide 8-bit values by 255")
        if not all(0 < value <= 1 for value in self.std):
            raise ValueError(f"views.std is {self.std}: give numbers in (0, 1], divide 8-bit values by 255")

    @property
    def both(self) -> tuple[Augment, Augment]:
        """The settings of view 1 and view 2."""
        return self.view1, self.view2 or self.view1

    @property
    def alike(self) -> bool:
        """Whether both views are made by the same settings."""
        return self.view2 in (None, self.view1)

    @property
    def short_side(self) -> int:
        """Pixels that the short side of a picture is resized to for evaluation, before the centre square is cut out."""
        return self.size if self.size <= EXACT_SIZE_UP_TO else round(self.size * 8 / 7)


def two_views(
    images: UInt8[Tensor, "B C H W"], views: Views, generator: torch.Generator
) -> tuple[Float[Tensor, "B C S S"], Float[Tensor, "B C S S"]]:
    """Two augmented, normalised float32 views of each picture, made on the device of ``images``.

    Args:
        images: 8-bit pictures of one size, any size from 1 x 1.
        views: The recipe.
        generator: A CPU generator, made for this batch.

    Returns:
        View 1 and view 2, without gradient; where one recipe makes both they are two halves of one tensor.

    Raises:
        ValueError: Pixels that are not uint8, or neither 1 nor 3 channels.
    """
    _check_pixels(images)
    count, _, height, width = images.shape
    drawn = [
        (draw_crops(count, height, width, augment, generator), draw_colors(count, augment, generator))
        for augment in views.both
    ]
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        if views.alike:  # one batch of twice the pictures: half the launches
            boxes, colors = zip(*drawn, strict=True)
            both = torch.cat([images, images])
            both = _augmented(both, joined(boxes), joined(colors), views.view1, views)
            return both[:count], both[count:]
        view1, view2 = (
            _augmented(images, boxes, colors, augment, views)
            for augment, (boxes, colors) in zip(views.both, drawn, strict=True)
        )
    return view1, view2


def crop_batch(images: UInt8[Tensor, "B C H W"], boxes: Crops, views: Views) -> Float[Tensor, "B C S S"]:
    """Given boxes and flips of a batch, resized and normalised, with nothing else done to them: for training on labels.

    Args:
        images: 8-bit pictures of one size.
        boxes: One per picture.
        views: Size, normalisation, and view 1's interpolation.

    Returns:
        float32, on the device of ``images``, without gradient.
    """
    _check_pixels(images)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        return _in_chunks(
            images,
            views.size,
            lambda part: _normalize_(_cropped(images[part], rows_of(boxes, part), views.view1, views.size), views),
        )


def crop_pair(image: UInt8[Tensor, "C H W"], views: Views, generator: torch.Generator) -> UInt8[Tensor, "2 C S S"]:
    """The geometric half of both views of one picture: crop, antialiased resize, flip. Meant for loader workers.

    Args:
        image: An 8-bit picture of any size.
        views: The recipe.
        generator: A CPU generator, made for this picture.

    Returns:
        Two 8-bit crops, for :func:`finish_views`.
    """
    return torch.stack([crop_one(image, augment, views.size, generator) for augment in views.both])


def crop_one(
    image: UInt8[Tensor, "C H W"], augment: Augment, size: int, generator: torch.Generator
) -> UInt8[Tensor, "C S S"]:
    """The geometric half of one view of one picture; see :func:`crop_pair`.

    Args:
        image: An 8-bit picture of any size.
        augment: How crops and flips are drawn.
        size: Pixels per side.
        generator: A CPU generator, made for this picture.
    """
    _check_pixels(image)
    box = draw_crops(1, image.shape[-2], image.shape[-1], augment, generator)
    crop = tv.resized_crop(
        image,
        *(int(side) for side in (box.top, box.left, box.height, box.width)),
        size=[size, size],
        interpolation=InterpolationMode(augment.interpolation),
        antialias=True,
    )
    return tv.horizontal_flip(crop) if box.mirror else crop


def finish_views(
    crops: UInt8[Tensor, "B 2 C S S"], views: Views, generator: torch.Generator
) -> tuple[Float[Tensor, "B C S S"], Float[Tensor, "B C S S"]]:
    """The other half of both views, on the device of ``crops``: jitter, grey, blur, solarize, normalise.

    Args:
        crops: Stacked results of :func:`crop_pair`.
        views: The recipe.
        generator: A CPU generator, made for this batch.

    Returns:
        View 1 and view 2, float32, without gradient; two halves of one tensor.
    """
    _check_pixels(crops)
    drawn = [draw_colors(len(crops), augment, generator) for augment in views.both]
    with torch.no_grad(), torch.autocast(crops.device.type, enabled=False):
        pixels = crops.transpose(0, 1).contiguous().float().div_(255)  # view after view
        if views.alike:
            _finish_in_chunks_(pixels.flatten(0, 1), joined(drawn), views.view1, views)
        else:
            for view, colors, augment in zip(pixels, drawn, views.both, strict=True):
                _finish_in_chunks_(view, colors, augment, views)
    return pixels[0], pixels[1]


def eval_crop(images: UInt8[Tensor, "*B C H W"], views: Views) -> UInt8[Tensor, "*B C S S"]:
    """The middle of each picture, without chance: resize the short side (antialiased), cut out the centre square.

    Up to 64 pixels the short side becomes S; above, S * 8/7 (256 for 224), so that the centre square shows 7/8 of it.

    Args:
        images: One 8-bit picture or a batch of one size.
        views: Gives S, and view 1 the interpolation.

    Returns:
        8-bit squares.
    """
    _check_pixels(images)
    # The ends of a very long picture are cut off first: resized, a strip of one pixel's width would fill the memory.
    limit = 4 * min(images.shape[-2:])
    images = tv.center_crop(images, [min(side, limit) for side in images.shape[-2:]])
    images = tv.resize(
        images, [views.short_side], interpolation=InterpolationMode(views.view1.interpolation), antialias=True
    )
    return tv.center_crop(images, [views.size, views.size])


def eval_view(images: UInt8[Tensor, "B C H W"], views: Views) -> Float[Tensor, "B C S S"]:
    """:func:`eval_crop`, then the same normalisation as in training; the same pixels as in a stream."""
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        return normalized(eval_crop(images, views), views)


def normalized(crops: UInt8[Tensor, "B C S S"], views: Views) -> Float[Tensor, "B C S S"]:
    """Pictures that have their size as the encoder takes them: float32, by the recipe's mean and standard deviation."""
    with torch.no_grad(), torch.autocast(crops.device.type, enabled=False):
        return _normalize_(crops.float().div_(255), views)


def _augmented(
    images: UInt8[Tensor, "B C H W"], boxes: Crops, colors: Colors, augment: Augment, views: Views
) -> Float[Tensor, "B C S S"]:
    return _in_chunks(
        images,
        views.size,
        lambda part: _finish_(
            _cropped(images[part], rows_of(boxes, part), augment, views.size), rows_of(colors, part), augment, views
        ),
    )


def _cropped(
    images: UInt8[Tensor, "B C H W"], box: Crops, augment: Augment, size: int
) -> Float[Tensor, "B C {size} {size}"]:
    return crop_resize(
        images.float().div_(255),
        *(box.top, box.left, box.height, box.width, box.mirror),
        size=size,
        interpolation=augment.interpolation,
    )


def _finish_in_chunks_(pixels: Float[Tensor, "B C S S"], colors: Colors, augment: Augment, views: Views) -> None:
    for part in _chunks(pixels, views.size):
        _finish_(pixels[part], rows_of(colors, part), augment, views)


def _finish_(
    pixels: Float[Tensor, "B C S S"], colors: Colors, augment: Augment, views: Views
) -> Float[Tensor, "B C S S"]:
    """Everything after the crop, in place. Papers that flip last get the same: all of this commutes with a flip."""
    if augment.gray_first:
        grayscale_(pixels, colors.gray)
    color_jitter_(pixels, colors.factors, colors.order)
    if not augment.gray_first:
        grayscale_(pixels, colors.gray)
    blur_(pixels, colors.sigma)
    solarize_(pixels, colors.solarize)
    return _normalize_(pixels, views)


def _normalize_(pixels: Float[Tensor, "B C S S"], views: Views) -> Float[Tensor, "B C S S"]:
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in (views.mean, views.std))
    if pixels.shape[1] == 1:
        mean, std = mean.mean(dim=0, keepdim=True), std.mean(dim=0, keepdim=True)
    mean, std = (values.to(pixels.device)[:, None, None] for values in (mean, std))
    return pixels.sub_(mean).div_(std)  # one torch.addcmul takes twice as long


def _in_chunks(
    images: UInt8[Tensor, "B C H W"], size: int, made: Callable[[slice], Tensor]
) -> Float[Tensor, "B C {size} {size}"]:
    """What is made of the pictures, chunk by chunk, in one tensor; what a single chunk makes is it, and not copied."""
    parts = _chunks(images, size)
    if len(parts) == 1:
        return made(parts[0])
    result = torch.empty(*images.shape[:2], size, size, device=images.device)
    for part in parts:
        result[part] = made(part)
    return result


def _chunks(images: Tensor, size: int) -> list[slice]:
    """Pictures to work on at once; one part, of none, for an empty batch."""
    count, channels, height, width = images.shape
    budget = _CHUNK_CPU if images.device.type == "cpu" else _CHUNK_ACCELERATOR
    length = max(1, budget // (channels * max(height * width, size**2)))
    return [slice(start, start + length) for start in range(0, max(count, 1), length)]


def _check_pixels(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise ValueError(f"views are made from 8-bit pictures (uint8), these are {images.dtype}: convert them first")
    if images.shape[-3] not in (1, 3):
        raise ValueError(f"pictures have {images.shape[-3]} channels: give 1 or 3")


def describe(views: Views) -> list[str]:
    """The recipe in words, one line per view and one for the rest."""
    names = ["both views"] if views.alike else ["view 1", "view 2"]
    lines = [f"{name}: {_describe_view(view, views.size)}" for name, view in zip(names, views.both, strict=False)]
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (views.mean, views.std))
    return [f"{views.size} x {views.size} pixels, mean {mean}, std {std}", *lines]


def _describe_view(view: Augment, size: int) -> str:
    low, high = (f"{100 * share:g}" for share in view.crop_scale)
    brightness, contrast, saturation, hue = view.jitter
    steps = {
        f"crop {low}-{high} % of the area ({view.interpolation})": 1.0,
        "flip": view.flip,
        f"jitter (brightness {brightness:g}, contrast {contrast:g}, saturation {saturation:g}, hue {hue:g})": (
            view.jitter_prob if any(view.jitter) else 0.0
        ),
        "grey" + (" before jitter" if view.gray_first else ""): view.gray_prob,
        f"blur (sigma {view.blur_sigma[0]:g}-{view.blur_sigma[1]:g} px, {blur_kernel_size(size)} taps)": view.blur_prob,
        "solarize": view.solarize_prob,
    }
    return ", ".join(step if prob == 1 else f"{step} p {prob:g}" for step, prob in steps.items() if prob > 0)
