"""Fixtures shared by all tests. contrastneg is not imported here: jaxtyping's hook must see its first import."""

import os
from pathlib import Path

import jaxtyping
import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and reference values beside a development checkout; tests that need it skip elsewhere."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs ../shared (real images and reference values), which is not beside this checkout")
    return SHARED


@pytest.fixture
def as_users_call(monkeypatch):
    """Calls as users make them: the checks of all annotations are those of the tests alone."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
