"""From an address to an analysis: the encoder, the images, cached embeddings, every section, results on the disk.

``analyze`` reads top to bottom. One process does it all; the measures are taken on the CPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg.analysis.queries import QUERIES
from contrastneg.analyze.answers import answers_of
from contrastneg.analyze.gallery import gallery_of
from contrastneg.analyze.material import Checkpoint, Material, grouping, rows_asked, second_views
from contrastneg.analyze.opening import data_of, folder_of, images_of, others_of, subject_of
from contrastneg.analyze.record import Analysis
from contrastneg.analyze.results import check_folder, write_results
from contrastneg.analyze.samplers import samplers_of
from contrastneg.analyze.sections import SECTIONS
from contrastneg.analyze.settings import Analyze
from contrastneg.data.module import PretrainData
from contrastneg.data.sources import ImageSet
from contrastneg.evaluate.cache import FeatureCache, fingerprint, weights_of
from contrastneg.evaluate.features import Features, finite_rows
from contrastneg.evaluate.neighbours import unit_rows
from contrastneg.evaluate.place import device_of
from contrastneg.progress import ProgressLines
from contrastneg.subjects import Layer, Subject
from contrastneg.writing import printable

CONE = 0.5  # mean cosine from which on a temperature says little
DEFAULT_CLUSTERS = 100  # without labels, of sets that are large enough
PAIRS, FEWEST_QUERIES = 2**28, 256  # cosines that a measure looks at, about, and queries that it has in any case


def analyze(config: Analyze, say: Callable[[str], None] = lambda line: None) -> tuple[Path, Analysis]:
    """Measure what the negatives of an encoder are.

    Args:
        config: All settings.
        say: Is told what is being done, before it is.

    Returns:
        The folder of the results and what is in it.

    Raises:
        ValueError: The encoder or the images cannot be opened, the settings do not fit them, or the folder holds something else.
    """
    subject, layer = subject_of(config, config.encoder)
    others, left_out_others = others_of(config, subject, layer)
    samplers = samplers_of(config.samplers)
    address = config.data or subject.data
    if address is None:
        raise ValueError(f"no data: {config.encoder} does not say what it was scored on; name images after it")
    source, notes = images_of(config, address, subject.in_channels)
    context = context_of(config, subject, layer, address, source)
    folder = folder_of(config, subject, source, layer)
    check_folder(folder, context, config.asked, config.overwrite)
    data, material, position = embedded(config, (subject, *others), layer, source, folder, say)
    material = replace(material, samplers=samplers)
    context |= {
        "queries": material.queries,
        "images": len(material.embeddings),
        "width": material.embeddings.shape[1],
        "clusters": material.clusters,
    }
    tables, left_out = measured(config, material, say)
    if not tables:
        reasons = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
        raise ValueError(f"nothing that was asked for can be measured: {reasons}")
    gallery = None
    if config.gallery:
        say("gallery")
        gallery = gallery_of(material, data, position, config.gallery)
    notes = list(dict.fromkeys([*subject.notes, *left_out_others, *notes, *notes_of(subject, layer, source, material)]))
    every = {name: table for part in tables.values() for name, table in part.items()}
    answers = answers_of(every, material.temperature, left_out, tables)
    found = Analysis(context, tables, left_out, answers, gallery, notes)
    write_results(folder, found)
    return folder, found


def embedded(
    config: Analyze,
    subjects: Sequence[Subject],
    layer: Layer,
    source: ImageSet,
    folder: Path,
    say: Callable[[str], None],
) -> tuple[PretrainData, Material, Int64[Tensor, " N"]]:
    """Embeddings of the images and of a second view of the queries, with what else sections need, and each row's position."""
    subject, *others = subjects
    one_run = of_one_run(subjects)
    data = data_of(config, subject, source)
    cache = FeatureCache(folder / "features", config.half, config.cache)
    device, dtype = device_of(config.accelerator), getattr(torch, config.precision)
    encoder = subject.encoder(layer).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    key = fingerprint(source)
    say(f"embeddings of {len(source):,} images")
    features = cache.features(encoder, data, "train", key, device, dtype, ProgressLines("embedded", "images"))
    assert features.position is not None
    check_embeddings(features.x, source, features.position)
    material = material_of(config, features, source.subset(features.position))
    rows = rows_asked(material)
    say(f"a second view of {len(rows):,} of them")
    asked = features.position[rows]
    material.positives[rows] = second_views(encoder, data, asked, device, dtype, seed=config.seed)

    def embedded_by(other: Subject, its_layer: Layer, name: str) -> Checkpoint:
        its = data_of(config, other, source)
        network = other.encoder(its_layer).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        lines = ProgressLines("embedded", f"images by {name}")
        x = cache.features(network, its, "train", key, device, dtype, lines).x
        positives = x.clone()
        positives[rows] = second_views(network, its, asked, device, dtype, seed=config.seed)
        return Checkpoint(name, x, positives, other.step if one_run else None)

    further = []
    for other in others:
        say(f"embeddings by {other.address}")
        further.append(embedded_by(other, layer, printable(other.name)))
    backbone = None
    if config.layer == "both":
        say("embeddings by the backbone")
        backbone = embedded_by(subject, "backbone", "backbone")
    step = subject.step if one_run else None
    return data, replace(material, others=further, step=step, backbone=backbone), features.position


