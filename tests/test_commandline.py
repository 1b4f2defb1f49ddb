"""Command lines and YAML files: the same values from both, and one helpful line for wrong ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("[!v]*/*.yaml"))


def parse(*arguments):
    from contrastneg.commandline import parse_pretrain

    return parse_pretrain(list(arguments))[0]


def refusal(capsys, *arguments):
    from contrastneg.__main__ import main

    assert main(["pretrain", *arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("contrastneg: ")
    assert line.count("\n") == 1
    return line


def test_numbers_are_numbers_from_a_file_and_from_the_command_line(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "data: 'no'\nmethod:\n  class_path: MoCo\n  init_args:\n    temperature: 1e-1\n"
        "    optimizer: {lr: 1e-3, warmup_epochs: 1e3}\n"
    )
    file.write_text(file.read_text() + "views: {size: 32}\n")
    from_file = parse("--config", str(file))
    from_line = parse("no", "--views.size", "32", "--method", "MoCo", "--method.temperature", "1e-1", "--method.optimizer.lr", "1e-3",
                      "--method.optimizer.warmup_epochs", "1e3")  # fmt: skip
    for config in (from_file, from_line):
        assert config.data == "no"
        assert config.method.temperature == 0.1
        assert config.method.optimizer_settings.lr == 0.001
        assert config.method.optimizer_settings.warmup_epochs == 1000.0


def test_what_stands_later_wins_and_dashes_may_stand_for_underscores(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 7\nbatch_size: 32\n")
    config = parse("shapes", "--config", str(file), "--batch-size=64", "--on-bad-image", "skip")
    assert (config.data, config.epochs, config.batch_size, config.on_bad_image) == ("shapes", 7, 64, "skip")


def test_each_method_has_its_own_defaults_and_simclr_is_the_default(tmp_path):
    simclr, moco = parse("shapes").method, parse("shapes", "--method", "MoCo").method
    file = tmp_path / "c.yaml"
    file.write_text("method: {class_path: MoCo}\n")
    from_file = parse("shapes", "--config", str(file)).method
    assert (type(simclr).__name__, simclr.temperature, simclr.optimizer_settings.name) == ("SimCLR", 0.1, "lars")
    for method in (moco, from_file):
        assert (type(method).__name__, method.temperature, method.optimizer_settings.name) == ("MoCo", 0.2, "sgd")
    assert parse("shapes", "--method.temperature", "0.5").method.temperature == 0.5
    late = parse("shapes", "--method.queue_size", "64", "--epochs", "3", "--method", "MoCo")
    assert (len(late.method.queue.keys), late.epochs) == (64, 3)


def test_a_switch_may_stand_alone_or_with_its_value():
    assert parse("shapes", "--unlabelled", "--epochs", "3").unlabelled is True
    assert parse("shapes", "--epochs", "3", "--unlabelled").unlabelled is True
    assert parse("shapes", "--progress", "false").progress is False


def test_stages_and_schedules_are_named_by_class(tmp_path):
    from contrastneg import MoCHi, UniformSubset
    from contrastneg.schedules import Cosine

    file = tmp_path / "c.yaml"
    file.write_text(
        """
method:
  class_path: MoCo
  init_args:
    momentum: {class_path: Cosine, init_args: {start: 0.99, end: 1.0}}
    stages:
      - {class_path: UniformSubset, init_args: {count: 9}}
      - {class_path: MoCHi, init_args: {pool: 64}}
