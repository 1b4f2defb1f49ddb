"""The sets of a run: what is pretrained on, and what the encoder is scored on."""

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from contrastneg import distributed
from contrastneg.config import Pretrain
from contrastneg.data.decode import UnreadableImage
from contrastneg.data.scan import UnusableImages, decodes_all, in_short, scan
from contrastneg.data.sources import ImageSet, NoSuchSplit, open_source
from contrastneg.data.subsets import order_of_choice
from contrastneg.data.tables import HubReader
from contrastneg.randomness import generator
from contrastneg.wording import HELD_OUT_NOTE, count_of

MEMORY_LIMIT = 2 << 30  # bytes of pixels that "auto" loading keeps on the device
BAD_IMAGES = "bad_images.txt"  # file of a run folder
NAMED_IN_NOTE = 3  # bad pictures that the start card names
SAY_EVERY = 10.0  # seconds between lines that say how far a scan is
NONE_TO_ASK = "every class has a single labelled picture, so none can be asked about"
HELD_OUT = 10  # without test images every 10th labelled image is asked about


class ScanProgress:
    """Says on standard error every few seconds, on a terminal or not, how far a scan is.

    Args:
        name: What is looked through.
    """

    def __init__(self, name: str) -> None:
        self.name, self._due = name, time.monotonic() + SAY_EVERY

    def __call__(self, done: int, count: int) -> None:
        """Note that so many pictures are done."""
        if time.monotonic() >= self._due and distributed.is_first_process():
            self._due = time.monotonic() + SAY_EVERY
            print(f"looked through {done:,} of {count:,} pictures of {self.name}", file=sys.stderr, flush=True)


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
class OpenedData:
    """The data of a run, opened and scanned."""

    train: ImageSet
    """Images to pretrain on."""
    bank: ImageSet | None
    """Labelled images that scores learn from."""
    queries: ImageSet | None
    """Labelled images that scores are taken on."""
    loading: Literal["memory", "stream"]
    """Where the pixels are."""
    lines: list[str]
    """What was found, for the start card."""
    notes: list[str]
    """What a reader of the scores must know."""
    bad: list[tuple[str, str]]
    """Name and reason of every picture that cannot be read."""


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


def open_data(config: Pretrain) -> OpenedData:
    """Open and scan every set that a run needs.

    Raises:
        ValueError: If there is no address, an address cannot be opened, or images cannot be read and the policy is
            ``raise``.
    """
    full = opened(config, config.data, "train")
    bank, queries, notes = open_scored(config, full)
    must_part = bank is not None and bank is queries
    found, loading = training_set(full, config, scored_on_it=bank is full)
    train, scanned = found.images, {"to pretrain on": found}
    if bank is full:
        bank = train
    elif bank is not None:
        scanned["to learn scores from" if not must_part else "to score on"] = usable(
            bank, config, whole=loading == "memory"
        )
        bank = [*scanned.values()][-1].images
    if queries is not None and not must_part:
        scanned["to score on"] = usable(queries, config, whole=loading == "memory")
        queries = scanned["to score on"].images
    if bank is not None and must_part:
        bank, queries = hold_out(bank, config.seed)
        notes.append(
            f"{HELD_OUT_NOTE}: every {HELD_OUT}th labelled image is asked about and the others answer; "
            "all of them were pretrained on or may have been, so compare such scores with each other only"
            if len(queries)
            else f"{NONE_TO_ASK}: the encoder is not scored (give a labelled set with --val)"
        )
    if bank is not None and queries is not None:
        bank, queries = (bank, queries) if len(queries) else (None, None)
        notes += unanswered_notes(bank, queries)
    lines = [line for purpose, each in scanned.items() for line in under(purpose, each.lines)]
    notes = list(dict.fromkeys([*(note for each in scanned.values() for note in each.notes), *notes]))
    bad = [pair for each in scanned.values() for pair in each.bad]
    return OpenedData(train, bank, queries, loading, lines, notes, bad)


@dataclass(frozen=True)
class LabelledData:
    """A set that an encoder is judged on, opened and scanned."""

    bank: ImageSet
    """Images that answer; the only ones where nothing is labelled."""
    queries: ImageSet
    """Images that are asked about; the bank itself where nothing is labelled."""
    loading: Literal["memory", "stream"]
    """Where the pixels are."""
    notes: list[str]
    """What a reader of the scores must know."""

    @property
    def labelled(self) -> bool:
        """Whether scores that need labels can be taken."""
        return self.bank is not self.queries


