"""Where the results of an evaluation lie, and how new scores join those of an earlier one."""

from pathlib import Path
from typing import Any

from contrastneg.data.address import short_name
from contrastneg.data.opening import LabelledData
from contrastneg.evaluate.protocols import Sheet
from contrastneg.evaluate.results import SUMMARY, Evaluation, Note, read_evaluation
from contrastneg.evaluate.settings import Evaluate
from contrastneg.subjects import Subject

SAME = (
    "weights",
    "layer",
    "bank_fingerprint",
    "queries_fingerprint",
    "group",
    "size",
    "mean",
    "std",
    "precision",
    "half",
    "seed",
)
SAME_IN_WORDS = {
    "bank_fingerprint": "training images",
    "queries_fingerprint": "test images",
    "half": "rounding of features",
}


def folder_of(config: Evaluate, subject: Subject, opened: LabelledData) -> Path:
    """Where results go; several sets are folders within the one that was asked for."""
    set_name = short_name(opened.bank.name)
    marks = ["projector"] * (config.layer == "projector") + ["random"] * config.random_init
    if config.out is not None:
        return config.out / set_name if config.transfer else config.out
    if subject.run is not None:
        whole = config.encoder.rstrip("/") == str(subject.run) or config.encoder.endswith("encoder.safetensors")
        marks = ([] if whole else [Path(config.encoder).stem]) + marks
        return subject.run / "evaluation" / "-".join([set_name, *marks])
    return Path("evaluations") / "-".join([f"{subject.name}-on-{set_name}", *marks])


def earlier_scores(folder: Path, context: dict[str, Any], overwrite: bool) -> Evaluation | None:
    """Scores in a folder that new ones can be added to; None where there are none, or they are to be replaced.

    Raises:
        ValueError: The folder holds scores of something else.
    """
    if overwrite or not (folder / SUMMARY).exists():
        return None
    found = read_evaluation(folder)
    differing = [SAME_IN_WORDS.get(name, name) for name in SAME if found.context.get(name) != context[name]]
    if differing:
        raise ValueError(
            f"{folder} holds an evaluation with other {', '.join(differing)}: give --out for this one, or --overwrite"
        )
    return found


def merged(earlier: Evaluation | None, sheets: list[Sheet], context: dict[str, Any], notes: list[str]) -> Evaluation:
    """New scores after those of an earlier evaluation that were not taken again, and the notes of both.

    Args:
        earlier: What the folder holds.
        sheets: What was found now.
        context: What all numbers share.
        notes: What concerns all of them; an earlier evaluation's are the same or hold no more.
    """
    scores = [score for sheet in sheets for score in sheet.scores]
    values = {name: row for sheet in sheets for name, row in sheet.values.items()}
    told = [*map(Note, notes), *(note for sheet in sheets for note in sheet.notes)]
    if earlier is not None:
        taken = {pair for sheet in sheets for pair in sheet.taken}
        kept = [score for score in earlier.scores if (score.features, score.protocol) not in taken]
        told += [note for note in earlier.notes if note.protocol and (note.features, note.protocol) not in taken]
        dropped = {f"{score.features}/{score.key}" for score in earlier.scores if score not in kept}
        values = {name: row for name, row in earlier.values.items() if name not in dropped} | values
        scores = kept + scores
    return Evaluation(context, scores, list(dict.fromkeys(told)), values)
