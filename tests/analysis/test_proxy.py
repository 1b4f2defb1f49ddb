"""The proxy task: softmax by loops, draws by counting all of them, equal laws by 1 / (K + 1)."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from clouds import at_cosine, cloud, mean_error, ranked, unit

from contrastneg.analysis import matching_probability, positive_wins, proxy_accuracy
from contrastneg.analysis.proxy import all_beaten


def test_the_curve_is_a_softmax_averaged_rank_by_rank():
    x, _, positive = cloud()
    table = matching_probability(x, positive, temperatures=(0.1, 0.5), ranks=15)
    own, ranking = (unit(x) * unit(positive)).sum(axis=1), ranked(x)
    for temperature in (0.1, 0.5):
        rows = table[table.temperature == temperature]
        weights = np.exp(np.array([[own[i], *(s for s, _ in ranking[i])] for i in range(40)]) / temperature)
        expected = (weights / weights.sum(axis=1, keepdims=True))[:, :16].T
        assert rows["rank"].tolist() == list(range(16))
        for row, values in zip(rows.itertuples(), expected, strict=True):
            assert (row.probability, row.probability_se) == pytest.approx(mean_error(values), rel=1e-6)


def test_the_whole_curve_sums_to_one_and_equal_similarities_make_it_flat():
    x, _, positive = cloud()
    assert matching_probability(x, positive).probability.sum() == pytest.approx(1)
    simplex = torch.eye(21) - 1 / 21
    flat = matching_probability(simplex, simplex.roll(1, dims=0), temperatures=[0.07]).probability
    assert flat.tolist() == pytest.approx([1 / 21] * 21, rel=1e-5)


def test_accuracy_is_that_of_all_draws_without_replacement():
    x, _, _ = cloud(images=8, classes=2)
    own, ranking = np.linspace(-0.5, 0.97, 8), ranked(x)
    table = proxy_accuracy(x, at_cosine(x, own), counts=(1, 3, 7))
    for row in table.itertuples():
        won = []
        for i in range(8):
            draws = list(combinations([s for s, _ in ranking[i]], row.negatives))
            won.append(np.mean([all(s < own[i] for s in draw) for draw in draws]))
        assert (row.accuracy, row.accuracy_se) == pytest.approx(mean_error(won))
        assert row.chance == 1 / (row.negatives + 1)
    assert 0 < table.accuracy[2] < table.accuracy[0] < 1


def test_a_tie_is_no_win_and_a_perfect_positive_always_wins():
    x = torch.eye(6).repeat(2, 1)
    assert proxy_accuracy(x, x, counts=[11]).accuracy[0] == 0
    assert proxy_accuracy(torch.eye(6), torch.eye(6), counts=[5]).accuracy[0] == 1


@pytest.mark.parametrize("pool", [5, 300, 50_000])
def test_equal_laws_win_once_in_k_plus_1(pool):
    counts = sorted({1, 2, 5, pool // 3 + 1, pool})
    chance = all_beaten(torch.arange(pool + 1), pool, counts).mean(dim=0)
    assert chance.tolist() == pytest.approx([1 / (count + 1) for count in counts], rel=1e-6)
    scores = torch.arange(pool).double()
    table = positive_wins(torch.cat([scores - 0.5, scores[-1:] + 1]), scores, counts)
    assert table.probability.tolist() == pytest.approx(table.chance.tolist(), rel=1e-6)


def test_wins_are_those_of_all_draws_without_replacement():
    positive, negative = [0.35, 0.5, 0.95], [0.1, 0.2, 0.3, 0.5, 0.9, 0.4]  # a tie is no win
    table = positive_wins(torch.tensor(positive), torch.tensor(negative), [1, 2, 4, 6])
    for row in table.itertuples():
        draws = list(combinations(negative, row.negatives))
        won = [np.mean([max(draw) < score for draw in draws]) for score in positive]
        assert (row.probability, row.probability_se) == pytest.approx(mean_error(won))
        assert (row.chance, row.positives, row.pool) == (1 / (row.negatives + 1), 3, 6)


def test_draws_of_one_law_win_once_in_k_plus_1_within_the_error():
    draws = torch.Generator().manual_seed(0)
    table = positive_wins(torch.randn(4000, generator=draws), torch.randn(4000, generator=draws), [1, 4, 16])
    assert ((table.probability - table.chance).abs() < 4 * table.probability_se).all()


def test_two_normal_laws_win_as_their_distance_says():
    draws = torch.Generator().manual_seed(0)
    table = positive_wins(torch.randn(20_000, generator=draws) + 1, torch.randn(20_000, generator=draws), [1])
    assert table.probability[0] == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=0.01)  # Phi(1 / sqrt 2)


@pytest.mark.parametrize("counts", [[], [0], [12]])
def test_numbers_of_negatives_that_are_not_there_are_refused(counts):
    with pytest.raises(ValueError, match="^counts is .* but a query has 11 candidates: give 1 to 11"):
        proxy_accuracy(torch.eye(12), torch.eye(12), counts=counts)


def test_without_counts_powers_of_four_and_all_are_taken():
    assert proxy_accuracy(torch.eye(100), torch.eye(100)).negatives.tolist() == [16, 64, 99]
    assert proxy_accuracy(torch.eye(5), torch.eye(5)).negatives.tolist() == [4]
