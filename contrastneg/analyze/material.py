"""What sections measure: embeddings of a set, a second view of the queries, and what is known of the images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from contrastneg.analysis.classes import EstimatedClasses, estimated_classes
from contrastneg.analysis.queries import ask, ask_by_class
from contrastneg.data.module import PretrainData, StreamedCrops
from contrastneg.data.views import finish_views
from contrastneg.evaluate.features import HALF, evaluating
from contrastneg.negatives import Stage
from contrastneg.negatives.groups import group_codes
from contrastneg.randomness import generator

AT_A_TIME = 64  # images whose views are made together
LABELS, CLASSES, CHECKPOINTS, COLUMNS = "labels", "classes", "several checkpoints", "columns"
HIERARCHY, LAYERS = "columns of superclasses", "both layers (--layer both)"


@dataclass(frozen=True)
class Checkpoint:
    """Another encoder of the same images, an earlier state of the same one for instance."""

    name: str
    embeddings: Float[Tensor, "N E"]
    positives: Float[Tensor, "N E"]
    """As :attr:`Material.positives`."""
    step: int | None = None
    """Optimizer steps of its run until then, where all encoders are of one run and that is known."""


@dataclass(frozen=True)
class Material:
    """Everything that a measure may look at. Row i of each part is image i."""

    embeddings: Float[Tensor, "N D"]
    """Of the plain images."""
    positives: Float[Tensor, "N D"]
    """Of an augmented view of each query; other rows repeat the plain image's and are read by no measure."""
    labels: Int64[Tensor, " N"] | None
    """Class of each image, -1 where it is unknown; None without labels."""
    names: list[str]
    """Class names by label."""
    clusters: int
    """Clusters that stand in for classes."""
    queries: int
    """Images that are asked about, at most."""
    temperature: float
    """Of the softmax whose gradient is looked at."""
    seed: int
    """Of all draws."""
    columns: dict[str, Tensor | list] = field(default_factory=dict)
    """Metadata of each image that some share, by name."""
    others: Sequence[Checkpoint] = ()
    """The same images by further encoders, in order."""
    step: int | None = None
    """As :attr:`Checkpoint.step`."""
    backbone: Checkpoint | None = None
    """The same images by the backbone, where that is to stand beside the projection head."""
    samplers: Mapping[str, Sequence[Stage]] = field(default_factory=dict)
    """Stages of samplers that are asked for beside the usual ones, by name."""

    @cached_property
    def estimate(self) -> EstimatedClasses:
        """Clusters of the embeddings in the place of classes."""
        return estimated_classes(self.embeddings, self.clusters, seed=self.seed)

    @property
    def classes(self) -> Int64[Tensor, " N"] | EstimatedClasses:
        """Labels, or without them the estimate."""
        return self.estimate if self.labels is None else self.labels

    @property
    def asked(self) -> dict[str, Any]:
        """Arguments that all measures take."""
        return {"queries": self.queries, "seed": self.seed}

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """All encoders by step where the steps of all are known, else in order and the one that is looked at last."""
        every = [*self.others, Checkpoint("this one", self.embeddings, self.positives, self.step)]
        steps = [one.step for one in every if one.step is not None]
        if len(steps) < len(every):
            return every
        return [every[place] for place in sorted(range(len(every)), key=steps.__getitem__)]

    @property
    def progress(self) -> list[float] | None:
        """Where each encoder stands in the run, the furthest at 1; None where their steps are not known."""
        steps = [one.step for one in self.checkpoints if one.step is not None]
        if len(steps) < len(self.checkpoints) or not max(steps):
            return None
        return [step / max(steps) for step in steps]

    @property
    def layers(self) -> list[Checkpoint]:
        """Backbone and projection head, where both are asked for."""
        if self.backbone is None:
            return []
        return [self.backbone, Checkpoint("projector", self.embeddings, self.positives)]

    @property
    def kin(self) -> list[str]:
        """Columns in which all images of a class share a value and classes share values, each with groups within those before."""
        if self.labels is None:
            return []
        codes = {name: group_codes(column) for name, column in self.columns.items()}
        values = {name: len(code.unique()) for name, code in codes.items() if joins_classes(code, self.labels)}
        nested: list[str] = []
        for name in sorted(values, key=lambda name: values[name]):
            if all(lies_within(codes[name], codes[wider]) for wider in nested):
                nested.append(name)
        return nested

    def asking(self, most: int) -> dict[str, Any]:
        """The same of measures that ask at most so many."""
        return {**self.asked, "queries": min(most, self.queries)}

    def sampled(self, most: int) -> "Material":
        """At most so many of the images, drawn by the seed, for measures whose cost grows with the square of their number.

        Without columns, other encoders and layers, and of no use to measures that ask about second views.
        """
        if len(self.embeddings) <= most:
            return self
        order = torch.randperm(len(self.embeddings), generator=generator(self.seed, "analyze", "sample"))
        rows = order[:most].sort().values
        return replace(
            self,
            embeddings=self.embeddings[rows],
            positives=self.positives[rows],
            labels=None if self.labels is None else self.labels[rows],
            columns={},
            others=(),
            backbone=None,
        )

    def lacks(self, needs: frozenset[str]) -> list[str]:
        """What of that is not there; classes always are, as an estimate if need be."""
        there = {
            CLASSES: True,
            LABELS: self.labels is not None,
            CHECKPOINTS: bool(self.others),
            COLUMNS: bool(self.columns),
            HIERARCHY: bool(self.kin),
            LAYERS: bool(self.layers),
        }
        return [need for need in sorted(needs) if not there[need]]


