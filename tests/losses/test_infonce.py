"""InfoNCE and its kin against closed forms, each other and golden values."""

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

    path = Path(__file__).resolve().parents[3] / "shared" / "golden" / "losses.json"
    names = json.loads(path.read_text()) if path.exists() else [f"{kind}_absent"]
    return [name for name in names if name.startswith(f"{kind}_n") or name == f"{kind}_absent"]


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden"
    return json.loads((folder / "losses.json").read_text()), np.load(folder / "losses.npz")


@pytest.mark.parametrize(("dtype", "loss_rtol", "grad_rtol"), [(torch.double, 1e-9, 1e-7), (torch.float, 1e-5, 1e-4)])
@pytest.mark.parametrize("case", golden_cases("moco"))
def test_one_pass_info_nce_reproduces_golden_values_and_gradients(golden, case, dtype, loss_rtol, grad_rtol):
    from contrastneg.logsumexp import one_pass_logsumexp
    from contrastneg.losses import info_nce_from_logsumexp

    facts, arrays = golden
    query = torch.tensor(arrays[f"{case}/q"], dtype=dtype, requires_grad=True)
    key = torch.tensor(arrays[f"{case}/k"], dtype=dtype)
    queue = torch.tensor(arrays[f"{case}/queue"], dtype=dtype).T.contiguous()
    t = facts[case]["params"]["temperature"]
    pos = (query * key).sum(1)
    loss = info_nce_from_logsumexp(pos, one_pass_logsumexp(query, queue, temperature=t), temperature=t).mean()
    loss.backward()
    assert loss.item() == pytest.approx(facts[case]["loss"], rel=loss_rtol)
    expected = torch.tensor(arrays[f"{case}/grad_q"])
    assert (query.grad.double() - expected).norm() <= grad_rtol * expected.norm()


def gradients(loss, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(*inputs).sum(), inputs)


def positive_share(pos, neg):
    return torch.softmax(torch.cat([pos[:, None], neg], 1) / T, dim=1)[:, 0]


def test_scaling_embeddings_before_they_are_normalised_leaves_the_loss():
    from contrastneg.contrast import unit as normalise
    from contrastneg.losses import nt_xent

    a, b = (torch.randn(6, 8, generator=torch.Generator().manual_seed(i), dtype=torch.double) for i in range(2))
    scale = torch.rand(6, 1, dtype=torch.double) + 0.1
    scaled = nt_xent(normalise(a * scale), normalise(b * 7), temperature=T)
    assert_close(scaled, nt_xent(normalise(a), normalise(b), temperature=T))


def test_dropping_candidates_lowers_the_loss_and_dropping_none_leaves_it(sims):
    from contrastneg.losses import info_nce

    pos, neg = sims
    loss, log_weight = info_nce(pos, neg, temperature=T), torch.zeros_like(neg)
    assert_close(info_nce(pos, neg, log_weight, temperature=T), loss)
    log_weight[:, 2] = -math.inf
    assert (info_nce(pos, neg, log_weight, temperature=T) < loss).all()


def test_the_parts_of_a_partition_of_the_candidates_add_up_to_the_denominator(sims):
    from contrastneg.losses import info_nce

    pos, neg = sims

    def mass(part):  # of the candidates, in units of the positive's
        return torch.expm1(info_nce(pos, neg[:, part], temperature=T))

    assert_close(mass([0, 1]) + mass([2, 5, 6]) + mass([3, 4]), mass(list(range(7))))


def test_weights_of_a_fixed_sum_make_the_loss_independent_of_the_number_of_candidates(sims):
    from contrastneg.losses import info_nce

    pos, neg = sims

    def eqco(neg, alpha):  # weights alpha / K (EqCo)
        return info_nce(pos, neg, torch.full_like(neg, alpha / neg.shape[1]).log(), temperature=T)

    assert_close(eqco(neg, 7), info_nce(pos, neg, temperature=T))
    assert_close(eqco(neg.repeat(1, 5), 3), eqco(neg, 3))


def test_info_nce_is_the_decoupled_loss_less_the_log_of_one_minus_the_positives_share(sims):
    from contrastneg.losses import decoupled_info_nce, info_nce

    share = positive_share(*sims)
    expected = decoupled_info_nce(*sims, temperature=T) - torch.log1p(-share)
    assert_close(info_nce(*sims, temperature=T), expected)
    for coupled, decoupled in zip(
        gradients(lambda p, n: info_nce(p, n, temperature=T), *sims),
        gradients(lambda p, n: decoupled_info_nce(p, n, temperature=T), *sims),
        strict=True,
    ):
        assert_close(coupled, decoupled * (1 - share).view(-1, *[1] * (decoupled.ndim - 1)))


def test_weights_of_positives_have_mean_one_and_are_one_where_all_pairs_are_alike(sims):
    from contrastneg.losses import decoupled_info_nce, von_mises_fisher_weight

    weight = von_mises_fisher_weight(sims[0], sigma=0.5)
    assert weight.mean().item() == pytest.approx(1)
    assert weight.argmin() == sims[0].argmax()
    assert_close(weight, 2 - 5 * torch.softmax(sims[0] / 0.5, 0))
    alike = torch.full_like(sims[0], 0.3)
    weighted = decoupled_info_nce(alike, sims[1], temperature=T, positive_weight=von_mises_fisher_weight(alike))
    assert_close(weighted, decoupled_info_nce(alike, sims[1], temperature=T))


