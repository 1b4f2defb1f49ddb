"""Where encoders are judged, in what arithmetic, and by how many processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from contrastneg.device import resolve_precision
from contrastneg.evaluate.settings import Evaluate


@dataclass(frozen=True)
class Place:
    """Where and in what arithmetic encoders compute."""

    device: torch.device
    dtype: torch.dtype
    """Of features that are kept."""
    training: str
    """Of protocols that train on pictures: a name of torch's."""

    @property
    def training_dtype(self) -> torch.dtype:
        """The arithmetic of protocols that train on pictures."""
        return getattr(torch, self.training)


def place_of(config: Evaluate) -> Place:
    """The place of this process.

    Raises:
        ValueError: A GPU is asked for and there is none.
    """
    device = device_of(config.accelerator)
    training, _ = resolve_precision(config.training_precision, "gpu" if device.type == "cuda" else "cpu")
    return Place(device, getattr(torch, config.precision), training)


def device_of(accelerator: str) -> torch.device:
    """The device of this process.

    Raises:
        ValueError: A GPU is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if accelerator == "gpu" and not there:
        raise ValueError("accelerator is gpu but this machine has none: give --accelerator cpu or auto")
    if accelerator == "cpu" or not there:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(accelerator: str) -> Iterator[None]:
    """The processes of a ``torchrun`` launch together; nothing where there is one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    on_gpus = accelerator != "cpu" and torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
