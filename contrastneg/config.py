"""What a run is told, as one frozen record; the same names on the command line, in YAML and in Python.

Attribute docstrings are the help texts. Nothing derived is ever written back into these records: the scaled learning
rate, the number of steps, the precision of "auto" are computed where they are used.
"""

from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from jsonargparse import ArgumentParser

from contrastneg.checks import check_range
from contrastneg.data.batches import Batches, ShuffledBatches
from contrastneg.data.views import Views

HIDDEN_SETTINGS = ("class_name",)  # what a checkpoint says beside a method's arguments


@dataclass(frozen=True)
class Pretrain:
    """Pretrain an encoder on images without using their labels, then score it."""

    method: pl.LightningModule
    """MoCo or SimCLR with its settings, by class name."""
    data: str | None = None
    """Address of the images: a folder, a .parquet or .tar file, hf:NAME, or cifar10, cifar100, stl10, fashion-mnist, imagenet, shapes."""
    val: str | None = None
    """Address of a labelled set to score on; by default the labels and test images of the data themselves."""
    root: Path | None = None
    """Folder where torchvision data sets are looked for and downloaded to; by default $CONTRASTNEG_DATA or the user's cache."""
    unlabelled: bool = False
    """Treat a folder's sub-folders as mere folders, not as classes."""
    limit_images: int | None = None
    """Pretrain on this many images only, equally many of each class where labels exist: the one use of labels before scoring.

    kNN and linear scores learn from these images only, too, unless their bank is another set (val); a test split stays whole.
    """
    on_bad_image: Literal["raise", "skip"] = "raise"
    """What to do about images that cannot be read: stop with their names, or leave them out and list them."""
    loading: Literal["auto", "memory", "stream"] = "auto"
    """Keep all pixels on the device, or decode in workers; auto keeps equal-sized images of up to 2 GiB in memory."""
    workers: int = 2
    """Loader processes in streaming mode."""

    views: Views = Views()
    """Recipe of the two views."""

    batches: Batches = ShuffledBatches()
    """Which images share a batch: ShuffledBatches, or GraphWalkBatches of similar images, by class name."""
    epochs: int = 100
    """Passes over the images."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, whichever comes first."""
    batch_size: int = 256
    """Images per device and micro-batch."""
    drop_last: bool = True
    """Leave out the last, smaller batch of each epoch."""
    accumulate: int = 1
    """Micro-batches per optimizer step."""
    clip: float | None = None
    """Largest norm of the gradient; none leaves it alone."""
    precision: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Arithmetic of the encoder; the loss is float32 (or float64). Auto is bfloat16 where the hardware multiplies it."""
    channels_last: bool = True
    """Memory format of convolutions: faster for ResNets, slower for depthwise networks on a CPU."""
    compile: bool = False
    """Compile the encoder (torch.compile): helps on GPUs, costs minutes and gains nothing on CPUs."""
    deterministic: bool = False
    """Refuse operations whose result varies from run to run."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    """Kind of device."""
    devices: int | Literal["auto"] = "auto"
    """Devices per node; on a CPU the number of processes (auto is 1)."""
    nodes: int = 1
    """Number of machines."""
    allocator: bool = True
    """On Linux CPUs, keep freed memory in the process (glibc mallopt): 1.2 times faster steps, more memory held."""

    knn_every: int = 1
    """Epochs between kNN scores; 0 scores only at the end."""
    knn_k: int = 20
    """Neighbours that vote."""
    knn_temperature: float = 0.07
    """Temperature of the vote's weights, above 0."""
    probe: bool = True
    """Train a linear classifier on the detached features along the way, where labels exist."""
    final_scores: bool = True
    """End with kNN and linear scores beside raw pixels and the untrained encoder."""

    seed: int = 0
    """Seed of everything random."""
    run: Path | str | None = None
    """Run folder to create; by default runs/DATA-METHOD-NUMBER."""
    checkpoint_every: int | None = 500
    """Optimizer steps between checkpoints within an epoch; one is written after every epoch in any case."""
    log_every: int = 10
    """Optimizer steps between rows of metrics."""
    wandb: str | None = None
    """Weights & Biases project to log to as well."""
    progress: bool = True
    """Show a progress bar on a terminal."""

    def __post_init__(self) -> None:
        check_range(self, "epochs", "batch_size", "accumulate", "log_every", "nodes", "knn_k", least=1)
        check_range(self, "max_steps", "limit_images", "checkpoint_every", least=1)
        check_range(self, "workers", "knn_every", least=0)
        check_range(self, "clip", "knn_temperature", above=0)


def plain(setting: Any) -> Any:
    """A setting as str, int, float, bool, None, list and dict only, as YAML and safe checkpoints can hold it.

    A dataclass whose class must be named (a stage, a schedule) becomes ``{"class_path", "init_args"}``, other
    dataclasses become a mapping of their fields.
    """
    if is_dataclass(setting) and not isinstance(setting, type):
        values = {field.name: plain(getattr(setting, field.name)) for field in fields(setting) if field.init}
        named = type(setting).__mro__[1] is not object
        return {"class_path": class_path(type(setting)), "init_args": values} if named else values
    if isinstance(setting, pl.LightningModule):
        arguments = {key: v for key, v in setting.hparams.items() if key not in HIDDEN_SETTINGS}
        return {"class_path": type(setting).__name__, "init_args": arguments}
    if isinstance(setting, dict):
        return {str(key): plain(v) for key, v in setting.items()}
    if isinstance(setting, (list, tuple)):
        return [plain(v) for v in setting]
    if isinstance(setting, Enum):
        return plain(setting.value)
    if isinstance(setting, Path):
        return str(setting)
    if setting is None or isinstance(setting, bool):
        return setting
    for kind in (int, float, str):
        if isinstance(setting, kind):  # also a kind of number or text of its own, as numpy's float64 is
            return kind(setting)
    if not hasattr(setting, "item"):
        raise ValueError(f"{type(setting).__name__} cannot be written to config.yaml: make it a dataclass")
    return getattr(setting, "item")()  # noqa: B009 - a numpy or torch scalar


def class_path(kind: type) -> str:
    """How a settings file names a class: by its own name, or by its import path if it is not one of ours."""
    own = kind.__module__.startswith("contrastneg.")
    return kind.__name__ if own else f"{kind.__module__}.{kind.__qualname__}"


def build_method(method: type[pl.LightningModule], settings: dict[str, Any]) -> pl.LightningModule:
    """A method from the plain settings that its checkpoint holds."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(method, "method")
    arguments = {name: setting for name, setting in settings.items() if name not in HIDDEN_SETTINGS}
    return parser.instantiate(parser.parse_object({"method": arguments})).method
