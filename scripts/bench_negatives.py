"""What each stage and each loss costs in a step over a queue, beside the loss without stages and beside its limit.

A step is the table, the stage, the loss and the backward pass, at 256 queries of width 128; MoCHi's is a method's own step,
which needs no table. Times are medians of ratios
in alternating rounds of this process, memory is the most that a step holds at once beyond what was held before. The limit
is the two matrix products (similarities, and their gradient) that no way of computing it can do without. Where there is a
plain way to write the same, it stands beside it.

    python scripts/bench_negatives.py                       # all, some minutes on two cores
    python scripts/bench_negatives.py --quick --only MoCHi SynCo
"""

import argparse
import inspect
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from bench_step import DIM, QUERIES, TEMPERATURE, Figure, extra_memory, ratio, seconds, show, unit
from rich.console import Console
from rich.table import Table
from torch import Tensor

from contrastneg import losses, negatives
from contrastneg.allocator import keep_freed_memory
from contrastneg.contrast import contrast
from contrastneg.logsumexp import one_pass_logsumexp
from contrastneg.negatives import Clock, Facts, Negatives, Stage
from contrastneg.negatives.mixes import HardestStage, Pool
from contrastneg.negatives.search import search

CLOCK = Clock(step=50, total_steps=100, epoch=50.0, seed=0)
SETTINGS = {"class_prior": 0.1}  # of losses, where there is no default
POOL, PAIRS, SINGLES = 1024, 1024, 128  # MoCHi's


class Queue:
    """Queries and a queue of random keys, and the ways to make a step over them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.query, self.positive, self.keys = unit(QUERIES, DIM), unit(QUERIES, DIM, seed=1), unit(size, DIM, seed=2)
        self.query.requires_grad_()
        self.query_id, self.key_id = torch.arange(QUERIES), torch.arange(QUERIES, QUERIES + size)

    def table(self) -> Negatives:
        """All keys as candidates."""
        return Negatives.of(self.query, self.positive, self.keys, query_id=self.query_id, key_id=self.key_id)

    def products(self) -> None:
        """The limit."""
        query = self.query.detach()
        (query @ self.keys.T) @ self.keys

    def plain(self) -> None:
        """The loss without stages: no table."""
        self.query.grad = None
        lse = one_pass_logsumexp(self.query, self.keys, temperature=TEMPERATURE)
        positive = (self.query * self.positive).sum(1)
        losses.info_nce_from_logsumexp(positive, lse, temperature=TEMPERATURE).mean().backward()

    def step(self, stage: Stage | None, loss: Callable[..., Tensor] = losses.info_nce, **settings: Any) -> None:
        """A step with a stage, or with none but with the table."""
        self.query.grad = None
        table = self.table()
        table = table if stage is None else stage(table, CLOCK)
        similar = table.positive_similarity
        loss(similar, table.similarity, table.log_weight, temperature=TEMPERATURE, **settings).mean().backward()

    def contrast(self, stage: Stage) -> None:
        """A step as a method takes it: the table is made only if the stage needs it."""
        self.query.grad = None
        keys = (self.query_id, self.keys, self.key_id)
        contrast(self.query, self.positive, *keys, [stage], TEMPERATURE, CLOCK)[0].mean().backward()

    def cross_entropy(self, *made: Tensor) -> None:
        """Concatenate all logits and take the cross-entropy with target 0; made points are (B, s, D)."""
        self.query.grad = None
        positive = (self.query * self.positive).sum(1, keepdim=True)
        mixed = [torch.einsum("bd,bsd->bs", self.query, points) for points in made]
        logits = torch.cat([positive, self.query @ self.keys.T, *mixed], dim=1) / TEMPERATURE
        F.cross_entropy(logits, torch.zeros(QUERIES, dtype=torch.long)).backward()

    def drawn(self, *counts: int) -> list[Tensor]:
        """Columns drawn from each query's hardest candidates."""
        with torch.no_grad():
            hardest = (self.query @ self.keys.T).topk(min(POOL, self.size), dim=1).indices
        return [hardest.gather(1, torch.randint(hardest.shape[1], (QUERIES, count))) for count in counts]

    def gather_mix_normalise(self) -> None:
        """MoCHi as it is written down: gather the keys, mix them, scale them, multiply them with the query."""
        first, second, third = self.drawn(PAIRS, PAIRS, SINGLES)
        x, y, z = self.keys[first], self.keys[second], self.keys[third]  # (B, s, D)
        a, b = torch.rand(QUERIES, PAIRS, 1), torch.rand(QUERIES, SINGLES, 1) / 2
        pairs = F.normalize(a * x + (1 - a) * y, dim=-1)
        singles = F.normalize(b * self.query.detach()[:, None] + (1 - b) * z, dim=-1)
        self.cross_entropy(pairs, singles)

    def six_kinds_made(self) -> None:
        """SynCo as it is written down."""
        x = [self.keys[column] for column in self.drawn(256, 256, 256, 256, 64, 64, 64)]
        query = self.query.detach()[:, None]
        a, b, c = (torch.rand(QUERIES, 256, 1) for _ in range(3))
        kinds = [
            a / 2 * query + (1 - a / 2) * x[0],
            query + (1 + b / 2) * (x[1] - query),
            c * x[2] + (1 - c) * x[3],
            x[4] + 0.01 * torch.randn_like(x[4]),
            x[5] + 0.01 * query,
            x[6] + 0.01 * query.sign(),
        ]
        self.cross_entropy(*(F.normalize(points, dim=-1) for points in kinds))


