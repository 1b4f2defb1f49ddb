"""The sets of a run: what is pretrained on, and what the encoder is scored on."""

from dataclasses import dataclass
from typing import Literal

import torch

from contrastneg.config import Pretrain
from contrastneg.data.scan import scan
from contrastneg.data.sources import ImageSet, NoSuchSplit, limit_images, open_source
from contrastneg.randomness import generator

MEMORY_LIMIT = 2 << 30  # bytes of pixels that "auto" loading keeps on the device
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


@dataclass(frozen=True)
class Usable:
    """What a scan leaves of a set."""

    images: ImageSet
    """Those that can be read, as far as the scan can tell."""
    lines: list[str]
    """What was found, for the start card."""
    notes: list[str]
    """What was left out."""
    decoded: bool
    """Whether every image was decoded: then none can turn out to be unreadable later."""


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
    train, lines, scan_notes = found.images, under("to pretrain on", found.lines), found.notes
    if bank is full:
        bank = train
    elif bank is not None:
        scanned = usable(bank, config, whole=loading == "memory")
        lines += under("to learn scores from" if not must_part else "to score on", scanned.lines)
        bank, scan_notes = scanned.images, scan_notes + scanned.notes
    if queries is not None and not must_part:
        scanned = usable(queries, config, whole=loading == "memory")
        lines += under("to score on", scanned.lines)
        queries, scan_notes = scanned.images, scan_notes + scanned.notes
    if bank is not None and must_part:
        bank, queries = hold_out(bank, config.seed)
        notes.append(
            f"no test images: every {HELD_OUT}th labelled image is asked about and the others answer; "
            "all of them were pretrained on or may have been, so compare such scores with each other only"
        )
    return OpenedData(train, bank, queries, loading, lines, [*full.notes, *scan_notes, *notes])


def under(purpose: str, lines: list[str]) -> list[str]:
    """The lines of a set, the first one with what the set is for."""
    return [f"{purpose}: {lines[0]}", *lines[1:]]


def open_scored(config: Pretrain, train: ImageSet) -> tuple[ImageSet | None, ImageSet | None, list[str]]:
    """Bank and queries: those of ``val`` if given, else of the data; the same set twice where it must be parted."""
    labelled = train.labels is not None and bool((train.labels >= 0).any())
    if config.val is None:
        if not labelled:
            return None, None, ["no labels: the encoder is not scored (give a labelled set with --val)"]
        try:
            queries = opened(config, config.data, "test")
        except NoSuchSplit:
            return train, train, []
        return (train, queries, []) if queries.labels is not None else (train, train, [])
    if labelled:
        queries = with_labels(opened(config, config.val, "test", classes=train.classes))
        same = (queries.address, queries.split) == (train.address, train.split)  # one split only: it must be parted
        return train, train if same else queries, []
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
    if source.labels is None or not bool((source.labels >= 0).any()):
        raise ValueError(f"val {source.address} has no labels: give a labelled set to score on")
    return source


def training_set(full: ImageSet, config: Pretrain, scored_on_it: bool) -> tuple[Usable, Literal["memory", "stream"]]:
    """The images to pretrain on, and where their pixels will be."""
    found = usable(full, config, whole=config.loading == "memory")
    train, lines, notes = found.images, found.lines, found.notes
    if config.limit_images is not None:
        train = limit_images(train, config.limit_images, config.seed)
        lines = [*lines, f"limited to {len(train):,} images"]
        notes = [*notes, *limit_notes(train, len(found.images), scored_on_it)]
    loading = loading_of(train, config)
    if loading == "memory" and not found.decoded:  # few of a set too large to be decoded whole
        again = usable(train, config, whole=True)
        train, notes = again.images, [*notes, *again.notes]
    return Usable(train, lines, notes, found.decoded), loading


def usable(source: ImageSet, config: Pretrain, whole: bool) -> Usable:
    """The images that can be read; of a ``whole`` set that will be in memory, where none can be skipped, by decoding all."""
    if source.pixels is not None:
        return Usable(source, [f"{len(source):,} images of {source.name}"], [], True)
    report = scan(source, config.on_bad_image, whole=whole and config.on_bad_image == "skip")
    notes = [f"left out {name}: {why}" for name, why in report.bad]
    kept = source.subset(report.usable) if report.bad else source
    return Usable(kept, report.lines(), notes, report.decoded)


def limit_notes(train: ImageSet, whole: int, scored_on_it: bool) -> list[str]:
    """How a set was limited, and what that means for the scores."""
    if len(train) == whole:
        return []
    drawn = "at random" if train.labels is None else "equally many of each class (the one use of labels before scoring)"
    scores = "; kNN and linear scores learn from these images only, too" if scored_on_it else ""
    return [f"limited to {len(train):,} of {whole:,} images, {drawn}{scores}"]


def hold_out(source: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """A labelled set parted into bank and queries, at random but always in the same way."""
    assert source.labels is not None
    labelled = (source.labels >= 0).nonzero().flatten()
    order = labelled[torch.randperm(len(labelled), generator=generator(seed, "hold_out"))]
    n_queries = max(1, len(order) // HELD_OUT)
    return source.subset(order[n_queries:].sort().values), source.subset(order[:n_queries].sort().values)


def loading_of(source: ImageSet, config: Pretrain) -> Literal["memory", "stream"]:
    """Where the pixels will be; explains a memory request that cannot be met."""
    if config.loading == "stream":
        return "stream"
    size = source.uniform_size
    fits = size is not None and len(source) * 3 * size[0] * size[1] <= MEMORY_LIMIT
    if config.loading == "memory" and size is None:
        raise ValueError(f"loading is memory but the images of {source.address} differ in size: use stream or auto")
    return "memory" if config.loading == "memory" or fits else "stream"
