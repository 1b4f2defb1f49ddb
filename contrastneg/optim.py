"""Optimizers, what they leave out, the learning rate with all its factors, and its course over the run."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from timm.optim import Lars
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from contrastneg.checks import WrongSetting, check_kinds, check_range
from contrastneg.schedules import Cosine, Schedule, value


@dataclass(frozen=True)
class Optimizer:
    """How the encoder is trained."""

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    """SGD with momentum, LARS (arXiv:1708.03888) or AdamW."""
    lr: float = 0.03
    """Learning rate before scaling, 0 or more."""
    scale: Literal["none", "linear", "sqrt"] = "linear"
    """Factor for the images per optimizer step n: none, n / reference_batch, or its square root."""
    reference_batch: int = 256
    """Images per step at which the scaled learning rate equals lr."""
    weight_decay: float = 1e-4
    """Weight decay, 0 or more."""
    momentum: float = 0.9
    """Momentum of SGD and LARS, in [0, 1)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's averages of the gradient and its square, in [0, 1)."""
    trust_coefficient: float = 0.001
    """Factor of LARS's layer-wise rate, above 0."""
    warmup_epochs: float = 0.0
    """Epochs in which the rate grows in a straight line."""
    course: float | Schedule = Cosine(1.0, 0.0)
    """Factor on the rate after the warm-up, by the share of the remaining steps done: Cosine, Linear, Step, or 1 (constant)."""
    exclude_1d_from_decay: bool = True
    """Leave biases and batch-norm parameters out of weight decay and of LARS's adaptation (MoCo v1 and v2 decay them)."""

    def __post_init__(self) -> None:
        check_kinds(self)
        check_range(self, "lr", "weight_decay", "warmup_epochs", "course", least=0)
        check_range(self, "momentum", least=0, below=1)
        check_range(self, "trust_coefficient", above=0)
        check_range(self, "reference_batch", least=1)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise WrongSetting(self, "betas", f"is {list(self.betas)}: give numbers of at least 0 and below 1")


@dataclass(frozen=True)
class EffectiveRate:
    """The learning rate after scaling."""

    value: float
    """The rate."""
    text: str
    """How it came about."""


def learning_rate(settings: Optimizer, images_per_device: int, devices: int, accumulate: int) -> EffectiveRate:
    """Scale the learning rate to the images that one optimizer step really sees.

    Args:
        settings: Rate, rule and reference.
        images_per_device: Images per device and micro-batch.
        devices: Devices over all nodes.
        accumulate: Micro-batches per optimizer step.
    """
    images = images_per_device * devices * accumulate
    if settings.scale == "none":
        return EffectiveRate(settings.lr, f"{settings.lr:g} (not scaled; {images} images per optimizer step)")
    ratio = images / settings.reference_batch
    rate = settings.lr * (ratio if settings.scale == "linear" else math.sqrt(ratio))
    factors = f"{images_per_device} images x {devices} device{'s' * (devices != 1)} x {accumulate} accumulated / {settings.reference_batch}"
    if settings.scale == "linear":
        return EffectiveRate(rate, f"{settings.lr:g} x {factors} = {rate:.4g}")
    return EffectiveRate(rate, f"{settings.lr:g} x sqrt({factors}) = {rate:.4g}")


def parameter_groups(module: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """Parameters that take a gradient, each once: those that decay, and those that do not.

    Args:
        module: The method; its key branch takes no gradient and is left out.
        settings: Weight decay, and whether biases and other 1-d parameters are left out of it.

    Returns:
        Groups for any torch optimizer, named ``decayed`` and ``spared``; empty ones are left out.
    """
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    spared = {
        name
        for name, parameter in trained
        if settings.exclude_1d_from_decay and (parameter.ndim <= 1 or name.endswith("bias"))
    }
    groups = [
        {
            "name": "decayed",
            "params": [parameter for name, parameter in trained if name not in spared],
            "weight_decay": settings.weight_decay,
        },
        {"name": "spared", "params": [parameter for name, parameter in trained if name in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    settings: Optimizer, module: nn.Module, steps: int, steps_per_epoch: int, rate: float
) -> dict[str, Any]:
    """Optimizer and schedule in the form that Lightning's ``configure_optimizers`` returns.

    LARS is timm's: weight decay joins the gradient before the ratio of norms is taken, a norm of 0 makes the ratio 1, and
    the spared parameters take plain SGD steps.

    Args:
        settings: Which optimizer.
        module: The method to train.
        steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of one epoch.
        rate: Learning rate after scaling.
    """
    groups = parameter_groups(module, settings)
    if settings.name == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=rate, betas=settings.betas)
    elif settings.name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=settings.momentum)
    else:
        for group in groups:  # timm adapts only groups that decay unless told otherwise
            group["always_adapt"] = group["name"] == "decayed"
        optimizer = Lars(
            groups,
            lr=rate,
            momentum=settings.momentum,  # type: ignore[arg-type]  # timm's default is an int
            trust_coeff=settings.trust_coefficient,
        )
    warmup = warmup_steps(settings, steps_per_epoch)
    factor = partial(rate_factor, steps=steps, warmup_steps=warmup, course=settings.course)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def warmup_steps(settings: Optimizer, steps_per_epoch: int) -> int:
    """Optimizer steps of the warm-up."""
    return round(settings.warmup_epochs * steps_per_epoch)


def rate_factor(step: int, *, steps: int, warmup_steps: int = 0, course: float | Schedule = Cosine(1.0, 0.0)) -> float:
    """Factor on the learning rate at an optimizer step: a line up over the warm-up, then ``course``.

    Args:
        step: Optimizer steps done.
        steps: Optimizer steps of the whole run, warm-up included.
        warmup_steps: Steps of the warm-up; the first of them is taken at 1 / warmup_steps of the rate.
        course: Factor by the share of the steps after the warm-up that are done.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return value(course, min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps)))