def open_labelled(
    settings: Reading,
    address: str,
    channels: int,
    *,
    test: str | None = None,
    most: int | None = None,
    most_asked: int | None = None,
) -> LabelledData:
    """Open and scan a set to judge an encoder on: its training images answer, its test images are asked about.

    Without test images every 10th labelled one is held out, before any is read and before the limits are taken; without labels
    all are asked about, and nothing that needs labels can be scored.

    Args:
        settings: How sets are read.
        address: The set.
        channels: Channels that the encoder takes.
        test: Another set whose test images (or all, where it has one split) are asked about.
        most: At most so many images answer.
        most_asked: At most so many are asked about.

    Raises:
        ValueError: An address cannot be opened, images cannot be read and the policy is ``raise``, or ``test`` has no labels.
    """
    bank = open_source(address, root=settings.root, channels=channels)
    notes: list[str] = []
    if not has_labels(bank):
        if test is not None:
            raise ValueError(
                f"{address} has no labels: a test set can be asked about only where labelled images answer"
            )
        return without_queries(bank, settings, most, notes, "no labels: scores that need them are left out")
    queries = asked_about(settings, address, test, channels, bank)
    if queries is None or not has_labels(queries):
        kept, queries = hold_out(bank, settings.seed)
        if len(queries) == 0:
            return without_queries(bank, settings, most, notes, f"{NONE_TO_ASK}: scores that need labels are left out")
        bank = kept
        notes.append(
            f"no labelled test images: scores are tested on every {HELD_OUT}th labelled image and learn from the others; an encoder that "
            "was pretrained on this set has seen them all"
        )
    bank = looked_at(bank, "training images", most, settings, notes)
    queries = looked_at(queries, "test images", most_asked, settings, notes)
    notes += unanswered_notes(bank, queries)
    both = {loading_of(bank, settings), loading_of(queries, settings)}
    return LabelledData(bank, queries, "stream" if "stream" in both else "memory", list(dict.fromkeys(notes)))


def asked_about(settings: Reading, address: str, test: str | None, channels: int, bank: ImageSet) -> ImageSet | None:
    """The test images of a set, or of the one named to test on (all of it, where it has one split).

    None where these are the images that answer, which must not be asked about themselves.

    Raises:
        ValueError: The set named to test on has no labels.
    """
    try:
        queries = open_source(
            test or address, split="test", root=settings.root, channels=channels, classes=bank.classes
        )
    except NoSuchSplit:
        if test is None:
            return None
        queries = open_source(test, root=settings.root, channels=channels, classes=bank.classes)
    if test is not None and not has_labels(queries):
        raise ValueError(f"test {test} has no labels: give a labelled set to ask about")
    return None if same_pictures(queries, bank) else queries


def same_pictures(one: ImageSet, other: ImageSet) -> bool:
    """Whether two sets are of the same pictures: one split of one address, or the same files by another one.

    Rows of a data set of ``datasets`` do not say which picture they are; paths, rows of a file and members of an archive do.
    """
    if type(one.reader) is not type(other.reader):
        return False
    # of what is no path a slash at the end says nothing
    if one.split == other.split and Path(one.address).resolve() == Path(other.address).resolve():
        return True
    if one.reader is None or isinstance(one.reader, HubReader) or len(one) != len(other):
        return False
    places = [len(one) - 1, *range(len(one))] if len(one) else []  # the last first: it differs where others do
    return all(os.path.realpath(one.name_of(i)) == os.path.realpath(other.name_of(i)) for i in places)


def looked_at(source: ImageSet, what: str, count: int | None, settings: Reading, notes: list[str]) -> ImageSet:
    """Those of at most so many images that can be read, and notes about what that leaves out."""
    found = usable_up_to(source, count, settings, whole=settings.loading == "memory")
    notes += found.notes
    if count is not None and count < len(source):
        notes.append(chosen_note(source, what, len(found.images)))
    return found.images


