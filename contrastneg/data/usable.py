"""Which pictures of a set can be used, and where their pixels will be."""

from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from contrastneg.data.imageset import ImageSet, Kept
from contrastneg.data.scan import UnusableImages, decodes_all, in_short, scan
from contrastneg.data.subsets import order_of_choice
from contrastneg.progress import ProgressLines
from contrastneg.wording import count_of

MEMORY_LIMIT = 2 << 30  # bytes of pixels that "auto" loading keeps in memory
BAD_IMAGES = "bad_images.txt"  # file of a run folder
NAMED_IN_NOTE = 3  # bad pictures that the start card names


@runtime_checkable
class Reading(Protocol):
    """What of a verb's settings says how sets are read."""

    @property
    def root(self) -> Path | None:
        """Folder of torchvision's sets."""
        ...

    @property
    def on_bad_image(self) -> Literal["raise", "skip"]:
        """What to do about pictures that cannot be read."""
        ...

    @property
    def loading(self) -> Literal["auto", "memory", "stream"]:
        """Where pixels are kept."""
        ...

    @property
    def seed(self) -> int:
        """Which images are drawn where some are."""
        ...


@dataclass(frozen=True)
class Usable:
    """What a scan leaves of a set."""

    images: ImageSet
    """Those that can be read, as far as the scan can tell."""
    lines: list[str]
    """What was found, for the start card."""
    notes: list[str]
    """How the set was understood, and what was left out."""
    bad: list[tuple[str, str]]
    """Name and reason of each picture that cannot be read."""


def usable_up_to(source: ImageSet, count: int | None, config: Reading, whole: bool, keep: bool = False) -> Usable:
    """As many images that can be read, as equally many of each class as possible; of a limited set no other is looked at.

    One that cannot be read makes place for the next that the limit would take.

    Args:
        source: The set.
        count: At most so many; None takes all.
        config: How sets are read; its seed says which images.
        whole: As in :func:`usable`.
        keep: As in :func:`usable`.
    """
    if count is None or count >= len(source):
        return usable(source, config, whole, keep)
    order, taken = order_of_choice(source, config.seed), count
    while True:
        lacking = count
        try:
            found = usable(source.subset(order[:taken].sort().values), config, whole, keep)
            lacking -= len(found.images)
            if lacking == 0 or taken >= len(source):
                return found
        except UnusableImages:
            if config.on_bad_image == "raise" or taken >= len(source):
                raise
        taken += lacking


def usable(source: ImageSet, config: Reading, whole: bool, keep: bool = False) -> Usable:
    """The images that can be read.

    Args:
        source: The set.
        config: How sets are read.
        whole: The set will be in memory, where no picture can be skipped later: decode all to know.
        keep: Keep what is decoded, where all are of one size and few enough to be in memory, so that it is not decoded again.
    """
    if source.pixels is not None:
        return Usable(source, [f"{count_of(len(source), 'image')} of {source.name}"], [*source.notes], [])
    progress = ProgressLines("looked through", f"pictures of {source.name} {source.split}")
    whole = whole and config.on_bad_image == "skip"
    keep = keep and config.loading != "stream" and (whole or decodes_all(source))
    keeper = Keeper(len(source), None if config.loading == "memory" else MEMORY_LIMIT) if keep else None
    report = scan(source, config.on_bad_image, progress, whole=whole, see=keeper)
    notes, kept = [*source.notes], source
    if keeper is not None and keeper.pixels is not None:
        kept = replace(source, kept=Kept(keeper.pixels, torch.arange(len(source))))
    if report.bad:
        kept = kept.subset(report.usable)
        pictures = f"{count_of(len(report.bad), 'picture')} of {source.name} {source.split}"
        are = "is" if len(report.bad) == 1 else "are"
        notes.append(
            f"{pictures} cannot be read and {are} left out (all are listed in {BAD_IMAGES}): {in_short(report.bad, NAMED_IN_NOTE)}"
        )
    return Usable(kept, report.lines(), notes, report.bad)


class Keeper:
    """Keeps the pictures that a scan decodes, as long as all are of one size. Threads may call it.

    Args:
        count: Pictures of the set.
        limit: Bytes that they may take; None for no limit.
    """

    def __init__(self, count: int, limit: int | None) -> None:
        self.count, self.limit = count, limit
        self.pixels: UInt8[Tensor, "N C H W"] | None = None
        """By position; None before the first picture, and from the first of another size or too large for the limit."""
        self._open, self._lock = True, Lock()

    def __call__(self, position: int, picture: UInt8[Tensor, "C H W"]) -> None:
        """Keep the picture at a position."""
        with self._lock:
            if self._open and self.pixels is None and fits(self.count * picture.numel(), self.limit):
                self.pixels = torch.zeros(self.count, *picture.shape, dtype=torch.uint8)
            self._open = self.pixels is not None and self.pixels.shape[1:] == picture.shape
            if not self._open:
                self.pixels = None
            pixels = self.pixels
        if pixels is not None:
            pixels[position] = picture


def loading_of(source: ImageSet, config: Reading) -> Literal["memory", "stream"]:
    """Where the pixels will be; explains a memory request that cannot be met."""
    if config.loading == "stream":
        return "stream"
    size = source.uniform_size
    if config.loading == "memory" and size is None:
        raise ValueError(f"loading is memory but the images of {source.address} differ in size: use stream or auto")
    few = size is not None and fits(len(source) * source.channels * size[0] * size[1], MEMORY_LIMIT)
    return "memory" if config.loading == "memory" or few else "stream"


def fits(size: int, limit: int | None) -> bool:
    """Whether so many bytes are within a limit."""
    return limit is None or size <= limit
