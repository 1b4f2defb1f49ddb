"""The one form that every data set takes: a map from a stable image index to a picture."""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from contrastneg.data.decode import Header, UnreadableImage, decode_with_mode, image_header
from contrastneg.data.metadata import check_labels

CHUNK = 256  # pictures handed to a thread at a time


@runtime_checkable
class Reader(Protocol):
    """Where encoded pictures come from. Must pickle, and must be safe to call from several threads."""

    def open(self, index: int) -> io.BufferedIOBase:
        """A seekable stream of the encoded picture."""
        ...

    def name_of(self, index: int) -> str:
        """What identifies the picture to the user: a full path, or a file and a row or member."""
        ...


class Names(Sequence[str]):
    """A list of strings in one buffer: a million paths pickle fast and stay shared between forked workers."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)  # also what ends iteration
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())


@dataclass(frozen=True)
class Kept:
    """Decoded pictures that a set and its subsets share."""

    pixels: UInt8[Tensor, "M C H W"]
    """Those of the set that was scanned."""
    row: Int64[Tensor, " N"]
    """Which of them is at each position."""

    def of_set(self) -> UInt8[Tensor, "N C H W"]:
        """The pictures by position; no copy where they are all of them in order."""
        every = len(self.row) == len(self.pixels) and bool((self.row == torch.arange(len(self.row))).all())
        return self.pixels if every else self.pixels[self.row]


@dataclass(frozen=True)
class ImageSet:
    """Pictures by position, each with a stable index, an optional label and optional columns of metadata.

    *Position* 0..N-1 is what every method takes. ``image_id[position]`` is the *stable index*: the picture's place in
    the full, unfiltered set. A subset renumbers positions and keeps stable indices, so whatever is recorded about an
    image (queue, score history, clusters) stays true when the set is limited or bad files are dropped.

    Pictures are either decoded on demand from ``reader`` or held decoded in ``pixels``; one of the two is set, and both
    are indexed by ``image_id``. What a scan decoded may be ``kept``, too. Instances pickle, for loader workers under any
    start method.
    """

    address: str
    """What the user asked for."""
    split: str
    """"train" or "test": the split that was really opened."""
    name: str
    """Short name, safe in file names: "cifar10", "shapes"."""
    image_id: Int64[Tensor, " N"]
    """Stable index of each position."""
    labels: Int64[Tensor, " N"] | None = None
    """Class of each position, -1 where it is unknown; None for a set without labels."""
    classes: list[str] | None = None
    """Class names by label; None exactly when ``labels`` is."""
    columns: dict[str, Tensor | list] = field(default_factory=dict)
    """Metadata by position."""
    channels: int = 3
    """Channels that pictures are given in: 3 or 1."""
    reader: Reader | None = None
    """Source of encoded pictures."""
    pixels: UInt8[Tensor, "M C H W"] | None = None
    """Decoded pictures of the full set."""
    kept: Kept | None = None
    """What a scan kept of the pictures of ``reader``, for :meth:`load`, which then decodes nothing."""
    ignored: dict[str, int] = field(default_factory=dict)
    """What was met and not taken for a picture, with counts."""
    notes: tuple[str, ...] = ()
    """Sentences the user should see: how splits and labels were understood."""

    def __len__(self) -> int:
        return len(self.image_id)

    def read(self, position: int) -> UInt8[Tensor, "C H W"]:
        """The decoded picture at a position.

        Raises:
            UnreadableImage: It cannot be decoded; the message names it.
        """
        return self.read_with_mode(position)[0]

    def read_with_mode(self, position: int) -> tuple[UInt8[Tensor, "C H W"], str]:
        """The decoded picture at a position, and the mode of its file in words.

        Raises:
            UnreadableImage: It cannot be decoded; the message names it.
        """
        index = self._index(position)
        if self.pixels is not None:
            return _with_channels(self.pixels[index], self.channels), self.header(position).mode
        assert self.reader is not None
        name = self.reader.name_of(index)
        try:
            with self.reader.open(index) as stream:
                data = stream.read()
        except OSError as error:
            raise UnreadableImage(name, str(error)) from error
        return decode_with_mode(data, self.channels, name=name)

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of the picture at a position, from its header.

        Raises:
            UnreadableImage: The header is not one of a picture.
        """
        header = self.header(position)
        return header.height, header.width

    def header(self, position: int) -> Header:
        """Size and mode of the picture at a position, without its pixels.

        Raises:
            UnreadableImage: The header is not one of a picture.
        """
        index = self._index(position)
        if self.pixels is not None:
            channels, height, width = self.pixels.shape[1:]
            return Header(height, width, "RGB" if channels == 3 else "grey")
        assert self.reader is not None
        name = self.reader.name_of(index)
        try:
            with self.reader.open(index) as stream:
                length = stream.seek(0, io.SEEK_END)
                stream.seek(0)
                return image_header(stream, length, name=name)
        except OSError as error:
            raise UnreadableImage(name, str(error)) from error

    def name_of(self, position: int) -> str:
        """What identifies the picture to the user: a full path, or a file and a row or member."""
        index = self._index(position)
        return self.reader.name_of(index) if self.reader is not None else f"{self.address} image {index}"

    @cached_property
    def uniform_size(self) -> tuple[int, int] | None:
        """Height and width that all pictures share, or None. Stops reading headers at the first that differs."""
        if len(self) == 0:
            return None
        if self.kept is not None:
            return self.kept.pixels.shape[2], self.kept.pixels.shape[3]
        first = self.size(0)
        if self.pixels is not None:
            return first
        return first if all(self.size(position) == first for position in range(1, len(self))) else None

    def load(self, progress: Callable[[int, int], None] | None = None) -> UInt8[Tensor, "N C H W"]:
        """All pictures in one tensor, decoded by a pool of threads unless they were kept.

        Args:
            progress: Called with (pictures done, pictures in all) as work goes on.

        Raises:
            ValueError: The pictures are not all of one size.
            UnreadableImage: One of them cannot be decoded.
        """
        if self.pixels is not None:
            whole = len(self) == len(self.pixels) and bool((self.image_id == torch.arange(len(self))).all())
            return _with_channels(self.pixels if whole else self.pixels[self.image_id], self.channels)
        if self.kept is not None:
            return _with_channels(self.kept.of_set(), self.channels)
        if len(self) == 0:
            return torch.empty(0, self.channels, 0, 0, dtype=torch.uint8)
        first = self.read(0)
        pixels = torch.empty(len(self), *first.shape, dtype=torch.uint8)

        def fill(position: int) -> None:
            picture = self.read(position)
            if picture.shape != first.shape:
                raise ValueError(
                    f"{self.name_of(position)} is {picture.shape[1]} x {picture.shape[2]} pixels but "
                    f"{self.name_of(0)} is {first.shape[1]} x {first.shape[2]}: stream sets of mixed sizes from disk"
                )
            pixels[position] = picture

        in_threads(fill, len(self), progress)
        return pixels

    def subset(self, positions: Int64[Tensor, " n"]) -> "ImageSet":
        """The pictures at some positions, in that order, with their stable indices, labels and columns."""
        chosen = positions.tolist()
        columns = {
            name: column[positions] if isinstance(column, Tensor) else [column[i] for i in chosen]
            for name, column in self.columns.items()
        }
        labels = None if self.labels is None else self.labels[positions]
        kept = None if self.kept is None else Kept(self.kept.pixels, self.kept.row[positions])
        return replace(self, image_id=self.image_id[positions], labels=labels, columns=columns, kept=kept)

    def _index(self, position: int) -> int:
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is outside this set of {len(self)} pictures")
        return int(self.image_id[position])


