"""Scores against their formulas."""

import math

import pytest
import torch
from torch.testing import assert_close

from contrastneg.negatives import Negatives, score_of

KINDS = ("anchor", "positive", "sum", "zscore", "loss")


def unit(*shape, seed):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def table(positive=None, query=None):
    query = unit(4, 6, seed=0).requires_grad_() if query is None else query
    positive = unit(4, 6, seed=1) if positive is None else positive
    return Negatives.of(query, positive, unit(30, 6, seed=2), query_id=torch.arange(4), key_id=torch.arange(100, 130))


def test_each_score_is_its_formula():
    negatives = table()
    negatives = negatives.removed(torch.arange(30).expand(4, -1) < 7)
    for i in range(4):
        query, positive = negatives.query[i].detach(), negatives.positive[i]
        row = [float(query @ key) for key in negatives.keys]
        kept = row[7:]
        mean = sum(kept) / len(kept)
        std = math.sqrt(sum((s - mean) ** 2 for s in kept) / len(kept))
        hit = float(query @ positive)
        for j in range(30):
            of_positive = float(positive @ negatives.keys[j])
            expected = {
                "anchor": row[j],
                "positive": of_positive,
                "sum": row[j] + of_positive,
                "zscore": (row[j] - mean) / std,
                "loss": math.log(1 + math.exp((row[j] - hit) / 0.3)),
            }
            for kind, number in expected.items():
                assert float(score_of(negatives, kind, temperature=0.3)[i, j]) == pytest.approx(number, abs=1e-10)


def test_the_sum_ranks_as_the_bisector_of_query_and_positive_does():
    negatives = table()
    bisector = torch.nn.functional.normalize(negatives.query + negatives.positive, dim=1)
    length = (2 + 2 * negatives.positive_similarity).sqrt()
    assert_close(score_of(negatives, "sum"), (length[:, None] * (bisector @ negatives.keys.T)).detach())


def test_all_rank_alike_when_query_and_positive_are_the_same():
    query = unit(4, 6, seed=0)
    negatives = table(positive=query, query=query)
    for kind in KINDS:
        assert torch.equal(score_of(negatives, kind).argsort(1), score_of(negatives, "anchor").argsort(1))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_carry_no_gradient_and_follow_the_order_of_candidates(kind):
    negatives, order = table(), torch.randperm(30, generator=torch.Generator().manual_seed(3))
    score = score_of(negatives, kind)
    assert not score.requires_grad
    mixed = Negatives.of(
        negatives.query,
        negatives.positive,
        negatives.keys[order],
        query_id=negatives.query_id,
        key_id=negatives.key_id[order],
    )
    assert_close(score_of(mixed, kind), score[:, order])


def test_removed_candidates_do_not_move_the_zscore_of_others():
    negatives = table()
    wild = negatives.removed(torch.arange(30).expand(4, -1) == 0)
    similarity = wild.similarity.detach().clone()
    similarity[:, 0] = 1e6
    from dataclasses import replace

    assert_close(score_of(replace(wild, similarity=similarity), "zscore")[:, 1:], score_of(wild, "zscore")[:, 1:])


def test_the_zscore_of_one_candidate_alone_is_zero():
    assert (score_of(table().removed(torch.arange(30).expand(4, -1) > 0), "zscore")[:, 0] == 0).all()
