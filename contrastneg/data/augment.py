"""Augmentation operations on a batch of pictures, each picture with its own parameters.

Pure functions: pixels and parameters in, pixels out, nothing drawn here (``draws.py`` draws). Pixels are float32 in
[0, 1] on any device; parameters lie on the CPU, because which pictures an operation meets decides what is launched, and
asking the device would make it wait. For the same parameters every operation equals torchvision's tensor operation.

Two matrices do the geometric work: a crop, resize and flip is ``rows @ picture @ columns.T`` with the resampling filter
as weights, and a blur is the same with the Gaussian. One batched product replaces a loop over pictures.

Axes: N pictures, C channels (1 or 3), H and W source pixels, S output pixels.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the numbers in ``order`` are torchvision's
LUMINANCE = (0.2989, 0.587, 0.114)


def resample_matrix(
    start: Float[Tensor, " N"],
    length: Float[Tensor, " N"],
    mirror: Bool[Tensor, " N"],
    source: int,
    size: int,
    interpolation: Interpolation,
) -> Float[Tensor, "N {size} {source}"]:
    """Weights that resize the stretch ``[start, start + length)`` of an axis to ``size`` pixels, antialiased.

    The filter widens with the shrink factor and its weights are renormalised at the ends of the stretch, as in Pillow
    and torchvision (``antialias=True``).

    Args:
        start: First source pixel of each stretch.
        length: Source pixels in each stretch, at least 1.
        mirror: Whether to read the stretch backwards.
        source: Pixels on the source axis.
        size: Pixels on the output axis.
        interpolation: "bilinear" (triangle) or "bicubic" (a = -0.5, as in Pillow).

    Returns:
        One matrix per picture; rows sum to 1.
    """
    device = start.device
    scale = (length / size)[:, None, None]  # source pixels per output pixel
    rows = torch.arange(size, dtype=torch.float32, device=device)
    rows = torch.where(mirror[:, None], size - 1 - rows, rows)[:, :, None]  # (N, S, 1)
    position = torch.arange(source, dtype=torch.float32, device=device) + 0.5 - start[:, None]
    # Counted from the start of the stretch; pixels outside it are infinitely far away.
    position = position.masked_fill_((position <= 0) | (position >= length[:, None]), torch.inf)[:, None, :]
    distance = (position - (rows + 0.5) * scale).div_(scale.clamp(min=1)).abs_()
    weight = (1 - distance).clamp_(min=0) if interpolation == "bilinear" else _cubic(distance)
    return weight.div_(weight.sum(dim=2, keepdim=True))


def _cubic(distance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))


def crop_resize(
    images: Float[Tensor, "N C H W"],
    top: Float[Tensor, " N"],
    left: Float[Tensor, " N"],
    height: Float[Tensor, " N"],
    width: Float[Tensor, " N"],
    mirror: Bool[Tensor, " N"],
    *,
    size: int,
    interpolation: Interpolation,
) -> Float[Tensor, "N C {size} {size}"]:
    """Crop a box from each picture, resize it to ``size`` x ``size`` (antialiased) and flip it left to right.

    Equals torchvision's ``resized_crop(..., antialias=True)`` and ``horizontal_flip``; values that a bicubic filter
    throws outside [0, 1] are clamped, as both torchvision and Pillow do for 8-bit pixels.

    Args:
        images: Pixels in [0, 1].
        top: First row of each box.
        left: First column of each box.
        height: Rows in each box, at least 1.
        width: Columns in each box, at least 1.
        mirror: Whether to flip left to right.
        size: Output pixels per side.
        interpolation: "bilinear" or "bicubic".

    Returns:
        Pixels in [0, 1].
    """
    n, channels, source_height, source_width = images.shape
    top, left, height, width, mirror = (p.to(images.device) for p in (top, left, height, width, mirror))
    rows = resample_matrix(top, height, torch.zeros_like(mirror), source_height, size, interpolation)
    columns = resample_matrix(left, width, mirror, source_width, size, interpolation)
    narrow = images.reshape(n, channels * source_height, source_width) @ columns.transpose(1, 2)
    output = rows[:, None] @ narrow.view(n, channels, source_height, size)
    return output.clamp_(0, 1) if interpolation == "bicubic" else output


def luminance(images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 1 H W"]:
    """Grey value of each pixel, 0.2989 R + 0.587 G + 0.114 B; a copy for one-channel pictures."""
    if images.shape[1] == 1:
        return images.clone()
    red, green, blue = images.split(1, dim=1)
    return (red * LUMINANCE[0]).add_(green, alpha=LUMINANCE[1]).add_(blue, alpha=LUMINANCE[2])


def color_jitter_(
    images: Float[Tensor, "N C H W"],
    factors: Float[Tensor, "N 4"],
    order: Int[Tensor, "N 4"],
) -> Float[Tensor, "N C H W"]:
    """Change brightness, contrast, saturation and hue of each picture in its own order, in place.

    Brightness, contrast and saturation are one formula, ``f x + (1 - f) r`` clamped to [0, 1], and differ in r: black,
    the picture's mean grey, each pixel's grey. So one pass serves a batch in which every picture is at another
    operation; only the pictures whose turn is hue are picked out. Equals torchvision's ``adjust_*`` functions.

    Args:
        images: Pixels in [0, 1]; overwritten.
        factors: Brightness, contrast, saturation factor (>= 0; 1 changes nothing) and hue shift in turns
            ([-0.5, 0.5]; 0 changes nothing). Saturation and hue of one-channel pictures are left alone.
        order: Which operation comes first, second, third, fourth: a permutation of 0..3 in each row.

    Returns:
        ``images``.
    """
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0])
    if images.shape[1] == 1:  # saturation and hue mean nothing without colour
        factors = torch.stack([factors[:, 0], factors[:, 1], neutral[2].expand(len(factors)), factors[:, 3] * 0], dim=1)
    changes = factors != neutral
    # Pictures are lined up by the step at which their hue is turned, so that those of one step lie side by side.
    hue_step = torch.where(changes[:, HUE], order.eq(HUE).to(torch.uint8).argmax(dim=1), 4)
    touched = changes.any(dim=1).nonzero()[:, 0]
    touched = touched[hue_step[touched].argsort(stable=True)]
    if not len(touched):
        return images
    factors, order, changes = factors[touched], order[touched], changes[touched]
    bounds = [0, *hue_step[touched].bincount(minlength=5).cumsum(dim=0).tolist()]
    rows = touched.to(images.device)
    pixels = images.index_select(0, rows)
    for step in range(4):
        operation = order[:, step : step + 1]
        factor = factors.gather(1, operation)
        blended = changes.gather(1, operation) & (operation != HUE)
        if blended.any():
            _blend_(pixels, torch.where(blended, factor, 1.0)[:, 0], operation[:, 0])
        turned = slice(bounds[step], bounds[step + 1])
        if turned.start < turned.stop:
            shift_hue_(pixels[turned], factors[turned, HUE])
    return images.index_copy_(0, rows, pixels)


def _blend_(images: Float[Tensor, "N C H W"], factor: Float[Tensor, " N"], operation: Int[Tensor, " N"]) -> None:
    """``f x + (1 - f) r``, clamped, where r is what ``operation`` blends towards."""
    to_mean = (1 - factor) * (operation == CONTRAST)
    to_grey = (1 - factor) * (operation == SATURATION)
    columns = torch.stack([factor, to_mean, to_grey]).to(images.device)[:, :, None, None, None]
    grey = luminance(images)
    mean = grey.mean(dim=(1, 2, 3), keepdim=True)
    reference = grey.mul_(columns[2]).add_(mean * columns[1])
    torch.addcmul(reference, images, columns[0], out=images)
    images.clamp_(0, 1)


def shift_hue_(images: Float[Tensor, "N 3 H W"], turns: Float[Tensor, " N"]) -> Float[Tensor, "N 3 H W"]:
    """Turn the hue of each picture in place, as torchvision's ``adjust_hue``.

    With the largest and smallest channel v and w and the chroma d = v - w, the hue in sixths of a turn, counted from red,
    is ``h = 1 + (green + blue - red - w) / d`` on the side of green and -h on that of blue. Turned and brought to [0, 6), it
    gives red as ``w + d clamp(|h - 3| - 1, 0, 1)``, green as ``v - d clamp(|h - 2| - 1, 0, 1)`` and blue as the same with 4.
    This is HSV and back without its six cases: choosing among them takes longer than all the rest.

    Args:
        images: Pixels in [0, 1]; overwritten.
        turns: Shift of each picture's hue, in turns of the colour circle.

    Returns:
        ``images``.
    """
    red, green, blue = images.unbind(dim=1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    smallest = torch.minimum(torch.minimum(red, green), blue)
    chroma = largest - smallest
    safe = chroma.clamp(min=1e-8)  # grey pixels have no hue: any finite number will do
    hue = (green + blue).sub_(red).sub_(smallest).div_(safe).add_(1).copysign_(green - blue)
    hue.add_(6 * turns.to(images.device)[:, None, None])
    hue.sub_((hue / 6).floor_(), alpha=6)  # a remainder would take twice as long
    centre = torch.tensor([3.0, 2.0, 4.0], device=images.device)[:, None, None]
    away = (hue[:, None] - centre).abs_().sub_(1).clamp_(0, 1).mul_(chroma[:, None])
    torch.add(smallest, away[:, 0], out=red)
    torch.sub(largest[:, None], away[:, 1:], out=images[:, 1:])
    return images


def grayscale_(images: Float[Tensor, "N C H W"], chosen: Bool[Tensor, " N"]) -> Float[Tensor, "N C H W"]:
    """Replace the chosen pictures by their grey values, in place; one-channel pictures stay as they are."""
    if images.shape[1] == 1 or not chosen.any():
        return images
    rows = chosen.nonzero()[:, 0].to(images.device)
    grey = luminance(images.index_select(0, rows))
    return images.index_copy_(0, rows, grey.expand(-1, images.shape[1], -1, -1).contiguous())


def blur_kernel_size(size: int) -> int:
    """Taps of the blur for pictures of ``size`` pixels: odd, about a tenth, at least 3; 23 at 224 as in SimCLR."""
    return max(3, 2 * (size // 20) + 1)


def blur_(images: Float[Tensor, "N C S S"], sigma: Float[Tensor, " N"]) -> Float[Tensor, "N C S S"]:
    """Blur each picture by its own Gaussian, in place, with borders reflected.

    Equals torchvision's ``gaussian_blur`` with ``blur_kernel_size(S)`` taps, and goes on reflecting where that refuses
    because the picture is smaller than half the kernel.

    Args:
        images: Pixels in [0, 1]; overwritten.
        sigma: Standard deviation in pixels; 0 leaves a picture as it is.

    Returns:
        ``images``.
    """
    chosen = (sigma > 0).nonzero()[:, 0]
    if not len(chosen):
        return images
    rows = chosen.to(images.device)
    matrix = _blur_matrix(sigma[chosen].to(images.device), images.shape[-1])[:, None]
    return images.index_copy_(0, rows, matrix @ images.index_select(0, rows) @ matrix.transpose(2, 3))


def _blur_matrix(sigma: Float[Tensor, " N"], size: int) -> Float[Tensor, "N {size} {size}"]:
    """Row i holds the weights of the truncated Gaussian at i, those beyond a border added where they reflect to."""
    reach = blur_kernel_size(size) // 2
    offset = torch.arange(-reach, reach + 1, dtype=torch.float32, device=sigma.device)
    taps = torch.exp(-0.5 * (offset / sigma[:, None]).square())
    taps = taps / taps.sum(dim=1, keepdim=True)
    pixel = torch.arange(size, device=sigma.device)
    period = max(2 * (size - 1), 1)  # reflection without repeating the border pixel
    target = (pixel + torch.arange(-reach, reach + 1, device=sigma.device)[:, None]).remainder(period)
    target = torch.minimum(target, period - target) if size > 1 else torch.zeros_like(target)
    lands = (target[:, :, None] == pixel).float()  # (taps, S, S)
    return torch.einsum("nt,tij->nij", taps, lands)


def solarize_(images: Float[Tensor, "N C H W"], chosen: Bool[Tensor, " N"]) -> Float[Tensor, "N C H W"]:
    """Invert the bright pixels (at least 0.5) of the chosen pictures, in place."""
    if not chosen.any():
        return images
    rows = chosen.nonzero()[:, 0].to(images.device)
    picked = images.index_select(0, rows)
    return images.index_copy_(0, rows, torch.where(picked >= 0.5, 1 - picked, picked))
