"""The sixteen outlines of the embedded set, as distances to the edge.

Each function takes places in units of the object's radius, x to the right and y up, and gives about the distance to
the edge, negative inside. All are even in x: a mirrored picture still shows its class.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.9


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.76).abs() - 0.22


def _dome(x: Tensor, y: Tensor) -> Tensor:
    """The upper half of a disc."""
    return torch.maximum(torch.hypot(x, y + 0.45) - 1.05, -0.45 - y)


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    """A bowl: a disc without a second disc above it."""
    return torch.maximum(torch.hypot(x, y) - 1.0, 0.85 - torch.hypot(x, y - 0.55))


def _star(points: int, inner: float, *, outer: float = 1.1, flat: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """A star with a tip (or, if flat, an edge) on top; inner = cos(pi / points) makes it a regular polygon."""
    half = math.pi / points
    tip = (0.0, outer)
    notch = (outer * inner * math.sin(half), outer * inner * math.cos(half))
    along_x, along_y = notch[0] - tip[0], notch[1] - tip[1]
    length = math.hypot(along_x, along_y)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        angle = torch.atan2(x, y) + (half if flat else 0.0)
        fold = (torch.remainder(angle + half, 2 * half) - half).abs()  # all sectors onto one half sector
        radius = torch.hypot(x, y)
        side, up = radius * fold.sin(), radius * fold.cos()
        return ((side - tip[0]) * -along_y + (up - tip[1]) * along_x) / length

    return distance


def _box(x: Tensor, y: Tensor, centre_y: float, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(x.abs() - half_width, (y - centre_y).abs() - half_height)


def _plus(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0, 1, 0.3), _box(x, y, 0, 0.3, 1))


def _tee(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0.68, 0.95, 0.3), _box(x, y, 0, 0.3, 0.98))


def _arch(x: Tensor, y: Tensor) -> Tensor:
    """Two legs and a lintel."""
    return torch.maximum(_box(x, y, 0, 0.9, 0.9), -_box(x, y, -0.6, 0.36, 0.9))


def _bars(x: Tensor, y: Tensor) -> Tensor:
    """Two level bars, an equals sign."""
    return torch.minimum(_box(x, y, 0.55, 1, 0.3), _box(x, y, -0.55, 1, 0.3))


OUTLINES: dict[str, dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "round": {"disc": _disc, "ring": _ring, "dome": _dome, "crescent": _crescent},
    "polygon": {
        "triangle": _star(3, math.cos(math.pi / 3), outer=1.25),
        "square": _star(4, math.cos(math.pi / 4), outer=1.2, flat=True),
        "diamond": _star(4, math.cos(math.pi / 4), outer=1.2),
        "hexagon": _star(6, math.cos(math.pi / 6), outer=1.05, flat=True),
    },
    "star": {"star4": _star(4, 0.36), "star5": _star(5, 0.42), "star6": _star(6, 0.52), "star8": _star(8, 0.6)},
    "bar": {"plus": _plus, "tee": _tee, "arch": _arch, "bars": _bars},
}
"""Family -> class -> distance function; labels count through it in this order."""
