"""Bootstrap intervals are those of resampled images."""

import numpy as np
import pytest
import torch


def resampled(values, count=20_000):
    """Means of plain resamples, one index at a time."""
    draws = np.random.default_rng(0)
    return values[draws.integers(0, len(values), (count, len(values)))].mean(axis=1)


def test_the_interval_of_a_share_is_that_of_resampled_answers():
    from contrastneg.evaluate.intervals import interval_of_mean

    right = torch.arange(400) % 5 == 0
    low, high = interval_of_mean(right.float())
    expected = np.percentile(resampled(right.double().numpy()), [2.5, 97.5])
    assert np.allclose([low, high], expected, atol=1 / 400)
    assert low < 0.2 < high


def test_a_share_of_none_or_all_has_no_width():
    from contrastneg.evaluate.intervals import interval_of_mean

    assert interval_of_mean(torch.zeros(10)) == (0, 0)
    assert interval_of_mean(torch.ones(10)) == (1, 1)


def test_the_interval_of_a_mean_of_numbers_is_that_of_resampled_ones():
    from contrastneg.evaluate.intervals import interval_of_mean

    values = torch.rand(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 2
    found = interval_of_mean(values)
    width = np.subtract(*np.percentile(resampled(values.numpy()), [97.5, 2.5]))
    assert np.allclose(found, np.percentile(resampled(values.numpy()), [2.5, 97.5]), atol=0.08 * width)
    assert interval_of_mean(values) == found
    assert interval_of_mean(values, seed=1) != found


def test_what_both_runs_find_hard_cancels_in_a_paired_difference():
    from contrastneg.evaluate.intervals import interval_of_mean, paired_difference

    first = (torch.arange(500) % 2).float()
    second = first.clone()
    second[:20] = 1
    points, interval = paired_difference(second, first)
    assert points == pytest.approx(10 / 500)
    apart = [interval_of_mean(values) for values in (first, second)]
    assert interval.low > 0
    assert interval.high - interval.low < 0.5 * (apart[0].high - apart[0].low)
    assert paired_difference(first, first) == (0, (0, 0))


def test_nothing_has_no_interval():
    from contrastneg.evaluate.intervals import interval_of_mean, paired_difference

    with pytest.raises(ValueError, match="at least one value"):
        interval_of_mean(torch.ones(0))
    with pytest.raises(ValueError, match="got 0 and 0"):
        paired_difference(torch.ones(0), torch.ones(0))


def test_images_of_a_group_are_drawn_together():
    from contrastneg.evaluate.intervals import interval_of_mean

    values = (torch.arange(300) // 3 % 5 == 0).double()  # a hundred groups of three with one answer each
    group = torch.arange(300) // 3
    together = interval_of_mean(values, group=group)
    assert np.allclose(together, interval_of_mean(values[::3]), atol=0.015)  # as many witnesses as there are groups
    apart = interval_of_mean(values)
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    uneven = torch.cat([torch.zeros(50, dtype=torch.long), torch.arange(1, 251)])
    draws = np.random.default_rng(0)
    members = [values.numpy()[uneven.numpy() == each] for each in range(251)]
    means = [np.concatenate([members[i] for i in draws.integers(0, 251, 251)]).mean() for _ in range(2000)]
    found = interval_of_mean(values, group=uneven)
    width = np.subtract(*np.percentile(means, [97.5, 2.5]))
    assert np.allclose(found, np.percentile(means, [2.5, 97.5]), atol=0.12 * width)
