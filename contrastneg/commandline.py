"""Command lines and YAML files into the settings of ``contrastneg pretrain``."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace

from contrastneg.annotations import NAMED_BY_CLASS, choices, parameters, parts, record_in, type_of
from contrastneg.annotations import words as words_of
from contrastneg.checks import WrongSetting, refusal
from contrastneg.config import Pretrain
from contrastneg.data.sources import UnreadableImage, open_source
from contrastneg.data.subsets import order_of_choice
from contrastneg.helptext import list_of_classes, page_of_class, parser_of_verb, read_help_texts
from contrastneg.mistakes import class_instead, explain, locate_class
from contrastneg.options import bare_flags, dashed_names, positional
from contrastneg.randomness import derive_seed
from contrastneg.runfolder import settings_file

SIZE_SAMPLE = 64  # images whose size is looked at
SMALL_IMAGE = 96  # up to this side images are taken as they are
PHOTOGRAPH = 224
HELP_OF_CLASS = r"--\w+(\.\w+)*\.help(=|$)"
FEW = 4  # classes that a message names
FILE_OPTIONS = ("--config", "--views", "--views.view1", "--views.view2")


class SuitsImages(int):
    """Stands for a size of the views that was not given: a number of its own kind, since every plain one may be given."""


def parse_pretrain(arguments: Sequence[str]) -> tuple[Pretrain, Path | None]:
    """Settings of ``contrastneg pretrain`` and the run to resume, if any.

    Raises:
        ValueError: If a name or a value is not valid.
    """
    read_help_texts(arguments)
    given = bare_flags(dashed_names(positional("data", arguments)), Pretrain)
    if (page := class_help(given)) is not None:
        print(page, end="")
        raise SystemExit(0)
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
    return build(pretrain_parser(), ["--config", str(settings_file(run))])


def pretrain_parser() -> ArgumentParser:
    """The parser of ``contrastneg pretrain``; help texts are the attribute docstrings of the settings."""
    parser = parser_of_verb(
        "pretrain",
        "Pretrain an image encoder without labels, then score it. The address of the data may stand first, without "
        "--data. `--method.help MoCo` lists the settings of a method, "
        "`--method.loss.help` and `--method.stages.help` what may stand there. `--resume RUN`, alone, continues a run.",
        "[DATA] [--config FILE] [--NAME VALUE ...]",
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; what stands later wins.")
    parser.add_class_arguments(Pretrain, as_group=False)
    parser.set_defaults({"views.size": SuitsImages()})
    parser.link_arguments("views.size", "method.init_args.image_size")
    return parser


def build(parser: ArgumentParser, arguments: Sequence[str]) -> Pretrain:
    """Parse, then build the method with weights that are a function of the seed.

    Raises:
        ValueError: If a name or a value is not valid.
    """
    try:
        if not names_method(arguments, settings_files(arguments)):
            arguments = ["--method=contrastneg.methods.SimCLR", *arguments]
        arguments = stages_in_list(arguments)
        for option in ("--batches", "--method", "--method.loss", "--method.mixing"):
            arguments = class_first(option, arguments)
        printing = [argument for argument in arguments if argument.startswith("--print_config")]
        arguments = [argument for argument in arguments if argument not in printing]
        parsed = parser.parse_args(arguments)
        if isinstance(parsed.views.size, SuitsImages):
            arguments = [*arguments, f"--views.size={natural_size(parsed)}"]
            parsed = parser.parse_args(arguments)
        if printing:
            parser.parse_args([*arguments, *printing])  # which ends the process
    except ArgumentError as error:
        raise ValueError(explain(str(error), parser, arguments, settings_files(arguments))) from error
    except (OSError, TypeError) as error:
        raise ValueError(f"the settings cannot be read: {first_line(error)}") from error
    return instantiate(parser, parsed)


def class_help(arguments: Sequence[str]) -> str | None:
    """The page that ``--method.loss.help [NAME]`` and the like ask for; None where nothing asks.

    Raises:
        ValueError: If there is no such setting or class.
    """
    asked = [place for place, argument in enumerate(arguments) if re.match(HELP_OF_CLASS, argument)]
    if not asked:
        return None
    words = [*arguments[asked[0]].split("=", 1), *arguments[asked[0] + 1 :]]
    setting = words[0].removeprefix("--").removesuffix(".help")
    name = words[1] if len(words) > 1 and not words[1].startswith("-") else None
    if (annotation := type_asked_for(setting, arguments)) is None:
        return page_of_owner(setting, arguments)
    kinds = choices(annotation)
    if name is None and kinds:
        return list_of_classes(kinds, setting)
    if (record := record_in(annotation)) is not None and not kinds:
        return page_of_class(record, setting)
    if not kinds:
        raise ValueError(f"{setting} takes {words_of(annotation)}: `contrastneg pretrain --help` tells its meaning")
    found = next((kind for kind in kinds if kind.__name__ == name), None) or locate_class(name or "")
    if found is None or not issubclass(found, tuple(part for part in parts(annotation) if part in NAMED_BY_CLASS)):
        raise ValueError(f"there is no class {name!r} here: {class_instead(name or '', annotation)}")
    return page_of_class(found, setting)


def page_of_owner(setting: str, arguments: Sequence[str]) -> str:
    """The page of the class, of those that may be chosen above a setting, that has the setting.

    Raises:
        ValueError: None of them has it, or several have it and none of these is chosen.
    """
    above, _, inner = setting.rpartition(".")
    kinds = choices(type_asked_for(above, arguments)) if above else []
    owners = [kind for kind in kinds if type_of(kind, inner) is not None]
    if not owners:
        where = f"--{above}.help lists what may stand there" if kinds else "--method.help MoCo lists those of a method"
        raise ValueError(f"there is no setting {setting}: {where}")
    names = [kind.__name__ for kind in owners]
    chosen = [kind for kind in owners if kind.__name__ in values_of(f"--{above}", arguments)] or owners
    if len(chosen) > 1:
        some = names if len(names) <= FEW else [*names[:FEW], f"{len(names) - FEW} more"]
        raise ValueError(f"{setting} is a setting of {', '.join(some)}: --{above}.help {names[0]} tells its meaning")
    return page_of_class(chosen[0], above)


def values_of(option: str, arguments: Sequence[str]) -> list[str]:
    """What a command line gives for an option."""
    apart = [after for before, after in pairwise(arguments) if before == option]
    return apart + [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{option}=")]


def type_asked_for(setting: str, arguments: Sequence[str]) -> Any:
    """The type of a setting; of one below ``method``, in the method that is chosen or in any that has it."""
    if not setting.startswith("method."):
        return type_of(Pretrain, setting)
    chosen = values_of("--method", arguments)
    methods = sorted(choices(parameters(Pretrain)["method"]), key=lambda kind: kind.__name__ not in chosen)
    found = (type_of(method, setting.removeprefix("method.")) for method in methods)
    return next((annotation for annotation in found if annotation is not None), None)


def names_method(arguments: Sequence[str], files: Iterable[dict[str, Any]]) -> bool:
    """Whether a command line, or a file that it names, chooses a method.

    A default in the parser would lend its settings to another class that is chosen later.
    """
    return any(argument.partition("=")[0] == "--method" for argument in arguments) or any(
        "method" in file for file in files
    )


def settings_files(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """The content of the settings files that a command line names.

    Raises:
        ValueError: If one is not there, is not YAML, or holds no settings.
    """
    named = [(before, after) for before, after in pairwise(arguments) if before in FILE_OPTIONS]
    named += [
        (before, after)
        for before, is_, after in (a.partition("=") for a in arguments)
        if is_ and before in FILE_OPTIONS
    ]
    return [read_yaml(option, Path(file)) for option, file in named if option == "--config" or is_file_name(file)]


def is_file_name(text: str) -> bool:
    """Whether a value is meant as a settings file (and not as the settings themselves)."""
    return text.endswith((".yaml", ".yml"))


def read_yaml(option: str, file: Path) -> dict[str, Any]:
    """The settings in a file.

    Raises:
        ValueError: If it is not there, is not YAML, or holds no settings.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{option[2:]} {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{option[2:]} {file} is not a text file (UTF-8): give a YAML file of settings") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise ValueError(f"{file}{line} is not YAML: {error.problem} (look at this line and the one before)") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no settings: write NAME: VALUE, one a line")
    return content