def without_queries(bank: ImageSet, settings: Reading, most: int | None, notes: list[str], reason: str) -> LabelledData:
    """A set in which no label can be asked about: all images are, without labels.

    Args:
        bank: All images.
        settings: How sets are read.
        most: At most so many are used.
        notes: What a reader must know already.
        reason: Why no label can be asked about.
    """
    bank = looked_at(bank, "images", most, settings, notes)
    return LabelledData(bank, bank, loading_of(bank, settings), [*notes, reason])


def has_labels(source: ImageSet) -> bool:
    """Whether any image has a label."""
    return source.labels is not None and bool((source.labels >= 0).any())


def chosen_note(source: ImageSet, what: str, count: int) -> str:
    """How many of a set's images are used, and how they were chosen."""
    how = "at random" if source.labels is None else "as equally many of each class as possible"
    return f"{count:,} of {len(source):,} {what} are used, {how}"


def under(purpose: str, lines: list[str]) -> list[str]:
    """The lines of a set, the first one with what the set is for."""
    return [f"{purpose}: {lines[0]}", *lines[1:]]


def open_scored(config: Pretrain, train: ImageSet) -> tuple[ImageSet | None, ImageSet | None, list[str]]:
    """Bank and queries: those of ``val`` if given, else of the data; the same set twice where it must be parted."""
    labelled = has_labels(train)
    if config.val is None:
        if not labelled:
            return None, None, ["no labels: the encoder is not scored (give a labelled set with --val)"]
        try:
            queries = opened(config, config.data, "test")
        except NoSuchSplit:
            return train, train, []
        asked = train if queries.labels is None or same_pictures(queries, train) else queries
        return train, asked, []
    if labelled:
        queries = with_labels(opened(config, config.val, "test", classes=train.classes))
        # one split only: it must be parted
        return train, train if same_pictures(queries, train) else queries, []
    try:
        queries = with_labels(opened(config, config.val, "test"))
        bank = with_labels(opened(config, config.val, "train"))
    except NoSuchSplit:
        bank = queries = with_labels(opened(config, config.val, "train"))
    return bank, queries, []


def opened(config: Pretrain, address: str | None, split: str, classes: list[str] | None = None) -> ImageSet:
    """One split of an address, in the channels that the encoder takes."""
    if address is None:
        raise ValueError("no data: name a folder, a file or a known set, for instance `contrastneg pretrain shapes`")
    channels = config.method.hparams["backbone"]["in_channels"]
    labels = False if config.unlabelled and address == config.data and split == "train" else None
    return open_source(address, split=split, root=config.root, channels=channels, labels=labels, classes=classes)


def with_labels(source: ImageSet) -> ImageSet:
    """The set itself, if it can be scored on."""
    if not has_labels(source):
        raise ValueError(f"val {source.address} has no labels: give a labelled set to score on")
    return source


def training_set(full: ImageSet, config: Pretrain, scored_on_it: bool) -> tuple[Usable, Literal["memory", "stream"]]:
    """The images to pretrain on, and where their pixels will be."""
    found = usable_up_to(full, config.limit_images, config, whole=config.loading == "memory")
    lines, notes = found.lines, found.notes
    if config.limit_images is not None and config.limit_images < len(full):
        lines = [*lines, f"limited to these of {count_of(len(full), 'picture')}; the others were not looked at"]
        notes = [*notes, limit_note(found.images, len(full), scored_on_it)]
    return Usable(found.images, lines, notes, found.bad), loading_of(found.images, config)


def usable_up_to(source: ImageSet, count: int | None, config: Reading, whole: bool) -> Usable:
    """As many images that can be read, as equally many of each class as possible; of a limited set no other is looked at.

    One that cannot be read makes place for the next that the limit would take.

    Args:
        source: The set.
        count: At most so many; None takes all.
        config: How sets are read; its seed says which images.
        whole: As in :func:`usable`.
    """
    if count is None or count >= len(source):
        return usable(source, config, whole)
    order, taken = order_of_choice(source, config.seed), count
    while True:
        lacking = count
        try:
            found = usable(source.subset(order[:taken].sort().values), config, whole)
            lacking -= len(found.images)
            if lacking == 0 or taken >= len(source):
                return found
        except UnusableImages:
            if config.on_bad_image == "raise" or taken >= len(source):
                raise
        taken += lacking


