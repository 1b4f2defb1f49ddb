"""Recipes of single methods: each is layered on a base recipe by the command in its first line, and trains."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "configs").glob("*/negatives/*.yaml"))
MOST_LINES = 20
SMALL = {
    "method": {
        "backbone": {"name": "resnet9", "width": 0.125, "stem": "auto"},
        "projector": {"out": 16},
        "batch_norm": "plain",  # the groups of a batch as small as this one would hold few images each
    },
    "views": {"size": 16},
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:.*val_dataloader.*",
)


def name(path):
    return f"{path.parents[1].name}/{path.stem}"


def lines(path):
    return path.read_text().splitlines()


def bases(path):
    """Recipes that a method file names as what it is layered on: of its command, and of the line about the other base."""
    head = [line for line in lines(path) if line.startswith("#")]
    named = [config for line in head for config in re.findall(r"--config (\S+)", line)]
    return [config for config in named if config != f"configs/{name(path).replace('/', '/negatives/')}.yaml"]


@pytest.fixture(scope="module")
def parser():
    from contrastneg.commandline import pretrain_parser

    return pretrain_parser()


@pytest.fixture(scope="module")
def images():
    from contrastneg.data.shapes import shapes

    return shapes("test").subset(torch.arange(32))


def built(parser, base, path, folder):
    """The settings as the command line gives them, but with a tiny encoder and queue and few clusters."""
    from contrastneg.commandline import build

    given = yaml.safe_load(path.read_text()).get("method", {})
    small = {**SMALL, "method": dict(SMALL["method"])}
    (folder / "small.yaml").write_text(yaml.safe_dump(small))
    files = (str(ROOT / base), str(path), str(folder / "small.yaml"))
    fewer = {"AdversarialBank": "size=24", "SameCluster": "clusters=[4,8]", "MemoryBank": "count=24"}
    last = given["stages"][-1]["class_path"] if "stages" in given else ""
    shrunk = [f"--method.stages.init_args.{fewer[last]}"] if last in fewer else []
    return build(parser, ["--data=shapes", *(f"--config={file}" for file in files), *shrunk])


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_is_short_and_begins_with_its_command_and_what_it_is(path):
    words = shlex.split(lines(path)[0].removeprefix("# "))
    assert words[:2] == ["contrastneg", "pretrain"]
    configs = [word for before, word in pairwise(words) if before == "--config"]
    assert len(configs) == 2
    assert ROOT / configs[1] == path
    assert all((ROOT / base).is_file() for base in bases(path))
    assert lines(path)[1].startswith("# ")
    assert len(lines(path)) <= MOST_LINES


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_every_recipe_trains_over_a_base_that_it_names(parser, images, path, tmp_path):
    from contrastneg.candidates import check_batch
    from contrastneg.data.module import PretrainData
    from contrastneg.data.views import Views

    named = bases(path)
    config = built(
        parser, named[RECIPES.index(path) % len(named)], path, tmp_path
    )  # of two bases, half the recipes over each
    check_batch(config.method, config.batch_size)  # of the base, as a run on one device would
    given = yaml.safe_load(path.read_text()).get("method", {})
    assert [type(stage).__name__ for stage in config.method.stages] == [
        stage["class_path"] for stage in given.get("stages", [])
    ]
    assert type(config.method.objective).__name__ == given.get("loss", {"class_path": "InfoNCE"})["class_path"]
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", precision="bf16-mixed", use_distributed_sampler=False, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    before = {key: weight.clone() for key, weight in config.method.backbone.named_parameters()}
    data = PretrainData(images, Views(size=8), batch_size=32, batches=config.batches)
    data.embed = lambda: torch.nn.functional.normalize(images.load().flatten(1).float(), dim=1)
    trainer.fit(config.method, datamodule=data)
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert any(not torch.equal(weight, before[key]) for key, weight in config.method.backbone.named_parameters())
