"""Queries with their hardest negatives as pictures, and what each method did with each."""

import base64
import io
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from contrastneg.analysis.hardness import EDGES
from contrastneg.analysis.queries import place
from contrastneg.analyze.charts import bin_name
from contrastneg.analyze.effects import Effects, effects_of, methods_of
from contrastneg.analyze.material import Material, rows_asked, view_pictures
from contrastneg.data.module import PretrainData
from contrastneg.randomness import generator
from contrastneg.report.pictures import Shown, class_name
from contrastneg.wording import count_of
from contrastneg.writing import printable

HARDEST, FURTHER = (
    16,
    8,
)  # candidates that are shown of each query: the first of the ranking, and some spread over the rest
SIDE, QUALITY = 64, 75  # of thumbnails, in pixels and percent


@dataclass(frozen=True)
class Candidate:
    """A negative in the gallery; whether it is false is told by sign, word and colour together."""

    picture: Shown
    name: str
    class_name: str
    rank: int
    cosine: float
    bin: int
    """Place of its hardness bin, 0 the hardest."""
    kind: str
    """same, other or unknown."""
    effects: dict[str, str]
    """What each method did with it, in words."""
    removed_by: list[str]
    """Detectors that remove it."""


@dataclass(frozen=True)
class Query:
    """A query in the gallery."""

    picture: Shown
    view: Shown
    name: str
    class_name: str
    positive: float
    """Cosine of image and view."""
    candidates: list[Candidate]


@dataclass(frozen=True)
class Gallery:
    """Queries, hardest negatives and methods."""

    queries: list[Query]
    bins: list[str]
    """Names of the hardness bins."""
    detectors: list[str]
    """Names of the methods that remove."""
    about: dict[str, str]
    """What each method is."""
    candidates: int
    """How many each query has in all."""
    labelled: bool
    """Whether classes are known."""
    table: pd.DataFrame
    """The same, tidy: one row per query and candidate."""


def gallery_of(material: Material, data: PretrainData, position: Int64[Tensor, " N"], count: int) -> Gallery:
    """Some of the queries that were asked, equally many of each class as far as that goes, with candidates of every bin.

    Args:
        material: What is shown.
        data: Gives the pictures.
        position: Position of each row in the set.
        count: Queries, at most.
    """
    rows = chosen(material, count)
    ranks = shown_ranks(len(material.embeddings) - 1)
    effects = effects_of(material, rows, ranks)
    table = table_of(material, effects, rows, ranks, data, position)
    pictures = Pictures(data, position)
    views = view_pictures(data, position[rows], material.seed)
    groups = [group for _, group in table.groupby("query", sort=False)]
    about = methods_of(material)
    queries = [query_of(group, pictures, view.numpy(), about) for group, view in zip(groups, views, strict=True)]
    return Gallery(
        queries,
        bin_names(),
        list(effects.removed),
        about,
        len(material.embeddings) - 1,
        material.labels is not None,
        table,
    )


def chosen(material: Material, count: int) -> Int64[Tensor, " q"]:
    """Rows of the queries: at random, the first of each class before the second of any; without labels at random."""
    rows = rows_asked(material)
    rows = rows[torch.randperm(len(rows), generator=generator(material.seed, "gallery"))]
    if material.labels is None:
        return rows[:count]
    turn = pd.Series(material.labels[rows].numpy()).groupby(material.labels[rows].numpy()).cumcount()
    first = torch.from_numpy(turn.to_numpy().argsort(kind="stable")[:count].copy())
    picked = rows[first]
    return picked[material.labels[picked].argsort(stable=True)]


def shown_ranks(candidates: int) -> list[int]:
    """Ranks from 0 that are shown: the hardest, and some at growing distances to the last."""
    spread = np.geomspace(HARDEST + 1, max(candidates, HARDEST + 1), FURTHER).round().astype(int) - 1
    return sorted({rank for rank in [*range(HARDEST), *spread.tolist()] if rank < candidates})


def bin_names() -> list[str]:
    """The bins of :func:`contrastneg.analysis.hardness_bins` in words."""
    ends = (0.0, *EDGES, 1.0)
    return [bin_name(low, high) for low, high in pairwise(ends)]


