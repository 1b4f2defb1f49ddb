"""Bytes of a picture become a uint8 tensor, whatever mode the file is in.

One rule for every mode, so that a set mixed from scans, logos and photographs trains without surprises:

* orientation written by cameras (EXIF) is applied;
* transparency is blended on a background (white);
* 16-bit grey is divided by 256, so 0, 4096, ..., 61440 becomes 0, 16, ..., 240, in every picture alike;
* floating point pictures in [0, 1] are multiplied by 255, others are refused, because their white is unknown;
* CMYK, palette, bilevel, YCbCr become RGB as Pillow converts them; of an animation the first frame is taken.

Pillow's global "load truncated images" switch is never touched: a cut file is an unreadable file.
"""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

ORIENTATION = 0x0112  # the EXIF tag
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
SIXTEEN_IN_32 = ("PNG", "PPM")  # formats whose mode I means 16 bits
OPAQUE = {"LA": "L", "La": "L", "PA": "P", "RGBA": "RGB", "RGBa": "RGB"}  # modes with an alpha channel, and without it
MODES = {"1": "bilevel", "L": "grey", "P": "palette", "I": "32-bit grey", "F": "floating point grey"}
PILLOW_ERRORS = (
    OSError,  # includes UnidentifiedImageError and truncation
    SyntaxError,  # broken PNG chunks
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnreadableImage(ValueError):
    """A picture that cannot be decoded; the message names it and says why.

    Args:
        name: What identifies the picture to the user: a full path, or a file and a row or member.
        why: The reason, in a few words.
    """

    def __init__(self, name: str, why: str = "") -> None:
        super().__init__(name, why)  # both, so that the error survives the trip out of a loader's worker
        self.name = name
        self.why = why

    def __str__(self) -> str:
        return f"{self.name} cannot be read as a picture: {self.why}" if self.why else self.name


def decode_image(
    data: bytes | Image.Image, channels: int = 3, background: int = 255, *, name: str = "the image"
) -> UInt8[Tensor, "C H W"]:
    """Decode one picture of any mode.

    Args:
        data: The encoded bytes (JPEG, PNG, TIFF, WebP, ... whatever Pillow opens), or a Pillow image.
        channels: 3 for RGB, 1 for luminance (ITU-R 601-2).
        background: Level 0..255 of the grey that shows through transparent pixels; 255 is white.
        name: How errors call the picture.

    Returns:
        Levels 0..255.

    Raises:
        UnreadableImage: The bytes are no picture, are cut or damaged, or hold levels without a known white.
        ValueError: ``channels`` is neither 1 nor 3.
    """
    return decode_with_mode(data, channels, background, name=name)[0]


def decode_with_mode(
    data: bytes | Image.Image, channels: int = 3, background: int = 255, *, name: str = "the image"
) -> tuple[UInt8[Tensor, "C H W"], str]:
    """:func:`decode_image`, and the mode of the file in words, as :class:`Header` has it."""
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}: pictures are decoded to 1 (grey) or 3 (RGB)")
    try:
        image = open_image(io.BytesIO(data), len(data)) if isinstance(data, bytes) else data
        mode = _mode(image)  # before its pixels are read, which may change it
        return _to_tensor(_flatten(image, background), channels), mode
    except PILLOW_ERRORS as error:
        raise UnreadableImage(name, _reason(error)) from error


class Header(NamedTuple):
    """What the header of a picture tells."""

    height: int
    """Pixels, upright, as :func:`decode_image` will return them."""
    width: int
    """Pixels, upright."""
    mode: str
    """Mode of the file in words: "RGB", "grey", "16-bit grey", "palette with transparency", "CMYK", ..."""


def image_header(stream: io.BufferedIOBase, length: int, *, name: str = "the image") -> Header:
    """Size and mode of a picture from its header alone.

    Args:
        stream: The encoded picture, seekable.
        length: Its number of bytes.
        name: How errors call the picture.

    Raises:
        UnreadableImage: The header is not one of a picture.
    """
    try:
        image = open_image(stream, length)
        width, height = image.size
        if _orientation(image) >= 5:  # 5 to 8 swap the sides
            width, height = height, width
        return Header(height, width, _mode(image))
    except PILLOW_ERRORS as error:
        raise UnreadableImage(name, _reason(error)) from error


def open_image(stream: io.BufferedIOBase, length: int) -> Image.Image:
    """Pillow's lazy open, with a reason in words where the bytes are no picture at all."""
    if length == 0:
        raise OSError("the file is empty")
    try:
        return Image.open(stream)  # type: ignore[arg-type]
    except Image.UnidentifiedImageError:
        stream.seek(0)
        head = stream.read(16)
        raise OSError(f"not a picture (it starts with {head!r})") from None


def _mode(image: Image.Image) -> str:
    """The mode in words; what is not among ``MODES`` is called as Pillow calls it."""
    if image.mode in SIXTEEN_BIT or (image.mode == "I" and image.format in SIXTEEN_IN_32):
        return "16-bit grey"
    opaque = OPAQUE.get(image.mode, image.mode)
    return MODES.get(opaque, opaque) + (" with transparency" if _is_transparent(image) else "")


def _is_transparent(image: Image.Image) -> bool:
    return image.has_transparency_data or image.mode in OPAQUE


def _orientation(image: Image.Image) -> int:
    """1 (upright) to 8; reading the tag is skipped where no metadata block can hold it."""
    if image.format == "TIFF":
        return 1  # Pillow turns these by itself, size and pixels
    if not any("exif" in str(key).lower() or "xmp" in str(key).lower() for key in image.info):
        return 1
    return image.getexif().get(ORIENTATION, 1)


def _flatten(image: Image.Image, background: int) -> Image.Image:
    """Any Pillow image -> upright, opaque, 8 bits, mode L or RGB."""
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode == "I" or image.mode in SIXTEEN_BIT:
        return Image.fromarray(_to_eight_bits(image))
    if _is_transparent(image):
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (background, background, background, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> np.ndarray:
    """Levels of a 16-bit, 32-bit or float picture as uint8, or a ValueError where their white is unknown."""
    levels = np.asarray(image)
    if image.mode == "F":
        if not (np.isfinite(levels).all() and levels.min() >= 0 and levels.max() <= 1):
            low, high = float(levels.min()), float(levels.max())
            raise ValueError(f"floating point levels from {low:g} to {high:g}: rescale the file to [0, 1]")
        return np.rint(levels * 255).astype(np.uint8)
    if image.mode == "I" and image.format not in (*SIXTEEN_IN_32, None):
        raise ValueError("32-bit integer levels have no known white: save the file with 8 or 16 bits")
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"integer levels from {levels.min()} to {levels.max()} do not fit 16 bits: rescale the file")
    return (levels // 256).astype(np.uint8)


def _to_tensor(image: Image.Image, channels: int) -> Tensor:
    image = image.convert("L" if channels == 1 else "RGB")
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def _reason(error: BaseException) -> str:
    """The first line of an exception's text, or its class where it has none."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
