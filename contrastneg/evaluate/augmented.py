"""The published linear protocol: a classifier of frozen features, trained on a fresh crop and flip of every image and epoch.

The encoder is in evaluation mode throughout: no weight, running statistic or counter of it changes. Recipes follow the
official code of their projects; what that does not say is ours and named.
"""

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from contrastneg.batchnorm import fold_batch_norm_
from contrastneg.checks import WrongSetting, check_range
from contrastneg.data.module import PretrainData
from contrastneg.evaluate.answers import Answers, shares
from contrastneg.evaluate.classifier import answer, check_sets, descend, feature_width, linear_classifier
from contrastneg.evaluate.crops import LabelledCrops, check_crop_scale, labelled_positions
from contrastneg.evaluate.features import Progress, evaluating
from contrastneg.schedules import Cosine, Schedule, Step

PASS = 256  # small pictures that a CPU encodes at a time: what they are turned into then stays in its caches


@dataclass(frozen=True)
class LinearRecipe:
    """How the classifier is trained: SGD on random crops and flips."""

    lr: float
    """Learning rate, above 0."""
    epochs: int
    """Passes over the labelled images, at least 1."""
    batch_size: int
    """Images per step on all devices together, at least 1."""
    reference_batch: int | None = None
    """Images per step at which the rate is ``lr``, else in proportion; none: it is always ``lr``."""
    momentum: float = 0.9
    """Momentum, in [0, 1)."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: float = 0.0
    """Weight decay, 0 or more."""
    course: float | Schedule = Cosine(1.0, 0.0)
    """Factor on the rate, by the share of all steps done."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the area that a crop keeps, in (0, 1]."""

    def __post_init__(self) -> None:
        check_range(self, "lr", above=0)
        check_range(self, "epochs", "batch_size", "reference_batch", least=1)
        check_range(self, "momentum", least=0, below=1)
        check_range(self, "weight_decay", "course", least=0)
        check_crop_scale(self)
        if self.nesterov and not self.momentum:
            raise WrongSetting(self, "nesterov", "is true but momentum is 0: give a momentum above 0")

    def optimizer(self, classifier: nn.Module, lr: float) -> torch.optim.SGD:
        """What descends, from a rate that fits the batch."""
        how = {"momentum": self.momentum, "nesterov": self.nesterov, "weight_decay": self.weight_decay}
        return torch.optim.SGD(classifier.parameters(), lr=lr, **how)

    def facts(self) -> dict[str, Any]:
        """What a score's record says of it beside rate and batch, which depend on the set, too."""
        schedule = str(self.course)
        if isinstance(self.course, Step):
            places = ", ".join(f"{self.epochs * at:g}" for at in self.course.at)
            schedule = f"x {self.course.factor:g} after epochs {places}"
        elif self.course == Cosine(1.0, 0.0):
            schedule = "cosine to 0"
        return {
            "epochs": self.epochs,
            "schedule": schedule,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self.weight_decay,
            "crop_scale": list(self.crop_scale),
        }


PRESETS = {
    "moco": LinearRecipe(lr=30, epochs=100, batch_size=256, course=Step(1.0, 0.1, (0.6, 0.8))),
    "moco_v3": LinearRecipe(lr=0.1, reference_batch=256, epochs=90, batch_size=1024),
    "simclr": LinearRecipe(lr=0.1, reference_batch=256, epochs=90, batch_size=4096, nesterov=True, weight_decay=1e-6),
    "cifar": LinearRecipe(lr=0.1, epochs=100, batch_size=512),
}
"""Published recipes by name, all with crops of 8 to 100 % of the area.

- ``moco``: linear evaluation of MoCo v1 and v2 on ImageNet, official code: rate 30, a tenth of it after 60 and 80 of 100
  epochs, 256 images per step, no weight decay. A rate of 30 suits features that are not normalised, as MoCo's are.
- ``moco_v3``: official code: rate 0.1 per 256 images, 90 epochs, cosine, 1024 images per step, no weight decay.
- ``simclr``: on ImageNet, official code: Nesterov, rate 0.1 per 256 images, 90 epochs, cosine, 4096 images per step, weight
  decay 1e-6.
- ``cifar``: SimCLR on CIFAR-10, official code: rate 0.1, 100 epochs, cosine, 512 images per step.

The momentum of 0.9 is MoCo's and taken for all; that the CIFAR recipe decays no weights and crops like the others is ours.
The course of the rate follows steps here; where official code changes it once an epoch, a cosine differs by a step's width.
"""


