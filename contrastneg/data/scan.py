"""Look at a data set before training: what was found, what is ignored, what cannot be used."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from contrastneg.data.decode import Header, UnreadableImage
from contrastneg.data.imageset import ImageSet, in_threads
from contrastneg.data.trees import passed_over
from contrastneg.wording import count_of

DECODED_PIXELS = 20_000 * 224**2  # up to about this many pixels every picture is decoded: some 20 s on one core
SAMPLE = 16  # headers from which the number of pixels is estimated
NAMED = 10  # bad pictures that a message names
TAIL = 4096  # bytes in which the end marker is looked for


class UnusableImages(ValueError):
    """Some pictures cannot be read and the policy is to refuse that; the message is one line that names them."""


@dataclass(frozen=True)
class ScanReport:
    """What a scan found."""

    found: int
    """Pictures in the set."""
    usable: Int64[Tensor, " n"]
    """Positions of those that can be read: ``source.subset(report.usable)``."""
    bad: list[tuple[str, str]]
    """Name and reason of each of the others."""
    decoded: bool
    """Whether every picture was decoded; else headers and end markers were read."""
    heights: tuple[int, int] | None
    """Least and greatest height of the usable pictures."""
    widths: tuple[int, int] | None
    """Least and greatest width of the usable pictures."""
    uniform_size: tuple[int, int] | None
    """Height and width that all usable pictures share, or None."""
    modes: dict[str, int]
    """Usable pictures of each mode in words, as their headers tell it, the most frequent first."""
    class_counts: dict[str, int] | None
    """Usable pictures of each class; None for a set without labels."""
    unlabelled: int
    """Usable pictures without a label."""
    ignored: dict[str, int]
    """What was met and not taken for a picture, with counts."""
    notes: tuple[str, ...]
    """How splits and labels were understood."""

    def lines(self) -> list[str]:
        """What was found, in a few lines of text without the notes and the bad pictures."""
        lines = [
            f"{len(self.usable):,} usable of {count_of(self.found, 'picture')} found ({self._how()})",
            self._sizes(),
        ]
        if self.class_counts is None:
            lines.append("no labels")
        else:
            lines.append(self._classes(self.class_counts))
        if self.ignored:
            lines.append("ignored: " + ", ".join(passed_over(self.ignored)))
        return lines

    def bad_lines(self, most: int | None = NAMED) -> list[str]:
        """The bad pictures, one per line, under their number; nothing where there are none.

        Args:
            most: How many are named; None names all.
        """
        if not self.bad:
            return []
        verdict = f"{len(self.bad):,} of {count_of(self.found, 'picture')} cannot be read:"
        return [verdict, *first_lines([f"{name}: {why}" for name, why in self.bad], most)]

    def _how(self) -> str:
        return "each decoded" if self.decoded else "headers and end markers read"

    def _sizes(self) -> str:
        if self.heights is None or self.widths is None:
            return "no sizes"
        if self.uniform_size:
            sizes = f"all {self.uniform_size[0]} x {self.uniform_size[1]} pixels"
        else:
            sizes = f"heights {_range(self.heights)}, widths {_range(self.widths)} pixels"
        modes = ", ".join(mode if len(self.modes) == 1 else f"{n:,} {mode}" for mode, n in self.modes.items())
        return f"{sizes}; {'all ' if len(self.modes) == 1 else ''}{modes}"

    def _classes(self, counts: dict[str, int]) -> str:
        if not counts:
            return "no classes"
        few, many = min(counts.values()), max(counts.values())
        each = f"{few:,}" if few == many else f"{few:,} to {many:,}"
        unlabelled = f", {self.unlabelled:,} without a label" if self.unlabelled else ""
        pictures = "picture" if each == "1" else "pictures"
        return f"{count_of(len(counts), 'class', 'classes')} of {each} {pictures}{unlabelled}"


def scan(
    source: ImageSet,
    policy: str,
    progress: Callable[[int, int], None] | None = None,
    *,
    whole: bool = False,
    see: Callable[[int, UInt8[Tensor, "C H W"]], None] | None = None,
) -> ScanReport:
    """Check every picture of a set.

    Sets of up to about a billion pixels (20,000 pictures of 224 x 224, or a million of 32 x 32), estimated from a few
    headers, are decoded whole. Of larger ones the header is read and the format's end marker looked for, which finds
    files that are empty, cut or no pictures; a picture without a marker is decoded to decide. Damage in the middle of
    such a file shows only when it is read, as an ``UnreadableImage`` that names it.

    Args:
        source: The set to check.
        policy: "raise" refuses a set with any bad picture; "skip" reports them and goes on with the others.
        progress: Called with (pictures done, pictures in all) as work goes on.
        whole: Decode every picture, however many there are.
        see: Called with the position and pixels of every picture that can be read, by several threads; every picture is
            then decoded. The scan keeps none of them.

    Raises:
        UnusableImages: Pictures are bad and the policy is "raise", or none is usable.
        ValueError: The policy is neither.
    """
    if policy not in ("raise", "skip"):
        raise ValueError(f"on_bad_image is {policy!r}: choose raise or skip")
    decode = whole or see is not None or decodes_all(source)
    sizes = torch.zeros(len(source), 2, dtype=torch.int64)  # (0, 0) where unusable
    modes = [""] * len(source)
    reasons: dict[int, UnreadableImage] = {}

    def check(position: int) -> None:
        try:
            header = None if decode else source.header(position)
            if header is None or not _has_end_marker(source, position):
                picture, mode = source.read_with_mode(position)
                header = Header(picture.shape[1], picture.shape[2], mode)
                if see is not None:
                    see(position, picture)
            sizes[position], modes[position] = torch.tensor(header[:2]), header.mode
        except UnreadableImage as error:
            reasons[position] = error

    if source.pixels is None or see is not None:
        in_threads(check, len(source), progress)
    elif len(source):
        sizes[:], modes[:] = torch.tensor(source.size(0)), [source.header(0).mode] * len(source)
    bad = [(reasons[position].name, reasons[position].why) for position in sorted(reasons)]
    usable = sizes[:, 0].nonzero()[:, 0]
    if bad and (policy == "raise" or len(usable) == 0):
        raise UnusableImages(_refusal(bad, len(source), policy))
    counts = Counter(modes[position] for position in usable.tolist())
    return _report(source, usable, sizes[usable], dict(counts.most_common()), bad, decode)


def decodes_all(source: ImageSet) -> bool:
    """Whether the set is so small that a scan decodes every picture of it without being asked to."""
    return source.pixels is not None or _estimated_pixels(source) <= DECODED_PIXELS


def _estimated_pixels(source: ImageSet) -> float:
    """Pixels of the whole set, from headers spread over it; unreadable ones count nothing."""
    count = min(SAMPLE, len(source))
    total = 0
    for i in range(count):
        try:
            height, width = source.size(i * len(source) // count)
        except UnreadableImage:
            continue
        total += height * width
    return total * len(source) / max(count, 1)


def _has_end_marker(source: ImageSet, position: int) -> bool:
    """Whether a JPEG or PNG is complete; False for other formats, which must be decoded to tell."""
    assert source.reader is not None
    with source.reader.open(int(source.image_id[position])) as stream:
        head = stream.read(8)
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - TAIL))
        tail = stream.read()
    if head.startswith(b"\xff\xd8\xff"):
        # not only at the very end, as cameras append trailers; after any start of pixels, as a thumbnail ends before it
        return tail.rfind(b"\xff\xd9") > tail.rfind(b"\xff\xda")
    return head.startswith(b"\x89PNG") and b"IEND" in tail


def _report(
    source: ImageSet,
    usable: Int64[Tensor, " n"],
    sizes: Int64[Tensor, "n 2"],
    modes: dict[str, int],
    bad: list[tuple[str, str]],
    decoded: bool,
) -> ScanReport:
    counts, unlabelled = None, 0
    if source.labels is not None and source.classes is not None:
        labels = source.labels[usable]
        per_class = labels[labels >= 0].bincount(minlength=len(source.classes)).tolist()
        counts = dict(zip(source.classes, per_class, strict=True))
        unlabelled = int((labels < 0).sum())
    return ScanReport(
        found=len(source),
        usable=usable,
        bad=bad,
        decoded=decoded,
        heights=_ends(sizes[:, 0]) if len(usable) else None,
        widths=_ends(sizes[:, 1]) if len(usable) else None,
        uniform_size=_size(sizes[0]) if len(usable) and bool((sizes == sizes[0]).all()) else None,
        modes=modes,
        class_counts=counts,
        unlabelled=unlabelled,
        ignored=source.ignored,
        notes=source.notes,
    )


def _ends(sides: Tensor) -> tuple[int, int]:
    return int(sides.min()), int(sides.max())


def _range(ends: tuple[int, int]) -> str:
    least, most = ends
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _size(row: Tensor) -> tuple[int, int]:
    height, width = row.tolist()
    return height, width


def _refusal(bad: list[tuple[str, str]], found: int, policy: str) -> str:
    listed = in_short(bad, NAMED)
    remedy = "repair or remove them" + (", or pass --on-bad-image skip" if policy == "raise" else "")
    return f"{len(bad):,} of {count_of(found, 'picture')} cannot be read: {listed}: {remedy}"


def first_lines(lines: list[str], most: int | None) -> list[str]:
    """The first few lines, indented, and how many there are beside them; None takes all."""
    shown = lines if most is None else lines[:most]
    more = [f"and {len(lines) - len(shown):,} more (--all names every one)"] if len(lines) > len(shown) else []
    return [f"  {line}" for line in [*shown, *more]]


def in_short(bad: list[tuple[str, str]], most: int) -> str:
    """Name and reason of the first bad pictures, and how many there are beside them, in one line."""
    more = [f"and {len(bad) - most:,} more"] if len(bad) > most else []
    return "; ".join([*(f"{name} ({why})" for name, why in bad[:most]), *more])
