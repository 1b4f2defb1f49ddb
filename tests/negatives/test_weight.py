"""Weights: totals, limits, gradients, and the losses that they make."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from contrastneg.losses import info_nce
from contrastneg.negatives import (
    Clock,
    FixedMass,
    GaussianWeight,
    HardestSubset,
    HardnessWeight,
    MemoryBank,
    Negatives,
    SamplingCorrection,
    SoftmaxSubset,
    UniformSubset,
    check_pipeline,
    run_stages,
)
from contrastneg.schedules import Linear

NOW = Clock(3, 100, 0.0, 0)
T = 0.2
TOTAL_KEPT = [
    HardnessWeight(),
    HardnessWeight(beta=3.0, detach_weights=True),
    GaussianWeight(),
    GaussianWeight(0.0, 0.1),
]
ALL = [*TOTAL_KEPT, FixedMass(7.0)]


def unit(*shape, seed):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def table(n_keys=20, queries=5, dtype=torch.double, per_query=False):
    keys = unit(queries, n_keys, 6, seed=2) if per_query else unit(n_keys, 6, seed=2)
    key_id = torch.arange(100, 100 + n_keys)
    negatives = Negatives.of(
        unit(queries, 6, seed=0).to(dtype).requires_grad_(),
        unit(queries, 6, seed=1).to(dtype),
        keys.to(dtype),
        query_id=torch.arange(queries),
        key_id=key_id.expand(queries, -1) if per_query else key_id,
    )
    return negatives.removed((torch.arange(n_keys) < 3).expand(queries, -1))


def loss_of(negatives, temperature=T):
    return info_nce(negatives.positive_similarity, negatives.similarity, negatives.log_weight, temperature=temperature)


@pytest.mark.parametrize("stage", TOTAL_KEPT, ids=str)
@pytest.mark.parametrize("per_query", [False, True])
def test_the_total_weight_of_a_row_stays_and_removed_candidates_stay_removed(stage, per_query):
    before = table(per_query=per_query)
    after = stage(before, NOW)
    assert torch.equal(after.kept, before.kept)
    assert_close(after.log_weight.exp().sum(1).detach(), torch.full((5,), 17.0, dtype=torch.double))


@pytest.mark.parametrize("stage", ALL, ids=str)
def test_a_row_with_nothing_left_has_loss_zero_and_no_gradient(stage):
    before = table().removed((torch.arange(5) == 2)[:, None].expand(5, 20))
    loss = loss_of(stage(before, NOW))
    (slope,) = torch.autograd.grad(loss.sum(), before.query)
    assert loss[2] == 0
    assert (slope[2] == 0).all()
    assert slope.isfinite().all()
    assert (loss_of(stage(table(n_keys=0), NOW)) == 0).all()


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("beta", [1.0, 6.0])
def test_small_temperatures_overflow_nothing(temperature, beta):
    before = table(dtype=torch.float32)
    after = HardnessWeight(beta=beta, temperature=temperature)(before, NOW)
    loss = loss_of(after, temperature)
    (slope,) = torch.autograd.grad(loss.sum(), before.query)
    assert loss.isfinite().all()
    assert slope.isfinite().all()


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_hardness_weights_before_info_nce_are_hcl_without_its_prior(beta):
    before = table()
    after = HardnessWeight(beta=beta, temperature=T)(before, NOW)
    for i in range(5):
        neg = [math.exp(s / T) for s in before.similarity[i, 3:].tolist()]
        mean = sum(n**beta for n in neg) / len(neg)
        total = sum(n ** (1 + beta) / mean for n in neg)
        pos = math.exp(float(before.positive_similarity[i].detach()) / T)
        assert float(loss_of(after)[i].detach()) == pytest.approx(-math.log(pos / (pos + total)), rel=1e-12)


def test_without_tilt_it_is_info_nce_and_with_all_of_it_the_hardest_alone():
    before = table()
    assert_close(loss_of(HardnessWeight(beta=0.0)(before, NOW)), loss_of(before))
    worst = before.similarity[:, 3:].amax(1) / T + math.log(17)
    expected = torch.nn.functional.softplus(worst - before.positive_similarity / T)
    assert_close(loss_of(HardnessWeight(beta=1e4, temperature=T)(before, NOW)), expected)


def test_equal_candidates_weigh_alike_whatever_the_tilt():
    before = table()
    before = replace(before, similarity=torch.full_like(before.similarity, 0.3))
    assert_close(HardnessWeight(beta=5.0)(before, NOW).log_weight, before.log_weight)


@pytest.mark.parametrize("detach", [False, True])
def test_the_gradient_of_the_sum_is_that_of_the_official_code_or_of_constant_weights(detach):
    beta, before = 1.5, table()
    after = HardnessWeight(beta=beta, temperature=T, detach_weights=detach)(before, NOW)
    total = (after.similarity / T + after.log_weight).logsumexp(1).sum()
    (slope,) = torch.autograd.grad(total, before.similarity)
    logit = before.similarity.detach() / T + before.log_weight
    tilt = torch.where(before.kept, beta * before.similarity.detach() / T, 0)
    pi, rho = (logit + tilt).softmax(1), (before.log_weight + tilt).softmax(1)
    assert_close(slope, (pi if detach else (1 + beta) * pi - beta * rho) / T)


def test_constant_weights_have_the_values_of_others_and_another_gradient():
    found = []
    for detach in (False, True):
        before = table()
        loss = loss_of(HardnessWeight(beta=1.5, temperature=T, detach_weights=detach)(before, NOW))
        found.append((loss.detach(), torch.autograd.grad(loss.sum(), before.query)[0]))
    (values, slope), (constant_values, constant_slope) = found
    assert_close(values, constant_values)
    assert ((slope - constant_slope).norm(dim=1) > 0.1 * slope.norm(dim=1)).all()


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_of_two_candidates_the_more_similar_one_weighs_more(beta):
    before = table()
    after = HardnessWeight(beta=beta)(before, NOW)
    order = before.similarity[:, 3:].argsort(dim=1)
    assert (after.log_weight[:, 3:].gather(1, order).diff(dim=1) > 0).all()


def test_the_tilt_may_follow_a_schedule():
    before = table()
    at_half = HardnessWeight(beta=Linear(2.0, 0.0))(before, replace(NOW, step=50))
    assert_close(at_half.log_weight, HardnessWeight(beta=1.0)(before, NOW).log_weight)


def test_gaussian_weights_are_their_formula_without_gradient():
    before, mu, sigma = table(), 0.7, 0.5
    after = GaussianWeight(mu, sigma)(before, NOW)
    assert not after.log_weight.requires_grad
    w = torch.exp(-((before.similarity.detach()[:, 3:] - mu) ** 2) / (2 * sigma**2))
    assert_close(after.log_weight[:, 3:].exp(), w / w.mean(1, keepdim=True))
    assert_close(after.log_weight[:, 3:].exp().mean(1), torch.ones(5, dtype=torch.double))


def test_a_wide_gaussian_is_info_nce():
    before = table()
    assert_close(loss_of(GaussianWeight(0.7, 1e6)(before, NOW)), loss_of(before))


def test_a_fixed_mass_of_as_many_as_there_are_is_info_nce_and_otherwise_a_margin():
    before = table()
    assert_close(loss_of(FixedMass(17.0)(before, NOW)), loss_of(before))
    shifted = before.positive_similarity - T * math.log(256 / 17)
    expected = info_nce(shifted, before.similarity, before.log_weight, temperature=T)
    assert_close(loss_of(FixedMass(256.0)(before, NOW)), expected)


def test_a_fixed_mass_does_not_notice_that_the_queue_is_there_twice():
    once = table()
    twice = Negatives.of(
        once.query, once.positive, once.keys.repeat(2, 1), query_id=once.query_id, key_id=once.key_id.repeat(2)
    ).removed(~once.kept.repeat(1, 2))
    assert not torch.allclose(loss_of(twice), loss_of(once))
    assert_close(loss_of(FixedMass(100.0)(twice, NOW)), loss_of(FixedMass(100.0)(once, NOW)))


def test_weights_of_two_stages_multiply_whatever_their_order():
    before = table()
    one = run_stages(before, [HardnessWeight(beta=1.0), GaussianWeight(0.2, 0.3)], NOW)
    two = run_stages(before, [GaussianWeight(0.2, 0.3), HardnessWeight(beta=1.0)], NOW)
    assert_close(one.log_weight, two.log_weight)


def test_removal_and_weighting_to_a_fixed_mass_commute():
    before, gone = table(), (torch.arange(20) > 14).expand(5, -1)
    first = FixedMass(9.0)(HardnessWeight()(before.removed(gone), NOW), NOW)
    last = FixedMass(9.0)(HardnessWeight()(before, NOW).removed(gone), NOW)
    assert_close(first.log_weight, last.log_weight)


@pytest.mark.parametrize("mass", ["preserve", "plain"])
def test_the_full_correction_of_a_uniform_law_gives_each_its_share_of_the_mass(mass):
    after = run_stages(table(), [UniformSubset(5, mass=mass), SamplingCorrection(mass=mass)], NOW)
    assert_close(after.log_weight[after.kept].exp(), torch.full((25,), 17.0 / 5, dtype=torch.double))


def test_no_correction_changes_nothing_and_half_is_half_of_it():
    drawn = SoftmaxSubset(5, mass="plain")(table(), NOW)
    none = SamplingCorrection(0.0, mass="plain")(drawn, NOW)
    half = SamplingCorrection(0.5, mass="plain")(drawn, NOW)
    assert_close(none.log_weight, drawn.log_weight)
    assert_close(half.log_weight[half.kept], -0.5 * drawn.log_prob[drawn.kept])
    assert torch.equal(half.kept, drawn.kept)


def test_a_correction_that_keeps_the_mass_keeps_it():
    after = run_stages(table(), [SoftmaxSubset(5), SamplingCorrection()], NOW)
    assert_close(after.log_weight.exp().sum(1), torch.full((5,), 17.0, dtype=torch.double))
    assert (after.log_weight[after.kept].std() > 0.1).all()


def test_candidates_that_nobody_drew_are_left_alone_by_a_correction():
    drawn = SoftmaxSubset(5, mass="plain")(table(), NOW)
    more = drawn.appended(drawn.similarity[:, :2])
    after = SamplingCorrection(mass="plain")(more, NOW)
    assert torch.equal(after.log_weight[:, -2:], more.log_weight[:, -2:])


def test_a_correction_that_would_count_the_mass_twice_is_refused():
    check_pipeline([UniformSubset(mass="plain"), SamplingCorrection(mass="plain")], {"id"})
    plain = SamplingCorrection(mass="plain")
    for stages in (
        [UniformSubset()],
        [UniformSubset(mass="plain"), UniformSubset()],
        [UniformSubset(), SoftmaxSubset(mass="plain")],
        [UniformSubset(mass="plain"), FixedMass()],
        [UniformSubset(mass="plain"), HardnessWeight()],
        [UniformSubset(mass="plain"), SamplingCorrection()],
        [MemoryBank(mass="preserve")],
        [MemoryBank(combine="append", mass="preserve"), UniformSubset(mass="plain")],
    ):
        with pytest.raises(
            ValueError, match="SamplingCorrection needs weights that do not make up .* cannot have after"
        ):
            check_pipeline([*stages, plain], {"id"})


def test_a_correction_after_two_draws_weighs_by_both_and_by_the_second_alone_where_nobody_drew_first():
    before = table(n_keys=8)  # three are removed
    first = before.log_prob if before.log_prob is not None else torch.full_like(before.similarity, math.nan)
    first[:, :6] = math.log(0.25)
    drawn = UniformSubset(5, mass="plain")(replace(before, log_prob=first.detach()), NOW)
    after = SamplingCorrection(mass="plain")(UniformSubset(2, mass="plain")(drawn, NOW), NOW)
    due = torch.where(torch.arange(8) < 6, 4.0, 1.0).double() * 5 / 2
    assert_close(after.log_weight.exp()[after.kept], due.expand(5, 8)[after.kept])


def test_a_correction_without_a_law_is_refused():
    for stages in ([SamplingCorrection()], [UniformSubset(), HardestSubset(4), SamplingCorrection()]):
        with pytest.raises(
            ValueError, match="SamplingCorrection needs (the probability of each draw|candidates of every hardness)"
        ):
            check_pipeline(stages, {"id"})
    with pytest.raises(ValueError, match="whose law nobody recorded"):
        SamplingCorrection()(table(), NOW)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HardnessWeight(beta=-1.0), "HardnessWeight.beta is -1.0"),
        (lambda: HardnessWeight(temperature=0.0), "HardnessWeight.temperature is 0.0"),
        (lambda: GaussianWeight(width=0.0), "GaussianWeight.width is 0.0"),
        (lambda: FixedMass(0.0), "FixedMass.total is 0.0"),
        (lambda: SamplingCorrection(1.5), "SamplingCorrection.strength is 1.5"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
