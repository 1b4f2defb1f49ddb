"""The sets of a run: what is pretrained on, and what the encoder is scored on."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from contrastneg.config import Pretrain
from contrastneg.data.sources import ImageSet, NoSuchSplit, open_source
from contrastneg.data.tables import HubReader
from contrastneg.data.usable import Reading, Usable, loading_of, usable, usable_up_to
from contrastneg.randomness import generator
from contrastneg.wording import HELD_OUT_NOTE, count_of

NONE_TO_ASK = "every class has a single labelled picture, so none can be asked about"
HELD_OUT = 10  # without test images every 10th labelled image is asked about


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
    in_memory = loading == "memory"
    train, scanned = found.images, {"to pretrain on": found}
    if bank is full:
        bank = train
    elif bank is not None:
        scanned["to learn scores from" if not must_part else "to score on"] = usable(
            bank, config, whole=in_memory, keep=in_memory
        )
        bank = [*scanned.values()][-1].images
    if queries is not None and not must_part:
        scanned["to score on"] = usable(queries, config, whole=in_memory, keep=in_memory)
        queries = scanned["to score on"].images
    if bank is not None and must_part:
        held_out = held_out_note(pretrained_on=bank is train)
        bank, queries = hold_out(bank, config.seed)
        none_asked = f"{NONE_TO_ASK}: the encoder is not scored (give a labelled set with --val)"
        notes.append(held_out if len(queries) else none_asked)
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
            "no labelled test images other than the training images: scores are tested on every "
            f"{HELD_OUT}th labelled image and learn from the others; an encoder that was pretrained on this set has seen them all"
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

    Rows of a data set of ``datasets`` do not say which picture they are; files, rows of a named table and members of a named
    archive do. A link to a picture or a folder is what it leads to; a link to a table within a folder is another table.
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
    return bank, bank if same_pictures(queries, bank) else queries, []


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
    found = usable_up_to(full, config.limit_images, config, whole=config.loading == "memory", keep=True)
    lines, notes = found.lines, found.notes
    if config.limit_images is not None and config.limit_images < len(full):
        lines = [*lines, f"limited to these of {count_of(len(full), 'picture')}; the others were not looked at"]
        notes = [*notes, limit_note(found.images, len(full), scored_on_it)]
    return Usable(found.images, lines, notes, found.bad), loading_of(found.images, config)


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


def held_out_note(pretrained_on: bool) -> str:
    """That a part of the labelled images is asked about, and what that means where the encoder was pretrained on them."""
    how = f"every {HELD_OUT}th labelled image is asked about and the others answer"
    if not pretrained_on:
        return (
            f"{HELD_OUT_NOTE} in the set to score on other than its training images: {how}; if some of the same pictures "
            "were pretrained on under other names, compare such scores with each other only"
        )
    return (
        f"{HELD_OUT_NOTE} other than the training images: {how}; all of them were pretrained on, so compare such scores with "
        "each other only"
    )


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