def usable(source: ImageSet, config: Reading, whole: bool) -> Usable:
    """The images that can be read; of a ``whole`` set that will be in memory, where none can be skipped, by decoding all."""
    if source.pixels is not None:
        return Usable(source, [f"{count_of(len(source), 'image')} of {source.name}"], [*source.notes], [])
    progress = ScanProgress(f"{source.name} {source.split}")
    whole = whole and config.on_bad_image == "skip"
    keeper = keeper_of(source) if config.loading != "stream" and (whole or decodes_all(source)) else None
    report = scan(source, config.on_bad_image, progress, whole=whole, see=keeper)
    notes, kept = [*source.notes], source
    if keeper is not None and report.uniform_size == keeper.pixels.shape[2:]:
        kept = replace(source, decoded=keeper.pixels)
    if report.bad:
        kept = kept.subset(report.usable)
        pictures = f"{count_of(len(report.bad), 'picture')} of {source.name} {source.split}"
        are = "is" if len(report.bad) == 1 else "are"
        notes.append(
            f"{pictures} cannot be read and {are} left out (all are listed in {BAD_IMAGES}): {in_short(report.bad, NAMED_IN_NOTE)}"
        )
    return Usable(kept, report.lines(), notes, report.bad)


class Keeper:
    """Keeps the pictures that a scan decodes, which are then not decoded again.

    Args:
        count: How many there are.
        size: Height and width; pictures of another size are not kept.
        channels: Channels that they are decoded to.
    """

    def __init__(self, count: int, size: tuple[int, int], channels: int) -> None:
        self.pixels = torch.zeros(count, channels, *size, dtype=torch.uint8)

    def __call__(self, position: int, picture: UInt8[Tensor, "C H W"]) -> None:
        """Keep the picture at a position."""
        if picture.shape == self.pixels.shape[1:]:
            self.pixels[position] = picture


def keeper_of(source: ImageSet) -> Keeper | None:
    """A keeper for pictures of the size of the first, if as many of that size may be kept in memory."""
    try:
        size = source.size(0)
    except UnreadableImage:
        return None
    return Keeper(len(source), size, source.channels) if in_memory(len(source), size) else None


def limit_note(train: ImageSet, whole: int, scored_on_it: bool) -> str:
    """How a set was limited, and what that means for the scores."""
    drawn = "at random" if train.labels is None else "equally many of each class (the one use of labels before scoring)"
    scores = "; kNN and linear scores learn from these images only, too" if scored_on_it else ""
    return f"limited to {len(train):,} of {whole:,} images, {drawn}{scores}"


def hold_out(source: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """A labelled set parted into bank and queries, at random but always in the same way.

    One picture of each class always answers: no query's class is unknown to the bank. Where every class has a single picture
    there are no queries.
    """
    assert source.labels is not None
    labelled = (source.labels >= 0).nonzero().flatten()
    order = labelled[torch.randperm(len(labelled), generator=generator(seed, "hold_out"))]
    last = dict(zip(source.labels[order].tolist(), order.tolist(), strict=True))
    stays = torch.isin(order, torch.tensor([*last.values()]))
    asked = order[~stays][: max(1, len(order) // HELD_OUT)]
    answering = labelled[~torch.isin(labelled, asked)]
    return source.subset(answering), source.subset(asked.sort().values)


def unanswered_notes(bank: ImageSet | None, queries: ImageSet | None) -> list[str]:
    """How many images are asked about though no answering one is of their class, which no features can get right."""
    if bank is None or queries is None or bank.labels is None or queries.labels is None:
        return []
    asked = queries.labels[queries.labels >= 0]
    unknown = int((~torch.isin(asked, bank.labels)).sum())
    return (
        [f"the classes of {unknown:,} of {count_of(len(asked), 'asked image')} are not among the answering ones"]
        if unknown
        else []
    )


def loading_of(source: ImageSet, config: Reading) -> Literal["memory", "stream"]:
    """Where the pixels will be; explains a memory request that cannot be met."""
    if config.loading == "stream":
        return "stream"
    size = source.uniform_size
    fits = size is not None and in_memory(len(source), size)
    if config.loading == "memory" and size is None:
        raise ValueError(f"loading is memory but the images of {source.address} differ in size: use stream or auto")
    return "memory" if config.loading == "memory" or fits else "stream"


def in_memory(count: int, size: tuple[int, int]) -> bool:
    """Whether so many pictures of a height and width are few enough to be kept decoded without being asked to."""
    return count * 3 * size[0] * size[1] <= MEMORY_LIMIT
