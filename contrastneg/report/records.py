"""Reads a run folder's records; what is missing or damaged becomes one sentence for the page, never an error."""

import csv
import json
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from contrastneg.wording import percent


@dataclass(frozen=True)
class Records:
    """What a run folder holds. ``problems`` says, by file name, why a record is empty."""

    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any]
    summary: dict[str, Any]
    metrics: dict[str, list[float | None]]
    pictures: dict[str, np.ndarray]
    problems: dict[str, str] = field(default_factory=dict)


def read_records(run: Path) -> Records:
    """All records of a run folder that can be read.

    Raises:
        ValueError: If there is no such folder.
    """
    if not run.is_dir():
        raise ValueError(
            f"run folder {run} is not a folder: give the folder that a run wrote, the one with config.yaml"
        )
    problems: dict[str, str] = {}
    config_text = read_text(run / "config.yaml", problems)
    return Records(
        config=parse_yaml(config_text, problems),
        config_text=config_text,
        environment=read_json(run / "environment.json", problems),
        summary=read_json(run / "summary.json", problems),
        metrics=parse_metrics(read_text(run / "metrics.csv", problems)),
        pictures=read_arrays(run / "pictures.npz", problems),
        problems=problems,
    )


def read_text(path: Path, problems: dict[str, str]) -> str:
    """A text file; empty, with a note in ``problems``, if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        problems[path.name] = f"{path.name} is not in the run folder."
    except OSError as error:
        problems[path.name] = f"{path.name} cannot be read ({error.strerror})."
    return ""


def read_json(path: Path, problems: dict[str, str]) -> dict[str, Any]:
    """A JSON object; empty, with a note in ``problems``, if it is not one."""
    text = read_text(path, problems)
    if path.name in problems:
        return {}
    try:
        content = json.loads(text)
    except ValueError as error:
        problems[path.name] = f"{path.name} is not valid JSON ({error})."
        return {}
    if not isinstance(content, dict):
        problems[path.name] = f"{path.name} holds no JSON object."
        return {}
    return content


def parse_yaml(text: str, problems: dict[str, str]) -> dict[str, Any]:
    """The settings; empty, with a note in ``problems``, if the text is not a YAML mapping."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        content = None
    if isinstance(content, dict):
        return content
    problems.setdefault("config.yaml", "config.yaml is not a YAML mapping.")
    return {}


def parse_metrics(text: str) -> dict[str, list[float | None]]:
    """Columns of a metrics file; an empty cell is None, an unreadable one NaN.

    A last line without its end is left out: a run that is writing, or was killed while it wrote, may have cut a number.
    """
    whole = text[: text.rfind("\n") + 1]
    rows = [row for row in csv.reader(whole.splitlines()) if row]
    if not rows:
        return {}
    header, body = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    return {name: [number(row[place]) if row[place] else None for row in body] for place, name in enumerate(header)}


def number(value: Any) -> float:
    """``value`` as a float, NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def finite(column: list[float | None]) -> list[float]:
    """The finite values of a column."""
    return [value for value in column if value is not None and math.isfinite(value)]


def voters(rows: Sequence[dict[str, Any]]) -> str:
    """How many neighbours voted in the rows of a score table: "20", or "18 or 20" where they differ."""
    return " or ".join(dict.fromkeys(str(row.get("knn_k", "?")) for row in rows))


COMPARED = (("knn_top1", "kNN"), ("linear_top1", "linear"))


def shortfall(rows: Sequence[dict[str, Any]]) -> str:
    """One sentence on where the pretrained encoder is not better than a baseline; empty where it is everywhere.

    Compares kNN top-1 and linear top-1 of the first row with those of every other row; a score must be higher to be better,
    and one that is missing is not compared. Where all of them are 0 there is nothing to compare.
    """
    known = [score for row in rows for key, _ in COMPARED if math.isfinite(score := number(row.get(key)))]
    if known and not any(known):
        return "every score is 0, those of the baselines, too: they cannot tell one encoder from another"
    parts = []
    for row in rows[1:]:
        pairs = [(name, number(rows[0].get(key)), number(row.get(key))) for key, name in COMPARED]
        lost = [f"{name} {percent(own)} against {percent(other)} %" for name, own, other in pairs if own <= other]
        if lost:
            name = str(row.get("features", "?"))
            parts.append(f"{name if name == 'raw pixels' else f'the {name}'} ({', '.join(lost)})")
    if not parts:
        return ""
    return f"the pretrained encoder is not better than {', nor than '.join(parts)}: train longer, or look for a fault"


def read_arrays(path: Path, problems: dict[str, str]) -> dict[str, np.ndarray]:
    """All arrays of an npz file; empty, with a note in ``problems``, if it is not one."""
    try:
        # opened here: numpy leaves the file open when it is no archive
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        problems[path.name] = f"{path.name} is not in the run folder."
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        problems[path.name] = f"{path.name} cannot be read ({type(error).__name__})."
    return {}
