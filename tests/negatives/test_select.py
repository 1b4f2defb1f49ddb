"""Uniform subsets: how many, which, and with what weight."""

import math

import pytest
import torch
from torch.testing import assert_close


def table(n_keys=12, removed=(), seed=0, queries=4):
    from contrastneg.negatives import Negatives

    x = torch.randn(queries + n_keys, 6, generator=torch.Generator().manual_seed(seed))
    x = torch.nn.functional.normalize(x, dim=1)
    negatives = Negatives.of(
        x[:queries], x[:queries], x[queries:], query_id=torch.arange(queries), key_id=torch.arange(100, 100 + n_keys)
    )
    mask = torch.zeros(queries, n_keys, dtype=torch.bool)
    for row, column in removed:
        mask[row, column] = True
    return negatives.removed(mask)


def clock(step=0):
    from contrastneg.negatives import Clock

    return Clock(step, 100, 0.0, 0)


@pytest.mark.parametrize("count", [1, 5, 12, 50])
def test_exactly_the_count_is_kept_or_all_there_are(count):
    from contrastneg.negatives import UniformSubset

    before = table(removed=[(0, column) for column in range(9)])
    after = UniformSubset(count)(before, clock())
    assert after.kept.sum(1).tolist() == [min(count, 3), *[min(count, 12)] * 3]
    assert not (after.kept & ~before.kept).any()


def test_each_candidate_is_kept_equally_often():
    from contrastneg.negatives import UniformSubset

    hits = sum(UniformSubset(3)(table(queries=8), clock(step)).kept.sum(0) for step in range(300))
    expected = 300 * 8 * 3 / 12
    chi_square = ((hits - expected) ** 2 / expected).sum() / (1 - 3 / 12)
    assert chi_square < 31.3  # 0.1 % of samples with 11 degrees of freedom exceed it


def test_the_kept_are_as_similar_as_all_on_average():
    from contrastneg.negatives import UniformSubset

    before, off = table(queries=100, removed=[(row, column) for row in range(100) for column in (2, 7)]), []
    average = before.similarity.where(before.kept, 0).sum(1) / 10
    for step in range(10):
        kept = UniformSubset(3)(before, clock(step)).kept
        off.append(before.similarity.where(kept, 0).sum(1) / 3 - average)
    off = torch.cat(off)
    assert abs(off.mean()) < 4.5 * off.std() / math.sqrt(len(off))
    assert off.std() > 0.1


def test_mass_is_preserved_by_default_and_left_alone_when_plain():
    from contrastneg.negatives import UniformSubset

    before = table(removed=[(1, 0), (1, 1)])
    kept_mass = UniformSubset(4)(before, clock()).log_weight.exp().sum(1)
    assert_close(kept_mass, torch.tensor([12.0, 10.0, 12.0, 12.0]))
    assert UniformSubset(4, mass="plain")(before, clock()).log_weight.exp().sum(1).tolist() == [4.0] * 4


def test_the_expected_sum_over_kept_candidates_is_that_over_all():
    from contrastneg.negatives import UniformSubset

    before = table()
    total = before.similarity.exp().sum(1)
    sums = []
    for step in range(2000):
        after = UniformSubset(4)(before, clock(step))
        sums.append((after.similarity + after.log_weight).exp().sum(1))
    assert_close(torch.stack(sums).mean(0), total, rtol=0.02, atol=0)


def test_the_law_of_the_draw_is_recorded():
    from contrastneg.negatives import UniformSubset

    after = UniformSubset(4)(table(), clock())
    assert_close(after.log_prob[after.kept], torch.full((16,), math.log(4 / 12)))
    assert (after.log_prob[~after.kept] == -math.inf).all()


def test_a_row_with_nothing_left_stays_without_candidates_and_its_loss_is_zero():
    from contrastneg.losses import info_nce
    from contrastneg.negatives import UniformSubset

    after = UniformSubset(4)(table(removed=[(2, column) for column in range(12)]), clock())
    assert after.kept.sum(1).tolist() == [4, 4, 0, 4]
    loss = info_nce(after.positive_similarity, after.similarity, after.log_weight, temperature=0.1)
    assert loss[2] == 0
    assert loss.isfinite().all()


def test_the_same_step_draws_the_same_subset_and_the_next_another():
    from contrastneg.negatives import UniformSubset

    subset = UniformSubset(4)
    assert torch.equal(subset(table(), clock(1)).kept, subset(table(), clock(1)).kept)
    assert not torch.equal(subset(table(), clock(1)).kept, subset(table(), clock(2)).kept)


def test_the_count_may_follow_a_schedule():
    from contrastneg.negatives import UniformSubset
    from contrastneg.schedules import Linear

    subset = UniformSubset(Linear(2.0, 10.0))
    assert [int(subset(table(), clock(step)).kept.sum(1)[0]) for step in (0, 50, 100)] == [2, 6, 10]


def test_a_count_below_one_is_refused():
    from contrastneg.negatives import UniformSubset

    with pytest.raises(ValueError, match="UniformSubset.count is 0"):
        UniformSubset(0)
