"""The embedded set: balanced, repeatable, with nuisance that defeats raw pixels and known ground truth."""

import pytest
import torch

COLUMNS = ("location", "sequence", "duplicate_of")


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
    from contrastneg.data.shapes import render_shapes, shapes

    assert torch.equal(render_shapes("train")[0], train.pixels)
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


def test_every_class_is_its_own_mirror_image():
    from contrastneg.data.outlines import OUTLINES

    x, y = torch.rand(2, 5000, generator=torch.Generator().manual_seed(0)).mul(3).sub(1.5).unbind(0)
    for members in OUTLINES.values():
        for name, outline in members.items():
            torch.testing.assert_close(outline(x, y), outline(-x, y), rtol=0, atol=1e-5, msg=name)


def test_no_two_classes_share_an_outline_and_edges_are_one_pixel_wide():
    from contrastneg.data.outlines import OUTLINES

    axis = torch.linspace(-1.3, 1.3, 201)
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    distance = torch.stack([outline(x, y) for members in OUTLINES.values() for outline in members.values()])
    inside = (distance < 0).flatten(1).float()
    overlap = inside @ inside.T / (inside.sum(1)[:, None] + inside.sum(1) - inside @ inside.T)
    assert overlap.fill_diagonal_(0).max() < 0.9
    slope = torch.stack(torch.gradient(distance, spacing=(axis, axis), dim=(1, 2))).norm(dim=0)
    assert slope[distance.abs() < 0.02].median().sub(1).abs() < 0.05  # a distance grows by one per unit


def test_the_object_drifts_slowly_within_a_sequence_and_lies_anywhere_between_them():
    from contrastneg.data.shapes import draw_scenes

    scenes = draw_scenes("train", 0)
    originals = scenes.duplicate_of < 0
    place = scenes.place[originals].view(-1, 4, 2)
    assert place.diff(dim=1).norm(dim=2).max() <= 1.5
    assert place.mean(1).std(0).min() > 3  # pixels


@pytest.mark.parametrize(("split", "count"), [("train", 10_000), ("test", 2_000)])
def test_columns_speak_of_originals_of_their_own_split(split, count, request):
    source = request.getfixturevalue(split)
    label, location, sequence, original = (
        torch.as_tensor(values) for values in (source.labels, *(source.columns[name] for name in COLUMNS))
    )
    assert len(source) == len(original) == count
    copies = (original >= 0).nonzero().flatten()
    named = original[copies]
    assert (original[named] == -1).all()  # of an original, and so never of itself
    assert len(named.unique()) == len(named)
    for column in (label, location, sequence):
        assert torch.equal(column[copies], column[named])
    assert (sequence[original < 0].bincount() == 4).all()
    assert location.unique().tolist() == list(range(8))
    pixels = source.pixels.float()
    distance = (pixels[copies] - pixels[named]).abs().mean(dim=(1, 2, 3))
    assert distance.max() < 0.1 * 255
