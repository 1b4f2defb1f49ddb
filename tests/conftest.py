"""Fixtures shared by all tests. contrastneg is not imported here: jaxtyping's hook must see its first import."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and reference values beside a development checkout; tests that need it skip elsewhere."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs ../shared (real images and reference values), which is not beside this checkout")
    return SHARED
