"""Shares of own-image and same-class candidates against a comparison of every pair."""

import math

import pytest
import pytorch_lightning as pl
import torch

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*"
)


@pytest.mark.parametrize("seed", range(5))
def test_shares_equal_a_count_over_all_pairs(seed):
    from contrastneg.candidates import own_share, same_class_share

    generator = torch.Generator().manual_seed(seed)
    query_id = torch.randperm(40, generator=generator)[:9]
    key_id = torch.randint(-1, 40, (25,), generator=generator)
    labels = torch.randint(-1, 3, (40,), generator=generator)

    own = (query_id[:, None] == key_id[None]) & (key_id >= 0)
    assert own_share(query_id, key_id) == pytest.approx(own.float().mean().item())

    key_label = torch.where(key_id >= 0, labels[key_id.clamp(min=0)], -1)
    known = (labels[query_id][:, None] >= 0) & (key_label[None] >= 0) & ~own
    same = known & (labels[query_id][:, None] == key_label[None])
    assert same_class_share(query_id, key_id, labels) == pytest.approx(same.sum().item() / known.sum().item())


def test_unfilled_keys_and_unknown_labels_are_nobodys_own_and_no_class():
    from contrastneg.candidates import own_share, same_class_share

    ids, empty = torch.arange(4), torch.full((6,), -1)
    assert own_share(ids, empty) == 0.0
    assert math.isnan(same_class_share(ids, torch.arange(4), torch.full((4,), -1)))


def test_with_ten_equal_classes_a_tenth_of_the_candidates_are_of_the_querys_class():
    from contrastneg.candidates import same_class_share

    labels = torch.arange(1000) % 10
    share = same_class_share(torch.arange(100), torch.arange(100, 1000), labels)
    assert share == pytest.approx(0.1)


@pytest.mark.parametrize("steps_held", [1, 2, 4, 7])
def test_an_image_meets_an_older_key_of_its_own_as_often_as_two_epochs_drawn_anew_say(steps_held):
    from contrastneg import KeyQueue
    from contrastneg.candidates import own_share
    from contrastneg.data.batches import ShuffledBatches

    images, batch, epochs = 40, 8, 160
    steps, queue = images // batch, KeyQueue(batch * steps_held, 1)
    met = []
    for epoch in range(epochs):
        for ids in ShuffledBatches().order(images, batch, 0, epoch).split(batch):
            key_id = queue.filled_keys()[1]
            if epoch > 1:
                pairs = own_share(ids, key_id.unique()) * len(key_id.unique())  # one pair for each image that is there
                met.append(pairs)
            queue.push(torch.zeros(batch, 1), ids)
    # An image comes back after steps + p - r steps, p and r its places in the two epochs, each anywhere among the steps.
    # In the limit of many small steps that is K^2 / (2 n^2), of K keys no more than n images.
    back = [steps + p - r for p in range(steps) for r in range(steps)]
    expected = sum(gap <= steps_held for gap in back) / steps**2
    if steps_held <= steps:
        assert expected == pytest.approx(batch * steps_held * batch * (steps_held + 1) / (2 * images**2))
    visits = images * (epochs - 2)
    spread = math.sqrt(expected * (1 - expected) / visits)
    assert sum(met) / len(met) == pytest.approx(expected, abs=4.5 * spread)


class Truth(pl.Callback):
    """Looks at the candidates before each micro-batch, pair by pair; a step keeps what its last micro-batch saw."""

    def __init__(self, labels):
        self.labels = labels
        self.steps, self.ends = {}, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        key_id, query_id = pl_module.queue.image_id, batch.image_id[:, None]
        key_id = key_id[key_id >= 0]
        own, same = query_id == key_id, self.labels[query_id] == self.labels[key_id]
        self.steps[trainer.global_step] = {
            "candidates/queue_fill": len(key_id) / len(pl_module.queue.keys),
            "candidates/queue_age": torch.arange(len(key_id))
            .div(len(query_id), rounding_mode="floor")
            .add(1.0)
            .mean()
            .item(),
            "candidates/own": own.double().mean().item(),
            "candidates/same_class": ((same & ~own).sum() / (~own).sum()).item(),
        }

    def on_train_epoch_end(self, trainer, pl_module):
        shares = ("queue_fill", "queue_age", "own", "same_class")
        seen = {f"candidates/{name}": float(trainer.callback_metrics[f"epoch/{name}"]) for name in shares}
        self.ends.append((seen, self.steps[trainer.global_step - 1]))


