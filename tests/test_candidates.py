"""Shares of own-image and same-class candidates against a comparison of every pair."""

import math

import pytest
import torch


@pytest.mark.parametrize("seed", range(5))
def test_shares_equal_a_count_over_all_pairs(seed):
    from contrastneg.candidates import own_share, same_class_share

    generator = torch.Generator().manual_seed(seed)
    query_id = torch.randperm(40, generator=generator)[:9]
    key_id = torch.randint(-1, 40, (25,), generator=generator)
    labels = torch.randint(-1, 3, (40,), generator=generator)

    own = (query_id[:, None] == key_id[None]) & (key_id >= 0)
    assert own_share(query_id, key_id) == pytest.approx(own.float().mean().item())

    key_label = torch.where(key_id >= 0, labels[key_id.clamp(min=0)], -1)
    known = (labels[query_id][:, None] >= 0) & (key_label[None] >= 0) & ~own
    same = known & (labels[query_id][:, None] == key_label[None])
    assert same_class_share(query_id, key_id, labels) == pytest.approx(same.sum().item() / known.sum().item())


def test_unfilled_keys_and_unknown_labels_are_nobodys_own_and_no_class():
    from contrastneg.candidates import own_share, same_class_share

    ids, empty = torch.arange(4), torch.full((6,), -1)
    assert own_share(ids, empty) == 0.0
    assert math.isnan(same_class_share(ids, torch.arange(4), torch.full((4,), -1)))


def test_with_ten_equal_classes_a_tenth_of_the_candidates_are_of_the_querys_class():
    from contrastneg.candidates import same_class_share

    labels = torch.arange(1000) % 10
    share = same_class_share(torch.arange(100), torch.arange(100, 1000), labels)
    assert share == pytest.approx(0.1)
