"""What the scripts that measure share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
MEASURES = "import torch; from bench_step import extra_memory; print(extra_memory(lambda: torch.ones(3, 2**20).sum()))"


def test_the_memory_of_a_call_is_all_that_it_held_at_once_and_the_profiler_says_nothing():
    environment = {name: text for name, text in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    process = subprocess.run(
        [sys.executable, "-c", MEASURES],
        cwd=SCRIPTS, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, "")
    assert float(process.stdout) == pytest.approx(12, abs=0.01)


def test_a_call_whose_memory_the_profiler_does_not_see_is_an_error_and_not_free():
    from bench_step import extra_memory

    with pytest.raises(RuntimeError, match="saw no allocation"):
        extra_memory(lambda: None)
