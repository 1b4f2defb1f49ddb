"""Parquet files and Hugging Face data sets: one row per image, the picture as bytes in a column."""

import io
import json
import os
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from contrastneg.data.address import AddressError, NoSuchSplit, name_of_path, short_name
from contrastneg.data.imageset import ImageSet, Reader
from contrastneg.data.lock import alone
from contrastneg.data.metadata import as_column, label_column
from contrastneg.data.trees import TEST, TRAIN, files_of_split
from contrastneg.hub import use_what_was_fetched

IN_MEMORY = 2**30  # bytes of pictures up to which a parquet set's row groups are kept once read
USUAL_IMAGES = ("image", "img", "jpg", "jpeg", "png", "picture", "bytes")


class ParquetReader:
    """Pictures in a column of parquet files, read by row group when first asked for and kept.

    Files are memory-mapped and opened in each process anew: what travels to a worker is paths and counts.
    """

    def __init__(self, files: list[str], column: str) -> None:
        self.files = files
        self.column = column
        self.groups: list[tuple[int, int]] = []  # (file, group in file)
        self.group_starts: list[int] = []  # first row of each group
        self.file_starts: list[int] = []
        rows = 0
        for number, file in enumerate(files):
            metadata = pq.read_metadata(file, memory_map=True)
            self.file_starts.append(rows)
            for group in range(metadata.num_row_groups):
                self.groups.append((number, group))
                self.group_starts.append(rows)
                rows += metadata.row_group(group).num_rows
        self._kept: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def open(self, index: int) -> io.BufferedIOBase:
        group = bisect_right(self.group_starts, index) - 1
        value = self._group(group)[index - self.group_starts[group]].as_py()
        return _stream_of(value, os.path.dirname(self.files[self.groups[group][0]]))

    def name_of(self, index: int) -> str:
        file = bisect_right(self.file_starts, index) - 1
        return f"{self.files[file]} row {index - self.file_starts[file]}"

    def _group(self, group: int) -> Any:
        """The picture column of a row group; two threads may both read it, which is only work done twice."""
        if group not in self._kept:
            file, within = self.groups[group]
            with pq.ParquetFile(self.files[file], memory_map=True) as table:
                self._kept[group] = table.read_row_group(within, columns=[self.column])[self.column]
        return self._kept[group]


@dataclass(frozen=True)
class HubReader:
    """Pictures in a column of a ``datasets.Dataset``, which maps its own files into memory."""

    dataset: Any
    column: str
    address: str

    def open(self, index: int) -> io.BufferedIOBase:
        return _stream_of(self.dataset[index][self.column], "")

    def name_of(self, index: int) -> str:
        return f"{self.address} row {index}"


def open_parquet(path: Path, split: str, channels: int, labels: bool | None, root: Path) -> ImageSet:
    """Open a parquet file, or one split of a folder of them (by file name: ``train-00000-of-00002.parquet``).

    The picture is a binary column or a struct with ``bytes`` (as Hugging Face writes it); labels and class names come
    from that library's metadata, or from a column with a usual name; the other flat columns are kept as metadata. Sets
    above 1 GiB of pictures are converted once, by ``datasets``, to a memory-mapped file under ``root``, because parquet
    can only be read by whole row groups.

    Raises:
        AddressError: A file is damaged, or no column holds pictures.
        NoSuchSplit: No file belongs to the split.
    """
    files = [path]
    if path.is_dir():
        inner = sorted(file.relative_to(path) for file in path.rglob("*.parquet"))
        found = [file.as_posix() for file in inner if not any(part.startswith(".") for part in file.parts)]
        files = [path / file for file in files_of_split(found, split, str(path))]
    elif split != "train":
        raise NoSuchSplit(f"{path} is one file and has no {split} split: give the folder of its train and test files")
    names = [str(file.absolute()) for file in files]
    try:
        schema = pq.read_schema(names[0], memory_map=True)
        features = _features(schema)
        column = _picture_column(schema, features, str(path))
        lacking = [name for name in names if column not in pq.read_schema(name, memory_map=True).names]
        if lacking:
            raise AddressError(f"{lacking[0]} has no column {column!r}, where {names[0]} has pictures: write it again")
        flat = _flat_columns(schema)
        tables = [pq.ParquetFile(name, memory_map=True).read(columns=flat) for name in names]
        facts = pa.concat_tables(tables)
        rows = sum(pq.read_metadata(name, memory_map=True).num_rows for name in names)  # a table of no columns has none
        reader = ParquetReader(names, column) if _picture_bytes(names, column) <= IN_MEMORY else None
    except (pa.ArrowException, OSError) as error:
        raise AddressError(
            f"{path} cannot be read as parquet ({str(error).splitlines()[0]}): write it again"
        ) from error
    return _image_set(
        ImageSet(str(path), split, name_of_path(path), torch.arange(rows), channels=channels),
        reader or _converted(names, column, str(path), root),
        {name: facts[name].to_pylist() for name in flat},
        features,
        labels,
    )


