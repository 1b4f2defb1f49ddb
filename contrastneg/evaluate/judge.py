"""From an address to scores: the encoder, the sets, cached features, every protocol, results on the disk.

``evaluate`` reads top to bottom. Several processes share the encoding of images; the scores are taken by the first one
alone, on the features of all, so their number changes no digit.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor, nn

from contrastneg import distributed
from contrastneg.data.address import short_name
from contrastneg.data.module import PretrainData
from contrastneg.data.opening import LabelledData, open_labelled
from contrastneg.evaluate.augmented import augmented_score, linear_recipe
from contrastneg.evaluate.cache import FeatureCache, features_of, fingerprint, labels_of, weights_of
from contrastneg.evaluate.features import Features
from contrastneg.evaluate.final import RawPixels, bank_of_fits
from contrastneg.evaluate.finetune import finetune_recipe, finetune_score, label_subset
from contrastneg.evaluate.protocols import CACHED, WITHOUT_LABELS, Judged, Sheet, augmented_views
from contrastneg.evaluate.results import ENCODER, PIXELS, RANDOM, SUMMARY, Evaluation, read_evaluation, write_evaluation
from contrastneg.evaluate.settings import Evaluate
from contrastneg.subjects import Subject, open_subject
from contrastneg.writing import write_text

TRAINED = ("augmented", "finetune")  # protocols that see images, not cached features
TRANSFERRED = ("knn", "linear", "logistic")
SAME = (
    "weights",
    "layer",
    "bank_fingerprint",
    "queries_fingerprint",
    "size",
    "mean",
    "std",
    "precision",
    "half",
    "seed",
)
SAME_IN_WORDS = {
    "bank_fingerprint": "training images",
    "queries_fingerprint": "test images",
    "half": "rounding of features",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Place:
    """Where and in what arithmetic encoders compute."""

    device: torch.device
    dtype: torch.dtype


def evaluate(config: Evaluate, say: Callable[[str], None] = lambda line: None) -> list[tuple[Path, Evaluation]]:
    """Judge an encoder on a set, and on those that it is transferred to.

    Args:
        config: All settings.
        say: Is told what is being done, before it is.

    Returns:
        For each set its folder of results and what is in it.

    Raises:
        ValueError: The encoder or a set cannot be opened, the settings do not fit them, or the folder holds something else.
    """
    subject = open_subject(
        config.encoder,
        backbone=config.backbone,
        prefix=config.prefix,
        random_init=config.random_init,
        size=config.size,
        mean=config.mean,
        std=config.std,
        seed=config.seed,
    )
    subject.encoder(config.layer)  # refuses a layer that is not there
    address = config.data or subject.data
    if address is None:
        raise ValueError(f"no data: {config.encoder} does not say what it was scored on; name a labelled set after it")
    with process_group(config.accelerator):
        place = Place(device_of(config.accelerator), DTYPES[config.precision])
        found = [judge(config, subject, address, config.test, config.asked, place, say)]
        for other in config.transfer:
            say(f"transfer to {other}")
            found.append(judge(config, subject, other, None, TRANSFERRED, place, say))
    return found


def judge(
    config: Evaluate,
    subject: Subject,
    address: str,
    test: str | None,
    protocols: tuple[str, ...],
    place: Place,
    say: Callable[[str], None],
) -> tuple[Path, Evaluation]:
    """Scores on one set."""
    opened = open_labelled(
        config,
        address,
        subject.in_channels,
        test=test,
        most=config.limit_images,
        most_asked=config.limit_test_images,
    )
    unlabelled = [name for name in protocols if name not in WITHOUT_LABELS and not opened.labelled]
    if len(unlabelled) == len(protocols):
        raise ValueError(f"{address} has no labels, which {', '.join(unlabelled)} need: give a labelled set")
    data = PretrainData(
        opened.bank,
        subject.views,
        opened.bank,
        opened.queries,
        batch_size=2,
        loading=opened.loading,
        workers=config.workers,
        seed=config.seed,
        channels_last=True,
        skip_bad_images=config.on_bad_image == "skip",
    )
    context = context_of(config, subject, address, test, opened)
    folder = folder_of(config, subject, opened)
    earlier = earlier_scores(folder, context, config.overwrite)
    run = Judging(config, data, opened.labelled, context, folder, place, say)
    possible = [name for name in protocols if name not in unlabelled]
    sheets = [run.sheet(name, encoder, possible) for name, encoder in encoders_of(config, subject).items()]
    evaluation = merged(earlier, sheets, context, [*subject.notes, *opened.notes, *run.notes])
    if distributed.is_first_process():
        write_evaluation(folder, evaluation)
    return folder, evaluation


@dataclass
class Judging:
    """One set, on which encoders are judged one after another."""

    config: Evaluate
    data: PretrainData
    labelled: bool
    context: dict[str, Any]
    folder: Path
    place: Place
    say: Callable[[str], None]
    notes: list[str] = field(default_factory=list)

    def sheet(self, name: str, encoder: nn.Module, protocols: list[str]) -> Sheet:
        """All numbers of one kind of features."""
        encoder = encoder.to(self.place.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        cached = [protocol for protocol in protocols if protocol not in TRAINED]
        sheet = Sheet(name, self.config.seed)
        if cached:
            judged = self.pixels(encoder) if name == PIXELS else self.judged(name, encoder, "geometry" in cached)
            sheet = distributed.from_first(f"{self.folder} {name}", lambda: self.cached_scores(name, cached, judged))
        for protocol in protocols:
            if protocol in TRAINED and name != PIXELS:  # pixels have no weights to train, nor a place for crops
                self.say(f"{name}: {protocol}")
                (self.augmented if protocol == "augmented" else self.finetuned)(encoder, sheet)
        return sheet

    def judged(self, name: str, encoder: nn.Module, with_views: bool) -> Judged:
        """Features of both sets, and of augmented views where geometry asks for them."""
        cache = FeatureCache(self.folder / "features", self.config.half, self.config.cache)
        self.say(f"{name}: features of {self.context['bank']:,} and {self.context['queries']:,} images")
        device, dtype = self.place.device, self.place.dtype
        bank = cache.features(encoder, self.data, "train", self.context["bank_fingerprint"], device, dtype)
        queries = cache.features(encoder, self.data, "test", self.context["queries_fingerprint"], device, dtype)
        views = None
        if with_views:
            views = augmented_views(encoder, self.data, "test", device, dtype, seed=self.config.seed)
        return self.with_settings(bank, queries, views)

    def pixels(self, encoder: nn.Module) -> Judged:
        """Raw pixels around the mean of the bank; of a large bank a part, as nothing else can be held. Never on the disk."""
        fitted, notes = bank_of_fits(labels_of(self.data, "train"), self.config.seed) if self.labelled else (None, [])
        self.notes += notes
        device, dtype = self.place.device, self.place.dtype
        bank = features_of(encoder, self.data, "train", device, dtype, fitted)
        queries = features_of(encoder, self.data, "test", device, dtype)
        mean = bank.x.mean(dim=0)
        for part in (bank, queries):
            part.x.sub_(mean)
        return self.with_settings(bank, queries, None)

    def with_settings(self, bank: Features, queries: Features, views: Tensor | None) -> Judged:
        """Features with what the protocols need beside them."""
        classes = self.data.num_classes if self.labelled else 0
        return Judged(bank, queries, classes, self.config.seed, self.config.label_shares, views)

    def cached_scores(self, name: str, protocols: list[str], judged: Judged) -> Sheet:
        """The numbers that need features only."""
        sheet = Sheet(name, self.config.seed)
        for protocol in protocols:
            self.say(f"{name}: {protocol}")
            CACHED[protocol](judged, sheet)  # type: ignore[index]
        return sheet

    def augmented(self, encoder: nn.Module, sheet: Sheet) -> None:
        """The published linear protocol: crops and flips in every epoch."""
        config = self.config
        recipe = linear_recipe(config.preset, config.augmented_epochs)
        score = augmented_score(
            encoder, self.data, recipe, seed=config.seed, device=self.place.device, dtype=self.place.dtype
        )
        sheet.share(
            "linear, augmented",
            "top-1",
            score.right,
            preset=config.preset,
            lr=score.lr,
            epochs=score.epochs,
            batch_size=score.batch_size,
        )
        sheet.note("augmented", score.notes)

    def finetuned(self, encoder: nn.Module, sheet: Sheet) -> None:
        """Fine-tuning of the whole encoder on parts of the labels."""
        config = self.config
        for share in config.label_shares:
            rows = label_subset(self.data.labels("train"), share / 100, config.seed)
            self.store(share, rows)
            recipe = finetune_recipe(share / 100)
            if config.finetune_epochs is not None:
                recipe = replace(recipe, epochs=config.finetune_epochs)
            score = finetune_score(
                encoder, self.data, rows, recipe, seed=config.seed, device=self.place.device, dtype=self.place.dtype
            )
            sheet.share(
                f"fine-tuned, {share:g} % of labels",
                "top-1",
                score.right,
                labels=score.images,
                epochs=score.epochs,
                batch_size=score.batch_size,
                encoder_lr=score.encoder_lr,
                classifier_lr=score.classifier_lr,
            )
            sheet.note(f"fine-tuned, {share:g} %", score.notes)

    def store(self, share: float, rows: Int64[Tensor, " n"]) -> None:
        """Write down which images a protocol learned from, by stable index."""
        bank = self.data.sets["train"]
        assert bank is not None
        if distributed.is_first_process():
            self.folder.mkdir(parents=True, exist_ok=True)
            text = "".join(f"{index}\n" for index in bank.image_id[rows].tolist())
            write_text(self.folder / f"labels_{share:g}_percent.txt", text)


def encoders_of(config: Evaluate, subject: Subject) -> dict[str, nn.Module]:
    """What is judged, by name."""
    encoders = {ENCODER: subject.encoder(config.layer)}
    if config.baselines:
        if not config.random_init:
            encoders[RANDOM] = subject.untrained(config.seed)
        encoders[PIXELS] = RawPixels()
    return encoders


def context_of(
    config: Evaluate, subject: Subject, address: str, test: str | None, opened: LabelledData
) -> dict[str, Any]:
    """What all numbers of an evaluation share."""
    return {
        "encoder": config.encoder,
        "weights": weights_of(subject.encoder(config.layer)),
        "layer": config.layer,
        "size": subject.views.size,
        "mean": list(subject.views.mean),
        "std": list(subject.views.std),
        "data": address,
        "test": test or address,
        "bank": len(opened.bank),
        "queries": len(opened.queries),
        "bank_fingerprint": fingerprint(opened.bank),
        "queries_fingerprint": fingerprint(opened.queries),
        "split": opened.queries.split,
        "classes": len(opened.bank.classes or []),
        "precision": config.precision,
        "half": config.half,
        "seed": config.seed,
        "versions": {name: version(name) for name in ("contrastneg", "torch", "torchvision", "timm")},
    }


def folder_of(config: Evaluate, subject: Subject, opened: LabelledData) -> Path:
    """Where results go; several sets are folders within the one that was asked for."""
    set_name = short_name(opened.bank.name)
    marks = ["projector"] * (config.layer == "projector") + ["random"] * config.random_init
    if config.out is not None:
        return config.out / set_name if config.transfer else config.out
    if subject.run is not None:
        whole = config.encoder.rstrip("/") == str(subject.run) or config.encoder.endswith("encoder.safetensors")
        marks = ([] if whole else [Path(config.encoder).stem]) + marks
        return subject.run / "evaluation" / "-".join([set_name, *marks])
    return Path("evaluations") / "-".join([f"{subject.name}-on-{set_name}", *marks])


def earlier_scores(folder: Path, context: dict[str, Any], overwrite: bool) -> Evaluation | None:
    """Scores in a folder that new ones can be added to; None where there are none, or they are to be replaced.

    Raises:
        ValueError: The folder holds scores of something else.
    """
    if overwrite or not (folder / SUMMARY).exists():
        return None
    found = read_evaluation(folder)
    differing = [SAME_IN_WORDS.get(name, name) for name in SAME if found.context.get(name) != context[name]]
    if differing:
        raise ValueError(
            f"{folder} holds an evaluation with other {', '.join(differing)}: give --out for this one, or --overwrite"
        )
    return found


def merged(earlier: Evaluation | None, sheets: list[Sheet], context: dict[str, Any], notes: list[str]) -> Evaluation:
    """New scores, after those of an earlier evaluation that were not taken again."""
    scores = [score for sheet in sheets for score in sheet.scores]
    values = {name: row for sheet in sheets for name, row in sheet.values.items()}
    notes = [*notes, *(note for sheet in sheets for note in sheet.notes)]
    if earlier is not None:
        taken = {(score.features, score.protocol) for score in scores}
        scores = [score for score in earlier.scores if (score.features, score.protocol) not in taken] + scores
        values = earlier.values | values
        notes = earlier.notes + notes
    return Evaluation(context, scores, list(dict.fromkeys(notes)), values)


def device_of(accelerator: str) -> torch.device:
    """The device of this process.

    Args:
        accelerator: auto, cpu or gpu.

    Raises:
        ValueError: A GPU is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if accelerator == "gpu" and not there:
        raise ValueError("accelerator is gpu but this machine has none: give --accelerator cpu or auto")
    if accelerator == "cpu" or not there:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(accelerator: str) -> Iterator[None]:
    """The processes of a ``torchrun`` launch together; nothing where there is one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    on_gpus = accelerator != "cpu" and torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