def in_memory_set(
    images: UInt8[Tensor, "N C H W"],
    labels: Int64[Tensor, " N"] | None = None,
    classes: list[str] | None = None,
    columns: dict[str, Tensor | list] | None = None,
    *,
    name: str,
    split: str = "train",
    channels: int | None = None,
) -> ImageSet:
    """An :class:`ImageSet` over pictures that are already decoded.

    For example ``in_memory_set(images, labels, ["disc", "ring"], {"location": place}, name="shapes", split=split)``.
    The tensor is kept, not copied; ``load()`` of the full set returns it.

    Args:
        images: Levels 0..255, one or three channels.
        labels: Class of each image; -1 where it is unknown.
        classes: Class names by label; None with labels names them "0", "1", ...
        columns: Metadata by position: tensors or lists as long as ``images``.
        name: Short name, also used as the address.
        split: "train" or "test".
        channels: Channels to give pictures in, 1 or 3; None keeps those of ``images``.
    """
    if labels is not None and classes is None:
        classes = [str(label) for label in range(int(labels.max()) + 1)]
    if labels is not None and classes is not None:
        check_labels(labels, len(classes), name)
    return ImageSet(
        address=name,
        split=split,
        name=name,
        image_id=torch.arange(len(images)),
        labels=labels,
        classes=classes,
        columns=columns or {},
        channels=channels or images.shape[1],
        pixels=images,
    )


def in_threads(work: Callable[[int], None], count: int, progress: Callable[[int, int], None] | None = None) -> None:
    """Run ``work(i)`` for i in 0..count-1 on a pool of threads (decoding releases the interpreter's lock)."""

    def chunk(start: int) -> int:
        stop = min(start + CHUNK, count)
        for i in range(start, stop):
            work(i)
        return stop - start

    done = 0
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    try:
        for n in pool.map(chunk, range(0, count, CHUNK)):
            done += n
            if progress is not None:
                progress(done, count)
    finally:
        pool.shutdown(cancel_futures=True)  # the first failure (or Ctrl-C) drops what has not begun


def _with_channels(pixels: Tensor, channels: int) -> Tensor:
    """(..., C, H, W) with C of 1 or 3 -> the channels asked for; a view where nothing changes."""
    if pixels.shape[-3] == channels:
        return pixels
    if channels == 1:
        return rgb_to_grayscale(pixels)
    return pixels.expand(*pixels.shape[:-3], channels, *pixels.shape[-2:])
