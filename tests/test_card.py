"""What the start card says of a run before it runs."""

import re
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from pytorch_lightning import Trainer


@pytest.mark.parametrize(
    ("size", "epochs", "symmetric", "words"),
    [
        (64, 4, False, None),
        (96, 4, False, None),
        (97, 4, False, "full after 1.0 epochs"),
        (385, 4, False, "never fills: the run makes 384"),
        (385, 4, True, "full after 2.0 epochs"),
    ],
)
def test_a_queue_that_does_not_suit_the_images_is_told(size, epochs, symmetric, words):
    from contrastneg import Backbone, MoCo, Pretrain
    from contrastneg.card import queue_notes

    method = MoCo(Backbone(name="resnet9", width=0.125), queue_size=size, symmetric=symmetric)
    notes = queue_notes(method, Pretrain(method=method, epochs=epochs, batch_size=32), images=100, world_size=1)
    assert notes == [] if words is None else words in notes[0]


def test_a_method_without_a_queue_has_nothing_to_say_about_it():
    from contrastneg import Backbone, Pretrain, SimCLR
    from contrastneg.card import queue_notes

    method = SimCLR(Backbone(name="resnet9", width=0.125))
    assert queue_notes(method, Pretrain(method=method), images=100, world_size=1) == []


def test_the_schedule_line_counts_the_images_that_fill_no_batch():
    from contrastneg import Backbone, Pretrain, SimCLR
    from contrastneg.card import schedule_line

    config = Pretrain(method=SimCLR(Backbone(name="resnet9", width=0.125)), epochs=1)
    counts = {"num_training_batches": 3, "accumulate_grad_batches": 1, "estimated_stepping_batches": 3}
    trainer, line = MagicMock(spec=Trainer, max_epochs=1, max_steps=-1, **counts), schedule_line
    assert line(trainer, 32, config, 97).endswith("1 epoch, 3 optimizer steps of 32 images; 1 image of each epoch, "
                                                  "drawn anew, fill no batch and are left out")  # fmt: skip
    assert line(trainer, 32, config, 96).endswith("3 optimizer steps of 32 images")
    trainer.max_steps, trainer.max_epochs = 3, 50
    longer = Pretrain(method=config.method, epochs=50, max_steps=3)
    assert line(trainer, 32, longer, 96) == "within 1 epoch of the 50 asked for, 3 optimizer steps of 32 images"
    trainer.max_steps, trainer.max_epochs = -1, 1
    smaller = Pretrain(method=config.method, epochs=1, batch_size=16, drop_last=False)  # two processes of 16
    assert line(trainer, 32, smaller, 99).endswith(
        "; 3 images of each epoch, drawn anew, fill no batch and are left out"
    )
    assert line(trainer, 32, smaller, 100).endswith("3 optimizer steps of 32 images")


def stages_that_wait():
    from contrastneg import negatives
    from contrastneg.negatives.graph import Edges

    return {
        "MoCHi": (negatives.MoCHi(warmup_epochs=3), negatives.MoCHi(warmup_epochs=2)),
        "SynCo": (negatives.SynCo(warmup_epochs=3), negatives.SynCo(warmup_epochs=2)),
        "AbovePositive": (negatives.AbovePositive(begin_at=1.0), negatives.AbovePositive(begin_at=0.9)),
        "GlobalQuantile": (negatives.GlobalQuantile(begin_at=1.0), negatives.GlobalQuantile(begin_at=0.5)),
        "GraphWalk": (negatives.GraphWalk(edges=Edges(start=3)), negatives.GraphWalk(edges=Edges(start=2))),
        "HopMix": (negatives.HopMix(start=3), negatives.HopMix(start=2)),
        "MinedNeighbours": (negatives.MinedNeighbours(start=3), negatives.MinedNeighbours()),
        "SoftClusterWeight": (negatives.SoftClusterWeight(start=4), negatives.SoftClusterWeight(start=0)),
        "PopularityWeight": (
            negatives.PopularityWeight(popularity=negatives.ClusterSize(start=3)),
            negatives.PopularityWeight(popularity=negatives.ClusterSize(start=2)),
        ),
    }


@pytest.mark.parametrize("name", ["MoCHi", "SynCo", "AbovePositive", "GlobalQuantile", "GraphWalk", "MinedNeighbours", "HopMix",
                                  "SoftClusterWeight", "PopularityWeight"])  # fmt: skip
def test_a_stage_that_begins_after_the_end_of_the_run_is_told_and_no_other(name):
    from contrastneg import Pretrain, SimCLR
    from contrastneg.card import late_stage_notes

    late, early = stages_that_wait()[name]
    method = SimpleNamespace(stages=[early, late])
    settings = Pretrain(method=SimCLR(**small()), batch_size=10, epochs=3)
    (note,) = late_stage_notes(method, settings, images=107, world_size=1)
    assert note.startswith(
        f"stage {name} does nothing in this run: it begins at epoch {3 if name != 'SoftClusterWeight' else 4}"
    )
    assert "the run ends after 3 (" in note