"""
    )
    method = parse("shapes", "--config", str(file)).method
    assert method.stages == [UniformSubset(9), MoCHi(pool=64)]
    assert method.momentum == Cosine(0.99, 1.0)


def test_losses_are_named_by_class_with_their_settings_in_any_order(tmp_path):
    from contrastneg.objectives import Debiased, HardWeighted, InfoNCE
    from contrastneg.schedules import Linear

    assert parse("shapes").method.objective == InfoNCE()
    chosen = ["--method.loss", "Debiased", "--method.loss.class_prior", "0.2"]
    assert parse("shapes", *chosen).method.objective == Debiased(0.2)
    assert parse("shapes", *chosen[2:], *chosen[:2], "--method", "MoCo").method.objective == Debiased(0.2)
    file = tmp_path / "c.yaml"
    file.write_text(
        "method: {class_path: MoCo, init_args: {loss: {class_path: Debiased, init_args: {class_prior: 0.2}}}}"
    )
    assert parse("shapes", "--config", str(file)).method.objective == Debiased(0.2)
    assert parse("shapes", "--config", str(file), "--method.loss.class_prior", "0.3").method.objective == Debiased(0.3)
    file.write_text(
        """
method:
  class_path: SimCLR
  init_args:
    loss:
      class_path: HardWeighted
      init_args:
        beta: {class_path: Linear, init_args: {start: 0.0, end: 2.0}}
