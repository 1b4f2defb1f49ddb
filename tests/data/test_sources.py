"""Addresses become images: folders, tables, archives, names."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image


def png(level=100, side=8):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (level, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path, data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if data is None else data)


def opened(address, **options):
    from contrastneg.data.sources import open_source

    return open_source(str(address), **options)


def refusal(address, **options):
    """The one line with which an address is refused."""
    from contrastneg.data.sources import AddressError

    with pytest.raises(AddressError, match=".") as refused:
        opened(address, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# -- folders ------------------------------------------------------------------------------------------------------


def test_rubbish_in_class_folders_is_ignored_and_counted(tmp_path):
    put(tmp_path / "a" / "x.png")
    put(tmp_path / "c" / "x.png")
    for name in (".DS_Store", "Thumbs.db", "notes.txt"):
        put(tmp_path / "a" / name, b"rubbish")
    put(tmp_path / ".ipynb_checkpoints" / "x.png")
    (tmp_path / "b").mkdir()
    source = opened(tmp_path)
    assert source.classes == ["a", "c"]
    assert source.labels.tolist() == [0, 1]
    assert sum(source.ignored.values()) >= 4


def test_flat_and_nested_folders_without_labels_are_taken_whole(tmp_path):
    for i in range(3):
        put(tmp_path / "flat" / f"{i}.png")
        put(tmp_path / "nested" / f"{i}.png")
        put(tmp_path / "nested" / "deep" / "er" / f"{i}.png")
    assert (len(opened(tmp_path / "flat")), opened(tmp_path / "flat").labels) == (3, None)
    assert (len(opened(tmp_path / "nested")), opened(tmp_path / "nested").labels) == (6, None)


def test_the_val_split_is_numbered_by_the_training_classes(tmp_path):
    for split, names in (("train", "abc"), ("val", "ac")):
        for name in names:
            put(tmp_path / split / name / "x.png")
    val = opened(tmp_path, split="test")
    assert val.labels.tolist() == [0, 2]
    assert val.classes == ["a", "b", "c"]
    put(tmp_path / "val" / "z" / "x.png")
    assert "'z'" in refusal(tmp_path, split="test")


def test_a_folder_without_splits_has_no_test_split(tmp_path):
    from contrastneg.data.sources import NoSuchSplit

    put(tmp_path / "a" / "x.png")
    with pytest.raises(NoSuchSplit):
        opened(tmp_path, split="test")


def test_stable_ids_survive_subsets_and_limits_are_balanced_and_nested(tmp_path):
    from contrastneg.data.sources import limit_images

    for name, count in {"a": 10, "b": 10, "c": 2}.items():
        for i in range(count):
            put(tmp_path / name / f"{i}.png")
    source = opened(tmp_path)
    part = source.subset(torch.tensor([20, 3, 11]))
    assert part.image_id.tolist() == [20, 3, 11]
    assert part.subset(torch.tensor([2])).image_id.tolist() == [11]
    assert part.name_of(0) == source.name_of(20)
    small, large = limit_images(source, 6), limit_images(source, 12)
    assert small.labels.bincount().tolist() == [2, 2, 2]
    assert large.labels.bincount().tolist() == [5, 5, 2]
    assert set(small.image_id.tolist()) < set(large.image_id.tolist())


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_sets_pickle_and_read_the_same_in_another_copy(tmp_path, kind):
    source = opened(make(tmp_path, kind))
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.read(3), source.read(3))
    assert copy.name_of(3) == source.name_of(3)


def make(root, kind, count=6):
    """A set of two classes, of one kind."""
    if kind == "folder":
        for i in range(count):
            put(root / "ab"[i % 2] / f"{i}.png", png(10 * i))
        return root
    if kind == "tar":
        with tarfile.open(root / "x.tar", "w") as tar:
            for i in range(count):
                add(tar, f"{'ab'[i % 2]}/{i}.png", png(10 * i))
        return root / "x.tar"
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": png(10 * i), "path": f"{i}.png"} for i in range(count)]
    pq.write_table(pa.table({"image": rows, "label": [i % 2 for i in range(count)]}), root / "x.parquet")
    return root / "x.parquet"


def add(tar, name, data):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def spawned_epoch(address):
    """Positions that a spawned loader delivers (a module-level function, as spawn needs)."""
    from contrastneg import Views
    from contrastneg.data.module import StreamedEvaluation

    loader = torch.utils.data.DataLoader(
        StreamedEvaluation(opened(address), Views(size=8)), batch_size=2, num_workers=1, multiprocessing_context="spawn"
    )
    return torch.cat([position for position, _ in loader]).tolist()


def test_loader_processes_may_be_spawned(tmp_path):
    assert spawned_epoch(make(tmp_path, "folder")) == list(range(6))


# -- tables -------------------------------------------------------------------------------------------------------


def test_parquet_takes_pictures_labels_columns_and_class_names(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}, "img": {"_type": "Image"}}
    table = pa.table(
        {
            "img": [{"bytes": png(10 * i), "path": None} for i in range(4)],
            "label": [0, 1, 1, 0],
            "place": [5, 6, 7, 8],
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "train.parquet")
    pq.write_table(table.slice(0, 1), tmp_path / "test.parquet")
    train, test = opened(tmp_path), opened(tmp_path, split="test")
    assert (len(train), len(test)) == (4, 1)
    assert train.classes == ["cat", "dog"]
    assert train.labels.tolist() == [0, 1, 1, 0]
    assert [int(v) for v in train.columns["place"]] == [5, 6, 7, 8]
    assert [int(train.read(i)[0, 0, 0]) for i in range(4)] == [0, 10, 20, 30]


def test_a_label_without_a_class_name_is_refused_with_both_numbers(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"label": {"_type": "ClassLabel", "names": ["a", "b", "c", "d"]}, "img": {"_type": "Image"}}
    rows = [{"bytes": png(), "path": None} for _ in range(4)]
    table = pa.table({"img": rows, "label": [0, 1, 2, 5]})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
        tmp_path / "x.parquet",
    )
    assert "label 5 is outside its 4 classes" in refusal(tmp_path / "x.parquet")


def test_cifar_opens_from_parquet_in_both_splits(shared):
    address = shared / "data" / "cifar10"
    train, test = opened(address), opened(address, split="test")
    assert (len(train), len(test), len(train.classes)) == (50_000, 10_000, 10)
    assert train.classes == test.classes
    assert train.labels.bincount().tolist() == [5000] * 10
    assert train.subset(torch.arange(0, 50_000, 5000)).load().shape == (10, 3, 32, 32)


# -- archives -----------------------------------------------------------------------------------------------------


def test_a_tar_of_class_folders_is_labelled_by_them(shared):
    source = opened(shared / "data" / "imagenet-sample.tar")
    assert (len(source), len(source.classes)) == (48, 48)
    assert all(source.read(i).shape[0] == 3 for i in range(0, 48, 6))
    assert source.uniform_size is None


def test_webdataset_shards_by_braces_give_labels_and_columns(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"x-{shard:03}.tar", "w") as tar:
            for i in range(3):
                key = f"{shard}{i}"
                add(tar, f"{key}.png", png(10 * i))
                add(tar, f"{key}.cls", str((shard + i) % 2).encode())
                add(tar, f"{key}.json", json.dumps({"place": 10 * shard + i}).encode())
    source = opened(tmp_path / "x-{000..001}.tar")
    assert len(source) == 6
    assert source.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert [int(v) for v in source.columns["place"]] == [0, 1, 2, 10, 11, 12]
    assert [int(source.read(i)[0, 0, 0]) for i in range(6)] == [0, 10, 20] * 2


def test_compressed_archives_are_refused_with_what_to_do(tmp_path):
    put(tmp_path / "x.tar.xz", b"\xfd7zXZ\x00")
    assert "unpack" in refusal(tmp_path / "x.tar.xz")


# -- names --------------------------------------------------------------------------------------------------------


def test_unknown_addresses_are_answered_with_what_there_is(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nothing")
    assert "cifar10" in refusal("cifar01")
    put(tmp_path / "empty" / "notes.txt", b"no pictures")
    assert "picture" in refusal(tmp_path / "empty")


def test_public_sets_that_are_not_there_and_cannot_be_fetched_are_one_line(tmp_path):
    assert "imagenet" in refusal("imagenet", root=tmp_path)


def test_fashion_mnist_reads_from_its_files(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        head = (0x00000803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(np.array(head, ">i4").tobytes() + pixels.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            np.array((0x00000801, count), ">i4").tobytes() + labels.tobytes()
        )
    source = opened("fashion-mnist", root=tmp_path, channels=1)
    assert len(source) == 60_000
    assert source.read(3).shape == (1, 28, 28)
    assert len(source.classes) == 10


def test_the_embedded_set_opens_by_name():
    train, test = opened("shapes"), opened("shapes", split="test")
    assert (len(train), len(test)) == (10_000, 2_000)
    assert train.classes == test.classes
