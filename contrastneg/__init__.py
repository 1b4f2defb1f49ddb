"""Contrastive pretraining of image encoders where the negatives matter."""

import importlib
from typing import Any

_HOMES = {
    "MoCo": "methods",
    "SimCLR": "methods",
    "KeyQueue": "queue",
    "Clock": "negatives",
    "MoCHi": "negatives",
    "Negatives": "negatives",
    "Stage": "negatives",
    "UniformSubset": "negatives",
    **dict.fromkeys(
        (
            "BPR",
            "RINCE",
            "AlignUniform",
            "BinaryCrossEntropy",
            "CosineContrastive",
            "Debiased",
            "Decoupled",
            "DecoupledWeighted",
            "DualAMN",
            "DualTemperature",
            "HardWeighted",
            "InfoNCE",
            "Objective",
            "Sigmoid",
            "Spectral",
            "Square",
            "Triplet",
        ),
        "objectives",
    ),
    "Backbone": "encoders",
    "Head": "encoders",
    "Optimizer": "optim",
    "Augment": "data.views",
    "Views": "data.views",
    "Pretrain": "config",
    "load": "loading",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: ``import contrastneg`` alone stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'contrastneg' has no attribute {name!r}")
    return getattr(importlib.import_module(f"contrastneg.{_HOMES[name]}"), name)
