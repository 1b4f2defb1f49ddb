"""The one-pass log-sum-exp against the table written out."""

import math

import pytest
import torch
from torch.testing import assert_close


def unit(*shape, seed=0, dtype=torch.double):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1).to(dtype)


def reference(query, keys, temperature, exclude=None):
    query = query.detach().double().requires_grad_()
    logits = query @ keys.double().T / temperature
    if exclude is not None:
        mask = torch.zeros_like(logits, dtype=torch.bool)
        mask[exclude[:, 0], exclude[:, 1]] = True
        logits = logits.masked_fill(mask, -math.inf)
    lse = logits.logsumexp(1)
    lse[lse > -math.inf].sum().backward()
    return lse.detach(), query.grad, logits.detach().amax(1) * temperature


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.2, 1.0])
@pytest.mark.parametrize("n_keys", [1, 2303, 2304, 2305, 5000])
def test_value_maximum_and_gradient_equal_the_table(temperature, n_keys):
    from contrastneg.logsumexp import one_pass_logsumexp_max

    query, keys = unit(9, 16).requires_grad_(), unit(n_keys, 16, seed=1)
    lse, top = one_pass_logsumexp_max(query, keys, temperature=temperature)
    lse.sum().backward()
    expected, gradient, highest = reference(query, keys, temperature)
    assert_close(lse, expected, rtol=1e-12, atol=1e-12)
    assert_close(query.grad, gradient, rtol=1e-10, atol=1e-10)
    assert_close(top, highest, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", ["drawn", "rising", "falling"])
@pytest.mark.parametrize("tile", [1, 7, 300, 10_000])
def test_neither_the_size_of_tiles_nor_the_order_of_keys_changes_the_result(monkeypatch, tile, order):
    from contrastneg import logsumexp

    query, keys, temperature = unit(5, 16).requires_grad_(), unit(601, 16, seed=1), 0.02
    if order != "drawn":
        keys = keys[(keys @ query[0].detach()).argsort(descending=order == "falling")]
    monkeypatch.setattr(logsumexp, "CPU_TILE", tile)
    lse, top = logsumexp.one_pass_logsumexp_max(query, keys, temperature=temperature)
    lse.sum().backward()
    expected, gradient, highest = reference(query, keys, temperature)
    assert_close(lse, expected, rtol=1e-12, atol=1e-12)
    assert_close(query.grad, gradient, rtol=1e-10, atol=1e-10)
    assert_close(top, highest, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.2])
def test_float32_keeps_values_to_1e_5_and_gradients_to_1e_6(temperature):
    from contrastneg.logsumexp import one_pass_logsumexp

    query, keys = unit(64, 128, dtype=torch.float).requires_grad_(), unit(8192, 128, seed=1, dtype=torch.float)
    lse = one_pass_logsumexp(query, keys, temperature=temperature)
    lse.sum().backward()
    expected, gradient, _ = reference(query, keys, temperature)
    assert ((lse.double() - expected).abs() / expected.abs()).max() < 1e-5
    assert (query.grad.double() - gradient).norm() / gradient.norm() < 1e-6 * max(1.0, 0.07 / temperature)


def test_bfloat16_keys_give_the_exact_result_of_the_rounded_keys():
    from contrastneg.logsumexp import one_pass_logsumexp

    query = unit(8, 32, dtype=torch.float).requires_grad_()
    keys = unit(5000, 32, seed=1).to(torch.bfloat16)
    lse = one_pass_logsumexp(query, keys, temperature=0.07)
    lse.sum().backward()
    expected, gradient, _ = reference(query, keys, 0.07)
    assert_close(lse.double(), expected, rtol=1e-5, atol=1e-5)
    assert (query.grad.double() - gradient).norm() / gradient.norm() < 1e-5


