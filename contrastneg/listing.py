"""The catalogue as it is printed: for a terminal, as Markdown, as JSON."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from contrastneg.catalogue import BEYOND, ENTRIES, LETTERS, Entry, class_of, kind_of
from contrastneg.wording import closest

WIDEST = max(len(f"configs/{recipe}") for entry in ENTRIES for recipe in entry.recipes)


def chosen(word: str = "", kind: str | None = None) -> list[Entry]:
    """Entries that hold a word, in any case, and have a class of a kind.

    Raises:
        ValueError: None does.
    """

    def told(entry: Entry) -> str:
        return " ".join(str(part) for part in as_record(entry).values()).lower()

    of_kind = [entry for entry in ENTRIES if kind is None or kind in entry.kinds]
    if not of_kind:
        raise ValueError(f"no entry of the catalogue is of kind {kind}: choose another --kind, or none")
    found = [entry for entry in of_kind if word.lower() in told(entry)]
    if not found:
        which = "" if kind is None else f" of kind {kind}"
        near = nearest_word(word, of_kind)
        advice = "search for another word, or for none" if near is None else f"did you mean {near}?"
        raise ValueError(f"no entry of the catalogue{which} holds {word!r}: {advice}")
    return found


def nearest_word(word: str, entries: Sequence[Entry]) -> str | None:
    """The most similar name of a class or recipe, or word of a title, that entries have; None where none is similar."""
    told = " ".join(f"{entry.name} {entry.papers}" for entry in entries)
    recipes = [Path(recipe).stem for entry in entries for recipe in entry.recipes]
    classes = [name for entry in entries for name in entry.class_names]
    return closest(word, [*re.findall(r"[\w-]{3,}", told), *recipes, *classes])  # of names alike but for case, the last


def as_record(entry: Entry) -> dict[str, Any]:
    """An entry as plain values."""
    return {
        "id": entry.id,
        "heading": entry.heading,
        "name": entry.name,
        "papers": entry.papers,
        "verdict": entry.verdict,
        "note": entry.note,
        "classes": list(entry.class_names),
        "kinds": [kind_of(class_of(path)) for path in entry.classes],
        "cost": entry.cost,
        "needs": list(entry.needs),
        "schedules": list(entry.scheduled),
        "recipes": [f"configs/{recipe}" for recipe in entry.recipes],
        "without_recipe": entry.without,
    }


def as_json(entries: Sequence[Entry]) -> str:
    """A JSON list."""
    return json.dumps([as_record(entry) for entry in entries], indent=1, ensure_ascii=False)


def as_markdown(entries: Sequence[Entry]) -> str:
    """One Markdown table."""
    columns = ("id", "name", "papers", "verdict", "note", "classes", "cost", "needs", "schedules", "recipes")
    lines = [columns, ("---",) * len(columns)]
    for entry in entries:
        record = as_record(entry)
        record["recipes"] = record["recipes"] or entry.without
        cells = (", ".join(cell) if isinstance(cell, list) else cell for cell in map(record.get, columns))
        lines.append(tuple(str(cell).replace("|", "\\|") for cell in cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_tables(entries: Sequence[Entry]) -> Group:
    """A table for each heading, for a terminal of any width from 80 columns."""
    tables = []
    for heading in dict.fromkeys(entry.heading for entry in entries):
        table = Table(
            title=heading, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, expand=True, show_lines=True
        )
        table.add_column("method", ratio=2, overflow="fold")
        table.add_column("here", ratio=5, overflow="fold", min_width=WIDEST)
        for entry in entries:
            if entry.heading == heading:
                row = "" if entry.id == BEYOND else f"[dim]{entry.id}[/] "
                table.add_row(
                    Text.from_markup(f"{row}{escape(entry.name)}\n[dim]{escape(entry.papers)}[/]"), here(entry)
                )
        tables.append(table)
    return Group(*tables, Text(f"Costs: {LETTERS}. What may change over the run stands after schedule.", style="dim"))


def here(entry: Entry) -> Text:
    """What is said of an entry beside its name, in lines."""
    colour = {"faithful": "green", "not applicable": "red"}.get(entry.verdict, "yellow")
    lines = [f"[{colour}]{entry.verdict}[/]: {escape(entry.note)}"]
    told = {
        "class": ", ".join(entry.class_names),
        "cost": entry.cost,
        "needs": ", ".join(entry.needs),
        "schedule": ", ".join(entry.scheduled),
        "run": " ".join(f"configs/{recipe}" for recipe in entry.recipes),
        "no recipe": entry.without,
    }
    lines += [f"[bold]{name}[/] {escape(text)}" for name, text in told.items() if text]
    return Text.from_markup("\n".join(lines))


def show(word: str, kind: str | None, form: Literal["table", "md", "json"], console: Console) -> None:
    """Print the entries chosen.

    Raises:
        ValueError: There is none.
    """
    entries = chosen(word, kind)
    if form == "table":
        console.print(as_tables(entries))
    else:
        text = as_json(entries) if form == "json" else as_markdown(entries)
        console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
