"""Command lines of the verbs with a few options each, and how all verbs take names and what stands first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser, Namespace

from contrastneg.catalogue import KINDS
from contrastneg.data.duplicates import THRESHOLD
from contrastneg.helptext import add_positional, parser_of_verb
from contrastneg.mistakes import explain
from contrastneg.runfolder import settings_file


def parse_check(arguments: Sequence[str]) -> Namespace:
    """Options of ``contrastneg check``."""
    parser = parser_of_verb(
        "check",
        "Say what a data address holds: pictures, sizes, modes, classes and splits; what cannot be read and why; equal pictures "
        "and near duplicates within a split, and test pictures that are among the training pictures. Exit status 1 where a "
        "picture cannot be read; duplicates are told but are no error.",
        "DATA [--root DIR] [--unlabelled] [--duplicates] [--threshold COSINE] [--encoder ENCODER] [--all]",
    )
    add_positional(parser, "data", str, "Address of the images.")
    parser.add_argument(
        "--root", type=Path, help="Folder where torchvision data sets are looked for and downloaded to."
    )
    parser.add_argument("--unlabelled", action="store_true", help="Treat sub-folders as mere folders, not as classes.")
    parser.add_argument(
        "--duplicates",
        action=ActionYesNo,
        default=None,
        help="Look for duplicates, or do not. Without either, sets of up to 100,000 pictures whose decoding takes seconds are "
        "looked through; in larger ones every picture is decoded, and time grows with the square of their number.",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        help="Pictures are near duplicates from this cosine on, above 0 and at most 1, of what is left of them shrunk to 16 x 16, "
        "or of an encoder's features.",
    )
    parser.add_argument(
        "--encoder",
        type=str,
        help="Look for near duplicates by the features of an encoder, less their mean, not by small pictures: a run folder, a "
        "checkpoint, a .safetensors file, timm:NAME or torchvision:NAME. Its cosines may ask for another threshold.",
    )
    parser.add_argument(
        "--all", action="store_true", help="Name every picture and pair, not only the first few of each kind."
    )
    options = parse_simple(parser, arguments)
    if not 0 < options.threshold <= 1:
        raise ValueError(f"threshold is {options.threshold:g}: give a number above 0 and at most 1")
    if options.encoder is not None and options.duplicates is False:
        raise ValueError("encoder is given but duplicates are not looked for: leave out --encoder or --no-duplicates")
    return options


def parse_report(arguments: Sequence[str]) -> Path:
    """The run folder of ``contrastneg report``."""
    parser = parser_of_verb("report", "Write the page of a run, report.html, anew from its records.", "RUN")
    add_positional(parser, "run", Path, "Run folder.")
    run = parse_simple(parser, arguments).run
    settings_file(run)
    return run


def parse_catalogue(arguments: Sequence[str]) -> Namespace:
    """Options of ``contrastneg catalogue``."""
    parser = parser_of_verb(
        "catalogue",
        "List every heading of the survey of negative sampling, and every stage and loss: what it is here, what it costs and "
        "needs, and the recipe that runs it.",
        "[WORD] [--kind KIND] [--format FORMAT]",
    )
    parser.add_argument("--word", default="", help="Show only entries that hold it; may stand first, without --word.")
    parser.add_argument("--kind", type=Literal[KINDS], help="Show only entries with a class of this kind.")
    parser.add_argument("--format", type=Literal["table", "md", "json"], default="table", help="What is printed.")
    return parse_simple(parser, positional("word", arguments))


def parse_simple(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse, with errors as one line."""
    try:
        return parser.parse_args(dashed_names(arguments))
    except ArgumentError as error:
        raise ValueError(explain(str(error), parser)) from error


def positional(name: str, arguments: Sequence[str]) -> list[str]:
    """``DATA --x y`` as ``--data DATA --x y``."""
    if arguments and not arguments[0].startswith("-"):
        return [f"--{name}", *arguments]
    return list(arguments)


def dashed_names(arguments: Sequence[str]) -> list[str]:
    """``--on-bad-image`` as ``--on_bad_image``: both spellings are accepted."""
    changed = []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        changed.append(("--" + name[2:].replace("-", "_") if name.startswith("--") else name) + equals + text)
    return changed
