"""Equal pictures and near duplicates, within a split and between training and test images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from contrastneg.data.fingerprints import Fingerprints
from contrastneg.data.imageset import ImageSet
from contrastneg.data.scan import decodes_all, first_lines
from contrastneg.evaluate.neighbours import close_pairs, nearest, unit_rows
from contrastneg.wording import count_of

THRESHOLD = 0.9
MOST = 2**20  # pairs after which a split is searched no further
QUICK = 100_000  # pictures of all splits up to which duplicates are looked for unasked: about a minute on two cores
FEW = 5  # groups or pairs that a report names
SHOWN = 3  # pictures of a group that a report names


@dataclass(frozen=True)
class Pairs:
    """Pairs of near duplicates, the most similar first."""

    first: Int64[Tensor, " P"]
    """Positions in the first set."""
    second: Int64[Tensor, " P"]
    """Positions in the second set, which may be the same."""
    cosine: Float64[Tensor, " P"]
    """How similar they are: 1 is equal."""

    def ordered(self) -> "Pairs":
        """The most similar first, among equals as they were."""
        order = self.cosine.argsort(descending=True, stable=True)
        return Pairs(self.first[order], self.second[order], self.cosine[order])


@dataclass(frozen=True)
class SplitDuplicates:
    """Pictures of a split that are in it twice."""

    source: ImageSet
    """The split."""
    threshold: float
    """Cosine from which on two pictures are near duplicates."""
    equal: list[list[int]]
    """Positions of each group of two or more equal pictures."""
    near: Pairs
    """Near duplicates; of equal pictures only the first is compared."""
    complete: bool
    """False where there are so many pairs that not all were looked for."""

    def lines(self, most: int | None = FEW) -> list[str]:
        """A verdict on equal pictures and one on near duplicates, each over the groups or pairs themselves.

        Args:
            most: How many of either are named; None names all.
        """
        return [*self._equal_lines(most), *self._near_lines(most)]

    def _equal_lines(self, most: int | None) -> list[str]:
        if not self.equal:
            return ["no two pictures are equal"]
        mixed = sum(len(self._labels(group)) > 1 for group in self.equal)
        groups, pictures = count_of(len(self.equal), "group"), sum(map(len, self.equal))
        return [
            f"{groups} of equal pictures, {pictures:,} pictures in all{_with(mixed, 'different labels')}:",
            *first_lines([self._group_in_words(group, most) for group in self.equal], most),
        ]

    def _near_lines(self, most: int | None) -> list[str]:
        count = len(self.near.first)
        if count == 0:
            return [f"no near duplicates ({_cosine_of(self.threshold)})"]
        other = other_label(self.source, self.near.first, self.source, self.near.second)
        pairs = ("" if self.complete else "at least ") + count_of(count, "pair")
        return [
            f"{pairs} of near duplicates ({_cosine_of(self.threshold)}){_with(int(other.sum()), 'different labels')}:",
            *first_lines(pairs_in_words(self.near, self.source, self.source), most),
        ]

    def _group_in_words(self, group: list[int], most: int | None) -> str:
        shown = group if most is None else group[:SHOWN]
        more = f" = {len(group) - len(shown):,} more" if len(group) > len(shown) else ""
        labels = f" ({', '.join(self._labels(group))})" if len(self._labels(group)) > 1 else ""
        return " = ".join(map(self.source.name_of, shown)) + more + labels

    def _labels(self, group: list[int]) -> list[str]:
        """Classes of a group's pictures, as far as they are known."""
        if self.source.labels is None or self.source.classes is None:
            return []
        labels = self.source.labels[group]
        return [self.source.classes[label] for label in labels[labels >= 0].unique().tolist()]


@dataclass(frozen=True)
class Leak:
    """Test pictures that are among the training pictures, too."""

    test: ImageSet
    """The test split."""
    train: ImageSet
    """The training split."""
    threshold: float
    """Cosine from which on two pictures are near duplicates."""
    compared: int
    """Test pictures that could be read."""
    pairs: Pairs
    """Position of each such test picture, and that of the training picture it is most like."""
    equal: int
    """How many of them have the very pixels of a training picture."""

    def lines(self, most: int | None = FEW) -> list[str]:
        """The verdict, over the pairs themselves.

        Args:
            most: How many pairs are named; None names all.
        """
        found = len(self.pairs.first)
        if found == 0:
            return [f"no test picture is a duplicate of a training picture (equal, or {_cosine_of(self.threshold)})"]
        other = int(other_label(self.test, self.pairs.first, self.train, self.pairs.second).sum())
        have = "has a duplicate" if found == 1 else "have duplicates"
        return [
            f"{found:,} of {count_of(self.compared, 'test picture')} {have} among the training pictures: {self.equal:,} equal, "
            f"{found - self.equal:,} near ({_cosine_of(self.threshold)}){_with(other, 'another label')}: scores on them are optimistic",
            *first_lines(pairs_in_words(self.pairs, self.test, self.train), most),
        ]