def table_of(
    material: Material,
    effects: Effects,
    rows: Int64[Tensor, " Q"],
    ranks: list[int],
    data: PretrainData,
    position: Int64[Tensor, " N"],
) -> pd.DataFrame:
    """One row per query and shown candidate."""
    source = data.sets["train"]
    assert source is not None
    ends = [place(edge, len(material.embeddings) - 1) for edge in EDGES]
    labels = material.labels if material.labels is not None else torch.full((len(position),), -1)
    candidate = effects.candidate.flatten()
    query = rows.repeat_interleave(len(ranks))
    own, its = labels[query], labels[candidate]
    kind = np.where((own < 0) | (its < 0), "unknown", np.where(own == its, "same", "other"))
    columns = {
        "query": position[query].numpy(),
        "query_name": [short(source.name_of(place)) for place in position[query].tolist()],
        "query_class": [class_name(label, material.names) for label in own.tolist()],
        "positive": effects.positive.repeat_interleave(len(ranks)).numpy(),
        "candidate": position[candidate].numpy(),
        "name": [short(source.name_of(place)) for place in position[candidate].tolist()],
        "class": [class_name(label, material.names) for label in its.tolist()],
        "kind": kind,
        "rank": np.tile(np.array(ranks) + 1, len(rows)),
        "bin": np.tile([sum(rank >= end for end in ends) for rank in ranks], len(rows)),
        "cosine": effects.cosine.flatten().numpy(),
        "gradient_share": effects.gradient.flatten().numpy(),
        **{f"removed: {name}": mask.flatten().numpy() for name, mask in effects.removed.items()},
        "hard_weight": effects.weight.flatten().numpy(),
        "mixes": effects.parents.flatten().numpy(),
        "mix_share": effects.share.flatten().numpy(),
    }
    return pd.DataFrame(columns)


def query_of(
    group: pd.DataFrame, pictures: "Pictures", view: UInt8[np.ndarray, "3 S S"], about: dict[str, str]
) -> Query:
    """A query of the page from its rows of the table."""
    first = group.iloc[0]
    told = f"{first['query_class']}, {first['query_name']}"
    return Query(
        pictures.shown(int(first["query"]), f"query: {told}"),
        encoded(view, f"second view of the query: {told}"),
        first["query_name"],
        first["query_class"],
        float(first["positive"]),
        [candidate_of(row, pictures, about) for row in group.to_dict("records")],
    )


def candidate_of(row: dict, pictures: "Pictures", about: dict[str, str]) -> Candidate:
    """A candidate of the page from its row of the table."""
    words = {"same": "same class", "other": "other class", "unknown": "class unknown"}[row["kind"]]
    alt = f"rank {row['rank']:,}, {words}: {row['class']}, {row['name']}, cosine {row['cosine']:.2f}"
    detectors = [name for name in about if f"removed: {name}" in row]
    removed = [name for name in detectors if row[f"removed: {name}"]]
    said = {name: "removes it" if name in removed else "keeps it" for name in detectors}
    mixed = (
        f"parent of {count_of(row['mixes'], 'mix', 'mixes')}, mean share {row['mix_share']:.2f}"
        if row["mixes"]
        else "in no mix"
    )
    told = {
        "InfoNCE": f"{100 * row['gradient_share']:.3g} % of the gradient",
        **said,
        "hard weights": f"weight {row['hard_weight']:.3g}",
        "MoCHi": mixed,
    }
    picture = pictures.shown(int(row["candidate"]), alt)
    return Candidate(
        picture,
        row["name"],
        row["class"],
        row["rank"],
        row["cosine"],
        row["bin"],
        row["kind"],
        {name: told[name] for name in about},
        removed,
    )


class Pictures:
    """Thumbnails of a set, each made once."""

    def __init__(self, data: PretrainData, position: Int64[Tensor, " N"]) -> None:
        source = data.sets["train"]
        assert source is not None
        self.source = source
        self.address = cache(lambda place: encoded(self.source.read(place).expand(3, -1, -1).numpy(), ""))

    def shown(self, place: int, alt: str) -> Shown:
        """The picture at a position of the set."""
        found = self.address(place)
        return Shown(found.uri, alt, found.side, found.small)


def encoded(pixels: UInt8[np.ndarray, "3 H W"], alt: str) -> Shown:
    """The middle square of a picture as WebP inside a data address; small ones are enlarged without smoothing."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    image = image.crop((left, top, left + side, top + side))
    if side > SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Shown(f"data:image/webp;base64,{data}", alt, image.width, side <= SIDE)


def short(name: str) -> str:
    """What identifies an image, without the folders above its own: the page may be handed on."""
    return printable("/".join(name.replace("\\", "/").split("/")[-2:]))
