"""Stages that select and weigh, given by name as a YAML file gives them, and within a run."""

import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from pytorch_lightning.callbacks import ModelCheckpoint

from contrastneg import negatives
from contrastneg.config import plain
from contrastneg.negatives import (
    AdaptiveCount,
    BestResponse,
    ClusterSize,
    ColumnSize,
    FixedMass,
    GapSubset,
    GaussianWeight,
    HardestOfRandom,
    HardestQueries,
    HardestSubset,
    HardnessBand,
    HardnessWeight,
    HitRate,
    InDegree,
    LearnedPolicy,
    PopularityWeight,
    PopularSubset,
    RankSubset,
    RelatedSubset,
    RelatedWeight,
    SamplingCorrection,
    SemiHardSubset,
    SoftClusterWeight,
    SoftmaxSubset,
    Stage,
    UniformSubset,
)
from contrastneg.schedules import Linear, Power

GIVEN = [
    AdaptiveCount(count=64, mass="plain"),
    BestResponse(),
    FixedMass(Linear(8.0, 4.0)),
    GapSubset(8),
    GaussianWeight(),
    HardestOfRandom(8, pool=16),
    HardestQueries(0.5),
    HardestSubset(8, "positive", 0.5),
    HardnessBand(Power(1.0, 0.0), 1.0, count=16),
    HardnessWeight(beta=Linear(2.0, 0.0)),
    LearnedPolicy(),
    PopularSubset(popularity=HitRate(share=0.1), level="entry", exponent=-0.5),
    PopularSubset(popularity=ColumnSize("location")),
    PopularityWeight(popularity=InDegree(5), level="entry"),
    RankSubset(8),
    RelatedSubset(differs_in="sequence"),
    RelatedWeight(column="family"),
    SamplingCorrection(0.5),
    SemiHardSubset(8),
    SoftClusterWeight(clusters=5),
    SoftmaxSubset(8, score="loss"),
    UniformSubset(8),
]


@pytest.mark.parametrize("stage", GIVEN, ids=lambda stage: type(stage).__name__)
def test_a_stage_survives_its_settings_file(stage):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--stages", type=list[Stage])
    (again,) = parser.instantiate(parser.parse_object({"stages": [plain(stage)]})).stages
    assert type(again) is type(stage)
    assert plain(again) == plain(stage)


def test_no_stage_that_selects_or_weighs_is_left_out_here():
    known = [getattr(negatives, name) for name in negatives.__all__]
    stages = {k for k in known if isinstance(k, type) and getattr(k, "kind", "") in ("select", "weight")}
    assert stages == {type(stage) for stage in GIVEN} & stages
    assert all(isinstance(stage, Stage) for stage in GIVEN)


def data():
    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.data.views import Views

    return PretrainData(shapes("train").subset(torch.arange(10, 2010, 50)), Views(size=16), batch_size=8)


def method(stages):
    from contrastneg import Backbone, Head, MoCo

    torch.manual_seed(0)
    small = {"backbone": Backbone(name="resnet9", width=0.125), "projector": Head(out=16), "queue_size": 64}
    return MoCo(**small, stages=stages)


def fit(module, folder, resume=None):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    every = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    trainer = pl.Trainer(max_epochs=3, callbacks=[every], use_distributed_sampler=False, **quiet)
    trainer.fit(module, datamodule=data(), ckpt_path=resume)


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:.*val_dataloader.*",
    "ignore:.*exists and is not empty.*",
)
def test_stages_with_state_work_in_a_run_and_a_resumed_run_ends_alike(tmp_path):
    def stages():
        return [
            PopularSubset(popularity=ClusterSize(clusters=5), count=24),
            RelatedSubset(count=16),
            AdaptiveCount(count=8, smallest=2, false_negatives=0.1),
            PopularityWeight(popularity=HitRate(), level="entry"),
            RelatedWeight(),
            SoftClusterWeight(clusters=4),
            SamplingCorrection(),
        ]

    whole, again = method(stages()), method(stages())
    fit(whole, tmp_path)
    fit(again, tmp_path, resume=tmp_path / "epoch=1.ckpt")
    for (name, one), two in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    state = {name.rpartition(".")[2]: value for name, value in whole.state_dict().items() if "states" in name}
    assert state["centers"].any()
    assert state["measured"]
    assert state["frequency"].any()
