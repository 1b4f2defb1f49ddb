"""Folders of pictures, beyond the plain cases of test_sources.py."""

import io
import os

import pytest
from PIL import Image


def put(*paths):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())


def opened(address, **options):
    from contrastneg.data.sources import open_source

    return open_source(str(address), **options)


def test_empty_class_folders_are_noted_and_hidden_ones_counted(tmp_path):
    put(tmp_path / "a" / "x.png", tmp_path / "c" / "x.PNG", tmp_path / ".ipynb_checkpoints" / "x.png")
    (tmp_path / "b").mkdir()
    source = opened(tmp_path)
    assert (source.classes, source.labels.tolist()) == (["a", "c"], [0, 1])
    assert source.ignored == {"hidden": 1}
    assert source.notes == ("1 folders without pictures are no classes: b",)


def test_pictures_beside_folders_make_a_set_unlabelled_unless_labels_are_asked_for(tmp_path):
    from contrastneg.data.sources import AddressError

    put(tmp_path / "loose.png", tmp_path / "a" / "x.png", tmp_path / "b" / "x.png")
    assert opened(tmp_path).labels is None
    assert "1 pictures lie beside 2 folders" in opened(tmp_path).notes[0]
    asked = opened(tmp_path, labels=True)
    assert sorted(asked.labels.tolist()) == [-1, 0, 1]
    put(tmp_path / "flat" / "x.png")
    with pytest.raises(AddressError, match="one folder per class"):
        opened(tmp_path / "flat", labels=True)
    put(tmp_path / "classes" / "a" / "x.png")
    assert opened(tmp_path / "classes", labels=False).labels is None


def test_a_class_named_train_is_a_class(tmp_path):
    put(*(tmp_path / name / "x.png" for name in ("bus", "train", "tram")))
    assert opened(tmp_path).classes == ["bus", "train", "tram"]


def test_val_is_preferred_to_test_and_other_folders_beside_splits_are_counted(tmp_path):
    put(*(tmp_path / split / "a" / f"{split}.png" for split in ("train", "val", "test", "extra")))
    source = opened(tmp_path, split="test")
    assert [source.name_of(i) for i in range(len(source))] == [str(tmp_path / "val" / "a" / "val.png")]
    assert source.ignored == {"in test/": 1, "in extra/": 1}


def test_an_evaluation_folder_with_one_split_takes_the_training_classes(tmp_path):
    put(tmp_path / "a" / "x.png", tmp_path / "c" / "x.png")
    source = opened(tmp_path, split="test", classes=["a", "b", "c"])
    assert (source.split, source.labels.tolist(), source.classes) == ("train", [0, 2], ["a", "b", "c"])


def test_stable_ids_follow_the_sorted_paths_whatever_the_order_on_disk(tmp_path):
    put(*(tmp_path / name for name in ("a-b/x.png", "a/y.png", "a/x.png", "a/z/w.png")))
    source = opened(tmp_path)
    names = [os.path.relpath(source.name_of(i), tmp_path) for i in range(4)]
    assert names == ["a/x.png", "a/y.png", "a/z/w.png", "a-b/x.png"]
    assert source.image_id.tolist() == [0, 1, 2, 3]
    assert source.labels.tolist() == [0, 0, 0, 1]


def test_links_are_followed_but_not_in_circles(tmp_path):
    from contrastneg.data.sources import AddressError

    put(tmp_path / "store" / "x.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").symlink_to(tmp_path / "store")
    assert opened(tmp_path / "set").classes == ["a"]
    (tmp_path / "store" / "back").symlink_to(tmp_path / "set")
    with pytest.raises(AddressError, match="links back"):
        opened(tmp_path / "set")
