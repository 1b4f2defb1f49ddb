"""Losses against closed forms, golden values of independent implementations and slow float64 sums."""

import json
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

T = 0.2


@pytest.fixture
def sims():
    """Cosines of 5 queries to a positive and 7 candidates."""
    cosines = 2 * torch.rand(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double) - 1
    return cosines[:, 0], cosines[:, 1:]


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


@pytest.mark.parametrize("m", [1, 2, 255, 65_536])
def test_equal_similarities_give_log_of_one_plus_m(m):
    from contrastneg.losses import info_nce

    loss = info_nce(torch.full((3,), 0.4), torch.full((3, m), 0.4), temperature=T)
    assert_close(loss, torch.full((3,), math.log(1 + m)))


def test_info_nce_equals_a_sum_written_out(sims):
    from contrastneg.losses import info_nce

    pos, neg = sims
    for i, loss in enumerate(info_nce(pos, neg, temperature=T)):
        top = math.exp(pos[i] / T)
        assert loss.item() == pytest.approx(-math.log(top / (top + sum(math.exp(n / T) for n in neg[i]))), abs=1e-12)


@pytest.mark.parametrize("w", [0, 1, 2, 3])
def test_weight_w_is_the_candidate_listed_w_times(sims, w):
    from contrastneg.losses import info_nce

    pos, neg = sims
    weighted = info_nce(pos, neg, torch.full_like(neg, w).log(), temperature=T)
    assert_close(weighted, info_nce(pos, neg.repeat(1, w), temperature=T), rtol=0, atol=1e-10)


def test_the_gradient_is_the_softmax_and_sums_to_zero(sims):
    from contrastneg.losses import info_nce

    pos, neg = (x.clone().requires_grad_() for x in sims)
    info_nce(pos, neg, temperature=T).sum().backward()
    share = torch.softmax(torch.cat([pos[:, None], neg], 1) / T, dim=1).detach()
    assert_close(neg.grad, share[:, 1:] / T)
    assert_close(pos.grad, -(1 - share[:, 0]) / T)
    assert_close(pos.grad + neg.grad.sum(1), torch.zeros(5, dtype=torch.double), atol=1e-12, rtol=0)


def test_shifting_all_similarities_and_permuting_candidates_change_nothing(sims):
    from contrastneg.losses import info_nce

    pos, neg = sims
    loss = info_nce(pos, neg, temperature=T)
    assert_close(info_nce(pos + 0.3, neg + 0.3, temperature=T), loss)
    assert_close(info_nce(pos, neg[:, torch.randperm(7)], temperature=T), loss)


def test_a_row_without_candidates_has_loss_zero_and_gradient_zero(sims):
    from contrastneg.losses import info_nce, info_nce_from_logsumexp

    pos, neg = (x.clone().requires_grad_() for x in sims)
    loss = info_nce(pos, neg, torch.full_like(neg, -math.inf), temperature=T)
    loss.sum().backward()
    assert_close(loss, torch.zeros(5, dtype=torch.double), rtol=0, atol=0)
    assert_close(neg.grad, torch.zeros_like(neg))
    assert_close(pos.grad, torch.zeros_like(pos))
    loss = info_nce_from_logsumexp(pos, torch.full((5,), -math.inf, dtype=torch.double), temperature=T)
    assert_close(loss, torch.zeros(5, dtype=torch.double), rtol=0, atol=0)
    assert info_nce(pos, neg[:, :0], temperature=T).tolist() == [0] * 5


