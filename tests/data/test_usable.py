"""Which pictures of a set can be used, and which are kept decoded."""

import pickle

import pytest
import torch
from opened import opened, paint


@pytest.fixture
def folder(tmp_path):
    for name in "ab":
        paint(tmp_path / name, 20, level=ord(name))
    return tmp_path


def test_a_scan_that_takes_long_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    from contrastneg import progress

    paint(tmp_path / "flat", 3)
    opened(tmp_path / "flat")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "SAY_EVERY", 0.0)
    opened(tmp_path / "flat")
    assert "looked through 3 of 3 pictures of flat train" in capsys.readouterr().err


@pytest.mark.parametrize("first", ["whole", "empty", "cut", "of another size and cut"])
@pytest.mark.parametrize("channels", [3, 1])
def test_pictures_that_the_scan_decoded_are_not_decoded_again(folder, monkeypatch, first, channels):
    from contrastneg.data.sources import ImageSet, open_source

    picture = folder / "a" / "00.png"
    if first == "of another size and cut":
        paint(folder / "a", 1, side=9)
    if first != "whole":
        picture.write_bytes(b"" if first == "empty" else picture.read_bytes()[:-30])
    fresh = open_source(str(folder), channels=channels)
    sets = opened(folder, "--on_bad_image", "skip", "--method.backbone.in_channels", channels)
    assert (len(sets.bad), sets.loading) == (int(first != "whole"), "memory")
    parts = (sets.train, sets.bank, sets.queries)
    expected = [torch.stack([fresh.read(i) for i in part.image_id.tolist()]) for part in parts]
    monkeypatch.setattr(ImageSet, "read", None)
    assert all(torch.equal(part.load(), pictures) for part, pictures in zip(parts, expected, strict=True))
    assert sets.queries.kept.pixels is sets.train.kept.pixels  # parts of a set hold no copies


def test_a_limited_set_keeps_only_the_chosen_pictures(folder):
    sets = opened(folder, "--limit_images", 6)
    assert len(sets.train.kept.pixels) == 6
    assert torch.equal(sets.train.load(), torch.stack([sets.train.read(i) for i in range(6)]))


def test_pictures_of_several_sizes_are_not_kept_nor_those_beside_them(folder):
    for split in ("train", "val"):
        paint(folder / "set" / split / "a", 20)
        paint(folder / "set" / split / "b", 20)
    assert opened(folder / "set").queries.kept is not None
    paint(folder / "set" / "train" / "b", 1, side=9)
    sets = opened(folder / "set")
    assert (sets.loading, sets.train.kept, sets.queries.kept) == ("stream", None, None)


def test_pictures_to_be_streamed_or_too_many_for_the_memory_are_not_kept_unless_it_is_asked_for(folder, monkeypatch):
    from contrastneg.data import usable

    assert opened(folder, "--loading", "stream").train.kept is None
    monkeypatch.setattr(usable, "MEMORY_LIMIT", 40 * 12 * 12 * 3 - 1)
    sets = opened(folder)
    assert (sets.loading, sets.train.kept) == ("stream", None)
    assert opened(folder, "--loading", "memory").train.kept is not None


def test_of_a_set_without_pictures_none_is_usable_or_kept(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from contrastneg.data.sources import open_source
    from contrastneg.data.usable import usable
    from contrastneg.evaluate.settings import Evaluate

    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "empty.parquet")
    found = usable(open_source(str(tmp_path / "empty.parquet")), Evaluate("run"), whole=False, keep=True)
    assert (len(found.images), found.images.kept) == (0, None)


def test_a_set_with_kept_pictures_pickles(folder):
    train = opened(folder).train
    assert torch.equal(pickle.loads(pickle.dumps(train)).load(), train.load())
