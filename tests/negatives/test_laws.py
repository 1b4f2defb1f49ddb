"""Draws from a law: how often, with what recorded probability, and what that is good for."""

import math

import pytest
import torch
from torch.testing import assert_close

from contrastneg.negatives import (
    Clock,
    HardnessWeight,
    Negatives,
    RankSubset,
    SamplingCorrection,
    SoftmaxSubset,
    UniformSubset,
    check_pipeline,
    run_stages,
    score_of,
)
from contrastneg.negatives.select import draw_by_law, gumbel_top


def clock(step=0):
    return Clock(step, 100, 0.0, 0)


def unit(*shape, seed):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def table(n_keys=12, rows=400):
    """The same query over and over: each row is a draw."""
    query, positive = unit(1, 8, seed=0).repeat(rows, 1), unit(1, 8, seed=1).repeat(rows, 1)
    return Negatives.of(
        query, positive, unit(n_keys, 8, seed=2), query_id=torch.arange(rows), key_id=torch.arange(1000, 1000 + n_keys)
    )


def frequencies(stage, negatives, steps=20):
    hits = sum(stage(negatives, clock(step)).kept.sum(0) for step in range(steps))
    return hits.double(), steps * len(negatives.query)


def assert_follows(hits, trials, law):
    assert ((hits - trials * law).abs() < 4.5 * (trials * law * (1 - law)).sqrt()).all()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, -1.0])
@pytest.mark.parametrize("score", ["anchor", "positive", "zscore"])
def test_single_draws_follow_the_softmax_of_the_score(beta, score):
    negatives = table()
    law = (beta / 0.2 * score_of(negatives, score)[0]).softmax(0)
    assert_follows(*frequencies(SoftmaxSubset(1, beta, score=score), negatives), law)


def test_single_draws_by_rank_fall_off_exponentially():
    negatives = table()
    rank = score_of(negatives, "anchor")[0].argsort(descending=True).argsort()
    assert_follows(*frequencies(RankSubset(1, decay=0.25), negatives), (-rank.double() / 3).softmax(0))


def test_several_draws_follow_the_law_one_after_the_other():
    negatives = table(n_keys=4)
    law = (negatives.similarity[0] / 0.2).softmax(0)
    second = torch.zeros(4, dtype=torch.double)
    for i in range(4):
        for j in range(4):
            if i != j:
                second[j] += law[i] * law[j] / (1 - law[i])
    assert_follows(*frequencies(SoftmaxSubset(2, beta=1.0), negatives), law + second)


