"""What a signal does before, while and after a run trains."""

import os
import signal

import pytest


def send(signum):
    os.kill(os.getpid(), signum)


def test_while_training_the_first_signal_is_noted_and_later_ones_are_ignored_with_one_sentence(capfd):
    from contrastneg.signals import Signals

    earlier = signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        signals.at_once = False
        for signum in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            send(signum)
        assert signals.signum == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) == earlier
    first, second = capfd.readouterr().err.splitlines()
    assert first == "SIGINT: the run stops after this step and saves its state"
    assert second.startswith("SIGINT is ignored: the run is stopping already")


@pytest.mark.parametrize("saved", [None, "runs/a/checkpoints/last.ckpt"])
def test_outside_training_a_signal_ends_the_run_at_once_and_says_what_is_saved(tmp_path, capfd, saved):
    from contrastneg.signals import Interrupted, Signals

    checkpoint = tmp_path / saved if saved else None

    def stopped_twice():
        with Signals(checkpoint):
            try:
                send(signal.SIGTERM)
            finally:
                send(signal.SIGTERM)  # while the first is on its way out

    with pytest.raises(Interrupted) as caught:
        stopped_twice()
    assert caught.value.signum == signal.SIGTERM
    said = capfd.readouterr().err
    assert said.count("stopped by SIGTERM") == 1
    assert (f"continue with: contrastneg pretrain --resume {tmp_path / 'runs/a'}\n" in said) == (saved is not None)
    assert ("before the first step; nothing was saved" in said) == (saved is None)


def test_a_process_forked_from_the_run_leaves_the_signal_to_it(capfd, monkeypatch):
    from contrastneg import signals as module

    with module.Signals() as signals:
        monkeypatch.setattr(module.os, "getpid", lambda: -1)
        signals._handle(signal.SIGINT, None)
        monkeypatch.undo()
        assert signals.signum is None
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_the_first_alone_speaks(capfd, monkeypatch, rank):
    from contrastneg.signals import Signals

    monkeypatch.setenv("RANK", rank)
    with Signals() as signals:
        signals.at_once = False
        send(signal.SIGINT)
    assert bool(capfd.readouterr().err) == (rank == "0")