NAIVE: dict[str, Callable[[Queue], None]] = {
    "MoCHi": Queue.gather_mix_normalise,
    "SynCo": Queue.six_kinds_made,
    "info_nce": Queue.cross_entropy,
}


@dataclass(frozen=True)
class Row:
    """One line of the table; a dash where there is nothing to compare with."""

    name: str
    milliseconds: float
    to_plain: float
    to_limit: float
    memory: float
    naive: float | None
    naive_memory: float | None


def stages(queue: Queue, only: list[str]) -> Iterator[tuple[str, Stage]]:
    """Every stage of the package, or only some, that its defaults can build, with what it asks for told."""
    images = QUERIES + queue.size
    facts = Facts(images=images, dim=DIM, labels=torch.arange(images) % 100)
    for name in negatives.__all__:
        kind = getattr(negatives, name)
        if only and name not in only:
            continue
        if not (inspect.isclass(kind) and issubclass(kind, Stage)) or inspect.isabstract(kind):
            continue
        try:
            stage = kind(size=queue.size) if name == "AdversarialBank" else kind()
            stage.begin(facts)
            stage.refresh(lambda: unit(images, DIM, seed=5), CLOCK)
            stage(queue.table(), CLOCK)
        except (TypeError, ValueError) as refused:
            print(f"{name} is left out: {refused}", file=sys.stderr)
        else:
            yield name, stage


def row_losses() -> Iterator[tuple[str, Callable[..., Tensor], dict[str, Any]]]:
    """Every loss over a table, with the settings it has no default for."""
    for name, loss in inspect.getmembers(losses, inspect.isfunction):
        arguments = inspect.signature(loss).parameters
        if list(arguments)[:2] == ["pos", "neg"] and "temperature" in arguments:
            yield name, loss, {key: value for key, value in SETTINGS.items() if key in arguments}


