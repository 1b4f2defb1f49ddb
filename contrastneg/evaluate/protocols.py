"""The protocols on cached features: each takes features and settings and writes its numbers on a sheet."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from contrastneg.data.module import PretrainData, StreamedCrops
from contrastneg.data.views import finish_views
from contrastneg.evaluate import geometry
from contrastneg.evaluate.clustering import clustering_score
from contrastneg.evaluate.features import HALF, Features, evaluating, finite_rows
from contrastneg.evaluate.finetune import label_subset
from contrastneg.evaluate.heads import heads_score
from contrastneg.evaluate.intervals import interval_of_mean
from contrastneg.evaluate.knn import RANKED, knn_grid
from contrastneg.evaluate.linear import linear_score
from contrastneg.evaluate.results import Note, Score
from contrastneg.evaluate.retrieval import retrieval_score
from contrastneg.losses.geometry import alignment, uniformity
from contrastneg.randomness import generator

KNN_K, KNN_TEMPERATURE = 20, 0.07  # the headline; the same as while pretraining
KS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURES = (0.02, 0.07, 0.1, 0.5)
LIDAR_IMAGES, LIDAR_VIEWS = 500, 10
UNIFORMITY_IMAGES = 5_000  # their pairs are enough: 12 million

Cached = Literal["knn", "linear", "logistic", "few_labels", "retrieval", "clustering", "geometry"]


@dataclass
class Sheet:
    """The numbers of one kind of features as they come, with what a paired comparison and a reader need."""

    features: str
    """What is scored."""
    seed: int
    """Of the bootstrap."""
    scores: list[Score] = field(default_factory=list)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    group: Int64[Tensor, " M"] | None = None
    """Of each labelled test image, where images of one origin are resampled together."""

    def share(
        self,
        protocol: str,
        metric: str,
        right: Shaped[Tensor, " M"],
        headline: bool = True,
        asked: Int64[Tensor, " M"] | None = None,
        **settings: Any,
    ) -> None:
        """Enter a mean over test images, in percent, with its interval.

        Args:
            protocol: How it was taken.
            metric: What is counted.
            right: One value in [0, 1] per test image.
            headline: Whether the table shows it.
            asked: Which of the labelled test images; None: all.
            settings: What it depends on.
        """
        values = right.double()
        group = self.group if self.group is None or asked is None else self.group[asked]
        if group is not None and len(group) != len(values):
            lost = f"{len(group) - len(values)} test images could not be read"
            self.note(protocol, (f"{lost}: intervals resample single images, not those of one origin together",))
            group = None
        low, high = (round(100 * end, 4) for end in interval_of_mean(values, self.seed, group))
        mean = round(100 * float(values.mean()), 4)
        score = Score(self.features, protocol, metric, mean, len(values), "%", low, high, settings, headline)
        self.scores.append(score)
        if headline:
            self.values[f"{self.features}/{score.key}"] = right.numpy()

    def number(self, protocol: str, metric: str, value: float, n: int, unit: str = "", **settings: Any) -> None:
        """Enter a number that is no mean over test images: resampling them would change what it measures."""
        self.scores.append(Score(self.features, protocol, metric, round(value, 4), n, unit, settings=settings))

    def note(self, protocol: str, lines: tuple[str, ...]) -> None:
        """Enter what a reader must know of a protocol."""
        self.notes.extend(Note(line, self.features, protocol) for line in lines)

    @property
    def taken(self) -> set[tuple[str, str]]:
        """Features and protocols that have numbers here, or a note that says why not."""
        return {(each.features, each.protocol) for each in (*self.scores, *self.notes)}


@dataclass(frozen=True)
class Judged:
    """Features that are judged, and what the protocols need beside them."""

    bank: Features
    """Images that answer."""
    queries: Features
    """Images that are asked about."""
    num_classes: int
    """Number of classes; 0 where nothing is labelled."""
    seed: int
    """Of everything that is drawn."""
    label_shares: tuple[float, ...]
    """Percent of the labels that ``few_labels`` learns from."""
    views: Float[Tensor, "N Q F"] | None
    """Features of Q augmented views of N images; None where geometry is not asked for, and for raw pixels."""
    group: Int64[Tensor, " M"] | None = None
    """Of each test image, where retrieval leaves out images of the same origin; None: no two are of one."""


def knn(judged: Judged, sheet: Sheet) -> None:
    """Weighted vote of the nearest labelled images, for every k and temperature from one search; k = 20, T = 0.07 is shown."""
    known, asked = judged.bank.labels >= 0, judged.queries.labels >= 0
    labels = judged.queries.labels[asked]
    answers = knn_grid(
        judged.bank.x[known],
        judged.bank.labels[known],
        judged.queries.x[asked],
        ks=KS,
        temperatures=TEMPERATURES,
        num_classes=judged.num_classes,
    )
    voters = int(known.sum())
    for (k, temperature), found in answers.items():
        if k > voters and k != KNN_K:
            continue
        shown = (k, temperature) == (KNN_K, KNN_TEMPERATURE)
        right = found == labels[:, None]
        settings = {"k": min(k, voters), "temperature": temperature}
        sheet.share("knn", "top-1", right[:, 0], headline=shown, **settings)
        if judged.num_classes > RANKED:
            sheet.share("knn", "top-5", right.any(dim=1), headline=shown, **settings)
    for name, x in (("training images", judged.bank.x), ("test images", judged.queries.x)):
        if lost := int((~finite_rows(x)).sum()):
            sheet.note("knn", (f"{lost} of {len(x)} features of the {name} are not finite",))


def linear(judged: Judged, sheet: Sheet) -> None:
    """Linear heads of a grid of learning rates and weight decays, chosen on a fifth of the bank; the queries are read once."""
    score = heads_score(judged.bank, judged.queries, num_classes=judged.num_classes, seed=judged.seed)
    sheet.share("linear", "top-1", score.right, lr=score.lr, weight_decay=score.weight_decay, heads=len(score.grid))
    if score.top5 is not None:
        n, settings = len(score.right), {"lr": score.lr, "weight_decay": score.weight_decay}
        sheet.number("linear", "top-5", 100 * score.top5, n, "%", **settings)
    sheet.note("linear", score.notes)


def logistic(judged: Judged, sheet: Sheet) -> None:
    """Multinomial logistic regression by L-BFGS, its regularisation chosen on a fifth of the bank: a check of ``linear``."""
    score = linear_score(judged.bank, judged.queries, num_classes=judged.num_classes, seed=judged.seed)
    sheet.share("logistic", "top-1", score.right, regularisation=score.regularisation)
    sheet.note("logistic", score.notes)


def few_labels(judged: Judged, sheet: Sheet) -> None:
    """``logistic`` on class-balanced parts of the labels."""
    for share in judged.label_shares:
        rows = label_subset(judged.bank.labels, share / 100, judged.seed)
        part = Features(judged.bank.x[rows], judged.bank.labels[rows])
        score = linear_score(part, judged.queries, num_classes=judged.num_classes, seed=judged.seed)
        settings = {"labels": len(rows), "regularisation": score.regularisation}
        protocol = f"few_labels {share:g} %"
        sheet.share(protocol, "top-1", score.right, **settings)
        sheet.note(protocol, score.notes)
        if len(rows) > 2 * share / 100 * int((judged.bank.labels >= 0).sum()):
            sheet.note(protocol, (f"one of each class are {len(rows)} labels, which is more than that",))


def retrieval(judged: Judged, sheet: Sheet) -> None:
    """Recall@1/5/10 and MAP@R among the queries alone."""
    try:
        score = retrieval_score(judged.queries, group=judged.group)
    except ValueError as error:
        sheet.note("retrieval", (f"left out, {error}",))
        return
    known = (judged.queries.labels >= 0).cumsum(dim=0)[score.asked] - 1  # place among the labelled ones
    for place, k in enumerate(score.recall):
        sheet.share("retrieval", f"Recall@{k}", score.found[:, place], asked=known)
    sheet.share("retrieval", "MAP@R", score.precision, asked=known)
    for key in [key for key in sheet.values if key.startswith(f"{sheet.features}/retrieval ")]:
        by_image = np.full(int((judged.queries.labels >= 0).sum()), np.nan)  # which are asked depends on the features
        by_image[known.numpy()] = sheet.values[key]
        sheet.values[key] = by_image
    sheet.note("retrieval", score.notes)


def clustering(judged: Judged, sheet: Sheet) -> None:
    """k-means of the queries with as many clusters as classes, against the labels."""
    try:
        score = clustering_score(judged.queries, seed=judged.seed)
    except ValueError as error:
        sheet.note("clustering", (f"left out, {error}",))
        return
    n = int((judged.queries.labels >= 0).sum())
    for metric, value in (("accuracy", score.accuracy), ("NMI", score.nmi), ("ARI", score.ari)):
        sheet.number("clustering", metric, 100 * value, n, "%", clusters=score.clusters)
    sheet.note("clustering", score.notes)


def geometry_scores(judged: Judged, sheet: Sheet) -> None:
    """What needs no labels: RankMe, spectrum, alpha-ReQ, uniformity, alignment and LiDAR; and tolerance, which does."""
    x = judged.queries.x
    finite = finite_rows(x)
    if not finite.all():
        sheet.note("geometry", (f"{int((~finite).sum())} of {len(x)} features are not finite and left out",))
        x = x[finite]
    drawn = torch.randperm(len(x), generator=generator(judged.seed, "uniformity"))[:UNIFORMITY_IMAGES]
    unit, n = F.normalize(x[drawn], dim=1), len(x)
    eigenvalues = geometry.spectrum(x)
    numbers: dict[str, Callable[[], float]] = {
        "RankMe": lambda: geometry.rankme(x),
        "alpha-ReQ": lambda: geometry.decay_exponent(eigenvalues),
        "uniformity": lambda: float(uniformity(unit)),
        "tolerance": lambda: geometry.tolerance(x, judged.queries.labels[finite]),
        "axes for 90 % of variance": lambda: float((eigenvalues.cumsum(0) < 0.9 * eigenvalues.sum()).sum() + 1),
    }
    for metric, measure in numbers.items():
        try:
            sheet.number("geometry", metric, measure(), len(unit) if metric == "uniformity" else n)
        except ValueError as error:
            sheet.note("geometry", (f"{metric} is left out, {error}",))
    sheet.values[f"{sheet.features}/spectrum"] = eigenvalues.numpy()
    if judged.views is not None:
        images, per_image, _ = judged.views.shape
        pairs = F.normalize(judged.views, dim=2)
        aligned = float(alignment(pairs[:, 0], pairs[:, 1]).mean())
        sheet.number("geometry", "alignment", aligned, images)
        sheet.number("geometry", "LiDAR", geometry.lidar(judged.views), images, views=per_image)


CACHED: dict[Cached, Callable[[Judged, Sheet], None]] = {
    "knn": knn,
    "linear": linear,
    "logistic": logistic,
    "few_labels": few_labels,
    "retrieval": retrieval,
    "clustering": clustering,
    "geometry": geometry_scores,
}
WITHOUT_LABELS = ("geometry",)


@torch.no_grad()
def augmented_views(
    encoders: Mapping[str, nn.Module],
    data: PretrainData,
    split: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    images: int = LIDAR_IMAGES,
    views: int = LIDAR_VIEWS,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Features (N, Q, F) of Q views of some images under the pretraining recipe, on the CPU; views are made once for all encoders.

    Args:
        encoders: (B, C, S, S) to (B, F) each, by name.
        data: Gives images and the recipe.
        split: "train" or "test".
        device: Where the encoders are.
        dtype: Their arithmetic.
        images: At most so many, drawn by the seed.
        views: Of each, an even number.
        seed: Which images and views.
    """
    source = data.sets[split]
    assert source is not None
    drawn = torch.randperm(len(source), generator=generator(seed, "augmented views"))[:images].sort().values
    crops_of = StreamedCrops(source, data.views, seed, data.skip_bad_images, pairs=views // 2)
    rows: dict[str, list[Tensor]] = {name: [] for name in encoders}
    with ExitStack() as states, torch.autocast(device.type, dtype=dtype, enabled=dtype in HALF):
        for encoder in encoders.values():
            states.enter_context(evaluating(encoder))
        for number, part in enumerate(drawn.split(64)):
            crops = torch.stack([crops_of[0, position][1] for position in part.tolist()]).to(device)
            made = []
            for pair in range(views // 2):
                draws = generator(seed, "augmented views", number, pair)
                made += finish_views(crops[:, 2 * pair : 2 * pair + 2], data.views, draws)
            stacked = torch.stack(made, dim=1).flatten(0, 1).contiguous(memory_format=data.memory_format)
            for name, encoder in encoders.items():
                rows[name].append(encoder(stacked).float().view(len(part), views, -1).cpu())
    return {name: torch.cat(parts) for name, parts in rows.items()}
