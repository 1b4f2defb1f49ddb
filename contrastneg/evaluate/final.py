"""The scores that end a run: the encoder beside raw pixels and the untrained encoder, and pictures of its neighbours."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from contrastneg import distributed
from contrastneg.config import Pretrain
from contrastneg.data.imageset import ImageSet
from contrastneg.data.module import PretrainData
from contrastneg.data.subsets import in_turns
from contrastneg.data.views import eval_crop
from contrastneg.evaluate.features import Features, encode_set, extract
from contrastneg.evaluate.knn import knn_score
from contrastneg.evaluate.linear import linear_score
from contrastneg.randomness import generator
from contrastneg.report.records import shortfall
from contrastneg.writing import whole_file

PIXEL_SIDE = 32  # larger pictures are shrunk to this side for the raw-pixel baseline
MOST_FITTED = 100_000  # images that a linear fit learns from: 1.2 GB of raw pixels
MOST_SEARCHED = 1000  # images among which neighbours are looked for where nothing is labelled
VIEW_PAIRS = 12
NEIGHBOUR_ROWS = 12
NEIGHBOURS = 6


@dataclass(frozen=True)
class Pictures:
    """Arrays for the page: pairs of views, and test images with their nearest training images."""

    arrays: dict[str, np.ndarray]

    def save(self, path: Path) -> None:
        """Write ``pictures.npz`` atomically."""
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **self.arrays)  # type: ignore[arg-type]


class RawPixels(nn.Module):
    """Pixels as features: shrunk to at most 32 x 32 by averaging, flattened."""

    def forward(self, images: Float[Tensor, "B C S S"]) -> Float[Tensor, "B F"]:
        """(B, C, S, S) to (B, C x s x s)."""
        side = min(PIXEL_SIDE, images.shape[-1])
        return F.adaptive_avg_pool2d(images.float(), side).flatten(1)


def final_scores(
    config: Pretrain,
    trained: nn.Module,
    untrained: nn.Module,
    data: PretrainData,
    device: torch.device,
    dtype: torch.dtype,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[dict[str, Any]], list[str], Pictures]:
    """kNN and linear scores of the pretrained encoder, the same encoder untrained, and raw pixels centred on their mean.

    Args:
        config: Settings of the run.
        trained: The encoder after pretraining.
        untrained: The same encoder before its first step.
        data: Bank and queries must be there.
        device: Where features are computed; both encoders are moved there.
        dtype: Arithmetic of the encoder.
        say: Is told what is being scored, before it is.

    Returns:
        One row per kind of features; what a reader of them must know; and the pictures of the page.
    """
    encoders = {
        "pretrained encoder": trained,
        "published weights" if starts_trained(config) else "untrained encoder": untrained,
        "raw pixels": RawPixels(),
    }
    fitted, notes = bank_of_fits(data.labels("train"), config.seed)
    rows, seen = [], None
    for name, encoder in encoders.items():
        only = fitted if name == "raw pixels" else None
        answering, asked = len(data.labels("train") if only is None else only), len(data.labels("test"))
        say(f"scoring the {name}: kNN and linear scores learn from {answering:,} images and are tested on {asked:,}")
        encoder.to(device)
        bank = extract(encoder, data, "train", device, dtype, only)
        queries = extract(encoder, data, "test", device, dtype)
        if seen is None:
            seen = pictures(data, bank, queries, seed=config.seed)
            notes += unread_notes(data, bank, queries)
        if name == "raw pixels":
            centre(bank, queries)
        row, told = scores(name, bank, queries, fitted, data.num_classes, config)
        rows.append({"features": name, **row})
        notes += [note for note in told if note not in notes]
        del bank, queries  # before the next ones are made: they may take gigabytes
    assert seen is not None
    return rows, [*notes, *filter(None, [shortfall(rows)])], seen


def bank_of_fits(labels: Int64[Tensor, " N"], seed: int) -> tuple[Int64[Tensor, " n"], list[str]]:
    """Positions of the labelled images that linear fits and raw pixels are limited to, and a note where these are not all."""
    labelled = (labels >= 0).nonzero().flatten()
    if len(labelled) <= MOST_FITTED:
        return labelled, []
    order = labelled[torch.randperm(len(labelled), generator=generator(seed, "bank_of_fits"))]
    note = (
        f"linear fits learn from {MOST_FITTED:,} of the {len(labelled):,} labelled training images, drawn with as many of "
        "each class as possible; the neighbours of raw pixels are searched among the same"
    )
    return in_turns(order, labels)[:MOST_FITTED].sort().values, [note]


def unread_notes(data: PretrainData, bank: Features, queries: Features) -> list[str]:
    """How many images have no features because they could not be read."""
    counts = (("training images", data.labels("train"), bank), ("test images", data.labels("test"), queries))
    return [
        f"{len(labels) - len(found.x):,} of {len(labels):,} {name} could not be read and are left out"
        for name, labels, found in counts
        if len(found.x) < len(labels)
    ]


def starts_trained(config: Pretrain) -> bool:
    """Whether the encoder begins with published weights."""
    return bool(config.method.hparams["backbone"]["pretrained"])


def centre(bank: Features, queries: Features) -> None:
    """Subtract the mean of the bank from both sets, in place: cosines of raw pixels are otherwise all near 1."""
    mean = bank.x.mean(dim=0)
    bank.x.sub_(mean)
    queries.x.sub_(mean)


def scores(
    name: str, bank: Features, queries: Features, fitted: Int64[Tensor, " n"], num_classes: int, config: Pretrain
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """kNN and linear scores of one kind of features, in percent to a thousandth, and what must be known about them.

    All ranks share the search for neighbours; the linear fit, which cannot be shared, is the first one's alone.
    """
    knn = knn_score(
        bank,
        queries,
        k=config.knn_k,
        temperature=config.knn_temperature,
        num_classes=num_classes,
        across_ranks=True,
    )
    linear = distributed.from_first(
        f"linear score of the {name}",
        lambda: linear_score(bank.only(fitted), queries, num_classes=num_classes, seed=config.seed),
    )
    row = {
        "knn_top1": round(100 * knn.top1, 3),
        **({} if knn.top5 is None else {"knn_top5": round(100 * knn.top5, 3)}),
        "knn_k": knn.k,
        "knn_temperature": knn.temperature,
        "linear_top1": round(100 * linear.top1, 3),
        "linear_regularisation": linear.regularisation,
    }
    return row, (*knn.notes, *linear.notes)


def pictures(data: PretrainData, bank: Features, queries: Features, seed: int) -> Pictures:
    """Pairs of views of some training images; some test images with their nearest neighbours in the bank."""
    rows = torch.randperm(len(queries.x), generator=generator(seed, "pictures"))[:NEIGHBOUR_ROWS]
    lengths = torch.linalg.vector_norm(bank.x, dim=1).clamp(min=1e-12)  # a normalised copy would take much memory
    similarity = F.normalize(queries.x[rows], dim=1) @ bank.x.T / lengths
    nearest = similarity.topk(min(NEIGHBOURS, len(bank.x)), dim=1)
    train, test = data.sets["train"], data.sets["test"]
    assert train is not None and test is not None and bank.position is not None and queries.position is not None
    return Pictures(
        {
            **view_pairs(data),
            "neighbour_query": shown(test, data, queries.position[rows]).numpy(),
            "neighbour": shown_rows(train, data, bank.position[nearest.indices]),
            "neighbour_similarity": nearest.values.numpy(),
            "query_label": queries.labels[rows].numpy(),
            "neighbour_label": bank.labels[nearest.indices].numpy(),
            "class_names": np.array(data.classes),
        }
    )


def pictures_without_labels(
    encoder: nn.Module, data: PretrainData, device: torch.device, dtype: torch.dtype, seed: int
) -> Pictures:
    """Pairs of views, and some of the pretraining images with their nearest among at most ``MOST_SEARCHED`` others.

    Args:
        encoder: The encoder after pretraining; it is moved to the device.
        data: Its pretraining images are shown; labels are not looked at.
        device: Where features are computed.
        dtype: Arithmetic of the encoder.
        seed: Draws the images.
    """
    source = data.sets["pretrain"]
    assert source is not None
    drawn = torch.randperm(len(source), generator=generator(seed, "pictures"))[: MOST_SEARCHED + NEIGHBOUR_ROWS]
    x, position = encode_set(encoder.to(device), data, "pretrain", device, dtype, drawn.sort().values)
    unit = F.normalize(x, dim=1)
    rows = torch.randperm(len(x), generator=generator(seed, "pictures", "rows"))[:NEIGHBOUR_ROWS]
    similarity = unit[rows] @ unit.T
    similarity[torch.arange(len(rows)), rows] = -torch.inf  # an image is no neighbour of itself
    nearest = similarity.topk(max(0, min(NEIGHBOURS, len(x) - 1)), dim=1)
    if nearest.indices.numel() == 0:
        return Pictures(view_pairs(data))
    return Pictures(
        {
            **view_pairs(data),
            "neighbour_query": shown(source, data, position[rows]).numpy(),
            "neighbour": shown_rows(source, data, position[nearest.indices]),
            "neighbour_similarity": nearest.values.numpy(),
            "searched": np.array(len(x) - 1),
        }
    )


def view_pairs(data: PretrainData) -> dict[str, np.ndarray]:
    """Both views of some pretraining images."""
    view1, view2 = data.example_views(VIEW_PAIRS)
    return {"view1": view1.numpy(), "view2": view2.numpy()}


def shown_rows(source: ImageSet, data: PretrainData, positions: Int64[Tensor, "n k"]) -> UInt8[np.ndarray, "n k 3 S S"]:
    """The pictures of each row's neighbours."""
    return torch.stack([shown(source, data, row) for row in positions]).numpy()


def shown(source: ImageSet, data: PretrainData, positions: Tensor) -> UInt8[Tensor, "n 3 S S"]:
    """Pictures as the evaluation sees them, before normalisation."""
    images = [eval_crop(source.read(position), data.views) for position in positions.tolist()]
    return torch.stack(images).expand(-1, 3, -1, -1)
