"""Settings as plain values: what a YAML file and a safely loaded checkpoint can hold."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch


class Colour(Enum):
    """A choice by name."""

    RED = "red"


@dataclass(frozen=True)
class Settings:
    """Settings of kinds that no file holds."""

    sizes: tuple[int, ...] = (3, 5)
    folder: Path = Path("a/b")
    colour: Colour = Colour.RED


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        (Path("a/b"), "a/b"),
        (Colour.RED, "red"),
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (torch.tensor(0.25), 0.25),
        ({"x": (np.float64(1.5), None), 2: Colour.RED}, {"x": [1.5, None], "2": "red"}),
        (Settings(), {"sizes": [3, 5], "folder": "a/b", "colour": "red"}),
    ],
    ids=str,
)
def test_settings_of_every_kind_become_plain_values_that_load_safely(tmp_path, setting, expected):
    from contrastneg.config import plain

    found = plain(setting)
    assert found == expected
    assert type(found) is type(expected)
    torch.save({"settings": found}, tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True) == {"settings": expected}


def test_what_is_no_setting_is_refused_by_its_kind():
    from contrastneg.config import plain

    with pytest.raises(ValueError, match="object cannot be written to config.yaml: make it a dataclass"):
        plain(object())
