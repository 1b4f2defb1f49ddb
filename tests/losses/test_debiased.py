"""The debiased and the hard-weighted loss: their limits, their floor, their gradients."""

import math

import pytest
import torch
from torch.testing import assert_close

T = 0.5


@pytest.fixture
def sims():
    cosines = 2 * torch.rand(6, 12, generator=torch.Generator().manual_seed(0), dtype=torch.double) - 1
    return cosines[:, 0] * 0.3, cosines[:, 1:]


def gradients(loss, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(*inputs).sum(), inputs)


def test_a_prior_of_zero_is_info_nce_even_at_the_least_similarity(sims):
    from contrastneg.losses import debiased_info_nce, hard_info_nce, info_nce

    pos, neg = sims
    neg[0] = -1.0
    expected = info_nce(pos, neg, temperature=T)
    assert_close(debiased_info_nce(pos, neg, temperature=T, class_prior=0.0), expected)
    assert_close(hard_info_nce(pos, neg, temperature=T, class_prior=0.0, beta=0.0), expected)
    found = gradients(lambda p, n: debiased_info_nce(p, n, temperature=T, class_prior=0.0), pos, neg)
    assert_close(found, gradients(lambda p, n: info_nce(p, n, temperature=T), pos, neg))


@pytest.mark.parametrize("prior", [0.0, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("beta", [0.0, 1.0, 5.0])
def test_equal_similarities_give_log_of_one_plus_n_for_every_prior_and_tilt(prior, beta):
    from contrastneg.losses import hard_info_nce

    loss = hard_info_nce(torch.full((2,), 0.3), torch.full((2, 9), 0.3), temperature=T, class_prior=prior, beta=beta)
    assert_close(loss, torch.full((2,), math.log(10)))


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_at_the_floor_the_value_is_its_closed_form_and_candidates_get_no_gradient(temperature, dtype):
    from contrastneg.losses import debiased_info_nce

    pos, neg = torch.ones(2, dtype=dtype), torch.full((2, 9), -0.9, dtype=dtype)
    loss = debiased_info_nce(pos, neg, temperature=temperature, class_prior=0.1)
    expected = math.log1p(9 * math.exp(-2 / temperature))
    assert_close(loss, torch.full((2,), expected, dtype=dtype), rtol=1e-5, atol=0)
    pos_grad, neg_grad = gradients(
        lambda p, n: debiased_info_nce(p, n, temperature=temperature, class_prior=0.1), pos, neg
    )
    assert (neg_grad == 0).all()
    slope = -(1 - math.exp(-expected)) / temperature
    assert_close(pos_grad, torch.full((2,), slope, dtype=dtype), rtol=1e-4, atol=1e-30)


def test_the_floor_is_n_times_the_least_similarity_and_is_reported():
    from contrastneg.losses import debiased_logsumexp

    lse = torch.tensor([-1.0, 3.0, -math.inf])  # e^-1 is below what 5 candidates leave after the correction
    mass, floored = debiased_logsumexp(
        torch.tensor([0.9, 0.0, 0.5]), lse, torch.full((3,), math.log(5)), temperature=T, class_prior=0.1
    )
    assert floored.tolist() == [True, False, False]
    assert mass[0].item() == pytest.approx(math.log(5) - 1 / T)
    assert mass[1].item() == pytest.approx(math.log((math.exp(3) - 0.1 * 5 * 1) / 0.9))
    assert mass[2] == -math.inf


def test_many_copies_of_one_sample_of_the_class_count_as_one(sims):
    from contrastneg.losses import debiased_info_nce, hard_info_nce

    pos, neg = sims
    for beta in (0.0, 1.0):
        alone = hard_info_nce(pos, neg, temperature=T, class_prior=0.1, beta=beta)
        copies = pos[:, None].expand(-1, 4)
        repeated = hard_info_nce(pos, neg, temperature=T, class_prior=0.1, beta=beta, class_pos=copies)
        assert_close(repeated, alone)
    assert_close(debiased_info_nce(pos, neg, temperature=T, class_prior=0.1, class_pos=copies),
                 debiased_info_nce(pos, neg, temperature=T, class_prior=0.1))  # fmt: skip


def test_several_samples_of_the_class_enter_by_the_mean_of_their_exponentials(sims):
    from contrastneg.losses import debiased_info_nce

    pos, neg = sims
    more = torch.stack([pos, pos - 0.2, pos * 0.5], dim=1)
    bias = (more / T).exp().mean(1)
    mass = ((neg / T).exp().sum(1) - 0.1 * 11 * bias) / 0.9
    assert (mass > 11 * math.exp(-1 / T)).all()
    expected = torch.log1p(mass * (-pos / T).exp())
    assert_close(debiased_info_nce(pos, neg, temperature=T, class_prior=0.1, class_pos=more), expected)


def test_the_correction_is_unbiased_on_a_mixture_with_known_negatives():
    from contrastneg.losses import debiased_logsumexp

    generator = torch.Generator().manual_seed(0)
    prior, many = 0.2, 400_000
    own = torch.rand(many, generator=generator) < prior  # candidates of the query's class are alike, at 0.8
    neg = torch.where(own, 0.8, torch.rand(many, generator=generator) - 0.5)[None]
    mass, _ = debiased_logsumexp(
        torch.tensor([0.8]),
        (neg / T).logsumexp(1),
        torch.tensor([math.log(many)]),
        temperature=T,
        class_prior=prior,
    )
    true = (neg[~own[None]] / T).exp().mean() * many
    assert mass.exp().item() == pytest.approx(true.item(), rel=5e-3)


def test_without_tilt_the_hard_loss_is_the_debiased_one(sims):
    from contrastneg.losses import debiased_info_nce, hard_info_nce

    losses = [
        lambda p, n: hard_info_nce(p, n, temperature=T, class_prior=0.1, beta=0.0),
        lambda p, n: debiased_info_nce(p, n, temperature=T, class_prior=0.1),
    ]
    assert_close(losses[0](*sims), losses[1](*sims))
    assert_close(gradients(losses[0], *sims), gradients(losses[1], *sims))


def test_the_hard_loss_is_its_official_formula_with_weights_of_mean_one(sims):
    from contrastneg.losses import hard_info_nce

    pos, neg = sims
    raised = (neg / T).exp()
    importance = raised**1.5
    mass = (importance * raised).sum(1) / importance.mean(1)
    mass = ((mass - 0.1 * 11 * (pos / T).exp()) / 0.9).clamp(min=11 * math.exp(-1 / T))
    expected = -torch.log((pos / T).exp() / ((pos / T).exp() + mass))
    assert_close(hard_info_nce(pos, neg, temperature=T, class_prior=0.1, beta=1.5), expected)


def test_a_large_tilt_leaves_n_times_the_hardest(sims):
    from contrastneg.losses import hard_info_nce

    pos, neg = sims
    expected = torch.log1p(11 * ((neg.amax(1) - pos) / T).exp())
    assert_close(hard_info_nce(pos, neg, temperature=T, beta=1e5), expected, rtol=1e-6, atol=1e-6)


def test_gradients_of_the_hard_mass_are_those_of_the_two_laws(sims):
    from contrastneg.logsumexp import table_logsumexp
    from contrastneg.losses import tilted_logsumexp

    neg, beta, count = sims[1], 1.3, torch.full((6,), math.log(11), dtype=torch.double)

    def mass(neg, detach):
        raised = table_logsumexp(neg, temperature=T / (1 + beta))
        weights = table_logsumexp(neg, temperature=T / beta)
        return tilted_logsumexp(raised, weights, count, beta=beta, detach_weights=detach)

    tilted, weights = torch.softmax((1 + beta) * neg / T, 1), torch.softmax(beta * neg / T, 1)
    attached = gradients(lambda n: mass(n, False), neg)[0]
    assert_close(attached, ((1 + beta) * tilted - beta * weights) / T)
    assert (attached < 0).any()  # easy candidates are attracted a little
    assert_close(gradients(lambda n: mass(n, True), neg)[0], tilted / T)
    assert_close(mass(neg, True), mass(neg, False))


def test_constant_weights_are_those_of_a_loss_with_detached_importance(sims):
    from contrastneg.losses import hard_info_nce

    def written_out(pos, neg):
        raised = (neg / T).exp()
        importance = raised.detach() ** 2
        mass = ((importance * raised).sum(1) / importance.mean(1) - 0.1 * 11 * (pos / T).exp()) / 0.9
        return torch.log1p(mass.clamp(min=11 * math.exp(-1 / T)) * (-pos / T).exp())

    def found(pos, neg):
        return hard_info_nce(pos, neg, temperature=T, class_prior=0.1, beta=2.0, detach_weights=True)

    assert_close(found(*sims), written_out(*sims))
    assert_close(gradients(found, *sims), gradients(written_out, *sims))


def test_weighting_all_is_drawing_from_the_tilted_law_in_expectation(sims):
    from contrastneg.losses import tilted_logsumexp

    neg, beta = sims[1][:1], 1.0
    raised, weights = ((k * neg / T).logsumexp(1) for k in (1 + beta, beta))
    mass = tilted_logsumexp(raised, weights, torch.tensor([math.log(11)]), beta=beta)
    drawn = torch.multinomial(
        torch.softmax(beta * neg / T, 1), 200_000, True, generator=torch.Generator().manual_seed(0)
    )
    assert mass.exp().item() == pytest.approx(11 * (neg[0, drawn] / T).exp().mean().item(), rel=1e-2)


@pytest.mark.parametrize(("prior", "temperature"), [(1e-6, 0.1), (1e-5, 0.1), (0.1, 0.07), (0.1, 0.03)])
def test_a_loss_that_exponentials_round_to_zero_keeps_its_digits_in_float32(prior, temperature):
    from contrastneg.losses import debiased_info_nce

    def loss(pos, neg):
        return debiased_info_nce(pos, neg, temperature=temperature, class_prior=prior)

    pos, neg = torch.tensor([0.95]), torch.linspace(-0.6, 0.0, 50)[None]
    assert_close(loss(pos, neg).double(), loss(pos.double(), neg.double()), rtol=1e-5, atol=0)
    for found, exact in zip(gradients(loss, pos, neg), gradients(loss, pos.double(), neg.double()), strict=True):
        assert (found.double() - exact).norm() <= 5e-6 * exact.norm()


@pytest.mark.parametrize(("name", "value"), [("class_prior", 1.0), ("class_prior", -0.1), ("beta", -1.0)])
def test_settings_out_of_range_are_refused(sims, name, value):
    from contrastneg.losses import hard_info_nce

    with pytest.raises(ValueError, match=f"{name} must be at least 0"):
        hard_info_nce(*sims, **{"temperature": T, "beta": 1.0, "class_prior": 0.1, name: value})
