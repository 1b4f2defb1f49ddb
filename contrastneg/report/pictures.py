"""Pictures of the page as PNG data addresses: pairs of views, and test images with their nearest neighbours."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

MAX_SIDE = 80  # larger pictures are shrunk: 100 of them must fit a page of a few megabytes
MAX_PAIRS, MAX_ROWS, MAX_NEIGHBOURS = 12, 12, 6


@dataclass(frozen=True)
class Shown:
    """A picture ready for an ``img`` element; ``small`` ones are enlarged without smoothing."""

    uri: str
    alt: str
    side: int
    small: bool


@dataclass(frozen=True)
class Near:
    """A neighbour: whether it is right is told by sign, class name and colour together."""

    picture: Shown
    similarity: str
    name: str
    sign: str
    kind: str


@dataclass(frozen=True)
class Row:
    """An image and its neighbours, nearest first."""

    query: Shown
    kind: str
    """What the image is, in words."""
    name: str
    """Its class; empty where nothing is labelled."""
    near: list[Near]


def shown(pixels: UInt8[np.ndarray, "3 H W"], alt: str) -> Shown:
    """A picture as PNG inside a data address."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    small = max(image.size) <= MAX_SIDE
    if not small:
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Shown(f"data:image/png;base64,{data}", alt, image.width, small)


def are_pictures(array: np.ndarray | None, axes: int) -> bool:
    """Whether an array holds RGB pictures, with ``axes`` axes in all."""
    return (
        array is not None and array.dtype == np.uint8 and array.ndim == axes and array.shape[-3] == 3 and array.size > 0
    )


def view_pairs(arrays: dict[str, np.ndarray]) -> list[tuple[Shown, Shown]]:
    """Pairs of views; empty if the arrays are missing or no pictures."""
    first, second = arrays.get("view1"), arrays.get("view2")
    if first is None or second is None or not (are_pictures(first, 4) and are_pictures(second, 4)):
        return []
    pairs = list(zip(first, second, strict=False))[:MAX_PAIRS]
    return [
        (shown(one, f"training image {place}, first view"), shown(two, f"training image {place}, second view"))
        for place, (one, two) in enumerate(pairs, start=1)
    ]


def neighbour_rows(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Images with their neighbours; empty if the arrays are missing or do not fit each other.

    Arrays without a ``query_label`` are of a run without labels: classes are then not spoken of.
    """
    query, near = arrays.get("neighbour_query"), arrays.get("neighbour")
    if query is None or near is None or not (are_pictures(query, 4) and are_pictures(near, 5)):
        return []
    similarity, query_label, near_label = (
        arrays.get(name) for name in ("neighbour_similarity", "query_label", "neighbour_label")
    )
    if len(query) != len(near) or similarity is None or similarity.shape != near.shape[:2]:
        return []
    if query_label is None:
        query, near, similarity = query[:MAX_ROWS], near[:MAX_ROWS], similarity[:MAX_ROWS]
        return [
            row_without_labels(*row, place) for place, row in enumerate(zip(query, near, similarity, strict=True), 1)
        ]
    if query_label.shape != near.shape[:1]:
        query_label = np.full(near.shape[:1], -1)
    if near_label is None or near_label.shape != near.shape[:2]:
        near_label = np.full(near.shape[:2], -1)
    names = [str(name) for name in arrays.get("class_names", np.array([])).ravel()]
    rows = []
    for place in range(min(len(query), MAX_ROWS)):
        label = int(query_label[place])
        title = f"test image {place + 1}"
        neighbours = [
            neighbour(
                near[place, n],
                float(similarity[place, n]),
                int(near_label[place, n]),
                label,
                names,
                f"{n + 1} of {title}",
            )
            for n in range(min(near.shape[1], MAX_NEIGHBOURS))
        ]
        name = class_name(label, names)
        rows.append(Row(shown(query[place], f"{title}: {name}"), "test image", name, neighbours))
    return rows


def row_without_labels(
    query: UInt8[np.ndarray, "3 H W"],
    near: UInt8[np.ndarray, "k 3 H W"],
    similarity: Float[np.ndarray, " k"],
    place: int,
) -> Row:
    """An image and its neighbours where no class is known of any."""
    title = f"image {place}"
    found = [
        Near(shown(pixels, f"neighbour {n} of {title}, similarity {cosine:.2f}"), f"{cosine:.3f}", "", "", "unknown")
        for n, (pixels, cosine) in enumerate(zip(near, similarity, strict=True), 1)
    ]
    return Row(shown(query, title), "image", "", found[:MAX_NEIGHBOURS])


def neighbour(
    pixels: UInt8[np.ndarray, "3 H W"], similarity: float, label: int, query_label: int, names: list[str], place: str
) -> Near:
    """One neighbour with its verdict."""
    name = class_name(label, names)
    if label < 0 or query_label < 0:
        sign, kind, verdict = "?", "unknown", "class unknown"
    elif label == query_label:
        sign, kind, verdict = "✓", "right", "same class"
    else:
        sign, kind, verdict = "✗", "wrong", "other class"
    alt = f"neighbour {place}: {name}, similarity {similarity:.2f}, {verdict}"
    return Near(shown(pixels, alt), f"{similarity:.3f}", name, sign, kind)


def class_name(label: int, names: list[str]) -> str:
    """Name of a class; its number where it has no name."""
    if label < 0:
        return "no label"
    return names[label] if label < len(names) else f"class {label}"
