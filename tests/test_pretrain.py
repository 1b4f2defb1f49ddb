"""Whole runs: what they leave behind, on real files, in real processes, interrupted and resumed."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from processes import Command, two_commands

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
SMALL = [
    "--method.backbone.name", "resnet9", "--method.backbone.width", "0.125", "--views.size", "16", "--batch-size", "8",
    "--workers", "0", "--accelerator", "cpu", "--log-every", "1",
]  # fmt: skip
MOCO = ["--method", "MoCo", "--method.queue_size", "20"]


def run(*arguments):
    from contrastneg.__main__ import main

    return main(["pretrain", *map(str, arguments)])


def paint(path, colour, seed, side=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 60, (side, side, 3))
    Image.fromarray((noise + np.array(colour)).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Class folders with a train and a val split: 2 x 12 and 2 x 5 pictures of different sizes."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 12), ("val", 5)):
        for number, (name, colour) in enumerate({"red": (190, 0, 0), "blue": (0, 0, 190)}.items()):
            for i in range(count):
                paint(root / split / name / f"{i}.png", colour, 100 * number + i, side=20 + i)
    return root


PRINTED = (
    ("loss #", "epoch/loss", 1, 3), ("accuracy # %", "epoch/accuracy", 100, 1), ("kNN # %", "knn/top1", 100, 1),
    ("probe # %", "probe/accuracy", 100, 1), ("queue # %", "epoch/queue_fill", 100, 0),
    ("own # %", "epoch/own", 100, 0), ("same class # %", "epoch/same_class", 100, 1),
)  # fmt: skip


def test_a_run_leaves_settings_metrics_checkpoints_encoder_scores_and_page(tmp_path, folder, capsys):
    from contrastneg.report.candidates import HARDNESS
    from contrastneg.report.curves import CURVES

    out = tmp_path / "run"
    assert run(folder, *MOCO, *SMALL, "--epochs", 2, "--knn_k", 3, "--run", out) == 0
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    events = {name for name in names if name.startswith("tensorboard/")}
    assert events
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert names - events == {
        "config.yaml", "environment.json", "metrics.csv", "summary.json", "pictures.npz", "encoder.safetensors",
        "report.html", "checkpoints/last.ckpt", "checkpoints/best.ckpt",
    }  # fmt: skip
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._=/-") for name in names
    )
    summary = json.loads((out / "summary.json").read_text())
    assert [row["features"] for row in summary["table"]] == ["pretrained encoder", "untrained encoder", "raw pixels"]
    assert all(0 <= row["knn_top1"] <= 100 and 0 <= row["linear_top1"] <= 100 for row in summary["table"])
    rows = metrics_of(out)
    assert [row["train/loss"] != "" for row in rows].count(True) == 6
    assert rows[-1]["knn/top1"] != ""
    drawn = {name for curve in CURVES for name in curve.columns}
    drawn |= {f"hardness/{name}" for _, lines in HARDNESS for name in lines} | {"candidates/queue_age"}
    assert drawn <= set((out / "metrics.csv").read_text().splitlines()[0].split(","))
    assert any(b"hardness/effective" in (out / name).read_bytes() for name in events)
    printed = capsys.readouterr().out
    for line, row in zip(
        re.findall("epoch   [12]/2 .*", printed), [row for row in rows if row["epoch/loss"]], strict=True
    ):
        for text, column, scale, digits in PRINTED:
            number = re.search(text.replace("#", r"(\S+)"), line)
            assert (number is None) == (row[column] == ""), (text, line)
            if number is not None:
                assert float(number[1]) == pytest.approx(scale * float(row[column]), abs=0.51 * 10**-digits)
    assert "to pretrain on: 24 usable of 24 pictures found" in printed
    assert "drawn anew, fill no batch" not in printed
    assert "epoch   2/2" in printed
    assert printed.count("accuracy: queries whose positive is more similar than every key of another image") == 1
    assert "scoring the untrained encoder: kNN and linear scores learn from 24 images and are tested on 10" in printed
    assert "there are 2 classes: a top-5 score would always be 1" in " ".join(summary["notes"])
    assert "raw pixels" in printed


def test_the_exported_encoder_gives_the_features_of_the_run(tmp_path, folder):
    from safetensors import safe_open
    from safetensors.torch import load_file

    from contrastneg import Backbone, load
    from contrastneg.encoders import build_backbone

    out, before = tmp_path / "run", os.umask(0o022)
    try:
        assert run(folder, *SMALL, "--epochs", 1, "--final_scores", "false", "--run", out) == 0
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    assert modes["encoder.safetensors"] == 0o644  # safetensors alone would give 0600
    assert set(modes.values()) == {0o644}
    with safe_open(out / "encoder.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["contrastneg"])
    views = yaml.safe_load((out / "config.yaml").read_text())["views"]
    assert facts["views"] == views
    assert {"size", "mean", "std"} <= views.keys()  # what images must be made of before it sees them
    encoder = build_backbone(Backbone(**facts["backbone"]), facts["views"]["size"])
    encoder.load_state_dict(load_file(out / "encoder.safetensors"))
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval()(images), load(out).backbone(images))


def test_the_untrained_encoder_of_the_table_is_the_one_that_was_given(tmp_path, monkeypatch):
    import contrastneg as cn
    from contrastneg import pretrain as module

    torch.manual_seed(123)  # a seed that the settings do not know
    method = cn.SimCLR(cn.Backbone(name="resnet9", width=0.125), image_size=16)
    given = {name: tensor.clone() for name, tensor in method.backbone.state_dict().items()}
    seen = []

    def score_nothing(config, trained, untrained, *rest, **options):
        seen.append({name: tensor.clone() for name, tensor in untrained.state_dict().items()})
        assert (tmp_path / "run" / "encoder.safetensors").exists()  # saved before anything that could fail
        raise RuntimeError("no scores")

    monkeypatch.setattr(module, "final_scores", score_nothing)
    config = cn.Pretrain(method=method, data="shapes", views=cn.Views(size=16), limit_images=32, batch_size=16, epochs=1,
                         knn_every=0, accelerator="cpu", progress=False, run=tmp_path / "run")  # fmt: skip
    with pytest.raises(RuntimeError, match="no scores"):
        module.pretrain(config)
    assert all(torch.equal(seen[0][name], given[name]) for name in given)
    assert any(not torch.equal(method.backbone.state_dict()[name], given[name]) for name in given)


def test_a_run_goes_on_from_another_folder_than_it_was_started_in(tmp_path, folder, monkeypatch):
    from contrastneg.pretrain import StepSeed

    seed_of_step = StepSeed.on_train_batch_start

    def stops(self, trainer, module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 1):
            raise KeyError("stop")
        seed_of_step(self, trainer, module, batch, batch_idx)

    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("pictures", "judged"):
        (tmp_path / "here" / name).symlink_to(folder)
    arguments = ["pictures", "--val", "judged", *MOCO, *SMALL, "--epochs", 2, "--checkpoint-every", 1, "--knn_k", 3]
    arguments += ["--final_scores", "false", "--run"]
    monkeypatch.chdir(tmp_path / "here")
    assert run(*arguments, "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(StepSeed, "on_train_batch_start", stops)
        with pytest.raises(KeyError, match="stop"):
            run(*arguments, "broken")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("--resume", "../here/broken") == 0
    whole, broken = (tmp_path / "here" / name for name in ("whole", "broken"))
    assert metrics_of(broken) == metrics_of(whole)
    states = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (whole, broken)]
    assert states[0]["global_step"] == 6
    assert differences(*states) == []
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_unlabelled_folder_trains_and_says_that_it_is_not_scored(tmp_path, capsys):
    for i in range(20):
        paint(tmp_path / "flat" / f"{i}.png", (90, 90, 90), i)
    assert run(tmp_path / "flat", *SMALL, "--epochs", 1, "--run", tmp_path / "run") == 0
    assert "no labels: the encoder is not scored" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "run/summary.json").read_text())["table"] == []
    with np.load(tmp_path / "run/pictures.npz") as pictures:
        assert pictures["view1"].shape == (12, 3, 16, 16)
        assert pictures["neighbour"].shape == (12, 6, 3, 16, 16)
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("<img ") == 2 * 12 + 12 * 7
    assert "the nearest of 19 others" in page


def test_an_unlabelled_folder_is_scored_on_another_labelled_set(tmp_path, folder, capsys):
    for i in range(20):
        paint(tmp_path / "flat" / f"{i}.png", (90, 90, 90), i)
    arguments = ["--val", folder, "--knn_k", 3, "--epochs", 1, "--run", tmp_path / "run"]
    assert run(tmp_path / "flat", *SMALL, *arguments) == 0
    table = json.loads((tmp_path / "run/summary.json").read_text())["table"]
    assert table[2]["knn_top1"] == 100.0  # red against blue is plain in raw pixels


def test_labels_without_a_test_split_are_held_out_and_the_page_says_so(tmp_path, folder, capsys):
    arguments = ["--epochs", 1, "--knn_k", 3, "--run", tmp_path / "run"]
    assert run(folder / "train", *SMALL, *arguments) == 0
    assert "every 10th labelled image is asked about" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_bad_images_stop_the_run_by_name_or_are_left_out_and_listed(tmp_path, capsys):
    for i in range(20):
        paint(tmp_path / "set" / "a" / f"{i}.png", (90, 90, 90), i)
    (tmp_path / "set/a/empty.jpg").write_bytes(b"")
    (tmp_path / "set/a/page.jpg").write_text("<html>")
    arguments = [tmp_path / "set", *SMALL, "--epochs", 1, "--final_scores", "false", "--run", tmp_path / "run"]
    assert run(*arguments) == 2
    assert str(tmp_path / "set/a/empty.jpg") in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run(*arguments, "--on-bad-image", "skip") == 0
    notes = " ".join(json.loads((tmp_path / "run/summary.json").read_text())["notes"])
    assert "empty.jpg" in notes
    assert "page.jpg" in notes
    listed = (tmp_path / "run/bad_images.txt").read_text().splitlines()
    assert [line.rpartition("/")[2].partition(":")[0] for line in listed] == ["empty.jpg", "page.jpg"]


def test_a_run_whose_loss_is_lost_ends_with_one_line_and_keeps_its_last_finite_checkpoint(tmp_path, folder, capsys):
    out = tmp_path / "run"
    arguments = ["--method.optimizer.lr", 1e30, "--epochs", 2, "--checkpoint-every", 1, "--run", out]
    assert run(folder, *MOCO, *SMALL, *arguments) == 1
    said = capsys.readouterr().err
    kept = out / "checkpoints" / "last.ckpt"
    found = re.fullmatch(
        r"contrastneg: (?:the loss is nan|weights are not finite) at step (\d+), epoch 1: look at .*\n", said
    )
    assert found, said
    assert all(word in said for word in ("learning rate (", "temperature (0.2)", "precision (", f"finite, is {kept}"))
    state = torch.load(kept, weights_only=True)
    assert 0 < state["global_step"] <= int(found[1])
    assert all(t.isfinite().all() for name, t in state["state_dict"].items() if name.endswith("weight"))
    assert not (out / "summary.json").exists()


@pytest.mark.parametrize(
    "words", ["DefaultCPUAllocator: can't allocate memory: you tried", "CUDA out of memory. Tried"]
)
def test_a_run_without_memory_for_a_step_ends_with_one_line_and_status_1(tmp_path, folder, capsys, monkeypatch, words):
    from contrastneg.pretrain import StepSeed

    def no_memory(self, trainer, module, batch, batch_idx):
        raise RuntimeError(f"[enforce fail at alloc_cpu.cpp:127] err == 0. {words}")

    monkeypatch.setattr(StepSeed, "on_train_batch_start", no_memory)
    assert run(folder, *SMALL, "--epochs", 1, "--run", tmp_path / "run") == 1
    said = capsys.readouterr().err
    assert "not enough memory for batch_size 8 at views.size 16" in said
    assert said.count("\n") == 1


def test_a_grey_encoder_trains_on_grey_images(tmp_path, folder):
    out = tmp_path / "run"
    arguments = ["--method.backbone.in_channels", 1, "--epochs", 1, "--knn_k", 3, "--run", out]
    assert run(folder, *SMALL, *arguments) == 0
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    "options", [["--precision", "float64"], ["--accumulate", 2, "--clip", 0.5], ["--drop_last", "false"]]
)
def test_settings_of_the_trainer_work_together(tmp_path, folder, options):
    assert run(folder, *MOCO, *SMALL, *options, "--epochs", 2, "--knn_k", 3, "--run", tmp_path / "run") == 0


def test_micro_batches_do_not_change_the_loss_of_an_epoch(tmp_path, folder):
    arguments = ["--method.optimizer.lr", 1e-12, "--epochs", 1, "--knn_every", 0, "--final_scores", "false"]
    losses = []
    for accumulate in (1, 3):
        assert run(folder, *SMALL, *arguments, "--accumulate", accumulate, "--run", tmp_path / str(accumulate)) == 0
        losses.append(float(metrics_of(tmp_path / str(accumulate))[-1]["epoch/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] > 1


def test_two_deterministic_runs_with_all_scores_are_equal_and_nothing_aborts(tmp_path, folder):
    try:
        for name in ("a", "b"):
            arguments = ["--deterministic", "--epochs", 2, "--knn_k", 3, "--run", tmp_path / name]
            assert run(folder, *MOCO, *SMALL, *arguments) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b")
    one, other = (json.loads((tmp_path / name / "summary.json").read_text())["table"] for name in ("a", "b"))
    assert one == other


def test_an_unsupported_precision_falls_back_and_says_which_is_used():
    from contrastneg.device import resolve_precision

    assert resolve_precision("float16", "cpu") == ("float32", ["float16 is not supported on cpu: float32 is used"])
    assert resolve_precision("float64", "mps")[0] == "float32"
    assert resolve_precision("float64", "cpu") == ("float64", [])


@pytest.mark.parametrize(("name", "layer"), [("resnet9", "SyncBatchNorm"), ("test_efficientnet", "SyncBatchNormAct")])
def test_sync_batch_norm_keeps_the_activations_that_a_backbones_batch_norms_hold(tmp_path, monkeypatch, name, layer):
    from unittest.mock import MagicMock

    from pytorch_lightning.callbacks import Callback

    from contrastneg import Backbone, Pretrain, SimCLR
    from contrastneg import pretrain as module
    from contrastneg.console import Output, RunProgress
    from contrastneg.data.module import PretrainData
    from contrastneg.device import Device

    data = MagicMock(spec=PretrainData)
    data.label_table.return_value = None
    config = Pretrain(method=SimCLR(Backbone(name=name), batch_norm="sync"), data="shapes")
    rest = (tmp_path, data, RunProgress(Output(False), bar=False), None, Callback(), None)
    built = {}
    monkeypatch.setattr(module.pl.Trainer, "__init__", lambda self, **options: built.update(options))
    for accelerator, layers in (("cpu", set()), ("gpu", {layer})):
        module.build_trainer(config, Device(accelerator, 2, 1, "float32", []), *rest)
        plugins = [plugin for plugin in built["plugins"] if hasattr(plugin, "apply")]
        assert not built.get("sync_batchnorm")
        assert len(plugins) == len(layers)
        for plugin in plugins:
            found = {type(part).__name__ for part in plugin.apply(config.method).backbone.modules()}
            assert {part for part in found if "BatchNorm" in part} == layers


# -- real processes -----------------------------------------------------------------------------------------------


TORCHRUN = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "--"]


def start(*arguments):
    return Command("pretrain", *arguments)


def wait_for_newer(path, seen, process):
    """Wait until a checkpoint is newer than ``seen``, or the process has ended."""
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline and not (path.exists() and path.stat().st_mtime_ns > seen):
        time.sleep(0.002)


def differences(one, other, path=""):
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        return [entry for key in one for entry in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        return [e for i, (a, b) in enumerate(zip(one, other, strict=True)) for e in differences(a, b, f"{path}/{i}")]
    return [] if one == other or path.endswith("/seconds") else [path]


def metrics_of(folder):
    timed = {"seconds", "speed/images_per_second"}
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in timed} for row in csv.DictReader(file)]


KILLS = int(os.environ.get("CONTRASTNEG_TEST_KILLS", "1"))  # the full acceptance takes 10
WHOLE = KILLS > 2  # every way of loading is killed, and both signals are sent at every moment; else one of each
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.parametrize(("loading", "workers"), [("stream", 2), ("memory", 0), ("stream", 0)][: 3 if WHOLE else 1])
def test_a_run_killed_at_random_moments_and_resumed_ends_bit_equal_to_the_unbroken_one(tmp_path, loading, workers):
    arguments = ["shapes", *MOCO, *SMALL, "--limit-images", 100, "--epochs", 5, "--checkpoint-every", 2]
    arguments += ["--loading", loading, "--workers", workers, "--final_scores", "false", "--knn_every", 2]
    arguments += ["--method.stages+=MoCHi", "--method.stages.pool", 8, "--method.stages.pair_mixes", 8,
                  "--method.stages.warmup_epochs", 1]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(*arguments, "--run", whole)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    moments = random.Random(loading + str(workers))
    todo = [*arguments, "--run", broken]
    kills = 0
    while True:
        process = start(*todo)
        if kills < KILLS:
            checkpoint = broken / "checkpoints" / "last.ckpt"
            wait_for_newer(checkpoint, checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0, process)
            time.sleep(moments.uniform(0, 0.2))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate(timeout=30)
                kills += 1
                todo = ["--resume", broken]
                continue
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        break
    assert kills > 0
    states = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (whole, broken)]
    assert states[0]["global_step"] == 60
    assert differences(*states) == []
    assert metrics_of(broken) == metrics_of(whole)


@pytest.mark.parametrize(("signum", "status"), SIGNALS[: 2 if WHOLE else 1])
def test_a_signal_saves_names_the_checkpoint_and_exits_non_zero(tmp_path, signum, status):
    out = tmp_path / "run"
    arguments = ["shapes", *SMALL, "--limit-images", 100, "--epochs", 500, "--checkpoint-every", 2, "--run", out]
    process = start(*arguments)
    wait_for_newer(out / "checkpoints" / "last.ckpt", 0, process)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert f"continue with: contrastneg pretrain --resume {out}" in errors
    assert "Traceback" not in errors
    for name in ("last.ckpt", "interrupted.ckpt"):
        assert torch.load(out / "checkpoints" / name, weights_only=True)["global_step"] > 0


@pytest.mark.parametrize(("first", "status"), SIGNALS[::-1][: 2 if WHOLE else 1])
def test_signals_one_after_another_to_the_run_and_its_loader_workers_end_it_once_saved_and_said(
    tmp_path, first, status
):
    out = tmp_path / "run"
    streaming = ["--loading", "stream", "--workers", 2] if first == signal.SIGINT else []
    arguments = ["shapes", *SMALL, *streaming, "--limit-images", 100, "--epochs", 500, "--knn_every", 0]
    process = start(*arguments, "--checkpoint-every", 2, "--run", out)
    wait_for_newer(out / "checkpoints" / "last.ckpt", 0, process)
    send = (lambda signum: os.killpg(process.pid, signum)) if streaming else process.send_signal
    send(first)
    assert next(process.lines("stderr")) == f"{first.name}: the run stops after this step and saves its state\n"
    for signum in (signal.SIGINT, signal.SIGTERM, first):
        if process.poll() is None:  # SIGTERM to a worker is a worker's death, which torch reports
            process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert errors.count(f"stopped by {first.name}; saved {out / 'checkpoints' / 'interrupted.ckpt'}") == 1
    assert errors.count("is ignored: the run is stopping already") <= 1
    assert errors.count("\n") <= 4, errors  # with the one above
    assert torch.load(out / "checkpoints" / "interrupted.ckpt", weights_only=True)["global_step"] > 0


@pytest.mark.parametrize(("signum", "status"), SIGNALS[::-1][: 2 if WHOLE else 1])
def test_a_signal_during_the_final_scores_ends_the_run_and_resume_goes_on_from_there(tmp_path, signum, status):
    out = tmp_path / "run"
    arguments = ["shapes", *SMALL, "--limit-images", 100, "--epochs", 1, "--knn_every", 0, "--run", out]
    process = start(*arguments)
    assert any("scoring the pretrained encoder" in line for line in process.lines())
    process.send_signal(signum)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert f"continue with: contrastneg pretrain --resume {out}" in errors
    assert "Traceback" not in errors
    assert not (out / "summary.json").exists()
    resumed = start("--resume", out)
    printed, errors = resumed.communicate(timeout=100)
    assert resumed.returncode == 0, errors
    assert "raw pixels" in printed
    assert json.loads((out / "summary.json").read_text())["table"]


def test_a_finished_run_resumed_keeps_its_command_and_its_training_figures(tmp_path):
    out = tmp_path / "run"
    arguments = ["shapes", *SMALL, "--limit-images", 32, "--epochs", 1, "--final_scores", "false", "--run", out]
    summaries = []
    for todo in (arguments, ["--resume", out]):
        process = start(*todo)
        printed, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        assert ("this run has finished its training: no step was taken" in printed) == (todo[0] == "--resume")
        summaries.append(json.loads((out / "summary.json").read_text()))
        (out / "summary.json").unlink()  # as if the first had been stopped during its scores
    assert summaries[0]["command"] == ["contrastneg", "pretrain", *map(str, arguments)]
    assert summaries[0]["images_per_second"] > 0
    assert summaries[1] == summaries[0]


def test_a_reader_that_goes_away_does_not_end_the_training_of_the_installed_command(tmp_path):
    read, write = os.pipe()
    os.close(read)
    arguments = ["shapes", *SMALL, "--limit-images", "60", "--epochs", "2", "--final_scores", "false"]
    command = [Path(sys.executable).with_name("contrastneg"), "pretrain", *arguments, "--run", tmp_path / "run"]
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    process = subprocess.Popen(command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert (tmp_path / "run" / "summary.json").exists()


def test_two_cpu_processes_train_one_model_and_leave_one_run(tmp_path):
    out = tmp_path / "run"
    arguments = ["shapes", *MOCO, *SMALL, "--devices", 2, "--limit-images", 100, "--epochs", 2, "--knn_every", 1]
    arguments += ["--method.batch_norm", "sync"]
    process = start(*arguments, "--run", out)
    printed, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    lines = [line for line in printed.splitlines() if line.strip("│ ")]
    assert sorted(set(lines)) == sorted(lines)  # nothing is printed twice
    assert errors == ""
    assert printed.count("epoch   1/2") == 1
    assert "2 x cpu" in printed
    assert "batch_norm sync needs several GPUs" in " ".join(printed.replace("│", " ").split())
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 12
    assert (state["state_dict"]["queue.image_id"] >= 0).all()
    assert Path(out / "report.html").exists()


@pytest.mark.parametrize(("place", "lines"), [("0", 1), ("1", 0)])
def test_what_all_processes_of_a_launch_refuse_is_said_by_the_first_of_the_machine(monkeypatch, capsys, place, lines):
    monkeypatch.setenv("LOCAL_RANK", place)
    assert run("shapes", "--method.temperature", -1) == 2
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_torchrun_ends_with_one_line_and_status_2_where_the_run_folder_is_in_use(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    arguments = ["shapes", *SMALL, "--devices", 2, "--limit-images", 50, "--epochs", 1, "--run", tmp_path]
    process = Command(*TORCHRUN, "contrastneg", "pretrain", *arguments, module="torch.distributed.run")
    _, errors = process.communicate(timeout=100)
    assert process.returncode != 0
    assert errors.count("contrastneg: ") == 1
    assert f"contrastneg: run folder {tmp_path} exists already" in errors
    assert re.search(r"rank\s*: 0 .*\n\s*exitcode\s*: 2 ", errors)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_two_processes_stopped_within_an_epoch_and_resumed_report_what_unbroken_ones_do(tmp_path):
    arguments = [
        "shapes",
        *MOCO,
        *SMALL,
        "--devices",
        2,
        "--epochs",
        2,
        "--drop_last",
        "false",
        "--checkpoint-every",
        2,
    ]
    arguments += ["--limit-images", 605, "--final_scores", "false"]  # 37 whole steps, and one of 7 and 6 images
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    unbroken = two_commands("pretrain", *arguments, "--run", whole)
    processes = two_commands("pretrain", *arguments, "--run", broken)
    wait_for_newer(broken / "checkpoints" / "last.ckpt", 0, processes[0])
    processes[0].send_signal(signal.SIGTERM)
    for process in unbroken:
        _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
    stopped = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], stopped
    assert "".join(stopped).count("stopped by SIGTERM; saved") == "".join(stopped).count("continue with: ") == 1
    state = torch.load(broken / "checkpoints" / "interrupted.ckpt", weights_only=True)
    assert 0 < state["global_step"] < 38
    for process in two_commands("pretrain", "--resume", broken):
        _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
    assert metrics_of(broken) == metrics_of(whole)
    epochs = [row for row in metrics_of(whole) if row["epoch/loss"]]
    assert [int(row["step"]) for row in epochs] == [37, 75]
    assert all(row[name] for row in epochs for name in ("epoch/accuracy", "probe/accuracy", "knn/top1"))
    states = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (whole, broken)]
    assert differences(*states) == []
