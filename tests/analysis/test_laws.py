"""Laws of sampling: expectations by loops, closed forms, and chains by their whole matrix."""

import math

import numpy as np
import pytest
import torch
from clouds import cloud, mean_error, unit, with_another

from contrastneg.analysis import chain_mixing, exponent_sweep, hardness_bins, k_occurrence, partition_variance

T = 0.3


def test_expectations_are_those_of_a_loop_over_queries():
    x, label, _ = cloud()
    degree = k_occurrence(x, neighbours=5).occurrence
    table = exponent_sweep(x, label, {"degree": degree}, exponents=(-0.5, 0.75))
    cosine, f = unit(x) @ unit(x).T, np.maximum(degree.to_numpy(), 1.0)
    for row in table.itertuples():
        false, similar = [], []
        for i in with_another(label):
            law = np.array([0.0 if j == i else f[j] ** row.exponent for j in range(40)])
            law /= law.sum()
            false.append(sum(law[j] for j in range(40) if label[j] == label[i]))
            similar.append(sum(law[j] * cosine[i, j] for j in range(40) if j != i))
        assert (row.false_rate, row.false_rate_se) == pytest.approx(mean_error(false))
        assert (row.similarity, row.similarity_se) == pytest.approx(mean_error(similar), abs=1e-6)
        law = f**row.exponent / (f**row.exponent).sum()
        assert row.effective == pytest.approx(1 / (law**2).sum())
        shares = [law[np.asarray(label) == c].sum() for c in range(4)]
        assert row.classes_drawn == pytest.approx(math.exp(-sum(s * math.log(s) for s in shares)))


def test_the_false_rate_of_class_sizes_is_the_closed_form_and_rises_with_the_exponent():
    sizes = torch.tensor([400, 300, 200, 60, 40])
    label = torch.arange(5).repeat_interleave(sizes)
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    table = exponent_sweep(x, label, exponents=(-1.0, 0.0, 1.0))
    n = sizes.double()
    expected = [float((n / 1000 * n ** (1 + a)).sum() / (n ** (1 + a)).sum()) for a in (-1.0, 0.0, 1.0)]
    assert expected == pytest.approx([0.2, 0.2952, 0.3363], abs=1e-3)  # of the survey's toy: 0.200, 0.295, 0.336
    assert table.false_rate.tolist() == pytest.approx(expected, abs=0.004)  # the query itself is no candidate
    assert table.popularity.unique().tolist() == ["class size"]
    assert table.classes_drawn[0] == pytest.approx(5)
    assert table.false_rate[1] == pytest.approx(hardness_bins(x, label).base_rate[0])


def test_the_scale_of_popularity_changes_nothing_above_the_floor():
    x, label, _ = cloud()
    f = torch.arange(40) + 1.0
    table = exponent_sweep(x, label, {"one": f, "ten": 10 * f})
    one, ten = (table[table.popularity == name].drop(columns="popularity") for name in ("one", "ten"))
    assert np.allclose(one.select_dtypes("number"), ten.select_dtypes("number"))


@pytest.mark.parametrize("popularity", [[1.0] * 39, [-1.0] * 40, [math.nan] * 40])
def test_popularity_must_be_a_number_for_each_image(popularity):
    with pytest.raises(ValueError, match="^popularity has "):
        exponent_sweep(*cloud()[:2], {"f": popularity})


def test_the_variance_of_weighted_draws_is_that_of_the_formula_and_of_a_loop():
    x, label, _ = cloud()
    table = partition_variance(x, label, tilts=(0.0, 0.5, 1.0), negatives=20, draws=400, temperature=T)
    cosine = unit(x) @ unit(x).T
    for row in table.itertuples():
        exact, effective, false = [], [], []
        for i in with_another(label):
            e = np.array([0.0 if j == i else math.exp(cosine[i, j] / T) for j in range(40)])
            p = e / e.sum()
            law = np.where(p > 0, p**row.tilt, 0)
            law /= law.sum()
            kept = law > 0
            exact.append(((p[kept] ** 2 / law[kept]).sum() - 1) / 20)
            effective.append(math.exp(-(law[kept] * np.log(law[kept])).sum()))
            false.append(sum(law[j] for j in range(40) if j != i and label[j] == label[i]))
        assert (row.variance, row.variance_se) == pytest.approx(mean_error(exact), abs=1e-9)
        assert (row.effective, row.effective_se) == pytest.approx(mean_error(effective), rel=1e-5)
        assert (row.false_rate, row.false_rate_se) == pytest.approx(mean_error(false), rel=1e-5)
        assert row.log_variance == pytest.approx(row.variance, rel=0.2, abs=1e-9)  # the delta method
    assert table.log_bias[0] == pytest.approx(-table.variance[0] / 2, rel=0.3)