@dataclass(frozen=True)
class AugmentedScore(Answers):
    """Share of test images that the classifier gets right, and how it was trained."""

    lr: float
    """Learning rate at the start, after scaling."""
    weight_decay: float
    """Weight decay."""
    epochs: int
    """Passes over the labelled images."""
    batch_size: int
    """Images per step on all devices together."""


def linear_recipe(name: str, epochs: int | None = None, batch_size: int | None = None) -> LinearRecipe:
    """A published recipe, or the same with other epochs or batches; courses keep their places as shares of the run.

    Args:
        name: One of ``PRESETS``.
        epochs: Passes over the labelled images; None leaves the published number.
        batch_size: Images per step; None leaves the published number.

    Raises:
        ValueError: There is no recipe of that name, or a number is out of range.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no linear recipe {name!r}: choose {', '.join(PRESETS)}")
    changes = {"epochs": epochs, "batch_size": batch_size}
    return replace(PRESETS[name], **{key: number for key, number in changes.items() if number is not None})


def augmented_score(
    encoder: nn.Module,
    data: PretrainData,
    recipe: LinearRecipe,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> AugmentedScore:
    """Train a linear classifier on crops of the labelled bank, and score it once on the test images.

    The encoder that is given is not touched, not even by another part of the program that switches it to training mode
    meanwhile: a frozen copy computes the features, with the batch-norm statistics of rank 0. Under data parallelism every
    process does its share of each batch and all get the same score; they must call together.

    Args:
        encoder: (B, C, S, S) to (B, F).
        data: Bank and test images.
        recipe: How to train, for instance ``linear_recipe("moco")``.
        seed: Draws first weights, batches, crops and flips.
        device: Where the encoder is.
        dtype: Arithmetic of the encoder: half precisions through autocast, float64 as it is.
        progress: Told of every epoch that ends.

    Raises:
        ValueError: The bank has too few labelled images, nothing is labelled, or a label is not among the classes.
    """
    check_sets(data)
    crops = LabelledCrops(data, labelled_positions(data), recipe.crop_scale, recipe.batch_size, seed)
    frozen = copy.deepcopy(encoder).requires_grad_(False)
    batch = min(recipe.batch_size, len(crops.positions))
    lr = recipe.lr * (batch / recipe.reference_batch if recipe.reference_batch else 1)
    with evaluating(frozen):
        fold_batch_norm_(frozen)
        width = feature_width(frozen, crops, device, dtype)
        classifier = linear_classifier(width, data.num_classes, seed, device)
        train(classifier, frozen, crops, recipe, lr, dtype, progress)
        found, notes = answer(frozen, classifier, data, device, dtype)
    if batch < recipe.batch_size:
        notes.append(f"batch_size is {recipe.batch_size} but {batch} images are labelled: all of them make a step")
    right = shares(found, data.num_classes)
    return AugmentedScore(*right, found[:, 0], tuple(notes), lr, recipe.weight_decay, recipe.epochs, batch)


def train(
    classifier: nn.Linear,
    frozen: nn.Module,
    crops: LabelledCrops,
    recipe: LinearRecipe,
    lr: float,
    dtype: torch.dtype,
    progress: Progress | None,
) -> None:
    """Train a classifier, in place and where it is, on a frozen encoder's features of crops."""
    descend(
        partial(frozen_features, frozen),
        classifier,
        recipe.optimizer(classifier, lr),
        recipe.course,
        crops,
        epochs=recipe.epochs,
        device=next(classifier.parameters()).device,
        dtype=dtype,
        progress=progress,
    )


@torch.no_grad()
def frozen_features(encoder: nn.Module, images: Float[Tensor, "b C S S"]) -> Float[Tensor, "b F"]:
    """Features in evaluation mode, on CPUs a few images at a time.

    Args:
        encoder: Is put into evaluation mode again: a hook that came with it may have switched it.
        images: On its device.
    """
    encoder.eval()
    return torch.cat([encoder(part) for part in (images.split(PASS) if images.device.type == "cpu" else [images])])
