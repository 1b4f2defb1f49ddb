"""What cannot compose is refused when it is built, in one sentence; what only looks as if it composed is noted.

The rows are those of the survey of methods, section 3.4. Without a test of refusal are:

- whole-data losses with stages: Spectral and Square take second moments of the keys only without stages, and the table after
  them, where they compose (below); the losses that never form pairs are functions and no losses of a method;
- a queue under caches and chains: those bring a memory of all images of their own;
- BPR or Triplet with weights of another sum: both take the weighted mean, which has no sum (below);
- adversarial views in input space over a queue: not built.
"""

import pytest
import torch
from try_all import LOSSES, STAGES, built, named

from contrastneg import negatives
from contrastneg.doubts import doubts
from contrastneg.negatives import (
    Clock,
    FixedMass,
    HardnessBand,
    HardnessWeight,
    Negatives,
    PopularSubset,
    SamplingCorrection,
    SoftmaxSubset,
    Stage,
    UniformSubset,
    check_pipeline,
    run_stages,
)
from contrastneg.objectives import (
    BPR,
    HardWeighted,
    InfoNCE,
    MultiPositive,
    Objective,
    Spectral,
    Triplet,
    check_objective,
)
from contrastneg.schedules import Power


def stages_of(*names):
    return built(Stage, [named(name, STAGES[name]) for name in names])


PROVIDES = {"queue", "id", "support"}
BY_IMAGE = [name for name in STAGES if "id" in stages_of(name)[0].needs]
SOURCES = [name for name in STAGES if stages_of(name)[0].chooses and name != "AdversarialBank"]
MADE = [name for name in STAGES if getattr(negatives, name).kind == "synthesize"]
IID = ["AdaptiveCount", "FixedMass", "HardnessWeight", "MemoryBank", "SamplingCorrection", "UniformSubset"]


def check(stages, loss):
    check_pipeline(stages, PROVIDES)
    check_objective(loss, stages, 0.2)


def refusal(*names, loss="InfoNCE"):
    stages, (made,) = stages_of(*names), built(Objective, [named(loss, LOSSES[loss])])
    with pytest.raises(ValueError, match=".") as refused:
        check(stages, made)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name", BY_IMAGE)
def test_learned_vectors_show_no_image_to_what_works_by_image(name):
    line = refusal("AdversarialBank", name)
    assert line.startswith(f"method.stages[1], {name} needs 'id', which AdversarialBank took away")


@pytest.mark.parametrize("name", SOURCES)
def test_a_bank_of_learned_vectors_does_not_throw_away_what_another_source_took(name):
    assert f"AdversarialBank needs 'candidates of the method', which {name} took away" in refusal(
        name, "AdversarialBank"
    )


@pytest.mark.parametrize("name", [name for name in SOURCES if hasattr(stages_of(name)[0], "combine")])
def test_no_source_replaces_what_another_chose(name):
    (second,) = built(Stage, [named(name, STAGES[name] | {"combine": "replace"})])
    with pytest.raises(ValueError, match=".") as refused:
        check_pipeline([*stages_of("MemoryBank"), second], PROVIDES)
    assert str(refused.value) == (
        f"method.stages[1], {name} replaces the candidates that MemoryBank chose: give it combine append, or leave one of them "
        "out"
    )
    (beside,) = built(Stage, [named(name, STAGES[name] | {"combine": "append"})])
    check_pipeline([*stages_of("MemoryBank"), beside], PROVIDES)
    check_pipeline([*stages_of("NeighbourPositive"), second], PROVIDES)  # which chooses no candidates


@pytest.mark.parametrize(
    "later", ["PopularityWeight", "PopularSubset", "SamplingCorrection", "SameCluster", "HardCache"]
)
@pytest.mark.parametrize("made", MADE)
def test_candidates_that_are_made_come_after_all_that_works_by_image_or_by_law(made, later):
    assert f"stands after {made} (synthesize): order stages as source" in refusal(made, later)


@pytest.mark.parametrize(
    "chosen", ["HardestSubset", "HardestOfRandom", "HardnessBand", "GapSubset", "SemiHardSubset", "Redundant"]
)
def test_no_correction_follows_a_choice_by_rank_even_if_a_law_is_recorded_after_it(chosen):
    assert "SamplingCorrection needs" in refusal(chosen, "SamplingCorrection")
    assert f"needs 'all ranks', which {chosen} took away" in refusal(chosen, "UniformSubset", "SamplingCorrection")
    line = refusal(*(["UniformSubset", chosen] if chosen != "Redundant" else [chosen]), "SamplingCorrection")
    assert f"which {chosen} took away" in line


@pytest.mark.parametrize("loss", ["Debiased", "HardWeighted"])
@pytest.mark.parametrize("name", [name for name in STAGES if name not in IID])
def test_a_debiased_loss_takes_candidates_drawn_alike_only(name, loss):
    assert refusal(name, loss=loss).startswith((f"loss {loss} needs 'iid', which stage {name} takes away", "stage "))


@pytest.mark.parametrize("loss", ["Debiased", "HardWeighted"])
def test_a_debiased_loss_takes_what_leaves_the_law_alone(loss):
    (loss,) = built(Objective, [named(loss, LOSSES[loss])])
    for name in set(IID) - {"SamplingCorrection"}:
        check_objective(loss, stages_of(name), 0.2)


