"""The public names of the package."""

import importlib
from pathlib import Path

import pytest


def test_every_public_name_can_be_imported_listed_and_is_declared_for_type_checkers():
    import contrastneg

    declared = Path(contrastneg.__file__).read_text().partition("_HOMES")[0]
    for name, home in contrastneg._HOMES.items():
        assert getattr(contrastneg, name) is getattr(importlib.import_module(f"contrastneg.{home}"), name)
        assert name in dir(contrastneg)
        assert f" import {name} as {name}\n" in declared, name
    assert {"Batches", "GraphWalkBatches", "ShuffledBatches"} <= set(contrastneg._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'Moco'"):
        _ = contrastneg.Moco
