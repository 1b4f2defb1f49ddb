"""Margins and what acts above them, by loops, and beside InfoNCE at its own temperature."""

import math

import numpy as np
import pytest
import torch
from clouds import cloud, mean_error, ranked, ratio_error, with_another

from contrastneg.analysis import effective_negatives, margin_shares
from contrastneg.analysis.margins import TEMPERATURES


def test_active_candidates_are_counted_as_in_a_loop():
    x, label, _ = cloud()
    table = margin_shares(x, label, margins=(-0.2, 0.4))
    ranking = ranked(x)
    for row in table.itertuples():
        active, false, of_class = [], [], []
        for i in with_another(label):
            above = [j for s, j in ranking[i] if s > row.margin]
            active.append(len(above))
            false.append(sum(int(label[j] == label[i]) for j in above))
            of_class.append(sum(int(label[j] == label[i]) for _, j in ranking[i]))
        assert (row.active, row.active_se) == pytest.approx(mean_error(active))
        true, others = np.subtract(active, false), 39 - np.array(of_class)
        assert (row.active_false, row.active_false_se) == pytest.approx(ratio_error(false, of_class))
        assert (row.active_true, row.active_true_se) == pytest.approx(ratio_error(true, others))
        assert (row.false_gradient, row.false_gradient_se) == pytest.approx(ratio_error(false, active))
        assert row.base_rate == pytest.approx(np.mean(of_class) / 39)


def test_info_nce_acts_on_as_many_at_the_temperature_that_is_told():
    x, label, _ = cloud(images=200)
    table = margin_shares(x, label, margins=(0.0, 0.3))
    for row in table.itertuples():
        assert TEMPERATURES[0] < row.temperature < TEMPERATURES[-1]
        effective = effective_negatives(x, temperatures=[row.temperature]).effective[0]
        assert effective == pytest.approx(row.active, rel=0.02)
        weights = []
        for i, ranking in enumerate(ranked(x)):
            e = np.array([math.exp(s / row.temperature) for s, _ in ranking])
            weights.append(sum(w for w, (_, j) in zip(e / e.sum(), ranking, strict=True) if label[j] == label[i]))
        assert row.info_nce_false_gradient == pytest.approx(np.mean(weights), rel=0.02)


def test_everything_acts_above_minus_one_and_nothing_above_one():
    x, label, _ = cloud()
    low, high = margin_shares(x, label, margins=(-1.0, 1.0)).itertuples()
    assert (low.active, low.active_false, low.active_true) == (39, 1, 1)
    assert low.false_gradient == pytest.approx(low.base_rate)
    assert (high.active, high.active_false) == (0, 0)
    assert math.isnan(high.false_gradient)
    assert math.isnan(high.temperature)


def test_labels_that_say_nothing_leave_the_base_rate_above_every_margin():
    draws = torch.Generator().manual_seed(1)
    x, label = torch.randn(600, 8, generator=draws), torch.randint(5, (600,), generator=draws)
    table = margin_shares(x, label, margins=(0.0, 0.4))
    assert ((table.false_gradient - table.base_rate).abs() < 4 * table.false_gradient_se).all()


def test_a_margin_must_be_a_cosine():
    with pytest.raises(ValueError, match="^margins has 1.5"):
        margin_shares(*cloud()[:2], margins=(1.5,))
