"""What a training step costs beside what it could cost: one-pass loss, views, and the share of the encoder.

Every pair is measured in this process in alternating rounds; figures are medians of the rounds' ratios, because absolute
times on shared machines mean little. Prints one table with the limit of each figure.

    python scripts/bench_step.py            # about three minutes on two cores
    python scripts/bench_step.py --quick    # fewer rounds
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2 import functional as tv

from contrastneg.allocator import keep_freed_memory
from contrastneg.data.augment import crop_resize
from contrastneg.data.draws import Augment, draw_crops
from contrastneg.data.views import Views, two_views
from contrastneg.logsumexp import one_pass_logsumexp
from contrastneg.losses import info_nce_from_logsumexp

QUERIES, KEYS, DIM, TEMPERATURE = 256, 65_536, 128, 0.2


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    value: float
    unit: str
    limit: float
    at_most: bool = True

    @property
    def passed(self) -> bool:
        """Whether the limit is kept."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def seconds(work: Callable[[], object]) -> float:
    """Duration of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratio(one: Callable[[], object], other: Callable[[], object], rounds: int) -> float:
    """Median of time(one) / time(other) over alternating rounds, after one round that is not counted."""
    ratios = [seconds(one) / seconds(other) for _ in range(rounds + 1)]
    return statistics.median(ratios[1:])


def unit(*shape: int, seed: int = 0) -> Tensor:
    """Unit rows."""
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


class QueueLoss:
    """The loss of one step over a queue, forward and backward, in three ways."""

    def __init__(self) -> None:
        self.query = unit(QUERIES, DIM).requires_grad_()
        self.positive = unit(QUERIES, DIM, seed=1)
        self.keys = unit(KEYS, DIM, seed=2)
        self.columns = self.keys.T.contiguous()  # as MoCo stores them

    def one_pass(self) -> None:
        """Ours."""
        self.query.grad = None
        lse = one_pass_logsumexp(self.query, self.keys, temperature=TEMPERATURE)
        positive = (self.query * self.positive).sum(1)
        info_nce_from_logsumexp(positive, lse, temperature=TEMPERATURE).mean().backward()

    def products(self) -> None:
        """The two matrix products that no way of computing loss and gradient can do without."""
        query = self.query.detach()
        weight = query @ self.keys.T
        weight @ self.keys

    def concatenated(self) -> None:
        """MoCo's way: clone the queue, concatenate all logits, cross-entropy with target 0."""
        self.query.grad = None
        positive = (self.query * self.positive).sum(1, keepdim=True)
        negative = self.query @ self.columns.clone()
        logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
        F.cross_entropy(logits, torch.zeros(QUERIES, dtype=torch.long)).backward()


