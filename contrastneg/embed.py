"""Embeddings of a whole set in a file, one row an image, in bounded memory however many images there are."""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int64
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from contrastneg.config import plain
from contrastneg.data.module import PretrainData
from contrastneg.data.sources import ImageSet, NoSuchSplit, UnreadableImage, limit_images, open_source
from contrastneg.evaluate.features import encode_set, finite_rows
from contrastneg.progress import ProgressLines
from contrastneg.subjects import Layer, Subject
from contrastneg.writing import whole_file

ROWS = 4096  # images at a time, and rows in a group of the file
Number = Literal["float32", "float16"]


@dataclass(frozen=True)
class Rows:
    """Embeddings of some images of a split."""

    embedding: Float[np.ndarray, "n F"]
    source: ImageSet
    position: Int64[Tensor, " n"]
    """Position of each in its set."""

    @property
    def path(self) -> list[str]:
        """What identifies each image; bytes that are no UTF-8 as escapes."""
        names = map(self.source.name_of, self.position.tolist())
        return [name.encode("utf-8", "backslashreplace").decode() for name in names]

    @property
    def index(self) -> Int64[np.ndarray, " n"]:
        """Stable index of each image."""
        return self.source.image_id[self.position].numpy()

    @property
    def label(self) -> Int64[np.ndarray, " n"]:
        """Label of each image, -1 where it is unknown."""
        labels = self.source.labels
        return np.full(len(self.position), -1) if labels is None else labels[self.position].numpy()


class Table(Protocol):
    """A file that rows are appended to."""

    def append(self, rows: Rows) -> None:
        """Write some rows."""
        ...


@dataclass(frozen=True)
class Embedded:
    """What was written."""

    rows: int
    """Embeddings."""
    width: int
    """Numbers in each."""
    left_out: int
    """Images that could not be read."""


def embed(
    subject: Subject,
    data: str,
    path: Path,
    *,
    layer: Layer = "backbone",
    split: Literal["train", "test", "all"] = "all",
    root: Path | None = None,
    unlabelled: bool = False,
    limit: int | None = None,
    dtype: Number = "float32",
    on_bad_image: Literal["raise", "skip"] = "raise",
    workers: int = 2,
    seed: int = 0,
) -> Embedded:
    """Write the embeddings of a set.

    Parquet has the columns ``path``, ``index``, ``split``, ``label``, ``class`` and ``embedding`` (a list of fixed size);
    NPZ the arrays ``path``, ``index``, ``split``, ``label`` (-1 unknown), ``classes`` (names by label) and ``embedding``.
    What they are of stands in both as JSON: the Parquet schema's metadata, the array ``about``.

    Args:
        subject: The encoder.
        data: Address of the images.
        path: File to write, ``.parquet`` or ``.npz``.
        layer: Backbone or projector.
        split: Which images; all is every split that there is.
        root: Folder where public sets lie.
        unlabelled: Take sub-folders for mere folders, not for classes.
        limit: At most so many images of each split, equally many of each class; None takes all.
        dtype: Of the embeddings in the file; they are computed in float32.
        on_bad_image: Stop at images that cannot be read, or leave them out.
        workers: Loader processes.
        seed: Which images a limit takes.

    Raises:
        ValueError: The file exists or is of another kind, the images cannot be opened, one cannot be read and that stops,
            or an embedding is not finite in this type of numbers.
    """
    check_new_file(path)
    encoder = subject.encoder(layer).to(device := torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    sources = [
        source if limit is None else limit_images(source, limit, seed)
        for source in open_splits(subject, data, split, root, unlabelled)
    ]
    width = int(encoder(torch.zeros(1, subject.in_channels, *[subject.views.size] * 2, device=device)).shape[1])
    written = 0
    with open_table(path, facts(subject, layer, data), sources, width, dtype) as table:
        for source in sources:
            loading = "stream" if source.pixels is None else "memory"
            skip = on_bad_image == "skip"
            loaded = PretrainData(source, subject.views, loading=loading, workers=workers, skip_bad_images=skip)
            for rows in rows_of(encoder, loaded, source, device, dtype):
                table.append(rows)
                written += len(rows.position)
        if written == 0:
            raise ValueError(f"no image of {data} can be read: nothing was written")
    return Embedded(written, width, sum(map(len, sources)) - written)


def facts(subject: Subject, layer: Layer, data: str) -> dict[str, Any]:
    """What a file says its embeddings are of."""
    return {
        "encoder": subject.name,
        "layer": layer,
        "data": data,
        "views": {name: plain(getattr(subject.views, name)) for name in ("size", "mean", "std")},
        "notes": list(subject.notes),
    }


def rows_of(
    encoder: nn.Module, loaded: PretrainData, source: ImageSet, device: torch.device, dtype: Number
) -> Iterator[Rows]:
    """The embeddings of a split's readable images, a part at a time."""
    for wanted in chunks(source):
        try:
            x, position = encode_set(encoder, loaded, "pretrain", device, only=wanted)
        except UnreadableImage as error:  # of a loader process it comes with that one's traceback
            told = str(error).rstrip().rpartition("UnreadableImage: ")[2]
            raise ValueError(f"{told}: repair or remove it, or pass --on-bad-image skip") from error
        if len(x):
            yield Rows(in_dtype(x, dtype, source, position), source, position)


def check_new_file(path: Path) -> None:
    """Refuse a file that is there already, of an unknown kind, or in a folder that is not there."""
    if path.suffix not in WRITERS:
        raise ValueError(f"to is {path}: give a file that ends in {' or '.join(WRITERS)}")
    if path.exists():
        raise ValueError(f"{path} exists already: give another --to, or remove it")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.parent}")


