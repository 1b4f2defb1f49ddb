"""Stages with state, their place in the run and in the checkpoint, and the record of what stages do."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import pytorch_lightning as pl
import torch

from contrastneg.negatives import (
    Clock,
    Facts,
    Negatives,
    OracleSameLabel,
    Record,
    Stage,
    StageWithState,
    UniformSubset,
    check_pipeline,
    run_stages,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:.*val_dataloader.*",
)


@dataclass(eq=False)
class Seen(StageWithState):
    """Counts how often each image was a key, and looks at all images before each epoch."""

    kind: ClassVar[str] = "weight"
    times: torch.Tensor = field(init=False, repr=False)
    epochs: torch.Tensor = field(init=False, repr=False)

    strength: float = 0.5
    """Weight per time seen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.register_buffer("times", torch.zeros(0))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.long))

    def begin(self, facts: Facts) -> None:
        self.times = torch.zeros(facts.images)

    def refresh(self, embeddings, clock: Clock) -> None:
        table = embeddings()
        assert table.shape[0] == len(self.times)
        self.epochs += 1

    def update(self, keys, image_id, clock: Clock) -> None:
        self.times.index_add_(0, image_id, torch.ones(len(image_id)))

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        times = self.times[negatives.key_id.clamp(min=0)]
        return replace(negatives, log_weight=negatives.log_weight + self.strength * times)


@dataclass(frozen=True)
class NeedsLabels(Stage):
    """Refuses data without labels."""

    kind: ClassVar[str] = "eliminate"

    def begin(self, facts: Facts) -> None:
        if facts.labels is None:
            raise ValueError("stage NeedsLabels needs labels: there are none")

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        return negatives


def data(labelled=True, **options):
    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.data.views import Views

    pictures = shapes("train").subset(torch.arange(10, 2010, 50))
    pictures = pictures if labelled else replace(pictures, labels=None)
    return PretrainData(pictures, Views(size=16), batch_size=8, **options)


def method(name, stages):
    from contrastneg import Backbone, Head, methods

    torch.manual_seed(0)
    small = {"backbone": Backbone(name="resnet9", width=0.125), "projector": Head(out=16), "stages": stages}
    if name == "MoCo":
        small["queue_size"] = 20
    return getattr(methods, name)(**small)


def trained(model, source, epochs=2, **options):
    settings = {"max_epochs": epochs, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False}
    trainer = pl.Trainer(**settings | quiet | options)
    trainer.fit(model, datamodule=source)
    return trainer


@pytest.mark.parametrize(("name", "views"), [("MoCo", 1), ("SimCLR", 2)])
def test_a_stage_is_told_the_images_each_epoch_and_the_keys_of_each_step(name, views):
    stage = Seen()
    trained(method(name, [stage]), data())
    ids = torch.arange(10, 2010, 50)
    assert stage.times.sum() == 80 * views
    assert (stage.times[ids] == 2 * views).all()  # each image once an epoch, by stable index
    assert stage.epochs == 2


def test_embeddings_are_of_unit_length_by_stable_index_and_missing_where_there_is_no_image():
    seen = []

    class Looks(Seen):
        def refresh(self, embeddings, clock):
            seen.append(embeddings())
            assert embeddings() is seen[-1]  # computed once

    trained(method("MoCo", [Looks()]), data(labelled=False), epochs=1)
    ids = torch.arange(10, 2010, 50)
    assert seen[0].shape == (1961, 16)
    torch.testing.assert_close(seen[0][ids].norm(dim=1), torch.ones(40))
    assert seen[0].isnan().all(dim=1).sum() == 1961 - 40


def test_what_a_stage_remembers_is_in_the_checkpoint_and_comes_back_without_the_data(tmp_path):
    from contrastneg.config import build_method, plain

    model = method("MoCo", [Seen(strength=0.25)])
    trainer = trained(model, data())
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path, weights_only=False)
    assert plain(model.stages[0])["init_args"] == {"strength": 0.25}
    saved = torch.load(path, weights_only=True)["state_dict"]
    again = method("MoCo", [Seen(strength=0.25)])
    again.load_state_dict(saved)
    assert torch.equal(again.stages[0].times, model.stages[0].times)
    assert len(again.stages[0].times) == 1961
    with_subset = method("MoCo", [UniformSubset(4)])
    rebuilt = build_method(type(with_subset), dict(with_subset.hparams))
    assert rebuilt.stages == [UniformSubset(4)]


def test_a_stage_that_cannot_work_on_the_data_refuses_before_the_first_step():
    with pytest.raises(ValueError, match="needs labels"):
        trained(method("SimCLR", [NeedsLabels()]), data(labelled=False))
    trained(method("SimCLR", [NeedsLabels()]), data(), epochs=1)


def test_a_data_module_that_tells_nothing_is_refused_by_stages_that_ask():
    from contrastneg.negatives import Pipeline

    with pytest.raises(ValueError, match=r"the data module has no facts\(dim\)"):
        Pipeline([NeedsLabels()], {"id"}, 8).begin(object())
    Pipeline([UniformSubset(3)], {"id"}, 8).begin(object())


