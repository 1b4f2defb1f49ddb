"""Which sets a run trains and is scored on."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from opened import opened, paint
from PIL import Image


def test_class_folders_with_a_val_split_are_scored_on_it_by_the_training_classes(tmp_path):
    for split, names in (("train", "abc"), ("val", "ac")):
        for name in names:
            paint(tmp_path / split / name, 4)
    sets = opened(tmp_path)
    assert (len(sets.train), len(sets.bank), len(sets.queries)) == (12, 12, 8)
    assert sets.queries.classes == ["a", "b", "c"]
    assert sets.queries.labels.unique().tolist() == [0, 2]


def test_without_a_test_split_a_tenth_is_asked_about_and_the_rest_answers(tmp_path):
    for name in "ab":
        paint(tmp_path / name, 20)
    sets = opened(tmp_path)
    assert (len(sets.train), len(sets.bank), len(sets.queries)) == (40, 36, 4)
    assert not set(sets.bank.image_id.tolist()) & set(sets.queries.image_id.tolist())
    assert any("10th labelled image" in note for note in sets.notes)


def test_a_limited_set_or_one_with_bad_images_is_parted_all_the_same(tmp_path):
    for name in "ab":
        paint(tmp_path / name, 20)
    (tmp_path / "a" / "bad.png").write_bytes(b"")
    sets = opened(tmp_path, "--on-bad-image", "skip", "--limit-images", 30)
    assert (len(sets.train), len(sets.bank), len(sets.queries)) == (30, 27, 3)
    assert not set(sets.bank.image_id.tolist()) & set(sets.queries.image_id.tolist())


def test_images_that_must_be_in_memory_are_decoded_where_bad_ones_are_to_be_skipped(tmp_path, monkeypatch):
    from contrastneg.data import scan

    monkeypatch.setattr(scan, "DECODED_PIXELS", 0)  # as of a large set: headers only
    for name in "ab":
        paint(tmp_path / name, 20, side=40)
        file = tmp_path / name / "03.png"
        data = bytearray(file.read_bytes())
        data[60:90] = bytes(30)  # damage between a good header and a good end
        file.write_bytes(data)
    sets = opened(tmp_path, "--on-bad-image", "skip", "--loading", "memory")
    assert sets.loading == "memory"
    held = {int(index) for part in (sets.train, sets.bank, sets.queries) for index in part.image_id}
    assert not held & {i for i in range(40) if sets.train.reader.name_of(i).endswith("/03.png")}
    assert len(sets.train.load()) == len(sets.train) == 38
    assert any("left out" in note and "03.png" in note for note in sets.notes)


def test_without_labels_nothing_is_scored_unless_another_set_is_given(tmp_path):
    paint(tmp_path / "flat", 12)
    for split in ("train", "val"):
        for name in "ab":
            paint(tmp_path / "labelled" / split / name, 5)
    alone = opened(tmp_path / "flat")
    assert alone.bank is None
    assert alone.queries is None
    with_val = opened(tmp_path / "flat", "--val", tmp_path / "labelled")
    assert (len(with_val.train), len(with_val.bank), len(with_val.queries)) == (12, 10, 10)
    with pytest.raises(ValueError, match="has no labels"):
        opened(tmp_path / "flat", "--val", tmp_path / "flat")


def test_folders_declared_unlabelled_are_no_classes(tmp_path):
    for name in "ab":
        paint(tmp_path / name, 5)
    assert opened(tmp_path, "--unlabelled").train.labels is None


def test_a_limit_is_balanced_and_the_bank_is_limited_with_the_data(tmp_path):
    for split in ("train", "val"):
        for name in "ab":
            paint(tmp_path / split / name, 10)
    sets = opened(tmp_path, "--limit-images", 8)
    assert sets.train.labels.bincount().tolist() == [4, 4]
    assert sets.bank is sets.train
    assert len(sets.queries) == 20
    note = next(note for note in sets.notes if "limited to 8 of 20 images" in note)
    assert "equally many of each class (the one use of labels before scoring)" in note
    assert "scores learn from these images only, too" in note
    assert not any("limited" in note for note in opened(tmp_path, "--limit-images", 20).notes)


def test_a_limit_leaves_another_bank_whole_and_says_how_unlabelled_images_were_drawn(tmp_path):
    paint(tmp_path / "flat", 12)
    for split in ("train", "val"):
        for name in "ab":
            paint(tmp_path / "labelled" / split / name, 5)
    sets = opened(tmp_path / "flat", "--val", tmp_path / "labelled", "--limit-images", 6)
    assert (len(sets.train), len(sets.bank)) == (6, 10)
    assert [note for note in sets.notes if "limited" in note] == ["limited to 6 of 12 images, at random"]


def test_equal_small_images_are_kept_in_memory_and_mixed_sizes_are_streamed(tmp_path):
    paint(tmp_path / "equal", 6)
    paint(tmp_path / "mixed", 3)
    Image.new("RGB", (30, 12)).save(tmp_path / "mixed" / "wide.png")
    assert opened(tmp_path / "equal").loading == "memory"
    assert opened(tmp_path / "equal", "--loading", "stream").loading == "stream"
    assert opened(tmp_path / "mixed").loading == "stream"
    with pytest.raises(ValueError, match="differ in size: use stream or auto"):
        opened(tmp_path / "mixed", "--loading", "memory")


def test_holding_out_is_the_same_every_time_and_another_with_another_seed(tmp_path):
    from contrastneg.data.opening import hold_out
    from contrastneg.data.sources import in_memory_set

    labels = torch.arange(60) % 3
    labels[:10] = -1
    pictures = in_memory_set(torch.zeros(60, 3, 4, 4, dtype=torch.uint8), labels, name="x")
    first, again, other = (hold_out(pictures, seed)[1].image_id.tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert min(first) >= 10


@pytest.mark.parametrize("pictures", [1, 2])
def test_a_class_of_a_single_picture_is_never_asked_about(tmp_path, pictures):
    for name in "abcdefghijkl":
        paint(tmp_path / name, 1)
    paint(tmp_path / "m", pictures)
    sets = opened(tmp_path)
    if pictures == 1:
        assert (sets.bank, sets.queries) == (None, None)
        assert any("every class has a single labelled picture" in note for note in sets.notes)
    else:
        assert (len(sets.bank), sets.queries.labels.tolist()) == (13, [12])
        assert not any("not among the answering ones" in note for note in sets.notes)


def test_images_whose_class_no_answering_image_has_are_counted(tmp_path):
    for name in "abcd":
        paint(tmp_path / "train" / name, 3)
        paint(tmp_path / "val" / name, 2)
    told = [note for note in opened(tmp_path, "--limit-images", 3).notes if "answering" in note]
    assert told == ["the classes of 2 of 8 asked images are not among the answering ones"]


def test_bad_images_are_counted_and_a_few_are_named_once_per_split(tmp_path):
    for split in ("train", "val"):
        for name in "ab":
            paint(tmp_path / split / name, 4)
            for i in range(40):
                (tmp_path / split / name / f"bad{i:02}.png").write_bytes(b"")
    sets = opened(tmp_path, "--on-bad-image", "skip")
    assert len(sets.bad) == 160
    notes = [note for note in sets.notes if "cannot be read" in note]
    assert [note.partition(" cannot")[0] for note in notes] == [
        f"80 pictures of {sets.train.name} {split}" for split in ("train", "test")
    ]
    assert all(note.count(".png (") == 3 and note.endswith("and 77 more") for note in notes)
    assert not any(".png" in line for line in sets.lines)
    assert len(sets.lines) == 6


def test_a_single_folder_is_opened_without_labels_and_the_note_reaches_the_card_once(tmp_path):
    for name in "ab":
        paint(tmp_path / "images" / name, 5)
    sets = opened(tmp_path)
    assert (sets.bank, sets.queries) == (None, None)
    assert sum("to take the 2 folders in it for classes" in note for note in sets.notes) == 1
    assert any("no labels: the encoder is not scored" in note for note in sets.notes)


def parquet(folder, count, bad=()):
    """A Parquet file of pictures in two classes, some of which cannot be read."""
    data = io.BytesIO()
    Image.new("RGB", (12, 12), (100, 0, 0)).save(data, "PNG")
    rows = [{"bytes": b"" if i in bad else data.getvalue(), "path": None} for i in range(count)]
    folder.mkdir(exist_ok=True)
    labels = [i % 2 for i in range(count)]
    pq.write_table(pa.table({"image": rows, "label": labels}), folder / "train.parquet", row_group_size=10)
    return folder


@pytest.fixture
def looked_at(monkeypatch):
    """Rows whose picture was opened."""
    from contrastneg.data.tables import ParquetReader

    rows, plain = set(), ParquetReader.open

    def noting(reader, index):
        rows.add(index)
        return plain(reader, index)

    monkeypatch.setattr(ParquetReader, "open", noting)
    return rows


def test_of_a_limited_set_only_the_chosen_pictures_are_looked_at_the_same_ones_as_of_all(tmp_path, looked_at):
    from contrastneg.data.sources import limit_images, open_source

    folder = parquet(tmp_path / "set", 60)
    chosen = limit_images(open_source(str(folder)), 12).image_id.tolist()
    assert not looked_at  # labels alone choose
    strange = set(range(60)) - set(chosen)
    parquet(folder, 60, bad=strange)
    sets = opened(folder, "--limit-images", 12, "--views.size", 12)
    assert sets.train.image_id.tolist() == chosen
    assert looked_at == set(chosen)
    opened(folder, "--limit-images", 12)  # the size of the views is theirs, too
    assert looked_at == set(chosen)
    assert sets.train.labels.bincount().tolist() == [6, 6]
    assert "to pretrain on: 12 usable of 12 pictures found (each decoded)" in sets.lines
    assert "limited to these of 60 pictures; the others were not looked at" in sets.lines


def test_a_chosen_picture_that_cannot_be_read_makes_place_for_the_next_in_turn(tmp_path, looked_at):
    from contrastneg.data.sources import limit_images, open_source

    folder = parquet(tmp_path / "set", 60)
    thirteen = limit_images(open_source(str(folder)), 13).image_id.tolist()
    twelve = limit_images(open_source(str(folder)), 12).image_id.tolist()
    parquet(folder, 60, bad=twelve[:1])
    sets = opened(folder, "--limit-images", 12, "--views.size", 12, "--on-bad-image", "skip")
    assert sets.train.image_id.tolist() == [row for row in thirteen if row != twelve[0]]
    assert [name for name, _ in sets.bad] == [f"{folder}/train.parquet row {twelve[0]}"]
    alone = limit_images(open_source(str(folder)), 1).image_id.tolist()
    parquet(folder, 60, bad=alone)  # all that is chosen at first
    assert len(opened(folder, "--limit-images", 1, "--views.size", 12, "--on-bad-image", "skip").train) == 1
    with pytest.raises(ValueError, match="1 of 1 picture cannot be read"):
        opened(folder, "--limit-images", 1, "--views.size", 12)


def test_limits_of_an_evaluation_are_drawn_before_any_picture_is_looked_at(tmp_path, looked_at):
    from contrastneg.data.opening import hold_out, open_labelled
    from contrastneg.data.sources import limit_images, open_source
    from contrastneg.evaluate.settings import Evaluate

    folder = parquet(tmp_path / "set", 60)
    bank, queries = hold_out(open_source(str(folder)), 0)
    data = open_labelled(Evaluate("run"), str(folder), 3, most=8, most_asked=4)
    assert data.bank.image_id.tolist() == limit_images(bank, 8).image_id.tolist()
    assert data.queries.image_id.tolist() == limit_images(queries, 4).image_id.tolist()
    assert looked_at == {*data.bank.image_id.tolist(), *data.queries.image_id.tolist()}
    assert "8 of 54 training images are used, as equally many of each class as possible" in data.notes


def test_the_images_that_answer_are_not_asked_about_even_where_they_are_named_to_test_on(tmp_path):
    from contrastneg.data.opening import open_labelled
    from contrastneg.evaluate.settings import Evaluate

    folder = tmp_path / "set"
    for name in "ab":
        paint(folder / name, 20)
    for test in (None, str(folder), f"{folder}/../set/"):
        data = open_labelled(Evaluate("run"), str(folder), 3, test=test)
        assert (len(data.bank), len(data.queries)) == (36, 4)
        assert not set(data.bank.image_id.tolist()) & set(data.queries.image_id.tolist())
        assert any("every 10th labelled image" in note for note in data.notes)


def test_the_training_split_is_the_set_itself_by_whatever_address(tmp_path):
    from contrastneg.data.opening import open_labelled
    from contrastneg.evaluate.settings import Evaluate

    folder = tmp_path / "set"
    for name in "ab":
        paint(folder / "train" / name, 20)
    (tmp_path / "link").symlink_to(folder / "train")
    for other in (f"{folder}/train", f"{tmp_path}/link"):
        data = open_labelled(Evaluate("run"), str(folder), 3, test=other)
        assert (len(data.bank), len(data.queries)) == (36, 4)
        sets = opened(folder, "--val", other)
        assert (len(sets.bank), len(sets.queries)) == (36, 4)


@pytest.mark.parametrize("in_memory", [True, False])
def test_equally_long_splits_of_tables_stay_two_sets_and_a_link_is_the_table_itself(tmp_path, monkeypatch, in_memory):
    from contrastneg.data import tables
    from contrastneg.data.opening import open_labelled
    from contrastneg.evaluate.settings import Evaluate

    if not in_memory:
        monkeypatch.setattr(tables, "IN_MEMORY", 0)
    settings = Evaluate("run", root=tmp_path / "root")
    parquet(tmp_path / "set", 20)
    train = next((tmp_path / "set").glob("*train*"))
    train.with_name(train.name.replace("train", "test")).write_bytes(train.read_bytes())
    data = open_labelled(settings, str(tmp_path / "set"), 3)
    assert (len(data.bank), len(data.queries)) == (20, 20)
    (tmp_path / "link.parquet").symlink_to(train)
    data = open_labelled(settings, str(train), 3, test=str(tmp_path / "link.parquet"))
    assert (len(data.bank), len(data.queries)) == (18, 2)
    if in_memory:  # rows that are read from the disk as they are asked for do not say of which file they are
        data = open_labelled(settings, str(tmp_path / "set"), 3, test=str(train))
        assert (len(data.bank), len(data.queries)) == (18, 2)


def test_a_test_split_that_links_to_the_training_pictures_is_no_other_set(tmp_path):
    from contrastneg.data.opening import open_labelled
    from contrastneg.evaluate.settings import Evaluate

    for name in "ab":
        paint(tmp_path / "set" / "train" / name, 20)
    (tmp_path / "set" / "val").symlink_to(tmp_path / "set" / "train")
    data = open_labelled(Evaluate("run"), str(tmp_path / "set"), 3)
    assert (len(data.bank), len(data.queries)) == (36, 4)
    sets = opened(tmp_path / "set")
    assert (len(sets.bank), len(sets.queries)) == (36, 4)
    (note,) = [note for note in sets.notes if note.startswith("no test images")]
    assert "all of them were pretrained on" in note
    paint(tmp_path / "flat", 3)
    sets = opened(tmp_path / "flat", "--val", tmp_path / "set")
    assert (len(sets.bank), len(sets.queries)) == (36, 4)
    (note,) = [note for note in sets.notes if note.startswith("no test images")]
    assert "if some of the same pictures were pretrained on" in note


def test_links_to_some_of_the_training_pictures_are_another_set(tmp_path):
    from contrastneg.data.opening import same_pictures
    from contrastneg.data.sources import open_source

    paint(tmp_path / "one", 4)
    paint(tmp_path / "other", 4)
    for i in (0, 3):
        (tmp_path / "other" / f"{i:02}.png").unlink()
        (tmp_path / "other" / f"{i:02}.png").symlink_to(tmp_path / "one" / f"{i:02}.png")
    one, other = (open_source(str(tmp_path / name)) for name in ("one", "other"))
    assert not same_pictures(one, other)
    (tmp_path / "all").symlink_to(tmp_path / "one")
    assert same_pictures(one, open_source(str(tmp_path / "all")))


def test_a_folder_of_the_name_of_a_known_set_is_another_set(tmp_path, monkeypatch):
    from contrastneg.data.opening import same_pictures
    from contrastneg.data.sources import open_source

    for name in "ab":
        paint(tmp_path / "shapes" / name, 2)
    monkeypatch.chdir(tmp_path)
    assert not same_pictures(open_source("shapes"), open_source("./shapes"))


def test_as_many_other_pictures_are_another_set(tmp_path):
    from contrastneg.data.opening import open_labelled
    from contrastneg.evaluate.settings import Evaluate

    for folder in ("one", "other"):
        for name in "ab":
            paint(tmp_path / folder / name, 20)
    data = open_labelled(Evaluate("run"), str(tmp_path / "one"), 3, test=str(tmp_path / "other"))
    assert (len(data.bank), len(data.queries)) == (40, 40)


def test_a_set_to_test_on_of_which_no_picture_has_a_label_is_refused(tmp_path, monkeypatch):
    from contrastneg.data import opening
    from contrastneg.evaluate.settings import Evaluate

    for name in "ab":
        paint(tmp_path / "set" / name, 20)
        paint(tmp_path / "other" / name, 3)
    real = opening.open_source

    def unknown(address, **settings):
        found = real(address, **settings)
        if "other" in address:
            found.labels.fill_(-1)
        return found

    monkeypatch.setattr(opening, "open_source", unknown)
    with pytest.raises(ValueError, match="test .*other has no labels: give a labelled set to ask about"):
        opening.open_labelled(Evaluate("run"), str(tmp_path / "set"), 3, test=str(tmp_path / "other"))
