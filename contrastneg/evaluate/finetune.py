"""Fine-tuning with a share of the labels: encoder and classifier are trained together, each at its own learning rate."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from contrastneg import distributed
from contrastneg.batchnorm import SPLIT
from contrastneg.checks import check_range
from contrastneg.data.module import PretrainData
from contrastneg.data.subsets import in_turns
from contrastneg.evaluate.answers import Answers, shares
from contrastneg.evaluate.classifier import answer, check_sets, descend, feature_width, linear_classifier
from contrastneg.evaluate.crops import LabelledCrops, check_crop_scale
from contrastneg.evaluate.features import Progress
from contrastneg.randomness import derive_seed, generator
from contrastneg.schedules import Cosine

MOMENTUM = 0.9
LEAST_STEPS = 8  # of an epoch; 1 % of ImageNet has 12 of 1024 images


@dataclass(frozen=True)
class FinetuneRecipe:
    """How encoder and classifier are trained: SGD with Nesterov's momentum 0.9, cosine to 0, random crop and flip.

    Epochs, batch and classifier rate are those of SynCo's semi-supervised evaluation (official code, arXiv:2410.02401); its
    encoder rate is the middle of the grid 0.005, 0.01, 0.02, 0.05, 0.1. No weight decay is ours, and what :meth:`for_images`
    makes of it for small sets.
    """

    epochs: int = 30
    """Passes over the labelled images, at least 1."""
    batch_size: int = 1024
    """Images per step on all devices together, at least 1."""
    encoder_lr: float = 0.02
    """Learning rate of the encoder, 0 or more."""
    classifier_lr: float = 0.5
    """Learning rate of the classifier, 0 or more."""
    weight_decay: float = 0.0
    """Weight decay of both, 0 or more."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the area that a crop keeps, in (0, 1]."""

    def __post_init__(self) -> None:
        check_range(self, "epochs", "batch_size", least=1)
        check_range(self, "encoder_lr", "classifier_lr", "weight_decay", least=0)
        check_crop_scale(self)

    def for_images(self, count: int) -> "FinetuneRecipe":
        """The recipe for so many images: steps small enough that an epoch has eight, at rates that are as much smaller.

        The rates belong to the recipe's batch; at small ones they would diverge, so they follow it in proportion
        (arXiv:1706.02677).

        Args:
            count: Images that are learned from.
        """
        batch = min(self.batch_size, max(1, count // LEAST_STEPS))
        share = batch / self.batch_size
        return replace(
            self, batch_size=batch, encoder_lr=self.encoder_lr * share, classifier_lr=self.classifier_lr * share
        )

    def optimizer(self, encoder: nn.Module, classifier: nn.Module) -> torch.optim.SGD:
        """What descends."""
        groups = [
            {"params": list(encoder.parameters()), "lr": self.encoder_lr},
            {"params": list(classifier.parameters()), "lr": self.classifier_lr},
        ]
        return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class FinetuneScore(Answers):
    """Share of test images that the fine-tuned encoder gets right, and how it was trained."""

    encoder_lr: float
    """Learning rate of the encoder at the start."""
    classifier_lr: float
    """Learning rate of the classifier at the start."""
    epochs: int
    """Passes over the labelled images."""
    batch_size: int
    """Images per step on all devices together."""
    images: int
    """Labelled images that were learned from."""


def label_subset(labels: Int64[Tensor, " N"], share: float, seed: int) -> Int64[Tensor, " n"]:
    """Positions of a share of the labelled images, as many of each class as possible and at least one of each.

    With the same seed a smaller share is contained in a larger one.

    Args:
        labels: Class of every image, -1 unknown.
        share: In (0, 1]; 1 gives every labelled image.
        seed: Which images.

    Returns:
        Positions in rising order.

    Raises:
        ValueError: The share is out of range, or nothing is labelled.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share of labels is {share}: give a number above 0 and at most 1, for instance 0.01")
    labelled = (labels >= 0).nonzero().flatten()
    if not len(labelled):
        raise ValueError("a share of the labels needs labelled images: there are none")
    order = labelled[torch.randperm(len(labelled), generator=generator(seed, "label_subset"))]
    count = max(round(share * len(labelled)), len(labels[labelled].unique()))
    return in_turns(order, labels)[:count].sort().values


def finetune_recipe(share: float) -> FinetuneRecipe:
    """SynCo's recipe for a share of the labels: 60 epochs below a tenth of them, 30 from there on.

    Args:
        share: Share of the labels that is learned from.
    """
    return FinetuneRecipe(epochs=60 if share < 0.1 else 30)


def finetune_score(
    encoder: nn.Module,
    data: PretrainData,
    positions: Int64[Tensor, " n"],
    recipe: FinetuneRecipe,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> FinetuneScore:
    """Train a copy of the encoder with a linear classifier on labelled images, and score it once on the test images.

    The encoder that is given is never changed. Unlike in the linear protocols, batch norm is in training mode and its
    statistics move: that is what fine-tuning means. Batch norm that worked on groups of a batch in pretraining is plain
    here. Under data parallelism all processes call together and get the same score; batch norm is synchronised on GPUs, and on
    CPUs takes the statistics of each process's share, so that a score then differs a little from one process's.

    Args:
        encoder: (B, C, S, S) to (B, F).
        data: Bank and test images.
        positions: Positions in the bank that are learned from, for instance by :func:`label_subset`; unlabelled ones are
            refused.
        recipe: How to train, for instance ``finetune_recipe(0.01)``.
        seed: Draws first weights, batches, crops, flips and what is random in the encoder.
        device: Where the encoder is.
        dtype: Arithmetic of the encoder: half precisions through autocast, float64 as it is.
        progress: Told of every epoch that ends.

    Raises:
        ValueError: A position has no label, there are too few, or a label is not among the classes.
    """
    check_sets(data)
    unknown = int((data.labels("train")[positions] < 0).sum())
    if unknown:
        raise ValueError(f"{unknown} of the {len(positions)} images to learn from have no label: leave them out")
    asked, recipe = recipe, recipe.for_images(len(positions))
    crops = LabelledCrops(data, positions, recipe.crop_scale, recipe.batch_size, seed)
    copied = plain_batch_norm(copy.deepcopy(encoder), device).requires_grad_(True)
    with seeded(derive_seed(seed, "finetune", distributed.rank()), device):
        width = feature_width(copied.eval(), crops, device, dtype)
        copied.train()
        classifier = linear_classifier(width, data.num_classes, seed, device)
        descend(
            copied,
            classifier,
            recipe.optimizer(copied, classifier),
            Cosine(1.0, 0.0),
            crops,
            epochs=recipe.epochs,
            device=device,
            dtype=dtype,
            progress=progress,
        )
        found, notes = answer(copied, classifier, data, device, dtype)
    return FinetuneScore(
        *shares(found, data.num_classes),
        found[:, 0],
        (*notes, *step_notes(crops, recipe, asked, device)),
        recipe.encoder_lr,
        recipe.classifier_lr,
        recipe.epochs,
        recipe.batch_size,
        len(positions),
    )


def step_notes(crops: LabelledCrops, recipe: FinetuneRecipe, asked: FinetuneRecipe, device: torch.device) -> list[str]:
    """What differs from the recipe in a step.

    Args:
        crops: What was learned from.
        recipe: What was done.
        asked: What was asked for.
        device: Where it was trained.
    """
    notes = []
    if device.type == "cpu" and distributed.world_size() > 1:
        notes.append("batch norm took the statistics of each process's share of a batch")
    if recipe.batch_size < asked.batch_size:
        steps = f"steps of {recipe.batch_size} instead of {asked.batch_size}, so that an epoch has {len(crops)}"
        notes.append(f"{len(crops.positions)} images make {steps}; learning rates are smaller in the same proportion")
    return notes


def plain_batch_norm(encoder: nn.Module, device: torch.device) -> nn.Module:
    """Batch norm without the groups that pretraining may have made, over all processes where the device allows it.

    Args:
        encoder: Is changed, and may be replaced.
        device: Where it will be trained.
    """
    for layer in encoder.modules():
        if isinstance(layer, tuple(SPLIT.values())):
            layer.splits = 1  # type: ignore[assignment]
    shared_out = device.type == "cuda" and distributed.world_size() > 1
    return convert_sync_batchnorm(encoder) if shared_out else encoder


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Global random generators that start from a seed, for dropout and the like; put back afterwards.

    Args:
        seed: Where they start.
        device: Which device's generator is meant, beside the CPU's.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
