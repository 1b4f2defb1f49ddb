"""What the README shows works as it stands there."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from processes import Command

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_stage_of_the_readme_removes_the_hardest():
    from contrastneg import Clock, Negatives

    space = {}
    exec(next(block for block in blocks("python") if "class DropHardest" in block), space)
    x = torch.nn.functional.normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    table = Negatives.of(x[:3], x[:3], x[3:], query_id=torch.arange(3), key_id=torch.arange(100, 109))
    thinned = space["DropHardest"](2)(table, Clock(0, 1, 0.0, 0))
    assert thinned.kept.sum(1).tolist() == [7] * 3
    for row in range(3):
        assert table.similarity[row][thinned.kept[row]].max() < table.similarity[row][~thinned.kept[row]].min()


def test_a_stage_of_ones_own_is_named_by_its_import_path_and_survives_the_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "my_module.py").write_text(next(block for block in blocks("python") if "class DropHardest" in block))
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "c.yaml"
    file.write_text(next(block for block in blocks("yaml") if "DropHardest" in block))
    from contrastneg.commandline import parse_pretrain

    method = parse_pretrain(["shapes", "--config", str(file)])[0].method
    assert [type(stage).__name__ for stage in method.stages] == ["DropHardest", "MoCHi"]
    assert method.stages[0].count == 10
    from contrastneg.config import build_method

    assert build_method(type(method), dict(method.hparams)).stages == method.stages


@pytest.mark.parametrize(
    "block", [block for block in blocks("yaml") if "method:" in block and "DropHardest" not in block]
)
def test_the_other_settings_of_the_readme_are_taken(tmp_path, block):
    from contrastneg.commandline import parse_pretrain

    (tmp_path / "c.yaml").write_text(block)
    assert len(parse_pretrain(["shapes", "--config", str(tmp_path / "c.yaml")])[0].method.stages) == 2


def test_the_samplers_of_the_readme_are_taken(tmp_path):
    from contrastneg.analyze.samplers import samplers_of

    (tmp_path / "mine.yaml").write_text(next(block for block in blocks("yaml") if "method:" not in block))
    assert [len(stages) for stages in samplers_of([tmp_path / "mine.yaml"]).values()] == [2]


def test_the_own_stage_of_the_readme_trains_with_the_settings_as_printed_and_with_a_small_queue(tmp_path):
    (tmp_path / "my_module.py").write_text(next(block for block in blocks("python") if "class DropHardest" in block))
    (tmp_path / "own.yaml").write_text(next(block for block in blocks("yaml") if "DropHardest" in block))
    tiny = {
        "--max_steps": "2", "--limit_images": "64", "--batch_size": "32", "--method.backbone.name": "resnet9",
        "--method.backbone.width": "0.125", "--method.queue_size": "64", "--final_scores": "false", "--knn_every": "0",
        "--probe": "false", "--accelerator": "cpu", "--run": "run", "--log_every": "1",
    }  # fmt: skip
    command = ["pretrain", "shapes", "--config", "own.yaml", *(word for pair in tiny.items() for word in pair)]
    process = Command(*command, cwd=tmp_path)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert "negatives/1_DropHardest/kept" in (tmp_path / "run" / "metrics.csv").read_text()


def test_schedules_are_given_as_the_readme_says(tmp_path):
    from contrastneg.commandline import parse_pretrain
    from contrastneg.schedules import Linear

    yaml, options = re.findall(r"`(beta: .*?\}\})`.*?`(--method.loss.beta .*?)`", README, re.DOTALL)[0]
    file = tmp_path / "c.yaml"
    file.write_text(
        f"method: {{class_path: MoCo, init_args: {{loss: {{class_path: HardWeighted, init_args: {{{yaml}}}}}}}}}"
    )
    given = (["--config", str(file)], ["--method", "MoCo", "--method.loss", "HardWeighted", *options.split()])
    for arguments in given:
        assert parse_pretrain(["shapes", *arguments])[0].method.objective.beta == Linear(1.0, 0.0)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space = {}
    exec(next(block for block in blocks("python") if "cn.Pretrain" in block), space)
    assert len(space["summary"]["table"]) == 3
    assert space["encoder"](torch.zeros(2, 3, 32, 32)).shape == (2, 128)


def test_the_stages_and_losses_of_the_readme_run_on_tensors_alone():
    space = {}
    exec(next(block for block in blocks("python") if "run_stages" in block), space)
    assert space["table"].kept.sum(dim=1).tolist() == [32] * 8
    assert not space["table"].kept[range(8), range(8)].any()
    assert space["query"].grad.abs().sum() > 0


def test_the_embeddings_of_the_readme_are_measured(capsys):
    exec(next(block for block in blocks("python") if "hardness_bins" in block), {})
    shown = capsys.readouterr().out
    assert all(
        word in shown
        for word in ("rate_se", "0.001", "above similarity", "threshold", "hard_kept", "reconstruction", "mixes")
    )


def test_every_verb_and_config_that_the_readme_names_is_there():
    from contrastneg.__main__ import VERBS

    root = Path(__file__).resolve().parents[1]
    verbs = set(re.findall(r"^contrastneg ([a-z]+)", README, re.MULTILINE)) | set(
        re.findall(r"^\| `([a-z]+) ", README, re.MULTILINE)
    )
    assert verbs
    assert verbs <= set(VERBS)
    configs = set(re.findall(r"configs/[\w/]+\.yaml", README))
    assert configs
    assert all((root / config).exists() for config in configs)


def test_the_two_processes_of_the_readmes_torchrun_command_share_one_run(tmp_path):
    command = next(block for block in blocks("bash") if "torchrun" in block).replace("\\\n", " ")
    words = shlex.split(next(line for line in command.splitlines() if line.startswith("torchrun")))
    (tmp_path / "tiny.yaml").write_text(
        "{limit_images: 50, epochs: 1, batch_size: 8, log_every: 1, final_scores: false, knn_every: 0, accelerator: cpu, views: {size: 16},"
        " method: {class_path: MoCo, init_args: {queue_size: 20, backbone: {name: resnet9, width: 0.125}}}}"
    )
    after = {
        "--nproc-per-node": "2", "--devices": "2", "--nnodes": "1", "--nodes": "1", "--rdzv-endpoint": "localhost:0",
        "pretrain": "shapes", "--config": str(tmp_path / "tiny.yaml"), "--run": str(tmp_path / "runs" / "one"),
    }  # fmt: skip
    assert after.keys() <= set(words)
    words = [after.get(name, word) for name, word in zip(["", *words], words, strict=False)]
    assert words[0] == "torchrun"
    process = Command(*words[1:], module="torch.distributed.run")
    printed, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert printed.count("epoch   1/1") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["one"]
    with (tmp_path / "runs" / "one" / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4  # three steps and the epoch, written once
    assert json.loads((tmp_path / "runs" / "one" / "summary.json").read_text())["method"] == "MoCo"
