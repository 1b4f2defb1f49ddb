"""Help pages that a reader can use: short usage lines, types and defaults in words, classes by their own names."""

import inspect
import re
from argparse import SUPPRESS, Action
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_origin

from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from contrastneg.annotations import NAMED_BY_CLASS, choices, value_in_words, words
from contrastneg.negatives import Stage

IN_WORDS = {
    "method": "default: SimCLR; --method.help lists the methods",
    "views.size": "default: the side of small images of one size, up to 96, else 224",
}
LISTED = 20  # classes that are listed beside a setting; more fill the screen


class HelpFormatter(DefaultHelpFormatter):
    """jsonargparse's help with types and defaults in words."""

    def _get_help_string(self, action: Action) -> str:
        if action.dest in IN_WORDS:
            return f"{action.help} ({IN_WORDS[action.dest]})"
        if action.dest.endswith(".help"):
            return "What may stand there, and with its name the settings of each, or the settings themselves."
        if isinstance(action, ActionYesNo):
            return action.help or ""
        annotation = getattr(action, "_typehint", None) or action.type
        if annotation is None or not action.help:
            return super()._get_help_string(action)
        listed = bool(action.choices) or get_origin(annotation) is Literal or annotation is bool
        facts = [] if listed else [words(annotation)]
        if not action.required and action.default is not SUPPRESS:
            facts.append(f"default: {'none' if action.default in (None, '') else value_in_words(action.default)}")
        if kinds := choices(annotation):
            names = ", ".join(kind.__name__ for kind in kinds)
            facts.append(f"choose from {names}" if len(kinds) <= LISTED else f"--{action.dest}.help lists {len(kinds)}")
        return (f"{action.help} ({'; '.join(facts)})" if facts else action.help).replace("``", "").replace("%", "%%")


def read_help_texts(arguments: Sequence[str]) -> None:
    """Let parsers read attribute docstrings only where they are shown: to find them each source is parsed as a whole.

    Args:
        arguments: The command line that the parsers are for.
    """
    shown = any(argument == "-h" or "help" in argument for argument in arguments)
    set_parsing_settings(docstring_parse_attribute_docstrings=shown)


def parser_of_verb(verb: str, description: str, usage: str) -> ArgumentParser:
    """An empty parser of ``contrastneg VERB`` that raises instead of ending the process.

    Args:
        verb: Name in the command table.
        description: What it does.
        usage: What may stand after the verb.
    """
    return ArgumentParser(
        prog=f"contrastneg {verb}",
        usage=f"contrastneg {verb} {usage}",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )


def add_positional(parser: ArgumentParser, name: str, kind: Any, text: str, optional: bool = False) -> None:
    """The one argument that has no name; an optional one is "" where it is not given."""
    given: dict[str, Any] = {"nargs": "?", "default": ""} if optional else {}
    parser.add_argument(name, type=kind, metavar=name.upper(), help=text, **given)


def page_of_class(kind: type, setting: str) -> str:
    """The help page of a class: what it is, and each of its settings.

    Args:
        kind: The class.
        setting: Where it stands, for instance ``method.loss``.
    """
    chosen = (
        f"--{setting}{'+' if issubclass(kind, Stage) else ''} {kind.__name__} "
        if issubclass(kind, tuple(NAMED_BY_CLASS))
        else ""
    )
    read_help_texts(["--help"])
    parser = parser_of_verb("pretrain", first_paragraph(kind), f"[DATA] {chosen}[--{setting}.NAME VALUE ...]")
    parser.add_class_arguments(kind, setting, as_group=False)
    return parser.format_help()


def list_of_classes(kinds: Iterable[type], setting: str) -> str:
    """The help page of a setting that names a class: the classes, each in a line."""
    lines = {kind.__name__: first_paragraph(kind).split(". ")[0].rstrip(".") for kind in kinds}
    width = max(map(len, lines))
    table = "\n".join(f"  {name:<{width}}  {line}" for name, line in lines.items())
    return f"--{setting} takes one of\n\n{table}\n\n--{setting}.help NAME tells more.\n"


def first_paragraph(kind: type) -> str:
    """What a class says of itself first, on one line and without markup."""
    text = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0]
    return re.sub(r":\w+:`~?\.?([^`]*)`", r"\1", " ".join(text.split())).replace("``", "")