def measured(queue: Queue, name: str, work: Callable[[], object], rounds: int) -> Row:
    """One line."""
    naive = NAIVE.get(name)
    return Row(
        name,
        1000 * statistics.median(seconds(work) for _ in range(max(3, rounds // 2))),
        ratio(work, queue.plain, rounds),
        ratio(work, queue.products, rounds),
        extra_memory(work),
        ratio(lambda: naive(queue), work, rounds) if naive else None,
        extra_memory(lambda: naive(queue)) if naive else None,
    )


def compare(queue: Queue, rounds: int, only: list[str]) -> None:
    """Print the costs over one queue."""
    lines: list[tuple[str, Callable[[], object]]] = [("no stage, no table", queue.plain)]
    lines += [(name, lambda f=f, s=s: queue.step(None, f, **s)) for name, f, s in row_losses()]
    if not only or set(only) & set(negatives.__all__):
        for name, stage in stages(queue, only):
            step = queue.contrast if isinstance(stage, HardestStage) else queue.step
            lines.append((name, partial(step, stage)))
    title = f"{queue.size} keys, {torch.get_num_threads()} threads, torch {torch.__version__}"
    shown = Table("step with", "ms", "/ plain", "/ limit", "MiB", "naive / ours", "naive MiB", title=title)
    for name, work in lines:
        if only and name not in only:
            continue
        row = measured(queue, name, work, rounds)
        numbers = (row.milliseconds, row.to_plain, row.to_limit, row.memory, row.naive, row.naive_memory)
        shown.add_row(row.name, *("-" if number is None else f"{number:.3g}" for number in numbers))
    Console(width=110).print(shown)


def mixing_errors(queue: Queue) -> tuple[float, float]:
    """Largest relative error of a MoCHi step's losses, and of its gradient, against the same mixes made in float64."""
    pool = pool_of_mochi(queue)
    (x, y, a), (z, b) = negatives.MoCHi().drawn(pool, CLOCK)
    keys = (queue.query_id, queue.keys, queue.key_id)
    loss = contrast(queue.query, queue.positive, *keys, [negatives.MoCHi()], TEMPERATURE, CLOCK)[0]
    (found,) = torch.autograd.grad(loss.sum(), queue.query)
    wide, worst, gradient = queue.keys.double(), 0.0, 0.0
    for row in range(0, QUERIES, 16):
        query = queue.query[row].detach().double().requires_grad_()
        first, second, third = (wide[pool.column[row, rank[row]]] for rank in (x, y, z))
        share, own = a[row, :, None].double(), b[row, :, None].double()
        mixes = torch.cat([share * first + (1 - share) * second, own * query.detach() + (1 - own) * third])
        points = torch.cat([queue.positive[row, None].double(), wide, F.normalize(mixes, dim=1)])
        logits = points @ query / TEMPERATURE
        exact = logits.logsumexp(0) - logits[0]
        (truth,) = torch.autograd.grad(exact, query)
        worst = max(worst, ((loss[row] - exact).abs() / exact).item())
        gradient = max(gradient, ((found[row] - truth).norm() / truth.norm()).item())
    return worst, gradient


def pool_of_mochi(queue: Queue) -> Pool:
    """What MoCHi with its defaults makes its mixes of."""
    query, nobody = queue.query.detach(), torch.empty(0, 2, dtype=torch.long)
    found = search(query, queue.keys, nobody, POOL, temperature=TEMPERATURE, with_gradient=False)
    return Pool.found(query, queue.keys, found.column, found.size, found.similarity, whole=True)


def mochi_speeds(queue: Queue, rounds: int) -> list[Figure]:
    """Time of gather-mix-normalise over MoCHi's: the whole step, and what mixing adds to each one's step without.

    The limit is for glibc's own allocator, under which the plain way asks the kernel for its buffers again and again.
    """
    ours = partial(queue.contrast, negatives.MoCHi())
    works = (queue.gather_mix_normalise, ours, queue.cross_entropy, queue.plain)
    times = [tuple(seconds(work) for work in works) for _ in range(rounds + 1)][1:]
    whole = statistics.median(naive / own for naive, own, _, _ in times)
    added = statistics.median((naive - without) / max(own - plain, 1e-9) for naive, own, without, plain in times)
    return [
        Figure("gather-mix-normalise / MoCHi, time of the step, default allocator", whole, "x", 5.0, at_most=False),
        Figure(
            "gather-mix-normalise / MoCHi, time of the mixing alone, default allocator", added, "x", 5.0, at_most=False
        ),
    ]


def mochi_figures(queue: Queue) -> list[Figure]:
    """Memory of a MoCHi step beside gather-mix-normalise, and its errors."""
    ours = partial(queue.contrast, negatives.MoCHi())
    works = (queue.gather_mix_normalise, ours, queue.cross_entropy, queue.plain)
    naive, own, without, plain = (extra_memory(work) for work in works)
    value, gradient = mixing_errors(queue)
    return [
        Figure(f"MoCHi / gather-mix-normalise ({naive:.0f} MiB), memory of the step", own / naive, "x", 0.15),
        Figure(
            "MoCHi / gather-mix-normalise, memory of the mixing alone", (own - plain) / (naive - without), "x", 0.15
        ),
        Figure("largest relative error of a MoCHi loss", value, "", 1e-5),
        Figure("largest relative error of its gradient", gradient, "", 1e-5),
    ]


def main() -> int:
    """Measure and print; 1 if a figure misses its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these stages and losses only")
    parser.add_argument("--keys", nargs="*", type=int, default=[4096, 65536], metavar="K", help="sizes of the queue")
    parser.add_argument("--default-allocator", action="store_true", help="leave glibc as it is")
    options = parser.parse_args()
    rounds = 3 if options.quick else 15
    with_mochi = not options.only or "MoCHi" in options.only
    figures = []
    if with_mochi:  # first, because the allocator's setting cannot be taken back
        figures += mochi_speeds(Queue(max(options.keys)), rounds)
    if not options.default_allocator:
        keep_freed_memory()
    for size in options.keys:
        compare(Queue(size), rounds, options.only)
    return show([*figures, *mochi_figures(Queue(max(options.keys)))]) if with_mochi else 0


if __name__ == "__main__":
    sys.exit(main())
