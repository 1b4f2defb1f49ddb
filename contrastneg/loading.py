"""A trained method from its run folder or checkpoint, with nothing else at hand and no network."""

import importlib
from pathlib import Path

import pytorch_lightning as pl

from contrastneg.config import build_method
from contrastneg.runfolder import newest_checkpoint, read_checkpoint


def load(path: str | Path) -> pl.LightningModule:
    """The method of a run, with its weights, queue and key branch, in evaluation mode; ``.backbone`` is its encoder.

    Args:
        path: A run folder (its newest checkpoint is taken) or a checkpoint file.

    Raises:
        ValueError: The path is neither, or the checkpoint is damaged or was written by something else.
    """
    path = Path(path)
    checkpoint = read_checkpoint(newest_checkpoint(path) if path.is_dir() else path)
    settings = dict(checkpoint.get("hyper_parameters", {}))
    if settings.get("class_name") not in ("MoCo", "SimCLR"):
        raise ValueError(f"{path} was not written by contrastneg: its settings name neither MoCo nor SimCLR")
    methods = importlib.import_module("contrastneg.methods")  # which can load itself, too
    method = build_method(getattr(methods, settings["class_name"]), without_download(settings))
    method.load_state_dict(checkpoint["state_dict"])
    return method.eval()


def without_download(settings: dict) -> dict:
    """Settings of a method whose weights are about to be replaced: published ones need not be fetched."""
    return {**settings, "backbone": {**settings["backbone"], "pretrained": False}}
