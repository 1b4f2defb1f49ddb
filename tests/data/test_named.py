"""Public sets by name, without a network."""

import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from torchvision import datasets


def opened(name, root, **options):
    from contrastneg.data.sources import open_source

    return open_source(name, root=root, **options)


@pytest.fixture
def offline(monkeypatch):
    def fail(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", fail)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "fashion-mnist", "imagenet"])
def test_a_set_that_is_neither_there_nor_to_be_had_is_one_line(tmp_path, name, offline):
    from contrastneg.data.sources import AddressError

    with pytest.raises(AddressError, match=f"{name} is not in {tmp_path}") as refusal:
        opened(name, tmp_path)
    assert "\n" not in str(refusal.value)


def test_the_train_split_of_stl10_is_labelled_then_unlabelled_pictures_in_upright_order(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)  # sums of the real files
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 96, 96)).astype(np.uint8)
    for part, rows in (("train", slice(0, 2)), ("unlabeled", slice(2, 5)), ("test", slice(0, 1))):
        pixels[rows].transpose(0, 1, 3, 2).tofile(folder / f"{part}_X.bin")  # column by column
    np.array([1, 10], np.uint8).tofile(folder / "train_y.bin")
    np.array([3], np.uint8).tofile(folder / "test_y.bin")
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    train, test = opened("stl10", tmp_path), opened("stl10", tmp_path, split="test")
    assert torch.equal(train.load(), torch.from_numpy(pixels))
    assert train.labels.tolist() == [0, 9, -1, -1, -1]
    assert (test.labels.tolist(), test.classes) == ([2], list("abcdefghij"))
    assert opened("stl10", tmp_path, labels=False).labels is None


def test_imagenet_is_read_from_class_folders_where_they_lie(tmp_path):
    from PIL import Image

    for split, names in (("train", ["n01", "n02"]), ("val", ["n02"])):
        for name in names:
            (tmp_path / "imagenet" / split / name).mkdir(parents=True)
            Image.new("L", (6, 5)).save(tmp_path / "imagenet" / split / name / "x.JPEG", "JPEG")
    assert opened("imagenet", tmp_path).classes == ["n01", "n02"]
    val = opened("imagenet", tmp_path, split="test")
    assert (val.labels.tolist(), val.read(0).shape) == ([1], (3, 5, 6))


@pytest.mark.parametrize(
    ("typed", "meant"), [("cifar-10", "cifar10"), ("CIFAR100", "cifar100"), ("stl-10", "stl10"), ("shape", "shapes")]
)
def test_a_misspelt_name_is_answered_with_the_nearest(tmp_path, typed, meant):
    from contrastneg.data.sources import AddressError

    with pytest.raises(AddressError, match=f"did you mean {meant}"):
        opened(typed, tmp_path)
