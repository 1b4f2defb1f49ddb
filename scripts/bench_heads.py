"""What a grid of 24 linear heads costs beside one head, and beside the same heads trained one after the other.

The limit is on the whole protocol: split, training on four fifths, choice, training of the winner on all rows, test. All
are timed in this process in alternating rounds; figures are medians of the rounds' ratios, because absolute times on shared
machines mean little. Features are random; 10 classes as in CIFAR-10. Prints one table.

The training alone has no limit: one head waits for memory, 24 heads for arithmetic. Of 2,048 features the products of 24
heads, 2 billion operations a step, take 8.7 ms at the highest rate that any product reached on the two cores where this
was written (225 Gflop/s), and a whole step of one head 3 to 3.5 ms.

    python scripts/bench_heads.py            # three minutes on two idle cores
    python scripts/bench_heads.py --quick    # fewer rounds
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from contrastneg.evaluate.features import Features
from contrastneg.evaluate.heads import HeadGrid, heads_score, train_heads

LIMIT = 3.0
ROWS, QUERIES, CLASSES, EPOCHS = 10_000, 1000, 10, 10
WIDTHS = (128, 512, 2048)  # ResNet-9 at a quarter, ResNet-18, ResNet-50


def seconds(work: Callable[[], object]) -> float:
    """Duration of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def features(rows: int, width: int) -> Features:
    """Random features of random classes."""
    draw = torch.Generator().manual_seed(rows)
    return Features(torch.randn(rows, width, generator=draw), torch.randint(0, CLASSES, (rows,), generator=draw))


def ratios(width: int, rounds: int) -> list[float]:
    """Medians of: the score by 24 heads over that by one; 24 heads' training over one's; one by one over 24 together."""
    bank, queries = features(ROWS, width), features(QUERIES, width)
    many, one = HeadGrid(epochs=EPOCHS), HeadGrid(learning_rates=(0.1,), weight_decays=(1e-3,), epochs=EPOCHS)
    settings = [(lr, decay) for lr in many.learning_rates for decay in many.weight_decays]

    def score(grid: HeadGrid) -> float:
        return seconds(lambda: heads_score(bank, queries, num_classes=CLASSES, seed=0, grid=grid))

    def train(some: list[tuple[float, float]]) -> float:
        rows = torch.arange(ROWS)
        return seconds(lambda: train_heads(bank.x, bank.labels, rows, CLASSES, some, many, 0))

    score(many)  # not counted
    figures = []
    for _ in range(rounds):
        together = train(settings)
        one_by_one = [train([setting]) for setting in settings]
        figures.append((score(many) / score(one), together / statistics.median(one_by_one), sum(one_by_one) / together))
    return [statistics.median(column) for column in zip(*figures, strict=True)]


def main() -> int:
    """Measure and print; 1 if a limit was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 3 if parser.parse_args().quick else 7
    heads = ("width", "score, 24 heads / 1", "limit", "", "training alone, 24 / 1", "24 one by one / together")
    threads = torch.get_num_threads()
    table = Table(*heads, title=f"{ROWS:,} rows, {CLASSES} classes, {threads} threads, torch {torch.__version__}")
    failed = 0
    for width in WIDTHS:
        whole, training, naive = ratios(width, rounds)
        failed |= whole > LIMIT
        verdict = "FAIL" if whole > LIMIT else "PASS"
        table.add_row(str(width), f"{whole:.2f} x", f"<= {LIMIT:g}", verdict, f"{training:.2f} x", f"{naive:.1f} x")
    Console(width=110).print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
