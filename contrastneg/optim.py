"""Optimizers, what they leave out, the learning rate with all its factors, and its course over the run."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from timm.optim import Lars
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


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
    """Decay rates of AdamW's averages."""
    trust_coefficient: float = 0.001
    """Factor of LARS's layer-wise rate."""
    warmup_epochs: float = 0.0
    """Epochs in which the rate grows in a straight line."""
    final_fraction: float = 0.0
    """Share of the rate that the cosine ends at."""
    exclude_1d_from_decay: bool = True
    """Leave biases and batch-norm parameters out of weight decay and of LARS's adaptation."""

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "warmup_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}: give 0 or more")
        for name in ("momentum", "final_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}: give a number from 0 to 1")
        if self.reference_batch < 1:
            raise ValueError(f"optimizer.reference_batch is {self.reference_batch}: give at least 1")


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
    factors = f"{images_per_device} images x {devices} devices x {accumulate} accumulated / {settings.reference_batch}"
    if settings.scale == "linear":
        return EffectiveRate(rate, f"{settings.lr:g} x {factors} = {rate:.4g}")
    return EffectiveRate(rate, f"{settings.lr:g} x sqrt({factors}) = {rate:.4g}")


def parameter_groups(module: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """Parameters that take a gradient, each once: those that decay, and those that do not.

    Args:
        module: The method; its key branch takes no gradient and is left out.
        settings: Weight decay, and whether 1-d parameters are left out of it.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not settings.exclude_1d_from_decay:
        return [{"params": trained, "weight_decay": settings.weight_decay}]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    settings: Optimizer, module: nn.Module, steps: int, steps_per_epoch: int, rate: float
) -> dict[str, Any]:
    """Optimizer and schedule in the form that Lightning's ``configure_optimizers`` returns.

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
        for group in groups:  # timm adapts the groups that decay unless told otherwise
            group["always_adapt"] = not settings.exclude_1d_from_decay or group["params"][0].ndim > 1
        optimizer = Lars(groups, lr=rate, momentum=settings.momentum, trust_coeff=settings.trust_coefficient)
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    course = partial(rate_factor, steps=steps, warmup_steps=warmup, final=settings.final_fraction)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, course), "interval": "step"}}


def rate_factor(step: int, *, steps: int, warmup_steps: int = 0, final: float = 0.0) -> float:
    """Factor on the learning rate at an optimizer step: a line up over the warm-up, then a cosine down.

    Args:
        step: Optimizer steps done.
        steps: Optimizer steps of the whole run, warm-up included.
        warmup_steps: Steps of the warm-up; the first of them is taken at 1 / warmup_steps of the rate.
        final: Factor at the end.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
