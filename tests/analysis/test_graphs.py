"""PageRank and hops by dense matrices and breadth-first loops, and graphs whose answer is known."""

import numpy as np
import pytest
import torch
from clouds import cloud, mean_error, ratio_error, unit, with_another

from contrastneg.analysis import rank_band, same_class_by_hop, same_class_by_pagerank


def dense(x, k):
    """Law of a step in the graph of nearest images."""
    cosine = unit(x) @ unit(x).T
    np.fill_diagonal(cosine, -2)
    move = np.zeros_like(cosine)
    for i, row in enumerate(cosine):
        move[i, np.argsort(-row)[:k]] = 1 / k
    return move


def test_the_curve_is_that_of_a_dense_power_iteration():
    x, label, _ = cloud()
    table = same_class_by_pagerank(x, label, neighbours=4, follow=0.7, steps=5)
    move, asked = dense(x, 4), with_another(label)
    windows = list(zip(table["first"], table["last"], strict=True))
    reached, false = (np.zeros((len(asked), len(windows))) for _ in range(2))
    for place, i in enumerate(asked):
        start = np.eye(40)[i]
        law = start
        for _ in range(5):
            law = 0.3 * start + 0.7 * move.T @ law
        law[i] = 0
        order = [j for j in np.argsort(-law.round(12), kind="stable") if law[j] > 0]
        for window, (first, last) in enumerate(windows):
            inside = order[first - 1 : last]
            reached[place, window], false[place, window] = len(inside), sum(int(label[j] == label[i]) for j in inside)
    for window, row in enumerate(table.itertuples()):
        assert row.reached == pytest.approx(reached[:, window].mean())
        assert (row.rate, row.rate_se) == pytest.approx(ratio_error(false[:, window], reached[:, window]))
    base = np.mean([(label == label[i]).sum() - 1 for i in asked]) / 39
    assert table.base_rate[0] == pytest.approx(base)
    assert table[["lift", "lift_se"]].to_numpy() == pytest.approx(table[["rate", "rate_se"]].to_numpy() / base)


def test_hops_are_those_of_a_breadth_first_search():
    x, label, _ = cloud()
    table = same_class_by_hop(x, label, neighbours=3, hops=4)
    move, asked = dense(x, 3), with_another(label)
    reached, false, recall = (np.zeros((len(asked), 4)) for _ in range(3))
    for place, i in enumerate(asked):
        seen, front = {i}, {i}
        of_class = {j for j in range(40) if j != i and label[j] == label[i]}
        for h in range(4):
            front = {int(j) for z in front for j in np.flatnonzero(move[z])} - seen
            seen |= front
            reached[place, h], false[place, h] = len(front), len(front & of_class)
            recall[place, h] = len(front & of_class) / len(of_class)
    for h, row in enumerate(table.itertuples()):
        assert row.hop == h + 1
        assert row.reached == pytest.approx(reached[:, h].mean())
        assert (row.rate, row.rate_se) == pytest.approx(ratio_error(false[:, h], reached[:, h]))
        assert (row.recall, row.recall_se) == pytest.approx(mean_error(recall[:, h]))


def test_classes_that_are_apart_never_meet_another():
    noise = 0.05 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    x, label = torch.eye(4).repeat_interleave(10, dim=0) + noise, torch.arange(4).repeat_interleave(10)
    by_rank, by_hop = same_class_by_pagerank(x, label, neighbours=3), same_class_by_hop(x, label, neighbours=3, hops=9)
    assert set(by_rank.rate) == set(by_hop.rate) == {1.0}
    assert by_hop.recall.sum() <= 1
    assert by_hop.reached[0] == 3
    assert by_rank.reached.sum() == pytest.approx(by_hop.reached.sum())
    assert rank_band(by_rank)["rank"].isna().all()


def test_labels_that_say_nothing_have_the_base_rate_at_every_rank_and_hop():
    draws = torch.Generator().manual_seed(1)
    x, label = torch.randn(400, 8, generator=draws), torch.randint(4, (400,), generator=draws)
    for table in (same_class_by_pagerank(x, label, neighbours=5), same_class_by_hop(x, label, neighbours=5)):
        wide = table[table.reached > 3]
        assert ((wide.lift - 1).abs() < 4.5 * wide.lift_se).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: same_class_by_pagerank(x, y, follow=1.0), "follow is 1.0"),
        (lambda x, y: same_class_by_pagerank(x, y, steps=0), "steps is "),
        (lambda x, y: same_class_by_hop(x, y, neighbours=40), "neighbours is 40 but there are 39"),
        (lambda x, y: same_class_by_hop(x, y, neighbours=0), "neighbours is "),
        (lambda x, y: same_class_by_hop(x, y, hops=0), "hops is "),
        (lambda x, y: same_class_by_hop(x, None), "labels is None"),
    ],
)
def test_numbers_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(*cloud()[:2])