@pytest.mark.parametrize(("log_every", "accumulate"), [(1, 1), (2, 1), (3, 2), (4, 3)])
def test_every_row_tells_the_candidates_of_its_own_step_and_every_epoch_those_of_its_last(
    tmp_path, log_every, accumulate
):
    import csv

    from contrastneg import Backbone, Head, MoCo, Optimizer, Views
    from contrastneg.candidates import CandidateShares
    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.runfolder import MetricsCsv

    pictures = shapes("train").subset(torch.arange(0, 2000, 50))
    data = PretrainData(pictures, Views(size=16), batch_size=6)
    table = data.label_table()
    assert table is not None
    truth = Truth(table)
    small = {
        "backbone": Backbone(name="resnet9", width=0.125),
        "projector": Head(out=16),
        "optimizer": Optimizer(lr=0.1),
    }
    trainer = pl.Trainer(
        max_epochs=4, accelerator="cpu", logger=MetricsCsv(tmp_path / "metrics.csv", lambda: 0.0),
        callbacks=[CandidateShares(table), truth], log_every_n_steps=log_every, accumulate_grad_batches=accumulate,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(MoCo(**small, queue_size=60), datamodule=data)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == list(range(log_every - 1, trainer.global_step, log_every))
    for row in rows[log_every == 1 :]:  # before the first step the queue is empty
        expected = truth.steps[int(row["step"])]
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected, rel=1e-5)
    with (tmp_path / "metrics.csv").open() as file:
        told = [row for row in csv.DictReader(file) if row["epoch/same_class"]]
    assert len(told) == len(truth.ends) == 4
    for row, (_, expected) in zip(told, truth.ends, strict=True):  # what the epoch's line prints stands in the file
        found = {name: float(row[name.replace("candidates", "epoch")]) for name in expected}
        assert found == pytest.approx(expected, rel=1e-5)
    for seen, expected in truth.ends:
        assert seen == pytest.approx(expected, rel=1e-5)


def test_shares_of_a_queue_that_a_source_stage_replaces_or_adds_to_are_left_out():
    from contrastneg import Backbone, Head, MoCo
    from contrastneg.candidates import CandidateShares, source_of
    from contrastneg.negatives import MemoryBank, NeighbourPositive

    ids, labels = torch.arange(4), torch.arange(8) % 2
    found = {}
    for name, stages in {
        "queue": [],
        "replaced": [MemoryBank(count=4)],
        "added": [MemoryBank(count=4, combine="append")],
        "other positive": [NeighbourPositive(size=4)],
    }.items():
        method = MoCo(Backbone(name="resnet9", width=0.125), Head(out=4), queue_size=8, stages=stages)
        method.queue.push(torch.eye(4), torch.arange(4))
        found[name] = set(CandidateShares(labels).shares(method, ids))
        assert (source_of(method) is not None) == (name == "replaced")
    every = {"queue_fill", "queue_age", "own", "same_class"}
    added = {"queue_fill", "queue_age"}
    assert found == {"queue": every, "replaced": set(), "added": added, "other positive": every}


def test_a_batch_must_have_the_candidates_that_stages_ask_for_unless_a_source_gives_others():
    from contrastneg import Backbone, Head, MoCo, SimCLR
    from contrastneg.candidates import check_batch
    from contrastneg.negatives import HardestSubset, MemoryBank

    small = {"backbone": Backbone(name="resnet9", width=0.125), "projector": Head(out=4)}
    check_batch(SimCLR(**small, stages=[HardestSubset(14)]), 8)
    with pytest.raises(ValueError, match="count of HardestSubset is 15 but a batch has 14 candidates"):
        check_batch(SimCLR(**small, stages=[HardestSubset(15)]), 8)
    check_batch(SimCLR(**small, stages=[MemoryBank(count=99), HardestSubset(15)]), 8)
    check_batch(MoCo(**small, queue_size=15, stages=[HardestSubset(15)]), 8)


