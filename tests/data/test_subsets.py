"""Limits and class mappings keep stable indices and balance."""

import pytest
import torch


def labelled(*labels):
    from contrastneg.data.sources import in_memory_set

    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return in_memory_set(
        images, torch.tensor(labels), list("abc"), {"row": [f"r{i}" for i in range(len(labels))]}, name="x"
    )


def test_limits_of_every_size_are_nested_and_as_balanced_as_they_can_be():
    from contrastneg.data.sources import limit_images

    source = labelled(*([0] * 9 + [1] * 5 + [2] * 2))
    kept = set()
    for count in range(1, 17):
        part = limit_images(source, count, seed=3)
        assert len(part) == count
        assert kept < set(part.image_id.tolist())
        kept = set(part.image_id.tolist())
        counts, whole = part.labels.bincount(minlength=3), torch.tensor([9, 5, 2])
        assert all(n == total or n >= counts.max() - 1 for n, total in zip(counts, whole, strict=True))
    assert limit_images(source, 99) is source


def test_a_limited_set_keeps_ids_labels_columns_and_pictures_together():
    from contrastneg.data.sources import limit_images

    part = limit_images(labelled(*([0, 1, 2] * 6)), 7)
    for position, index in enumerate(part.image_id.tolist()):
        assert int(part.read(position)[0, 0, 0]) == index
        assert part.columns["row"][position] == f"r{index}"
        assert int(part.labels[position]) == index % 3
    assert part.load()[:, 0, 0, 0].tolist() == part.image_id.tolist()


def test_the_seed_alone_decides_which_are_kept():
    from contrastneg.data.sources import in_memory_set, limit_images

    source = in_memory_set(torch.zeros(100, 3, 2, 2, dtype=torch.uint8), name="x")
    first, again, other = (limit_images(source, 20, seed=seed).image_id for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert set(first.tolist()) < set(limit_images(source, 50, seed=0).image_id.tolist())


def test_unlabelled_pictures_take_turns_as_one_more_class():
    from contrastneg.data.sources import limit_images

    part = limit_images(labelled(*([-1] * 50 + [0] * 5 + [1] * 5)), 9)
    assert sorted(part.labels.tolist()) == [-1] * 3 + [0] * 3 + [1] * 3


def test_a_limit_below_one_is_refused():
    from contrastneg.data.sources import limit_images

    with pytest.raises(ValueError, match="limit_images is 0"):
        limit_images(labelled(0, 1), 0)


def test_labels_are_renumbered_by_name_and_unknown_ones_stay_unknown():
    from contrastneg.data.address import AddressError
    from contrastneg.data.subsets import map_classes

    source = labelled(0, 2, -1)
    mapped = map_classes(source, ["c", "z", "a"])
    assert (mapped.labels.tolist(), mapped.classes) == ([2, 0, -1], ["c", "z", "a"])
    with pytest.raises(AddressError, match="pictures of 'c'.*'a', 'b'"):
        map_classes(source, ["a", "b"])
    assert map_classes(labelled(0, 1), ["a", "b"]).labels.tolist() == [0, 1]  # "c" has no pictures
