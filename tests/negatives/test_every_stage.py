"""What holds for every stage of the package, each begun, refreshed and fed with the keys of some steps.

Rows as of failures known from other tools: an image that is its own negative, slots that were never filled, small
temperatures and half precision, rows with nothing left, numbers that a device does not have.
"""

import math
from dataclasses import replace

import pytest
import torch
from small_stages import with_those_before
from try_all import LOSSES, STAGES, built, named
from widths import Float64Made

from contrastneg import KeyQueue, negatives
from contrastneg.contrast import contrast
from contrastneg.negatives import Clock, Facts, Negatives, Stage, run_stages
from contrastneg.objectives import InfoNCE, Objective

IMAGES, QUERIES, DIM = 24, 6, 8
NOW = Clock(6, 10, 6.0, 0)
PRECISIONS = [None, torch.bfloat16, torch.float16]
KIND = {name: getattr(negatives, name).kind for name in STAGES}
pytestmark = pytest.mark.filterwarnings("ignore:.*clusters were asked for.*")


def unit(*shape, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, DIM, generator=draws), dim=-1)


def ready(name):
    """A stage, and those before it, in the middle of a run on 24 images of which the last 6 were never met."""
    stages = built(Stage, [named(*part) for part in with_those_before(name)])
    label = torch.arange(IMAGES) % 3
    columns = {"oracle_class": label, "oracle_kind": (label > 0).long()}
    for place, stage in enumerate(stages):
        stage.begin(Facts(IMAGES, DIM, labels=label, columns=columns))
        for step in range(6):
            clock = replace(NOW, step=step, epoch=float(step), stage=place)
            if step in (0, 1):
                stage.refresh(lambda: unit(IMAGES, seed=5).index_fill(0, torch.arange(18, 24), math.nan), clock)
            ids = torch.arange(step % 3 * 6, step % 3 * 6 + 6)
            stage.update(unit(6, seed=10 + step), ids, clock)
    return stages


def table(keys=18, dtype=torch.float32, per_query=False, nothing_for=()):
    """Six queries and keys of images among which their own stand, one of them twice."""
    key_id = torch.cat([torch.arange(18), torch.tensor([2, 3])])[: keys + 2 if keys else 0]
    rows = unit(len(key_id), seed=2).to(dtype)
    if per_query:
        rows, key_id = rows.expand(QUERIES, -1, -1), key_id.expand(QUERIES, -1)
    query = unit(QUERIES, seed=1).to(dtype).requires_grad_()
    positive = torch.nn.functional.normalize(query.detach() + 0.3 * unit(QUERIES, seed=3).to(dtype), dim=1)
    made = Negatives.of(query, positive, rows, query_id=torch.arange(QUERIES), key_id=key_id, support=positive[:, None])
    gone = torch.zeros_like(made.kept)
    gone[list(nothing_for)] = True
    return made.removed(gone) if len(nothing_for) else made


def loss_of(negatives, temperature=0.2):
    return InfoNCE()(negatives, temperature, NOW)


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("name", STAGES)
def test_no_query_is_contrasted_with_its_own_image_in_either_direction(name, per_query):
    stages = ready(name)
    for direction in (0, 1):
        after = run_stages(table(per_query=per_query), stages, replace(NOW, direction=direction))
        assert after.log_weight.shape == after.similarity.shape
        own = (after.key_id == after.query_id[:, None]).expand_as(after.kept)
        assert not (after.kept & own).any()
        assert after.attracted is None or not (after.attracted & own).any()
        assert after.kept.any()


@pytest.mark.parametrize("name", [name for name in STAGES if KIND[name] != "source"])
def test_what_was_removed_does_not_come_back(name):
    before = table(nothing_for=[2])
    before = before.removed(torch.arange(20).expand(QUERIES, -1) % 3 == 1)
    after = run_stages(before, ready(name), NOW)
    assert not (after.kept[:, :20] & ~before.kept).any()


