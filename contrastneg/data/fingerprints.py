"""What is kept of a picture to find it again: a hash of its pixels, and a small vector of what it looks like."""

import functools
import hashlib
import math

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from contrastneg.data.imageset import ImageSet

SIDE = 16  # pixels that a picture is shrunk to
FREQUENCIES = 8  # kept of them along each axis
WEIGHT = np.hypot(*np.indices((FREQUENCIES, FREQUENCIES))).astype(np.float32)


class Fingerprints:
    """What is kept of each picture of a set while a scan sees it: a hash of all its pixels, and a small vector.

    Args:
        source: The set; pictures are told apart by their positions in it.
    """

    def __init__(self, source: ImageSet) -> None:
        self.source = source
        self.seen: Bool[Tensor, " N"] = torch.zeros(len(source), dtype=torch.bool)
        self.digest: Int64[Tensor, "N 2"] = torch.zeros(len(source), 2, dtype=torch.int64)
        self.vector: Float32[Tensor, "N F"] = torch.zeros(len(source), source.channels * FREQUENCIES**2)

    def add(self, position: int, pixels: UInt8[Tensor, "C H W"]) -> None:
        """Keep what is needed of a picture, from any thread: ``scan(source, "skip", see=fingerprints.add)``."""
        self.digest[position] = digest_of(pixels)
        self.vector[position] = vector_of(pixels)
        self.seen[position] = True

    def distinct(self) -> Int64[Tensor, " n"]:
        """Positions of the pictures seen, of equal ones only the first."""
        return torch.tensor([group[0] for group in self.groups()], dtype=torch.int64)

    def groups(self) -> list[list[int]]:
        """Positions of the pictures seen, equal ones together, in the order of their first."""
        position = self.seen.nonzero()[:, 0]
        member = self.digest[position].unique(dim=0, return_inverse=True)[1]
        groups: dict[int, list[int]] = {}
        for place, group in zip(position.tolist(), member.tolist(), strict=True):
            groups.setdefault(group, []).append(place)
        return list(groups.values())


def digest_of(pixels: UInt8[Tensor, "C H W"]) -> Int64[Tensor, "2"]:
    """128 bits of BLAKE2b over size and pixels, equal for equal pictures whatever format they are stored in."""
    digest = hashlib.blake2b(str(tuple(pixels.shape)).encode(), digest_size=16)
    digest.update(pixels.flatten().numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.int64)


def vector_of(pixels: UInt8[Tensor, "C H W"]) -> Float32[Tensor, " F"]:
    r"""What a picture looks like from afar, whatever its size, brightness and contrast.

    It is shrunk to 16 x 16 by averaging over areas; of the cosine transform of each channel the lowest 8 x 8 frequencies
    (u, v) are kept and multiplied by :math:`\sqrt{u^2 + v^2}`. Photographs hold the less of a frequency the higher it is,
    so this lets all that is kept count alike, where plain pixels would find any two bright skies over dark ground alike;
    the mean of each channel drops out. A picture of one colour gives zeros and is like no other.
    """
    levels = pixels.numpy().astype(np.float32)
    levels -= levels[:, :1, :1].copy()  # one colour gives zeros: without this, rounding errors
    rows, columns = _shrunk_waves(levels.shape[1]), _shrunk_waves(levels.shape[2])
    # numpy, as threads of torch inside those that decode would wait for each other
    return torch.from_numpy((rows @ levels @ columns.T * WEIGHT).ravel())


@functools.lru_cache(maxsize=1024)
def _shrunk_waves(length: int) -> np.ndarray:
    """(8, length): the shrinking of one axis to 16 pixels and the first rows of the orthonormal DCT-II of these, in one."""
    pixel, begin = np.arange(length), np.arange(SIDE)[:, None] * length / SIDE
    overlap = np.minimum(pixel + 1, begin + length / SIDE) - np.maximum(pixel, begin)
    waves = np.cos(math.pi / SIDE * np.arange(FREQUENCIES)[:, None] * (np.arange(SIDE) + 0.5)) * math.sqrt(2 / SIDE)
    waves[0] /= math.sqrt(2)
    return (waves @ overlap.clip(min=0) * SIDE / length).astype(np.float32)
