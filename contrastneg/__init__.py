"""Contrastive pretraining of image encoders where the negatives matter."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what __getattr__ gives, for type checkers and editors
    from contrastneg import losses as losses
    from contrastneg import negatives as negatives
    from contrastneg import objectives as objectives
    from contrastneg.config import Pretrain as Pretrain
    from contrastneg.data.batches import Batches as Batches
    from contrastneg.data.batches import GraphWalkBatches as GraphWalkBatches
    from contrastneg.data.batches import ShuffledBatches as ShuffledBatches
    from contrastneg.data.views import Augment as Augment
    from contrastneg.data.views import Views as Views
    from contrastneg.encoders import Backbone as Backbone
    from contrastneg.encoders import Head as Head
    from contrastneg.loading import load as load
    from contrastneg.methods import MoCo as MoCo
    from contrastneg.methods import SimCLR as SimCLR
    from contrastneg.negatives import Clock as Clock
    from contrastneg.negatives import MoCHi as MoCHi
    from contrastneg.negatives import Negatives as Negatives
    from contrastneg.negatives import Stage as Stage
    from contrastneg.negatives import UniformSubset as UniformSubset
    from contrastneg.optim import Optimizer as Optimizer
    from contrastneg.queue import KeyQueue as KeyQueue
    from contrastneg.schedules import Cosine as Cosine
    from contrastneg.schedules import Linear as Linear
    from contrastneg.schedules import Step as Step

_HOMES = {
    "MoCo": "methods",
    "SimCLR": "methods",
    "KeyQueue": "queue",
    "Clock": "negatives",
    "MoCHi": "negatives",
    "Negatives": "negatives",
    "Stage": "negatives",
    "UniformSubset": "negatives",
    "Backbone": "encoders",
    "Head": "encoders",
    "Optimizer": "optim",
    "Cosine": "schedules",
    "Linear": "schedules",
    "Step": "schedules",
    "Batches": "data.batches",
    "GraphWalkBatches": "data.batches",
    "ShuffledBatches": "data.batches",
    "Augment": "data.views",
    "Views": "data.views",
    "Pretrain": "config",
    "load": "loading",
}
_MODULES = ("losses", "negatives", "objectives")


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: ``import contrastneg`` alone stays quick."""
    if name in _MODULES:
        return importlib.import_module(f"contrastneg.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'contrastneg' has no attribute {name!r}")
    return getattr(importlib.import_module(f"contrastneg.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