def lies_within(group: Int64[Tensor, " N"], wider: Int64[Tensor, " N"]) -> bool:
    """Whether all images of a group are of one wider group."""
    return len(torch.stack([group, wider]).unique(dim=1)[0]) == len(group.unique())


def joins_classes(code: Int64[Tensor, " N"], label: Int64[Tensor, " N"]) -> bool:
    """Whether a grouping of images is one of whole classes, some of them together.

    Args:
        code: Group of each image, -1 without.
        label: Class of each image, -1 where it is unknown.
    """
    pairs = torch.stack([label, code])[:, label >= 0].unique(dim=1)
    label, code = pairs
    return bool((code >= 0).all()) and len(label) == len(label.unique()) and 1 < len(code.unique()) < len(label)


def grouping(columns: Mapping[str, Tensor | list]) -> dict[str, Tensor | list]:
    """Columns of metadata in which two images share a value; one of lists or records has no values to share."""
    plain = {
        name: column
        for name, column in columns.items()
        if isinstance(column, Tensor) or not any(isinstance(value, list | dict) for value in column)
    }
    codes = {name: group_codes(column) for name, column in plain.items()}
    return {name: plain[name] for name, code in codes.items() if bool((code[code >= 0].bincount() > 1).any())}


def rows_asked(material: Material) -> Int64[Tensor, " Q"]:
    """Rows that any measure asks about: those drawn from all images, and those drawn where classes are compared."""
    x = material.embeddings
    rows = ask(x, **material.asked).rows
    try:
        by_class = ask_by_class(x, material.classes, **material.asked)
    except ValueError:  # too few images for clusters: sections that compare classes are left out for the same reason
        return rows
    return torch.cat([rows, by_class.position[by_class.rows]]).unique()


@torch.no_grad()
def second_views(
    encoder: nn.Module,
    data: PretrainData,
    position: Int64[Tensor, " n"],
    device: torch.device,
    dtype: torch.dtype,
    *,
    seed: int,
) -> Float[Tensor, "n F"]:
    """Embeddings of one augmented view of some images under the encoder's recipe, on the CPU.

    Args:
        encoder: (B, C, S, S) to (B, F), on the device.
        data: Gives the "train" images and the recipe.
        position: Which of them.
        device: Where the encoder is.
        dtype: Its arithmetic.
        seed: Of the views.
    """
    rows = []
    with evaluating(encoder), torch.autocast(device.type, dtype=dtype, enabled=dtype in HALF):
        for part in position.split(AT_A_TIME):
            view = views_of(data, part, seed).to(device)
            rows.append(encoder(view.contiguous(memory_format=data.memory_format)).float().cpu())
    return torch.cat(rows)


def views_of(data: PretrainData, position: Int64[Tensor, " n"], seed: int) -> Float[Tensor, "n C S S"]:
    """One augmented view of each image, the same whichever others are asked for with it."""
    source = data.sets["train"]
    assert source is not None
    crops_of = StreamedCrops(source, data.views, seed, data.skip_bad_images)
    views = []
    for place in position.tolist():
        crops = crops_of[0, place][1][None]
        views.append(finish_views(crops, data.views, generator(seed, "analyze", "views", place))[0])
    return torch.cat(views)


def view_pictures(data: PretrainData, position: Int64[Tensor, " n"], seed: int) -> UInt8[Tensor, "n 3 S S"]:
    """The views of :func:`views_of` as pictures."""
    return data.pictures(views_of(data, position, seed))