def test_draws_from_the_law_of_positives_have_no_variance_and_more_false_negatives():
    table = partition_variance(*cloud()[:2], temperature=T, draws=8)
    assert table.variance.is_monotonic_decreasing
    assert table.variance.iloc[-1] == pytest.approx(0, abs=1e-12)
    assert table.log_variance.iloc[-1] == pytest.approx(0, abs=1e-12)
    assert table.false_rate.is_monotonic_increasing


def test_equal_candidates_have_no_variance_under_any_law():
    table = partition_variance(torch.eye(12) - 1 / 12, negatives=4, draws=4)
    assert table.variance.tolist() == pytest.approx([0] * 5, abs=1e-9)
    assert table.effective.tolist() == pytest.approx([11] * 5)
    assert table.false_rate.isna().all()


def test_a_chain_is_that_of_a_matrix_made_entry_by_entry():
    x = cloud(images=12)[0]
    table = chain_mixing(x, tilts=(0.5,), moves=(0, 3, 200), neighbours=3, temperature=T, queries=12)
    cosine = unit(x) @ unit(x).T
    near = [set(sorted((j for j in range(12) if j != i), key=lambda j: -cosine[i, j])[:3]) for i in range(12)]
    g = np.array([[0.5 / 12 + (0.5 / 3 if y in near[z] else 0) for y in range(12)] for z in range(12)])
    distances, rates = [], []
    for i in range(12):
        target = np.array([0.0 if j == i else math.exp(0.5 * cosine[i, j] / T) for j in range(12)])
        target /= target.sum()
        move = np.zeros((12, 12))
        for a in range(12):
            for b in range(12):
                if a != b and i not in (a, b):
                    move[a, b] = g[a, b] * min(1, target[b] * g[b, a] / (target[a] * g[a, b]))
            move[a, a] = 1 - move[a].sum()
        assert np.allclose(target @ move, target)
        rates.append(sum(target[a] * (1 - move[a, a]) for a in range(12)))
        law = np.where(np.arange(12) == i, 0, 1 / 11)
        courses = []
        for m in (0, 3, 200):
            courses.append(np.abs(law @ np.linalg.matrix_power(move, m) - target).sum() / 2)
        distances.append(courses)
    for row, values in zip(table.itertuples(), np.array(distances).T, strict=True):
        assert (row.total_variation, row.total_variation_se) == pytest.approx(mean_error(values), abs=1e-9)
        assert (row.acceptance, row.acceptance_se) == pytest.approx(mean_error(rates))
    assert table.total_variation.iloc[-1] < 1e-6


def test_a_chain_for_the_uniform_law_begins_where_it_ends():
    table = chain_mixing(cloud()[0], tilts=(0.0,), moves=(0, 5), neighbours=4, images=30)
    assert table.total_variation.tolist() == pytest.approx([0, 0], abs=1e-12)
    assert (table.images == 30).all()


def test_a_longer_chain_is_never_further_away_and_a_steeper_law_is():
    table = chain_mixing(cloud()[0], moves=(0, 1, 5, 20), neighbours=4)
    for _, course in table.groupby("tilt"):
        assert (course.total_variation.diff().dropna() <= 1e-12).all()
    assert table[table.moves == 0].total_variation.is_monotonic_increasing


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: partition_variance(x, negatives=0), "negatives is "),
        (lambda x: partition_variance(x, draws=1), "draws is 1"),
        (lambda x: partition_variance(x, temperature=0.0), "temperature is "),
        (lambda x: chain_mixing(x, moves=(-1,)), "moves is "),
        (lambda x: chain_mixing(x, neighbours=0), "neighbours is "),
        (lambda x: chain_mixing(x, images=0), "images is "),
        (lambda x: exponent_sweep(x, None), "labels is None"),
        (lambda x: exponent_sweep(x, torch.arange(40) % 2, floor=0.0), "floor is "),
    ],
)
def test_numbers_out_of_range_are_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        call(cloud()[0])
    assert "\n" not in str(refused.value)
