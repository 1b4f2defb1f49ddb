"""Where and in what arithmetic a run computes: settings of "auto" made definite for this machine."""

import os
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch

from contrastneg.config import Pretrain


@dataclass(frozen=True)
class Device:
    """Where and in what arithmetic a run computes."""

    accelerator: str
    devices: int
    nodes: int
    precision: str
    notes: list[str]

    @property
    def world_size(self) -> int:
        """Training processes in all."""
        return self.devices * self.nodes


def resolve_device(config: Pretrain) -> Device:
    """Settings of "auto" made definite for this machine.

    Raises:
        ValueError: If a device is asked for that is not there.
    """
    there = {"gpu": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    accelerator = config.accelerator
    if accelerator == "auto":
        accelerator = next((name for name, count in there.items() if count), "cpu")
    if accelerator != "cpu" and not there[accelerator]:
        raise ValueError(f"accelerator is {accelerator} but this machine has none: give --accelerator cpu or auto")
    devices = config.devices
    if devices == "auto":
        launched = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE")
        devices = int(launched) if launched else max(1, there.get(accelerator, 1))
    if devices < 1:
        raise ValueError(f"devices is {devices}: give at least 1, or auto")
    if devices > there.get(accelerator, devices):
        raise ValueError(
            f"devices is {devices} but this machine has {there[accelerator]} ({accelerator}): give at most that"
        )
    if accelerator == "cpu" and devices > (os.cpu_count() or devices):
        raise ValueError(
            f"devices is {devices} but this machine has {os.cpu_count()} CPU cores: give at most that many processes"
        )
    precision, notes = resolve_precision(config.precision, accelerator)
    return Device(accelerator, devices, config.nodes, precision, notes)


def resolve_precision(asked: str, accelerator: str) -> tuple[str, list[str]]:
    """The arithmetic that will really be used, and a note where it is not the one asked for."""
    fast_bf16 = {
        "cpu": getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)(),
        "gpu": torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False),
        "mps": False,
    }[accelerator]
    if asked == "auto":
        return ("bfloat16" if fast_bf16 else "float32"), []
    unsupported = {"cpu": {"float16"}, "mps": {"bfloat16", "float16", "float64"}, "gpu": set()}[accelerator]
    if asked in unsupported:
        return "float32", [f"{asked} is not supported on {accelerator}: float32 is used"]
    if asked == "bfloat16" and not fast_bf16:
        return asked, ["bfloat16 is emulated on this hardware and slower than float32"]
    return asked, []


LIGHTNING_PRECISION: dict[str, Any] = {
    "float32": "32-true",
    "bfloat16": "bf16-mixed",
    "float16": "16-mixed",
    "float64": "64-true",
}


def encoder_dtype(trainer: pl.Trainer) -> torch.dtype:
    """Arithmetic of the encoder, for evaluation; float32 for precisions that only a Trainer of one's own can have."""
    return {
        "32-true": torch.float32,
        "bf16-mixed": torch.bfloat16,
        "16-mixed": torch.float16,
        "64-true": torch.float64,
    }.get(str(trainer.precision), torch.float32)


def synchronised(method: Any, device: Device) -> bool:
    """Whether batch norm statistics are taken over all devices; torch does so on GPUs only."""
    return method.batch_norm == "sync" and device.accelerator == "gpu" and device.world_size > 1


def batch_norm_notes(method: Any, device: Device) -> list[str]:
    """What a batch norm setting cannot do here."""
    if method.batch_norm == "sync" and not synchronised(method, device):
        return [f"batch_norm sync needs several GPUs: on {device.accelerator} each process keeps its own statistics"]
    if method.batch_norm == "shuffle" and device.world_size == 1:
        return ["batch_norm shuffle protects nothing on one device: use split, which normalises groups of the batch"]
    return []
