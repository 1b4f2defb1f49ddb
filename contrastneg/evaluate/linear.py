"""Linear classification of frozen features: multinomial logistic regression with a chosen regularisation."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastneg.evaluate.features import Features, check_labels, finite_rows
from contrastneg.randomness import generator

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # weight of the squared norm in the mean loss
HELD_OUT = 5  # every fifth bank image chooses among them
CHOOSING = 10_000  # at most so many bank images take part in the choice
ITERATIONS = 100
CURVATURE_ROWS = 5_000  # rows that estimate the curvature; it shapes the steps, not where they end
LOGITS = 2**24  # logits computed at a time: memory does not grow with images times classes


@dataclass(frozen=True)
class LinearScore:
    """Share of queries that a linear classifier gets right."""

    top1: float
    """Share of labelled queries whose class is right, in [0, 1]; features that are not finite count as wrong."""
    regularisation: float
    """The chosen strength."""
    right: Bool[Tensor, " M"] = field(compare=False, repr=False)
    """Whether each labelled query is right, in their order: what a bootstrap over queries draws from."""
    notes: tuple[str, ...] = ()
    """What a reader of the score must know."""


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
        ValueError: Nothing in the bank or the queries has a label, or a label is not among the classes.
    """
    learned, answered, notes = usable_rows(bank, queries, num_classes)
    asked = queries.labels >= 0
    right = torch.zeros(len(asked), dtype=torch.bool)
    if not learned.any() or not answered.any():
        return LinearScore(0.0, STRENGTHS[1], right[asked], notes)
    x, y = bank.x[learned], bank.labels[learned]  # copies, by the mask: they may be standardised in place
    mean, deviation = centre_and_scale(x)
    x.sub_(mean).div_(deviation)
    strength, weight = best_fit(x, y, num_classes, seed)
    del x
    right[answered] = is_right(weight, queries.x[answered].sub_(mean).div_(deviation), queries.labels[answered])
    right = right[asked]
    return LinearScore(int(right.sum()) / len(right), strength, right, notes)


def usable_rows(
    bank: Features, queries: Features, num_classes: int
) -> tuple[Bool[Tensor, " N"], Bool[Tensor, " M"], tuple[str, ...]]:
    """Which rows of the bank a classifier can learn from, which queries it can answer, and what is said of the others.

    Args:
        bank: Features to learn from.
        queries: Features to score on.
        num_classes: Number of classes.

    Returns:
        The rows of each that have a label and are finite, and notes.

    Raises:
        ValueError: Nothing in the bank or the queries has a label, or a label is not among the classes.
    """
    known, asked = bank.labels >= 0, queries.labels >= 0
    if not known.any() or not asked.any():
        raise ValueError("a linear score needs labelled training and test images: there are none")
    check_labels(bank.labels, num_classes, "training images")
    check_labels(queries.labels, num_classes, "test images")
    learned, answered = known & finite_rows(bank.x), asked & finite_rows(queries.x)
    notes = tuple(
        f"{int(all_rows.sum() - finite.sum())} of {int(all_rows.sum())} features of the {name} are not finite: {what}"
        for name, all_rows, finite, what in (
            ("training images", known, learned, "they are left out"),
            ("test images", asked, answered, "they count as wrong"),
        )
        if not torch.equal(all_rows, finite)
    )
    return learned, answered, notes


def centre_and_scale(x: Float[Tensor, "N F"]) -> tuple[Float[Tensor, " F"], Float[Tensor, " F"]]:
    """Mean and standard deviation of each feature, the latter kept off 0."""
    return x.mean(dim=0), x.std(dim=0, correction=0).clamp(min=1e-6)


def best_fit(
    x: Float[Tensor, "N F"], y: Int64[Tensor, " N"], num_classes: int, seed: int
) -> tuple[float, Float[Tensor, "C F1"]]:
    """The strength that was chosen, and with it the fit to all rows.

    The weights of the least regularised loss lie in the span of the rows. Where these are fewer than the features, an
    orthonormal basis of it has N numbers for F, and the same fit.

    Args:
        x: Standardised features.
        y: Classes.
        num_classes: Number of classes C.
        seed: Which rows are held out for the choice.
    """
    if len(x) < x.shape[1]:
        basis = torch.linalg.qr(x.T).Q
        strength, weight = best_fit(x @ basis, y, num_classes, seed)
        return strength, torch.cat([weight[:, :-1] @ basis.T, weight[:, -1:]], dim=1)
    strength = choose_strength(x, y, num_classes, seed)
    return strength, fit(x, y, num_classes, strength)


