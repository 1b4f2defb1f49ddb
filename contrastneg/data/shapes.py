"""The embedded set `shapes`: 32x32 RGB pictures drawn here, so that a first run needs no download.

Four families of four outlines (16 classes, all mirror images of themselves) are drawn by signed distances with
antialiased edges. What a class fixes is the outline and nothing else: place, size, tilt, colour, whether the object is
lighter or darker than its ground, and the ground itself vary independently of it. So raw pixels say little about the
class, and what is known about every picture makes hardness and false negatives measurable:

- `family`: the superclass; outlines of one family are each other's hard negatives;
- `location`: which of eight grounds the picture was taken on, independent of the class;
- `sequence`: four frames of one object on one ground, its place, size and tilt drifting slowly;
- `duplicate_of`: image id of the picture that this one nearly repeats (a slight change of exposure and new noise), or -1.

Sequences and image ids are counted in each split by itself; no object, ground or noise is shared between splits.

Every number is a function of (seed, split); parameters are drawn in float64 and pixels rounded to 8 bits at the end, so
machines agree up to rare rounding ties.
"""

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from contrastneg.data.outlines import OUTLINES
from contrastneg.randomness import generator

if TYPE_CHECKING:
    from contrastneg.data.sources import ImageSet

SIZE = 32  # pixels a side
FRAMES = 4  # pictures in a sequence
SEQUENCES_PER_CLASS = {"train": 150, "test": 30}
DUPLICATES_PER_CLASS = {"train": 25, "test": 5}


@dataclass(frozen=True)
class Ground:
    """One location: the law of its backgrounds."""

    name: str
    hue: float
    """Turn of the colour circle, 0-1."""
    chroma: float
    """Distance from gray, 0-0.3."""
    texture: str
    """plain, stripes or blobs."""
    waves: float
    """Waves of the texture across the picture."""
    strength: float
    """Amplitude of the texture in units of full brightness."""


GROUNDS = (
    Ground("snow", 0.60, 0.03, "plain", 0.0, 0.0),
    Ground("sky", 0.58, 0.12, "plain", 0.0, 0.0),
    Ground("sand", 0.11, 0.10, "stripes", 2.5, 0.05),
    Ground("sea", 0.50, 0.12, "stripes", 1.5, 0.06),
    Ground("grass", 0.30, 0.12, "blobs", 2.0, 0.05),
    Ground("rust", 0.03, 0.12, "blobs", 1.2, 0.06),
    Ground("cloth", 0.78, 0.10, "stripes", 3.5, 0.04),
    Ground("stone", 0.15, 0.02, "blobs", 3.0, 0.05),
)


def class_names() -> list[str]:
    """The 16 class names by label."""
    return [name for members in OUTLINES.values() for name in members]


def shapes(split: str, seed: int = 0) -> "ImageSet":
    """The embedded set as images with labels and columns.

    Args:
        split: "train" (10,000 pictures) or "test" (2,000 others, drawn by the same law).
        seed: Another seed gives another set.

    Raises:
        ValueError: If there is no such split.
    """
    from contrastneg.data.sources import in_memory_set  # here: sources.py opens this set by its name

    images, labels, columns = _rendered(split, seed)
    return in_memory_set(images, labels, class_names(), {**columns}, name="shapes", split=split)


def render_shapes(
    split: str, seed: int = 0
) -> tuple[UInt8[Tensor, "N 3 32 32"], Int64[Tensor, " N"], dict[str, Int64[Tensor, " N"]]]:
    """Draw one split.

    Args:
        split: "train" or "test".
        seed: Any integer.

    Returns:
        Pictures, labels, and the columns `family`, `location`, `sequence` and `duplicate_of`.

    Raises:
        ValueError: If there is no such split.
    """
    if split not in SEQUENCES_PER_CLASS:
        raise ValueError(f"shapes has the splits train and test, got {split!r}: choose one of them")
    scenes = draw_scenes(split, seed)
    order = torch.randperm(len(scenes.label), generator=generator(seed, "shapes", split, "order"))
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order))
    source = scenes.duplicate_of
    columns = {
        "family": scenes.label // 4,
        "location": scenes.location,
        "sequence": scenes.sequence,
        "duplicate_of": torch.where(source < 0, -1, position[source.clamp(min=0)]),
    }
    images = paint(scenes, generator(seed, "shapes", split, "noise"))
    return images[order], scenes.label[order], {name: column[order] for name, column in columns.items()}


