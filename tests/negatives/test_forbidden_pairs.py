"""What cannot compose is refused when it is built, in one sentence; what only looks as if it composed is noted.

The rows are those of the survey of methods, section 3.4. Without a test of refusal are:

- a queue under caches and chains: those bring a memory of all images of their own, which a queue that turns over leaves alone;
- BPR or Triplet with weights of another sum: both take the weighted mean, which has no sum: noted (``tests/test_doubts.py``);
- adversarial views in input space over a queue: not built.
"""

from functools import cache

import pytest
import torch
from try_all import LOSSES, STAGES, built, named

from contrastneg import negatives
from contrastneg.doubts import doubts
from contrastneg.negatives import (
    Clock,
    Facts,
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
    AlignUniform,
    HardWeighted,
    InfoNCE,
    MultiPositive,
    Objective,
    Spectral,
    check_objective,
)
from contrastneg.schedules import Power


@cache
def stage_of(name):
    """One of each is enough: nothing but the test of keys that left the queue changes a stage, and that has its own."""
    (stage,) = built(Stage, [named(name, STAGES[name])])
    return stage


@cache
def loss_of(name):
    (loss,) = built(Objective, [named(name, LOSSES[name])])
    return loss


def stages_of(*names):
    return [stage_of(name) for name in names]


PROVIDES = {"queue", "id", "support"}
BY_IMAGE = [name for name in STAGES if "id" in stages_of(name)[0].needs]
SOURCES = [name for name in STAGES if stages_of(name)[0].chooses and name != "AdversarialBank"]
MADE = [name for name in STAGES if getattr(negatives, name).kind == "synthesize"]
IID = ["AdaptiveCount", "FixedMass", "HardnessWeight", "MemoryBank", "SamplingCorrection", "UniformSubset"]


def check(stages, loss):
    check_pipeline(stages, PROVIDES)
    check_objective(loss, stages, 0.2)


def objection(stages, loss):
    """What is said against stages before a loss; nothing if they may stand there."""
    try:
        check(stages, loss)
    except ValueError as error:
        return str(error)
    return ""


def refusal(*names, loss="InfoNCE"):
    line = objection(stages_of(*names), loss_of(loss))
    assert line
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", BY_IMAGE)
def test_learned_vectors_show_no_image_to_what_works_by_image(name):
    line = refusal("AdversarialBank", name)
    assert line.startswith(
        f"method.stages[1] {name} needs the image behind each candidate, which it cannot have after method.stages[0] AdversarialBank"
    )


@pytest.mark.parametrize("name", SOURCES)
def test_a_bank_of_learned_vectors_does_not_throw_away_what_another_source_took(name):
    assert (
        f"AdversarialBank needs the candidates of queue or batch, which it cannot have after method.stages[0] {name}: "
        in refusal(name, "AdversarialBank")
    )


@pytest.mark.parametrize("name", [name for name in SOURCES if hasattr(stages_of(name)[0], "combine")])
def test_no_source_replaces_what_another_chose(name):
    (second,) = built(Stage, [named(name, STAGES[name] | {"combine": "replace"})])
    with pytest.raises(ValueError, match=".") as refused:
        check_pipeline([*stages_of("MemoryBank"), second], PROVIDES)
    assert str(refused.value) == (
        f"method.stages[1] {name} replaces the candidates that method.stages[0] MemoryBank chose: give it combine append, or "
        "leave one of them out"
    )
    (beside,) = built(Stage, [named(name, STAGES[name] | {"combine": "append"})])
    check_pipeline([*stages_of("MemoryBank"), beside], PROVIDES)
    check_pipeline([*stages_of("NeighbourPositive"), second], PROVIDES)  # which chooses no candidates


@pytest.mark.parametrize(
    "later", ["PopularityWeight", "PopularSubset", "SamplingCorrection", "SameCluster", "HardCache"]
)
@pytest.mark.parametrize("made", MADE)
def test_candidates_that_are_made_come_after_all_that_works_by_image_or_by_law(made, later):
    assert f"stands after method.stages[0] {made} (synthesize): order stages as source" in refusal(made, later)


@pytest.mark.parametrize(
    "chosen", ["HardestSubset", "HardestOfRandom", "HardnessBand", "GapSubset", "SemiHardSubset", "Redundant"]
)
def test_no_correction_follows_a_choice_by_rank_even_if_a_law_is_recorded_after_it(chosen):
    assert "SamplingCorrection needs" in refusal(chosen, "SamplingCorrection")
    assert f"needs candidates of every hardness, which it cannot have after method.stages[0] {chosen}" in refusal(
        chosen, "UniformSubset", "SamplingCorrection"
    )
    line = refusal(*(["UniformSubset", chosen] if chosen != "Redundant" else [chosen]), "SamplingCorrection")
    assert f"which it cannot have after method.stages[{'01'[chosen != 'Redundant']}] {chosen}: leave" in line


@pytest.mark.parametrize("loss", ["Debiased", "HardWeighted"])
@pytest.mark.parametrize("name", [name for name in STAGES if name not in IID])
def test_a_debiased_loss_takes_candidates_drawn_alike_only(name, loss):
    line = refusal(name, loss=loss)
    if line.startswith("method.loss"):
        wanted = "candidates drawn at random, which it cannot have after method.stages[0]"
        assert line == f"method.loss {loss} needs {wanted} {name}: leave the stage out, or take another loss"
    else:
        assert line.startswith("method.stages[0] ")


