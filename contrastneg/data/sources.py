"""An address becomes images: folders, public sets, parquet, Hugging Face, tar files, the embedded set."""

import difflib
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from contrastneg.data.address import AddressError, NoSuchSplit
from contrastneg.data.archives import COMPRESSED, expand_braces, open_tars
from contrastneg.data.decode import UnreadableImage
from contrastneg.data.folders import FileReader, class_folders_below, open_folder
from contrastneg.data.imageset import ImageSet, in_memory_set
from contrastneg.data.named import NAMED, default_root, open_named
from contrastneg.data.subsets import limit_images, map_classes
from contrastneg.data.tables import open_hub, open_parquet
from contrastneg.data.trees import files_of_split, ignored_name, is_picture

__all__ = [
    "AddressError",
    "ImageSet",
    "NoSuchSplit",
    "UnreadableImage",
    "in_memory_set",
    "limit_images",
    "open_source",
]
FIXED_CLASSES = {"shapes", *NAMED} - {"imagenet"}  # both splits number their classes alike
ADDRESSES = "a folder, FILE.parquet, FILE.tar, x-{000..010}.tar, hf:NAME, shapes, " + ", ".join(NAMED)


def open_source(
    address: str,
    *,
    split: str = "train",
    root: Path | None = None,
    channels: int = 3,
    labels: bool | None = None,
    classes: list[str] | None = None,
) -> ImageSet:
    """Open one split of a data set by its address.

    ============================ =======================================================================================
    ``path/``                    class folders, or flat or nested pictures without labels; ``train/`` and ``val/`` (or
                                 ``valid``, ``validation``, ``test``) in it are splits. Folders are classes where the
                                 top itself holds no pictures. A folder of parquet or tar files is a set of that kind.
    ``x.parquet``                parquet, in a folder with splits by file name (``train*``, ``val*``, ``test*``)
    ``x.tar``, ``x-{0..9}.tar``  WebDataset shards, or class folders packed as they are
    ``hf:NAME``                  Hugging Face (``hf:NAME:CONFIG``), or a local folder that ``datasets`` reads
    ``cifar10`` ...              torchvision's: cifar10, cifar100, stl10, fashion-mnist, imagenet, kept under ``root``
    ``shapes``                   the embedded, generated set
    ============================ =======================================================================================

    A single class is as good as none: such a set is opened without labels, and a note says so.

    Names win over folders of the same name: write ``./cifar10`` for the folder. Opening again finds what is there and
    downloads nothing; of several processes one downloads, unpacks or converts and the others wait for it.

    Args:
        address: What to open.
        split: "train" or "test".
        root: Where public sets lie or are downloaded to; None is ``$CONTRASTNEG_DATA`` or the user's cache folder.
        channels: Channels that pictures are given in: 3 (RGB) or 1 (grey).
        labels: None takes labels where there are two classes or more; False ignores them (folders are then no classes);
            True refuses a set without them, takes folders for classes even where pictures lie beside them (those get
            -1), and is content with one class.
        classes: Class names of the training set, for an evaluation set: its labels are numbered the same way. It may
            have a single split, which is then opened whatever ``split`` says (``ImageSet.split`` tells which it was).
            None with split "test" takes those of the address's own train split.

    Raises:
        NoSuchSplit: The address has no such split.
        AddressError: It cannot be opened, or has classes that the training set does not have.
        ValueError: An argument is out of range.
    """
    _check_arguments(address, split, channels)
    root = root if root is not None else default_root()

    def opened(split: str) -> ImageSet:
        return _open(address, split, root, channels, labels)

    try:
        source = opened(split)
    except NoSuchSplit:
        if classes is None or split == "train":
            raise
        source = replace(opened("train"), split="train")
    if labels is True and source.labels is None:
        raise AddressError(f"{address} has no labels: use it without, or give class folders or a label column")
    if classes is None and source.split == "test" and address not in FIXED_CLASSES:
        with suppress(NoSuchSplit):  # a test split alone keeps its own classes
            classes = _of_several_classes(opened("train"), labels).classes
    return _of_several_classes(source if classes is None else map_classes(source, classes), labels)


