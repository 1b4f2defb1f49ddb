"""Command lines of the verbs with a few options each, and how all verbs take names and what stands first."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser, Namespace

from contrastneg.annotations import record_in
from contrastneg.catalogue import KINDS
from contrastneg.checks import WrongSetting
from contrastneg.data.duplicates import THRESHOLD
from contrastneg.embed import Number
from contrastneg.encoders import Backbone
from contrastneg.evaluate.settings import Evaluate
from contrastneg.export import Target
from contrastneg.helptext import add_positional, page_of_class, parser_of_verb, read_help_texts
from contrastneg.mistakes import explain
from contrastneg.runfolder import settings_file
from contrastneg.subjects import Layer, Subject, open_subject

if TYPE_CHECKING:  # all measures come with it, and pandas: only the verb that takes them pays for that
    import contrastneg.analyze.settings

Settings = TypeVar("Settings", bound=Any)
ENCODER = "ENCODER is a run folder, a checkpoint (of ours or of another project), a .safetensors file, timm:NAME or torchvision:NAME."
SEVERAL = {
    "evaluate": "contrastneg evaluate --compare {} {} compares runs that were evaluated",
    "analyze": "contrastneg analyze {} --checkpoints {} measures both",
}
"""How each verb that looks at an encoder is told of two runs."""
NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"


def parse_check(arguments: Sequence[str]) -> Namespace:
    """Options of ``contrastneg check``."""
    parser = parser_of_verb(
        "check",
        "Say what a data address holds: pictures, sizes, modes, classes and splits; what cannot be read and why; equal pictures "
        "and near duplicates within a split, and test pictures that are among the training pictures. Exit status 1 where a "
        "picture cannot be read; duplicates are told but are no error.",
        "DATA [--root DIR] [--unlabelled] [--duplicates] [--threshold COSINE] [--encoder ENCODER] [--all]",
    )
    add_images(parser)
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


@dataclass(frozen=True)
class Report:
    """Runs whose page is to be written."""

    runs: list[Path]
    out: Path
    """The page of several runs."""


def parse_report(arguments: Sequence[str]) -> Report:
    """Options of ``contrastneg report``."""
    parser = parser_of_verb(
        "report",
        "Write the page of a run, report.html in its folder, anew from its records; or one page of several runs: their "
        "scores, the settings that differ, and the curves of all in one chart each.",
        "RUN [RUN ...] [--out FILE]",
    )
    parser.add_argument("run", type=Path, metavar="RUN", nargs="+", help="Run folders.")
    parser.add_argument(
        "--out", type=Path, help="The page of several runs, replaced if it is there; runs.html by default."
    )
    options = parse_simple(parser, arguments)
    for run in options.run:
        settings_file(run)
    if options.out is not None and len(options.run) == 1:
        raise ValueError("out is given but there is one run, whose page is report.html in its folder: leave out --out")
    if len(options.run) == 1:
        return Report(options.run, Path("report.html"))
    return Report(options.run, checked_page(options.out or Path("runs.html")))


def checked_page(out: Path) -> Path:
    """A page that can be written.

    Raises:
        ValueError: It is a folder, or in a folder that is not there.
    """
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ValueError(f"out is {out}: give a file in a folder that is there, for instance comparison.html")
    return out


def parse_embed(arguments: Sequence[str]) -> Namespace:
    """Options of ``contrastneg embed``."""
    parser = parser_of_verb(
        "embed",
        "Write the embeddings of images to a file, one row an image, with its path, stable index, split, label and class: "
        "a Parquet table or NPZ arrays.",
        "RUN DATA --to FILE [--NAME VALUE ...]",
    )
    add_encoder(parser)
    add_images(parser)
    parser.add_argument("--to", type=Path, required=True, help="File to write: x.parquet or x.npz.")
    parser.add_argument(
        "--layer",
        type=Layer,
        default="backbone",
        help="Where embeddings are taken: the encoder's features, or those of its projection head, which checkpoints hold.",
    )
    parser.add_argument(
        "--split",
        type=Literal["train", "test", "all"],
        default="all",
        help="Which images; all is every split there is.",
    )
    parser.add_argument(
        "--limit_images", type=int, help="At most so many images of each split, equally many of each class."
    )
    parser.add_argument("--dtype", type=Number, default="float32", help="Type of the numbers in the file.")
    parser.add_argument(
        "--on_bad_image",
        type=Literal["raise", "skip"],
        default="raise",
        help="What to do about images that cannot be read: stop with the name of the first, or leave them out.",
    )
    parser.add_argument("--workers", type=int, default=2, help="Loader processes.")
    options = parse_simple(parser, arguments)
    if options.workers < 0:
        raise ValueError(f"workers is {options.workers}: give 0 or more")
    return options


def parse_export(arguments: Sequence[str]) -> Namespace:
    """Options of ``contrastneg export``."""
    parser = parser_of_verb(
        "export",
        "Write an encoder in the form of other libraries, each in a folder of its own with load.py, the code that uses it "
        "there. Every export is loaded back by that code and its features are compared with the encoder's before it is kept.",
        "RUN --to TARGET ... [--out DIR] [--NAME VALUE ...]",
    )
    add_encoder(parser)
    parser.add_argument(
        "--to",
        type=Target,
        nargs="+",
        required=True,
        help="One or several: timm, torchvision, safetensors (for contrastneg), onnx, hf (a folder as on the Hugging Face hub).",
    )
    parser.add_argument(
        "--out", type=Path, help="Where the folders go; by default export in the run folder, else NAME-export here."
    )
    return parse_simple(parser, arguments)


def add_images(parser: ArgumentParser) -> None:
    """The images that a verb reads."""
    add_positional(parser, "data", str, "Address of the images.")
    parser.add_argument(
        "--root", type=Path, help="Folder where torchvision data sets are looked for and downloaded to."
    )
    parser.add_argument("--unlabelled", action="store_true", help="Treat sub-folders as mere folders, not as classes.")


def add_encoder(parser: ArgumentParser) -> None:
    """The encoder that a verb works on, and how it is read; :func:`subject_of` opens it."""
    add_positional(
        parser,
        "run",
        str,
        "The encoder: a run folder, a checkpoint, a .safetensors file, another project's checkpoint, timm:NAME or torchvision:NAME.",
    )
    parser.add_argument(
        "--backbone",
        type=Backbone | None,
        help="What another project's checkpoint holds, where its tensors do not tell.",
    )
    parser.add_argument(
        "--prefix", type=str, help="Part of another project's checkpoint, where it holds several encoders."
    )
    parser.add_argument(
        "--random_init", action="store_true", help="A random encoder: weights drawn by the seed in place of its own."
    )
    parser.add_argument(
        "--size", type=int, help="Side of the images in pixels; by default what the encoder was made for."
    )
    parser.add_argument(
        "--mean", type=float, nargs="+", help="Mean of each channel; by default what the encoder was made for."
    )
    parser.add_argument(
        "--std",
        type=float,
        nargs="+",
        help="Deviation of each channel; by default what the encoder was made for.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of a random encoder and of limited images.")


def subject_of(options: Namespace) -> Subject:
    """The encoder that options name.

    Raises:
        ValueError: It cannot be had.
    """
    return open_subject(
        options.run,
        backbone=options.backbone and Backbone(**options.backbone.as_dict()),
        prefix=options.prefix,
        random_init=options.random_init,
        size=options.size,
        mean=options.mean and tuple(options.mean),
        std=options.std and tuple(options.std),
        seed=options.seed,
    )


def parse_catalogue(arguments: Sequence[str]) -> Namespace:
    """Options of ``contrastneg catalogue``."""
    parser = parser_of_verb(
        "catalogue",
        "List every heading of the survey of negative sampling, and every stage and loss: what it is here, what it costs and "
        "needs, and the recipe that runs it.",
        "[WORD] [--kind KIND] [--format FORMAT]",
    )
    add_positional(parser, "word", str, "Show only entries that hold it.", optional=True)
    parser.add_argument("--kind", type=Literal[KINDS], help="Show only entries with a class of this kind.")
    parser.add_argument("--format", type=Literal["table", "md", "json"], default="table", help="What is printed.")
    return parse_simple(parser, arguments)


@dataclass(frozen=True)
class Compare:
    """Runs that are to be compared."""

    runs: list[Path]
    out: Path
    """The page to write."""


def parse_compare(arguments: Sequence[str]) -> Compare:
    """Settings of ``contrastneg evaluate --compare RUN RUN ... [--out FILE]``.

    Raises:
        ValueError: If there is anything else.
    """
    usage = "contrastneg evaluate --compare RUN RUN ... [--out FILE]"
    parser = ArgumentParser(prog="contrastneg evaluate --compare", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--compare", type=Path, nargs="+", required=True, help="Runs that were evaluated.")
    parser.add_argument("--out", type=Path, default=Path("comparison.html"), help="The page to write.")
    try:
        given = parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise ValueError(f"--compare takes run folders, and --out: {usage}") from error
    return Compare(given.compare, checked_page(given.out))


def parse_evaluate(arguments: Sequence[str]) -> Evaluate | Compare:
    """Settings of ``contrastneg evaluate``, or the runs that are to be compared.

    Raises:
        ValueError: If a name or a value is not valid.
    """
    given = dashed_names(arguments)
    if any(argument.partition("=")[0] == "--compare" for argument in given):
        return parse_compare(given)
    return settings_of(
        "evaluate",
        Evaluate,
        "Judge an encoder: kNN, linear probes, few labels, retrieval, clusters, geometry, beside raw pixels and a random encoder, "
        f"with 95 % bootstrap intervals. {ENCODER}",
        "ENCODER [DATA] [--NAME VALUE ...]\n       contrastneg evaluate --compare RUN RUN [...] [--out FILE]",
        given,
    )


def parse_analyze(arguments: Sequence[str]) -> "contrastneg.analyze.settings.Analyze":
    """Settings of ``contrastneg analyze``.

    Raises:
        ValueError: If a name or a value is not valid.
    """
    from contrastneg.analyze.sections import SECTIONS
    from contrastneg.analyze.settings import Analyze

    return settings_of(
        "analyze",
        Analyze,
        "Say what the negatives of an encoder are: how hard, how many of them false, how many are needed, what each method would "
        f"change; as tables, answers and a page with a gallery. {ENCODER} Sections: {', '.join(SECTIONS)}.",
        "ENCODER [DATA] [--sections NAME,NAME] [--NAME VALUE ...]",
        dashed_names(arguments),
    )


def settings_of(verb: str, kind: type[Settings], description: str, usage: str, given: Sequence[str]) -> Settings:
    """Settings of a verb that looks at an encoder, which stands first, on data, which may stand second.

    Args:
        verb: Name in the command table.
        kind: Dataclass of its settings.
        description: What it does.
        usage: What may stand after the verb.
        given: The command line, names with underscores.

    Raises:
        ValueError: If a name or a value is not valid.
    """
    leading = [*takewhile(lambda argument: not argument.startswith("-"), given[:2])]
    named = [text for name, value in zip(("encoder", "data"), leading, strict=False) for text in (f"--{name}", value)]
    read_help_texts(given)
    parser = parser_of_verb(verb, description, usage)
    parser.add_class_arguments(kind, as_group=False)
    settings = parse_simple(parser, listed(bare_flags([*named, *given[len(leading) :]], kind), kind))
    if not settings.encoder:
        raise ValueError(
            f"no encoder: name a run folder, a checkpoint or timm:NAME, for instance `contrastneg {verb} RUN`"
        )
    if settings.data is not None and is_run(Path(settings.data)):
        instead = SEVERAL[verb].format(settings.encoder, settings.data)
        raise ValueError(f"{settings.data} is a run, not a set of images: {instead}")
    try:
        return kind(**{field.name: settings[field.name] for field in fields(kind)})
    except WrongSetting as error:
        raise error.at("") from error


def is_run(folder: Path) -> bool:
    """Whether a folder holds what a run leaves, and not only a settings file beside pictures."""
    return (folder / "config.yaml").exists() and any(
        (folder / name).exists() for name in ("encoder.safetensors", "checkpoints")
    )


def listed(arguments: Sequence[str], kind: type) -> list[str]:
    """``--protocols knn,linear`` as ``--protocols=["knn","linear"]``; braces of addresses stay together."""
    names = {f"--{field.name}" for field in fields(kind) if "tuple" in str(field.type)}
    joined: list[str] = []
    for argument in arguments:
        before = joined[-1] if joined else ""
        name, is_, text = argument.partition("=")
        if before in names and not argument.startswith("["):
            joined[-1] = f"{before}={in_brackets(argument)}"
        elif is_ and name in names and not text.startswith("["):
            joined.append(f"{name}={in_brackets(text)}")
        else:
            joined.append(argument)
    return joined


def in_brackets(text: str) -> str:
    """``a,b`` as ``["a","b"]``, numbers without quotes."""
    parts = [part.strip() for part in re.split(r",(?![^{]*\})", text) if part.strip()]
    return f"[{','.join(part if re.fullmatch(NUMBER, part) else json.dumps(part) for part in parts)}]"


def bare_flags(arguments: Sequence[str], kind: type) -> list[str]:
    """``--unlabelled`` alone as ``--unlabelled=true``.

    Args:
        arguments: A command line, names already with underscores.
        kind: Dataclass of its settings.
    """
    flags = {f"--{field.name}" for field in fields(kind) if field.type is bool}
    following = [*arguments[1:], "--"][: len(arguments)]
    return [
        f"{argument}=true" if argument in flags and after.startswith("--") else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def parse_simple(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse, with errors as one line; ``--backbone.help`` and the like end with their page."""
    given = dashed_names(arguments)
    for setting in [argument[2:-5] for argument in given if re.fullmatch(r"--\w+\.help", argument)]:
        annotation = next((getattr(a, "_typehint", None) for a in parser._actions if a.dest == setting), None)
        if (record := record_in(annotation)) is not None:
            first = (parser.usage or "").split()[2]  # after the verb
            print(page_of_class(record, setting, parser.prog.split()[-1], first), end="")
            raise SystemExit(0)
    try:
        return parser.parse_args(given)
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
