"""SynCo's six kinds against points that are really made."""

import math

import pytest
import torch
from torch.testing import assert_close

ONE_KIND = {"interpolated": 0, "extrapolated": 0, "mixed": 0, "noisy": 0, "shifted": 0, "signed": 0}


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def clock(epoch=20.0, step=7):
    from contrastneg.negatives import Clock

    return Clock(step, 100, epoch, 0)


def table(per_query=False):
    from contrastneg.negatives import Negatives

    keys, ids = unit(5, 40, 8, seed=2) if per_query else unit(40, 8, seed=2), torch.arange(100, 140)
    ids = ids.expand(5, 40) if per_query else ids
    return Negatives.of(
        unit(5, 8).requires_grad_(), unit(5, 8, seed=1), keys, query_id=torch.arange(5), key_id=ids.contiguous()
    )


def made(kind, negatives, pool_of, settings):
    """The points of one kind as vectors (B, 30, D), from the numbers that the stage draws."""
    from contrastneg.negatives.mixes import Pool

    pool, draws = Pool.of(negatives, pool_of), clock().generator("SynCo")
    query, keys = negatives.query.detach()[:, None], negatives.keys
    keys = keys.expand(5, -1, -1) if keys.ndim == 2 else keys
    empty = {"interpolated": (1, 0), "extrapolated": (1, 0), "mixed": (2, 0), "noisy": (1, 0), "shifted": (1, 0)}
    for before in empty:
        if before == kind:
            break
        pool.draw(0, empty[before][0], (0.0, 1.0), draws)
    spans = {"interpolated": (0.0, 0.5), "extrapolated": (-0.5, 0.0)}
    ranks, share = pool.draw(30, 2 if kind == "mixed" else 1, spans.get(kind, (0.0, 1.0)), draws)
    share = share[..., None]
    x, *y = (keys.gather(1, pool.column.gather(1, rank)[..., None].expand(-1, -1, 8)) for rank in ranks)
    if kind == "interpolated":
        points = share * query + (1 - share) * x
    elif kind == "extrapolated":
        points = query + (1 - share) * (x - query)
    elif kind == "mixed":
        points = share * x + (1 - share) * y[0]
    elif kind == "noisy":
        points = x + settings["noise"] * torch.randn(5, 30, 8, generator=draws, dtype=torch.double)
    elif kind == "shifted":
        points = x + settings["shift"] * query
    else:
        points = x + settings["sign_shift"] * query.sign()
    return torch.nn.functional.normalize(points, dim=-1)


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("kind", list(ONE_KIND))
def test_each_kind_is_its_formula_in_value_and_gradient_with_the_points_held_constant(kind, per_query):
    from contrastneg.negatives import SynCo

    negatives, steps = table(per_query), {"noise": 0.3, "shift": 0.4, "sign_shift": 0.2}
    found = SynCo(pool=6, **ONE_KIND | {kind: 30}, **steps)(negatives, clock()).similarity[:, 40:]
    exact = torch.einsum("bd,bsd->bs", negatives.query, made(kind, negatives, 6, steps))
    assert_close(found, exact)
    weight = unit(5, 30, seed=4)
    gradients = (torch.autograd.grad((of * weight).sum(), negatives.query)[0] for of in (found, exact))
    assert_close(*gradients)


@pytest.mark.parametrize(("kind", "step"), [("noisy", "noise"), ("shifted", "shift"), ("signed", "sign_shift")])
def test_a_step_of_zero_gives_the_candidates_themselves(kind, step):
    from contrastneg.negatives import SynCo

    negatives = table()
    grown = SynCo(pool=40, **ONE_KIND | {kind: 25}, **{step: 0.0})(negatives, clock()).similarity
    nearest = (grown[:, 40:, None] - negatives.similarity[:, None]).abs().amin(dim=2)
    assert_close(nearest, torch.zeros_like(nearest))


def test_a_shifted_point_is_a_query_mix_with_share_shift_over_one_plus_shift():
    from contrastneg.negatives.mixes import query_similarity

    negatives, shift = table(), 0.01
    x = negatives.similarity
    points = torch.nn.functional.normalize(negatives.keys + shift * negatives.query.detach()[:, None], dim=-1)
    share = torch.full_like(x, shift / (1 + shift))
    assert_close(query_similarity(negatives.query, x, share), torch.einsum("bd,bkd->bk", negatives.query, points))