def test_beta_zero_draws_what_a_uniform_subset_draws_from_the_same_numbers():
    uniform = torch.zeros(50, 30, dtype=torch.double)
    by_law, _ = draw_by_law(uniform.log_softmax(1), 7, torch.Generator().manual_seed(1))
    assert torch.equal(by_law, gumbel_top(uniform, 7, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    "stage",
    [
        SoftmaxSubset(3, beta=1.0, mass="plain"),
        SoftmaxSubset(1, beta=0.5, mass="plain"),
        RankSubset(4, decay=0.3, mass="plain"),
        UniformSubset(3, mass="plain"),
    ],
    ids=str,
)
def test_a_corrected_draw_is_unbiased_for_the_sum_over_all(stage):
    negatives = table(rows=500)
    full = float((negatives.similarity[0] / 0.2).exp().sum())
    sums = torch.cat(
        [
            (after.similarity / 0.2 + after.log_weight).logsumexp(1).exp()
            for after in (run_stages(negatives, [stage, SamplingCorrection(mass="plain")], clock(s)) for s in range(20))
        ]
    )
    spread = float(sums.std()) / math.sqrt(len(sums))
    assert abs(float(sums.mean()) - full) < 4.5 * spread
    assert spread < 0.05 * full


def test_two_draws_in_a_row_are_corrected_as_one():
    negatives = table(rows=500)
    full = float((negatives.similarity[0] / 0.2).exp().sum())
    stages = [UniformSubset(6, mass="plain"), SoftmaxSubset(2, mass="plain"), SamplingCorrection(mass="plain")]
    after = [run_stages(negatives, stages, clock(step)) for step in range(20)]
    sums = torch.cat([(a.similarity / 0.2 + a.log_weight).logsumexp(1).exp() for a in after])
    assert abs(float(sums.mean()) - full) < 4.5 * float(sums.std()) / math.sqrt(len(sums))


def test_corrected_laws_agree_on_the_sum_though_not_on_its_logarithm():
    negatives = table(rows=500)

    def sums(stage):
        runs = [run_stages(negatives, [stage, SamplingCorrection(mass="plain")], clock(s)) for s in range(20)]
        return torch.cat([(after.similarity / 0.2 + after.log_weight).logsumexp(1) for after in runs])

    flat, tilted = sums(UniformSubset(2, mass="plain")), sums(SoftmaxSubset(2, beta=1.0, mass="plain"))
    assert_close(flat.exp().mean(), tilted.exp().mean(), rtol=0.05, atol=0)
    assert tilted.mean() - flat.mean() > 0.1  # Jensen: the flat law's sum varies more


def test_the_recorded_probability_is_the_law_itself_for_a_single_draw_on_average():
    negatives = table(n_keys=6, rows=4000)
    law = (negatives.similarity[0] / 0.2).softmax(0)
    after = SoftmaxSubset(1, beta=1.0)(negatives, clock())
    seen = after.kept[:, :]
    inverse = torch.where(seen, (-after.log_prob).exp(), 0.0).mean(0)
    spread = torch.where(seen, (-after.log_prob).exp(), 0.0).std(0) / math.sqrt(4000)
    assert ((inverse - 1).abs() < 4.5 * spread).all()  # E[1{j drawn} / pi_j] = 1 for every j
    assert law.max() / law.min() > 3


def test_where_all_are_drawn_each_was_certain():
    after = SoftmaxSubset(12)(table(), clock())
    assert (after.log_prob == 0).all()
    few = SoftmaxSubset(5)(table().removed(torch.arange(12).expand(400, -1) > 4), clock())
    assert (few.log_prob[few.kept] == 0).all()


def test_probabilities_of_very_unlikely_candidates_do_not_vanish():
    log_law = torch.tensor([[0.0, -1e-3, -60.0, -80.0]])
    drawn, log_prob = draw_by_law(log_law, 1, torch.Generator().manual_seed(0))
    assert drawn.sum() == 1
    assert_close(log_prob[0, 2] - log_prob[0, 3], torch.tensor(20.0))


def test_sampling_by_the_law_and_weighting_by_it_have_one_expectation():
    negatives = table(rows=2000)
    weighted = HardnessWeight(beta=1.0)(negatives, clock())
    expected = (weighted.similarity / 0.2 + weighted.log_weight).exp().sum(1)[0]
    sampled = SoftmaxSubset(1, beta=1.0)(negatives, clock())
    sums = (sampled.similarity / 0.2 + sampled.log_weight).exp().sum(1)
    assert abs(sums.mean() - expected) < 4.5 * sums.std() / math.sqrt(2000)


def test_draws_tied_to_the_data_law_no_longer_stand_for_it():
    class NeedsIid(UniformSubset):
        needs = frozenset({"iid"})

    check_pipeline([UniformSubset(), NeedsIid()], {"id"})
    with pytest.raises(ValueError, match="cannot have after .* SoftmaxSubset"):
        check_pipeline([SoftmaxSubset(), NeedsIid()], {"id"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftmaxSubset(0), "SoftmaxSubset.count is 0"),
        (lambda: SoftmaxSubset(temperature=0.0), "SoftmaxSubset.temperature is 0.0"),
        (lambda: RankSubset(decay=0.0), "RankSubset.decay is 0.0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
