"""Linear classification of frozen features: multinomial logistic regression with a chosen regularisation."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg.evaluate.features import Features
from contrastneg.randomness import generator

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # weight of the squared norm in the mean loss
HELD_OUT = 5  # every fifth bank image chooses among them
CHOOSING = 10_000  # at most so many bank images take part in the choice
ITERATIONS = 100


@dataclass(frozen=True)
class LinearScore:
    """Share of queries that a linear classifier gets right."""

    top1: float
    """Share of queries whose class is right, in [0, 1]."""
    regularisation: float
    """The chosen strength."""


def linear_score(bank: Features, queries: Features, *, num_classes: int, seed: int) -> LinearScore:
    r"""Fit a linear classifier on the labelled images of the bank and score the queries once.

    Features are standardised by the bank. The strength :math:`\lambda` of :math:`\lambda \|W\|^2` is chosen on a fifth of
    the bank (of 10,000 images of a larger one), drawn by ``seed``, and the classifier is then fitted to all of it.

    Args:
        bank: Labelled features to learn from.
        queries: Labelled features to score on.
        num_classes: Number of classes.
        seed: Which fifth chooses.

    Raises:
        ValueError: Nothing in the bank or the queries has a label.
    """
    known, asked = bank.labels >= 0, queries.labels >= 0
    if not known.any() or not asked.any():
        raise ValueError("a linear score needs labelled images in the bank and among the queries: there are none")
    x, y = bank.x[known], bank.labels[known]
    mean, deviation = x.mean(dim=0), x.std(dim=0, correction=0).clamp(min=1e-6)
    x = (x - mean) / deviation
    order = torch.randperm(len(x), generator=generator(seed, "linear"))[:CHOOSING]
    chooses, learns = order[: len(order) // HELD_OUT], order[len(order) // HELD_OUT :]
    strength = STRENGTHS[1]
    if len(chooses):
        accuracy, weight = [], None
        for candidate in reversed(STRENGTHS):  # from the smoothest on, each starts where the last one ended
            weight = fit(x[learns], y[learns], num_classes, candidate, weight)
            accuracy.append((hits(weight, x[chooses], y[chooses]), candidate))
        strength = max(accuracy)[1]
    weight = fit(x, y, num_classes, strength)
    return LinearScore(hits(weight, (queries.x[asked] - mean) / deviation, queries.labels[asked]), strength)


def fit(
    x: Float[Tensor, "N F"],
    y: Int64[Tensor, " N"],
    num_classes: int,
    strength: float,
    start: Float[Tensor, "C F1"] | None = None,
) -> Float[Tensor, "C F1"]:
    """Weights and, in the last column, biases of the regularised least mean cross-entropy, by L-BFGS.

    Args:
        x: Standardised features.
        y: Classes.
        num_classes: Number of classes C.
        strength: Weight of the squared norm of the weights; biases are free.
        start: Where to begin; zero if None.
    """
    weight = torch.zeros(num_classes, x.shape[1] + 1) if start is None else start.clone()
    weight.requires_grad_()
    solver = torch.optim.LBFGS(
        [weight], max_iter=ITERATIONS, history_size=10, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        solver.zero_grad()
        value = (
            F.cross_entropy(F.linear(x, weight[:, :-1], weight[:, -1]), y) + strength * weight[:, :-1].square().sum()
        )
        value.backward()
        return value.item()

    with torch.enable_grad():
        solver.step(loss)
    return weight.detach()


def hits(weight: Float[Tensor, "C F1"], x: Float[Tensor, "M F"], y: Int64[Tensor, " M"]) -> float:
    """Share of rows whose class is right."""
    return (F.linear(x, weight[:, :-1], weight[:, -1]).argmax(dim=1) == y).float().mean().item()
