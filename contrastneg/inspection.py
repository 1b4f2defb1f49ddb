"""``contrastneg check``: what a data address holds, what cannot be read, and what is in it twice."""

from jsonargparse import Namespace

from contrastneg.data.duplicates import FEW, find_duplicates, find_leak, quick
from contrastneg.data.fingerprints import Fingerprints
from contrastneg.data.imageset import ImageSet
from contrastneg.data.scan import NAMED, scan
from contrastneg.data.sources import NoSuchSplit, open_source
from contrastneg.writing import printable


def inspect_data(options: Namespace) -> int:
    """Print what is found.

    Args:
        options: As :func:`contrastneg.options.parse_check` gives them.

    Returns:
        1 where pictures cannot be read, else 0.
    """
    sources = splits(options)
    look = quick(sources) if options.duplicates is None else options.duplicates
    most = None if options.all else FEW
    prints: list[Fingerprints] = []
    bad = 0
    for source in sources:
        seen = Fingerprints(source) if look else None
        report = scan(source, "skip", see=None if seen is None else seen.add)
        lines = [*report.lines(), *report.notes, *report.bad_lines(None if options.all else NAMED)]
        if seen is not None:
            prints.append(seen)
            lines += find_duplicates(seen, options.threshold).lines(most)
        tell(f"{source.split}:", lines)
        bad += len(report.bad)
    if len(prints) == 2:
        train, test = prints
        tell("test and train:", find_leak(test, train, options.threshold).lines(most))
    if options.duplicates is None and not look:
        print("duplicates were not looked for, as that takes long in so large a set: --duplicates looks for them")
    return 1 if bad else 0


def splits(options: Namespace) -> list[ImageSet]:
    """The training split, and the test split if there is one."""
    labels = False if options.unlabelled else None
    sources = [open_source(options.data, root=options.root, labels=labels)]
    try:
        sources.append(open_source(options.data, root=options.root, labels=labels, split="test"))
    except NoSuchSplit:
        print("one split only: no test images")
    return sources


def tell(heading: str, lines: list[str]) -> None:
    """Print lines under a heading, control characters in names as escapes."""
    print(heading, *map(printable, lines), sep="\n  ")