def errors(temperature: float, dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    """Largest relative error of a loss and relative error of the gradient, against float64 on the same keys."""
    query, positive = unit(QUERIES, DIM).requires_grad_(), unit(QUERIES, DIM, seed=1)
    keys = unit(KEYS, DIM, seed=2).to(dtype)
    lse = one_pass_logsumexp(query, keys, temperature=temperature)
    found = info_nce_from_logsumexp((query * positive).sum(1), lse, temperature=temperature)
    wide = query.detach().double().requires_grad_()
    lse = (wide @ keys.double().T / temperature).logsumexp(1)
    exact = info_nce_from_logsumexp((wide * positive.double()).sum(1), lse, temperature=temperature)
    (gradient,), (truth,) = torch.autograd.grad(found.mean(), query), torch.autograd.grad(exact.mean(), wide)
    value = ((found.double() - exact).abs() / exact.abs()).max().item()
    return value, ((gradient.double() - truth).norm() / truth.norm()).item()


def error_figures() -> list[Figure]:
    """Value and gradient; at t = 0.01 a float32 logit itself is known to 4e-6 only, which is what bounds the gradient."""
    cases = {
        "t 0.2": (errors(0.2), 1e-6),
        "t 0.01": (errors(0.01), 1e-5),
        "t 0.2, bfloat16 keys": (errors(0.2, torch.bfloat16), 1e-6),
    }
    figures = []
    for name, ((value, gradient), limit) in cases.items():
        figures.append(Figure(f"error of the loss against float64, {name}", value, "", 1e-5))
        figures.append(Figure(f"error of the gradient against float64, {name}", gradient, "", limit))
    return figures


def extra_memory(work: Callable[[], object]) -> float:
    """Largest memory held at once beyond what was held before, in MiB: every allocation torch made, exactly.

    Unlike the resident size it neither hides buffers that the allocator reuses nor counts ones that it keeps.

    Raises:
        RuntimeError: The profiler saw no allocation.
    """
    # Read when a process first profiles. Without it the profiler's library says on standard error when it starts and stops,
    # and calls it an error that there is no GPU; whether it worked is seen below.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    work()
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    if not events:
        raise RuntimeError("the profiler saw no allocation: set KINETO_LOG_LEVEL=0 to see what it says")
    held = itertools.accumulate(event.nbytes() for event in events)
    return max(0, *held) / 2**20


def loss_figures(rounds: int, tuned: bool) -> list[Figure]:
    """Speed of the loss; errors and memory once."""
    loss = QueueLoss()
    name = "allocator kept" if tuned else "default allocator"
    figures = [
        Figure(f"one-pass loss / its two products, {name}", ratio(loss.one_pass, loss.products, rounds), "x", 1.35),
        Figure(
            f"concatenate and cross-entropy / one-pass loss, {name}",
            ratio(loss.concatenated, loss.one_pass, rounds),
            "x",
            1.4 if tuned else 2.5,
            at_most=False,
        ),
    ]
    if not tuned:
        ours, theirs = extra_memory(loss.one_pass), extra_memory(loss.concatenated)
        figures += [
            *error_figures(),
            Figure("extra memory of the one-pass loss", ours, "MiB", 5.0),
            Figure("extra memory of concatenate and cross-entropy", theirs, "MiB", 100.0, at_most=False),
        ]
    return figures


def views_figures(rounds: int, tuned: bool) -> list[Figure]:
    """Two views at 32 pixels beside torchvision's PIL pipeline with the same recipe; equality of the crops once."""
    images = torch.randint(0, 256, (256, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    augment = Augment(crop_scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1))
    views = Views(size=32, view1=augment)
    pictures = [tv.to_pil_image(image) for image in images]
    theirs = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, scale=(0.2, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(0.2),
            transforms.ToTensor(),
            transforms.Normalize(views.mean, views.std),
        ]
    )
    generator = torch.Generator().manual_seed(0)
    speed = ratio(
        lambda: [(theirs(picture), theirs(picture)) for picture in pictures],
        lambda: two_views(images, views, generator),
        max(3, rounds // 3),
    )
    name = "allocator kept" if tuned else "default allocator"
    figures = [Figure(f"torchvision's PIL pipeline / two views at 32 px, {name}", speed, "x", 8.0, at_most=False)]
    if not tuned:
        error = crop_error(images, augment)
        figures.append(Figure("largest difference of a crop to torchvision's", error, "of 1", 1e-6))
    return figures


def crop_error(images: Tensor, augment: Augment) -> float:
    """Largest difference between our crops and torchvision's antialiased ones."""
    crops = draw_crops(len(images), 32, 32, augment, torch.Generator().manual_seed(1))
    ours = crop_resize(
        images.float() / 255,
        crops.top,
        crops.left,
        crops.height,
        crops.width,
        crops.mirror,
        size=32,
        interpolation="bilinear",
    )
    worst = 0.0
    for i, image in enumerate(images):
        top, left, height, width = (int(x[i]) for x in (crops.top, crops.left, crops.height, crops.width))
        crop = tv.resized_crop(image.float() / 255, top, left, height, width, [32, 32], antialias=True)
        if bool(crops.mirror[i]):
            crop = crop.flip(-1)
        worst = max(worst, (crop - ours[i]).abs().max().item())
    return worst


def step_figures(steps: int) -> list[Figure]:
    """Share of the encoder in a SimCLR step of the CPU recipe: ResNet-9 at a quarter, 256 images, bfloat16."""
    from contrastneg import Backbone, Head, SimCLR
    from contrastneg.contrast import contrast
    from contrastneg.negatives import Clock

    images = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8)
    ids = torch.arange(256).repeat(2)
    views = Views(size=32)
    method = SimCLR(Backbone(name="resnet9", width=0.25), Head(hidden=256, out=64))
    method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    parts = ("views", "encoder", "loss", "optimizer")
    spent: list[tuple[float, ...]] = []
    generator = torch.Generator().manual_seed(0)
    for step in range(steps + 2):
        marks = [time.perf_counter()]
        view1, view2 = two_views(images, views, generator)
        both = torch.cat([view1, view2]).contiguous(memory_format=torch.channels_last)
        marks.append(time.perf_counter())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embedding = method.encoder(both)
        marks.append(time.perf_counter())
        leaf = embedding.detach().float().requires_grad_()
        view1, view2 = F.normalize(leaf, dim=1).chunk(2)
        query, partner = torch.cat([view1, view2]), torch.cat([view2, view1])
        contrast(query, partner, ids, query, ids, [], 0.1, Clock(step, steps, 0.0, 0))[0].mean().backward()
        marks.append(time.perf_counter())
        embedding.backward(leaf.grad.to(embedding.dtype))  # type: ignore[union-attr]
        marks.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.perf_counter())
        if step >= 2:
            views_s, forward, loss, backward, update = (b - a for a, b in itertools.pairwise(marks))
            spent.append((views_s, forward + backward, loss, update))
    shares = [statistics.median(100 * took[i] / sum(took) for took in spent) for i in range(len(parts))]
    told = ", ".join(f"{name} {share:.1f} %" for name, share in zip(parts, shares, strict=True))
    rate = 256 / statistics.median(map(sum, spent))
    print(f"SimCLR step, ResNet-9 at a quarter, 256 images: {told} (medians of {steps} steps); {rate:.0f} images/s")
    return [Figure("share of the encoder in a SimCLR step", shares[1], "%", 88.0, at_most=False)]


def show(figures: list[Figure]) -> int:
    """Print the table; 1 if a limit was missed."""
    table = Table(
        "figure", "measured", "limit", "", title=f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for figure in figures:
        sign = "<=" if figure.at_most else ">="
        measured = f"{figure.value:.3g} {figure.unit}".strip()
        table.add_row(figure.what, measured, f"{sign} {figure.limit:g}", "PASS" if figure.passed else "FAIL")
    Console(width=110).print(table)
    return int(not all(figure.passed for figure in figures))


def main() -> int:
    """Measure and print; the tuned allocator has a process of its own, because its setting cannot be taken back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--tuned-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rounds = 5 if options.quick else 21
    if options.tuned_only:
        keep_freed_memory()
        figures = [*loss_figures(rounds, tuned=True), *views_figures(rounds, tuned=True)]
        return show([*figures, *step_figures(10 if options.quick else 60)])
    failed = show([*loss_figures(rounds, tuned=False), *views_figures(rounds, tuned=False)])
    arguments = [sys.executable, __file__, "--tuned-only", *(["--quick"] if options.quick else [])]
    return failed | subprocess.run(arguments, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
