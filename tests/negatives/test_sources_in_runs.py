"""Sources within training runs: MoCo and SimCLR, a resumed run, settings as plain values."""

import pytest
import pytorch_lightning as pl
import torch

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:.*val_dataloader.*",
    "ignore:.*mid-epoch.*",
)
SMALL = {
    "MemoryBank": {"count": 16},
    "MinedNeighbours": {"size": 8, "count": 4, "uniform": 4},
    "GraphWalk": {"walks": 8, "edges": {"neighbours": 4}},
    "CooccurrenceRows": {"count": 8, "edges": {"neighbours": 4}},
    "PageRankBand": {"walks": 20, "steps": 8, "skip": 0, "end": 0.5, "edges": {"neighbours": 4}},
    "GuidedWalk": {"count": 2, "pool": 4, "edges": {"neighbours": 4}},
    "HardCache": {"size": 6, "explore": 4, "count": 4},
    "ScoreHistory": {"size": 6, "explore": 4, "count": 4},
    "MetropolisChain": {"chains": 4, "edges": {"neighbours": 4}},
}


def method(name, stages, **changes):
    from contrastneg.config import build_method
    from contrastneg.encoders import Backbone, Head
    from contrastneg.methods import MoCo, SimCLR

    torch.manual_seed(0)
    kind = {"MoCo": MoCo, "SimCLR": SimCLR}[name]
    small = {"backbone": Backbone(name="resnet9", width=0.125), "projector": Head(out=16)}
    if name == "MoCo":
        small["queue_size"] = 20
    model = kind(**small | changes)
    settings = dict(model.hparams) | {"stages": [{"class_path": n, "init_args": i} for n, i in stages]}
    torch.manual_seed(0)
    return build_method(kind, settings)


def trained(model, epochs, ckpt_path=None, callbacks=()):
    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.data.views import Views

    source = PretrainData(shapes("train").subset(torch.arange(0, 1600, 40)), Views(size=16), batch_size=8)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    options = {"accelerator": "cpu", "use_distributed_sampler": False, "callbacks": list(callbacks)}
    trainer = pl.Trainer(max_epochs=epochs, **options, **quiet)
    trainer.fit(model, datamodule=source, ckpt_path=ckpt_path)
    return trainer


def test_all_sources_train_together_from_plain_settings():
    model = method(
        "MoCo", [(name, settings | {"combine": "append"}) for name, settings in SMALL.items()], symmetric=True
    )
    assert trained(model, 3).callback_metrics["train/loss"].isfinite()
    check_memories(model)


@pytest.mark.parametrize("name", SMALL)
def test_every_source_trains_in_the_place_of_the_queue_before_other_stages(name):
    after = [
        ("UniformSubset", {"count": 3}),
        ("MoCHi", {"pool": 4, "pair_mixes": 3, "query_mixes": 2, "warmup_epochs": 1.0}),
    ]
    model = method("MoCo", [(name, SMALL[name] | {"combine": "replace"}), *after])
    assert trained(model, 2).callback_metrics["train/loss"].isfinite()
    check_memories(model)


def check_memories(model):
    """All images are remembered by each source, those on a graph have built it, and all of it is in the checkpoint."""
    sources = [stage for stage in model.stages if type(stage).__name__ in SMALL]
    for stage in sources:
        assert len(stage.memory) == 40, stage
        assert not hasattr(stage, "graph") or stage.graph.built >= 1
    names = [key for key in model.state_dict() if key.startswith("pipeline")]
    assert sum(key.endswith("memory.keys") for key in names) == len(sources)


def test_both_views_of_a_batch_may_meet_remembered_images():
    model = method("SimCLR", [(name, SMALL[name] | {"combine": "append"}) for name in ("MemoryBank", "HardCache")])
    assert trained(model, 2).callback_metrics["train/loss"].isfinite()
    assert (model.stages[1].cache >= 0).any(dim=1).sum() == 40


def test_a_resumed_run_ends_where_the_unbroken_one_does(tmp_path):
    stages = [(name, SMALL[name] | {"combine": "append"}) for name in ("HardCache", "MetropolisChain")]

    class Keep(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)

    unbroken, resumed = method("MoCo", stages), method("MoCo", stages)
    trained(unbroken, 3, callbacks=[Keep()])
    trained(resumed, 3, ckpt_path=tmp_path / "half.ckpt")
    for key, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert (resumed.stages[1].state >= 0).any(dim=1).sum() == 40
