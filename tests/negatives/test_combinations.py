"""Combinations of stages drawn at random: from a settings file through a run that is cut within an epoch and resumed."""

import random

import pytest
import pytorch_lightning as pl
import torch
import yaml
from small_stages import with_those_before
from try_all import LOSSES, STAGES, built, named

from contrastneg import negatives
from contrastneg.negatives import Stage, check_pipeline
from contrastneg.objectives import Objective, check_objective

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:.*val_dataloader.*",
    "ignore:.*mid-epoch.*",
    "ignore:.*clusters were asked for.*",
)
COMBINATIONS, PER_EPOCH, EPOCHS = 8, 3, 2
CUTS = (2, 5)  # steps, within the first epoch and within the second


def combination(seed):
    """Three stages of different kinds, and those that they build on, and a loss: plain settings that may be combined."""
    draws = random.Random(seed)
    kinds = {name: getattr(negatives, name).kind for name in STAGES}
    while True:
        chosen = draws.sample(sorted(set(kinds.values()), key=negatives.core.KINDS.index), 3)
        names = [draws.choice([name for name in STAGES if kinds[name] == kind]) for kind in chosen]
        names.sort(key=lambda name: negatives.core.KINDS.index(kinds[name]))
        stages = [named(*part) for name in names for part in with_those_before(name)]
        loss = draws.choice(sorted(LOSSES))
        try:
            check_pipeline(built(Stage, stages), {"queue", "id", "support"}, 20)
            check_objective(built(Objective, [named(loss, LOSSES[loss])])[0], built(Stage, stages), 0.2)
        except ValueError:
            continue
        return {"stages": stages, "loss": named(loss, LOSSES[loss])}


class Course(pl.Callback):
    """The losses of a run; saves it at some steps."""

    def __init__(self, folder=None):
        self.folder, self.losses = folder, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses[trainer.global_step] = outputs["loss"].item()
        if self.folder is not None and trainer.global_step in CUTS:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt", weights_only=False)


def images():
    from dataclasses import replace

    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.data.views import Views

    source = shapes("train").subset(torch.arange(0, 1600, 1600 // (8 * PER_EPOCH))[: 8 * PER_EPOCH])
    label = source.labels
    oracle = {"oracle_class": label.clone(), "oracle_kind": (label > label.float().mean()).long()}
    return PretrainData(replace(source, columns={**source.columns, **oracle}), Views(size=16), batch_size=8)


def trained(file, course, ckpt_path=None):
    """The method of a settings file after a run, from the start or from a checkpoint."""
    from contrastneg.commandline import parse_pretrain

    method = parse_pretrain(["--config", str(file)])[0].method
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[course],
        use_distributed_sampler=False,
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(method, datamodule=images(), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return method


@pytest.mark.parametrize("seed", range(COMBINATIONS))
def test_a_run_cut_within_an_epoch_and_resumed_has_the_losses_and_the_state_of_the_unbroken_one(tmp_path, seed):
    small = {"backbone": {"name": "resnet9", "width": 0.125}, "projector": {"out": 16}, "queue_size": 20}
    method = {"class_path": "MoCo", "init_args": {**small, "symmetric": seed % 2 == 0, **combination(seed)}}
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"data": "shapes", "views": {"size": 16}, "method": method}))
    course, cut = Course(tmp_path), CUTS[seed // 2 % 2]
    unbroken = trained(file, course)
    rest = Course()
    resumed = trained(file, rest, tmp_path / f"{cut}.ckpt")
    assert rest.losses == {step: loss for step, loss in course.losses.items() if step > cut}
    assert len(course.losses) == PER_EPOCH * EPOCHS
    assert any(course.losses.values())
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), resumed.state_dict()[name].nan_to_num(7.0)), name


def test_the_drawn_combinations_are_different_and_of_all_kinds():
    drawn = [tuple(stage["class_path"] for stage in combination(seed)["stages"]) for seed in range(COMBINATIONS)]
    assert len(set(drawn)) == COMBINATIONS
    assert {getattr(negatives, name).kind for names in drawn for name in names} == {
        getattr(negatives, name).kind for name in STAGES
    }
