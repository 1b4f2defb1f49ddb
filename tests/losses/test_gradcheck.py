"""Gradients in float64 against differences of the value: every public function, and every loss by name in its query."""

import math

import pytest
import torch
from torch.testing import assert_close

T = 0.3
IMAGES = 4


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(draws(*shape, seed=seed), dim=-1)


def rows():
    """Positives, candidates and log-weights."""
    return 0.4 * unit(3, 1)[:, 0], unit(3, 5, seed=1), draws(3, 5, seed=2)


def sums():
    """Positives and log-sum-exps, and the logarithm of how many candidates there are."""
    return 0.4 * unit(3, 1)[:, 0], draws(3, seed=3) + 4, torch.full((3,), math.log(6), dtype=torch.double)


MARKED = torch.tensor([[False, True, False, False, True]]).expand(3, 5)
LABELS = torch.tensor([0, 1, 0, 2])


def two_views():
    return unit(IMAGES, 3), unit(IMAGES, 3, seed=1)


# Of each public function: how to call it, and the inputs that the gradient is taken in.
CASES = {
    "align_uniform": (lambda f: lambda p, s: f(p, s, sums()[2], scale=1.5, exponent=3.0), lambda: sums()[:2]),
    "alignment": (lambda f: lambda a, b: f(a, b, exponent=3.0), two_views),
    "binary_cross_entropy": (lambda f: lambda *row: f(*row, temperature=T, bias=-0.5), rows),
    "bpr": (lambda f: lambda *row: f(*row, temperature=T), rows),
    "clip_norm": (lambda f: lambda x: f(x, 1.1), lambda: (draws(4, 3),)),
    "cosine_contrastive": (lambda f: lambda *row: f(*row, margin=0.1, negative_weight=3.0), rows),
    "debiased_info_nce": (lambda f: lambda *row: f(*row, temperature=T, class_prior=0.1), rows),
    "debiased_logsumexp": (
        lambda f: lambda p, s: f(p, s, sums()[2], temperature=T, class_prior=0.1)[0],
        lambda: sums()[:2],
    ),
    "decoupled_from_logsumexp": (lambda f: lambda p, s: f(p, s, temperature=T), lambda: sums()[:2]),
    "decoupled_info_nce": (
        lambda f: lambda p, n, w, v: f(p, n, w, temperature=T, positive_weight=v),
        lambda: (*rows(), draws(3, seed=4)),
    ),
    "hard_info_nce": (lambda f: lambda *row: f(*row, temperature=T, class_prior=0.1, beta=1.0), rows),
    "info_nce": (lambda f: lambda *row: f(*row, temperature=T), rows),
    "info_nce_from_logsumexp": (lambda f: lambda p, s: f(p, s, temperature=T), lambda: sums()[:2]),
    "log_mean_exp": (lambda f: lambda x: f(x, temperature=T), lambda: (draws(3, 5),)),
    "moving_average_from_logsumexp": (lambda f: lambda p, s: f(p, s, sums()[2], temperature=T), lambda: sums()[:2]),
    "moving_average_info_nce": (lambda f: lambda *row: f(*row, temperature=T), rows),
    "multi_positive_info_nce": (lambda f: lambda *row: f(*row, temperature=T, is_positive=MARKED), rows),
    "nt_xent": (lambda f: lambda a, b: f(a, b, temperature=T), two_views),
    "rince": (lambda f: lambda *row: f(*row, temperature=T, exponent=0.5, density=0.1), rows),
    "rince_from_logsumexp": (
        lambda f: lambda p, s: f(p, s, temperature=T, exponent=0.5, density=0.1),
        lambda: sums()[:2],
    ),
    "sigmoid": (lambda f: lambda *row: f(*row, temperature=T, bias=-3.0), rows),
    "sincere": (lambda f: lambda a, b: f(a, b, LABELS, temperature=T, margin=0.25), two_views),
    "sincere_info_nce": (lambda f: lambda *row: f(*row, temperature=T, is_positive=MARKED, margin=0.25), rows),
    "spectral": (lambda f: lambda *row: f(*row), rows),
    "spectral_contrastive": (lambda f: lambda a, b: f(1.5 * a, b, radius=1.1), two_views),
    "square": (lambda f: lambda *row: f(*row, negative_weight=3.0, target=-0.2), rows),
    "square_all_pairs": (
        lambda f: lambda a, b, c: f(a, b, negative_weight=0.5, target=0.2, key_weight=c, group=LABELS - 1),
        lambda: (*two_views(), draws(IMAGES, seed=5).exp()),
    ),
    "supervised_contrastive": (lambda f: lambda a, b: f(a, b, LABELS, temperature=T), two_views),
    "tilted_logsumexp": (
        lambda f: lambda s, w: f(s, w, sums()[2], beta=1.5),
        lambda: (draws(3, seed=3), draws(3, seed=4)),
    ),
    "triplet": (lambda f: lambda *row: f(*row, margin=0.3), rows),
    "uniformity": (lambda f: lambda x: f(x), lambda: (unit(5, 3),)),
    "von_mises_fisher_weight": (lambda f: lambda p: f(p, sigma=0.4, detach=False), lambda: (rows()[0],)),
}