@pytest.mark.parametrize("detach", [True, False])
def test_a_query_without_candidates_takes_no_part_in_the_weights_of_positives(sims, detach):
    from contrastneg.losses import von_mises_fisher_weight

    pos = sims[0].clone().requires_grad_()
    lse = torch.tensor([1.0, -math.inf, 2.0, 0.0, -math.inf], dtype=torch.double)
    weight = von_mises_fisher_weight(pos, lse, detach=detach)
    assert_close(weight[[0, 2, 3]], von_mises_fisher_weight(pos[[0, 2, 3]], detach=detach))
    assert weight[[1, 4]].tolist() == [0, 0]
    assert weight.requires_grad is not detach
    if not detach:
        gradient = torch.autograd.grad(weight[0], pos)[0]
        assert gradient[[1, 4]].tolist() == [0, 0]
        assert gradient[0] < 0 < gradient[2]
    assert von_mises_fisher_weight(pos, torch.full_like(lse, -math.inf), detach=detach).tolist() == [0] * 5


def test_dual_temperature_with_one_temperature_is_info_nce(sims):
    from contrastneg.losses import dual_temperature_info_nce, info_nce

    one = [
        lambda p, n: dual_temperature_info_nce(p, n, temperature=T, ratio=1.0),
        lambda p, n: info_nce(p, n, temperature=T),
    ]
    assert_close(one[0](*sims), one[1](*sims))
    assert_close(gradients(one[0], *sims), gradients(one[1], *sims))


def test_the_weight_of_dual_temperature_is_constant_for_the_gradient(sims):
    from contrastneg.losses import dual_temperature_info_nce, info_nce

    pos, neg = sims
    shares = [torch.softmax(torch.cat([pos[:, None], neg], 1) / t, 1)[:, 0] for t in (T, 10 * T)]
    weight = (1 - shares[1]) / (1 - shares[0])
    found = gradients(lambda p, n: dual_temperature_info_nce(p, n, temperature=T, ratio=10.0), pos, neg)
    assert_close(found, gradients(lambda p, n: weight * info_nce(p, n, temperature=T), pos, neg))


@pytest.mark.parametrize("margin", [-1.9, -1.0, 0.0])
def test_dual_temperature_keeps_its_digits_where_the_positives_share_rounds_to_one(margin):
    from contrastneg.losses import dual_temperature_info_nce

    pos, neg = torch.ones(1), torch.full((1, 4), 1 + margin)
    exact = dual_temperature_info_nce(pos.double(), neg.double(), temperature=0.01, ratio=10.0)
    near, far = (math.log(4) + margin / t for t in (0.01, 0.1))
    quotient = math.log1p(math.exp(near)) * (1 + math.exp(-near)) if near > -30 else 1.0  # of InfoNCE and 1 - p+
    assert exact.item() == pytest.approx(quotient / (1 + math.exp(-far)), rel=1e-5)
    assert_close(dual_temperature_info_nce(pos, neg, temperature=0.01, ratio=10.0).double(), exact, rtol=1e-4, atol=0)
    gradient = gradients(lambda p, n: dual_temperature_info_nce(p, n, temperature=0.01, ratio=10.0), pos, neg)
    expected = gradients(
        lambda p, n: dual_temperature_info_nce(p, n, temperature=0.01, ratio=10.0), pos.double(), neg.double()
    )
    assert_close(gradient[1].double(), expected[1], rtol=1e-4, atol=0)


def test_rince_becomes_info_nce_plus_log_density_as_its_exponent_goes_to_zero(sims):
    from contrastneg.losses import info_nce, rince

    found = rince(*sims, temperature=T, exponent=1e-7, density=0.01)
    assert_close(found, info_nce(*sims, temperature=T) + math.log(0.01), rtol=0, atol=1e-5)


def test_rince_with_exponent_one_is_linear_in_the_exponentials(sims):
    from contrastneg.losses import rince

    pos, neg = sims
    linear = -(1 - 0.01) * (pos / T).exp() + 0.01 * (neg / T).exp().sum(1)
    assert_close(rince(pos, neg, temperature=T, exponent=1.0, density=0.01), linear)
    bounded = rince(pos, neg, temperature=T, exponent=1.0, density=0.01, bounded=True)
    assert_close(bounded, linear * math.exp(-1 / T))


def test_rince_that_would_overflow_is_refused_with_the_way_out(sims):
    from contrastneg.losses import rince

    with pytest.raises(ValueError, match="reaches e.100, too large for float32: .* set bounded"):
        rince(*sims, temperature=0.01, exponent=1.0, density=0.01)
    with pytest.raises(ValueError, match="0 < exponent <= 1"):
        rince(*sims, temperature=T, exponent=1.5, density=0.01)


def test_five_unfilled_slots_beside_three_candidates_give_the_loss_of_three():
    from contrastneg.losses import info_nce

    neg = torch.tensor([[0.1, 0.2, 0.3, 0, 0, 0, 0, 0]])
    log_weight = torch.tensor([[0.0] * 3 + [-math.inf] * 5])
    loss = info_nce(torch.tensor([0.5]), neg, log_weight, temperature=0.5)
    assert loss.item() == pytest.approx(0.981502, abs=1e-6)
