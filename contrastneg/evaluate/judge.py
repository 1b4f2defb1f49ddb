"""From an address to scores: the encoder, the sets, cached features, every protocol, results on the disk.

``evaluate`` reads top to bottom. Several processes share the encoding of images; the scores are taken by the first one
alone, on the features of all, so their number changes no digit.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from contrastneg import distributed
from contrastneg.data.module import PretrainData
from contrastneg.data.opening import LabelledData, open_labelled
from contrastneg.evaluate.cache import fingerprint, labels_of, weights_of
from contrastneg.evaluate.earlier import earlier_scores, folder_of, merged
from contrastneg.evaluate.features import Progress
from contrastneg.evaluate.final import RawPixels
from contrastneg.evaluate.groups import group_column, groups_of, shared_notes
from contrastneg.evaluate.judging import Judging
from contrastneg.evaluate.place import Place, place_of, process_group
from contrastneg.evaluate.protocols import WITHOUT_LABELS
from contrastneg.evaluate.results import ENCODER, GROUP, PIXELS, RANDOM, Evaluation, write_evaluation
from contrastneg.evaluate.settings import Evaluate
from contrastneg.subjects import Subject, open_subject

TRANSFERRED = ("knn", "linear", "logistic")


@dataclass(frozen=True)
class Prepared:
    """A set that was opened, and what will be done on it."""

    opened: LabelledData
    protocols: list[str]
    context: dict[str, Any]
    folder: Path


def evaluate(
    config: Evaluate,
    say: Callable[[str], None] = lambda line: None,
    done: Callable[[Path, Evaluation], None] = lambda folder, evaluation: None,
    progress: Progress = lambda done, total: None,
) -> list[tuple[Path, Evaluation]]:
    """Judge an encoder on a set, and on those that it is transferred to; all are opened before the first is judged.

    Args:
        config: All settings.
        say: Is told what is being done, before it is.
        done: Is given the folder of results of each set and what is in it, once they are written.
        progress: Is told how much of a long step is done, and of how much.

    Returns:
        The same of all sets.

    Raises:
        ValueError: The encoder or a set cannot be opened, the settings do not fit them, or a folder holds something else.
    """
    subject = open_subject(
        config.encoder,
        backbone=config.backbone,
        prefix=config.prefix,
        random_init=config.random_init,
        size=config.size,
        mean=config.mean,
        std=config.std,
        seed=config.seed,
    )
    subject.encoder(config.layer)  # refuses a layer that is not there
    address = config.data or subject.data
    if address is None:
        raise ValueError(f"no data: {config.encoder} does not say what it was scored on; name a labelled set after it")
    with process_group(config.accelerator):
        place = place_of(config)
        sets = [prepare(config, subject, address, config.asked)]
        elsewhere = replace(config, test=None, group="none" if config.group == "none" else "auto")
        sets += [prepare(elsewhere, subject, other, TRANSFERRED) for other in config.transfer]
        found = []
        for prepared in sets:
            if len(sets) > 1:
                say(f"on {prepared.context['data']}")
            evaluation = judge(config, subject, prepared, place, say, progress)
            found.append((prepared.folder, evaluation))
            done(*found[-1])
    return found


def prepare(config: Evaluate, subject: Subject, address: str, protocols: tuple[str, ...]) -> Prepared:
    """Open a set, and refuse what cannot be judged on it.

    Raises:
        ValueError: It cannot be opened, has no labels though all protocols need them, or its folder holds something else.
    """
    opened = open_labelled(
        config,
        address,
        subject.in_channels,
        test=config.test,
        most=config.limit_images,
        most_asked=config.limit_test_images,
    )
    possible = [name for name in protocols if opened.labelled or name in WITHOUT_LABELS]
    if not possible:
        raise ValueError(f"{address} has no labels, which {', '.join(protocols)} need: give a labelled set")
    context = context_of(config, subject, address, opened)
    folder = folder_of(config, subject, opened)
    earlier_scores(folder, context, config.overwrite)  # refuses a folder of something else
    return Prepared(opened, possible, context, folder)


def judge(
    config: Evaluate,
    subject: Subject,
    prepared: Prepared,
    place: Place,
    say: Callable[[str], None],
    progress: Progress,
) -> Evaluation:
    """Scores on one set, written."""
    opened = prepared.opened
    data = PretrainData(
        opened.bank,
        subject.views,
        opened.bank,
        opened.queries,
        batch_size=2,
        loading=opened.loading,
        workers=config.workers,
        seed=config.seed,
        channels_last=True,
        skip_bad_images=config.on_bad_image == "skip",
    )
    column = prepared.context["group"]
    group = None if column is None else groups_of(opened.queries, column)
    encoders = encoders_of(config, subject)
    run = Judging(
        config, encoders, data, opened.labelled, prepared.context, prepared.folder, place, say, progress, group
    )
    sheets = [run.sheet(name, prepared.protocols) for name in encoders]
    shared = [] if column is None else shared_notes(opened.bank, opened.queries, column)
    notes = [*subject.notes, *opened.notes, *shared, *run.notes]
    earlier = earlier_scores(prepared.folder, prepared.context, config.overwrite)
    evaluation = merged(earlier, sheets, prepared.context, notes)
    if group is not None:
        evaluation.values[GROUP] = group[labels_of(data, "test") >= 0].numpy()
    if distributed.is_first_process():
        write_evaluation(prepared.folder, evaluation)
    return evaluation


def encoders_of(config: Evaluate, subject: Subject) -> dict[str, nn.Module]:
    """What is judged, by name."""
    encoders = {ENCODER: subject.encoder(config.layer)}
    if config.baselines:
        if not config.random_init:
            encoders[RANDOM] = subject.untrained(config.seed)
        encoders[PIXELS] = RawPixels()
    return encoders


def context_of(config: Evaluate, subject: Subject, address: str, opened: LabelledData) -> dict[str, Any]:
    """What all numbers of an evaluation share."""
    group = group_column(
        opened.queries, config.group
    )  # refuses a name that is not there, also where nothing is labelled
    return {
        "encoder": config.encoder,
        "name": subject.name,
        "random_init": config.random_init,
        "weights": weights_of(subject.encoder(config.layer)),
        "layer": config.layer,
        "size": subject.views.size,
        "mean": list(subject.views.mean),
        "std": list(subject.views.std),
        "data": address,
        "test": config.test or address,
        "bank": len(opened.bank),
        "queries": len(opened.queries),
        "bank_fingerprint": fingerprint(opened.bank),
        "queries_fingerprint": fingerprint(opened.queries),
        "split": opened.queries.split,
        "group": group if opened.labelled else None,
        "classes": len(opened.bank.classes or []),
        "precision": config.precision,
        "half": config.half,
        "seed": config.seed,
        "versions": {name: version(name) for name in ("contrastneg", "torch", "torchvision", "timm")},
    }