def choose_strength(x: Float[Tensor, "N F"], y: Int64[Tensor, " N"], num_classes: int, seed: int) -> float:
    """The strength that does best on a held-out fifth of the rows; the stronger one among equals.

    Args:
        x: Standardised features.
        y: Classes.
        num_classes: Number of classes.
        seed: Which rows are held out.
    """
    order = torch.randperm(len(x), generator=generator(seed, "linear"))[:CHOOSING]
    chooses, learns = order[: len(order) // HELD_OUT], order[len(order) // HELD_OUT :]
    if not len(chooses):
        return STRENGTHS[1]
    accuracy, weight = [], None
    for candidate in reversed(STRENGTHS):  # from the smoothest on, each starts where the last one ended
        weight = fit(x[learns], y[learns], num_classes, candidate, weight)
        accuracy.append((hits(weight, x[chooses], y[chooses]), candidate))
    return max(accuracy)[1]


def fit(
    x: Float[Tensor, "N F"],
    y: Int64[Tensor, " N"],
    num_classes: int,
    strength: float,
    start: Float[Tensor, "C F1"] | None = None,
) -> Float[Tensor, "C F1"]:
    r"""Weights and, in the last column, biases of the regularised least mean cross-entropy, by L-BFGS.

    Features of an encoder are correlated, which makes plain L-BFGS slow. It works on :math:`V = W L` instead, with
    :math:`L L^T = X^T X / (N C) + 2 \lambda I` about the curvature of the loss: 30 to 50 steps whatever the features.

    Args:
        x: Standardised features.
        y: Classes.
        num_classes: Number of classes C.
        strength: Weight of the squared norm of the weights; biases are free.
        start: Where to begin; zero if None.

    Raises:
        ValueError: A label is not among the classes.
    """
    check_labels(y, num_classes, "training images")
    some = x[:: max(1, len(x) // CURVATURE_ROWS)]
    curvature = some.T @ some / (len(some) * num_classes)
    root = torch.linalg.cholesky(curvature + 2 * strength * torch.eye(x.shape[1]))
    scaled, bias = torch.zeros(num_classes, x.shape[1]), torch.zeros(num_classes)
    if start is not None:
        scaled, bias = start[:, :-1] @ root, start[:, -1].clone()
    scaled.requires_grad_()
    bias.requires_grad_()
    solver = torch.optim.LBFGS(
        [scaled, bias], max_iter=ITERATIONS, history_size=10, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )
    rows = max(1, LOGITS // num_classes)

    def loss() -> float:
        solver.zero_grad()
        weight = torch.linalg.solve_triangular(root, scaled, upper=False, left=False)
        constant = weight.detach().requires_grad_()  # gradients of the chunks meet here and pass on together
        penalty = strength * constant.square().sum()
        penalty.backward()
        value = penalty.item()
        for part, labels in zip(x.split(rows), y.split(rows), strict=True):
            mean = F.cross_entropy(F.linear(part, constant, bias), labels, reduction="sum") / len(x)
            mean.backward()
            value += mean.item()
        weight.backward(constant.grad)
        return value

    with torch.enable_grad():
        solver.step(loss)
    weight = torch.linalg.solve_triangular(root, scaled.detach(), upper=False, left=False)
    return torch.cat([weight, bias.detach()[:, None]], dim=1)


def hits(weight: Float[Tensor, "C F1"], x: Float[Tensor, "M F"], y: Int64[Tensor, " M"]) -> float:
    """Share of rows whose class is right."""
    return is_right(weight, x, y).float().mean().item()


def is_right(weight: Float[Tensor, "C F1"], x: Float[Tensor, "M F"], y: Int64[Tensor, " M"]) -> Bool[Tensor, " M"]:
    """Which rows' class is right."""
    return F.linear(x, weight[:, :-1], weight[:, -1]).argmax(dim=1) == y
