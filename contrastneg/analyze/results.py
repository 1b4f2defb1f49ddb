"""Results on the disk: a CSV file for each table, a JSON file that says what they are of, the page."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from contrastneg.analyze.page import write_page
from contrastneg.analyze.record import Analysis
from contrastneg.analyze.sections import SECTIONS
from contrastneg.writing import whole_file, write_text

SUMMARY, PAGE, GALLERY = "analysis.json", "analysis.html", "gallery.csv"
SAME = ("weights", "layer", "images_fingerprint", "size", "mean", "std", "precision", "half")
SAME_IN_WORDS = {"images_fingerprint": "images", "half": "rounding of embeddings"}


def check_folder(folder: Path, context: dict[str, Any], asked: Collection[str], overwrite: bool) -> None:
    """Refuse a folder with an analysis of something else or with more sections, unless it may be replaced.

    Args:
        folder: Folder of the results.
        context: What the new analysis is of.
        asked: Its sections.
        overwrite: Whether it may replace any other.

    Raises:
        ValueError: The folder holds one that it must not replace.
    """
    earlier = read_summary(folder)
    if overwrite or earlier is None:
        return
    found = earlier.get("context", {})
    differing = [SAME_IN_WORDS.get(name, name) for name in SAME if found.get(name) != context[name]]
    if differing:
        raise ValueError(
            f"{folder} holds an analysis with other {', '.join(differing)}: give --out for this one, or --overwrite"
        )
    more = [name for name in sections_of(earlier) if name not in asked]
    if more:
        raise ValueError(
            f"{folder} holds an analysis with more sections ({', '.join(more)}): give --out for this one, or --overwrite, which "
            "removes their tables"
        )


def read_summary(folder: Path) -> dict[str, Any] | None:
    """What is told of the results in a folder; None where there are none, or something else.

    Args:
        folder: Folder of an analysis.
    """
    try:
        found = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_results(folder: Path, analysis: Analysis) -> None:
    """Write all tables, the summary and the page; tables of an earlier analysis that this one lacks are removed, and named."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, pd.DataFrame] = {
        f"{name}.csv": table for tables in analysis.tables.values() for name, table in tables.items()
    }
    if analysis.gallery is not None:
        files[GALLERY] = analysis.gallery.table
    gone = [name for name in sorted(files_of(read_summary(folder) or {}) - set(files)) if (folder / name).exists()]
    for name in gone:
        (folder / name).unlink()
    if gone:
        analysis.notes.append(f"tables of an earlier analysis that this one lacks were removed: {', '.join(gone)}")
    for name, table in files.items():
        with whole_file(folder / name) as partial:
            table.to_csv(partial, index=False)
    write_text(folder / SUMMARY, json.dumps(summary_of(analysis), indent=2) + "\n")
    write_page(folder / PAGE, analysis)


def sections_of(summary: dict[str, Any]) -> dict[str, Any]:
    """The sections that a summary tells of."""
    sections = summary.get("sections")
    return sections if isinstance(sections, dict) else {}


def files_of(summary: dict[str, Any]) -> set[str]:
    """Names of the tables that a summary lists; nothing that lies elsewhere."""
    named = [file for section in sections_of(summary).values() for file in section.get("files", ())]
    return {
        str(name)
        for name in [*named, *summary.get("gallery", [])]
        if Path(str(name)).name == name and name.endswith(".csv")
    }


def summary_of(analysis: Analysis) -> dict[str, Any]:
    """What the tables are of, the answers, and what was left out."""
    return {
        "context": analysis.context,
        "answers": [
            {"question": answer.question, "sentences": answer.sentences, "numbers": answer.numbers}
            for answer in analysis.answers
        ],
        "sections": {
            name: {
                "title": SECTIONS[name].title,
                "definition": SECTIONS[name].definition,
                "files": [f"{table}.csv" for table in tables],
            }
            for name, tables in analysis.tables.items()
        },
        "left_out": analysis.left_out,
        "gallery": [] if analysis.gallery is None else [GALLERY],
        "notes": analysis.notes,
    }