def of_one_run(subjects: Sequence[Subject]) -> bool:
    """Whether all are of one run folder, however it was written, so that their optimizer steps can be compared."""
    runs = {one.run and one.run.resolve() for one in subjects}
    return len(runs) == 1 and None not in runs


def material_of(config: Analyze, features: Features, source: ImageSet) -> Material:
    """Embeddings of the images of a set with what is known of them; second views are yet to come."""
    labels = features.labels if two_of_a_class(features.labels) else None
    names = [printable(name) for name in source.classes or []]
    return Material(
        features.x,
        features.x.clone(),
        labels,
        names,
        config.clusters or default_clusters(len(features.x), len(names) if labels is not None else 0),
        config.queries or default_queries(len(features.x)),
        config.temperature,
        config.seed,
        grouping(source.columns),
    )


def default_queries(images: int) -> int:
    """Queries where no number is asked for: of very many images fewer, so that a measure takes minutes at most."""
    return max(FEWEST_QUERIES, min(QUERIES, PAIRS // images))


def default_clusters(images: int, classes: int) -> int:
    """Clusters where none are asked for: one a class, or 100 and of small sets one for 20 images."""
    return min(images, classes) if classes else max(2, min(DEFAULT_CLUSTERS, images // 20))


def two_of_a_class(labels: Int64[Tensor, " N"]) -> bool:
    """Whether classes can be compared: there are two, and one has two images."""
    sizes = labels[labels >= 0].unique(return_counts=True)[1]
    return len(sizes) > 1 and int(sizes.max()) > 1


def mean_cosine(x: Float[Tensor, "N F"]) -> float:
    """Mean cosine of two different images."""
    total = unit_rows(x).sum(dim=0, dtype=torch.float64)
    return (float(total.square().sum()) - len(x)) / (len(x) * (len(x) - 1))


def check_embeddings(x: Float[Tensor, "N F"], source: ImageSet, position: Int64[Tensor, " N"]) -> None:
    """Refuse embeddings that have no cosine, by the name of the first image.

    Raises:
        ValueError: One is not finite or of length 0.
    """
    wrong = ~finite_rows(x) | ~x.any(dim=1)
    if bool(wrong.any()):
        name = source.name_of(int(position[wrong][0]))
        raise ValueError(
            f"{int(wrong.sum()):,} of {len(x):,} embeddings are not finite or zero, that of {name} for instance: the encoder "
            "diverged or collapsed, give an earlier checkpoint"
        )


def measured(
    config: Analyze, material: Material, say: Callable[[str], None]
) -> tuple[dict[str, dict[str, pd.DataFrame]], dict[str, str]]:
    """The tables of each section, and the reason for each that could not be measured."""
    tables, left_out = {}, {}
    for name in config.asked:
        section = SECTIONS[name]
        if lacking := material.lacks(section.needs):
            left_out[name] = f"needs {' and '.join(lacking)}, which are not there"
            continue
        say(section.title)
        try:
            tables[name] = section.measure(material)
        except ValueError as error:  # too few images for a bin, classes of one size and the like
            left_out[name] = str(error)
    return tables, left_out


def notes_of(subject: Subject, layer: Layer, source: ImageSet, material: Material) -> list[str]:
    """What a reader of the numbers must know about how they came about."""
    notes = []
    if (cosine := mean_cosine(material.embeddings)) > CONE:
        better = (
            "; training compares what the projector makes of them (--layer projector)"
            if layer == "backbone" and subject.projector
            else ""
        )
        notes.append(
            f"two images have a cosine of {cosine:.2f} in the mean: at the temperatures of training such similarities weigh all "
            f"negatives nearly alike, so read ranks and rates, not shares of the gradient{better}"
        )
    if material.labels is None:
        none = "no class has two of these images" if source.labels is not None else "no labels"
        notes.append(
            f"{none}: rates of false negatives are estimates, from {material.clusters} clusters of these very embeddings, "
            "and too high among the hardest"
        )
    elif bool((material.labels < 0).any()):
        known = int((material.labels >= 0).sum())
        notes.append(
            f"{known:,} of {len(material.labels):,} images have a label: only they are compared where classes matter"
        )
    if (unread := len(source) - len(material.embeddings)) > 0:
        notes.append(f"{unread:,} images turned out to be unreadable and are left out")
    return notes


def context_of(config: Analyze, subject: Subject, layer: Layer, address: str, source: ImageSet) -> dict[str, Any]:
    """What all numbers of an analysis share."""
    return {
        "encoder": config.encoder,
        "weights": weights_of(subject.encoder(layer)),
        "layer": layer,
        "size": subject.views.size,
        "mean": list(subject.views.mean),
        "std": list(subject.views.std),
        "data": address,
        "split": source.split,
        "images_fingerprint": fingerprint(source),
        "classes": len(source.classes or []),
        "temperature": config.temperature,
        "seed": config.seed,
        "checkpoints": list(config.checkpoints),
        "samplers": [str(file) for file in config.samplers],
        "precision": config.precision,
        "half": config.half,
        "versions": {name: version(name) for name in ("contrastneg", "torch", "torchvision", "timm")},
    }