def test_a_margin_on_cosines_has_no_softmax_to_correct():
    line = refusal("UniformSubset", "SamplingCorrection", loss="CosineContrastive")
    assert line.startswith("loss CosineContrastive needs 'no correction', which stage SamplingCorrection takes away")


@pytest.mark.parametrize("made", MADE)
def test_a_policy_has_no_probability_of_candidates_that_are_made(made):
    assert refusal("LearnedPolicy", made) == (
        f"method.stages[1], {made} stands after LearnedPolicy, which knows no probability of candidates that are made: "
        "leave one of them out"
    )


def table():
    draws = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(16, 6, generator=draws, dtype=torch.double), dim=1)
    return Negatives.of(x[:4], x[4:8], x[8:], query_id=torch.arange(4), key_id=torch.arange(8, 16))


def test_spectral_loss_of_the_table_after_stages_is_its_mean_over_what_is_kept():
    after = run_stages(table(), [UniformSubset(3), HardnessWeight(temperature=0.5)], Clock(0, 1, 0.0, 0))
    share = (after.log_weight.exp() / after.log_weight.exp().sum(dim=1, keepdim=True)).detach()
    expected = (share * after.similarity**2).sum(dim=1) - 2 * after.positive_similarity
    torch.testing.assert_close(Spectral()(after, 0.2, Clock(0, 1, 0.0, 0)), expected)


@pytest.mark.parametrize("loss", [BPR(), Triplet()], ids=str)
def test_losses_of_pairs_do_not_see_the_sum_of_weights(loss):
    now = Clock(0, 1, 0.0, 0)
    weighted = run_stages(table(), [HardnessWeight(temperature=0.5)], now)
    scaled = run_stages(weighted, [FixedMass(1000.0)], now)
    torch.testing.assert_close(loss(scaled, 0.2, now), loss(weighted, 0.2, now))


CURRICULUM = HardnessBand(Power(1.0, 0.0), 1.0)
DOUBTS = {
    "made above the positive": (
        lambda: stages_of("AbovePositive", "MoCHi"),
        InfoNCE(),
        "AbovePositive before MoCHi: cand",
    ),
    "made beyond the gap": (
        lambda: stages_of("SemiHardSubset", "SynCo"),
        InfoNCE(),
        "SemiHardSubset before SynCo: cand",
    ),
    "correction of popularity": (
        lambda: [PopularSubset(), SamplingCorrection()],
        InfoNCE(),
        "PopularSubset before SamplingCorrection: they cancel in expectation",
    ),
    "clusters twice": (
        lambda: [*stages_of("SameCluster"), PopularSubset()],
        InfoNCE(),
        "SameCluster before PopularSubset: both take weight",
    ),
    "tilt drawn and weighed": (
        lambda: [SoftmaxSubset(), HardnessWeight()],
        InfoNCE(),
        "SoftmaxSubset before HardnessWeight: the tilt towards hard candidates is applied twice",
    ),
    "tilt of stage and loss": (
        lambda: [HardnessWeight()],
        HardWeighted(),
        "HardnessWeight before HardWeighted: the tilt towards hard candidates is applied twice",
    ),
    "curriculum and tilt": (
        lambda: [CURRICULUM, HardnessWeight()],
        InfoNCE(),
        "HardnessBand before HardnessWeight: two dials",
    ),
    "curriculum and pool": (
        lambda: [CURRICULUM, *stages_of("HardestOfRandom")],
        InfoNCE(),
        "HardnessBand before HardestOfRandom: two dials",
    ),
}


@pytest.mark.parametrize("row", DOUBTS)
def test_what_only_looks_as_if_it_composed_is_built_and_noted_once(row):
    make, loss, note = DOUBTS[row]
    stages = make()
    check_pipeline(stages, PROVIDES)
    check_objective(loss, stages, 0.2)
    (found,) = doubts(stages, loss, batch=None)
    assert found.startswith(note)


def test_attraction_among_a_batch_is_noted_unless_it_is_the_oracles_or_a_queue_is_there():
    attracting = built(Stage, [named("SameCluster", {"action": "attract"})])
    (note,) = doubts(attracting, MultiPositive(), batch=510)
    assert note.startswith(
        "SameCluster attracts among the batch alone, 510 candidates a query: with more classes than that"
    )
    assert doubts(attracting, MultiPositive(), batch=None) == []
    assert doubts(built(Stage, [named("OracleSameLabel", {"action": "attract"})]), MultiPositive(), batch=510) == []


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_alone_gives_no_doubt(name):
    assert doubts(stages_of(name), InfoNCE(), batch=None) == []


def test_doubts_stand_among_the_notes_of_the_start_card():
    from contrastneg import Backbone, Head, MoCo
    from contrastneg.card import stage_notes

    small = {"backbone": Backbone(name="resnet9", width=0.125), "projector": Head(out=16), "queue_size": 512}
    (note,) = stage_notes(MoCo(**small, stages=[SoftmaxSubset(), HardnessWeight()]), 8)
    assert note.startswith("SoftmaxSubset before HardnessWeight")