def held_hard(pos, neg, constant):
    """The hard loss, weights detached, with these candidates in the weights: constants."""
    from contrastneg.losses import debiased_logsumexp, info_nce_from_logsumexp

    tilt = constant / T  # beta is 1
    mass = (tilt + neg / T).logsumexp(1) - tilt.logsumexp(1) + math.log(5)
    count = torch.full((3,), math.log(5), dtype=torch.double)
    mass, _ = debiased_logsumexp(pos, mass, count, temperature=T, class_prior=0.1)
    return info_nce_from_logsumexp(pos, mass, temperature=T)


def held_dual(pos, neg, constant_pos, constant):
    """InfoNCE times the weight of its query, a constant."""
    from contrastneg.losses import info_nce

    share = [torch.softmax(torch.cat([constant_pos[:, None], constant], 1) / t, 1)[:, 0] for t in (T, 4 * T)]
    return (1 - share[1]) / (1 - share[0]) * info_nce(pos, neg, temperature=T)


def held_normalised(pos, neg, constant_pos, constant):
    """Log-sum-exp over scores with the mean and the spread of these: constants."""
    fixed, excess = (2 * (n - p[:, None]) for p, n in ((constant_pos, constant), (pos, neg)))
    mean, spread = fixed.mean(1, keepdim=True), fixed.std(1, unbiased=False, keepdim=True)
    return (5 * (excess - mean) / spread + 10).logsumexp(1)


# Losses with constants made of their inputs: how to call them, and the same with the constants of inputs of their own.
HELD = {
    "hard_info_nce": (
        lambda f: lambda p, n: f(p, n, temperature=T, class_prior=0.1, beta=1.0, detach_weights=True),
        lambda p, n, p0, n0: held_hard(p, n, n0),
    ),
    "dual_temperature_info_nce": (lambda f: lambda p, n: f(p, n, temperature=T, ratio=4.0), held_dual),
    "dual_temperature_from_logsumexp": (
        lambda f: (
            lambda p, n: f(p, (n / T).logsumexp(1), (n.detach() / (4 * T)).logsumexp(1), temperature=T, ratio=4.0)
        ),
        held_dual,
    ),
    "normalised_hard": (lambda f: lambda p, n: f(p, n, scale=5.0), held_normalised),
}


def public(name):
    from contrastneg import losses

    return getattr(losses, name)


def leaves(inputs):
    return [x.clone().requires_grad_() for x in inputs]


@pytest.mark.parametrize("name", CASES)
def test_every_public_function_has_the_gradient_of_its_value(name):
    call, inputs = CASES[name]
    assert torch.autograd.gradcheck(call(public(name)), leaves(inputs()))


@pytest.mark.parametrize("name", HELD)
def test_losses_with_constants_have_the_gradient_of_the_value_with_these_held(name):
    call, held = HELD[name]
    constants = rows()[:2]
    inputs, others = leaves(constants), leaves(constants)
    values, expected = call(public(name))(*inputs), held(*others, *constants)
    assert_close(values, expected)
    assert_close(torch.autograd.grad(values.sum(), inputs), torch.autograd.grad(expected.sum(), others))
    assert torch.autograd.gradcheck(lambda p, n: held(p, n, *constants), others)


def test_moments_of_keys_have_the_gradient_of_their_sum():
    from contrastneg.losses import KeyMoments

    def loss(query, keys, weight):
        return KeyMoments.of(keys, weight).square_sum(query, 0.3)

    assert torch.autograd.gradcheck(loss, leaves((unit(3, 4), unit(6, 4, seed=1), draws(6, seed=2).exp())))


def test_no_public_function_is_left_out():
    from contrastneg import losses

    assert set(losses.__all__) == {*CASES, *HELD, "KeyMoments"}


def objectives():
    """Every loss by name, but for those that hold something constant (tested above)."""
    from contrastneg.objectives import __all__ as names

    return sorted(set(names) - {"Objective", "DualTemperature", "DualAMN"})


@pytest.mark.parametrize("one_pass", [True, False], ids=["one_pass", "table"])
@pytest.mark.parametrize("name", objectives())
def test_every_loss_by_name_has_the_gradient_of_its_value_in_the_query(name, one_pass):
    from contrastneg import objectives
    from contrastneg.contrast import contrast
    from contrastneg.negatives import Clock, UniformSubset

    settings = {"detach_weights": False} if name == "DecoupledWeighted" else {}
    stages = [] if one_pass else [UniformSubset(99)]  # keeping everything is a table of everything
    positive, keys, key_id = unit(3, 4, seed=1), unit(9, 4, seed=2), torch.arange(9) % 5

    def loss(query):
        made = getattr(objectives, name)(**settings)  # anew: no average of an earlier visit
        now = Clock(0, 10, 0.0, 0)
        return contrast(query, positive, torch.arange(3), keys, key_id, stages, T, now, made)[0]

    # Along drawn directions: the functions beneath are checked above, number by number.
    assert torch.autograd.gradcheck(loss, leaves([unit(3, 4)]), fast_mode=True)
