"""Hubs and popular classes: loops over images, scipy's statistics, and a star."""

import math

import numpy as np
import pytest
import torch
from clouds import cloud, ranked, unit
from scipy import stats

from contrastneg.analysis import hubness, k_occurrence, popularity
from contrastneg.analysis.hubness import gini, mixed_binomial


def star(images=12):
    """A hub that is nearest to every other image: they share one direction and are apart in all others."""
    return torch.cat([torch.eye(images)[:1], 0.8 * torch.eye(images)[:1] + 0.6 * torch.eye(images)[1:]])


def test_occurrences_are_those_of_a_loop_over_queries():
    x, _, _ = cloud()
    table = k_occurrence(x, neighbours=5)
    found = [sum(any(j == image for _, j in row[:5]) for row in ranked(x)) for image in range(40)]
    assert table.occurrence.tolist() == found
    assert table.expected.tolist() == pytest.approx([5] * 40)


def test_drawn_queries_alone_count_and_no_image_is_its_own_neighbour():
    x, _, _ = cloud()
    table = k_occurrence(x, neighbours=3, queries=10, seed=4)
    assert table.occurrence.sum() == 30
    assert table.expected.sum() == pytest.approx(30)
    assert set(table.queries) == {10}
    twins = torch.eye(2).repeat_interleave(30, dim=0)  # more equal images than are looked at
    assert k_occurrence(twins, neighbours=2).occurrence.sum() == 120


def test_the_centre_of_a_star_is_everybodys_neighbour():
    table = k_occurrence(star(), neighbours=1)
    assert table.occurrence.tolist() == [11, 1] + [0] * 10  # the first among equals is the hub's own
    values = hubness(star(), neighbours=1).set_index("statistic").value
    assert values["skewness"] == pytest.approx(stats.skew(table.occurrence))
    assert (values["never"], values["largest"]) == (pytest.approx(10 / 12), 11)
    differences = np.abs(np.subtract.outer(table.occurrence.values, table.occurrence.values)).mean()
    assert values["gini"] == pytest.approx(differences / 2 / table.occurrence.mean())


def test_statistics_are_those_of_counts_by_a_loop():
    x, _, _ = cloud()
    counts = np.zeros(40)
    for row in ranked(x):
        counts[[j for _, j in row[:1]]] += 1
    table = hubness(x, neighbours=1).set_index("statistic")
    never = (counts == 0).mean()
    assert 0 < never < 1
    assert table.value["skewness"] == pytest.approx(stats.skew(counts))
    assert table.value["gini"] == pytest.approx(np.abs(np.subtract.outer(counts, counts)).mean() / 2 / counts.mean())
    assert (table.value["never"], table.value["largest"]) == (pytest.approx(never), counts.max())
    assert table.value_se["never"] == pytest.approx(math.sqrt(never * (1 - never) / 40))


def test_a_ring_has_no_hubs():
    angle = 2 * math.pi * torch.arange(16) / 16
    values = hubness(torch.stack([angle.cos(), angle.sin()], dim=1), neighbours=4).set_index("statistic").value
    assert values["largest"] == 4
    assert values["gini"] == pytest.approx(0, abs=1e-12)
    assert math.isnan(values["skewness"])


def test_chance_is_binomial():
    table = hubness(cloud()[0], neighbours=5).set_index("statistic")
    p = 5 / 39
    assert table.chance["skewness"] == pytest.approx((1 - 2 * p) / math.sqrt(39 * p * (1 - p)))
    assert table.chance["never"] == pytest.approx((1 - p) ** 39)


def test_chance_is_met_by_neighbours_taken_at_random():
    law = mixed_binomial(torch.tensor([30] * 1500 + [29] * 500), 0.1)
    draws = torch.rand(2000, 30, generator=torch.Generator().manual_seed(0)) < 0.1
    draws[1500:, 0] = False
    count = draws.sum(dim=1)
    assert float((law * torch.arange(31)).sum()) == pytest.approx(0.1 * 29.75)
    assert gini(count.bincount().double() / 2000) == pytest.approx(gini(law), rel=0.05)
    assert float((count == 0).float().mean()) == pytest.approx(float(law[0]), abs=0.012)


def test_the_error_of_the_skewness_is_the_spread_of_repeated_samples():
    from contrastneg.analysis.hubness import _skewness

    values = torch.rand(1000, 400, generator=torch.Generator().manual_seed(0)).double() ** 2
    found = torch.tensor([_skewness(row) for row in values])
    assert float(found[:, 1].mean()) == pytest.approx(float(found[:, 0].std()), rel=0.1)


def test_popularity_is_the_correlation_of_two_columns():
    x, label, _ = cloud()
    sizes = np.bincount(label)
    received = (unit(x) @ unit(x).T - np.eye(40)).sum(axis=0) / 39
    row = popularity(x, label).iloc[0]
    assert row.correlation == pytest.approx(stats.pearsonr(received, np.log(sizes[label])).statistic)
    assert row.classes_counted == 4
    a, b = (stats.zscore(values) for values in (received, np.log(sizes[label])))
    influence = a * b - row.correlation * (a**2 + b**2) / 2
    squares = [sum(influence[label.numpy() == c]) ** 2 for c in range(4)]
    assert row.correlation_se == pytest.approx(math.sqrt(sum(squares)) / 40)


def test_two_classes_of_identical_images_correlate_perfectly():
    x = torch.cat([torch.eye(2)[:1].repeat(5, 1), torch.eye(2)[1:].repeat(2, 1)])
    row = popularity(x, torch.tensor([0] * 5 + [1] * 2)).iloc[0]
    assert row.correlation == pytest.approx(1)


def test_classes_of_one_size_and_too_many_neighbours_are_refused():
    with pytest.raises(ValueError, match="^labels has classes of one size, 3 images each"):
        popularity(torch.randn(6, 2), torch.tensor([0, 1]).repeat(3))
    with pytest.raises(ValueError, match="^neighbours is 6 but a query has 5 candidates"):
        hubness(torch.randn(6, 2), neighbours=6)
