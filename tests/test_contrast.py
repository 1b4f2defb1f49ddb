"""The loss without a table against the loss over the table."""

import math

import pytest
import torch
from torch.testing import assert_close


def unit(*shape, seed=0, dtype=torch.double):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1).to(dtype)


def clock(epoch=20.0, step=7):
    from contrastneg.negatives import Clock

    return Clock(step, 100, epoch, 0)


def ids(n_keys, own):
    """Images behind the keys: all of others, one in seven a query's own, or nearly all those of query 3."""
    key_id = torch.arange(100, 100 + n_keys)
    if own == "some":
        key_id[::7] = torch.arange(len(key_id[::7])) % 9
    if own == "nearly all of one query":
        key_id[1:] = 3
    if own == "all of one query":
        key_id[:] = 3
    return key_id


def by_table(query, positive, keys, key_id, stages, temperature, objective, at):
    """What :func:`contrast` returns where it makes the table, written out."""
    from contrastneg.negatives import Negatives, run_stages

    negatives = Negatives.of(query, positive, keys, query_id=torch.arange(len(query)), key_id=key_id)
    hardest = negatives.similarity.detach().masked_fill(~negatives.kept, -math.inf).amax(dim=1)
    first = negatives.positive_similarity.detach() > hardest
    negatives = run_stages(negatives, stages, at)
    return objective(negatives, temperature, at), first, negatives.repelled.any(dim=1)


def both(
    monkeypatch, keys, key_id, stage, temperature=0.2, objective=None, dtype=torch.double, at=None, autocast=False
):
    """Losses, hits and gradient with and without the table."""
    from contrastneg.contrast import contrast
    from contrastneg.negatives import Negatives
    from contrastneg.objectives import InfoNCE

    objective, at = objective or InfoNCE(), at or clock()
    upstream = torch.linspace(-1, 2, 9, dtype=dtype)
    query, positive = unit(9, 16, dtype=dtype).requires_grad_(), unit(9, 16, seed=1, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        expected = by_table(query, positive, keys, key_id, [stage], temperature, objective, at)
    (exact,) = torch.autograd.grad(expected[0], query, upstream)
    with monkeypatch.context() as patch, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        patch.setattr(Negatives, "of", lambda *a, **k: pytest.fail("the table was made"))
        found = contrast(query, positive, torch.arange(9), keys, key_id, [stage], temperature, at, objective)
    (gradient,) = torch.autograd.grad(found[0], query, upstream)
    return (*found, gradient), (*expected, exact)


@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize("own", ["none", "some", "nearly all of one query", "all of one query"])
@pytest.mark.parametrize(("n_keys", "pool"), [(3, 50), (40, 6), (40, 40), (1003, 20)])
def test_mochi_without_the_table_is_mochi_with_it(n_keys, pool, own, temperature, monkeypatch):
    from contrastneg.negatives import MoCHi

    stage = MoCHi(pool=pool, pair_mixes=30, query_mixes=7)
    found, expected = both(monkeypatch, unit(n_keys, 16, seed=2), ids(n_keys, own), stage, temperature)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert found[3].isfinite().all()


@pytest.mark.parametrize("name", ["Debiased", "HardWeighted", "Decoupled", "DualTemperature", "Square", "AlignUniform"])
def test_every_loss_that_is_algebra_on_sums_has_its_mixes_without_the_table(name, monkeypatch):
    from contrastneg import objectives
    from contrastneg.negatives import MoCHi

    loss, stage = getattr(objectives, name)(), MoCHi(pool=6, pair_mixes=30, query_mixes=7)
    found, expected = both(monkeypatch, unit(40, 16, seed=2), ids(40, "some"), stage, objective=loss)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("pairs", "singles"), [(5, 0), (0, 5)])