def test_autocast_changes_nothing():
    from contrastneg.logsumexp import one_pass_logsumexp

    query, keys = unit(8, 32, dtype=torch.float), unit(600, 32, seed=1, dtype=torch.float)
    plain = one_pass_logsumexp(query, keys, temperature=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(one_pass_logsumexp(query, keys, temperature=0.01), plain)


def test_many_queries_take_shorter_tiles_and_give_the_same():
    from contrastneg import logsumexp

    query, keys = unit(300, 8).requires_grad_(), unit(5000, 8, seed=1)
    tiles = [logsumexp._tile(query[:1].expand(count, 8)) for count in (1, 256, 300, 5000)]
    assert tiles == [2304, 2304, 1966, 576]
    exclude = torch.stack([torch.arange(300), torch.arange(300) * 16], dim=1)
    lse, top = logsumexp.one_pass_logsumexp_max(query, keys, temperature=0.1, exclude=exclude)
    lse.sum().backward()
    expected, gradient, highest = reference(query, keys, 0.1, exclude)
    assert_close(lse, expected, rtol=1e-12, atol=1e-12)
    assert_close(query.grad, gradient, rtol=1e-10, atol=1e-10)
    assert_close(top, highest, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_excluded_pairs_count_as_if_they_were_not_there(seed, monkeypatch):
    from contrastneg import logsumexp

    monkeypatch.setattr(logsumexp, "CPU_TILE", 512)
    generator = torch.Generator().manual_seed(seed)
    query, keys = unit(6, 8, seed=seed).requires_grad_(), unit(1300, 8, seed=seed + 10)
    mask = torch.rand(6, 1300, generator=generator) < 0.3
    mask[0] = True  # nothing left
    mask[1] = False
    mask[2, :512] = True  # a whole tile
    exclude = mask.nonzero()[torch.randperm(int(mask.sum()), generator=generator)]
    lse, top = logsumexp.one_pass_logsumexp_max(query, keys, temperature=0.1, exclude=exclude)
    lse[1:].sum().backward()
    expected, gradient, highest = reference(query, keys, 0.1, exclude)
    assert lse[0] == top[0] == -math.inf
    assert_close(lse[1:], expected[1:], rtol=1e-12, atol=1e-12)
    assert_close(top[1:], highest[1:], rtol=1e-12, atol=1e-12)
    assert_close(query.grad[1:], gradient[1:])
    assert_close(query.grad[0], torch.zeros(8, dtype=torch.double))


def test_no_keys_are_minus_infinity_with_zero_gradient():
    from contrastneg.logsumexp import one_pass_logsumexp

    query = unit(3, 4).requires_grad_()
    lse = one_pass_logsumexp(query, unit(3, 4)[:0], temperature=0.1)
    assert lse.tolist() == [-math.inf] * 3
    lse.exp().sum().backward()
    assert_close(query.grad, torch.zeros_like(query))


def test_weights_on_the_queries_scale_their_gradients():
    from contrastneg.logsumexp import one_pass_logsumexp

    query, keys, weight = unit(5, 8).requires_grad_(), unit(700, 8, seed=1), torch.arange(5.0, dtype=torch.double)
    (one_pass_logsumexp(query, keys, temperature=0.1) * weight).sum().backward()
    _, gradient, _ = reference(query, keys, 0.1)
    assert_close(query.grad, gradient * weight[:, None])


def test_keys_with_gradient_and_temperatures_of_zero_are_refused():
    from contrastneg.logsumexp import one_pass_logsumexp

    with pytest.raises(ValueError, match="detach them"):
        one_pass_logsumexp(unit(2, 4), unit(3, 4).requires_grad_(), temperature=0.1)
    with pytest.raises(ValueError, match="temperature must be positive"):
        one_pass_logsumexp(unit(2, 4), unit(3, 4), temperature=0.0)


@pytest.mark.parametrize("seed", range(5))
def test_own_pairs_are_all_pairs_of_one_image_and_unknown_images_match_nothing(seed):
    from contrastneg.logsumexp import own_pairs

    generator = torch.Generator().manual_seed(seed)
    query_id = torch.randint(-1, 12, (8,), generator=generator)
    key_id = torch.randint(-1, 12, (40,), generator=generator)
    expected = ((query_id[:, None] == key_id) & (key_id >= 0)).nonzero()
    found = own_pairs(query_id, key_id)
    assert sorted(found.tolist()) == sorted(expected.tolist())
    assert own_pairs(query_id[:0], key_id).shape == (0, 2)
    assert own_pairs(query_id, key_id[:0]).shape == (0, 2)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_the_table_form_has_the_values_and_gradients_of_torchs_own(temperature):
    from contrastneg.logsumexp import table_logsumexp

    neg, log_weight = torch.rand(2, 6, 11, dtype=torch.double, generator=torch.Generator().manual_seed(3))
    log_weight = log_weight.masked_fill(log_weight < 0.3, -torch.inf)
    inputs = neg.requires_grad_(), log_weight.requires_grad_()
    found = table_logsumexp(*inputs, temperature=temperature)
    exact = (neg / temperature + log_weight).logsumexp(1)
    assert_close(found, exact)
    upstream = torch.linspace(-1, 2, 6, dtype=torch.double)
    assert_close(torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(exact, inputs, upstream))


def test_rows_without_entries_are_minus_infinity_with_zero_gradient():
    from contrastneg.logsumexp import table_logsumexp

    neg = torch.zeros(3, 4, requires_grad=True)
    lse = table_logsumexp(neg, torch.full((3, 4), -torch.inf), temperature=0.1)
    assert (lse == -torch.inf).all()
    assert_close(torch.autograd.grad(lse.sum(), neg)[0], torch.zeros(3, 4))
    assert (table_logsumexp(neg[:, :0], temperature=0.1) == -torch.inf).all()
