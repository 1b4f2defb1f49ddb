"""Command lines and YAML files into settings: typed, with the nearest valid name for a wrong one."""

import dataclasses
import difflib
import inspect
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace

from contrastneg import mixing, negatives, objectives, schedules
from contrastneg.config import Pretrain
from contrastneg.data.sources import UnreadableImage, open_source
from contrastneg.helptext import add_positional, parser_of_verb
from contrastneg.methods import MoCo, SimCLR
from contrastneg.randomness import derive_seed

SIZE_SAMPLE = 64  # images whose size is looked at
SMALL_IMAGE = 96  # up to this side images are taken as they are
PHOTOGRAPH = 224
METHODS: dict[str, type] = {"MoCo": MoCo, "SimCLR": SimCLR}


def parse_pretrain(arguments: Sequence[str]) -> tuple[Pretrain, Path | None]:
    """Settings of ``contrastneg pretrain`` and the run to resume, if any.

    Raises:
        ValueError: If a name or a value is not valid.
    """
    given = bare_flags(dashed_names(positional("data", arguments)))
    if not any(argument.partition("=")[0] == "--resume" for argument in given):
        return build(pretrain_parser(), given), None
    parser = ArgumentParser(prog="contrastneg pretrain", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--resume", type=Path, required=True, help="Run folder to continue.")
    try:
        folder = parser.parse_args(given).resume
    except ArgumentError as error:
        raise ValueError(f"{first_line(error)}: a resumed run keeps its own settings, give --resume alone") from error
    return read_config(folder), folder


def read_config(run: Path) -> Pretrain:
    """Settings of an earlier run, from its ``config.yaml``.

    Raises:
        ValueError: If the folder is not a run or its settings are not valid.
    """
    if not (run / "config.yaml").exists():
        raise ValueError(f"{run} is not a run folder: it holds no config.yaml")
    return build(pretrain_parser(), ["--config", str(run / "config.yaml")])


def pretrain_parser() -> ArgumentParser:
    """The parser of ``contrastneg pretrain``; help texts are the attribute docstrings of the settings."""
    parser = parser_of_verb(
        "pretrain",
        "Pretrain an image encoder without labels, then score it. The address of the data may stand first, without "
        "--data. `--method.help MoCo` lists the settings of a method. `--resume RUN`, alone, continues a run.",
        "[DATA] [--config FILE] [--NAME VALUE ...]",
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; what stands later wins.")
    parser.add_class_arguments(Pretrain, as_group=False)
    parser.set_defaults({"views.size": 0})  # stands for the size that suits the images
    parser.link_arguments("views.size", "method.init_args.image_size")
    return parser


def build(parser: ArgumentParser, arguments: Sequence[str]) -> Pretrain:
    """Parse, then build the method with weights that are a function of the seed.

    Raises:
        ValueError: If a name or a value is not valid.
    """
    try:
        if not names_method(arguments):
            arguments = ["--method=contrastneg.methods.SimCLR", *arguments]
        for option in ("--method", "--method.loss", "--method.mixing"):
            arguments = class_first(option, arguments)
        parsed = parser.parse_args(list(arguments))
        if parsed.views.size == 0:
            parsed = parser.parse_args([*arguments, f"--views.size={natural_size(parsed)}"])
    except ArgumentError as error:
        raise ValueError(explain(str(error), parser)) from error
    except (OSError, TypeError) as error:
        raise ValueError(f"the settings cannot be read: {first_line(error)}") from error
    return instantiate(parser, parsed)


def names_method(arguments: Sequence[str]) -> bool:
    """Whether a command line, or a file that it names, chooses a method.

    A default in the parser would lend its settings to another class that is chosen later.
    """
    files = [after for argument, after in pairwise(arguments) if argument == "--config"]
    files += [argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")]
    texts = [Path(file).read_text(encoding="utf-8") for file in files if Path(file).is_file()]
    return any(argument.partition("=")[0] == "--method" for argument in arguments) or any(
        re.search(r"^method\s*:", text, re.MULTILINE) for text in texts
    )


def class_first(option: str, arguments: Sequence[str]) -> list[str]:
    """``--method.x 1 --method MoCo`` as ``--method MoCo --method.x 1``: the order a user writes them in says nothing."""
    joined = re.sub(rf"(^|\x00){re.escape(option)}\x00", rf"\1{option}=", "\x00".join(arguments)).split("\x00")
    first = next((i for i, argument in enumerate(joined) if argument.startswith(f"{option}.")), len(joined))
    late = [argument for argument in joined[first:] if argument.startswith(f"{option}=")]
    rest = [argument for argument in joined[first:] if not argument.startswith(f"{option}=")]
    return [*joined[:first], *late, *rest]


def natural_size(parsed: Namespace) -> int:
    """Side of the views where none is given: that of small images of one size, 224 for all others.

    Raises:
        ValueError: If there is no data, or it cannot be opened.
    """
    if parsed.data is None:
        raise ValueError("no data: name a folder, a file or a known set, for instance `contrastneg pretrain shapes`")
    source = open_source(parsed.data, root=parsed.root, labels=False if parsed.unlabelled else None)
    sizes = set()
    for position in range(min(len(source), SIZE_SAMPLE)):
        with suppress(UnreadableImage):  # the scan will tell
            sizes.add(source.size(position))
    side = max(sizes.pop()) if len(sizes) == 1 else PHOTOGRAPH
    return side if side <= SMALL_IMAGE else PHOTOGRAPH


def instantiate(parser: ArgumentParser, parsed: Namespace) -> Pretrain:
    """Settings as objects."""
    torch.manual_seed(derive_seed(parsed.seed, "weights"))
    objects = parser.instantiate(parsed)
    return Pretrain(**{field.name: objects[field.name] for field in dataclasses.fields(Pretrain)})


def explain(message: str, parser: ArgumentParser) -> str:
    """A parser's message as one line that names the choices or the nearest valid name."""
    if match := re.search(r"unrecognized arguments: (\S+)", message):
        options = [name for name in parser._option_string_actions if name.startswith("--")]
        return f"there is no option {match[1]}: {nearest(match[1].partition('=')[0], options)}"
    if match := re.search(r"Expected a dot import path string: (\S+)", message):
        settings = re.findall(r"Parser key \"([^\"]+)\"", message[: match.start()])
        answer = nearest(match[1], class_names(settings[-1] if settings else ""))
        if answer.startswith("choose") and "Expected a <class 'float'>" in message:
            return f"{'.'.join(settings)} is {match[1]}: give a number, or a schedule: {answer}"
        return f"there is no class {match[1]!r} here: {answer}"
    if match := re.search(r"Option '([^']+)' is not accepted", message):
        owners = list(re.finditer(r"class_path '([^']+)'", message[: match.start()]))
        owner = owners[-1] if owners else None  # the innermost
        known = class_named(owner[1]) if owner else None
        names = inspect.signature(known).parameters if known else [action.dest for action in parser._actions]
        where = f" in {owner[1].rpartition('.')[2]}" if owner else ""
        wrong = match[1].partition(".")[0] if not owner else match[1]
        return f"there is no setting {wrong!r}{where}: {nearest(wrong, names)}"
    if match := re.search(r"Expected an? (?:typing\.|<class ')?(.+?)'?>?\. Got value: (.*)", message):
        setting = ".".join(re.findall(r"Parser key \"([^\"]+)\"", message))
        choices = re.fullmatch(r"Literal\[(.*)\]", match[1])
        expected = f"choose from {choices[1]}" if choices else f"expected {match[1]}"
        return f"{setting} is {match[2]}: {expected.replace(chr(39), '')}"
    return re.sub(r"\s+", " ", message.replace("Parser key ", "")).strip()


def nearest(wrong: str, names: Iterable[str]) -> str:
    """The most similar valid name, or all of them."""
    names = [name for name in names if name not in ("self", "help")]
    if not names:
        return "it has none"
    near = difflib.get_close_matches(wrong, names, n=1) or difflib.get_close_matches(
        wrong.lower(), [name.lower() for name in names], n=1
    )
    if not near:
        return "choose from " + ", ".join(sorted(names))
    return f"did you mean {next(name for name in names if name.lower() == near[0].lower())}?"


def class_names(setting: str) -> list[str]:
    """Names of the classes that may stand for a setting: methods, losses, stages, mixes or, for any number, schedules."""
    if setting == "method":
        return list(METHODS)
    home = {"loss": objectives, "stages": negatives, "mixing": mixing}.get(setting, schedules)
    return [name for name in home.__all__ if is_setting(getattr(home, name))]


def is_setting(thing: Any) -> bool:
    """Whether a public name is a class that a YAML file may name: a concrete loss, stage, mix or schedule."""
    return (
        inspect.isclass(thing)
        and issubclass(thing, (objectives.Objective, negatives.Stage, mixing.InputMix, schedules.Schedule))
        and not inspect.isabstract(thing)
    )


def class_named(path: str) -> type | None:
    """The class behind a name in a parser's message."""
    name = path.rpartition(".")[2]
    homes = (objectives, negatives, mixing, schedules)
    return METHODS.get(name) or next((getattr(module, name) for module in homes if hasattr(module, name)), None)


def parse_check(arguments: Sequence[str]) -> Namespace:
    """Options of ``contrastneg check``."""
    parser = parser_of_verb(
        "check",
        "Say what a data address holds: pictures, sizes, classes and splits, and what cannot be read and why. Exit status "
        "1 where a picture cannot be read.",
        "DATA [--root DIR] [--unlabelled]",
    )
    add_positional(parser, "data", str, "Address of the images.")
    parser.add_argument(
        "--root", type=Path, help="Folder where torchvision data sets are looked for and downloaded to."
    )
    parser.add_argument("--unlabelled", action="store_true", help="Treat sub-folders as mere folders, not as classes.")
    return parse_simple(parser, arguments)


def parse_report(arguments: Sequence[str]) -> Path:
    """The run folder of ``contrastneg report``."""
    parser = parser_of_verb("report", "Write the page of a run, report.html, anew from its records.", "RUN")
    add_positional(parser, "run", Path, "Run folder.")
    run = parse_simple(parser, arguments).run
    if not (run / "config.yaml").exists():
        raise ValueError(f"{run} is not a run folder: it holds no config.yaml")
    return run


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


def bare_flags(arguments: Sequence[str]) -> list[str]:
    """``--unlabelled`` alone as ``--unlabelled=true``."""
    flags = {f"--{field.name}" for field in dataclasses.fields(Pretrain) if field.type is bool}
    following = [*arguments[1:], "--"][: len(arguments)]
    return [
        f"{argument}=true" if argument in flags and after.startswith("--") else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def first_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