def test_a_run_that_max_steps_cuts_short_ends_before_the_stage_begins():
    from contrastneg import MoCHi, Pretrain, SimCLR
    from contrastneg.card import late_stage_notes

    method = SimpleNamespace(stages=[MoCHi(warmup_epochs=1)])
    for steps, told in ((None, 0), (6, 0), (5, 1)):  # five steps in an epoch: the sixth is the first of the second
        settings = Pretrain(method=SimCLR(**small()), batch_size=10, accumulate=2, epochs=3, max_steps=steps)
        assert len(late_stage_notes(method, settings, images=107, world_size=1)) == told


def test_thresholds_that_cannot_have_come_down_when_they_begin_to_act_are_told_with_the_step():
    from contrastneg import Pretrain, SimCLR
    from contrastneg.card import threshold_notes
    from contrastneg.negatives import Clock, Facts, GlobalQuantile, Negatives

    stage = GlobalQuantile(rate=0.05, begin_at=0.5)
    method = SimpleNamespace(stages=[stage])
    settings = Pretrain(method=SimCLR(**small()), batch_size=10, epochs=8)
    (note,) = threshold_notes(method, settings, images=107, world_size=1)
    assert note.startswith("method.stages[0] GlobalQuantile acts from step 40 of 80 on (begin_at 0.5)")
    assert "can have come down to 0.80, and to 0.60 by the end" in note
    long = Pretrain(method=SimCLR(**small()), batch_size=10, epochs=40)  # down to 0 when they begin to act
    assert threshold_notes(method, long, images=107, world_size=1) == []
    for begin_at in (0.0, 0.05):  # they come down while it acts
        early = SimpleNamespace(stages=[GlobalQuantile(rate=0.05, begin_at=begin_at)])
        assert threshold_notes(early, long, images=107, world_size=1) == []
        assert len(threshold_notes(early, settings, images=107, world_size=1)) == 1
    late = SimpleNamespace(stages=[GlobalQuantile(begin_at=1.0)])  # which is told as doing nothing
    assert threshold_notes(late, settings, images=107, world_size=1) == []

    stage.begin(Facts(images=2, dim=2))
    query, clock = torch.eye(2), Clock(0, 80, 0.0, 0)
    for _ in range(4):  # epochs
        table = Negatives.of(query, query, query, query_id=torch.arange(2), key_id=torch.arange(2))
        stage(table, clock)
        stage.update(query, torch.arange(2), clock)
    torch.testing.assert_close(stage.threshold, torch.full((2,), 0.8))


def small():
    from contrastneg import Backbone

    return {"backbone": Backbone(name="resnet9", width=0.125)}


def test_stages_and_loss_stand_with_all_their_settings_one_a_line():
    from contrastneg import MoCHi, MoCo
    from contrastneg.card import method_line, settings_line, stage_rows
    from contrastneg.negatives import MemoryBank, OracleSameLabel
    from contrastneg.objectives import Debiased, HardWeighted, InfoNCE
    from contrastneg.schedules import Linear

    assert settings_line(InfoNCE()) == "InfoNCE"
    assert settings_line(Debiased()) == "Debiased (class_prior 0.1)"
    hard = "HardWeighted (beta Linear (start 1, end 0, begin 0, finish 1), class_prior 0.1, detach_weights false)"
    assert settings_line(HardWeighted(beta=Linear(1.0, 0.0))) == hard
    assert "bank Bank (momentum 0.5, dtype float32, fill false))" in settings_line(MemoryBank())
    lines = dict(stage_rows([OracleSameLabel(), MoCHi(pool=8)]))["stages"].splitlines()
    assert lines[0] == "1. OracleSameLabel (action eliminate) (uses true labels)"
    assert re.fullmatch(r"2\. MoCHi \(pool 8, pair_mixes \d+, query_mixes \d+, .*warmup_epochs \d+.*\)", lines[1])
    assert stage_rows([]) == []
    line = method_line(MoCo(**small(), queue_size=64, momentum=0.99), 32)
    assert line == "MoCo, momentum 0.99, up to 64 queued keys per query"


def test_candidates_of_a_batch_are_both_views_of_the_others_in_simclr_and_their_keys_in_moco():
    from contrastneg import MoCo, SimCLR
    from contrastneg.card import method_line

    assert method_line(SimCLR(**small()), 32) == "SimCLR, 62 batch negatives per query"
    assert method_line(MoCo(**small(), queue_size=0), 32).endswith("31 batch negatives per query")


