"""Fewer pictures of a set, or the same with labels numbered as another set does."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int64
from torch import Tensor

from contrastneg.data.address import AddressError
from contrastneg.data.imageset import ImageSet
from contrastneg.randomness import generator


def limit_images(source: ImageSet, count: int, seed: int = 0) -> ImageSet:
    """At most ``count`` pictures, as many of each class as possible.

    Classes take turns, each giving its pictures in a random order, until the count is reached; unlabelled pictures of a
    labelled set take turns as one more class, and a set without labels is drawn from uniformly. With the same seed a
    smaller limit is a subset of a larger one.

    Args:
        source: The set to draw from; stable indices are kept.
        count: Pictures to keep, at least 1; no fewer than the set holds returns the set itself.
        seed: Which pictures.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"limit_images is {count}: keep at least 1 image")
    if count >= len(source):
        return source
    return source.subset(order_of_choice(source, seed)[:count].sort().values)


def order_of_choice(source: ImageSet, seed: int) -> Int64[Tensor, " N"]:
    """Positions in the order in which a limit takes them; no picture is looked at.

    Args:
        source: The set to draw from.
        seed: Which pictures.
    """
    order = torch.randperm(len(source), generator=generator(seed, "limit_images"))
    return order if source.labels is None else in_turns(order, source.labels)


def in_turns(order: Int64[Tensor, " n"], labels: Int64[Tensor, " N"]) -> Int64[Tensor, " n"]:
    """Positions in the order in which classes that take turns give theirs: any first part has as many of each as possible.

    Args:
        order: Positions; each class gives its own in this order.
        labels: Class of every position.
    """
    shuffled = labels[order]
    by_class = shuffled.argsort(stable=True)  # classes together, each in its own order
    counts = shuffled.unique(return_counts=True)[1]
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    turn = torch.empty_like(by_class)
    turn[by_class] = torch.arange(len(order)) - starts  # in which round each picture is given
    return order[turn.argsort(stable=True)]


def map_classes(source: ImageSet, classes: list[str]) -> ImageSet:
    """Number the labels of an evaluation set as the training set does, by class name.

    Args:
        source: The set to renumber; one without labels is returned as it is.
        classes: Class names of the training set, by label.

    Raises:
        AddressError: An image belongs to a class that the training set does not have.
    """
    if source.labels is None or source.classes is None or source.classes == classes:
        return source
    number = {name: label for label, name in enumerate(classes)}
    used = source.labels[source.labels >= 0].unique().tolist()
    strange = [source.classes[label] for label in used if source.classes[label] not in number]
    if strange:
        raise AddressError(
            f"{source.address}: its {source.split} split has pictures of {_some(strange)}, not among the "
            f"{len(classes)} training classes ({_some(classes)}): use the same class names in both"
        )
    table = torch.tensor([number.get(name, -1) for name in source.classes] + [-1])  # last: label -1 stays -1
    return replace(source, labels=table[source.labels], classes=list(classes))


def _some(names: Sequence[str], most: int = 5) -> str:
    listed = ", ".join(repr(name) for name in names[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed
