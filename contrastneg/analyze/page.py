"""The page of an analysis, one self-contained file: answers, plots with captions, and the gallery."""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrastneg.analyze.answers import Answer
from contrastneg.analyze.charts import Drawing
from contrastneg.analyze.gallery import Gallery
from contrastneg.analyze.record import Analysis
from contrastneg.analyze.sections import SECTIONS
from contrastneg.report.templating import TEMPLATES, render
from contrastneg.writing import printable, write_text

SCRIPT = "gallery.js"


@dataclass(frozen=True)
class Part:
    """A section of the page."""

    name: str
    title: str
    definition: str
    drawings: list[Drawing]
    files: list[str]


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    title: str
    facts: list[str]
    answers: list[Answer]
    parts: list[Part]
    left_out: list[tuple[str, str]]
    gallery: Gallery | None
    details: dict[str, Any]
    """What the gallery's script knows of each candidate."""
    notes: list[str]


def write_page(path: Path, analysis: Analysis) -> Path:
    """Write the page.

    Args:
        path: The file, replaced if it is there.
        analysis: What it shows.

    Returns:
        The path.
    """
    script = (TEMPLATES / SCRIPT).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    write_text(path, render("analysis.html", page=page_of(analysis), script=script, digest=digest))
    return path


def page_of(analysis: Analysis) -> Page:
    """Everything the page shows."""
    context = analysis.context
    parts = [
        Part(
            name,
            SECTIONS[name].title,
            SECTIONS[name].definition,
            SECTIONS[name].draw(tables),
            [f"{t}.csv" for t in tables],
        )
        for name, tables in analysis.tables.items()
    ]
    facts = [
        f"encoder {name_of(context['encoder'])}",
        f"{context['layer']}, {context['width']:,} numbers",
        f"{context['images']:,} images of {name_of(context['data'])} ({context['split']})",
        f"up to {context['queries']:,} queries",
        f"temperature {context['temperature']:g}",
        f"seed {context['seed']}",
    ]
    return Page(
        "What the negatives are",
        facts,
        analysis.answers,
        parts,
        [(SECTIONS[name].title, reason) for name, reason in analysis.left_out.items()],
        analysis.gallery,
        details_of(analysis.gallery),
        analysis.notes,
    )


def name_of(address: str) -> str:
    """An address as it stands on a page that may be handed on: of a path on this machine the last name."""
    return printable(Path(address).name if Path(address).is_absolute() else address)


def details_of(gallery: Gallery | None) -> dict[str, Any]:
    """What each method did with each candidate, as the script reads it."""
    if gallery is None:
        return {}
    return {
        "bins": gallery.bins,
        "methods": list(gallery.about),
        "candidates": gallery.candidates,
        "queries": [
            [
                {
                    "rank": shown.rank,
                    "cosine": round(shown.cosine, 4),
                    "name": shown.name,
                    "class": shown.class_name,
                    "kind": shown.kind,
                    "bin": shown.bin,
                    "effects": list(shown.effects.values()),
                }
                for shown in query.candidates
            ]
            for query in gallery.queries
        ],
    }