def pairs_by_hand(table, labels):
    """Own pairs among candidates, and pairs of one class among those of two images of known class, one by one."""
    key_id = table.key_id.expand(len(table.query_id), -1).tolist()
    weights = table.log_weight.tolist()
    own = there = same = known = 0
    for i, query in enumerate(table.query_id.tolist()):
        for key, weight in zip(key_id[i], weights[i], strict=True):
            mine = key == query
            there += mine or weight > -math.inf
            own += mine
            if not mine and weight > -math.inf and key >= 0 and min(labels[key], labels[query]) >= 0:
                known += 1
                same += int(labels[key] == labels[query])
    return own / there if there else math.nan, same / known if known else math.nan


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("MoCo", "added bank"),
        ("MoCo", "added walk"),
        ("MoCo", "bank"),
        ("MoCo", "graph walk"),
        ("MoCo", "cache"),
        ("SimCLR", "added bank"),
    ],
)
def test_what_sources_choose_is_counted_as_it_is_pair_by_pair(tmp_path, monkeypatch, kind, source):
    import csv

    import contrastneg
    from contrastneg import Backbone, Head, Optimizer, Views
    from contrastneg.candidates import CandidateShares
    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.negatives import Edges, GraphWalk, HardCache, MemoryBank, Record
    from contrastneg.runfolder import MetricsCsv

    stage = {
        "added bank": lambda: MemoryBank(count=7, combine="append"),
        "bank": lambda: MemoryBank(count=7),
        "added walk": lambda: GraphWalk(edges=Edges(4, start=1), combine="append"),
        "graph walk": lambda: GraphWalk(edges=Edges(4, start=1)),
        "cache": lambda: HardCache(size=6, count=3, explore=4),
    }[source]()
    pictures = shapes("train").subset(torch.arange(0, 2000, 50))
    data = PretrainData(pictures, Views(size=16), batch_size=6)
    labels = data.label_table()
    labels[pictures.image_id[:5]] = -1
    monkeypatch.setattr(data, "label_table", lambda: labels)
    counted, plain, replaced = {}, Record.note_candidates, "added" not in source
    told = ["own", "same_class"] if replaced else ["same_class"]  # of what one query is offered no other has a share

    def counting(record, table, **said):
        counted[trainer.global_step] = pairs_by_hand(table, labels.tolist())[0 if replaced else 1 :]
        plain(record, table, **said)

    monkeypatch.setattr(Record, "note_candidates", counting)
    settings = {"queue_size": 60} if kind == "MoCo" else {}
    method = getattr(contrastneg, kind)(
        Backbone(name="resnet9", width=0.125), Head(out=16), optimizer=Optimizer(lr=0.1), stages=[stage], **settings
    )
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=MetricsCsv(tmp_path / "metrics.csv", lambda: 0.0),
        callbacks=[CandidateShares(labels)], log_every_n_steps=4,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(method, datamodule=data)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["train/loss"]]
    assert [int(row["step"]) for row in steps] == [3, 7, 11, 15]
    assert {"candidates/own" in rows[0], "epoch/own" in rows[0]} == {replaced}
    for row in steps:
        found = [float(row[f"candidates/{name}"]) for name in told]
        assert found == pytest.approx(counted[int(row["step"])], rel=1e-5, nan_ok=True)
    ends = [row for row in rows if row["epoch/same_class"]]
    assert len(ends) == 3
    for number, row in enumerate(ends):  # the last step of each epoch, logged or not
        found = [float(row[f"epoch/{name}"]) for name in told]
        assert found == pytest.approx(counted[6 * number + 5], rel=1e-5, nan_ok=True)
