"""Folders of pictures: class folders, splits, flat and nested trees without labels."""

import io
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from contrastneg.data.address import AddressError, name_of_path
from contrastneg.data.imageset import ImageSet, Names
from contrastneg.data.trees import arrange, ignored_name, is_picture, other_file


@dataclass(frozen=True)
class FileReader:
    """Pictures that are files."""

    root: str
    names: Names

    def open(self, index: int) -> io.BufferedIOBase:
        return open(self.name_of(index), "rb")

    def name_of(self, index: int) -> str:
        return os.path.join(self.root, self.names[index])


def open_folder(folder: Path, split: str, channels: int, labels: bool | None) -> ImageSet:
    """Open one split of a folder; :func:`contrastneg.data.trees.arrange` says how splits and classes are found.

    Stable indices follow the sorted relative paths of the split's pictures, readable or not.

    Raises:
        AddressError: The folder holds no pictures.
        NoSuchSplit: It has no such split.
    """
    paths, ignored, empty = walk(folder)
    if not paths:
        met = ", ".join(f"{n} {what}" for what, n in sorted(ignored.items())) or "nothing"
        raise AddressError(f"{folder} holds no pictures (met {met}): give a folder with .jpg, .png or other pictures")
    tree = arrange(paths, split, str(folder), labels)
    notes = tree.notes
    if empty:
        listed = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
        notes = (*notes, f"{len(empty)} folders without pictures are no classes: {listed}")
    return ImageSet(
        address=str(folder),
        split=split,
        name=name_of_path(folder),
        image_id=torch.arange(len(tree.positions)),
        labels=tree.labels,
        classes=tree.classes,
        channels=channels,
        reader=FileReader(os.path.abspath(folder), Names([paths[i] for i in tree.positions])),
        ignored=dict(ignored + Counter(tree.ignored)),
        notes=notes,
    )


def walk(folder: Path) -> tuple[list[str], Counter[str], list[str]]:
    """All pictures below a folder, links followed, without hidden and system names.

    Returns:
        Sorted relative paths with forward slashes; counts of what was ignored, by reason; folders without any picture.

    Raises:
        AddressError: A folder cannot be listed, or links lead in a circle.
    """
    paths: list[str] = []
    ignored: Counter[str] = Counter()
    empty: list[str] = []

    def visit(path: str, prefix: str, above: frozenset[str]) -> int:
        real = os.path.realpath(path)
        if real in above:
            raise AddressError(f"{path} links back to a folder above it: remove the link")
        before = len(paths)
        with os.scandir(path) as entries:
            for entry in entries:
                reason = ignored_name(entry.name)
                if reason:
                    ignored[reason] += 1
                elif entry.is_dir():
                    if visit(entry.path, f"{prefix}{entry.name}/", above | {real}) == 0:
                        empty.append(f"{prefix}{entry.name}")
                elif is_picture(entry.name):
                    paths.append(prefix + entry.name)
                else:
                    ignored[other_file(entry.name)] += 1
        return len(paths) - before

    try:
        visit(str(folder), "", frozenset())
    except OSError as error:
        raise AddressError(f"{folder} cannot be listed: {error}") from error
    # by parts, so that the order is that of class folders: "a/x" before "a-b/x"
    return sorted(paths, key=lambda path: path.split("/")), ignored, sorted(empty)