_rendered = functools.lru_cache(maxsize=2)(render_shapes)  # a run opens both splits several times


@dataclass(frozen=True)
class Scenes:
    """Everything that decides a picture but the pixel noise; one row a picture."""

    label: Int64[Tensor, " N"]
    location: Int64[Tensor, " N"]
    sequence: Int64[Tensor, " N"]
    duplicate_of: Int64[Tensor, " N"]
    """Row of the source, or -1."""
    place: Float[Tensor, "N 2"]
    """Centre of the object in pixels right of and above the middle."""
    radius: Float[Tensor, " N"]
    """In pixels."""
    tilt: Float[Tensor, " N"]
    """In radians."""
    front: Float[Tensor, "N 3"]
    """Colour of the object, 0-1."""
    back: Float[Tensor, "N 3"]
    """Mean colour of the ground, 0-1."""
    slope: Float[Tensor, "N 2"]
    """Gradient of the ground: brightness per picture width, right and up."""
    phase: Float[Tensor, "N 3"]
    """Two phases and the direction of the texture, in radians."""
    exposure: Float[Tensor, " N"]
    """Factor on the finished picture."""


def draw_scenes(split: str, seed: int) -> Scenes:
    """Draw what is in each picture: sequences of four frames, then the near-duplicates of some frames."""
    draw = generator(seed, "shapes", split, "scenes")
    classes, each = len(class_names()), SEQUENCES_PER_CLASS[split]
    count = classes * each
    label = torch.arange(classes).repeat_interleave(each)
    location = torch.randint(len(GROUNDS), (count,), generator=draw)
    place, radius, tilt = draw_motion(count, draw)
    front, back = draw_colours(location, draw)

    rows = torch.arange(count * FRAMES).view(classes, -1)
    picked = torch.stack([row[torch.randperm(len(row), generator=draw)] for row in rows])
    source = picked[:, : DUPLICATES_PER_CLASS[split]].reshape(-1)
    repeat = torch.cat([torch.arange(count * FRAMES), source])  # the duplicates come after all originals
    duplicate_of = torch.cat([torch.full((count * FRAMES,), -1), source])
    exposure = torch.where(duplicate_of < 0, 1.0, uniform(draw, 0.94, 1.06, len(repeat)))
    sequence = repeat // FRAMES
    return Scenes(
        label=label[sequence],
        location=location[sequence],
        sequence=sequence,
        duplicate_of=duplicate_of,
        place=place.view(-1, 2)[repeat],
        radius=radius.view(-1)[repeat],
        tilt=tilt.view(-1)[repeat],
        front=front[sequence],
        back=back[sequence],
        slope=uniform(draw, -0.12, 0.12, count, 2)[sequence],
        phase=uniform(draw, 0, 2 * math.pi, count, 3)[sequence],
        exposure=exposure,
    )


def draw_motion(
    count: int, draw: torch.Generator
) -> tuple[Float[Tensor, "count 4 2"], Float[Tensor, "count 4"], Float[Tensor, "count 4"]]:
    """Place, radius and tilt in each frame of some sequences: a start drawn afresh, then a slow steady drift."""
    time = torch.arange(FRAMES, dtype=torch.float64) - (FRAMES - 1) / 2
    heading = uniform(draw, 0, 2 * math.pi, count)
    direction = torch.stack([heading.cos(), heading.sin()], 1)[:, None]
    speed = uniform(draw, 0.5, 1.5, count)[:, None, None] * direction
    radius = uniform(draw, 6.5, 11.0, count)[:, None] * (1 + uniform(draw, -0.06, 0.06, count)[:, None] * time)
    room = 15.0 - 0.9 * radius.amax(1)  # most of the object stays in sight
    place = uniform(draw, -1, 1, count, 1, 2) * room[:, None, None] + speed * time[:, None]
    tilt = uniform(draw, -0.2, 0.2, count)[:, None] + uniform(draw, -0.04, 0.04, count)[:, None] * time
    return place, radius, tilt


