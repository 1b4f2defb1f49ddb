"""Made pictures that are as smooth as photographs, each unlike all others."""

import numpy as np
from PIL import Image


def photograph(seed, side=48):
    """Blobs of colour of several sizes, a function of the seed."""
    generator = np.random.default_rng(seed)
    blobs = sum(
        np.asarray(
            Image.fromarray(generator.integers(0, 256, (n, n, 3)).astype(np.uint8)).resize((side, side), 3), float
        )
        / n
        for n in (3, 6, 12)
    )
    return Image.fromarray((40 + 160 * (blobs - blobs.min()) / np.ptp(blobs)).astype(np.uint8))
