"""Help pages that a reader can use: short usage lines, types and defaults in words, classes by their own names."""

import inspect
import re
from argparse import SUPPRESS, Action
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_origin

from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from contrastneg.annotations import NAMED_BY_CLASS, choices, parts, record_in, value_in_words, words
from contrastneg.negatives import Stage
from contrastneg.schedules import Schedule

IN_WORDS = {
    "print_config": "--print_config=skip_default leaves the defaults out",
    "method": "default: SimCLR; --method.help lists the methods",
    "views.size": "default: the side of small images of one size, up to 96, else 224",
}
OF_OTHERS = {
    "print_config": "Print the settings that result from all others, as a YAML file for --config, and exit.",
    "Path to a configuration file.": "YAML file of these settings.",
}
"""What stands in the place of texts of the libraries beneath, by the option or the text itself."""
LISTED = 20  # classes that are listed beside a setting; more fill the screen


class HelpFormatter(DefaultHelpFormatter):
    """jsonargparse's help with types and defaults in words, without what only its own machinery has."""

    def add_argument(self, action: Action) -> None:
        """Enter an option, but for links between settings and for those that ask for a page, which the settings name."""
        link = hasattr(action, "compute_fn")  # only a link has it; its class is in a private module of jsonargparse
        if not link and not action.dest.endswith(".help"):
            super().add_argument(action)

    def _format_action_invocation(self, action: Action) -> str:
        return "--print_config" if action.dest == "print_config" else super()._format_action_invocation(action)

    def _get_help_string(self, action: Action) -> str:
        text = OF_OTHERS.get(action.dest) or OF_OTHERS.get(action.help or "") or action.help
        if action.dest in IN_WORDS:
            return f"{text} ({IN_WORDS[action.dest]})"
        if text != action.help:
            return text or ""
        if isinstance(action, ActionYesNo) or action.nargs == 0:  # given or not
            return action.help or ""
        annotation = getattr(action, "_typehint", None) or action.type
        if annotation is None or not action.help:
            return super()._get_help_string(action)
        listed = bool(action.choices) or get_origin(annotation) is Literal or annotation is bool
        facts = [] if listed else [words(annotation)]
        if not action.required and action.default is not SUPPRESS:
            facts.append(f"default: {'none' if action.default in (None, '', ()) else default_in_words(action.default)}")
        facts += further_page(action.dest, annotation)
        return (f"{action.help} ({'; '.join(facts)})" if facts else action.help).replace("``", "").replace("%", "%%")


def default_in_words(default: Any) -> str:
    """A default as it would be written on the command line."""
    words = value_in_words(default)
    return f"[{', '.join(words.split())}]" if isinstance(default, (list, tuple)) else words


def further_page(setting: str, annotation: Any) -> list[str]:
    """Where classes that a setting takes, or its own settings, are told of; nothing where it has none."""
    kinds = choices(annotation)
    if Schedule in parts(annotation) or len(kinds) > LISTED:
        return [f"--{setting}.help lists {'schedules' if Schedule in parts(annotation) else len(kinds)}"]
    if kinds:
        return [f"choose from {', '.join(kind.__name__ for kind in kinds)}; --{setting}.help NAME tells of each"]
    return [f"--{setting}.help lists its settings"] if record_in(annotation) is not None else []


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


def page_of_class(kind: type, setting: str, verb: str = "pretrain", first: str = "[DATA]") -> str:
    """The help page of a class: what it is, and each of its settings.

    Args:
        kind: The class.
        setting: Where it stands, for instance ``method.loss``.
        verb: Whose setting that is.
        first: What stands first after the verb.
    """
    chosen = (
        f"--{setting}{'+' if issubclass(kind, Stage) else ''} {kind.__name__} "
        if issubclass(kind, tuple(NAMED_BY_CLASS))
        else ""
    )
    read_help_texts(["--help"])
    parser = parser_of_verb(verb, first_paragraph(kind), f"{first} {chosen}[--{setting}.NAME VALUE ...]")
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
