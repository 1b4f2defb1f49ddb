"""MoCHi against mixes that are really made."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def clock(epoch=20.0, step=7):
    from contrastneg.negatives import Clock

    return Clock(step, 100, epoch, 0)


def table(n_keys=40, key_id=None, grad=False):
    from contrastneg.negatives import Negatives

    query = unit(5, 8).requires_grad_(grad)
    ids = torch.arange(100, 100 + n_keys) if key_id is None else key_id
    return Negatives.of(query, unit(5, 8, seed=1), unit(n_keys, 8, seed=2), query_id=torch.arange(5), key_id=ids)


def mixes(negatives, column, a):
    x, y = negatives.keys[column[0]], negatives.keys[column[1]]
    return torch.nn.functional.normalize(a[..., None] * x + (1 - a[..., None]) * y, dim=-1)


def drawn(count, partners, seed=3):
    generator = torch.Generator().manual_seed(seed)
    column = torch.randint(40, (partners, 5, count), generator=generator)
    return column, torch.rand(5, count, generator=generator, dtype=torch.double)


def test_similarities_of_pair_mixes_and_their_gradient_are_those_of_the_mixes_made():
    from contrastneg.negatives.mixes import pair_norms, pair_similarity

    negatives = table(grad=True)
    column, a = drawn(30, 2)
    x, y = (negatives.similarity.gather(1, one) for one in column)
    found = pair_similarity(x, y, pair_norms(negatives.keys, *column, a), a)
    made = torch.einsum("bd,bsd->bs", negatives.query, mixes(negatives, column, a))
    assert_close(found, made)
    weight = unit(5, 30, seed=5)
    assert_close(
        torch.autograd.grad((found * weight).sum(), negatives.query, retain_graph=True)[0],
        torch.autograd.grad((made * weight).sum(), negatives.query)[0],
    )


def test_similarities_of_query_mixes_and_their_gradient_hold_the_query_inside_constant():
    from contrastneg.negatives.mixes import query_similarity

    negatives = table(grad=True)
    column, b = drawn(30, 1)
    b = b / 2
    inside = negatives.query.detach()[:, None]
    mix = torch.nn.functional.normalize(b[..., None] * inside + (1 - b[..., None]) * negatives.keys[column[0]], dim=-1)
    made = torch.einsum("bd,bsd->bs", negatives.query, mix)
    found = query_similarity(negatives.query, negatives.similarity.gather(1, column[0]), b)
    assert_close(found, made)
    assert (found >= negatives.similarity.gather(1, column[0]) - 1e-12).all()
    weight = unit(5, 30, seed=5)
    assert_close(
        torch.autograd.grad((found * weight).sum(), negatives.query, retain_graph=True)[0],
        torch.autograd.grad((made * weight).sum(), negatives.query)[0],
    )


def test_the_tangential_gradient_of_an_even_query_mix_at_cosine_a_half_is_0577():
    from contrastneg.negatives.mixes import query_similarity

    z = torch.tensor([[1.0, 0.0]], dtype=torch.double, requires_grad=True)
    query = torch.nn.functional.normalize(z, dim=1)
    key = torch.tensor([[0.5, math.sqrt(0.75)]], dtype=torch.double)
    similarity = query @ key.T
    half = torch.full((1, 1), 0.5, dtype=torch.double)
    mixed = query_similarity(query, similarity, half)
    assert mixed.item() == pytest.approx(math.sqrt(1.5 / 2))
    ratio = torch.autograd.grad(mixed.sum(), z, retain_graph=True)[0] / torch.autograd.grad(similarity.sum(), z)[0]
    assert ratio[0, 1].item() == pytest.approx(0.5 / math.sqrt(0.75), abs=1e-4)  # .2887 if it were not held constant


@pytest.mark.parametrize("a", [0.0, 1.0])
def test_mixes_of_one_part_are_the_originals(a):
    from contrastneg.negatives.mixes import pair_norms, pair_similarity, query_similarity

    negatives = table()
    column, _ = drawn(20, 2)
    whole = torch.full((5, 20), a, dtype=torch.double)
    x, y = (negatives.similarity.gather(1, one) for one in column)
    assert_close(pair_similarity(x, y, pair_norms(negatives.keys, *column, whole), whole), x if a else y)
    if a == 0:
        assert_close(query_similarity(negatives.query, x, whole), x)


@pytest.mark.parametrize("keys_of", ["shared", "per query", "trained"])
def test_the_stage_adds_what_mixes_really_made_would_add_with_their_gradient(keys_of):
    from contrastneg.negatives import MoCHi, Negatives
    from contrastneg.negatives.mixes import draw, hardest_columns

    query, keys = unit(5, 8).requires_grad_(), unit(40, 8, seed=2)
    ids = torch.arange(100, 140)
    if keys_of == "per query":
        keys, ids = unit(5, 40, 8, seed=2), ids.expand(5, 40)
    if keys_of != "shared":
        keys.requires_grad_()
    negatives = Negatives.of(query, unit(5, 8, seed=1), keys, query_id=torch.arange(5), key_id=ids)
    weight = unit(5, 37, seed=4)
    found = MoCHi(pool=6, pair_mixes=30, query_mixes=7)(negatives, clock()).similarity[:, 40:]

    every = keys.detach().expand(5, 40, 8)
    cosine = torch.einsum("bd,bkd->bk", query.detach(), every)
    hardest = hardest_columns(cosine, None, 6)  # in the order in which the stage draws from them
    assert_close(hardest.sort(dim=1).values, cosine.topk(6, dim=1).indices.sort(dim=1).values)
    draws, full = clock().generator("MoCHi"), torch.full((5,), 6)
    (x, y), a = draw(full, 30, 2, (0.0, 1.0), torch.double, draws)
    (z,), b = draw(full, 7, 1, (0.0, 0.5), torch.double, draws)
    key = [every.gather(1, hardest.gather(1, rank)[..., None].expand(-1, -1, 8)) for rank in (x, y, z)]
    a, b = a[..., None], b[..., None]
    mixed = torch.cat([a * key[0] + (1 - a) * key[1], b * query.detach()[:, None] + (1 - b) * key[2]], dim=1)
    made = torch.einsum("bd,bsd->bs", query, torch.nn.functional.normalize(mixed, dim=-1))
    assert_close(found, made)
    assert_close(*(torch.autograd.grad((of * weight).sum(), query)[0] for of in (found, made)))


@pytest.mark.parametrize(("columns", "count"), [(304, 5), (304, 19), (305, 5)])
@pytest.mark.parametrize("values", [3, 1000])
def test_the_hardest_in_any_order_are_those_of_a_full_sort_also_among_ties_and_beside_a_row_of_nan(
    columns, count, values
):
    from contrastneg.negatives.mixes import largest_columns

    ranked = torch.randint(values, (6, columns), generator=torch.Generator().manual_seed(columns)).float()
    ranked[2, : columns - count] = -torch.inf
    ranked[5] = torch.nan
    found = largest_columns(ranked, count, ordered=False)
    assert all(row.unique().numel() == count and row.min() >= 0 and row.max() < columns for row in found)
    exact = ranked.sort(dim=1, descending=True).values[:5, :count]
    assert_close(ranked.gather(1, found).sort(dim=1, descending=True).values[:5], exact)


@pytest.mark.parametrize(("columns", "count"), [(7, 7), (300, 5), (301, 12), (1003, 100)])
def test_the_hardest_in_two_steps_are_those_of_a_full_sort_without_the_removed(columns, count):
    from contrastneg.negatives.mixes import hardest_columns

    generator = torch.Generator().manual_seed(columns)
    similarity = torch.rand(4, columns, generator=generator)
    kept = torch.rand(4, columns, generator=generator) < 0.8
    kept[3] = False
    kept[3, ::100] = True  # fewer than asked for: the removed ones come last
    found = hardest_columns(similarity, kept, count)
    ranked = similarity.masked_fill(~kept, -torch.inf)
    assert_close(ranked.gather(1, found), ranked.sort(dim=1, descending=True).values[:, :count])
    assert all(row.unique().numel() == count for row in found)


def test_the_number_of_mixes_may_follow_a_schedule():
    from contrastneg.negatives import MoCHi
    from contrastneg.schedules import Linear

    mochi = MoCHi(pool=Linear(4, 20), pair_mixes=Linear(0, 100), query_mixes=0, warmup_epochs=0)
    assert mochi(table(), clock(step=0)).similarity.shape == (5, 40)
    assert mochi(table(), clock(step=50)).similarity.shape == (5, 90)


def test_before_the_warm_up_is_over_and_without_mixes_the_table_is_the_same_object():
    from contrastneg.negatives import MoCHi

    negatives = table()
    assert MoCHi(pool=10, warmup_epochs=10.0)(negatives, clock(9.99)) is negatives
    assert MoCHi(pool=10, pair_mixes=0, query_mixes=0)(negatives, clock()) is negatives


def test_a_pool_of_one_adds_the_hardest_candidate_over_and_over():
    from contrastneg.losses import info_nce
    from contrastneg.negatives import MoCHi

    negatives, t = table(), 0.2
    grown = MoCHi(pool=1, pair_mixes=6, query_mixes=0)(negatives, clock())
    loss = info_nce(grown.positive_similarity, grown.similarity, grown.log_weight, temperature=t)
    logits = negatives.similarity / t
    pos = negatives.positive_similarity / t
    mass = pos.exp() + logits.exp().sum(1) + 6 * logits.amax(1).exp()
    assert_close(loss, mass.log() - pos)


def test_removed_candidates_are_never_mixed():
    from contrastneg.negatives import MoCHi

    negatives = table()
    allowed = torch.zeros(5, 40, dtype=torch.bool)
    allowed[:, :3] = True
    grown = MoCHi(pool=10, pair_mixes=200, query_mixes=0)(negatives.removed(~allowed), clock())
    made = grown.similarity[:, 40:]
    three = negatives.keys[:3]
    for row in range(5):  # every mix lies in the span of the three that are left
        best = (negatives.query[row] @ torch.linalg.qr(three.T)[0]).norm()
        assert (made[row].abs() <= best + 1e-9).all()
    assert (grown.log_weight[:, 40:] == 0).all()


def test_a_query_without_candidates_gets_no_mixes_and_a_loss_of_zero():
    from contrastneg.losses import info_nce
    from contrastneg.negatives import MoCHi

    negatives = table()
    nothing = torch.zeros(5, 40, dtype=torch.bool)
    nothing[2] = True
    grown = MoCHi(pool=10, pair_mixes=20, query_mixes=5)(negatives.removed(nothing), clock())
    assert grown.kept.sum(1).tolist() == [65, 65, 0, 65, 65]
    loss = info_nce(grown.positive_similarity, grown.similarity, grown.log_weight, temperature=0.01)
    assert loss[2] == 0
    assert loss.isfinite().all()


def test_mixes_are_of_the_hardest_and_the_keys_stay_what_they_were():
    from contrastneg.negatives import MoCHi

    negatives = table()
    before = negatives.keys.clone()
    grown = MoCHi(pool=4, pair_mixes=500, query_mixes=0)(negatives, clock())
    fourth = negatives.similarity.topk(4, dim=1).values[:, -1:]
    assert (grown.similarity[:, 40:] >= fourth.clamp(max=0) - 1e-9).all()
    assert torch.equal(negatives.keys, before)
    assert grown.key_id[40:].tolist() == [-1] * 500


def test_no_gradient_reaches_keys_that_are_trained_too_through_a_mix():
    from contrastneg.negatives import MoCHi, Negatives

    query, keys = unit(3, 8).requires_grad_(), unit(20, 8, seed=2).requires_grad_()
    negatives = Negatives.of(query, unit(3, 8, seed=1), keys, query_id=torch.arange(3), key_id=torch.arange(50, 70))
    grown = MoCHi(pool=5, pair_mixes=10, query_mixes=4)(negatives, clock())
    gradient = torch.autograd.grad(grown.similarity[:, 20:].sum(), [query, keys], allow_unused=True)
    assert gradient[0].abs().sum() > 0
    assert gradient[1] is None or gradient[1].abs().sum() == 0


def test_the_same_step_draws_the_same_mixes_and_the_next_others():
    from contrastneg.negatives import MoCHi

    mochi, negatives = MoCHi(pool=10, pair_mixes=8, query_mixes=3), table()
    first, again, later = (mochi(negatives, clock(step=step)).similarity for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


@pytest.mark.parametrize("wrong", [{"pool": 0}, {"pair_mixes": -1}, {"warmup_epochs": -1.0}])
def test_values_out_of_range_are_refused_by_name(wrong):
    from contrastneg.negatives import MoCHi

    with pytest.raises(ValueError, match=f"MoCHi.{next(iter(wrong))} is"):
        MoCHi(**wrong)


def test_before_the_warm_up_is_over_the_loss_is_bit_by_bit_that_of_no_stage():
    from contrastneg.contrast import contrast
    from contrastneg.losses import info_nce
    from contrastneg.negatives import MoCHi

    negatives = table()
    arguments = (negatives.query, negatives.positive, negatives.query_id, negatives.keys, negatives.key_id)
    losses = [
        contrast(*arguments, [MoCHi(**off)], 0.2, clock(epoch))[0]
        for off, epoch in (({}, 3.0), ({"pair_mixes": 0, "query_mixes": 0}, 20.0))
    ]
    plain = contrast(*arguments, [], 0.2, clock())[0]
    assert torch.equal(losses[0], plain)
    assert torch.equal(losses[1], plain)
    of_table = info_nce(negatives.positive_similarity, negatives.similarity, negatives.log_weight, temperature=0.2)
    assert_close(plain, of_table)


def test_every_weight_of_an_untouched_table_stays_one_number_in_memory():
    from contrastneg.negatives import MoCHi

    grown = MoCHi(pool=5, pair_mixes=9, query_mixes=2)(table(), clock())
    assert grown.untouched
    assert grown.log_weight.untyped_storage().nbytes() == 8
    assert not table().removed(torch.eye(5, 40, dtype=torch.bool)).untouched
    assert not replace(table(), log_weight=torch.full((1, 1), -1.0).expand(5, 40)).untouched
    own = table(key_id=torch.arange(40))
    assert not own.untouched
    assert MoCHi(pool=5, pair_mixes=9, query_mixes=2)(own, clock()).kept.sum() == 5 * (39 + 11)


@pytest.mark.parametrize("removed", [False, True])
def test_the_pool_is_the_same_whether_or_not_it_had_to_be_sorted(removed):
    from contrastneg.negatives.mixes import Pool

    negatives = table()
    one = torch.zeros(5, 40, dtype=torch.bool)
    one[0, negatives.similarity[0].argmin()] = removed
    pool = Pool.of(negatives.removed(one), 7)
    exact = negatives.similarity.topk(7, dim=1)
    assert_close(pool.similarity.sort(dim=1, descending=True).values, exact.values)
    assert pool.size.tolist() == [7] * 5


def test_mixes_of_keys_stored_in_bfloat16_are_those_of_the_same_keys_in_float32():
    from contrastneg.negatives import MoCHi, Negatives

    query, keys = unit(5, 8).float(), unit(40, 8, seed=2).bfloat16()
    ids = {"query_id": torch.arange(5), "key_id": torch.arange(100, 140)}
    half, full = (MoCHi(pool=6)(Negatives.of(query, query, k, **ids), clock()) for k in (keys, keys.float()))
    assert torch.equal(half.similarity, full.similarity)


def positive_mixes(negatives, pool_of, count, largest):
    """As vectors (B, count, D), from the numbers that the stage draws."""
    from contrastneg.negatives.mixes import Pool

    pool = Pool.of(negatives, pool_of)
    (x,), a = pool.draw(count, 1, (0.0, largest), clock().generator("PositiveMix"))
    key, a = negatives.keys[pool.column.gather(1, x)], a[..., None]
    return torch.nn.functional.normalize(a * negatives.positive.detach()[:, None] + (1 - a) * key, dim=-1)


def test_positive_mixes_are_those_made_with_the_positive_held_constant():
    from contrastneg.negatives import Negatives, PositiveMix

    query, positive = unit(5, 8).requires_grad_(), unit(5, 8, seed=1).requires_grad_()
    ids = {"query_id": torch.arange(5), "key_id": torch.arange(100, 140)}
    negatives = Negatives.of(query, positive, unit(40, 8, seed=2), **ids)
    found = PositiveMix(pool=6, count=30)(negatives, clock()).similarity[:, 40:]
    exact = torch.einsum("bd,bsd->bs", query, positive_mixes(negatives, 6, 30, 0.5))
    assert_close(found, exact)
    weight = unit(5, 30, seed=4)
    gradient = torch.autograd.grad((found * weight).sum(), [query, positive], allow_unused=True)
    assert_close(gradient[0], torch.autograd.grad((exact * weight).sum(), query)[0])
    assert gradient[1] is None


def test_positive_mixes_of_share_zero_are_candidates():
    from contrastneg.negatives import PositiveMix

    negatives = table()
    grown = PositiveMix(pool=40, count=25, largest=0.0)(negatives, clock()).similarity
    nearest = (grown[:, 40:, None] - negatives.similarity[:, None]).abs().amin(dim=2)
    assert_close(nearest, torch.zeros_like(nearest))


def test_a_positive_mix_of_share_one_is_the_positive():
    from contrastneg.negatives import PositiveMix
    from contrastneg.negatives.mixes import Pool, pair_similarity, products

    negatives = table()
    pool = Pool.of(negatives, 4)
    a = torch.ones(5, 4, dtype=torch.double)
    product = products(pool.keys, pool.column, negatives.positive)
    norm = (a**2 + (1 - a) ** 2 + 2 * a * (1 - a) * product).sqrt()
    own = negatives.positive_similarity[:, None].expand(5, 4)
    assert_close(pair_similarity(own, pool.similarity, norm, a), own)
    assert PositiveMix(count=0)(negatives, clock()) is negatives
