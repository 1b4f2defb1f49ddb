"""SIGINT and SIGTERM while a run is under way: obeyed where its state is whole, never lost, never silent."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from contrastneg import distributed
from contrastneg.writing import printable

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The run was asked to stop; no error, so that no library that mends errors mends it.

    Args:
        signum: The signal.
        checkpoint: Where the state is; None where the run had not begun and nothing is saved.
    """

    def __init__(self, signum: int, checkpoint: Path | None) -> None:
        name = signal.Signals(signum).name
        if checkpoint is None:
            super().__init__(
                f"stopped by {name} before the first step; nothing was saved: start anew, with another --run if you named one"
            )
        else:
            resume = f"contrastneg pretrain --resume {checkpoint.parent.parent}"
            super().__init__(f"stopped by {name}; saved {checkpoint}\ncontinue with: {resume}")
        self.signum = signum
        self.checkpoint = checkpoint


class Signals:
    """Takes SIGINT and SIGTERM over for a ``with`` block (not in a thread, where Python allows no handlers).

    While ``at_once``, before and after training, the first signal raises :class:`Interrupted`; while training it is noted
    in ``signum``, and :class:`contrastneg.runfolder.Checkpoints` obeys it after the step. Every later one is ignored with
    one sentence until the block is left, so that nothing can break the saving. What stopped the run is printed on the way
    out, by the first process.

    Args:
        checkpoint: Where the state is that the run would go on from, None before there is one.
    """

    def __init__(self, checkpoint: Path | None = None) -> None:
        self.checkpoint = checkpoint
        self.at_once = True
        self.signum: int | None = None
        self._repeated = False
        self._pid = os.getpid()
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self._earlier = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Interrupted):
            self._say(str(error))
        if on_main_thread():
            for signum, handler in self._earlier.items():
                signal.signal(signum, handler if handler is not None else signal.SIG_DFL)  # None: not from Python

    def take(self) -> None:
        """Take the signals over, again if something else has taken them since."""
        if on_main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a loader's worker, forked with this handler: the training process decides
            return
        name = signal.Signals(signum).name
        if self.signum is None:
            self.signum = signum
            if self.at_once:
                raise Interrupted(signum, self.checkpoint)
            self._say(f"{name}: the run stops after this step and saves its state")
        elif not self._repeated:
            self._repeated = True
            self._say(
                f"{name} is ignored: the run is stopping already (`kill -KILL {self._pid}` ends it without saving)"
            )

    def _say(self, text: str) -> None:
        if distributed.is_first_process():
            os.write(
                2, f"{printable(text)}\n".encode()
            )  # a stream may be in the middle of a write that the signal has cut


def ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM for the rest of the process, which is ending."""
    if on_main_thread():
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)


def on_main_thread() -> bool:
    """Whether Python allows signal handlers here."""
    return threading.current_thread() is threading.main_thread()