"""
    )
    assert parse("shapes", "--config", str(file)).method.objective == HardWeighted(beta=Linear(0.0, 2.0))


def test_the_resolved_settings_parse_to_the_same_settings_again(tmp_path):
    import yaml

    from contrastneg.pretrain import plain_config

    config = parse("shapes", "--method", "MoCo", "--method.stages+=MoCHi", "--method.loss", "DecoupledWeighted",
                   "--method.loss.sigma", "0.4", "--views.size", "64", "--run", "x")  # fmt: skip
    assert config.method.objective.sigma == 0.4
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain_config(config), sort_keys=False))
    assert plain_config(parse("--config", str(tmp_path / "config.yaml"))) == plain_config(config)


def test_the_size_of_the_views_reaches_encoders_that_must_know_it():
    config = parse("shapes", "--views.size", "64", "--method.backbone.name", "vit_tiny_patch16_224")
    assert config.method.backbone.patch_embed.img_size == (64, 64)


@pytest.mark.parametrize(("sides", "size"), [((40, 40), 40), ((96, 96), 96), ((40, 41), 224), ((300, 300), 224)])
def test_views_take_the_size_of_small_images_and_224_of_others_unless_told(tmp_path, sides, size):
    from PIL import Image

    for i, side in enumerate(sides):
        Image.new("RGB", (side, side)).save(tmp_path / f"{i}.png")
    small = ["--method.backbone.width", "0.125"]
    assert parse(str(tmp_path), *small).views.size == size
    assert parse(str(tmp_path), *small, "--views.size", "64").views.size == 64


def test_weights_are_a_function_of_the_seed():
    import torch

    def weight(*arguments):
        return next(parse("shapes", "--method.backbone.width", "0.125", *arguments).method.parameters())

    assert torch.equal(weight("--seed", "1"), weight("--seed", "1"))
    assert not torch.equal(weight("--seed", "1"), weight("--seed", "2"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_shipped_recipe_parses_and_says_how_to_run_it(path):
    first, second = path.read_text().splitlines()[:2]
    assert first.startswith("# contrastneg pretrain ")
    assert f"configs/{path.parent.name}/{path.name}" in first
    assert second.startswith("# ")
    small = ["--method.backbone.name", "resnet10t", "--method.backbone.width", "1", "--method.backbone.stem", "auto"]
    small += (
        ["--method.queue_size", "8"] if "MoCo" in path.read_text() and "queue_size: 0" not in path.read_text() else []
    )
    assert parse("shapes", "--config", str(path), *small).epochs > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methd", "MoCo"], "there is no option --methd: did you mean --method?"),
        (["shapes", "--method", "MoC"], "there is no class 'MoC' here: did you mean MoCo?"),
        (
            ["shapes", "--method.temprature", "3"],
            "there is no setting 'temprature' in SimCLR: did you mean temperature?",
        ),
        (["shapes", "--method.optimizer.lr", "abc"], "method.optimizer.lr is abc: give a number"),
        (["shapes", "--precision", "half"], "choose from auto, float32, bfloat16, float16, float64"),
        (
            ["shapes", "--method.backbone.name", "resnet81"],
            "contrastneg: method.backbone.name 'resnet81' is not known to timm: did you mean resnet",
        ),
        (
            ["shapes", "--method.backbone.name", "test_vit", "--method.backbone.width", "0.5"],
            "contrastneg: method.backbone.width is 0.5 but test_vit has no width to set",
        ),
        (["shapes", "--epochs", "0"], "contrastneg: epochs is 0: give a number of at least 1"),
        (["shapes", "--clip", "-1"], "contrastneg: clip is -1.0: give a number above 0"),
        (
            ["shapes", "--method.optimizer.lr", "-1"],
            "contrastneg: method.optimizer.lr of Optimizer is -1.0: give a number of at least 0",
        ),
        (
            ["shapes", "--method.projector.layers", "0"],
            "contrastneg: method.projector.layers of Head is 0: give a number of at least 1",
        ),
        (
            ["shapes", "--method.backbone.width", "64"],
            "contrastneg: method.backbone.width of Backbone is 64.0: give a factor above 0 and at most 8, not channels",
        ),
        (
            ["shapes", "--views.view1.flip", "2"],
            "contrastneg: views.view1.flip of Augment is 2.0: give a number from 0 to 1",
        ),
        (["shapes", "--views.size", "-3"], "views.size is -3"),
        (["shapes", "--views.size", "0"], "views.size is 0: give at least 1 pixel"),
        (["shapes", "--views.size", "5000000"], "views.size is 5000000: give at most 10000 pixels"),
        (["shapes", "--views.size", "9999", "--batch_size", "9999"], "lower views.size or batch_size"),
        (["shapes", "--views.size", "30", "--method.backbone.name", "test_vit"], "takes multiples of its patch, 16"),
        (
            ["shapes", "--views.size", "7", "--method.backbone.name", "resnet9"],
            "resnet9 cannot take images of 7 pixels",
        ),
        (["shapes", "--method", "MoCo", "--method.momentum", "1.5"], "method.momentum is 1.5"),
        (["shapes", "--devices", "5000", "--accelerator", "cpu"], "CPU cores: give at most that many processes"),
        (["shapes", "--config", "nofile.yaml"], "nofile.yaml"),
        (["shapse"], "shapes"),
        (["https://host/x.tar"], "https://host/x.tar is not on this machine: download it first"),
        ([], "no data: name a folder"),
        (["shapes", "--batch_size", "100000"], "10000 images are fewer than one step needs"),
        (["shapes", "--accelerator", "gpu"], "this machine has none"),
        (["shapes", "--devices", "0", "--accelerator", "cpu"], "devices is 0"),
        (["shapes", "--devices", "0"], "contrastneg: devices is 0: give at least 1, or auto"),
        (["shapes", "--wandb", "project"], "pip install 'contrastneg[wandb]'"),
        (["--resume", "nowhere"], "nowhere is not a run folder"),
        (["--resume", "nowhere", "--epochs", "3"], "a resumed run keeps its own settings"),
        (["shapes", "--method.stages+=MoCHy", "--method", "MoCo"], "MoCHi"),
        (["shapes", "--method.loss", "Debias"], "there is no class 'Debias' here: did you mean Debiased?"),
        (["shapes", "--method.loss", "MoCHi"], "method.loss: MoCHi is a stage, which belongs to method.stages"),
        (
            ["shapes", "--method.loss", "Debiased", "--method.loss.class_priors", "0.2"],
            "there is no setting 'class_priors' in Debiased: did you mean class_prior?",
        ),
        (["shapes", "--method.loss.beta", "2"], "there is no setting 'beta' in InfoNCE: HardWeighted has it"),
        (
            ["shapes", "--method.loss", "Debiased", "--method.loss.class_prior", "lots"],
            "method.loss.class_prior is lots: give a number, or a schedule: choose from Cosine, Growth, Linear",
        ),
        (
            ["shapes", "--method.loss", "Debiased", "--method.loss.class_prior", "2"],
            "method.loss.class_prior of Debiased is 2.0",
        ),
        (
            ["shapes", "--method", "MoCo", "--method.loss", "Debiased", "--method.stages+=MoCHi"],
            "method.loss Debiased needs candidates drawn at random, which it cannot have after method.stages[0] MoCHi: leave",
        ),
        (
            ["shapes", "--batch_size", "32", "--method.stages", "HardestSubset", "--method.stages.count", "63"],
            "method.stages[0].count of HardestSubset is 63 but a batch has 62 candidates for a query: raise batch_size, or ask",
        ),
        (
            ["shapes", "--batch_size", "32", "--method", "MoCo", "--method.queue_size", "0", "--method.stages", "MoCHi",
             "--method.stages.pool", "32"],
            "method.stages[0].pool of MoCHi is 32 but a batch has 31 candidates for a query",
        ),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_that_helps_and_status_2(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in refusal(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []  # nothing half-written


@pytest.mark.parametrize("verb", ["pretrain", "pretrain --views.size 32", "check"])
def test_a_set_of_a_hub_that_does_not_answer_is_one_line_and_status_2(capsys, tmp_path, monkeypatch, verb):
    import socket
    import urllib.request

    import datasets.config
    import huggingface_hub.constants

    from contrastneg.__main__ import main

    asked = []

    def no_network(address, *_, **__):
        asked.append(address[0])
        raise OSError("no network")

    for constants in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    verb, *options = verb.split()
    assert main([verb, "hf:nobody/nothing", "--root", str(tmp_path / "root"), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("contrastneg: hf:nobody/nothing is not among the sets fetched earlier, and huggingface.co ")
    assert said.count("\n") == 1
    assert len(asked) == 1  # it is not tried again and again
    assert list((tmp_path / "here").iterdir()) == []


def test_an_unknown_key_in_a_file_is_answered_with_the_nearest(capsys, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("viws: {size: 64}\n")
    assert "there is no setting 'viws': did you mean views?" in refusal(capsys, "shapes", "--config", str(file))
    file.write_text("method:\n  class_path: MoCo\n  init_args: {queue: 9}\n")
    assert "in MoCo: did you mean queue_size?" in refusal(capsys, "shapes", "--config", str(file))
    file.write_text("a: [1\n")
    refusal(capsys, "shapes", "--config", str(file))


def test_stages_are_named_alone_or_by_comma():
    small = ["shapes", "--views.size", "32", "--method", "MoCo", "--method.backbone.width", "0.125"]
    for given in (["--method.stages", "MoCHi"], ["--method.stages=MoCHi"], ["--method.stages", "[MoCHi]"]):
        method = parse(*small, *given, "--method.stages.pool", "9").method
        assert [(type(stage).__name__, stage.pool) for stage in method.stages] == [("MoCHi", 9)]
    two = parse(*small, "--method.stages", "UniformSubset,MoCHi").method
    assert [type(stage).__name__ for stage in two.stages] == ["UniformSubset", "MoCHi"]


def test_the_settings_can_be_printed_and_read_again(tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        parse("shapes", "--epochs", "7", "--print_config")
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    config = parse("--config", str(tmp_path / "c.yaml"))
    assert (config.epochs, config.views.size) == (7, 32)


def test_the_installed_command_finds_modules_in_the_current_folder(tmp_path):
    (tmp_path / "my_module.py").write_text("raise ImportError('found')")
    (tmp_path / "c.yaml").write_text("method: {class_path: MoCo, init_args: {stages: [{class_path: my_module.Mine}]}}")
    start = "import sys; sys.argv[1:] = sys.argv[2:]; from contrastneg.__main__ import main; sys.path.remove(''); sys.exit(main())"
    command = [sys.executable, "-c", start, "-", "pretrain", "shapes", "--config", "c.yaml"]
    root = str(Path(__file__).resolve().parents[1])
    process = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=150
    )
    assert process.returncode == 2
    assert "module 'my_module', which my_module.Mine names, cannot be imported: found" in process.stderr


def test_a_run_folder_that_exists_is_refused(capsys, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    line = refusal(capsys, "shapes", "--run", str(tmp_path))
    assert "exists already: give another --run, or continue it with --resume" in line


def test_verbs_are_listed_and_a_wrong_one_answered_with_the_nearest(capsys):
    from contrastneg.__main__ import main

    assert main(["--help"]) == 0
    assert "pretrain" in capsys.readouterr().out
    assert main(["pretrian"]) == 2
    assert "did you mean pretrain?" in capsys.readouterr().err
    assert main([]) == 2


def test_help_shows_the_attribute_docstrings(capsys):
    from contrastneg.commandline import parse_pretrain

    with pytest.raises(SystemExit, match="0"):
        parse_pretrain(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Passes over the images." in text
    assert "Pixels per side of a view" in text
    assert "default: SimCLR; --method.help lists the methods" in text
    assert "LightningModule, " not in text


CHECK = "DATA [--root DIR] [--unlabelled] [--duplicates] [--threshold COSINE] [--encoder ENCODER] [--all]"


@pytest.mark.parametrize(("verb", "usage"), [("check", CHECK), ("report", "RUN [RUN ...] [--out FILE]")])
def test_help_of_a_verb_shows_what_stands_after_it(capsys, verb, usage):
    from contrastneg.__main__ import main

    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    assert f"usage: contrastneg {verb} {usage}" in capsys.readouterr().out
    assert main([verb]) == 2


def test_check_shows_every_split_and_exits_1_for_a_picture_that_cannot_be_read(capsys, tmp_path):
    from PIL import Image

    from contrastneg.__main__ import main

    for name in ("train/a/0", "train/b/0", "val/a/0"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(path)
    assert main(["check", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "train:\n  2 usable of 2" in printed
    assert "test:\n  1 usable of 1" in printed
    (tmp_path / "val/a/1.png").write_bytes(b"")
    assert main(["check", str(tmp_path)]) == 1
    assert "1.png" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "train")]) == 0
    assert "one split only" in capsys.readouterr().out
    for i in range(2, 14):
        (tmp_path / f"val/a/{i}.png").write_bytes(b"")
    assert main(["check", str(tmp_path)]) == 1
    few = capsys.readouterr().out
    assert (few.count("the file is empty"), few.count("and 3 more"), few.count("--all names every")) == (10, 1, 1)
    assert main(["check", str(tmp_path), "--all"]) == 1
    whole = capsys.readouterr().out
    assert (whole.count("the file is empty"), whole.count("more")) == (13, 0)


def test_check_ends_quietly_when_its_reader_goes_away(monkeypatch, tmp_path):
    import os
    import sys

    from contrastneg.__main__ import VERBS, main

    def closed(arguments):
        raise BrokenPipeError

    monkeypatch.setitem(VERBS, "check", (closed, ""))
    with (tmp_path / "out").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["check", "x"]) == 141
        assert os.fstat(stream.fileno()).st_rdev == os.stat(os.devnull).st_rdev


def test_every_setting_is_read_somewhere_outside_the_configuration():
    import dataclasses
    import re

    from contrastneg.config import Pretrain

    package = Path(__file__).resolve().parents[1] / "contrastneg"
    source = "\n".join(p.read_text() for p in package.rglob("*.py") if p.name != "config.py")
    for field in dataclasses.fields(Pretrain):
        assert re.search(rf"config\.{field.name}\b", source), field.name
