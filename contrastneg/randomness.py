"""Random numbers as a pure function of what they are for.

Nothing in a run keeps a generator alive: every draw comes from a fresh generator whose seed is a hash of (run seed,
purpose, epoch or batch, rank, image). So the position in the run *is* the state of all its generators, a resumed run
draws what the unbroken one would have drawn, and the number of loader workers changes nothing.
"""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a list of numbers and words.

    Args:
        parts: What the numbers are for, for instance ``(seed, "views", batch, rank)``. Order matters.

    Returns:
        An integer in [0, 2^63), the same on every machine and Python version.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by :func:`derive_seed` of ``parts``."""
    return torch.Generator().manual_seed(derive_seed(*parts))
