"""How a tree of picture paths, in a folder or in a tar, is understood: what is ignored, which split, which class."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import torch
from jaxtyping import Int64
from torch import Tensor

from contrastneg.data.address import AddressError, NoSuchSplit
from contrastneg.wording import count_of

PICTURES = frozenset(
    f".{kind}"
    for kind in [
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "bmp",
        "gif",
        "webp",
        "tif",
        "tiff",
        "ppm",
        "pgm",
        "pbm",
        "pnm",
        "avif",
        "jp2",
    ]
)
NO_PICTURE = "not a picture"  # how the key of an ignored file begins; its suffix follows
SYSTEM = frozenset(
    ["__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information", "lost+found"]
)
TRAIN = ("train", "training")
TEST = ("val", "valid", "validation", "test", "testing")  # the first that is met: public test sets often hide labels


@dataclass(frozen=True)
class Arrangement:
    """One split of a tree.

    Positions are those of the paths given to :func:`arrange`.
    """

    split: str
    folders: dict[str, str]
    """Where each split lies, as the beginning of its paths: {"train": "x/train/", "test": "x/val/"}; {} without splits."""
    positions: list[int]
    labels: Int64[Tensor, " n"] | None
    classes: list[str] | None
    ignored: dict[str, int]
    notes: tuple[str, ...]

    def tells_of(self, path: str) -> bool:
        """Whether something that is no picture is counted with this split: what lies beside the splits is with "train"."""
        in_test = "test" in self.folders and f"{path}/".startswith(self.folders["test"])
        return in_test == (self.split == "test")


def ignored_name(name: str) -> str | None:
    """Why a file or folder name is passed over ("hidden", "system"), or None."""
    if name.casefold() in SYSTEM or name == "Icon\r":
        return "system"
    return "hidden" if name.startswith(".") else None


def is_picture(name: str) -> bool:
    """Whether a file name ends as a picture's does."""
    return PurePosixPath(name).suffix.lower() in PICTURES


def other_file(name: str) -> str:
    """The key under which a file that is no picture is counted."""
    suffix = PurePosixPath(name).suffix.lower()
    return f"{NO_PICTURE} ({suffix})" if suffix else f"{NO_PICTURE} (no suffix)"


def passed_over(counts: Mapping[str, int]) -> list[str]:
    """What is no picture with its numbers, in words: "2 hidden", "1 other file (.txt)"."""
    return [
        f"{count_of(n, 'other file')}{what.removeprefix(NO_PICTURE)}"
        if what.startswith(NO_PICTURE)
        else f"{n:,} {what}"
        for what, n in sorted(counts.items())
    ]


def arrange(paths: list[str], split: str, address: str, labels: bool | None, unwrap: bool = False) -> Arrangement:
    """Find one split of a tree and its classes.

    Splits: where the top holds ``train`` and one of ``val``, ``valid``, ``validation``, ``test`` (or ``train`` alone),
    these are the splits, and what lies beside them is ignored. Any other tree is all "train".

    Labels: where the split's top holds no pictures itself, each of its folders is a class with all pictures below it.
    Where it does (flat, or nested beside pictures), the tree is unlabelled. ``labels`` overrides the rule.

    Args:
        paths: Pictures, relative to the top, with forward slashes, sorted.
        split: "train" or "test".
        address: For messages.
        labels: None applies the rule; False ignores all folders; True insists on class folders, and leaves pictures
            beside them unlabelled (-1).
        unwrap: Whether a folder that holds everything is only a wrapper (usual in archives). Otherwise it is one only
            where a ``train`` folder lies in it.

    Raises:
        NoSuchSplit: The tree has no such split.
        AddressError: ``labels`` is True and there are no class folders.
    """
    parts = [tuple(path.split("/")) for path in paths]
    depth = _wrapper_depth(parts, unwrap)
    tops = Counter(part[depth] if len(part) > depth + 1 else "" for part in parts)  # "": pictures at the top
    names = _split_folders(tops)
    if split not in names and (split != "train" or names):
        raise NoSuchSplit(
            f"{address} has no {split} split: put folders train/ and val/ into it, or evaluate on another set"
        )
    if names:
        folder = names[split]
        positions = [i for i, part in enumerate(parts) if len(part) > depth + 1 and part[depth] == folder]
        others = {top: n for top, n in tops.items() if top not in names.values()} if split == "train" else {}
        ignored = {(f"in {top}/" if top else "beside the splits"): n for top, n in others.items()}
        depth += 1
    else:
        positions, ignored = list(range(len(parts))), {}
    above = "".join(f"{part}/" for part in parts[0][: depth - 1]) if names else ""
    folders = {name: f"{above}{folder}/" for name, folder in names.items()}
    found, classes, notes = _class_folders([parts[i][depth:] for i in positions], address, labels)
    return Arrangement(split, folders, positions, found, classes, ignored, notes)


