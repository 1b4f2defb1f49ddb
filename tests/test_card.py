"""What the start card says of a run before it runs."""

from types import SimpleNamespace

import pytest
import torch


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
    trainer = SimpleNamespace(estimated_stepping_batches=3, max_epochs=1)
    line = schedule_line.__wrapped__ if hasattr(schedule_line, "__wrapped__") else schedule_line
    assert line(trainer, 32, config, 97).endswith("1 epoch, 3 optimizer steps of 32 images; 1 image of each epoch, "
                                                  "drawn anew, fill no batch and are left out")  # fmt: skip
    assert line(trainer, 32, config, 96).endswith("3 optimizer steps of 32 images")
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


def small():
    from contrastneg import Backbone

    return {"backbone": Backbone(name="resnet9", width=0.125)}


def test_stages_and_loss_stand_with_the_settings_that_are_not_defaults():
    from contrastneg import MoCHi, MoCo
    from contrastneg.card import method_line, settings_line, stage_rows
    from contrastneg.negatives import OracleSameLabel
    from contrastneg.objectives import Debiased, InfoNCE
    from contrastneg.schedules import Linear

    assert settings_line(InfoNCE()) == "InfoNCE"
    assert settings_line(Debiased(class_prior=0.05)) == "Debiased (class_prior 0.05)"
    assert settings_line(MoCHi(pool=Linear(64, 8))) == "MoCHi (pool Linear (start 64, end 8))"
    stages = [OracleSameLabel(), MoCHi(pool=8, warmup_epochs=0)]
    assert stage_rows(stages) == [
        ("stages", "1. OracleSameLabel (uses true labels)\n2. MoCHi (pool 8, warmup_epochs 0)")
    ]
    assert stage_rows([]) == []
    line = method_line(MoCo(**small(), queue_size=64, momentum=0.99), 32)
    assert line == "MoCo, momentum 0.99, up to 64 queued keys per query"


def test_what_is_scored_and_on_what_is_said_in_plain_words():
    from contrastneg.card import scores_line
    from contrastneg.data.opening import OpenedData
    from contrastneg.data.shapes import shapes

    bank, queries = shapes("train").subset(torch.arange(20)), shapes("test").subset(torch.arange(1))
    line = scores_line(OpenedData(bank, bank, queries, "memory", [], [], []))
    assert "learn from 20 labelled images and are asked about 1 labelled image" in line
    assert scores_line(OpenedData(bank, None, None, "memory", [], [], [])) == "none: there are no labels"


def test_what_changes_images_and_batches_is_on_the_card_and_told_where_it_can_do_nothing():
    from contrastneg import Backbone, MoCo, Pretrain, SimCLR
    from contrastneg.adversary import CLAE
    from contrastneg.card import batches_notes, image_rows
    from contrastneg.data.batches import GraphWalkBatches
    from contrastneg.mixing import UnMix

    small = Backbone(name="resnet9", width=0.125)
    mixed = MoCo(small, queue_size=32, mixing=UnMix(box=0.25))
    walks = GraphWalkBatches(candidates=500)
    assert image_rows(mixed, Pretrain(mixed)) == [("images become", "UnMix (box 0.25)")]
    assert image_rows(MoCo(small), Pretrain(mixed)) == []
    clear = SimCLR(small, adversary=CLAE(step=0.1))
    assert image_rows(clear, Pretrain(clear, batches=walks)) == [
        ("images become", "CLAE (step 0.1)"),
        ("batches", "GraphWalkBatches (candidates 500)"),
    ]
    assert "candidates come from the queue" in batches_notes(mixed, Pretrain(mixed, batches=walks))[0]
    for method in (clear, MoCo(small, queue_size=0)):
        assert batches_notes(method, Pretrain(method, batches=walks)) == []


def test_a_loss_of_several_positives_that_nothing_attracts_is_told():
    from contrastneg import Backbone, MoCo
    from contrastneg.card import stage_notes
    from contrastneg.negatives import SameCluster
    from contrastneg.objectives import MultiPositive

    small = {"backbone": Backbone(name="resnet9", width=0.125), "queue_size": 32, "loss": MultiPositive()}
    assert "no stage attracts any" in stage_notes(MoCo(**small))[0]
    assert stage_notes(MoCo(**small, stages=[SameCluster(action="attract")])) == []