def open_splits(subject: Subject, data: str, split: str, root: Path | None, unlabelled: bool) -> list[ImageSet]:
    """The splits that are asked for, in the channels that the encoder takes."""
    labels = False if unlabelled else None
    found, missing = [], None
    for name in ("train", "test") if split == "all" else (split,):
        try:
            found.append(open_source(data, split=name, root=root, channels=subject.in_channels, labels=labels))
        except NoSuchSplit as error:
            missing = error
    if missing is not None and not found:
        raise missing
    return found


def chunks(source: ImageSet) -> Iterator[Int64[Tensor, " n"]]:
    """Positions of a set, so many at a time, under a bar on a terminal; elsewhere a line every few seconds."""
    console = Console(stderr=True)
    lines = ProgressLines("embedded", f"images of {source.name} {source.split}")
    parts = torch.arange(len(source)).split(ROWS)
    for part in track(parts, source.split, console=console, transient=True, disable=not console.is_terminal):
        yield part
        if not console.is_terminal:
            lines(int(part[-1]) + 1, len(source))


def in_dtype(
    x: Float[Tensor, "n F"], dtype: Number, source: ImageSet, position: Int64[Tensor, " n"]
) -> Float[np.ndarray, "n F"]:
    """Embeddings as they stand in the file.

    Raises:
        ValueError: One is not finite.
    """
    converted = x.to(getattr(torch, dtype))
    finite = finite_rows(converted)
    if not finite.all():
        name = source.name_of(int(position[~finite][0]))
        reason = "float16 ends at 65,504, give --dtype float32" if finite_rows(x).all() else "the encoder diverged"
        raise ValueError(f"the embedding of {name} is not finite in {dtype}: {reason}")
    return converted.numpy()


def open_table(
    path: Path, about: dict[str, Any], sources: list[ImageSet], width: int, dtype: Number
) -> AbstractContextManager[Table]:
    """A table that is whole or absent, of the kind that the file's ending says."""
    return WRITERS[path.suffix](path, about, sources, width, dtype)


class ParquetTable:
    """A Parquet file, one row group at a time."""

    def __init__(self, writer: pq.ParquetWriter, width: int) -> None:
        self.writer, self.width = writer, width

    def append(self, rows: Rows) -> None:
        """Write a row group."""
        names = rows.source.classes or []
        labels = rows.label.tolist()
        columns = {
            "path": rows.path,
            "index": rows.index,
            "split": [rows.source.split] * len(labels),
            "label": [label if label >= 0 else None for label in labels],
            "class": [names[label] if label >= 0 else None for label in labels],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(rows.embedding.reshape(-1)), self.width),
        }
        self.writer.write_table(pa.table(columns, schema=self.writer.schema), row_group_size=ROWS)


@contextmanager
def parquet_table(
    path: Path, about: dict[str, Any], sources: list[ImageSet], width: int, dtype: Number
) -> Iterator[Table]:
    """A Parquet file of embeddings."""
    numbers = pa.float16() if dtype == "float16" else pa.float32()
    schema = pa.schema(
        [
            ("path", pa.string()),
            ("index", pa.int64()),
            ("split", pa.string()),
            ("label", pa.int64()),
            ("class", pa.string()),
            ("embedding", pa.list_(numbers, width)),
        ],
        metadata={"contrastneg": json.dumps(about)},
    )
    with whole_file(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        yield ParquetTable(writer, width)


class NpzTable:
    """Arrays that grow; the embeddings, many times the rest, in a file of their own until all are there."""

    def __init__(self, embedding: IO[bytes]) -> None:
        self.embedding = embedding
        self.columns: dict[str, list[np.ndarray]] = {name: [] for name in ("path", "index", "split", "label")}

    def append(self, rows: Rows) -> None:
        """Keep some rows."""
        self.embedding.write(rows.embedding.tobytes())
        for name in ("path", "index", "label"):
            self.columns[name].append(np.array(getattr(rows, name)))
        self.columns["split"].append(np.full(len(rows.position), rows.source.split))


@contextmanager
def npz_table(path: Path, about: dict[str, Any], sources: list[ImageSet], width: int, dtype: Number) -> Iterator[Table]:
    """An NPZ file of embeddings: an archive of arrays, as :func:`numpy.savez` writes it."""
    classes = next((source.classes for source in sources if source.classes), [])
    with whole_file(path) as partial, tempfile.TemporaryFile(dir=path.parent) as scratch:
        table = NpzTable(scratch)
        yield table
        arrays = {name: np.concatenate(parts) for name, parts in table.columns.items()}
        arrays |= {"classes": np.array(classes, dtype=np.str_), "about": np.array(json.dumps(about))}
        with zipfile.ZipFile(partial, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            shape = (len(arrays["index"]), width)
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            scratch.seek(0)
            with archive.open("embedding.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                shutil.copyfileobj(scratch, member)


WRITERS = {".parquet": parquet_table, ".npz": npz_table}