def test_one_row_without_candidates_leaves_the_other_rows_alone(sims):
    from contrastneg.losses import info_nce

    pos, neg = sims
    log_weight = torch.zeros_like(neg)
    log_weight[2] = -math.inf
    loss = info_nce(pos, neg, log_weight, temperature=T)
    assert loss[2] == 0
    others = [0, 1, 3, 4]
    assert_close(loss[others], info_nce(pos, neg, temperature=T)[others])


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.07, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_small_temperatures_stay_finite_in_every_precision(temperature, dtype):
    from contrastneg.logsumexp import one_pass_logsumexp
    from contrastneg.losses import info_nce, info_nce_from_logsumexp, nt_xent

    ones, minus = torch.ones(2, dtype=dtype), torch.full((2, 4), -1.0, dtype=dtype)
    query = torch.tensor([[1.0, 0.0]] * 2, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16 if dtype is torch.float32 else dtype):
        crowded = info_nce(ones, ones[:, None].expand(2, 4), temperature=temperature)
        alone = info_nce(ones, minus, temperature=temperature)
        key = torch.tensor([[1.0, 0.0]] * 4, dtype=dtype)
        lse = one_pass_logsumexp(query, key, temperature=temperature)
        passed = info_nce_from_logsumexp((query * key[:2]).sum(1), lse, temperature=temperature)
        pairs = nt_xent(query, query, temperature=temperature)
    assert_close(crowded, torch.full((2,), math.log(5)), atol=1e-3, rtol=0)
    assert_close(passed, torch.full((2,), math.log(5)), atol=1e-3, rtol=0)
    assert_close(pairs, torch.full((4,), math.log(3)), atol=1e-3, rtol=0)
    expected = math.log1p(4 * math.exp(-2 / temperature))
    assert_close(alone, torch.full((2,), expected), atol=1e-7, rtol=1e-2)
    assert crowded.dtype == passed.dtype == pairs.dtype == torch.float32
    (passed.sum() + pairs.sum()).backward()
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("batch", [2, 6, 256])
def test_nt_xent_of_identical_embeddings_is_log_of_2b_minus_1(batch):
    from contrastneg.losses import nt_xent

    z = unit(1, 8).expand(batch, 8)
    assert_close(nt_xent(z, z, temperature=0.5), torch.full((2 * batch,), math.log(2 * batch - 1), dtype=torch.double))


def test_nt_xent_of_a_regular_simplex_has_its_closed_form():
    from contrastneg.losses import nt_xent

    n, t = 5, 0.3
    z = torch.eye(n, dtype=torch.double) - 1 / n
    z = torch.nn.functional.normalize(z, dim=1)
    expected = math.log(1 + (2 * n - 2) * math.exp(-(1 + 1 / (n - 1)) / t))
    assert_close(nt_xent(z, z, temperature=t), torch.full((2 * n,), expected, dtype=torch.double))


def test_swapping_views_and_permuting_images_only_reorder_nt_xent():
    from contrastneg.losses import nt_xent

    a, b = unit(6, 8, seed=1), unit(6, 8, seed=2)
    loss = nt_xent(a, b, temperature=T)
    assert_close(nt_xent(b, a, temperature=T), loss.roll(6))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    assert_close(nt_xent(a[order], b[order], temperature=T), loss.view(2, 6)[:, order].flatten())


def test_nt_xent_is_the_table_of_the_batch_without_own_images():
    from contrastneg.losses import info_nce, nt_xent
    from contrastneg.negatives import Negatives

    a, b = unit(6, 8, seed=1), unit(6, 8, seed=2)
    query, partner, ids = torch.cat([a, b]), torch.cat([b, a]), torch.arange(6).repeat(2)
    table = Negatives.of(query, partner, query, query_id=ids, key_id=ids)
    assert (table.kept.sum(1) == 10).all()
    assert_close(
        info_nce(table.positive_similarity, table.similarity, table.log_weight, temperature=T),
        nt_xent(a, b, temperature=T),
    )


def test_losses_pass_gradcheck():
    from contrastneg.logsumexp import one_pass_logsumexp
    from contrastneg.losses import info_nce, info_nce_from_logsumexp, nt_xent

    pos, neg = (unit(3, 1).flatten() * 0.5).requires_grad_(), (unit(3, 5, seed=3)).requires_grad_()
    weight = unit(3, 5, seed=4).requires_grad_()
    a, b, keys = unit(3, 4, seed=5).requires_grad_(), unit(3, 4, seed=6).requires_grad_(), unit(7, 4, seed=7)
    assert torch.autograd.gradcheck(lambda p, n, w: info_nce(p, n, w, temperature=T), (pos, neg, weight))
    assert torch.autograd.gradcheck(lambda x, y: nt_xent(x, y, temperature=T), (a, b))
    assert torch.autograd.gradcheck(
        lambda x: info_nce_from_logsumexp((x * b).sum(1), one_pass_logsumexp(x, keys, temperature=T), temperature=T),
        (a,),
    )