def test_one_kind_of_mixes_and_a_pool_on_a_schedule_need_no_table_either(pairs, singles, monkeypatch):
    from contrastneg.negatives import MoCHi
    from contrastneg.schedules import Linear

    stage = MoCHi(pool=Linear(4, 20), pair_mixes=pairs, query_mixes=singles, warmup_epochs=0)
    for step in (0, 50, 100):
        found, expected = both(monkeypatch, unit(40, 16, seed=2), ids(40, "some"), stage, at=clock(step=step))
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("keys", [torch.float, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_in_float32_the_two_agree_to_1e_6_also_with_bfloat16_keys_and_under_autocast(keys, autocast, monkeypatch):
    from contrastneg.negatives import MoCHi

    stage = MoCHi(pool=30, pair_mixes=30, query_mixes=7)
    keys = unit(400, 16, seed=2, dtype=keys)
    found, expected = both(monkeypatch, keys, ids(400, "some"), stage, dtype=torch.float, autocast=autocast)
    assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
    assert_close(found[3], expected[3], rtol=1e-5, atol=1e-5)


def test_accuracy_is_over_the_keys_as_they_came_and_the_record_tells_that_over_what_the_loss_saw():
    from contrastneg.contrast import contrast
    from contrastneg.negatives import HardestSubset, MoCHi, Record

    query, keys = unit(9, 16), unit(40, 16, seed=2)
    positive = torch.nn.functional.normalize(query + 0.9 * unit(9, 16, seed=1), dim=1)
    given = (query, positive, torch.arange(9), keys, ids(40, "none"))
    plain = contrast(*given, [], 0.2, clock())[1]
    for stage in (HardestSubset(5), MoCHi(pool=6, pair_mixes=30, query_mixes=300)):
        record = Record()
        assert torch.equal(contrast(*given, [stage], 0.2, clock(), record=record)[1], plain)
        seen = record.numbers["loss/accuracy"]
        assert seen == plain.float().mean() if isinstance(stage, HardestSubset) else seen < plain.float().mean()


def test_queries_that_a_stage_left_nothing_are_no_hits_of_what_the_loss_saw():
    from contrastneg.contrast import contrast
    from contrastneg.negatives import HardestQueries, Record

    query, keys, record = unit(9, 16), unit(40, 16, seed=2), Record()
    given = (query, -query, torch.arange(9), keys, ids(40, "none"), [HardestQueries(share=0.5)], 0.2, clock())
    contrasted = contrast(*given, record=record)[2]
    assert 0 < contrasted.sum() < 9
    assert record.numbers["loss/accuracy"] == 0


def test_stages_see_the_temperature_of_the_loss_whatever_the_clock_says():
    from dataclasses import replace

    from contrastneg.contrast import contrast
    from contrastneg.negatives import HardnessWeight

    given = (
        unit(9, 16),
        unit(9, 16, seed=1),
        torch.arange(9),
        unit(40, 16, seed=2),
        ids(40, "none"),
        [HardnessWeight()],
        0.1,
    )
    told, untold = (contrast(*given, replace(clock(), temperature=temperature))[0] for temperature in (0.1, 0.2))
    assert torch.equal(told, untold)


def test_keys_may_be_overwritten_before_the_backward_pass():
    from contrastneg.contrast import contrast
    from contrastneg.negatives import MoCHi

    query, keys = unit(9, 16).requires_grad_(), unit(40, 16, seed=2)
    arguments = (torch.arange(9), keys, ids(40, "none"), [MoCHi(pool=6, pair_mixes=30, query_mixes=7)], 0.2, clock())
    kept, overwritten = (contrast(query, unit(9, 16, seed=1), *arguments)[0].sum() for _ in range(2))
    (expected,) = torch.autograd.grad(kept, query)
    keys.zero_()
    assert_close(torch.autograd.grad(overwritten, query)[0], expected)


def test_a_recorded_step_has_the_same_loss_and_an_empty_queue_none():
    from contrastneg.contrast import contrast
    from contrastneg.negatives import MoCHi, Record

    query, positive, keys, record = unit(9, 16), unit(9, 16, seed=1), unit(40, 16, seed=2), Record()
    arguments = ([MoCHi(pool=6, pair_mixes=30, query_mixes=7)], 0.2, clock())
    plain = contrast(query, positive, torch.arange(9), keys, ids(40, "some"), *arguments)[0]
    recorded = contrast(query, positive, torch.arange(9), keys, ids(40, "some"), *arguments, record=record)[0]
    assert_close(plain, recorded)
    assert record.numbers["negatives/1_MoCHi/kept"] > 37
    loss, _, contrasted = contrast(query, positive, torch.arange(9), keys[:0], ids(0, "none"), *arguments)
    assert (loss == 0).all()
    assert not contrasted.any()


@pytest.mark.parametrize("table", [False, True])
def test_a_query_that_became_nan_counts_as_contrasted_and_one_without_keys_does_not(table):
    from contrastneg.contrast import contrast

    query, keys, key_id = unit(3, 16), unit(4, 16, seed=2), torch.tensor([2, 2, 2, 2])
    query[1] = math.nan
    if table:
        keys.requires_grad_()
    loss, first, contrasted = contrast(query, unit(3, 16, seed=1), torch.arange(3), keys, key_id, [], 0.2, clock())
    assert loss.isnan().tolist() == [False, True, False]
    assert contrasted.tolist() == [True, True, False]
    assert not first[1]
