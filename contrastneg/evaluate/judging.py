"""Encoders judged on one set, one after another: their features, and every protocol's numbers on a sheet for each."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from contrastneg import distributed
from contrastneg.data.module import PretrainData
from contrastneg.evaluate.augmented import augmented_score, linear_recipe
from contrastneg.evaluate.cache import FeatureCache, features_of, labels_of
from contrastneg.evaluate.features import Features, Progress
from contrastneg.evaluate.final import PIXEL_SIDE, bank_of_fits
from contrastneg.evaluate.finetune import finetune_recipe, finetune_score, label_subset
from contrastneg.evaluate.place import Place
from contrastneg.evaluate.protocols import CACHED, Judged, Sheet, augmented_views
from contrastneg.evaluate.results import PIXELS
from contrastneg.evaluate.settings import Evaluate
from contrastneg.writing import write_text

TRAINED = ("augmented", "finetune")  # protocols that see images, not cached features


@dataclass
class Judging:
    """One set, on which encoders are judged one after another."""

    config: Evaluate
    encoders: dict[str, nn.Module]
    """What is judged, by name."""
    data: PretrainData
    labelled: bool
    context: dict[str, Any]
    folder: Path
    place: Place
    say: Callable[[str], None]
    progress: Progress
    """Told how much of a long step is done."""
    group: Int64[Tensor, " M"] | None = None
    """Of each test image, where some are of one origin."""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for encoder in self.encoders.values():
            encoder.to(self.place.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def sheet(self, name: str, protocols: list[str]) -> Sheet:
        """All numbers of one kind of features."""
        encoder = self.encoders[name]
        cached = [protocol for protocol in protocols if protocol not in TRAINED]
        labelled = labels_of(self.data, "test") >= 0
        sheet = Sheet(name, self.config.seed, group=None if self.group is None else self.group[labelled])
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
        keys = {"train": self.context["bank_fingerprint"], "test": self.context["queries_fingerprint"]}
        bank, queries = (
            cache.features(encoder, self.data, split, key, device, dtype, self.progress) for split, key in keys.items()
        )
        if cache.found:
            which = "both" if cache.found == len(keys) else f"{cache.found} of {len(keys)}"
            self.say(f"{name}: {which} found in {cache.folder} (--cache false computes anew)")
        return self.with_settings(bank, queries, self.views[name] if with_views else None)

    @cached_property
    def views(self) -> dict[str, Tensor]:
        """Features of augmented views by every encoder."""
        seen = {name: encoder for name, encoder in self.encoders.items() if name != PIXELS}
        return augmented_views(seen, self.data, "test", self.place.device, self.place.dtype, seed=self.config.seed)

    def pixels(self, encoder: nn.Module) -> Judged:
        """Raw pixels around the mean of the bank; of a large bank a part, as nothing else can be held. Never on the disk."""
        fitted, notes = bank_of_fits(labels_of(self.data, "train"), self.config.seed) if self.labelled else (None, [])
        self.notes += notes
        device, dtype = self.place.device, self.place.dtype
        self.say(f"{PIXELS}: shrunk to at most {PIXEL_SIDE} x {PIXEL_SIDE}, less their mean")
        bank = features_of(encoder, self.data, "train", device, dtype, fitted)
        queries = features_of(encoder, self.data, "test", device, dtype)
        mean = bank.x.mean(dim=0)
        for part in (bank, queries):
            part.x.sub_(mean)
        return self.with_settings(bank, queries, None)

    def with_settings(self, bank: Features, queries: Features, views: Tensor | None) -> Judged:
        """Features with what the protocols need beside them."""
        classes = self.data.num_classes if self.labelled else 0
        group = None if self.group is None else self.group[queries.position]
        return Judged(bank, queries, classes, self.config.seed, self.config.label_shares, views, group)

    def cached_scores(self, name: str, protocols: list[str], judged: Judged) -> Sheet:
        """The numbers that need features only."""
        group = None if judged.group is None else judged.group[judged.queries.labels >= 0]
        sheet = Sheet(name, self.config.seed, group=group)
        for protocol in protocols:
            self.say(f"{name}: {protocol}")
            CACHED[protocol](judged, sheet)  # type: ignore[index]
        return sheet

    def augmented(self, encoder: nn.Module, sheet: Sheet) -> None:
        """The published linear protocol: crops and flips in every epoch."""
        config = self.config
        recipe = linear_recipe(config.preset, config.augmented_epochs)
        score = augmented_score(
            encoder,
            self.data,
            recipe,
            seed=config.seed,
            device=self.place.device,
            dtype=self.place.training_dtype,
            progress=self.progress,
        )
        settings = {
            "preset": config.preset,
            "lr": score.lr,
            "batch_size": score.batch_size,
            "precision": self.place.training,
        }
        sheet.share("augmented", "top-1", score.right, **settings, **recipe.facts())
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
                encoder,
                self.data,
                rows,
                recipe,
                seed=config.seed,
                device=self.place.device,
                dtype=self.place.training_dtype,
                progress=self.progress,
            )
            sheet.share(
                f"finetune {share:g} %",
                "top-1",
                score.right,
                labels=score.images,
                epochs=score.epochs,
                batch_size=score.batch_size,
                encoder_lr=score.encoder_lr,
                classifier_lr=score.classifier_lr,
                precision=self.place.training,
            )
            sheet.note(f"finetune {share:g} %", score.notes)

    def store(self, share: float, rows: Int64[Tensor, " n"]) -> None:
        """Write down which images a protocol learned from, by stable index."""
        bank = self.data.sets["train"]
        assert bank is not None
        if distributed.is_first_process():
            self.folder.mkdir(parents=True, exist_ok=True)
            text = "".join(f"{index}\n" for index in bank.image_id[rows].tolist())
            write_text(self.folder / f"labels_{share:g}_percent.txt", text)
