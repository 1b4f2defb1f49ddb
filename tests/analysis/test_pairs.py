"""Histograms, confusion and rank curves: loops over pairs and closed forms."""

import math

import numpy as np
import pytest
import torch
from clouds import cloud, mean_error, ranked, with_another

from contrastneg.analysis import hard_confusion, rank_band, same_class_by_rank, similarity_histogram


def test_the_histogram_is_that_of_a_loop_over_pairs():
    x, label, _ = cloud()
    table = similarity_histogram(x, label, bins=8)
    asked, ranking = with_another(label), ranked(x)
    for kind, same in (("same class", True), ("different class", False)):
        rows = table[table.pairs == kind]
        pairs = [[s for s, j in ranking[i] if bool(label[j] == label[i]) == same] for i in asked]
        total = sum(map(len, pairs))
        assert rows.share.sum() == pytest.approx(1)
        for row in rows.itertuples():
            inside = [sum(row.left <= s < row.right for s in of_query) for of_query in pairs]
            share = sum(inside) / total
            residual = [a - share * len(of_query) for a, of_query in zip(inside, pairs, strict=True)]
            error = math.sqrt(len(asked) / (len(asked) - 1) * np.square(residual).sum()) / total
            assert (row.share, row.share_se, row.density) == pytest.approx((share, error, share / 0.25))


def test_identical_and_orthogonal_images_fall_into_the_bins_of_1_and_0():
    table = similarity_histogram(torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2), bins=4)
    filled = table[table.share > 0][["pairs", "left", "right", "share"]].values.tolist()
    assert filled == [["same class", 0.5, 1.0, 1.0], ["different class", 0.0, 0.5, 1.0]]


def test_confusion_is_that_of_a_loop_and_carries_the_labels_as_given():
    x, label, _ = cloud()
    named = torch.tensor([7, 3, 11, 40])[label]
    table = hard_confusion(x, named, share=0.2)
    ranking = ranked(x)
    hardest = {i: [int(named[j]) for _, j in ranking[i][:8]] for i in with_another(label)}  # 0.2 of 39 is 7.8
    assert len(table) == 16
    for row in table.itertuples():
        of_class = [i for i in hardest if named[i] == row.query_class]
        shares = [hardest[i].count(row.candidate_class) / 8 for i in of_class]
        assert (row.rate, row.rate_se) == pytest.approx(mean_error(shares), abs=1e-12)
        assert row.class_queries == len(of_class)
        size = int((named == row.candidate_class).sum()) - (row.query_class == row.candidate_class)
        assert (row.base_rate, row.lift) == pytest.approx((size / 39, row.rate / (size / 39)))
    assert table.groupby("query_class").rate.sum().tolist() == pytest.approx([1] * 4)
    assert set(table.hardest) == {8}


def test_classes_in_a_row_are_confused_with_their_neighbours_only():
    angle = torch.tensor([0.0, 0.3, 0.6]).repeat_interleave(5) + torch.arange(15) * 1e-3
    table = hard_confusion(
        torch.stack([angle.cos(), angle.sin()], dim=1), torch.arange(3).repeat_interleave(5), share=0.5
    )
    rate = table.pivot(index="query_class", columns="candidate_class", values="rate").values.tolist()
    assert rate[0] == pytest.approx(
        [4 / 7, 3 / 7, 0]
    )  # the 7 hardest of 14: 4 others of the class, then the next class
    assert rate[2] == pytest.approx([0, 3 / 7, 4 / 7])


def test_the_rank_curve_is_that_of_a_loop_over_ranks():
    x, label, _ = cloud()
    curve = same_class_by_rank(x, label)
    asked, ranking = with_another(label), ranked(x)
    base = np.mean([(label == label[i]).sum() - 1 for i in asked]) / 39
    for row in curve.itertuples():
        inside = [[int(label[j] == label[i]) for _, j in ranking[i][row.first - 1 : row.last]] for i in asked]
        assert (row.rate, row.rate_se) == pytest.approx(mean_error([np.mean(same) for same in inside]))
        assert row.lift == pytest.approx(row.rate / base)


@pytest.mark.parametrize("images", [3, 5, 40, 1000])
def test_windows_take_every_rank_once(images):
    curve = same_class_by_rank(torch.randn(images, 4), torch.arange(images) % 2)
    assert curve["first"].tolist() == [1, *(curve["last"] + 1).tolist()[:-1]]
    assert curve["last"].iloc[-1] == images - 1


def test_the_band_is_found_by_reading_the_curve_from_its_begin():
    x, label, _ = cloud()
    curve, lifts = same_class_by_rank(x, label), (2.0, 1.1, 0.9, 0.0)
    points = list(zip(curve["first"], curve["lift"], strict=True))
    expected = [next((first for first, lift in points if lift < wanted), math.nan) for wanted in lifts]
    assert 1 < expected[1] < expected[2]
    assert rank_band(curve, lifts)["rank"].tolist() == pytest.approx(expected, nan_ok=True)


def test_the_band_begins_where_the_classes_end():
    curve = same_class_by_rank(torch.eye(4).repeat_interleave(10, dim=0), torch.arange(4).repeat_interleave(10))
    assert curve.rate[curve["last"] <= 9].tolist() == pytest.approx([1] * 8)
    band = rank_band(curve, lifts=(2.0, 1.1, 0.0))
    assert band["rank"].tolist()[:2] == [10, 10]
    assert math.isnan(band["rank"][2])