@pytest.mark.parametrize("loss", ["info_nce", "nt_xent", "info_nce_from_logsumexp"])
def test_a_temperature_of_zero_is_refused(loss):
    from contrastneg import losses

    x = torch.ones(2)
    arguments = {"info_nce": (x, x[:, None]), "nt_xent": (x[:, None], x[:, None]), "info_nce_from_logsumexp": (x, x)}
    with pytest.raises(ValueError, match="temperature must be positive"):
        getattr(losses, loss)(*arguments[loss], temperature=0.0)


def golden_cases(kind):
    from pathlib import Path

    path = Path(__file__).resolve().parents[2] / "shared" / "golden" / "losses.json"
    names = json.loads(path.read_text()) if path.exists() else [f"{kind}_absent"]
    return [name for name in names if name.startswith(f"{kind}_n") or name == f"{kind}_absent"]


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden"
    return json.loads((folder / "losses.json").read_text()), np.load(folder / "losses.npz")


def tangential(gradient, point):
    return gradient - (gradient * point).sum(1, keepdim=True) * point


@pytest.mark.parametrize(("dtype", "loss_rtol", "grad_rtol"), [(torch.double, 1e-9, 1e-7), (torch.float, 1e-5, 1e-4)])
@pytest.mark.parametrize("case", [*golden_cases("ntxent"), *golden_cases("pml_ntxent")])
def test_nt_xent_reproduces_golden_values_and_gradients(golden, case, dtype, loss_rtol, grad_rtol):
    from contrastneg.losses import nt_xent

    facts, arrays = golden
    a, b = (torch.tensor(arrays[f"{case}/{name}"], dtype=dtype, requires_grad=True) for name in "ab")
    loss = nt_xent(a, b, temperature=facts[case]["params"]["temperature"]).mean()
    loss.backward()
    assert loss.item() == pytest.approx(facts[case]["loss"], rel=loss_rtol)
    for name, point in (("a", a), ("b", b)):
        if f"{case}/grad_{name}" in arrays:
            expected = tangential(torch.tensor(arrays[f"{case}/grad_{name}"]), point.detach().double())
            found = tangential(point.grad.double(), point.detach().double())
            assert (found - expected).norm() <= grad_rtol * expected.norm()


@pytest.mark.parametrize(("dtype", "loss_rtol", "grad_rtol"), [(torch.double, 1e-9, 1e-7), (torch.float, 1e-5, 1e-4)])
@pytest.mark.parametrize("path", ["one_pass", "table"])
@pytest.mark.parametrize("case", golden_cases("moco"))
def test_queue_info_nce_reproduces_golden_values_and_gradients(golden, case, path, dtype, loss_rtol, grad_rtol):
    from contrastneg.logsumexp import one_pass_logsumexp
    from contrastneg.losses import info_nce, info_nce_from_logsumexp

    facts, arrays = golden
    query = torch.tensor(arrays[f"{case}/q"], dtype=dtype, requires_grad=True)
    key = torch.tensor(arrays[f"{case}/k"], dtype=dtype)
    queue = torch.tensor(arrays[f"{case}/queue"], dtype=dtype).T.contiguous()
    t = facts[case]["params"]["temperature"]
    pos = (query * key).sum(1)
    if path == "table":
        loss = info_nce(pos, query @ queue.T, temperature=t).mean()
    else:
        loss = info_nce_from_logsumexp(pos, one_pass_logsumexp(query, queue, temperature=t), temperature=t).mean()
    loss.backward()
    assert loss.item() == pytest.approx(facts[case]["loss"], rel=loss_rtol)
    expected = torch.tensor(arrays[f"{case}/grad_q"])
    assert (query.grad.double() - expected).norm() <= grad_rtol * expected.norm()