def split_of_file(path: str) -> str | None:
    """The split that a file of a table or a shard belongs to by its name, as in ``data/train-00000.parquet``.

    Returns:
        One of the names in ``TRAIN`` and ``TEST``, or None.
    """
    words = re.split(r"[^a-z]+", path.lower())
    return next((word for word in words if word in TRAIN or word in TEST), None)


def files_of_split(files: list[str], split: str, address: str) -> list[str]:
    """The files of one split, by name; files of which none is named for a split are all "train".

    Args:
        files: Paths relative to the address.
        split: "train" or "test".
        address: For messages.

    Raises:
        NoSuchSplit: No file belongs to the split.
    """
    named = [(split_of_file(file), file) for file in files]
    present = {name for name, _ in named if name}
    if not present and split == "train":
        return files
    wanted = TRAIN if split == "train" else [name for name in TEST if name in present][:1]
    chosen = [file for name, file in named if name in wanted]
    if not chosen:
        raise NoSuchSplit(f"{address} has no {split} split: its files are {', '.join(files[:3])}; name them by split")
    return chosen


def _wrapper_depth(parts: list[tuple[str, ...]], unwrap: bool) -> int:
    depth = 0
    while all(len(part) > depth + 1 for part in parts) and len({part[depth] for part in parts}) == 1:
        if parts[0][depth] in TRAIN:
            break
        inner = {part[depth + 1] for part in parts if len(part) > depth + 2}
        if not unwrap and not (inner & set(TRAIN) and inner & set(TEST)):
            break
        depth += 1
    return depth


def _split_folders(tops: Iterable[str]) -> dict[str, str]:
    """{"train": folder, "test": folder}, or nothing where the top is not one of splits.

    ``train`` beside other folders than the split names is taken for a class: CIFAR-100 has one of that name.
    """
    train = next((name for name in TRAIN if name in tops), None)
    test = next((name for name in TEST if name in tops), None)
    if train and test:
        return {"train": train, "test": test}
    return {"train": train} if train and set(tops) <= {train, ""} else {}


def _class_folders(
    parts: list[tuple[str, ...]], address: str, labels: bool | None
) -> tuple[Tensor | None, list[str] | None, tuple[str, ...]]:
    loose = sum(len(part) == 1 for part in parts)
    classes = sorted({part[0] for part in parts if len(part) > 1})
    if labels is True and not classes:
        raise AddressError(f"{address} was said to have labels but has no class folders: make one folder per class")
    if labels is False or not classes:
        return None, None, ()
    lie = "lies" if loose == 1 else "lie"
    beside = f"{count_of(loose, 'picture')} {lie} beside {count_of(len(classes), 'folder')}"
    if loose and labels is None:
        return None, None, (f"unlabelled: {beside} (where the folders are classes, move these pictures away)",)
    number = {name: label for label, name in enumerate(classes)}
    found = torch.tensor([number[part[0]] if len(part) > 1 else -1 for part in parts])
    return found, classes, (f"{beside} and {'has' if loose == 1 else 'have'} no label",) if loose else ()