def table(rows=6, keys=40, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(rows + keys, 8, generator=draw), dim=1)
    return Negatives.of(x[:rows], x[:rows], x[rows:], query_id=torch.arange(rows), key_id=torch.arange(keys))


def test_two_stages_of_one_class_and_two_directions_draw_different_numbers():
    clock = Clock(3, 10, 0.5, seed=1)
    first = run_stages(table(), [UniformSubset(20)], clock)
    other = run_stages(table(), [UniformSubset(20)], replace(clock, direction=1))
    assert not torch.equal(first.kept, other.kept)
    assert torch.equal(first.kept, run_stages(table(), [UniformSubset(20)], clock).kept)
    twice = run_stages(table(), [UniformSubset(20), UniformSubset(10)], clock)
    nested = gumbel_of_the_second_alone = run_stages(table(), [UniformSubset(10)], clock)
    assert not torch.equal(twice.kept, nested.kept)
    assert gumbel_of_the_second_alone.kept.sum() == 60


def test_the_record_counts_what_is_kept_its_effective_number_and_its_same_class_share():
    labels = torch.arange(40) % 4
    record = Record(labels)
    thinned = run_stages(table(), [UniformSubset(10)], Clock(0, 1, 0.0, 0), record)
    numbers = {name: number.item() for name, number in record.numbers.items()}
    assert numbers["negatives/all/kept"] == 39  # all but the own image
    assert numbers["negatives/all/effective"] == pytest.approx(39)
    assert numbers["negatives/1_UniformSubset/kept"] == 10
    assert numbers["negatives/1_UniformSubset/effective"] == pytest.approx(10)
    assert numbers["negatives/all/same_class"] == pytest.approx(9 / 39)
    same = (labels[:6, None] == labels) & thinned.kept
    assert numbers["negatives/1_UniformSubset/same_class"] == pytest.approx(
        same.sum().item() / thinned.kept.sum().item()
    )
    assert numbers["negatives/all/empty_rows"] == 0


def test_the_record_weighs_candidates_and_counts_empty_rows():
    record = Record()
    log_weight = torch.full((6, 40), -torch.inf)
    log_weight[0, :2] = torch.tensor([3.0, 3.0])
    log_weight[1, :2] = torch.tensor([0.0, -50.0])
    record.note("x", replace(table(), log_weight=log_weight))
    assert record.numbers["negatives/x/empty_rows"] == pytest.approx(4 / 6)
    assert record.numbers["negatives/x/effective"] == pytest.approx(1.5)
    assert record.numbers["negatives/x/kept"] == pytest.approx(4 / 6)


def test_the_numbers_of_the_stages_are_logged_with_the_step():
    model = method("MoCo", [UniformSubset(4)])
    trainer = trained(model, data(), log_every_n_steps=1)
    logged = trainer.logged_metrics
    assert logged["negatives/1_UniformSubset/kept"] == 4
    assert logged["negatives/all/kept"] >= 19
    assert 0 <= logged["negatives/all/same_class"] <= 1


def test_the_record_counts_attracted_candidates_no_more_than_removed_ones():
    labels = torch.arange(40) % 4
    numbers = {}
    for action in ("eliminate", "attract"):
        record, oracle = Record(labels), OracleSameLabel(action)
        oracle.begin(Facts(40, 8, labels))
        run_stages(table(), [oracle], Clock(0, 1, 0.0, 0), record)
        numbers[action] = {name: number.item() for name, number in record.numbers.items()}
    assert numbers["attract"] == numbers["eliminate"]
    assert numbers["attract"]["negatives/1_OracleSameLabel/kept"] == 30  # of 39, 9 of the query's class
    assert numbers["attract"]["negatives/1_OracleSameLabel/same_class"] == 0
    assert numbers["attract"]["negatives/1_OracleSameLabel/found"] == 9


@pytest.mark.parametrize(
    ("body", "words"),
    [({"kind": "elimnate"}, "kind 'elimnate': give its class one of source"), ({}, "kind None: give its class")],
)
def test_a_stage_of_ones_own_without_a_kind_that_there_is_is_told_what_to_give(body, words):
    mine = type("Mine", (Stage,), {**body, "__call__": lambda self, negatives, clock: negatives})
    with pytest.raises(ValueError, match=rf"method.stages\[0\] Mine has {words}"):
        check_pipeline([mine()], {"id"})


@pytest.mark.parametrize(("found", "words"), [(None, "nothing"), (torch.zeros(2), "a Tensor")])
def test_a_stage_that_returns_no_table_is_named(found, words):
    mine = type("Mine", (Stage,), {"kind": "eliminate", "__call__": lambda self, negatives, clock: found})
    x = torch.nn.functional.normalize(torch.ones(2, 3), dim=1)
    table = Negatives.of(x, x, x, query_id=torch.arange(2), key_id=torch.arange(2, 4))
    with pytest.raises(ValueError, match=rf"method.stages\[0\] Mine returned {words}: a stage returns the table"):
        run_stages(table, [mine()], Clock(0, 1, 0.0, 0))
