"""What an epoch's line is made of."""

import io
import re
from unittest.mock import MagicMock

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer


def test_an_epochs_means_over_ranks_weigh_by_what_each_rank_counted():
    from contrastneg.console import EpochMeter, means_of

    ranks = [EpochMeter(), EpochMeter()]
    ranks[0].add((8.0, 3, 0), (4, 4, 4))  # 4 queries of loss 2, 3 of them hits, none without a candidate
    ranks[1].add((15.0, 1, 1), (3, 2, 3))  # 3 queries of loss 5
    ranks[1].add((0.0, 0, 1), (1, 0, 1))
    means = means_of([meter.numbers for meter in ranks])
    assert means == pytest.approx({"loss": 23 / 8, "accuracy": 4 / 6, "empty": 2 / 8})
    assert ranks[0].means() == ranks[0].global_means() == {"loss": 2.0, "accuracy": 0.75, "empty": 0.0}


def test_an_epoch_without_observations_has_means_of_zero():
    from contrastneg.console import EpochMeter

    assert EpochMeter().means() == {"loss": 0.0, "accuracy": 0.0, "empty": 0.0}


class Sums:
    """A step's sums on a device; notes when they are read."""

    def __init__(self, step, reads, loss=4.0):
        self.step, self.reads, self.loss = step, reads, loss

    def tolist(self):
        self.reads.append(self.step)
        return [2 * self.loss, 2.0, 1.0, 2.0]


def trained(progress, trainer, losses):
    """Train one epoch of made-up losses; returns after how many steps which sums had been read."""
    read_after, reads = {}, []
    module = LightningModule()
    progress.on_train_epoch_start(trainer, module)
    for step, loss in enumerate(losses):
        trainer.global_step = step
        progress.on_train_batch_start(trainer, module, None, step)
        trainer.global_step = step + 1
        progress.on_train_batch_end(trainer, module, {"image_id": [0, 1], "sums": Sums(step, reads, loss)}, None, step)
        read_after[step] = len(reads)
    return read_after


@pytest.fixture
def screen(monkeypatch):
    """A progress bar on a terminal of 80 columns, and what it writes there."""
    from contrastneg.console import Output, PatientConsole, RunProgress

    output = Output()
    output.console = PatientConsole(file=io.StringIO(), force_terminal=True, width=80)
    return RunProgress(output), output.console.file


def trainer_of_ten_steps():
    return MagicMock(
        spec=Trainer,
        world_size=1,
        is_global_zero=True,
        current_epoch=0,
        max_epochs=2,
        max_steps=-1,
        estimated_stepping_batches=20,
    )


def test_the_bar_shows_the_loss_from_the_first_step_and_never_a_loss_that_is_not_there(screen):
    progress, written = screen
    trainer = trainer_of_ten_steps()
    for _ in range(2):
        trained(progress, trainer, [4.0])
        progress._bar.refresh()
        assert "images/s  loss 4.000" in written.getvalue()
        progress.pause()
    assert "nan" not in written.getvalue()
    assert not re.search(r"\b0 images/s", written.getvalue())
    assert "epoch 1 " not in written.getvalue()  # always of how many


def test_losses_are_read_after_the_first_step_and_then_every_tenth(screen):
    progress, _ = screen
    read = trained(progress, trainer_of_ten_steps(), [4.0] * 25)
    progress.pause()
    assert [step for step in read if read[step] != read.get(step - 1, 0)] == [0, 10, 20]


@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_at_the_next_reading_and_is_told_with_its_step(screen, tmp_path, lost):
    from contrastneg.divergence import Diverged

    progress, _ = screen
    trainer = trainer_of_ten_steps()
    trainer.default_root_dir = tmp_path
    trainer.optimizers = [MagicMock(param_groups=[{"lr": 0.03}])]
    trainer.lightning_module, trainer.precision = MagicMock(temperature=0.2), "bf16-mixed"
    with pytest.raises(Diverged, match=rf"^the loss is {lost} at step 3, epoch 1: look at the learning rate \(0.03\)"):
        trained(progress, trainer, [4.0] * 3 + [lost] * 20)
    progress.pause()


def test_the_legend_says_whose_choice_the_candidates_are_that_shares_are_of(capsys):
    from contrastneg import Backbone, Head, MoCo
    from contrastneg.console import EpochLine, Output, RunProgress
    from contrastneg.negatives import MemoryBank

    means = {"epoch/loss": 1.5, "epoch/accuracy": 0.5, "candidates/empty_rows": 0.0}
    means |= {"epoch/own": float("nan"), "epoch/same_class": 0.25}  # no candidate, so that there is no share
    metrics = {name: torch.tensor(number) for name, number in means.items()}
    trainer = MagicMock(
        spec=Trainer, is_global_zero=True, current_epoch=0, max_epochs=2, max_steps=-1, callback_metrics=metrics
    )
    small = Backbone(name="resnet9", width=0.125), Head(out=4)
    before = "every key of another image, before the stages"
    chosen = "candidates: chosen by MemoryBank\n"
    added = "candidates: those of the queue or batch, and those added by MemoryBank\n"
    for stages, told in (([], ()), ([MemoryBank(count=4)], (chosen,)), ([MemoryBank(4, "append")], (added,))):
        line = EpochLine(Output(), RunProgress(Output(), bar=False))
        for _ in range(2):
            line.on_train_epoch_end(trainer, MoCo(*small, queue_size=8, stages=stages))
        printed = capsys.readouterr().out
        assert printed.count("loss 1.500  accuracy 50.0 %") == 2
        assert [printed.count(words) for words in (chosen, added)] == [words in told for words in (chosen, added)]
        assert printed.count(before) == (1 if stages else 0)
        assert printed.count("of the query's class, after the sources") == (1 if stages else 0)
        assert printed.count("same class 25.0 %") == 2
        assert "nan" not in printed


@pytest.mark.parametrize(
    ("epoch", "empty", "words"), [(0, 1.0, "100.0 % of queries"), (0, 0.5, ""), (1, 0.5, "50.0 % of queries")]
)
def test_queries_without_candidates_are_told_unless_the_queue_was_empty_at_first(capsys, epoch, empty, words):
    from contrastneg import Backbone, Head, MoCo
    from contrastneg.console import EpochLine, Output, RunProgress

    means = {"epoch/loss": 1.5, "epoch/accuracy": 0.5, "candidates/empty_rows": empty}
    metrics = {name: torch.tensor(number) for name, number in means.items()}
    trainer = MagicMock(
        spec=Trainer, is_global_zero=True, current_epoch=epoch, max_epochs=2, max_steps=-1, callback_metrics=metrics
    )
    method = MoCo(Backbone(name="resnet9", width=0.125), Head(out=4), queue_size=8)
    EpochLine(Output(), RunProgress(Output(), bar=False)).on_train_epoch_end(trainer, method)
    printed = capsys.readouterr().out
    assert words in printed
    assert ("had no candidate left" in printed) == bool(words)


@pytest.mark.parametrize(("max_steps", "last"), [(-1, 100), (3, 1), (4, 2), (10_000, 100)])
def test_a_run_that_steps_end_counts_the_epochs_that_it_begins(max_steps, last):
    from contrastneg.console import last_epoch

    trainer = MagicMock(
        spec=Trainer, max_epochs=100, max_steps=max_steps, num_training_batches=6, accumulate_grad_batches=2
    )
    assert last_epoch(trainer) == last
