"""A run's folder: names, metrics, atomic checkpoints, best score, refusal of damaged files."""

import csv
from unittest.mock import MagicMock

import pytest
import torch


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_new_run_takes_the_next_free_number(tmp_path, monkeypatch):
    from contrastneg.runfolder import new_run_folder

    monkeypatch.chdir(tmp_path)
    assert str(new_run_folder(None, "shapes", "MoCo")) == "runs/shapes-moco-1"
    (tmp_path / "runs/shapes-moco-1").mkdir(parents=True)
    assert str(new_run_folder(None, "shapes", "MoCo")) == "runs/shapes-moco-2"


def test_a_folder_that_holds_something_is_refused_and_an_empty_one_is_taken(tmp_path):
    from contrastneg.runfolder import new_run_folder

    assert new_run_folder(tmp_path, "x", "MoCo") == tmp_path
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match="exists already: give another --run$"):
        new_run_folder(tmp_path, "x", "MoCo")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="exists already: give another --run, or continue it with --resume"):
        new_run_folder(tmp_path, "x", "MoCo")


def test_processes_that_start_together_must_name_the_folder(monkeypatch):
    from contrastneg.runfolder import new_run_folder

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="name it with --run DIR"):
        new_run_folder(None, "x", "MoCo")


def test_only_the_first_process_of_a_launch_minds_what_the_folder_holds(tmp_path, monkeypatch):
    from contrastneg.runfolder import new_run_folder

    (tmp_path / "config.yaml").write_text("written by the first process")
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "1")
        assert new_run_folder(tmp_path, "x", "MoCo") == tmp_path
        monkeypatch.setenv(name, "0")
        with pytest.raises(ValueError, match="exists already"):
            new_run_folder(tmp_path, "x", "MoCo")


def test_metrics_keep_earlier_rows_when_a_new_column_appears(tmp_path):
    from contrastneg.runfolder import MetricsCsv

    log = MetricsCsv(tmp_path / "metrics.csv", lambda: 1.25)
    log.log_metrics({"epoch": 0, "train/loss": 2.5}, step=1)
    log.log_metrics({"epoch": 0, "knn/top1": 0.5}, step=2)
    assert rows_of(tmp_path / "metrics.csv") == [
        {"step": "1", "epoch": "0", "seconds": "1.25", "train/loss": "2.5", "knn/top1": ""},
        {"step": "2", "epoch": "0", "seconds": "1.25", "train/loss": "", "knn/top1": "0.5"},
    ]


def test_resumed_metrics_drop_what_will_be_repeated_and_a_row_cut_by_a_kill(tmp_path):
    from contrastneg.runfolder import MetricsCsv

    path = tmp_path / "metrics.csv"
    log = MetricsCsv(path, lambda: 0.0)
    for step in range(5):
        log.log_metrics({"epoch": 0, "train/loss": step}, step=step)
    path.write_text(path.read_text() + "5,0,0.")
    log = MetricsCsv(path, lambda: 9.0, resume_step=3)
    log.log_metrics({"epoch": 0, "train/loss": 30}, step=3)
    assert [(row["step"], row["train/loss"]) for row in rows_of(path)] == [
        ("0", "0"), ("1", "1"), ("2", "2"), ("3", "30"),
    ]  # fmt: skip


def test_a_row_that_is_there_already_is_not_written_again(tmp_path):
    from contrastneg.runfolder import MetricsCsv

    log = MetricsCsv(tmp_path / "metrics.csv", lambda: 0.0)
    for _ in range(2):
        log.log_metrics({"epoch": 0, "train/loss": 2.5, "train/accuracy": float("nan")}, step=1)
    log.log_metrics({"epoch": 0, "epoch/loss": 2.5}, step=1)
    assert len(rows_of(tmp_path / "metrics.csv")) == 2


def test_a_checkpoint_write_that_fails_leaves_the_earlier_file_whole(tmp_path):
    from contrastneg.runfolder import AtomicCheckpoints, read_checkpoint

    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"global_step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpoints().save_checkpoint({"global_step": 2, "bad": lambda: None}, path)
    assert read_checkpoint(path)["global_step"] == 1


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_a_damaged_checkpoint_is_refused_by_name_in_one_line(tmp_path, content):
    from contrastneg.runfolder import read_checkpoint

    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.ckpt cannot be read") as refusal:
        read_checkpoint(path)
    assert "\n" not in str(refusal.value)


