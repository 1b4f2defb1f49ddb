"""What the start card notes of stages, losses, counts and queues that do less than they seem to.

The pairs of the survey of methods are in ``tests/negatives/test_forbidden_pairs.py``.
"""

import pytest
import torch
from try_all import LOSSES, STAGES, built, named

from contrastneg import negatives
from contrastneg.doubts import doubts
from contrastneg.negatives import (
    AdversarialBank,
    Clock,
    FixedMass,
    HardCache,
    HardestOfRandom,
    HardestSubset,
    HardnessBand,
    HardnessWeight,
    MoCHi,
    Negatives,
    Stage,
    SynCo,
    UniformSubset,
    check_pipeline,
    run_stages,
)
from contrastneg.objectives import AlignUniform, CosineContrastive, InfoNCE, Objective, Square, check_objective
from contrastneg.schedules import Linear, Power

CURRICULUM = HardnessBand(Power(1.0, 0.0), 1.0)


def stages_of(*names):
    return built(Stage, [named(name, STAGES[name]) for name in names])


def table():
    draws = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(16, 6, generator=draws, dtype=torch.double), dim=1)
    return Negatives.of(x[:4], x[4:8], x[8:], query_id=torch.arange(4), key_id=torch.arange(8, 16))


def gradient(loss, total):
    """Of the queries, where each query's weights have this sum."""
    now, plain = Clock(1, 2, 0.5, 0), table()
    query = plain.query.clone().requires_grad_()
    keys = {"query_id": plain.query_id, "key_id": plain.key_id}
    fresh = Negatives.of(query, plain.positive, plain.keys, **keys)
    weighted = run_stages(fresh, [HardnessWeight(temperature=0.5, detach_weights=True), FixedMass(total)], now)
    if hasattr(loss, "begin"):
        loss.begin(negatives.Facts(16, 6))
    loss(weighted, 0.2, now).sum().backward()
    return query.grad


@pytest.mark.parametrize("name", [*LOSSES, "sum"])
def test_losses_that_say_so_learn_nothing_from_the_sum_of_weights_and_a_stage_of_sums_is_noted(name):
    (loss,) = built(Objective, [named(name, LOSSES[name])]) if name in LOSSES else [CosineContrastive(-1, 1.0, "sum")]
    small, large = (gradient(loss, total) for total in (4.0, 100.0))
    assert loss.ignores_mass == torch.allclose(small, large, atol=1e-9)
    notes = [note for note in doubts([FixedMass()], loss, batch=None) if note.startswith("FixedMass before")]
    assert len(notes) == loss.ignores_mass
    if notes:
        assert "does not depend on the sum of a query's weights" in notes[0]


DOUBTS = {
    "pool and curriculum": (
        lambda: [HardestOfRandom(), CURRICULUM],
        InfoNCE(),
        "HardestOfRandom before HardnessBand: two dials",
    ),
    "pool that grows and tilt": (
        lambda: [HardestOfRandom(64, Linear(64, 512)), HardnessWeight()],
        InfoNCE(),
        "HardestOfRandom before HardnessWeight: two dials",
    ),
    "curriculum and the hardest": (
        lambda: [CURRICULUM, HardestSubset(16)],
        InfoNCE(),
        "HardnessBand before HardestSubset: two dials",
    ),
    "the hardest and uniformity": (
        lambda: [HardestSubset(16)],
        AlignUniform(),
        "HardestSubset before AlignUniform: uniformity is a mean over all candidates",
    ),
    "cached candidates and all data": (
        lambda: stages_of("HardCache"),
        Square(),
        "HardCache before Square: the loss counts all data alike",
    ),
    "more than a source brings": (
        lambda: [UniformSubset(64), MoCHi(pool=256)],
        InfoNCE(),
        "method.stages[1] MoCHi has pool 256 but method.stages[0] UniformSubset leaves a query 64 candidates at most",
    ),
    "all that is left": (
        lambda: [UniformSubset(64), HardestSubset(100)],
        InfoNCE(),
        "method.stages[1] HardestSubset has count 100 but method.stages[0] UniformSubset leaves a query 64 candidates at most: it "
        "keeps them all",
    ),
    "a queue under a bank": (
        lambda: [AdversarialBank(size=128)],
        InfoNCE(),
        "method.stages[0] AdversarialBank replaces the candidates of the queue, which is filled and compared for train/accuracy",
    ),
}


@pytest.mark.parametrize("row", DOUBTS)
def test_what_does_less_than_it_seems_is_built_and_noted(row):
    make, loss, note = DOUBTS[row]
    stages = make()
    check_pipeline(stages, {"queue", "id"})
    check_objective(loss, stages, 0.2)
    found = doubts(stages, loss, batch=None)
    assert any(line.startswith(note) for line in found)
    assert len(set(found)) == len(found) <= 2


def test_counts_beyond_a_cache_are_noted_and_those_that_fit_are_not():
    cache = HardCache(count=30)
    counted, idle = doubts([cache, HardestSubset(500)], InfoNCE(), batch=None)
    assert counted.startswith(
        "method.stages[1] HardestSubset has count 500 but method.stages[0] HardCache leaves a query 30"
    )
    assert idle.startswith("method.stages[0] HardCache replaces the candidates of the queue")
    assert doubts([cache, HardestSubset(29)], InfoNCE(), batch=510) == []
    assert doubts([HardCache(count=30, combine="append"), HardestSubset(500)], InfoNCE(), batch=None) == []
    assert doubts([UniformSubset(Linear(64, 256)), HardestSubset(64)], InfoNCE(), batch=None) == []
    assert doubts([UniformSubset(64), MoCHi(pool=64)], InfoNCE(), batch=None) == []


def test_more_mixes_of_two_than_a_pool_has_pairs_are_noted_once():
    (note,) = doubts([MoCHi(pool=8, pair_mixes=29)], InfoNCE(), batch=None)
    assert note.startswith(
        "method.stages[0] MoCHi has pair_mixes 29 but a pool of 8 has 28 distinct pairs: several mixes"
    )
    (note,) = doubts([SynCo(pool=Linear(4, 64), mixed=7)], InfoNCE(), batch=None)
    assert note.startswith("method.stages[0] SynCo has mixed 7 but a pool of 4 has 6 distinct pairs")
    assert doubts([MoCHi(pool=8, pair_mixes=28), SynCo(pool=64)], InfoNCE(), batch=None) == []
