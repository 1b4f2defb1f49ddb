"""Folders of pictures: class folders, splits, flat and nested trees without labels."""

import io
import os
from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch

from contrastneg.data.address import AddressError, name_of_path
from contrastneg.data.imageset import ImageSet, Names
from contrastneg.data.trees import arrange, ignored_name, is_picture, other_file, passed_over
from contrastneg.wording import count_of


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
    paths, others, empty = walk(folder)
    if not paths:
        met = passed_over(Counter(why for _, why in others))
        met += [count_of(len(empty), "folder")] if empty else []
        found = f"holds no pictures (met {', '.join(met)})" if met else "is empty"
        raise AddressError(f"{folder} {found}: give a folder with .jpg, .png or other pictures")
    tree = arrange(paths, split, str(folder), labels)
    ignored = Counter(why for path, why in others if tree.tells_of(path))
    notes, empty = tree.notes, [path for path in empty if tree.tells_of(path)]
    if empty:
        listed = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
        are = "is no class" if len(empty) == 1 else "are no classes"
        notes = (*notes, f"{count_of(len(empty), 'folder')} without pictures {are}: {listed}")
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


def class_folders_below(reader: FileReader) -> tuple[str, int] | None:
    """The folder that all pictures lie in and how many folders it holds; None where these could not be classes."""
    folders = [name.split("/")[:-1] for name in reader.names]
    alike = takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False))
    shared = [level[0] for level in alike]
    inner = {"".join(parts[len(shared) : len(shared) + 1]) for parts in folders}  # "": pictures in the folder itself
    return (os.path.join(reader.root, *shared), len(inner)) if len(inner) > 1 and "" not in inner else None


def walk(folder: Path) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """All pictures below a folder, links followed, without hidden and system names.

    Returns:
        Sorted relative paths with forward slashes; path and reason of what was ignored; folders without any picture.

    Raises:
        AddressError: A folder cannot be listed, or links lead in a circle.
    """
    paths: list[str] = []
    ignored: list[tuple[str, str]] = []
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
                    ignored.append((prefix + entry.name, reason))
                elif entry.is_dir():
                    if visit(entry.path, f"{prefix}{entry.name}/", above | {real}) == 0:
                        empty.append(f"{prefix}{entry.name}")
                elif is_picture(entry.name):
                    # a link that leads nowhere is reported with the pictures that cannot be read
                    if entry.is_file() or entry.is_symlink():
                        paths.append(prefix + entry.name)
                    else:
                        ignored.append((prefix + entry.name, "no regular file"))
                else:
                    ignored.append((prefix + entry.name, other_file(entry.name)))
        return len(paths) - before

    try:
        visit(str(folder), "", frozenset())
    except OSError as error:
        raise AddressError(f"{folder} cannot be listed: {error}") from error
    # by parts, so that the order is that of class folders: "a/x" before "a-b/x"
    return sorted(paths, key=lambda path: path.split("/")), ignored, sorted(empty)
