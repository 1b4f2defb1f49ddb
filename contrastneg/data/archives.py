"""Tar files, read in place: WebDataset shards, or class folders packed as they are.

A tar has no index, so its headers are read once and the place of every member is kept; after that items are read in any
order, which one pass over a shard (WebDataset's own reader) cannot offer, and have stable indices.
"""

import io
import json
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrastneg.data.address import AddressError, short_name
from contrastneg.data.imageset import ImageSet, Names
from contrastneg.data.metadata import columns_of, label_column
from contrastneg.data.trees import NO_PICTURE, arrange, ignored_name, is_picture, other_file

COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst", ".zip")
SIDECARS = {"cls", "txt", "json"}
LARGEST_SIDECAR = 2**20  # bytes; a larger .json or .txt describes a whole set, not one picture


@dataclass(frozen=True)
class TarReader:
    """Pictures that are members of tar files, by file, offset and length."""

    tars: list[str]
    names: Names
    places: np.ndarray  # (N, 3): tar, offset, length

    def open(self, index: int) -> io.BufferedIOBase:
        tar, offset, length = self.places[index].tolist()
        with open(self.tars[tar], "rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(length))

    def name_of(self, index: int) -> str:
        return f"{self.tars[self.places[index, 0]]} member {self.names[index]}"


@dataclass
class Listing:
    """What lies in the tars: pictures in order, and what WebDataset's convention says about each key."""

    pictures: list[tuple[str, int, int, int]] = field(default_factory=list)  # name, tar, offset, length
    facts: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)  # by (tar, key)
    ignored: list[tuple[str, str]] = field(default_factory=list)  # name, reason


def open_tars(paths: list[Path], address: str, split: str, channels: int, labels: bool | None) -> ImageSet:
    """Open tar files as one set.

    Where any picture has a ``.cls``, ``.txt`` or ``.json`` of the same key (its name up to the first dot), the tars are
    WebDataset shards: ``.cls`` or a "label" in ``.json`` is the label, the rest become columns, and all is "train".
    Otherwise the members are understood as the files of a folder are, without the one folder that wraps them all.

    Raises:
        AddressError: A tar is absent, damaged or compressed, or there are no pictures.
        NoSuchSplit: There is no such split.
    """
    listing = Listing()
    for number, path in enumerate(paths):
        _list_tar(path, number, listing)
    if not listing.pictures:
        raise AddressError(f"{address} holds no pictures: give tars with .jpg, .png or other pictures")
    shards = bool(listing.facts.keys() & {(tar, _key(name)) for name, tar, _, _ in listing.pictures})
    build = _shards if shards and split == "train" else _tree
    base = ImageSet(
        address=address,
        split=split,
        name=short_name(re.sub(r"[-_.]*\{.*", "", Path(address).name).removesuffix(".tar")),
        image_id=torch.arange(0),
        channels=channels,
    )
    return build(base, listing, [str(path.absolute()) for path in paths], labels)


def expand_braces(text: str) -> list[str]:
    """``x-{000..010}.tar`` and ``{a,b}.tar`` -> all names, in order.

    Raises:
        AddressError: A range is not of the form {first..last} with first <= last.
    """
    pieces = re.split(r"\{([^{}]*)\}", text)
    options: list[list[str]] = []
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            options.append([piece])
        elif match := re.fullmatch(r"(\d+)\.\.(\d+)", piece):
            first, last = match.groups()
            width = len(first) if first.startswith("0") else 0
            options.append([str(n).zfill(width) for n in range(int(first), int(last) + 1)])
        else:
            options.append(piece.split(","))
        if not options[-1] or (i % 2 and ".." in options[-1][0]):
            raise AddressError(f"{text}: {{{piece}}} is no range: write {{000..010}}, the smaller number first")
    return ["".join(choice) for choice in product(*options)]


def _list_tar(path: Path, number: int, listing: Listing) -> None:
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                reason = next(filter(None, map(ignored_name, name.split("/"))), None)
                if not member.isfile():
                    continue
                if reason:
                    listing.ignored.append((name, reason))
                elif is_picture(name):
                    listing.pictures.append((name, number, member.offset_data, member.size))
                elif name.rpartition(".")[2].lower() in SIDECARS and member.size <= LARGEST_SIDECAR:
                    stream = tar.extractfile(member)
                    assert stream is not None  # it is a file
                    facts = listing.facts.setdefault((number, _key(name)), {})
                    _read_sidecar(stream.read(), name, path, facts)
                else:
                    listing.ignored.append((name, other_file(name)))
            assert tar.fileobj is not None  # it is open
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a broken header for the end
                raise tarfile.ReadError(f"damaged at byte {tar.offset}")
    except FileNotFoundError:
        raise AddressError(f"{path} does not exist: check the path and the range of numbers in braces") from None
    except (tarfile.TarError, OSError) as error:
        raise AddressError(
            f"{path} cannot be read as an uncompressed tar ({error}): unpack or fetch it again"
        ) from error


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _read_sidecar(data: bytes, name: str, path: Path, facts: dict[str, Any]) -> None:
    kind = name.rpartition(".")[2].lower()
    try:
        if kind == "cls":
            facts["cls"] = int(data)
        elif kind == "txt":
            facts["txt"] = data.decode(errors="replace")
        else:
            value = json.loads(data)
            facts.update(value if isinstance(value, dict) else {"json": value})
    except ValueError as error:
        raise AddressError(f"{path} member {name} cannot be read ({error}): a .cls holds one integer") from error


def _shards(base: ImageSet, listing: Listing, tars: list[str], labels: bool | None) -> ImageSet:
    """One item per key: its first picture, with its facts as columns."""
    first: dict[tuple[int, str], tuple[str, int, int, int]] = {}
    for picture in listing.pictures:
        first.setdefault((picture[1], _key(picture[0])), picture)
    extra = len(listing.pictures) - len(first)
    ignored = Counter(why for _, why in listing.ignored) + Counter(
        {"further pictures of a key": extra} if extra else {}
    )
    columns = columns_of([listing.facts.get(key, {}) for key in first])
    found, classes = label_column(columns, base.address) if labels is not False else (None, None)
    return replace(
        _of_pictures(base, list(first.values()), tars),
        labels=found,
        classes=classes,
        columns=columns,
        ignored=dict(ignored),
    )


def _tree(base: ImageSet, listing: Listing, tars: list[str], labels: bool | None) -> ImageSet:
    pictures = sorted(listing.pictures, key=lambda picture: picture[0].split("/"))
    tree = arrange([picture[0] for picture in pictures], base.split, base.address, labels, unwrap=True)
    others = [*listing.ignored, *((name, f"{NO_PICTURE} (.cls, .txt, .json)") for _, name in listing.facts)]
    ignored = Counter(why for name, why in others if tree.tells_of(name))
    return replace(
        _of_pictures(base, [pictures[i] for i in tree.positions], tars),
        labels=tree.labels,
        classes=tree.classes,
        ignored=dict(ignored + Counter(tree.ignored)),
        notes=tree.notes,
    )


def _of_pictures(base: ImageSet, pictures: list[tuple[str, int, int, int]], tars: list[str]) -> ImageSet:
    places = np.array([picture[1:] for picture in pictures], dtype=np.int64)
    reader = TarReader(tars, Names([picture[0] for picture in pictures]), places)
    return replace(base, image_id=torch.arange(len(pictures)), reader=reader)
