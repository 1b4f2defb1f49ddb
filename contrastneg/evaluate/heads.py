"""Linear classification of frozen features over a grid of learning rates and weight decays, trained as one set of heads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastneg.checks import WrongSetting, check_range
from contrastneg.evaluate.answers import Answers, listed, shares
from contrastneg.evaluate.features import Features
from contrastneg.evaluate.knn import class_notes
from contrastneg.evaluate.linear import HELD_OUT, LOGITS, centre_and_scale, usable_rows
from contrastneg.optim import rate_factor
from contrastneg.randomness import generator

MOMENTUM = 0.9
INITIAL = 0.01  # standard deviation of the first weights
NEGLIGIBLE = 1e-30  # probabilities below are 0: processors multiply denormal numbers many times more slowly than others

# Standardised features bring every encoder to one scale. On it SGD with momentum moves little below 0.001 and, features
# being correlated, starts to overshoot near 1; half decades between lie closer than two neighbours differ in score.
LEARNING_RATES = tuple(10 ** (half / 2) for half in range(-6, 2))
# A decay is twice a strength of linear_score, and they span the same range: 1e-1 suits a few labels per class, and 1e-5 is
# as good as none, which suits a million images.
WEIGHT_DECAYS = (1e-5, 1e-3, 1e-1)


@dataclass(frozen=True)
class HeadGrid:
    """Which linear heads are tried, and how each is trained: SGD with momentum 0.9, cosine to 0."""

    learning_rates: tuple[float, ...] = LEARNING_RATES
    """Learning rates, above 0."""
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS
    """Weight decays, 0 or more; biases are not decayed."""
    epochs: int = 100
    """Passes over the bank, at least 1."""
    batch_size: int = 1024
    """Features per step, at least 1; the batches of an epoch differ by at most one."""

    def __post_init__(self) -> None:
        check_range(self, "epochs", "batch_size", least=1)
        for name, above_zero in (("learning_rates", True), ("weight_decays", False)):
            values = tuple(sorted(set(getattr(self, name))))
            object.__setattr__(self, name, values)
            if not values or not all(math.isfinite(v) and (v > 0 if above_zero else v >= 0) for v in values):
                least = "above 0" if above_zero else "of at least 0"
                raise WrongSetting(self, name, f"is {list(values)}: give numbers {least}")

    @property
    def axes(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Learning rates and weight decays, each in rising order."""
        return self.learning_rates, self.weight_decays

    @property
    def middle(self) -> tuple[float, float]:
        """Learning rate and weight decay where there is nothing to choose by."""
        lr, decay = (values[len(values) // 2] for values in self.axes)
        return lr, decay


class Tried(NamedTuple):
    """One head of the grid."""

    lr: float
    """Learning rate."""
    weight_decay: float
    """Weight decay."""
    accuracy: float | None
    """Share of the held-out rows whose class is right; None where the head diverged."""


@dataclass(frozen=True)
class HeadsScore(Answers):
    """Share of queries that the best head of a grid gets right."""

    lr: float
    """The chosen learning rate."""
    weight_decay: float
    """The chosen weight decay."""
    grid: tuple[Tried, ...]
    """All heads with what they were chosen by."""


class Heads(NamedTuple):
    """G linear heads over the same features."""

    weight: Float[Tensor, "CG F"]
    """Rows by class, then by head: a softmax over classes then runs along memory, not in steps of a few numbers."""
    bias: Float[Tensor, "CG 1"]
    """One per row."""
    num_classes: int
    """C."""

    def __call__(self, x: Float[Tensor, "B F"]) -> Float[Tensor, "C G B"]:
        """Logits of every head."""
        heads = len(self.bias) // self.num_classes
        return torch.addmm(self.bias, self.weight, x.T).view(self.num_classes, heads, len(x))

    def finite(self) -> Bool[Tensor, " G"]:
        """Which heads have not diverged."""
        rows = self.weight.isfinite().all(dim=1) & self.bias[:, 0].isfinite()
        return rows.view(self.num_classes, -1).all(dim=0)


def heads_score(
    bank: Features,
    queries: Features,
    *,
    num_classes: int,
    seed: int,
    grid: HeadGrid | None = None,
    device: torch.device | str = "cpu",
) -> HeadsScore:
    """Train linear heads of every learning rate and weight decay on the bank, and score the queries once with the best.

    Features are standardised by the bank. Heads are chosen by their accuracy on a fifth of each class of the bank, which
    they have not learned from; the setting that won is then trained on the whole bank. Among equals the one nearest the
    middle of the grid wins, and a head that diverged never does.

    Args:
        bank: Labelled features to learn from.
        queries: Labelled features to score on.
        num_classes: Number of classes.
        seed: Draws the fifth that chooses, first weights and batches.
        grid: What is tried; None takes the defaults, 24 heads.
        device: Where the heads are trained; the bank must fit there.

    Raises:
        ValueError: Nothing in the bank or the queries has a label, a label is not among the classes, or all heads diverge.
    """
    grid = grid or HeadGrid()
    learned, answered, lost = usable_rows(bank, queries, num_classes)
    found = torch.zeros(len(answered), 2, dtype=torch.bool)
    asked = queries.labels >= 0
    if not learned.any() or not answered.any():
        return HeadsScore(*shares(found[asked], num_classes), found[asked, 0], lost, *grid.middle, ())
    x, y = bank.x[learned].to(device), bank.labels[learned].to(device)  # copies, by the mask: standardised in place
    mean, deviation = centre_and_scale(x)
    x.sub_(mean).div_(deviation)
    held = held_out(y.cpu(), seed).to(device)
    tried = try_heads(x, y, held, num_classes, grid, seed)
    best = choose(tried, grid)
    everything = torch.arange(len(x), device=device)
    head = train_heads(x, y, everything, num_classes, [(best.lr, best.weight_decay)], grid, seed)
    rows = max(1, LOGITS // num_classes)
    asks = queries.x[answered].split(rows), queries.labels[answered].split(rows)
    parts = [
        listed(head(part.to(device).sub(mean).div_(deviation))[:, 0].T, labels.to(device))
        for part, labels in zip(*asks, strict=True)
    ]
    found[answered] = torch.cat(parts).cpu()
    notes = (*lost, *class_notes(num_classes, len(y.unique())), *grid_notes(tried, best, grid, bool(held.any())))
    if not head.finite().all():
        notes = (*notes, "the chosen head diverged on all training images: every test image counts as wrong")
    return HeadsScore(
        *shares(found[asked], num_classes), found[asked, 0], notes, best.lr, best.weight_decay, tuple(tried)
    )


def held_out(y: Int64[Tensor, " N"], seed: int) -> Bool[Tensor, " N"]:
    """Which rows choose: every fifth of each class, in a random order of its rows, and never all rows of a class.

    Args:
        y: Classes.
        seed: Which rows.
    """
    order = torch.randperm(len(y), generator=generator(seed, "heads", "held out"))
    by_class = order[y[order].argsort(stable=True)]
    held = torch.zeros(len(y), dtype=torch.bool)
    held[by_class[HELD_OUT - 1 :: HELD_OUT]] = True
    return held & torch.isin(y, y[~held])


def try_heads(
    x: Float[Tensor, "N F"],
    y: Int64[Tensor, " N"],
    held: Bool[Tensor, " N"],
    num_classes: int,
    grid: HeadGrid,
    seed: int,
) -> list[Tried]:
    """Accuracy of each setting on the rows held out, after learning from the others.

    Args:
        x: Standardised features.
        y: Classes.
        held: Rows that choose; where there is none, every accuracy is 0.
        num_classes: Number of classes C.
        grid: What is tried.
        seed: Draws first weights and batches.
    """
    settings = [(lr, decay) for lr in grid.learning_rates for decay in grid.weight_decays]
    heads = train_heads(x, y, (~held).nonzero().flatten(), num_classes, settings, grid, seed)
    right = torch.zeros(len(settings), dtype=torch.long, device=x.device)
    for rows in held.nonzero().flatten().split(max(1, LOGITS // len(heads.bias))):
        right += (heads(x[rows]).argmax(dim=0) == y[rows]).sum(dim=1)
    among = max(1, int(held.sum()))
    return [
        Tried(lr, decay, count / among if finite else None)
        for (lr, decay), count, finite in zip(settings, right.tolist(), heads.finite().tolist(), strict=True)
    ]


@torch.no_grad()
def train_heads(
    x: Float[Tensor, "N F"],
    y: Int64[Tensor, " N"],
    rows: Int64[Tensor, " n"],
    num_classes: int,
    settings: Sequence[tuple[float, float]],
    grid: HeadGrid,
    seed: int,
) -> Heads:
    """Train one head for each setting, all on the same batches and from the same first weights.

    Every head has its own mean cross-entropy; their sum is descended, and no head enters another's gradient. So a batch of
    all heads is one product, and each head ends where it would have ended alone.

    Args:
        x: Standardised features, float32 or float64, on the device that trains.
        y: Classes.
        rows: Positions that are learned from.
        num_classes: Number of classes C.
        settings: Learning rate and weight decay of each of the G heads.
        grid: Epochs and batch size.
        seed: Draws first weights and batches.
    """
    first = INITIAL * torch.randn(num_classes, x.shape[1], generator=generator(seed, "heads", "weights"))
    weight = first.to(x).repeat_interleave(len(settings), dim=0)
    heads = Heads(weight, bias := weight.new_zeros(len(weight), 1), num_classes)
    lr, decay = (weight.new_tensor(numbers).repeat(num_classes)[:, None] for numbers in zip(*settings, strict=True))
    velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    per_epoch = math.ceil(len(rows) / grid.batch_size)
    for epoch in range(grid.epochs):
        order = torch.randperm(len(rows), generator=generator(seed, "heads", "order", epoch)).to(x.device)
        for step, batch in enumerate(rows[order].tensor_split(per_epoch), epoch * per_epoch):
            features = x[batch]
            # probabilities, less 1 for the true class: the gradient of the summed cross-entropy
            error = F.threshold(heads(features).softmax(dim=0), NEGLIGIBLE, 0, inplace=True)
            error[y[batch], :, torch.arange(len(batch), device=x.device)] -= 1
            error = error.flatten(0, 1)
            rate = lr * rate_factor(step, steps=grid.epochs * per_epoch)
            velocity.addmm_(error, features, beta=MOMENTUM, alpha=1 / len(batch)).addcmul_(weight, decay)
            bias_velocity.mul_(MOMENTUM).add_(error.mean(dim=1, keepdim=True))
            weight.addcmul_(velocity, rate, value=-1)
            bias.addcmul_(bias_velocity, rate, value=-1)
    return heads


def choose(tried: Sequence[Tried], grid: HeadGrid) -> Tried:
    """The head with the best accuracy that has not diverged; among equals the one nearest the middle of the grid.

    Raises:
        ValueError: All heads diverged.
    """

    def off_middle(head: Tried) -> int:
        return sum(
            abs(values.index(number) - len(values) // 2) for values, number in zip(grid.axes, head, strict=False)
        )

    sound = [(head.accuracy, -off_middle(head), head) for head in tried if head.accuracy is not None]
    if not sound:
        rates = ", ".join(f"{rate:g}" for rate in grid.learning_rates)
        raise ValueError(f"the heads of all learning rates ({rates}) diverged: give lower learning_rates")
    return max(sound)[-1]


def grid_notes(tried: Sequence[Tried], best: Tried, grid: HeadGrid, chosen: bool) -> list[str]:
    """What a reader must know about the choice.

    Args:
        tried: All heads.
        best: The chosen one.
        grid: What was tried.
        chosen: Whether there were rows to choose by.
    """
    if not chosen:
        return [
            "no class has training images to spare for a choice: learning rate and weight decay are the middle ones"
        ]
    notes = []
    for name, number, values in zip(("learning rate", "weight decay"), best[:2], grid.axes, strict=True):
        for end, beyond, met in (("smallest", "smaller", min(values)), ("largest", "larger", max(values))):
            if number == met and len(values) > 1:
                notes.append(f"the chosen {name} {number:.3g} is the {end} of the grid: a {beyond} one may be better")
    diverged = sum(head.accuracy is None for head in tried)
    if diverged:
        notes.append(f"{diverged} of {len(tried)} heads diverged and were not chosen")
    return notes
