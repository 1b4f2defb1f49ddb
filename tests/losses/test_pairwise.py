"""Losses that look at one candidate at a time."""

import math

import pytest
import torch
from torch.testing import assert_close


def gradients(loss, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(*inputs).sum(), inputs)


def test_cosine_contrastive_has_its_value_by_hand_and_ignores_candidates_below_the_margin():
    from contrastneg.losses import cosine_contrastive

    pos = torch.tensor([0.9], dtype=torch.double)
    neg = torch.tensor([[0.5, 0.1, -0.3, 0.45]], dtype=torch.double)
    loss = cosine_contrastive(pos, neg, margin=0.4, negative_weight=150.0)
    assert loss.item() == pytest.approx(5.725)  # 0.1 + 150 / 4 x (0.1 + 0.05)
    below = cosine_contrastive(pos, neg, margin=0.6, negative_weight=150.0)
    assert below.item() == pytest.approx(0.1)
    gradient = gradients(lambda p, n: cosine_contrastive(p, n, margin=0.4, negative_weight=150.0), pos, neg)
    assert_close(gradient[1], torch.tensor([[37.5, 0, 0, 37.5]], dtype=torch.double))
    at_the_kink = gradients(lambda p, n: cosine_contrastive(p, n, margin=0.5), pos, neg)
    assert all(x.isfinite().all() for x in at_the_kink)


def test_the_attraction_of_unit_vectors_is_never_cut_off():
    from contrastneg.losses import cosine_contrastive

    pos = torch.cat([torch.linspace(-1, 1, 41)[:-1], torch.tensor([1 - 1e-7])]).double()
    below = torch.full((41, 3), -1.0, dtype=torch.double)
    assert_close(cosine_contrastive(pos, below, margin=0.4, negative_weight=9.0), 1 - pos)
    slope = gradients(lambda p, n: cosine_contrastive(p, n, margin=0.4, negative_weight=9.0), pos, below)
    assert (slope[0] == -1).all()
    assert (slope[1] == 0).all()
    x = torch.nn.functional.normalize(torch.randn(200, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    itself = cosine_contrastive((x * x).sum(1), torch.full((200, 3), -1.0), margin=0.4)
    assert ((itself >= 0) & (itself < 1e-6)).all()  # also where rounding makes a cosine larger than 1


def test_listing_all_candidates_twice_leaves_a_mean_and_doubles_a_sum():
    from contrastneg.losses import cosine_contrastive

    pos, neg = torch.tensor([1.0]), torch.tensor([[0.5, 0.1, 0.7]])
    once, twice = (cosine_contrastive(pos, x, margin=0.4, negative_weight=9.0) for x in (neg, neg.repeat(1, 2)))
    assert_close(once, twice)
    once, twice = (cosine_contrastive(pos, x, margin=0.4, mean=False) for x in (neg, neg.repeat(1, 2)))
    assert_close(2 * once, twice)


def test_bpr_of_one_candidate_is_info_nce_of_it_and_triplet_is_its_cold_limit():
    from contrastneg.losses import bpr, info_nce, triplet

    pos, neg = torch.tensor([0.3, 0.1], dtype=torch.double), torch.tensor([[0.2], [0.6]], dtype=torch.double)
    assert_close(bpr(pos, neg, temperature=0.2), info_nce(pos, neg, temperature=0.2))
    assert_close(1e-4 * bpr(pos, neg, temperature=1e-4), triplet(pos, neg, margin=0.0))


def test_the_triplet_loss_is_half_of_facenets_on_squared_distances():
    from contrastneg.losses import triplet

    x = torch.nn.functional.normalize(torch.randn(3, 7, 8, dtype=torch.double), dim=-1)
    apart = (x[0] - x[1]).square().sum(1), (x[0] - x[2]).square().sum(1)
    facenet = (apart[0] - apart[1] + 0.2).clamp(min=0)
    assert_close(triplet((x[0] * x[1]).sum(1), (x[0] * x[2]).sum(1)[:, None], margin=0.1), facenet / 2)


@pytest.mark.parametrize("batch", [2, 7])
def test_the_sigmoid_loss_of_zero_logits_is_b_log_2(batch):
    from contrastneg.losses import sigmoid

    loss = sigmoid(torch.zeros(batch), torch.zeros(batch, batch - 1), temperature=0.1, bias=0.0)
    assert_close(loss, torch.full((batch,), batch * math.log(2)))


def test_the_sigmoid_loss_of_unrelated_embeddings_at_the_start_has_its_closed_form():
    from contrastneg.losses import sigmoid

    loss = sigmoid(torch.zeros(7), torch.zeros(7, 6), temperature=0.1)
    expected = math.log1p(math.exp(10)) + 6 * math.log1p(math.exp(-10))
    assert_close(loss, torch.full((7,), expected))


def test_the_sigmoid_loss_of_a_batch_is_the_sum_over_all_its_pairs_over_b():
    from contrastneg.losses import sigmoid

    x = torch.nn.functional.normalize(torch.randn(2, 5, 8, dtype=torch.double), dim=-1)
    logit = x[0] @ x[1].T / 0.1 - 10
    sign = 2 * torch.eye(5, dtype=torch.double) - 1
    expected = -torch.nn.functional.logsigmoid(sign * logit).sum() / 5
    off = torch.zeros(5, 5, dtype=torch.double).fill_diagonal_(-math.inf)
    similarity = x[0] @ x[1].T
    assert_close(sigmoid(similarity.diagonal(), similarity, off, temperature=0.1).mean(), expected)


def test_binary_cross_entropy_is_torchs_with_half_the_mass_on_either_side():
    from contrastneg.losses import binary_cross_entropy

    pos, neg = torch.tensor([0.4], dtype=torch.double), torch.tensor([[0.1, -0.5, 0.3]], dtype=torch.double)
    logit = torch.cat([pos[:, None], neg], 1) / 0.2 + 0.7
    target = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.double)
    weight = torch.tensor([[1.0, 1 / 3, 1 / 3, 1 / 3]], dtype=torch.double)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit, target, weight, reduction="sum")
    assert_close(binary_cross_entropy(pos, neg, temperature=0.2, bias=0.7)[0], expected)