def test_the_checkpoint_furthest_on_is_resumed_from(tmp_path):
    from contrastneg.runfolder import AtomicCheckpoints, newest_checkpoint

    with pytest.raises(ValueError, match="holds no checkpoint"):
        newest_checkpoint(tmp_path)
    for name, step in (("last.ckpt", 20), ("interrupted.ckpt", 27)):
        AtomicCheckpoints().save_checkpoint({"global_step": step}, tmp_path / "checkpoints" / name)
    assert newest_checkpoint(tmp_path).name == "interrupted.ckpt"


def test_a_score_that_is_not_a_number_never_blocks_the_best(tmp_path):
    from pytorch_lightning import LightningModule, Trainer

    from contrastneg.runfolder import Checkpoints

    trainer = MagicMock(spec=Trainer, global_step=1, current_epoch=0, max_epochs=1)
    trainer.strategy.broadcast = lambda decision: decision
    trainer.fit_loop, trainer._logger_connector = MagicMock(), MagicMock()
    checkpoints = Checkpoints(tmp_path, every=None)
    for score in (float("nan"), 0.4, 0.5, 0.3):
        trainer.callback_metrics = {"knn/top1": torch.tensor(score)}
        checkpoints.on_train_epoch_end(trainer, LightningModule())
    saved = [call.args[0].name for call in trainer.save_checkpoint.call_args_list]
    assert checkpoints.best == 0.5
    assert saved.count("best.ckpt") == 2
    assert saved.count("last.ckpt") == 4


def test_a_damaged_checkpoint_beside_a_whole_one_is_answered_with_the_whole_one(tmp_path):
    from contrastneg.runfolder import AtomicCheckpoints, newest_checkpoint

    AtomicCheckpoints().save_checkpoint({"global_step": 20}, tmp_path / "checkpoints" / "last.ckpt")
    damaged = tmp_path / "checkpoints" / "interrupted.ckpt"
    damaged.write_bytes(b"PK\x03\x04 half a zip")
    with pytest.raises(ValueError, match=r"interrupted\.ckpt cannot be read.*last\.ckpt \(step 20\) is whole: remove"):
        newest_checkpoint(tmp_path)
    damaged.unlink()  # as it says
    assert newest_checkpoint(tmp_path).name == "last.ckpt"


@pytest.mark.parametrize("place", ["file/run", "/proc/contrastneg-run"])
def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch, place):
    from contrastneg.commandline import parse_pretrain
    from contrastneg.pretrain import write_run_folder

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    config, _ = parse_pretrain(["shapes", "--views.size", "32", "--method.backbone.width", "0.125"])
    with pytest.raises(ValueError, match=r"run folder \S+ cannot be written: .*: give another --run"):
        write_run_folder(tmp_path / place, config)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_local_paths_are_recorded_absolute_and_names_of_sets_as_they_are(tmp_path, monkeypatch):
    from contrastneg.runfolder import lasting_address

    monkeypatch.chdir(tmp_path)
    for name in ("pictures", "cifar10"):
        (tmp_path / name).mkdir()
    (tmp_path / "x-1.tar").write_text("")
    assert lasting_address("pictures") == str(tmp_path / "pictures")
    assert lasting_address("hf:pictures") == f"hf:{tmp_path / 'pictures'}"
    assert lasting_address("x-{0..2}.tar") == str(tmp_path / "x-{0..2}.tar")
    for name in ("shapes", "cifar10", "hf:someone/somewhere", None):
        assert lasting_address(name) == name


def test_32_bit_numbers_are_written_by_their_shortest_form_and_64_bit_ones_whole(tmp_path):
    from contrastneg.runfolder import MetricsCsv

    MetricsCsv(tmp_path / "m.csv", lambda: 0.0).log_metrics(
        {"a": torch.tensor(0.1175).item(), "b": 0.1234567890123, "c": float("nan")}, step=0
    )
    assert (tmp_path / "m.csv").read_text().splitlines()[1].split(",")[-3:] == ["0.1175", "0.1234567890123", "nan"]
