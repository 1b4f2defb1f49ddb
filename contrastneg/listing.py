"""The catalogue as it is printed: for a terminal, as Markdown, as JSON."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from contrastneg.catalogue import BEYOND, ENTRIES, LETTERS, Entry, class_of, kind_of


def chosen(word: str = "", kind: str | None = None) -> list[Entry]:
    """Entries that hold a word, in any case, and have a class of a kind.

    Raises:
        ValueError: None does.
    """

    def told(entry: Entry) -> str:
        return " ".join(str(part) for part in as_record(entry).values()).lower()

    found = [entry for entry in ENTRIES if (kind is None or kind in entry.kinds) and word.lower() in told(entry)]
    if not found and word:
        of_kind = "" if kind is None else f" of kind {kind}"
        raise ValueError(f"no entry of the catalogue{of_kind} holds {word!r}: search for another word, or for none")
    if not found:
        raise ValueError(f"no entry of the catalogue is of kind {kind}: choose another --kind, or none")
    return found


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
        "recipes": [f"configs/{recipe}" for recipe in entry.recipes],
        "without_recipe": entry.without,
    }


def as_json(entries: Sequence[Entry]) -> str:
    """A JSON list."""
    return json.dumps([as_record(entry) for entry in entries], indent=1, ensure_ascii=False)


def as_markdown(entries: Sequence[Entry]) -> str:
    """One Markdown table."""
    columns = ("id", "name", "papers", "verdict", "note", "classes", "cost", "needs", "recipes")
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
        table.add_column("row", no_wrap=True, width=6)
        table.add_column("method", ratio=2, overflow="fold")
        table.add_column("here", ratio=5, overflow="fold")
        for entry in entries:
            if entry.heading == heading:
                id_shown = "–" if entry.id == BEYOND else entry.id
                table.add_row(
                    id_shown, Text.from_markup(f"{escape(entry.name)}\n[dim]{escape(entry.papers)}[/]"), here(entry)
                )
        tables.append(table)
    return Group(*tables, Text(f"Costs: {LETTERS}.", style="dim"))


def here(entry: Entry) -> Text:
    """What is said of an entry beside its name, in lines."""
    colour = {"faithful": "green", "not applicable": "red"}.get(entry.verdict, "yellow")
    lines = [f"[{colour}]{entry.verdict}[/]: {escape(entry.note)}"]
    told = {
        "class": ", ".join(entry.class_names),
        "cost": entry.cost,
        "needs": ", ".join(entry.needs),
        "run": "  ".join(f"configs/{recipe}" for recipe in entry.recipes),
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
