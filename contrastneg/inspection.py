"""``contrastneg check``: what a data address holds, what cannot be read, and what is in it twice."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jsonargparse import Namespace

from contrastneg.data.duplicates import FEW, find_duplicates, find_leak, quick
from contrastneg.data.fingerprints import Fingerprints
from contrastneg.data.imageset import ImageSet
from contrastneg.data.module import PretrainData
from contrastneg.data.opening import same_pictures
from contrastneg.data.scan import NAMED, scan
from contrastneg.data.sources import NoSuchSplit, open_source
from contrastneg.evaluate.features import encode_set
from contrastneg.subjects import Subject, open_subject
from contrastneg.writing import printable


def inspect_data(options: Namespace) -> int:
    """Print what is found.

    Args:
        options: As :func:`contrastneg.options.parse_check` gives them.

    Returns:
        1 where pictures cannot be read, else 0.
    """
    subject = None if options.encoder is None else open_subject(options.encoder)
    sources = splits(options)
    look = options.duplicates if options.duplicates is not None else subject is not None or quick(sources)
    prints = [Fingerprints(source) for source in sources] if look else []
    reports = [scan(source, "skip", see=prints[place].add if look else None) for place, source in enumerate(sources)]
    if look and subject is not None:
        see_with(subject, prints)
    most = None if options.all else FEW
    for place, (source, report) in enumerate(zip(sources, reports, strict=True)):
        lines = [*report.lines(), *report.notes, *report.bad_lines(None if options.all else NAMED)]
        if look:
            lines += find_duplicates(prints[place], options.threshold).lines(most)
        tell(f"{source.split}:", lines)
    if len(prints) == 2:
        train, test = prints
        tell("test and train:", find_leak(test, train, options.threshold).lines(most))
    if options.duplicates is None and not look:
        print("duplicates were not looked for, as that takes long in so large a set: --duplicates looks for them")
    return 1 if any(report.bad for report in reports) else 0


def see_with(subject: Subject, prints: Sequence[Fingerprints]) -> None:
    """Put the features of an encoder in the place of the small vectors.

    They are centred on the mean of the first set: cosines of features that a rectifier made are otherwise all near 1.

    Args:
        subject: The encoder.
        prints: What scans have seen of each split.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, mean = subject.network.to(device), None
    for each in prints:
        position = each.seen.nonzero()[:, 0]
        images = replace(each.source.subset(position), channels=subject.in_channels)
        features, row = encode_set(network, PretrainData(images, subject.views, loading="stream"), "pretrain", device)
        mean = features.mean(dim=0) if mean is None else mean
        each.vector = torch.zeros(len(each.source), features.shape[1])
        each.vector[position[row]] = features - mean


def splits(options: Namespace) -> list[ImageSet]:
    """The training split, and the test split if there is one."""
    labels = False if options.unlabelled else None
    sources = [open_source(options.data, root=options.root, labels=labels)]
    try:
        test = open_source(options.data, root=options.root, labels=labels, split="test")
    except NoSuchSplit:
        print("one split only: no test images")
        return sources
    if same_pictures(test, sources[0]):
        print("the test split is the training pictures themselves: no test images")
        return sources
    return [*sources, test]


def tell(heading: str, lines: list[str]) -> None:
    """Print lines under a heading, control characters in names as escapes."""
    print(heading, *map(printable, lines), sep="\n  ")
