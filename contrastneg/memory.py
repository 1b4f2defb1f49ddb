"""Whether a run fits into the memory of this machine, and one line for a run that turns out not to."""

import os
import sys
from pathlib import Path

import torch

from contrastneg.config import Pretrain
from contrastneg.device import Device

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")  # torch's words, on processors and devices


class OutOfMemory(Exception):
    """The machine has no memory for what a step or a score needs."""


def check_memory(config: Pretrain, device: Device) -> None:
    """Refuse, before anything is written, views of which no single batch would fit.

    Raises:
        ValueError: If both views of a batch alone are larger than the memory that there is.
    """
    there = memory_of(device)
    channels = config.method.hparams["backbone"]["in_channels"]
    needed = 4 * 2 * config.batch_size * channels * config.views.size**2  # float32
    if there is not None and needed > there:
        raise ValueError(
            f"views.size is {config.views.size}: the views of a batch of {config.batch_size} images take {gigabytes(needed)}, "
            f"more than the {gigabytes(there)} that are there: lower views.size or batch_size"
        )


def memory_of(device: Device) -> int | None:
    """Bytes that one training process can have at most; None where the system does not tell."""
    if device.accelerator == "gpu":
        return torch.cuda.get_device_properties(0).total_memory
    if sys.platform == "win32":
        return None
    built_in = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([built_in, *control_group_limits()]) // device.devices


def control_group_limits(member: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes that the control groups of this process may have, such as those of its container; none where nothing is limited.

    A group is held by the limits of those above it, too. Inside a container its own group may be mounted as the root, under
    which the path that the kernel tells is not there.

    Args:
        member: The kernel's list of the groups that this process is in.
        root: Where they are mounted.
    """
    limits = []
    for line in member.read_text().splitlines() if member.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, name = root, "memory.max"  # version 2
        elif "memory" in controllers.split(","):
            mount, name = root / "memory", "memory.limit_in_bytes"  # version 1, which writes a huge number for no limit
        else:
            continue
        inner = Path(path.lstrip("/"))
        files = [mount / group / name for group in (inner, *inner.parents)]
        limits += [file.read_text().strip() for file in files if file.is_file()]
    return [int(limit) for limit in limits if limit != "max"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was asked for and is not there."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in NO_MEMORY)


def out_of_memory(config: Pretrain, device: Device) -> OutOfMemory:
    """The line that ends the run."""
    where = {"cpu": "this machine", "gpu": "the GPU", "mps": "the device"}[device.accelerator]
    return OutOfMemory(
        f"{where} has not enough memory for batch_size {config.batch_size} at views.size {config.views.size}: lower one of "
        "them (--accumulate keeps the images of a step)"
    )


def gigabytes(count: int) -> str:
    """Bytes as a reader would say them."""
    return f"{count / 1e9:,.1f} GB"