def class_first(option: str, arguments: Sequence[str]) -> list[str]:
    """``--method.x 1 --method MoCo`` as ``--method MoCo --method.x 1``: the order a user writes them in says nothing."""
    joined = re.sub(rf"(^|\x00){re.escape(option)}\x00(?!--)", rf"\1{option}=", "\x00".join(arguments)).split("\x00")
    first = next((i for i, argument in enumerate(joined) if argument.startswith(f"{option}.")), len(joined))
    late = [argument for argument in joined[first:] if argument.startswith(f"{option}=")]
    rest = [argument for argument in joined[first:] if not argument.startswith(f"{option}=")]
    return [*joined[:first], *late, *rest]


def stages_in_list(arguments: Sequence[str]) -> list[str]:
    """``--method.stages MoCHi`` as ``--method.stages [MoCHi]``."""
    joined = "\x00".join(arguments)
    return re.sub(r"(^|\x00)--method\.stages(?:=|\x00)(\w[\w.,]*)(?=\x00|$)", named_stages, joined).split("\x00")


def named_stages(match: re.Match[str]) -> str:
    """One option with names of stages, as a list; null and files stay as they are."""
    if match[2] == "null" or is_file_name(match[2]):
        return match[0]
    return f"{match[1]}--method.stages=[{match[2]}]"


def natural_size(parsed: Namespace) -> int:
    """Side of the views where none is given: that of small images of one size, 224 for all others.

    Raises:
        ValueError: If there is no data, or it cannot be opened.
    """
    if parsed.data is None:
        raise ValueError("no data: name a folder, a file or a known set, for instance `contrastneg pretrain shapes`")
    source = open_source(parsed.data, root=parsed.root, labels=False if parsed.unlabelled else None)
    limit, sizes = parsed.limit_images, set()
    whole = limit is None or limit >= len(source)  # of a limited set only pictures that are taken are looked at
    positions = range(len(source)) if whole else order_of_choice(source, parsed.seed)[:limit].tolist()
    for position in positions[:SIZE_SAMPLE]:
        with suppress(UnreadableImage):  # the scan will tell
            sizes.add(source.size(position))
    side = max(sizes.pop()) if len(sizes) == 1 else PHOTOGRAPH
    return side if side <= SMALL_IMAGE else PHOTOGRAPH


def instantiate(parser: ArgumentParser, parsed: Namespace) -> Pretrain:
    """Settings as objects."""
    torch.manual_seed(derive_seed(parsed.seed, "weights"))
    try:
        objects = parser.instantiate(parsed)
    except ValueError as error:
        raise refusal(error, parsed.as_dict()) from error
    try:
        return Pretrain(**{field.name: objects[field.name] for field in dataclasses.fields(Pretrain)})
    except WrongSetting as error:
        raise error.at("") from error


def first_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
