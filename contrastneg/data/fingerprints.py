"""What is kept of a picture to find it again: a hash of its pixels, and a small vector of what it looks like."""

import hashlib
import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from contrastneg.data.imageset import ImageSet

SIDE = 16  # pixels that a picture is shrunk to
FREQUENCIES = 8  # kept of them along each axis
WIDTH = 3 * FREQUENCIES**2


def _cosine_basis() -> Float32[Tensor, "f s"]:
    """The first rows of the orthonormal discrete cosine transform (DCT-II)."""
    frequency, place = torch.arange(FREQUENCIES, dtype=torch.float64)[:, None], torch.arange(SIDE) + 0.5
    basis = (math.pi / SIDE * frequency * place).cos() * math.sqrt(2 / SIDE)
    basis[0] /= math.sqrt(2)
    return basis.float()


BASIS = _cosine_basis()
WEIGHT = torch.cartesian_prod(torch.arange(FREQUENCIES), torch.arange(FREQUENCIES)).float().norm(dim=1)
WEIGHT = WEIGHT.view(FREQUENCIES, FREQUENCIES)


class Fingerprints:
    """What is kept of each picture of a set while a scan sees it: a hash of all its pixels, and a small vector.

    Args:
        source: The set; pictures are told apart by their positions in it.
    """

    def __init__(self, source: ImageSet) -> None:
        self.source = source
        self.seen: Bool[Tensor, " N"] = torch.zeros(len(source), dtype=torch.bool)
        self.digest: Int64[Tensor, "N 2"] = torch.zeros(len(source), 2, dtype=torch.int64)
        self.vector: Float32[Tensor, "N F"] = torch.zeros(len(source), WIDTH)

    def add(self, position: int, pixels: UInt8[Tensor, "3 H W"]) -> None:
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
    digest.update(pixels.flatten().numpy())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.int64)


def vector_of(pixels: UInt8[Tensor, "3 H W"]) -> Float32[Tensor, " F"]:
    r"""What a picture looks like from afar, whatever its size, brightness and contrast.

    It is shrunk to 16 x 16 by averaging; of the cosine transform of each colour the lowest 8 x 8 frequencies (u, v) are kept and
    multiplied by :math:`\sqrt{u^2 + v^2}`. Photographs hold the less of a frequency the higher it is, so this lets all
    that is kept count alike, where plain pixels would find any two bright skies over dark ground alike; the mean of each
    colour drops out. A picture whose levels, shrunk, differ by less than one gives zeros and is like no other.
    """
    small = F.adaptive_avg_pool2d(pixels.float(), SIDE)
    if (small.amax(dim=(1, 2)) - small.amin(dim=(1, 2))).max() < 1:
        return torch.zeros(WIDTH)  # one colour: its direction would be that of rounding errors
    return (BASIS @ small @ BASIS.T * WEIGHT).flatten()
