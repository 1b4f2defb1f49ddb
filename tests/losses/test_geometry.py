"""Alignment and uniformity against closed forms on the sphere."""

import math

import pytest
import torch
from torch.testing import assert_close


def unit(*shape, seed=0, dtype=torch.double):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1).to(dtype)


def hypergeometric(b, x):
    """0F1(; b; x), by its series."""
    total = term = 1.0
    for k in range(1, 200):
        term *= x / (k * (b + k - 1))
        total += term
    return total


def test_alignment_is_two_less_two_cosines_and_zero_for_equal_views():
    from contrastneg.losses import alignment

    a, b = unit(5, 8), unit(5, 8, seed=1)
    assert_close(alignment(a, b), 2 - 2 * (a * b).sum(1))
    assert_close(alignment(a, b, exponent=1), (a - b).norm(dim=1))
    assert_close(alignment(a, b, exponent=4), (2 - 2 * (a * b).sum(1)).square())
    x = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(alignment(x, a, exponent=1).sum(), x)
    assert (alignment(a, a) == 0).all()
    assert (gradient == 0).all()  # a distance has no slope at 0: not NaN


def test_uniformity_of_a_collapsed_encoder_is_zero_and_of_two_opposite_points_minus_eight():
    from contrastneg.losses import uniformity

    assert uniformity(unit(1, 8).expand(9, 8)).item() == pytest.approx(0, abs=1e-12)
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(-8)


@pytest.mark.parametrize(("dim", "expected"), [(3, -2.0798), (16, -3.5130), (128, -3.9375)])
def test_uniformity_of_a_uniform_sphere_has_its_closed_form(dim, expected):
    from contrastneg.losses import uniformity

    assert -4 + math.log(hypergeometric(dim / 2, 4)) == pytest.approx(expected, abs=1e-4)
    assert uniformity(unit(3000, dim, dtype=torch.float)).item() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("count", [2, 5, 1023, 1024, 1025, 1026, 2300])
def test_uniformity_in_chunks_is_the_mean_over_all_pairs(count):
    from contrastneg.losses import uniformity

    x = unit(count, 4, seed=count)
    expected = (-2 * torch.pdist(x).square()).exp().mean().log()
    assert_close(uniformity(x), expected)


def test_uniformity_passes_gradcheck_and_autocast_changes_nothing():
    from contrastneg.losses import align_uniform, uniformity

    assert torch.autograd.gradcheck(uniformity, unit(5, 3).requires_grad_())
    x = unit(50, 16, dtype=torch.float)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = uniformity(x)
    assert torch.equal(inside, uniformity(x))
    pos, lse = unit(4, 1, seed=2)[:, 0] * 0.5, unit(4, 1, seed=3)[:, 0]
    count = torch.full((4,), math.log(6), dtype=torch.double)
    inputs = [pos.requires_grad_(), lse.requires_grad_()]
    assert torch.autograd.gradcheck(lambda p, s: align_uniform(p, s, count, exponent=3.0), inputs)


def test_align_uniform_is_the_sum_of_the_two_over_queries_and_candidates():
    from contrastneg.losses import align_uniform

    query, positive, keys = unit(5, 4), unit(5, 4, seed=1), unit(7, 4, seed=2)
    table = query @ keys.T
    apart = torch.cdist(query, keys).square()
    expected = 2 * (query - positive).square().sum(1) + 0.5 * (-3 * apart).exp().mean().log()
    found = align_uniform(
        (query * positive).sum(1),
        (6 * table).logsumexp(1),
        torch.full((5,), math.log(7), dtype=torch.double),
        scale=3.0,
        align_weight=2.0,
        uniform_weight=0.5,
    )
    assert_close(found, expected)


def test_queries_without_candidates_take_no_part_in_the_uniformity():
    from contrastneg.losses import align_uniform

    pos = torch.tensor([0.5, 0.2, 0.1], dtype=torch.double, requires_grad=True)
    lse = torch.tensor([1.0, -math.inf, 3.0], dtype=torch.double, requires_grad=True)
    count = torch.tensor([2.0, -math.inf, 1.0], dtype=torch.double)
    loss = align_uniform(pos, lse, count)
    assert loss[1] == 0
    assert_close(loss[[0, 2]], align_uniform(pos[[0, 2]], lse[[0, 2]], count[[0, 2]]))
    pos_grad, lse_grad = torch.autograd.grad(loss.sum(), (pos, lse))
    assert pos_grad[1] == lse_grad[1] == 0
    assert lse_grad.isfinite().all()
    nothing = align_uniform(pos, torch.full((3,), -math.inf, dtype=torch.double), torch.full((3,), -math.inf))
    assert nothing.tolist() == [0, 0, 0]
    assert torch.autograd.grad(nothing.sum(), pos)[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("setting", "words"), [({"scale": 0.0}, "scale must be positive"), ({}, "at least 2")])
def test_settings_and_sets_out_of_range_are_refused(setting, words):
    from contrastneg.losses import alignment, uniformity

    with pytest.raises(ValueError, match=words):
        uniformity(unit(1, 3), **setting)
    with pytest.raises(ValueError, match="exponent must be positive"):
        alignment(unit(2, 3), unit(2, 3), exponent=0)