def test_normalised_hard_does_not_feel_the_scale_and_the_offset_of_a_row():
    from contrastneg.losses import normalised_hard

    neg = torch.rand(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    pos = torch.full((3,), 0.5, dtype=torch.double)
    assert_close(normalised_hard(pos, 0.3 * neg - 0.2), normalised_hard(pos, neg))
    assert_close(normalised_hard(pos - 0.4, neg), normalised_hard(pos, neg))  # the mean takes it up


def test_normalised_hard_has_the_gradient_of_constant_mean_and_spread():
    from contrastneg.losses import normalised_hard

    neg = torch.rand(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    pos = torch.full((3,), 0.5, dtype=torch.double)
    excess = 2 * (neg - pos[:, None])
    spread = excess.std(1, unbiased=False, keepdim=True)
    share = torch.softmax(30 * (excess - excess.mean(1, keepdim=True)) / spread, 1)
    found = gradients(normalised_hard, pos, neg)
    assert_close(found[1], 2 * 30 / spread * share)
    assert_close(found[0], -(2 * 30 / spread)[:, 0])
    sharp = gradients(lambda p, n: normalised_hard(p, n, scale=1e5), pos, neg)[1]
    assert (sharp.argmax(1) == neg.argmax(1)).all()
    assert_close(sharp.amax(1), sharp.sum(1))


def test_equal_candidates_are_given_no_spread_by_rounding():
    from contrastneg.losses import normalised_hard

    pos, neg = torch.tensor([0.5]), torch.full((1, 4), 0.1)
    neg[0, 0] += 1e-7
    gradient = gradients(normalised_hard, pos, neg)[1]
    assert_close(gradient, gradient.mean().expand(1, 4), rtol=0.02, atol=0)
    with pytest.raises(ValueError, match="scale must be positive"):
        normalised_hard(pos, neg, scale=0.0)
