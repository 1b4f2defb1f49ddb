"""A linear classifier on an encoder, trained on random crops and asked once about the test images."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from contrastneg import distributed
from contrastneg.data.module import PretrainData
from contrastneg.evaluate.answers import listed
from contrastneg.evaluate.crops import LabelledCrops
from contrastneg.evaluate.features import Progress, check_labels, extract, finite_rows
from contrastneg.evaluate.knn import class_notes
from contrastneg.evaluate.linear import LOGITS
from contrastneg.optim import rate_factor
from contrastneg.randomness import generator
from contrastneg.schedules import Schedule

INITIAL = 0.01  # standard deviation of the first weights, as in MoCo's linear protocol


def check_sets(data: PretrainData) -> None:
    """Refuse, before anything is trained, sets in which nothing can be learned or asked.

    Raises:
        ValueError: Nothing in the bank or the test images has a label, or a label is not among the classes.
    """
    for split, name in (("train", "training images"), ("test", "test images")):
        labels = data.labels(split)
        if not (labels >= 0).any():
            raise ValueError("a trained classifier needs labelled training and test images: there are none")
        check_labels(labels, data.num_classes, name)


def linear_classifier(width: int, num_classes: int, seed: int, device: torch.device) -> nn.Linear:
    """Weights from N(0, 0.01), biases 0, the same on every process and without a touch of the global generator.

    Args:
        width: Width of the features.
        num_classes: Number of classes.
        seed: Draws the weights.
        device: Where it is.
    """
    layer: Any = nn.utils.skip_init(nn.Linear, width, num_classes)
    with torch.no_grad():
        layer.weight.copy_(INITIAL * torch.randn(num_classes, width, generator=generator(seed, "classifier")))
        layer.bias.zero_()
    return layer.to(device)


def feature_width(encoder: nn.Module, crops: LabelledCrops, device: torch.device, dtype: torch.dtype) -> int:
    """Width of the features of an encoder that is in evaluation mode.

    Args:
        encoder: (B, C, S, S) to (B, F).
        crops: Says what images are like.
        device: Where the encoder is.
        dtype: Arithmetic of the encoder.
    """
    bank, size = crops.data.sets["train"], crops.views.size
    assert bank is not None
    blank = torch.zeros(1, bank.channels, size, size, device=device, dtype=image_dtype(dtype))
    with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=halves(dtype)):
        return encoder(blank).shape[1]


def halves(dtype: torch.dtype) -> bool:
    """Whether an arithmetic goes through autocast."""
    return dtype in (torch.bfloat16, torch.float16)


def image_dtype(dtype: torch.dtype) -> torch.dtype:
    """What images are given in to an encoder of some arithmetic."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def descend(
    features: Callable[[Float[Tensor, "b C S S"]], Float[Tensor, "b F"]],
    classifier: nn.Linear,
    optimizer: torch.optim.Optimizer,
    course: float | Schedule,
    crops: LabelledCrops,
    *,
    epochs: int,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> None:
    """Descend the mean cross-entropy over all processes' images, on their averaged gradients.

    The encoder computes in ``dtype``, classifier and loss in float32. Images whose features are not finite are left out.

    Args:
        features: Of a batch of images, with or without gradient.
        classifier: Is trained.
        optimizer: Holds all that is trained, with the rates of the start.
        course: Factor on the rates by the share of the steps done.
        crops: Give images and labels.
        epochs: Passes over them.
        device: Where everything is.
        dtype: Arithmetic of the encoder.
        progress: Told of every epoch that ends.
    """
    starts = [group["lr"] for group in optimizer.param_groups]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    step = 0
    with torch.enable_grad():
        for epoch in range(epochs):
            for images, labels in crops.epoch(epoch, device):
                for group, start in zip(optimizer.param_groups, starts, strict=True):
                    group["lr"] = start * rate_factor(step, steps=epochs * len(crops), course=course)
                with torch.autocast(device.type, dtype=dtype, enabled=halves(dtype)):
                    x = features(images.to(image_dtype(dtype)))
                x, valid = x.float(), finite_rows(x.detach())
                losses = F.cross_entropy(classifier(torch.where(valid[:, None], x, 0)), labels, reduction="none")
                optimizer.zero_grad()
                scaler.scale(distributed.global_mean(losses, valid)).backward()
                average_gradients(optimizer)
                scaler.step(optimizer)
                scaler.update()
                step += 1
            if progress is not None:
                progress(epoch + 1, epochs)


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Give every process the mean of all processes' gradients."""
    if distributed.world_size() == 1:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= distributed.world_size()


@torch.no_grad()
def answer(
    encoder: nn.Module, classifier: nn.Linear, data: PretrainData, device: torch.device, dtype: torch.dtype
) -> tuple[Bool[Tensor, "M 2"], list[str]]:
    """Ask about every labelled test image once, under the evaluation transform.

    Args:
        encoder: (B, C, S, S) to (B, F).
        classifier: Trained.
        data: Gives the test images.
        device: Where both are.
        dtype: Arithmetic of the encoder.

    Returns:
        Whether the class of each labelled test image that can be read comes first, and whether it is among the first
        five; and what a reader must know.
    """
    queries = extract(encoder, data, "test", device, dtype)
    asked = queries.labels >= 0
    x, labels = queries.x[asked], queries.labels[asked]
    rows = max(1, LOGITS // classifier.out_features)
    found = [
        listed(classifier(part.to(device)), which.to(device)).cpu()
        for part, which in zip(x.split(rows), labels.split(rows), strict=True)
    ]
    lost = int((~finite_rows(x)).sum())
    learned = data.labels("train")
    notes = class_notes(data.num_classes, len(learned[learned >= 0].unique()))
    if lost:
        notes.append(f"{lost} of {len(x)} features of the test images are not finite: they count as wrong")
    if not all(parameter.isfinite().all() for parameter in classifier.parameters()):
        notes.append("the classifier diverged: every test image counts as wrong, and a lower learning rate is needed")
    return torch.cat(found), notes