def find_duplicates(prints: Fingerprints, threshold: float = THRESHOLD) -> SplitDuplicates:
    """Duplicates within a set.

    Near duplicates are pairs whose vectors, see :func:`~contrastneg.data.fingerprints.vector_of`, have a cosine of at
    least the threshold: copies that were compressed, scaled, brightened or slightly retouched, not those that were
    cropped, mirrored or shifted by much.

    Args:
        prints: What a scan of the set has seen.
        threshold: Smallest cosine of a near duplicate, above 0 and at most 1.
    """
    position = _with_vector(prints, prints.distinct())
    pair, cosine, complete = close_pairs(unit_rows(prints.vector[position]), threshold, MOST)
    near = Pairs(position[pair[:, 0]], position[pair[:, 1]], cosine).ordered()
    equal = [group for group in prints.groups() if len(group) > 1]
    return SplitDuplicates(prints.source, threshold, equal, near, complete)


def find_leak(test: Fingerprints, train: Fingerprints, threshold: float = THRESHOLD) -> Leak:
    """Test pictures with a duplicate among the training pictures, see :func:`find_duplicates`.

    An equal picture comes before near ones, and the first in the set before others. Of CIFAR-10's test images 3.3 % have
    duplicates in the training set, say Barz and Denzler (arXiv:1902.00423); small pictures at the default threshold find
    2.1 %, of which by eye nearly all are such. At 0.87 about a quarter of the pairs that are added are different pictures.

    Args:
        test: What a scan of the test split has seen.
        train: What a scan of the training split has seen.
        threshold: Smallest cosine of a near duplicate, above 0 and at most 1.
    """
    twin = _equal_picture(test, train)
    equal = (twin >= 0).nonzero()[:, 0]
    bank = _with_vector(train, train.distinct())
    asked = _with_vector(test, (test.seen & (twin < 0)).nonzero()[:, 0])
    if len(asked) == 0 or len(bank) == 0:
        cosine, index = torch.zeros(len(asked), 1, dtype=torch.float64), torch.zeros(len(asked), 1, dtype=torch.int64)
    else:
        cosine, index = nearest(unit_rows(test.vector[asked]), unit_rows(train.vector[bank]), 1)
    alike = cosine[:, 0] >= threshold
    near = Pairs(asked[alike], bank[index[alike, 0]], cosine[alike, 0])
    ones = torch.ones(len(equal), dtype=torch.float64)
    pairs = Pairs(
        torch.cat([equal, near.first]), torch.cat([twin[equal], near.second]), torch.cat([ones, near.cosine])
    ).ordered()
    return Leak(test.source, train.source, threshold, int(test.seen.sum()), pairs, len(equal))


def quick(sources: Sequence[ImageSet]) -> bool:
    """Whether looking for duplicates in all of these splits takes about a minute at most."""
    return sum(map(len, sources)) <= QUICK and all(map(decodes_all, sources))


def other_label(
    one: ImageSet, first: Int64[Tensor, " P"], other: ImageSet, second: Int64[Tensor, " P"]
) -> Bool[Tensor, " P"]:
    """Which pairs are of two classes, both known."""
    if one.labels is None or other.labels is None:
        return torch.zeros(len(first), dtype=torch.bool)
    a, b = one.labels[first], other.labels[second]
    return (a >= 0) & (b >= 0) & (a != b)


def pairs_in_words(pairs: Pairs, one: ImageSet, other: ImageSet) -> list[str]:
    """Each pair in a line: cosine, both names, and both classes where they differ."""
    differ = other_label(one, pairs.first, other, pairs.second).tolist()
    lines = []
    for i, (first, second, cosine) in enumerate(
        zip(pairs.first.tolist(), pairs.second.tolist(), pairs.cosine.tolist(), strict=True)
    ):
        line = f"{cosine:.3f} {one.name_of(first)} ~ {other.name_of(second)}"
        if differ[i]:
            line += f" ({_class_of(one, first)}, {_class_of(other, second)})"
        lines.append(line)
    return lines


def _class_of(source: ImageSet, position: int) -> str:
    assert source.labels is not None and source.classes is not None  # it is known to differ from another
    return source.classes[int(source.labels[position])]


def _with_vector(prints: Fingerprints, position: Int64[Tensor, " n"]) -> Int64[Tensor, " m"]:
    """Those of some positions whose vector is not zero: pictures of one colour are like no other."""
    return position[prints.vector[position].any(dim=1)]


def _equal_picture(test: Fingerprints, train: Fingerprints) -> Int64[Tensor, " N"]:
    """The first training picture that has the very pixels of each test picture; -1 where there is none."""
    asked, bank = test.seen.nonzero()[:, 0], train.seen.nonzero()[:, 0]
    member = torch.cat([train.digest[bank], test.digest[asked]]).unique(dim=0, return_inverse=True)[1]
    none = len(train.seen)
    first = torch.full((len(member),), none).scatter_reduce(0, member[: len(bank)], bank, "amin")
    twin = torch.full_like(test.seen, -1, dtype=torch.int64)
    twin[asked] = first[member[len(bank) :]]
    return twin.where(twin < none, -1)


def _with(count: int, what: str) -> str:
    return f", {count:,} with {what}" if count else ""


def _cosine_of(threshold: float) -> str:
    return f"cosine of at least {threshold:g}"
