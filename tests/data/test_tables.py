"""Parquet files and Hugging Face data sets, beyond the plain cases of test_sources.py."""

import io
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image


def png(level):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(*levels):
    return [{"bytes": png(level), "path": None} for level in levels]


def levels_of(source):
    return [int(source.read(position)[0, 0, 0]) for position in range(len(source))]


def opened(address, **options):
    from contrastneg.data.sources import open_source

    return open_source(str(address), **options)


def refused(address, words, **options):
    from contrastneg.data.sources import AddressError

    with pytest.raises(AddressError, match=words) as refusal:
        opened(address, **options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("in_memory", [True, False])
def test_files_with_nothing_but_pictures_are_read_across_row_groups_and_files(tmp_path, in_memory, monkeypatch):
    from contrastneg.data import tables

    if not in_memory:
        monkeypatch.setattr(tables, "IN_MEMORY", 0)  # as for a set too large to keep: converted by datasets
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.table({"image": pictures(0, 10, 20)}), folder / "train-0.parquet", row_group_size=2)
    pq.write_table(pa.table({"image": pictures(30, 40)}), folder / "train-1.parquet")
    source = opened(folder, root=tmp_path / "root")
    assert source.labels is None
    assert levels_of(source) == [0, 10, 20, 30, 40]
    assert levels_of(pickle.loads(pickle.dumps(source.subset(torch.tensor([4, 1]))))) == [40, 10]
    if in_memory:
        assert source.name_of(4) == f"{folder}/train-1.parquet row 1"


def test_plain_bytes_and_paths_beside_the_file_are_pictures_too(tmp_path):
    pq.write_table(pa.table({"jpg": [png(10), None], "id": [7, 8]}), tmp_path / "bytes.parquet")
    source = opened(tmp_path / "bytes.parquet")
    assert int(source.read(0)[0, 0, 0]) == 10
    from contrastneg.data.sources import UnreadableImage

    with pytest.raises(UnreadableImage, match=r"bytes\.parquet row 1.*empty"):
        source.read(1)
    (tmp_path / "x.png").write_bytes(png(50))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = pa.array([{"bytes": None, "path": "x.png"}], kind)
    pq.write_table(pa.table({"image": rows}), tmp_path / "paths.parquet")
    assert levels_of(opened(tmp_path / "paths.parquet")) == [50]


def test_labels_with_gaps_or_of_text_are_numbered_in_order_and_unknown_ones_stay_unknown(tmp_path):
    for name, labels, classes, numbers in (
        ("gaps", [5, 0, None, 2], ["0", "2", "5"], [2, 0, -1, 1]),
        ("text", ["dog", "cat", "dog", None], ["cat", "dog"], [1, 0, 1, -1]),
        ("none", [-1, -1, -1, -1], None, None),
    ):
        pq.write_table(pa.table({"image": pictures(0, 1, 2, 3), "label": labels}), tmp_path / f"{name}.parquet")
        source = opened(tmp_path / f"{name}.parquet")
        assert source.classes == classes
        assert (None if source.labels is None else source.labels.tolist()) == numbers


def test_what_cannot_be_a_table_of_pictures_is_refused_in_one_line(tmp_path):
    from contrastneg.data.sources import NoSuchSplit

    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    refused(tmp_path / "bad.parquet", "cannot be read as parquet")
    pq.write_table(pa.table({"label": [1], "place": [2]}), tmp_path / "flat.parquet")
    refused(tmp_path / "flat.parquet", "no column of pictures, only label, place")
    pq.write_table(pa.table({"image": pictures(0), "label": [0.5]}), tmp_path / "half.parquet")
    refused(tmp_path / "half.parquet", "labels like 0.5")
    with pytest.raises(NoSuchSplit):
        opened(tmp_path / "half.parquet", split="test")
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"image": pictures(0), "label": [1]}), tmp_path / "set" / "train-0.parquet")
    pq.write_table(pa.table({"label": [1]}), tmp_path / "set" / "train-1.parquet")
    refused(tmp_path / "set", r"train-1\.parquet.*'image'")


def test_a_local_folder_is_read_by_hugging_face_without_a_network(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for split, names in (("train", "ab"), ("test", "b")):
        for number, name in enumerate(names):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            (folder / "x.png").write_bytes(png(10 * number))
    address, root = f"hf:{tmp_path / 'pets'}", tmp_path / "root"
    train, test = opened(address, root=root), opened(address, split="test", root=root)
    assert (train.name, train.classes, train.labels.tolist()) == ("pets", ["a", "b"], [0, 1])
    assert (test.classes, test.labels.tolist()) == (["a", "b"], [1])
    assert levels_of(pickle.loads(pickle.dumps(train))) == [0, 10]
    refused("hf:nobody/nothing", "cannot be reached: connect to the network", root=root)


def test_what_hugging_face_saved_to_disk_opens(tmp_path):
    import datasets

    saved = datasets.Dataset.from_dict({"image": pictures(10, 20), "label": [1, 0], "place": [3, 4]})
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "saved")
    source = opened(f"hf:{tmp_path / 'saved'}", root=tmp_path / "root")
    assert levels_of(source) == [10, 20]
    assert (source.labels.tolist(), source.columns["place"].tolist()) == ([1, 0], [3, 4])
    refused(f"hf:{tmp_path / 'saved'}", "no test split", split="test", root=tmp_path / "root")