@pytest.mark.parametrize("loss", ["Debiased", "HardWeighted"])
def test_a_debiased_loss_takes_what_leaves_the_law_alone(loss):
    for name in set(IID) - {"SamplingCorrection"}:
        assert objection(stages_of(name), loss_of(loss)) == ""


def test_a_margin_on_cosines_has_no_softmax_to_correct():
    line = refusal("UniformSubset", "SamplingCorrection", loss="CosineContrastive")
    assert line.startswith(
        "method.loss CosineContrastive needs candidates whose draw is not corrected, which it cannot have after method.stages[1] Sam"
    )


@pytest.mark.parametrize("name", ["HardCache", "MetropolisChain", "ScoreHistory"])
def test_caches_and_chains_keep_their_candidates_when_the_keys_have_left_the_queue(name):
    (stage,) = built(Stage, [named(name, STAGES[name])])
    images, batch = 64, 8
    stage.begin(Facts(images, 6))
    keys = torch.nn.functional.normalize(torch.randn(images, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    first, last = torch.arange(batch), torch.arange(images - batch, images)
    for epoch in range(2):  # while the queue holds one batch
        for ids in torch.arange(images).split(batch):
            stage.update(keys[ids], ids, Clock(0, 1, epoch, 0))
    queue = Negatives.of(keys[first], keys[first], keys[last], query_id=first, key_id=last)
    after = run_stages(queue, [stage], Clock(1, 2, 1.0, 0))
    older = after.kept & ~torch.isin(after.key_id, last)
    assert older.any(dim=1).all()
    expected = (keys[first][:, None] * keys[after.key_id]).sum(dim=2)
    torch.testing.assert_close(after.similarity[older], expected[older])


@pytest.mark.parametrize("made", MADE)
def test_a_policy_has_no_probability_of_candidates_that_are_made(made):
    assert refusal("LearnedPolicy", made) == (
        f"method.stages[1] {made} stands after method.stages[0] LearnedPolicy, which knows no probability of candidates that are made: "
        "leave one of them out"
    )


def table():
    draws = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(16, 6, generator=draws, dtype=torch.double), dim=1)
    return Negatives.of(x[:4], x[4:8], x[8:], query_id=torch.arange(4), key_id=torch.arange(8, 16))


GROUPS = {"FixedMass", "MetadataTiers", "OracleSameLabel", "PopularityWeight", "RelatedWeight", "SameCluster"}
BY_PAIR = [name for name in STAGES if name not in GROUPS and getattr(negatives, name).kind != "source"]


@pytest.mark.parametrize("loss", ["Spectral", "Square"])
@pytest.mark.parametrize("name", [name for name in BY_PAIR if name != "SamplingCorrection"])
def test_a_loss_over_every_pair_takes_no_stage_that_chooses_makes_or_weighs_pairs(name, loss):
    assert refusal(name, loss=loss) == (
        f"method.loss {loss} needs all candidates, weighed alike for all queries, which it cannot have after method.stages[0] "
        f"{name}: leave the stage out, or take another loss"
    )


@pytest.mark.parametrize("loss", ["Spectral", "Square"])
def test_a_loss_over_every_pair_takes_weights_of_images_groups_that_are_dropped_and_sources(loss):
    for name in sorted(set(STAGES) - set(BY_PAIR)):
        assert objection(stages_of(name), loss_of(loss)) == ""
    assert objection([HardnessBand(), UniformSubset()], AlignUniform()) == ""


def test_what_nobody_gave_is_said_to_be_missing_with_the_stages_that_give_it_and_blames_nobody():
    for earlier in ([], ["AbovePositive"]):
        line = refusal(*earlier, "SamplingCorrection")
        assert line.startswith(
            f"method.stages[{len(earlier)}] SamplingCorrection needs the probability of each draw, which no stage before it "
            "gives: put AdaptiveCount or "
        )
        assert " or UniformSubset" in line
        assert "AbovePositive" not in line


def test_spectral_loss_of_the_table_after_stages_is_its_mean_over_what_is_kept():
    after = run_stages(table(), [UniformSubset(3), HardnessWeight(temperature=0.5)], Clock(0, 1, 0.0, 0))
    share = (after.log_weight.exp() / after.log_weight.exp().sum(dim=1, keepdim=True)).detach()
    expected = (share * after.similarity**2).sum(dim=1) - 2 * after.positive_similarity
    torch.testing.assert_close(Spectral()(after, 0.2, Clock(0, 1, 0.0, 0)), expected)


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
def test_a_stage_alone_gives_no_doubt_among_a_batch(name):
    assert doubts(stages_of(name), InfoNCE(), batch=100_000) == []


def test_doubts_stand_among_the_notes_of_the_start_card():
    from contrastneg import Backbone, Head, MoCo
    from contrastneg.card import stage_notes

    small = {"backbone": Backbone(name="resnet9", width=0.125), "projector": Head(out=16), "queue_size": 512}
    (note,) = stage_notes(MoCo(**small, stages=[SoftmaxSubset(), HardnessWeight()]), 8)
    assert note.startswith("SoftmaxSubset before HardnessWeight")
