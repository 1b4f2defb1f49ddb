"""Standard errors over queries: the textbook's for means, linearised for ratios."""

import pytest
import torch

from contrastneg.analysis.errors import clustered_error, mean, ratio


def test_the_error_of_a_mean_is_the_standard_deviation_over_the_root_of_the_number():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    value, error = mean(values)
    assert float(value) == 4
    assert float(error) == pytest.approx((38 / 3) ** 0.5 / 2)  # squares 9 + 4 + 0 + 25


def test_a_ratio_is_that_of_sums_with_the_spread_that_repeated_samples_show():
    draws = torch.Generator().manual_seed(0)
    whole = torch.rand(300, 2000, generator=draws).double() + 0.5
    part = whole * (0.3 + 0.2 * torch.randn(300, 2000, generator=draws).double())
    values, errors = ratio(part, whole)
    assert float(values[0]) == pytest.approx(float(part[:, 0].sum() / whole[:, 0].sum()))
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.05)


def test_a_ratio_to_the_same_whole_is_a_mean_with_its_error():
    part = torch.rand(9, 3, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(ratio(part, torch.full((1, 3), 5.0)), mean(part / 5), strict=True):
        torch.testing.assert_close(found, expected)


def test_nothing_to_divide_by_and_a_single_query_give_nan():
    value, _ = ratio(torch.zeros(3), torch.zeros(3))
    _, error = mean(torch.ones(1))
    assert clustered_error(torch.ones(1)).isnan()
    assert value.isnan()
    assert error.isnan()