def draw_colours(
    location: Int64[Tensor, " count"], draw: torch.Generator
) -> tuple[Float[Tensor, "count 3"], Float[Tensor, "count 3"]]:
    """Colours of object and ground: any brightness and hue, but apart enough in brightness to be seen in gray."""
    count = len(location)
    hue, chroma = (torch.tensor([getattr(g, name) for g in GROUNDS])[location] for name in ("hue", "chroma"))
    light = uniform(draw, 0.25, 0.75, count)
    contrast = uniform(draw, 0.22, 0.45, count)
    darker = torch.where(light > 0.55, True, torch.where(light < 0.45, False, uniform(draw, 0, 1, count) < 0.5))
    back = colour(light, hue + uniform(draw, -0.08, 0.08, count), chroma)
    step = torch.where(darker, -contrast, contrast)
    front = colour(light + step, uniform(draw, 0, 1, count), uniform(draw, 0.02, 0.16, count))
    return front, back


def uniform(draw: torch.Generator, low: float, high: float, *shape: int) -> Float[Tensor, "..."]:
    """Even numbers in [low, high), in float64."""
    return low + (high - low) * torch.rand(*shape, generator=draw, dtype=torch.float64)


def colour(light: Float[Tensor, " N"], hue: Float[Tensor, " N"], chroma: Float[Tensor, " N"]) -> Float[Tensor, "N 3"]:
    """RGB of equal mean for every hue: brightness plus a step of length chroma around the gray axis."""
    turn = 2 * math.pi * (hue[:, None] - torch.tensor([0, 1 / 3, 2 / 3], dtype=torch.float64))
    return light[:, None] + chroma[:, None] * turn.cos()


def paint(scenes: Scenes, noise: torch.Generator) -> UInt8[Tensor, "N 3 32 32"]:
    """Draw the pictures: ground, object over it, exposure, noise, 8 bits."""
    axis = torch.arange(SIZE) + 0.5 - SIZE / 2
    x, y = axis.view(1, 1, SIZE), -axis.view(1, SIZE, 1)
    images = []
    for rows in torch.arange(len(scenes.label)).split(500):  # a chunk stays in the cache
        cover = coverage(scenes, rows, x, y)[:, None]
        back = (scenes.back[rows].float()[:, :, None, None] + shade(scenes, rows, x, y)[:, None]).clamp_(0, 1)
        picture = torch.lerp(back, scenes.front[rows].float()[:, :, None, None], cover)
        picture = picture * scenes.exposure[rows].float().view(-1, 1, 1, 1)
        grain = torch.rand(2, *picture.shape, generator=noise).sum(0) - 1  # triangular, +-1
        images.append((picture + 0.05 * grain).clamp_(0, 1).mul_(255).round_().to(torch.uint8))
    return torch.cat(images)


def coverage(
    scenes: Scenes, rows: Int64[Tensor, " n"], x: Float[Tensor, "1 1 W"], y: Float[Tensor, "1 H 1"]
) -> Float[Tensor, "n H W"]:
    """Share of each pixel that the object covers, from its distance to the outline."""
    place, radius = scenes.place[rows].float().view(-1, 2, 1, 1), scenes.radius[rows].float().view(-1, 1, 1)
    cos, sin = (f(scenes.tilt[rows]).float().view(-1, 1, 1) for f in (torch.cos, torch.sin))
    right, up = x - place[:, 0], y - place[:, 1]
    u, v = (right * cos + up * sin) / radius, (up * cos - right * sin) / radius
    cover = torch.empty_like(u)
    outlines = [outline for members in OUTLINES.values() for outline in members.values()]
    for label in scenes.label[rows].unique().tolist():
        mine = scenes.label[rows] == label
        cover[mine] = (0.5 - outlines[label](u[mine], v[mine]) * radius[mine]).clamp_(0, 1)
    return cover


def shade(
    scenes: Scenes, rows: Int64[Tensor, " n"], x: Float[Tensor, "1 1 W"], y: Float[Tensor, "1 H 1"]
) -> Float[Tensor, "n H W"]:
    """Brightness of the ground around its mean: a gradient and the location's texture."""
    slope, phase = scenes.slope[rows].float(), scenes.phase[rows].float()
    result = (slope[:, 0].view(-1, 1, 1) * x + slope[:, 1].view(-1, 1, 1) * y) / SIZE
    for number, ground in enumerate(GROUNDS):
        mine = scenes.location[rows] == number
        if ground.texture == "plain" or not mine.any():
            continue
        first, second, turn = phase[mine].view(-1, 3, 1, 1).unbind(1)
        wave = 2 * math.pi * ground.waves / SIZE
        texture = (wave * (x * turn.cos() + y * turn.sin()) + first).sin()
        if ground.texture == "blobs":
            texture = texture * (wave * (y * turn.cos() - x * turn.sin()) + second).sin()
        result[mine] += ground.strength * texture
    return result
