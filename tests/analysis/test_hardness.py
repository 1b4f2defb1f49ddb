"""Bins of hardness, what they weigh, effective numbers: loops over queries and closed forms."""

import math

import numpy as np
import pytest
import torch
from clouds import cloud, mean_error, ranked, unit, with_another

from contrastneg.analysis import difficulty_shares, effective_negatives, gradient_shares, hardness_bins

EDGES = (0.05, 0.3)
BINS = ((0, 2), (2, 12), (12, 39))  # of 39 candidates: 0.05 is 1.95, 0.3 is 11.7, rounded up


def softmax(logits):
    weights = [math.exp(logit) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def test_bins_are_those_of_a_loop_over_queries():
    x, label, _ = cloud()
    table = hardness_bins(x, label, edges=EDGES)
    ranking, asked = ranked(x), with_another(label)
    base = [sum(int(label[j] == label[i]) for _, j in ranking[i]) / 39 for i in asked]
    assert len(set(base)) > 1
    for (first, last), row in zip(BINS, table.itertuples(), strict=True):
        same = [sum(int(label[j] == label[i]) for _, j in ranking[i][first:last]) for i in asked]
        rates = [count / (last - first) for count in same]
        assert (row.rate, row.rate_se) == pytest.approx(mean_error(rates))
        assert (row.recall, row.recall_se) == pytest.approx(
            mean_error([count / (share * 39) for count, share in zip(same, base, strict=True)])
        )
        assert row.candidates == last - first
        assert row.base_rate == pytest.approx(np.mean(base))
        lift = np.mean(rates) / np.mean(base)
        residual = np.array(rates) - lift * np.array(base)
        assert (row.lift, row.lift_se) == pytest.approx(
            (lift, np.std(residual, ddof=1) / math.sqrt(len(asked)) / np.mean(base))
        )
    assert table.recall.sum() == pytest.approx(1)
    assert table[["lower", "upper"]].values.tolist() == [[0, 0.05], [0.05, 0.3], [0.3, 1]]


def test_classes_apart_fill_the_hardest_bin_with_false_negatives():
    x, label = torch.eye(4).repeat_interleave(10, dim=0) + 0.01 * torch.arange(40)[:, None], torch.arange(4)
    table = hardness_bins(x, label.repeat_interleave(10), edges=(0.1, 9 / 39))
    assert table.candidates.tolist() == [4, 5, 30]
    assert table.rate.tolist() == [1, 1, 0]
    assert table.lift.tolist() == pytest.approx([39 / 9, 39 / 9, 0])
    assert table.recall.tolist() == pytest.approx([4 / 9, 5 / 9, 0])
    assert table.rate_se.tolist() == pytest.approx([0, 0, 0])


def test_labels_that_say_nothing_have_a_lift_of_one_in_every_bin():
    draws = torch.Generator().manual_seed(1)
    x, label = torch.randn(600, 8, generator=draws), torch.randint(5, (600,), generator=draws)
    table = hardness_bins(x, label, edges=(0.05, 0.5))
    assert ((table.lift - 1).abs() < 4 * table.lift_se).all()
    assert (table.lift_se < 0.1).all()


def test_gradient_shares_are_softmax_weights_summed_over_bins():
    x, _, _ = cloud()
    table = gradient_shares(x, temperatures=(0.1, 0.5), edges=EDGES)
    ranking = ranked(x)
    for temperature in (0.1, 0.5):
        rows = table[table.temperature == temperature]
        weights = [softmax([cosine / temperature for cosine, _ in row]) for row in ranking]
        for (first, last), row in zip(BINS, rows.itertuples(), strict=True):
            expected = mean_error([sum(weight[first:last]) for weight in weights])
            assert (row.share, row.share_se) == pytest.approx(expected, rel=1e-6)
        assert rows.share.sum() == pytest.approx(1)


def test_effective_negatives_are_e_to_the_entropy_of_the_weights():
    x, _, _ = cloud()
    table = effective_negatives(x, temperatures=(0.05, 0.5))
    for row in table.itertuples():
        weights = [softmax([cosine / row.temperature for cosine, _ in ranking]) for ranking in ranked(x)]
        expected = mean_error([math.exp(-sum(w * math.log(w) for w in weight)) for weight in weights])
        assert (row.effective, row.effective_se) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_candidates_that_are_all_alike_share_the_gradient_equally(temperature):
    simplex = torch.eye(21) - 1 / 21
    assert effective_negatives(simplex, temperatures=[temperature]).effective[0] == pytest.approx(20, rel=1e-5)
    shares = gradient_shares(simplex, temperatures=[temperature], edges=(0.1, 0.5)).share
    assert shares.tolist() == pytest.approx([0.1, 0.4, 0.5], rel=1e-5)


def test_a_low_temperature_leaves_the_single_nearest():
    twins = torch.eye(10).repeat(2, 1)
    assert effective_negatives(twins, temperatures=[0.01]).effective[0] == pytest.approx(1)
    assert gradient_shares(twins, temperatures=[0.01], edges=(0.05,)).share.tolist() == pytest.approx([1, 0])


def test_false_hard_and_easy_are_counted_as_in_a_loop():
    x, label, positive = cloud()
    table = difficulty_shares(x, label, positive, margin=0.3).set_index("kind")
    own = (unit(x) * unit(positive)).sum(axis=1)
    shares, ranking = [], ranked(x)
    for i in with_another(label):
        false = [label[j] == label[i] for _, j in ranking[i]]
        hard = [label[j] != label[i] and cosine > own[i] - 0.3 for cosine, j in ranking[i]]
        shares.append([sum(false) / 39, sum(hard) / 39, 1 - sum(false) / 39 - sum(hard) / 39])
    for kind, values in zip(("false", "hard", "easy"), np.array(shares, dtype=float).T, strict=True):
        assert (table.share[kind], table.share_se[kind]) == pytest.approx(mean_error(values))
    assert table.share["hard"] > 0


@pytest.mark.parametrize(("margin", "hard"), [(0.5, 0), (1.5, 30 / 39)])
def test_classes_at_right_angles_are_hard_from_a_margin_of_one_on(margin, hard):
    x = torch.eye(4).repeat_interleave(10, dim=0)
    table = difficulty_shares(x, torch.arange(4).repeat_interleave(10), x, margin=margin)
    assert table.share.tolist() == pytest.approx([9 / 39, hard, 30 / 39 - hard])


@pytest.mark.parametrize("edges", [(0.05, 0.05), (0.3, 0.1), (0.01, 0.02), (0.0,), (1.0,)])
def test_bins_without_candidates_are_refused(edges):
    with pytest.raises(ValueError, match="^edges is "):
        gradient_shares(torch.eye(21), edges=edges)


@pytest.mark.parametrize("temperatures", [(), (0.1, 0.0), (-1.0,)])
def test_temperatures_must_be_above_0(temperatures):
    with pytest.raises(ValueError, match="^temperatures is "):
        effective_negatives(torch.eye(5), temperatures=temperatures)


def test_hard_may_be_above_the_median_of_the_querys_class():
    x, label, positive = cloud()
    table = difficulty_shares(x, label, positive, reference="same class").set_index("kind")
    shares, ranking = [], ranked(x)
    for i in with_another(label):
        median = np.median([cosine for cosine, j in ranking[i] if label[j] == label[i]])
        shares.append(sum(label[j] != label[i] and cosine > median for cosine, j in ranking[i]) / 39)
    assert (table.share["hard"], table.share_se["hard"]) == pytest.approx(mean_error(np.array(shares, dtype=float)))
    assert table.margin.isna().all()


def test_an_unknown_reference_is_refused(as_users_call):
    x, label, positive = cloud()
    with pytest.raises(ValueError, match="^reference is 'postive': give 'positive' or 'same class'$"):
        difficulty_shares(x, label, positive, reference="postive")
