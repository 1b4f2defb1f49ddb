"""Queries and their candidates: who is asked, and each query's cosines with all other images, some queries at a time.

Cosines are exact (see :mod:`contrastneg.evaluate.neighbours`), so neither threads nor the size of a part changes a
ranking; cosines that agree to about 12 digits are ranked by the lower position. Each part holds :data:`CELLS` cosines, and
of more than 262,144 images those of :data:`AT_LEAST` queries; a measure keeps a few tables of that size.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from contrastneg.analysis.classes import Labels, known_classes
from contrastneg.evaluate.features import finite_rows
from contrastneg.evaluate.neighbours import unit_rows
from contrastneg.randomness import generator

QUERIES = 2048
"""Queries asked unless more are wanted."""
CELLS = 2**21  # cosines held at once: 16 MiB in float64
AT_LEAST = 8  # queries at once, however many images: each part reads all embeddings, which for a single query takes most of the time
TILE = 2**22  # numbers of embeddings held in float64 at once

Embeddings = Float[Tensor | np.ndarray, "N D"]
"""One row of any length above 0 per image."""
Positives = Float[Tensor | np.ndarray, "P E"]
"""One row of any length above 0 per image, of as many numbers as embeddings have: a second view, the positive."""


@dataclass(frozen=True)
class Asked:
    """Images that are compared, and which of them are queries; every other image is a candidate of each."""

    x: Float32[Tensor, "N D"]
    """Unit embeddings."""
    rows: Int64[Tensor, " Q"]
    """Queries, ascending."""
    about: Mapping[str, Any]
    """Columns that every table of the measure ends with."""
    position: Int64[Tensor, " N"]
    """Place of each image among those given."""
    label: Int64[Tensor, " N"] | None = None
    """Class of each image, numbered from 0."""
    names: Int64[Tensor, " classes"] | None = None
    """What the user calls the classes."""
    second: Float32[Tensor, "N D"] | None = None
    """Unit embeddings of the second view of each image, the positive of the first."""

    @property
    def candidates(self) -> int:
        """Candidates of each query."""
        return len(self.x) - 1

    @property
    def class_names(self) -> Int64[Tensor, " classes"]:
        """Labels as the user gave them, by class."""
        assert self.names is not None
        return self.names

    @property
    def labels(self) -> Int64[Tensor, " N"]:
        """Class of each image, where the measure asked for classes."""
        assert self.label is not None
        return self.label

    def parts(self) -> Iterator[tuple[Int64[Tensor, " b"], Float64[Tensor, "b N"]]]:
        """Some queries at a time with their cosines; -inf with the query itself, which so is the last in order."""
        for rows in self.rows.split(max(AT_LEAST, CELLS // len(self.x))):
            cosine = times(self.x[rows].double(), self.x)
            cosine[torch.arange(len(rows)), rows] = -torch.inf
            yield rows, cosine

    def ordered(self) -> Iterator[tuple[Int64[Tensor, " b"], Float64[Tensor, "b C"], Int64[Tensor, "b C"]]]:
        """Some queries at a time with the cosines of their candidates, most similar first, and the images behind them."""
        for rows, cosine in self.parts():
            image = hardest_first(cosine)[:, :-1]
            yield rows, cosine.gather(1, image), image

    def same_class(self, rows: Int64[Tensor, " b"]) -> Bool[Tensor, "b N"]:
        """Which images are other images of each query's class."""
        same = self.labels == self.labels[rows, None]
        same[torch.arange(len(rows)), rows] = False
        return same

    def base_rate(self) -> Float64[Tensor, " Q"]:
        """Share of each query's candidates that are of its class."""
        return (self.labels.bincount()[self.labels[self.rows]] - 1).double() / self.candidates

    def positive(self, rows: Int64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """Cosine of queries with their positives."""
        assert self.second is not None
        return (self.x[rows].double() * self.second[rows].double()).sum(dim=1)

    def table(self, columns: Mapping[str, Any]) -> pd.DataFrame:
        """A table of these columns (tensors, sequences, or one value for all rows), then those about the measure."""
        plain = {name: column.numpy() if isinstance(column, Tensor) else column for name, column in columns.items()}
        return pd.DataFrame({**plain, **self.about})


def ask(embeddings: Embeddings, *, queries: int, seed: int, positives: Positives | None = None) -> Asked:
    """Draw queries among all images.

    Args:
        embeddings: Of all images.
        queries: How many are asked at most, at least 1.
        seed: Of the draw.
        positives: Embeddings of a second view of each image, row by row.

    Raises:
        ValueError: Embeddings are not finite or of length 0, fewer than two, or not as many as positives.
    """
    x = _units("embeddings", embeddings)
    rows = _drawn(torch.arange(len(x)), queries, seed)
    about = {"queries": len(rows), "images": len(x), "seed": seed}
    return Asked(x, rows, about, torch.arange(len(x)), second=_second(positives, x))


def ask_by_class(
    embeddings: Embeddings, labels: Labels, *, queries: int, seed: int, positives: Positives | None = None
) -> Asked:
    """Draw queries among the images of known class that have another image of it; images of unknown class are left out.

    Args:
        embeddings: Of all images.
        labels: Their classes.
        queries: How many are asked at most, at least 1.
        seed: Of the draw.
        positives: Embeddings of a second view of each image, row by row.

    Raises:
        ValueError: As :func:`ask`, or labels are missing or no two of one class.
    """
    label, source = known_classes(labels, len(embeddings))
    known = label >= 0
    every = _units("embeddings", embeddings)
    x, second = every[known], _second(positives, every)
    names, code = label[known].unique(return_inverse=True)
    rows = _drawn((code.bincount()[code] > 1).nonzero().flatten(), queries, seed)
    about = {"queries": len(rows), "images": len(x), "seed": seed, "classes": source}
    position = known.nonzero().flatten()
    return Asked(x, rows, about, position, code, names, None if second is None else second[known])


def ask_either(
    embeddings: Embeddings, labels: Labels, *, queries: int, seed: int, positives: Positives | None = None
) -> Asked:
    """Draw queries by class where there are labels, see :func:`ask_by_class`, and among all images where there are none.

    Args:
        embeddings: Of all images.
        labels: Their classes, or None.
        queries: How many are asked at most, at least 1.
        seed: Of the draw.
        positives: Embeddings of a second view of each image, row by row.

    Raises:
        ValueError: As :func:`ask_by_class`, but for labels that are missing.
    """
    if labels is None:
        return ask(embeddings, queries=queries, seed=seed, positives=positives)
    return ask_by_class(embeddings, labels, queries=queries, seed=seed, positives=positives)


def hardest_first(cosine: Float64[Tensor, "b N"]) -> Int64[Tensor, "b N"]:
    """Images of each row, the most similar first and those at -inf last.

    Cosine and position are packed into one whole number, which numpy sorts ten times as fast as torch sorts pairs. What
    the position leaves of 62 bits is the resolution of cosines: 2^-45 for 50,000 images, 2^-40 for 2 million.
    """
    bits = cosine.shape[1].bit_length()
    key = cosine.clamp(min=-2).mul_(-(2.0 ** (61 - bits))).floor_().long()
    key.bitwise_left_shift_(bits).add_(torch.arange(cosine.shape[1]))
    key.numpy().sort(axis=1)
    return key.bitwise_and_(2**bits - 1)


def times(weight: Float64[Tensor, "b D"], x: Float32[Tensor, "N D"]) -> Float64[Tensor, "b N"]:
    """Products of rows with all embeddings, in float64, without a float64 copy of the embeddings."""
    product = weight.new_empty(len(weight), len(x))
    step = max(1, TILE // x.shape[1])
    for start in range(0, len(x), step):
        product[:, start : start + step] = weight @ x[start : start + step].double().T
    return product


def weighted_sum(weight: Float64[Tensor, "b N"], x: Float32[Tensor, "N D"]) -> Float64[Tensor, "b D"]:
    """Sums of all embeddings, each times its weight in a row, in float64."""
    total = weight.new_zeros(len(weight), x.shape[1])
    step = max(1, TILE // x.shape[1])
    for start in range(0, len(x), step):
        total += weight[:, start : start + step] @ x[start : start + step].double()
    return total


def filled(shape: tuple[int, ...], parts: Iterable[Float64[Tensor, "..."]]) -> Float64[Tensor, "..."]:
    """What is measured of some queries at a time, as one tensor.

    Filled in place: small results kept between large tables would split the heap, and memory would grow.

    Args:
        shape: Of the whole, queries first.
        parts: Numbers of some queries each, in the order of the queries.
    """
    whole, done = torch.empty(shape, dtype=torch.float64), 0
    for part in parts:
        whole[done : done + len(part)] = part
        done += len(part)
    return whole


def unit_views(support: Float[Tensor, "M S D"], asked: Asked, images: int) -> Float[Tensor, "N S D"]:
    """Unit embeddings of the further views of the images that are compared.

    Args:
        support: Embeddings of S further views of each image that was given.
        asked: The images that are compared.
        images: How many were given.

    Raises:
        ValueError: There are views of more or fewer images.
    """
    if len(support) != images:
        raise ValueError(f"support has views of {len(support)} images but there are {images}: give them for each")
    kept = support[asked.position]
    return unit_rows(kept.flatten(0, 1)).view(kept.shape)


def place(share: float, candidates: int) -> int:
    """Candidates in a share of the ranking, rounded up; 0.07 of 100 is 7 although the product is a hair above."""
    return math.ceil(share * candidates - 1e-9)


def quantile_count(share: float, candidates: int) -> int:
    """Candidates above the quantile at 1 - share, rounded down; 0.29 of 100 is 29 although the product is a hair below."""
    return int(share * candidates + 1e-9)


def above_quantile(cosine: Float[Tensor, "b N"], share: float) -> Bool[Tensor, "b N"]:
    """Candidates above each row's quantile at 1 - share, as many as :func:`quantile_count` says where none are equal.

    Args:
        cosine: Of the candidates; -inf with the query itself, once in each row.
        share: From 0 to 1.
    """
    candidates = cosine.shape[1] - 1
    # the query itself is the first in ascending order
    rank = 1 + candidates - quantile_count(share, candidates)
    return cosine > cosine.kthvalue(rank, dim=1, keepdim=True).values


def check_share(name: str, share: float) -> None:
    """Refuse a share that is not between 0 and 1."""
    if not 0 < share < 1:
        raise ValueError(f"{name} is {share}: give a number above 0 and below 1")


def check_above_0(name: str, *numbers: float) -> None:
    """Refuse numbers, temperatures for instance, that are not above 0; and an empty list of them."""
    if not numbers or min(numbers) <= 0:
        raise ValueError(f"{name} is {list(numbers)}: give numbers above 0")


def counts_up_to(counts: Sequence[int] | None, candidates: int) -> list[int]:
    """Numbers of negatives to measure at: those given, or powers of 4 from 16 and all candidates.

    Raises:
        ValueError: A number is below 1 or above the candidates.
    """
    if counts is None:
        return [*(4**power for power in range(2, 20) if 4**power < candidates), candidates]
    if not counts or min(counts) < 1 or max(counts) > candidates:
        raise ValueError(f"counts is {list(counts)} but a query has {candidates} candidates: give 1 to {candidates}")
    return list(counts)


def _units(name: str, embeddings: Embeddings | Positives) -> Float32[Tensor, "N D"]:
    x = torch.as_tensor(embeddings).detach().cpu()
    if len(x) < 2:
        raise ValueError(f"{name} has {len(x)} rows: a query needs at least one other image")
    if not bool(finite_rows(x).all()):
        raise ValueError(f"{name} has rows that are not finite: leave those images out")
    if not bool(x.any(dim=1).all()):
        raise ValueError(f"{name} has rows of length 0, which have no cosine: leave those images out")
    return unit_rows(x)


def _second(positives: Positives | None, x: Float32[Tensor, "N D"]) -> Float32[Tensor, "N D"] | None:
    if positives is not None and tuple(positives.shape) != tuple(x.shape):
        met, wanted = (" x ".join(map(str, shape)) for shape in (positives.shape, x.shape))
        raise ValueError(f"positives is {met} but embeddings is {wanted}: give a row like it for each image")
    return None if positives is None else _units("positives", positives)


def _drawn(among: Int64[Tensor, " n"], queries: int, seed: int) -> Int64[Tensor, " Q"]:
    if queries < 1:
        raise ValueError(f"queries is {queries}: give at least 1")
    if len(among) <= queries:
        return among
    return among[torch.randperm(len(among), generator=generator(seed, "queries"))[:queries]].sort().values
