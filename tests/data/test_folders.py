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
    assert source.notes == ("1 folder without pictures is no class: b",)


def test_pictures_beside_folders_make_a_set_unlabelled_unless_labels_are_asked_for(tmp_path):
    from contrastneg.data.sources import AddressError

    put(tmp_path / "loose.png", tmp_path / "a" / "x.png", tmp_path / "b" / "x.png")
    assert opened(tmp_path).labels is None
    assert "1 picture lies beside 2 folders" in opened(tmp_path).notes[0]
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
    assert opened(tmp_path).ignored == {"in test/": 1, "in extra/": 1}


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

    put(tmp_path / "store" / "x.png", tmp_path / "set" / "b" / "x.png")
    (tmp_path / "set" / "a").symlink_to(tmp_path / "store")
    assert opened(tmp_path / "set").classes == ["a", "b"]
    (tmp_path / "store" / "back").symlink_to(tmp_path / "set")
    with pytest.raises(AddressError, match="links back"):
        opened(tmp_path / "set")


def test_a_single_folder_is_no_class_and_the_folder_of_classes_in_it_is_named(tmp_path):
    put(*(tmp_path / "set" / "images" / name / f"{i}.png" for name in "abc" for i in range(2)))
    wrapped = opened(tmp_path / "set")
    assert (wrapped.labels, wrapped.classes, len(wrapped)) == (None, None, 6)
    inner = tmp_path / "set" / "images"
    assert f"(give {inner} to take the 3 folders in it for classes)" in wrapped.notes[0]
    assert "'images', which is as good as none" in wrapped.notes[0]
    assert opened(inner).classes == ["a", "b", "c"]
    put(tmp_path / "one" / "images" / "x.png")
    assert "give" not in opened(tmp_path / "one").notes[0]
    put(tmp_path / "set" / "images" / "loose.png")  # then the inner folder has no classes either
    assert "give" not in opened(tmp_path / "set").notes[0]
    assert opened(tmp_path / "one", labels=True).classes == ["images"]


def test_splits_of_one_class_have_no_labels_but_a_test_split_may_show_one_of_several(tmp_path):
    put(*(tmp_path / "one" / split / "x" / "0.png" for split in ("train", "val")))
    assert [opened(tmp_path / "one", split=split).labels for split in ("train", "test")] == [None, None]
    put(*(tmp_path / "two" / split for split in ("train/a/0.png", "train/b/0.png", "val/b/0.png")))
    assert opened(tmp_path / "two", split="test").labels.tolist() == [1]
    put(tmp_path / "evaluation" / "b" / "0.png")
    assert opened(tmp_path / "evaluation", split="test", classes=["a", "b"]).labels.tolist() == [1]


def test_a_pipe_with_the_name_of_a_picture_is_not_waited_for(tmp_path):
    put(tmp_path / "a" / "x.png", tmp_path / "b" / "x.png")
    os.mkfifo(tmp_path / "a" / "y.png")
    source = opened(tmp_path)
    assert len(source) == 2
    assert source.ignored == {"no regular file": 1}


def test_what_is_ignored_is_counted_with_its_own_split(tmp_path):
    put(*(tmp_path / "top" / split / name / "0.png" for split in ("train", "val") for name in "ab"))
    for place in ("notes.txt", "train/a/1.txt", "val/a/1.txt", "val/b/2.txt", "val/.hidden"):
        (tmp_path / "top" / place).write_text("")
    (tmp_path / "top" / "val" / "none").mkdir()
    for address in (tmp_path / "top", tmp_path):  # also where a folder lies around the splits
        train, test = opened(address), opened(address, split="test")
        assert train.ignored == {"not a picture (.txt)": 2}
        assert test.ignored == {"not a picture (.txt)": 2, "hidden": 1}
        assert train.notes == ()
        assert test.notes[0].startswith("1 folder without pictures is no class: ")


@pytest.mark.parametrize("name", ["trailing", "with space", "größe 日本", "[red]{1..2}", "sets.tar", "sets.zip"])
def test_folders_of_any_name_are_opened_with_and_without_a_slash_and_through_links(tmp_path, monkeypatch, name):
    put(*(tmp_path / name / kind / "0 ü.png" for kind in "ab"))
    (tmp_path / "link").symlink_to(tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for address in (tmp_path / name, f"{tmp_path / name}/", tmp_path / "link", f"~/{name}/"):
        assert opened(address).classes == ["a", "b"]


def test_addresses_that_are_no_set_are_refused_in_one_line_that_says_what_they_are(tmp_path):
    from contrastneg.data.sources import AddressError

    put(tmp_path / "x.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts" / "inner").mkdir(parents=True)
    (tmp_path / "texts" / "a.csv").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for address, words in {
        "": "the address of the data is empty",
        f"{tmp_path}/x.png": f"single picture: give the folder it lies in \\({tmp_path}\\)",
        f"{tmp_path}/texts/a.csv": "a file of no known kind",
        f"{tmp_path}/empty": "empty is empty: give a folder with",
        f"{tmp_path}/texts": r"holds no pictures \(met 1 other file \(.csv\), 1 folder\)",
        f"{tmp_path}/loop": "does not exist",
        f"{tmp_path}/{'n' * 300}": "cannot be looked at .File name too long",
        "~no-such-user/x": "cannot be looked at .Could not determine home",
    }.items():
        with pytest.raises(AddressError, match=words) as refusal:
            opened(address)
        assert "\n" not in str(refusal.value)