@pytest.mark.parametrize("name", STAGES)
def test_rows_that_were_never_written_do_not_matter(name):
    stages, others = ready(name), ready(name)
    for stage in others:
        for part in stage.modules() if isinstance(stage, torch.nn.Module) else ():
            if isinstance(part, negatives.bank.KeyBank):
                part.keys[~part.filled] = unit(int((~part.filled).sum()), seed=9)
    for stage in stages:
        assert not hasattr(stage, "memory") or not stage.memory.filled.all() or hasattr(stage, "graph")
    one, other = (loss_of(run_stages(table(), some, NOW)) for some in (stages, others))
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", STAGES)
def test_what_unfilled_slots_of_the_queue_hold_does_not_matter_and_no_stage_changes_the_queue(name):
    found = []
    for noise in (0.0, 1.0):
        queue = KeyQueue(24, DIM)
        queue.keys.add_(noise * unit(24, seed=9))
        queue.push(unit(20, seed=2), torch.cat([torch.arange(18), torch.tensor([2, 3])]))
        state = {part: buffer.clone() for part, buffer in queue.state_dict().items()}
        query = unit(QUERIES, seed=1).requires_grad_()
        positive = torch.nn.functional.normalize(query.detach() + 0.3 * unit(QUERIES, seed=3), dim=1)
        given = query, positive, torch.arange(QUERIES), *queue.filled_keys(), ready(name), 0.2, NOW
        loss, _, _ = contrast(*given, support=positive[:, None])
        loss.sum().backward()
        assert all(torch.equal(buffer, state[part]) for part, buffer in queue.state_dict().items())
        found.append((loss.detach(), query.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", [name for name in STAGES if KIND[name] != "source" or name == "NeighbourPositive"])
def test_a_query_with_nothing_left_has_loss_and_gradient_exactly_zero_under_every_loss(name):
    stages = ready(name)
    for loss_name, settings in LOSSES.items():
        before = table(nothing_for=[2])
        after = run_stages(before, stages, NOW)
        (loss,) = built(Objective, [named(loss_name, settings)])
        values = loss(after, 0.2, NOW)
        (slope,) = torch.autograd.grad(values.sum(), before.query)
        assert values[2] == 0, loss_name
        assert (slope[2] == 0).all(), loss_name
        assert values.isfinite().all(), loss_name
        assert slope.isfinite().all(), loss_name


@pytest.mark.parametrize("name", STAGES)
def test_an_empty_queue_is_no_trouble(name):
    before = table(keys=0)
    loss = loss_of(run_stages(before, ready(name), NOW))
    (slope,) = torch.autograd.grad(loss.sum(), before.query)
    assert loss.isfinite().all()
    assert slope.isfinite().all()
    if KIND[name] != "source":
        assert (loss == 0).all()
        assert (slope == 0).all()


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", STAGES)
def test_small_temperatures_and_half_precision_stay_finite(name, precision):
    stages = ready(name)
    for temperature in (0.01, 0.05, 0.07, 0.2):
        for alike in (False, True):  # all candidates at similarity 1, and the positive too
            before = table()
            if alike:
                same = before.query.detach()[:1]
                before = Negatives.of(
                    same.expand(QUERIES, -1).clone().requires_grad_(),
                    same.expand(QUERIES, -1),
                    same.expand(20, -1),
                    query_id=before.query_id,
                    key_id=before.key_id,
                    support=same.expand(QUERIES, 1, -1),
                )
            with torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
                after = run_stages(before, stages, replace(NOW, temperature=temperature))
                loss = loss_of(after, temperature)
            (slope,) = torch.autograd.grad(loss.sum(), before.query)
            assert loss.dtype == torch.float32
            assert loss.isfinite().all()
            assert slope.isfinite().all()


@pytest.mark.parametrize("name", STAGES)
def test_float32_numbers_stay_float32_on_their_way_through_a_step(name):
    stages, before = ready(name), table()
    with Float64Made() as made:
        loss_of(run_stages(before, stages, NOW)).sum().backward()
        for place, stage in enumerate(stages):
            stage.update(unit(6, seed=20), torch.arange(6), replace(NOW, stage=place))
    assert made.names == set()


def test_equal_candidates_and_their_mixes_count_as_so_many():
    same = unit(1).expand(4, -1)
    for temperature in (0.01, 0.05, 0.07, 0.2):
        before = Negatives.of(same, same, same, query_id=torch.arange(4), key_id=torch.arange(10, 14))
        after = negatives.MoCHi(pool=4, pair_mixes=3, query_mixes=2, warmup_epochs=0.0)(before, NOW)
        torch.testing.assert_close(loss_of(after, temperature), torch.full((4,), math.log(10)), atol=1e-3, rtol=0)
