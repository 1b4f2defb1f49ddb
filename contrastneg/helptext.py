"""Help pages that a reader can use: short usage lines, defaults in words, no Python types for classes."""

from argparse import Action
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

IN_WORDS = {
    "method": "default: SimCLR; choose MoCo or SimCLR",
    "views.size": "default: the side of small images of one size, up to 96, else 224",
}


class HelpFormatter(DefaultHelpFormatter):
    """jsonargparse's help with the defaults that are worked out later in words, and none instead of null."""

    def _get_help_string(self, action: Action) -> str:
        if action.dest in IN_WORDS:
            return f"{action.help} ({IN_WORDS[action.dest]})"
        text = super()._get_help_string(action)
        return text.replace("default: %(default)s", "default: none") if action.default is None else text


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


def add_positional(parser: ArgumentParser, name: str, kind: Any, text: str) -> None:
    """The one argument that has no name."""
    parser.add_argument(name, type=kind, metavar=name.upper(), help=text)
