"""Lines that say how far something long is, where a bar would not be seen."""

import sys
import time

from contrastneg import distributed

SAY_EVERY = 10.0  # seconds between lines


class ProgressLines:
    """Says on standard error every few seconds, on a terminal or not, how much is done; the first process alone does.

    Args:
        verb: What was done to them, for instance "embedded".
        things: What they are, for instance "images".
    """

    def __init__(self, verb: str, things: str) -> None:
        self.verb, self.things, self._due = verb, things, time.monotonic() + SAY_EVERY

    def __call__(self, done: int, count: int) -> None:
        """Note that so many are done."""
        if time.monotonic() >= self._due and distributed.is_first_process():
            self._due = time.monotonic() + SAY_EVERY
            print(f"{self.verb} {done:,} of {count:,} {self.things}", file=sys.stderr, flush=True)