def _check_arguments(address: str, split: str, channels: int) -> None:
    """Refuse what no set could be opened with."""
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}: choose train or test")
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}: choose 3 (RGB) or 1 (grey)")
    if not address.strip():
        raise AddressError(f"the address of the data is empty: give {ADDRESSES}")


def _of_several_classes(source: ImageSet, labels: bool | None) -> ImageSet:
    """The set without labels where it has one class only: every score would be 100 %."""
    if labels is not None or source.classes is None or len(source.classes) > 1:
        return source
    note = f"the only class is {source.classes[0]!r}, which is as good as none: taken without labels"
    inner = class_folders_below(source.reader) if isinstance(source.reader, FileReader) else None
    if inner is not None:
        folder, count = inner
        note += f" (give {folder} to take the {count} folders in it for classes)"
    return replace(source, labels=None, classes=None, notes=(*source.notes, note))


def _open(address: str, split: str, root: Path, channels: int, labels: bool | None) -> ImageSet:
    if address == "shapes":
        from contrastneg.data.shapes import shapes

        source = replace(shapes(split), channels=channels)
        return replace(source, labels=None, classes=None) if labels is False else source
    if address in NAMED:
        return open_named(address, split, channels, labels, root)
    if address.startswith("hf:"):
        return open_hub(address, split, channels, labels, root)
    if "://" in address:
        raise AddressError(f"{address} is not on this machine: download it first and give {ADDRESSES}")
    path = _path_of(address)
    if path.is_dir():
        return _open_directory(path, split, root, channels, labels)
    suffix = path.suffix.lower()
    if path.name.lower().endswith(COMPRESSED):
        raise AddressError(
            f"{address} is compressed and has no random access: unpack it and give the folder (or a .tar)"
        )
    if suffix == ".tar":
        return open_tars([Path(name) for name in expand_braces(str(path))], address, split, channels, labels)
    if not path.exists():
        raise AddressError(_unknown(address, path))
    if suffix == ".parquet":
        return open_parquet(path, split, channels, labels, root)
    if is_picture(path.name):
        raise AddressError(f"{address} is a single picture: give the folder it lies in ({path.parent})")
    raise AddressError(f"{address} is a file of no known kind: give {ADDRESSES}")


def _path_of(address: str) -> Path:
    """The address as a path, ``~`` expanded; one that the system cannot look at is refused."""
    try:
        path = Path(address).expanduser()
        if path.is_dir():
            os.listdir(path)
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # no such user's home, too long a name, no permission
        reason = error.strerror if isinstance(error, OSError) else error
        raise AddressError(f"{address} cannot be looked at ({reason}): check the path and its permissions") from error
    return path


def _open_directory(path: Path, split: str, root: Path, channels: int, labels: bool | None) -> ImageSet:
    """A folder of parquet or tar files, or else of pictures."""
    if any(next(path.glob(f"{inner}*.parquet"), None) for inner in ("", "data/", "train*/")):
        return open_parquet(path, split, channels, labels, root)
    names = [name for name in os.listdir(path) if ignored_name(name) is None]
    tars = sorted(name for name in names if name.endswith(".tar"))
    # tars beside folders or pictures are where those came from
    if tars and not any(is_picture(name) or (path / name).is_dir() for name in names):
        chosen = [path / name for name in files_of_split(tars, split, str(path))]
        return replace(open_tars(chosen, str(path), "train", channels, labels), split=split)
    return open_folder(path, split, channels, labels)


def _unknown(address: str, path: Path) -> str:
    """One line for an address that is nothing: the nearest name, or the nearest neighbour on disk."""
    near = difflib.get_close_matches(address.lower(), [*NAMED, "shapes"], n=1)
    if near:
        return f"{address} is neither a folder nor a known set: did you mean {near[0]}?"
    parent = path.parent
    beside = difflib.get_close_matches(path.name, os.listdir(parent), n=1) if parent.is_dir() else []
    if beside:
        return f"{address} does not exist: did you mean {parent / beside[0]}?"
    return f"{address} does not exist and is no known set: give {ADDRESSES}"