@pytest.mark.parametrize(
    ("warmup", "settings", "told"),
    [
        (3.0, {}, None),
        (3.2, {}, "warms up for 3.2 epochs and the run ends after 3, at 95 % of the rate"),
        (
            1.0,
            {"max_steps": 5},
            "the run ends after 0.833, at 83 % of the rate (lower --method.optimizer.warmup_epochs",
        ),
        (1.0, {"max_steps": 6}, None),
    ],
)
def test_a_learning_rate_that_is_still_on_its_way_up_at_the_end_is_told(warmup, settings, told):
    from contrastneg import Optimizer, Pretrain, SimCLR
    from contrastneg.card import warmup_notes

    method = SimCLR(**small(), optimizer=Optimizer(warmup_epochs=warmup))
    config = Pretrain(method=method, batch_size=10, accumulate=2, epochs=3, **settings)
    notes = warmup_notes(method, config, images=120, world_size=1)
    assert notes == [] if told is None else told in notes[0]


@pytest.mark.parametrize(("name", "views"), [("MoCo", 1), ("SimCLR", 2)])
def test_a_support_queue_that_the_run_never_fills_is_told(name, views):
    import contrastneg
    from contrastneg.card import queue_notes
    from contrastneg.negatives import NeighbourPositive

    queue = {"queue_size": 16} if name == "MoCo" else {}
    for spare in (0, 1):
        stages = [NeighbourPositive(size=3 * 96 * views + spare)]
        method = getattr(contrastneg, name)(**small(), stages=stages, **queue)
        config = contrastneg.Pretrain(method=method, epochs=3, batch_size=32)
        notes = [note for note in queue_notes(method, config, images=100, world_size=1) if "support" in note]
        assert len(notes) == spare
        assert all(f"method.stages[0]: the support queue of {288 * views + 1} embeddings" in note for note in notes)


def test_what_is_scored_and_on_what_is_said_in_plain_words():
    import contrastneg
    from contrastneg.card import scores_line
    from contrastneg.data.opening import OpenedData
    from contrastneg.data.shapes import shapes

    bank, queries = shapes("train").subset(torch.arange(20)), shapes("test").subset(torch.arange(1))
    config = contrastneg.Pretrain(method=contrastneg.SimCLR(**small()))
    line = scores_line(OpenedData(bank, bank, queries, "memory", [], [], []), config)
    assert "learn from 20 labelled images and are asked about 1 labelled image" in line
    assert (
        scores_line(OpenedData(bank, None, None, "memory", [], [], []), config)
        == "none: there is no labelled image to ask about"
    )
    off = replace(config, final_scores=False, knn_every=0, probe=False)
    assert scores_line(OpenedData(bank, bank, queries, "memory", [], [], []), off).startswith("none: final_scores, knn")


def test_what_changes_images_and_batches_is_on_the_card_and_told_where_it_can_do_nothing():
    from contrastneg import Backbone, MoCo, Pretrain, SimCLR
    from contrastneg.adversary import CLAE
    from contrastneg.card import batches_notes, image_rows
    from contrastneg.data.batches import GraphWalkBatches
    from contrastneg.mixing import UnMix

    small = Backbone(name="resnet9", width=0.125)
    mixed = MoCo(small, queue_size=32, mixing=UnMix(box=0.25))
    walks = GraphWalkBatches(candidates=500, neighbours=7)
    assert image_rows(mixed, Pretrain(mixed)) == [("images become", "UnMix (alpha 1, box 0.25)")]
    assert image_rows(MoCo(small), Pretrain(mixed)) == []
    clear = SimCLR(small, adversary=CLAE(step=0.1))
    (become, changed), (batches, order) = image_rows(clear, Pretrain(clear, batches=walks))
    assert (become, batches) == ("images become", "batches")
    assert changed.startswith("CLAE (step 0.1, ")
    assert order.startswith("GraphWalkBatches (candidates 500, neighbours 7, ")
    assert "candidates come from the queue" in batches_notes(mixed, Pretrain(mixed, batches=walks))[0]
    for method in (clear, MoCo(small, queue_size=0)):
        assert batches_notes(method, Pretrain(method, batches=walks)) == []


def test_a_loss_of_several_positives_that_nothing_attracts_is_told():
    from contrastneg import Backbone, MoCo
    from contrastneg.card import stage_notes
    from contrastneg.negatives import SameCluster
    from contrastneg.objectives import MultiPositive

    small = {"backbone": Backbone(name="resnet9", width=0.125), "queue_size": 32, "loss": MultiPositive()}
    assert "no stage attracts any" in stage_notes(MoCo(**small), 8)[0]
    assert stage_notes(MoCo(**small, stages=[SameCluster(action="attract")]), 8) == []


@pytest.mark.parametrize("mix", ["IMix", "UnMix"])
@pytest.mark.parametrize("stage", ["SupportViews", "SupportMemory"])
def test_stages_that_look_for_images_like_a_mixed_query_are_told(mix, stage):
    from contrastneg import MoCo, mixing, negatives
    from contrastneg.card import stage_notes

    settings = {**small(), "queue_size": 32, "stages": [getattr(negatives, stage)()]}
    (note,) = stage_notes(MoCo(**settings, mixing=getattr(mixing, mix)()), 8)
    assert note.startswith(f"{mix} before {stage}: a mixed query shows two images")
    assert stage_notes(MoCo(**settings), 8) == []
