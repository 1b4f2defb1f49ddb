"""The embedded set: balanced, repeatable, with nuisance that defeats raw pixels and known ground truth."""

import pytest
import torch


@pytest.fixture(scope="module")
def train():
    from contrastneg.data.shapes import shapes

    return shapes("train")


@pytest.fixture(scope="module")
def test():
    from contrastneg.data.shapes import shapes

    return shapes("test")


def test_classes_are_balanced_and_grouped_in_families(train):
    counts = train.labels.bincount()
    assert counts.tolist() == [625] * 16
    family = torch.as_tensor(train.columns["family"])
    for label in range(16):
        assert family[train.labels == label].unique().tolist() == [label // 4]


def test_the_same_seed_draws_the_same_pictures_and_splits_share_none(train, test):
    from contrastneg.data.shapes import shapes

    assert torch.equal(shapes("train").pixels, train.pixels)
    assert not torch.equal(shapes("train", seed=1).pixels, train.pixels)
    rows = {row.numpy().tobytes() for row in train.pixels}
    assert not any(row.numpy().tobytes() in rows for row in test.pixels)


def test_near_duplicates_name_their_source_and_are_near(train):
    source = torch.as_tensor(train.columns["duplicate_of"])
    copies = (source >= 0).nonzero().flatten()
    assert 0.01 < len(copies) / len(train) < 0.1
    assert (train.labels[copies] == train.labels[source[copies]]).all()
    near = (train.pixels[copies].float() - train.pixels[source[copies]].float()).abs().mean()
    far = (train.pixels[copies].float() - train.pixels[source[copies].roll(1)].float()).abs().mean()
    assert near < far / 4


def test_frames_of_a_sequence_show_one_object_on_one_ground(train):
    sequence, location = (torch.as_tensor(train.columns[name]) for name in ("sequence", "location"))
    for number in sequence.unique()[:20].tolist():
        frames = sequence == number
        assert len(train.labels[frames].unique()) == 1
        assert len(location[frames].unique()) == 1


def test_the_ground_says_nothing_about_the_class(train):
    location = torch.as_tensor(train.columns["location"])
    hits = sum(int(train.labels[location == place].bincount().max()) for place in location.unique().tolist())
    assert hits / len(train) < 0.12  # the most frequent class of each ground; 1 / 16 if they were exactly even


def test_raw_pixels_do_poorly(train, test):
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.knn import knn_score

    mean = train.pixels.float().mean(0)
    bank, queries = (Features((part.pixels.float() - mean).flatten(1), part.labels) for part in (train, test))
    score = knn_score(bank, Features(queries.x[:500], queries.labels[:500]), k=20, temperature=0.07, num_classes=16)
    assert 1 / 16 < score.top1 < 0.4
