"""Consistency of hardness: loops over queries, the binomial null, encoders that agree and that do not."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from clouds import cloud, ranked, with_another
from scipy import stats

from contrastneg.analysis import consistency_histogram, hardness_agreement, hardness_consistency, hardness_hits


def sphere(images=500, width=300, seed=0):
    return torch.randn(images, width, generator=torch.Generator().manual_seed(seed))


def slow_hits(x, share):
    hits = np.zeros(len(x), dtype=int)
    for row in ranked(x):
        for _, j in row[: math.ceil(share * len(row))]:
            hits[j] += 1
    return hits


def test_hits_are_those_of_a_loop_over_queries():
    x, _, _ = cloud()
    table = hardness_hits(x, share=0.1)
    assert table.hits.tolist() == slow_hits(x, 0.1).tolist()
    assert set(table.trials) == {39}
    assert table.expected.tolist() == pytest.approx([4] * 40)  # 0.1 of 39, rounded up, of every query


def test_with_labels_images_of_the_querys_class_are_no_candidates():
    x, label, _ = cloud()
    hits, expected = np.zeros(40), np.zeros(40)
    for i in with_another(label):
        others = [j for _, j in ranked(x)[i] if label[j] != label[i]]
        taken = math.ceil(0.1 * len(others))
        hits[others[:taken]] += 1
        expected[others] += taken / len(others)
    table = hardness_hits(x, label, share=0.1)
    assert table.hits.tolist() == hits.tolist()
    assert table.expected.tolist() == pytest.approx(expected)
    assert table.trials.tolist() == [int((label != label[j]).sum()) for j in range(40)]


def test_statistics_are_those_of_the_hits_and_of_scipys_binomial():
    x, _, _ = cloud()
    hits, p = slow_hits(x, 0.1), 4 / 39
    table = hardness_consistency(x, share=0.1).set_index("statistic")
    squares = (hits - 39 * p) ** 2 / (39 * p * (1 - p))
    assert table.value["over-dispersion"] == pytest.approx(squares.mean())
    assert table.value_se["over-dispersion"] == pytest.approx(squares.std(ddof=1) / math.sqrt(40))
    low, high = stats.binom.ppf([0.001, 0.999], 39, p)
    assert table.value["above"] == pytest.approx((hits > high).mean())
    assert table.value["below"] == pytest.approx((hits < low).mean())
    assert table.null["above"] == pytest.approx(stats.binom.sf(high, 39, p))
    assert table.null["below"] == pytest.approx(stats.binom.cdf(low - 1, 39, p))
    differences = np.abs(np.subtract.outer(hits, hits)).mean()
    assert table.value["gini"] == pytest.approx(differences / 2 / hits.mean())


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_embeddings_without_structure_give_the_null(labelled, seed):
    label = torch.arange(500) % 10 if labelled else None
    table = hardness_consistency(sphere(seed=seed), label).set_index("statistic")
    assert abs(table.value["over-dispersion"] - 1) < 4 * table.value_se["over-dispersion"] < 0.3
    assert table.value["gini"] == pytest.approx(table.null["gini"], rel=0.1)
    assert table.value["above"] < 0.01
    assert table.value["below"] < 0.01
    histogram = consistency_histogram(sphere(seed=seed), label)
    assert (histogram.observed - histogram.null).abs().max() < 0.05


def test_hubs_are_far_from_the_null():
    hubs = torch.cat([sphere(40), sphere(460) + 0.6])
    table = hardness_consistency(hubs).set_index("statistic")
    assert table.value["over-dispersion"] > 3
    assert table.value["below"] > 0.05


def test_on_a_ring_every_image_is_hard_for_as_many():
    angle = 2 * math.pi * torch.arange(20) / 20
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    assert set(hardness_hits(ring, share=0.2).hits) == {4}
    assert hardness_consistency(ring, share=0.2).value[0] == pytest.approx(0, abs=1e-12)


def test_the_histogram_counts_the_hits_and_its_null_is_the_binomial():
    x, _, _ = cloud()
    table = consistency_histogram(x, share=0.1)
    hits = slow_hits(x, 0.1)
    assert (table.observed * 40).tolist() == pytest.approx(np.bincount(hits, minlength=len(table)).tolist())
    assert table.null.tolist() == pytest.approx(stats.binom.pmf(table.hits, 39, 4 / 39))
    assert table.observed.sum() == pytest.approx(1)
    assert table.null.sum() == pytest.approx(1, abs=2e-6)


def test_agreement_is_counted_as_in_a_loop_over_pairs():
    encoders = [cloud(seed=0)[0], cloud(seed=0)[2], cloud(seed=1)[0]]
    times = np.zeros((40, 40), dtype=int)
    for x in encoders:
        for i, row in enumerate(ranked(x)):
            times[i, [j for _, j in row[:8]]] += 1
    shares = np.stack([[((times[i] == e).sum() - (e == 0)) / 39 for e in range(4)] for i in range(40)])
    table = hardness_agreement(encoders, share=0.2)
    assert table.observed.tolist() == pytest.approx(shares.mean(axis=0))
    assert table.observed_se.tolist() == pytest.approx(shares.std(axis=0, ddof=1) / math.sqrt(40))
    assert table.null.tolist() == pytest.approx(stats.binom.pmf(range(4), 3, 8 / 39))
    assert table.ratio.tolist() == pytest.approx(table.observed / table.null)


def test_an_encoder_agrees_with_itself_and_strangers_give_the_null():
    x = sphere(200)
    twice = hardness_agreement([x, 2 * x], share=0.1)
    assert twice.observed.tolist() == pytest.approx([179 / 199, 0, 20 / 199])
    assert twice.ratio[2] == pytest.approx(199 / 20)
    strangers = hardness_agreement([x, sphere(200, seed=1)], share=0.1)
    assert ((strangers.observed - strangers.null).abs() < 4 * strangers.observed_se).all()
    assert (strangers.observed_se < 0.001).all()


def test_the_size_of_parts_does_not_change_the_agreement(monkeypatch):
    encoders = [cloud(seed=0)[0], cloud(seed=0)[2]]
    whole = hardness_agreement(encoders, queries=25)
    monkeypatch.setattr("contrastneg.analysis.queries.CELLS", 3 * 40)
    pd.testing.assert_frame_equal(hardness_agreement(encoders, queries=25), whole)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_shares_of_nothing_and_of_all_are_refused(share):
    with pytest.raises(ValueError, match="^share is "):
        hardness_consistency(torch.eye(5), share=share)


@pytest.mark.parametrize("lengths", [(5,), (5, 6)])
def test_encoders_of_different_images_are_refused(lengths):
    with pytest.raises(ValueError, match="^encoders has embeddings of "):
        hardness_agreement([torch.eye(length) for length in lengths])