def open_hub(address: str, split: str, channels: int, labels: bool | None, root: Path) -> ImageSet:
    """Open ``hf:NAME`` or ``hf:NAME:CONFIG``: a data set of the Hugging Face hub, or a local folder it can read.

    Raises:
        AddressError: It cannot be found or fetched, or has no picture column.
        NoSuchSplit: It has no such split.
    """
    import datasets.config
    import huggingface_hub.constants
    from datasets.exceptions import DatasetsError

    name, _, config = address.removeprefix("hf:").partition(":")
    if not Path(name).exists():
        use_what_was_fetched()
    try:
        if Path(name).is_dir() and any((Path(name) / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(name)
        else:
            with alone(root, "huggingface"):
                loaded = datasets.load_dataset(name, config or None, cache_dir=str(root / "huggingface"))
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise AddressError(
                f"{address} is not among the sets fetched earlier, and huggingface.co cannot be reached: connect to the "
                "network (and unset HF_HUB_OFFLINE)"
            ) from error
        raise AddressError(f"{address} cannot be loaded ({reason}): check the name and the network") from error
    splits = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    dataset = next((splits[wanted] for wanted in (TRAIN if split == "train" else TEST) if wanted in splits), None)
    if dataset is None:
        raise NoSuchSplit(f"{address} has no {split} split: its splits are {', '.join(map(str, splits))}")
    features = _features(dataset.features.arrow_schema)
    column = _picture_column(dataset.features.arrow_schema, features, address)
    if features.get(column, {}).get("_type") == "Image":
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    facts = {name: dataset[name][:] for name in _flat_columns(dataset.features.arrow_schema)}
    base = ImageSet(address, split, short_name(Path(name).name), torch.arange(len(dataset)), channels=channels)
    return _image_set(base, HubReader(dataset, column, address), facts, features, labels)


def _image_set(
    base: ImageSet, reader: Reader, facts: dict[str, list], features: dict[str, Any], labels: bool | None
) -> ImageSet:
    columns = {name: as_column(values) for name, values in facts.items()}
    declared = [name for name in columns if features.get(name, {}).get("_type") == "ClassLabel"]
    name = next((usual for usual in ("label", "fine_label") if usual in declared), declared[0] if declared else None)
    classes = features[name].get("names") if name else None
    found, classes = label_column(columns, base.address, name, classes) if labels is not False else (None, None)
    fields = {key: getattr(base, key) for key in ("address", "split", "name", "image_id", "channels")}
    return ImageSet(**fields, reader=reader, labels=found, classes=classes, columns=columns)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The Hugging Face description of the columns, where the file carries one."""
    text = (schema.metadata or {}).get(b"huggingface")
    return json.loads(text).get("info", {}).get("features", {}) if text else {}


def _flat_columns(schema: pa.Schema) -> list[str]:
    """Columns of numbers and text; pictures and nested values stay on disk."""
    return [field.name for field in schema if not (pa.types.is_nested(field.type) or _is_bytes(field.type))]


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _picture_column(schema: pa.Schema, features: dict[str, Any], address: str) -> str:
    declared = [
        name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == "Image"
    ]
    binary = [
        field.name
        for field in schema
        if _is_bytes(field.type) or (pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    usual = [name for name in USUAL_IMAGES if name in binary]
    candidates = declared or usual or binary
    if not candidates:
        raise AddressError(
            f"{address} has no column of pictures, only {', '.join(schema.names)}: "
            "store encoded pictures as binary or as a struct with bytes"
        )
    return candidates[0]


def _picture_bytes(files: list[str], column: str) -> int:
    total = 0
    for file in files:
        metadata = pq.read_metadata(file, memory_map=True)
        for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
            chunks = (group.column(i) for i in range(group.num_columns))
            total += sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)
    return total


def _converted(files: list[str], column: str, address: str, root: Path) -> HubReader:
    import datasets.config

    with alone(root, "huggingface"):
        dataset = datasets.Dataset.from_parquet([*files], cache_dir=str(root / "huggingface"), columns=[column])
    assert isinstance(dataset, datasets.Dataset)
    if isinstance(dataset.features[column], datasets.Image):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return HubReader(dataset, column, address)


def _stream_of(value: Any, folder: str) -> io.BufferedIOBase:
    """Bytes, or {"bytes", "path"} of which one is set, as a stream."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data is None and path:
        return open(os.path.join(folder, path), "rb")
    return io.BytesIO(data or b"")