def test_the_first_and_third_kind_are_mochis_mixes():
    from contrastneg.negatives.mixes import Pool, pair_norms, pair_similarity, query_similarity
    from contrastneg.negatives.synco import interpolated, mixed

    negatives = table()
    pool, query = Pool.of(negatives, 9), negatives.query
    first, again = (torch.Generator().manual_seed(1) for _ in range(2))
    (x,), b = pool.draw(20, 1, (0.0, 0.5), again)
    assert_close(
        interpolated(query, pool, 20, (0.0, 0.5), first), query_similarity(query, pool.similarity.gather(1, x), b)
    )
    (x, y), a = pool.draw(20, 2, (0.0, 1.0), again)
    norm = pair_norms(pool.keys, pool.column.gather(1, x), pool.column.gather(1, y), a)
    mochi = pair_similarity(pool.similarity.gather(1, x), pool.similarity.gather(1, y), norm, a)
    assert_close(mixed(pool, 20, first), mochi)


def test_extrapolated_points_are_less_similar_and_shifted_ones_more_similar_than_any_candidate_they_can_come_from():
    from contrastneg.negatives import SynCo

    negatives = table()
    hardest = negatives.similarity.amax(dim=1, keepdim=True)
    beyond = SynCo(pool=1, **ONE_KIND | {"extrapolated": 50})(negatives, clock()).similarity[:, 40:]
    nearer = SynCo(pool=1, **ONE_KIND | {"shifted": 5, "signed": 5})(negatives, clock()).similarity[:, 40:]
    assert (beyond <= hardest).all()
    assert (nearer > hardest).all()


def test_the_default_counts_are_the_papers_and_nothing_is_added_before_the_warm_up_is_over():
    from contrastneg.negatives import SynCo

    negatives = table()
    assert SynCo()(negatives, clock(9.99)) is negatives
    grown = SynCo()(negatives, clock(10.0))
    assert grown.similarity.shape == (5, 40 + 3 * 256 + 3 * 64)
    assert (grown.key_id[40:] == -1).all()
    assert (grown.log_weight == 0).all()


def test_a_query_without_candidates_gets_no_points_and_a_loss_of_zero_without_gradient():
    from contrastneg.losses import info_nce
    from contrastneg.negatives import SynCo

    negatives = table()
    nothing = torch.zeros(5, 40, dtype=torch.bool)
    nothing[3] = True
    grown = SynCo(pool=4)(negatives.removed(nothing), clock())
    loss = info_nce(grown.positive_similarity, grown.similarity, grown.log_weight, temperature=0.01)
    assert loss[3] == 0
    assert loss.isfinite().all()
    gradient = torch.autograd.grad(loss.sum(), negatives.query)[0]
    assert (gradient[3] == 0).all()
    assert gradient.isfinite().all()


def test_an_empty_queue_gives_no_points():
    from contrastneg.negatives import Negatives, SynCo

    x = unit(3, 8)
    empty = Negatives.of(x, x, x[:0], query_id=torch.arange(3), key_id=torch.arange(0))
    assert SynCo()(empty, clock()) is empty


def test_bfloat16_keys_give_what_the_same_keys_in_float32_give():
    from contrastneg.negatives import Negatives, SynCo

    query, keys = unit(5, 8).float(), unit(40, 8, seed=2).bfloat16()
    ids = {"query_id": torch.arange(5), "key_id": torch.arange(100, 140)}
    half, full = (SynCo(pool=6)(Negatives.of(query, query, k, **ids), clock()) for k in (keys, keys.float()))
    assert torch.equal(half.similarity, full.similarity)
    assert half.similarity.dtype == torch.float32


def test_the_same_step_draws_the_same_points_and_the_next_others():
    from contrastneg.negatives import SynCo

    negatives = table()
    first, again, later = (SynCo(pool=9)(negatives, clock(step=step)).similarity for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


@pytest.mark.parametrize("wrong", [{"pool": 0}, {"signed": -1}, {"extrapolation": 0.9}, {"noise": -math.pi}])
def test_values_out_of_range_are_refused_by_name(wrong):
    from contrastneg.negatives import SynCo

    with pytest.raises(ValueError, match=f"SynCo.{next(iter(wrong))} is"):
        SynCo(**wrong)
