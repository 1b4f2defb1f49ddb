"""Train with every stage, loss and change of images of the package on real images, and print one table of what came of it.

Each entry is a run of MoCo, or of SimCLR where that is said, on the same images: a small encoder, one stage (with the one it
builds on, if any) or one loss. Stages and losses are found in the package, so that a new one without settings here is an
error. Labels are used by what is named oracle, for the statistics and for the kNN score, and for nothing else.

    python scripts/try_all.py --data ../shared/data/cifar10 --steps 200       # all, about half an hour on two cores
    python scripts/try_all.py --data cifar10 --steps 50 --only MoCHi HardWeighted

Exit status 1 if an entry failed or met a number that is not finite; its name and the reason stand below the table.
"""

import argparse
import functools
import inspect
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytorch_lightning as pl
import torch
from bench_step import extra_memory
from jsonargparse import ArgumentParser
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.table import Table

from contrastneg import mixing, negatives, objectives
from contrastneg.adversary import CLAE
from contrastneg.allocator import keep_freed_memory
from contrastneg.contrast import contrast, unit
from contrastneg.data.batches import Batches, GraphWalkBatches, ShuffledBatches
from contrastneg.data.module import PretrainData, TwoViews
from contrastneg.data.sources import ImageSet, in_memory_set, limit_images, open_source
from contrastneg.data.views import Augment, Views, two_views
from contrastneg.device import LIGHTNING_PRECISION, encoder_dtype, resolve_precision
from contrastneg.encoders import Backbone, Head
from contrastneg.evaluate.features import extract
from contrastneg.evaluate.knn import knn_score
from contrastneg.methods import MoCo, SimCLR
from contrastneg.mixing import InputMix
from contrastneg.negatives import Clock, Popularity, Stage
from contrastneg.objectives import InfoNCE, Objective
from contrastneg.optim import Optimizer
from contrastneg.pretrain import quiet_lightning
from contrastneg.stepping import all_embeddings

BATCH, QUEUE, DIM, TEMPERATURE, EPOCHS = 128, 4096, 64, 0.1, 5
BANK, QUERIES, NEIGHBOURS = 5000, 2000, 20
PLAIN_STEPS = 10  # of a run without stages, before and after each entry
EDGES = {"neighbours": 10, "every": 1}
ANIMALS = (2, 3, 4, 5, 6, 7)  # classes of CIFAR-10 that are no vehicles: the oracle's coarse column

STAGES: dict[str, dict[str, Any]] = {
    "AbovePositive": {"begin_at": 0.25},
    "AdaptiveCount": {"count": 256, "false_negatives": 0.1},
    "AdversarialBank": {"size": 2048, "temperature": 0.05},
    "AdversarialShift": {"count": 256, "temperature": TEMPERATURE},
    "BestResponse": {"count": 256},
    "CooccurrenceRows": {"count": 64, "edges": {**EDGES, "power": 0.75}},
    "FixedMass": {"total": 1024.0},
    "GapSubset": {"count": 256},
    "GaussianWeight": {},
    "GeneratedNegatives": {"count": 32, "hidden": 64},
    "GlobalQuantile": {"share": 0.1, "begin_at": 0.4},
    "GraphWalk": {"walks": 32, "combine": "append", "edges": EDGES},
    "GuidedWalk": {"count": 4, "pool": 16, "edges": EDGES},
    "HardCache": {"combine": "append"},
    "HardestOfRandom": {"count": 256, "pool": 1024},
    "HardestQueries": {"share": 0.5, "temperature": TEMPERATURE},
    "HardestSubset": {"count": 256},
    "HardnessBand": {"lower": 0.01, "upper": 0.2},
    "HardnessWeight": {"beta": 0.5, "temperature": TEMPERATURE},
    "HopMix": {"count": 16, "candidates": 8},
    "LearnedPolicy": {"count": 256, "rate": 1e-3},
    "MemoryBank": {"count": 2048},
    "MetadataTiers": {"tiers": [{"column": "oracle_class"}]},
    "MetropolisChain": {"combine": "append", "edges": EDGES},
    "MinedNeighbours": {"combine": "append"},
    "MoCHi": {"pool": 256, "pair_mixes": 128, "query_mixes": 32, "warmup_epochs": 1.0},
    "NeighbourPositive": {"size": 2048},
    "OracleSameLabel": {},
    "PageRankBand": {"walks": 32, "steps": 10, "skip": 5, "end": 200, "edges": EDGES},
    "PopularSubset": {"count": 512, "exponent": 0.5, "popularity": {"class_path": "ClusterSize"}},
    "PopularityWeight": {"exponent": 0.5, "popularity": {"class_path": "ClusterSize"}},
    "PositiveMix": {},
    "RankSubset": {"count": 256},
    "Redundant": {"threshold": 0.95},
    "RelatedSubset": {"count": 512, "column": "oracle_kind", "differs_in": "oracle_class"},
    "RelatedWeight": {"column": "oracle_kind", "differs_in": "oracle_class"},
    "SameCluster": {"clusters": [10, 20, 40]},
    "SamplingCorrection": {},
    "ScoreHistory": {"combine": "append", "warmup_epochs": 1.0},
    "SemiHardSubset": {"count": 256},
    "SoftClusterWeight": {"clusters": 10},
    "SoftmaxSubset": {"count": 256, "temperature": TEMPERATURE},
    "SupportMemory": {},
    "SupportViews": {"views": 2},
    "SynCo": {"pool": 256, **dict.fromkeys(("interpolated", "extrapolated", "mixed"), 64), "warmup_epochs": 1.0,
              **dict.fromkeys(("noisy", "shifted", "signed"), 16)},
    "UniformSubset": {"count": 256},
}  # fmt: skip
POPULARITIES: dict[str, dict[str, Any]] = {  # each as what PopularityWeight weighs by
    "ClusterSize": {"clusters": 50},
    "ColumnSize": {"column": "oracle_class"},
    "HitRate": {},
    "InDegree": {"every": 1},
    "OracleClassSize": {},
}
LOSSES: dict[str, dict[str, Any]] = {
    "AlignUniform": {},
    "BPR": {},
    "BinaryCrossEntropy": {},
    "CosineContrastive": {},
    "Debiased": {"class_prior": 0.02},
    "Decoupled": {},
    "DecoupledWeighted": {},
    "DualAMN": {},
    "DualTemperature": {},
    "HardWeighted": {"class_prior": 0.02, "beta": 0.5},
    "InfoNCE": {},
    "MultiPositive": {},
    "RINCE": {},
    "Sigmoid": {},
    "Sincere": {},
    "SogCLR": {},
    "Spectral": {},
    "Square": {},
    "Triplet": {},
}
MIXES: dict[str, dict[str, Any]] = {
    "IMix": {},
    "UnMix": {},
}
BEFORE: dict[str, list[str]] = {"SamplingCorrection": ["SoftmaxSubset"]}
ATTRACTED = {"clusters": [10, 20, 40], "action": "attract"}  # what losses of several positives are given by SameCluster
NOTES = {
    "ColumnSize": "oracle column",
    "MetadataTiers": "oracle column",
    "OracleClassSize": "oracle",
    "OracleSameLabel": "oracle",
    "RelatedSubset": "oracle columns",
    "RelatedWeight": "oracle columns",
    "SamplingCorrection": "after SoftmaxSubset",
}


@dataclass
class Course(Callback):
    """What happened in a run: loss and seconds of each step, and the numbers of the record where it was logged."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    numbers: list[dict[str, float]] = field(default_factory=list)
    began: float = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: TwoViews, batch_idx: int) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: TwoViews, batch_idx: int
    ) -> None:
        """Stop it, and take notes."""
        self.seconds.append(time.perf_counter() - self.began)
        self.losses.append(float(outputs["loss"]))
        if pl_module.record is not None:
            self.numbers.append({name: float(number) for name, number in pl_module.record.numbers.items()})

    def late(self, name: str) -> float | None:
        """Mean of a number of the record over the second half of the logged steps; None where there is none."""
        found = [numbers[name] for numbers in self.numbers if name in numbers]
        found = [number for number in found[len(found) // 2 :] if number == number]
        return statistics.fmean(found) if found else None


@dataclass(frozen=True)
class Entry:
    """One run."""

    name: str
    kind: str
    loss: Objective
    stages: list[Stage]
    note: str = ""
    method: type[MoCo] | type[SimCLR] = MoCo
    images: dict[str, Any] = field(default_factory=dict)
    """The method's setting that changes images."""
    batches: Batches = ShuffledBatches()
    """Which images share a batch."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    entry: Entry
    first: float
    last: float
    knn: float
    kept: float | None
    same_before: float | None
    same_after: float | None
    milliseconds: float
    plain_before: float
    plain_after: float
    memory: float
    seconds: float

    @property
    def to_plain(self) -> float:
        """Time of a step over that of plain ones, the mean of one run before and one after."""
        return 2 * self.milliseconds / (self.plain_before + self.plain_after)


def public(module: Any, kind: type) -> list[str]:
    """Names of the concrete classes of a kind that a module makes public."""
    found = [(name, getattr(module, name)) for name in module.__all__]
    classes = [(name, thing) for name, thing in found if inspect.isclass(thing) and issubclass(thing, kind)]
    return [name for name, thing in classes if thing is not kind and not inspect.isabstract(thing)]


def check_tables() -> None:
    """Refuse to run while a public class has no settings here, or settings stand for none."""
    for module, kind, table in (
        (negatives, Stage, STAGES),
        (negatives, Popularity, POPULARITIES),
        (objectives, Objective, LOSSES),
        (mixing, InputMix, MIXES),
    ):
        differing = set(public(module, kind)) ^ set(table)
        if differing:
            raise SystemExit(f"try_all.py has no settings for, or does not know: {', '.join(sorted(differing))}")


def built(kind: type, settings: Sequence[dict[str, Any]]) -> list[Any]:
    """Objects from class names and settings, as a YAML file gives them."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--things", type=list[kind])
    return parser.instantiate(parser.parse_object({"things": list(settings)})).things


def named(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A class as a YAML file names it."""
    return {"class_path": name, "init_args": settings}


def entries() -> list[Entry]:
    """All runs: the losses, then the stages in their order within a pipeline."""
    found = []
    for name, init in LOSSES.items():
        (loss,) = built(Objective, [named(name, init)])
        stages = built(Stage, [named("SameCluster", ATTRACTED)]) if loss.takes_attracted else []
        found.append(Entry(name, "loss", loss, stages, "after SameCluster" if stages else ""))
    weights = {name: named("PopularityWeight", {"popularity": named(name, init), "level": "entry", "exponent": -0.5})
               for name, init in POPULARITIES.items()}  # fmt: skip
    alone = {name: named(name, init) for name, init in STAGES.items()} | weights
    for name, last in alone.items():
        stages = built(Stage, [*(alone[earlier] for earlier in BEFORE.get(name, [])), last])
        kind = "popularity" if name in weights else stages[-1].kind
        found.append(Entry(name, kind, InfoNCE(), stages, NOTES.get(name, "")))
    for name, init in MIXES.items():
        (mix,) = built(InputMix, [named(name, init)])
        found.append(Entry(name, "images", InfoNCE(), [], images={"mixing": mix}))
    in_batch = {"note": "SimCLR, beside plain SimCLR", "method": SimCLR}
    found.append(Entry("CLAE", "images", InfoNCE(), [], images={"adversary": CLAE()}, **in_batch))
    walks = GraphWalkBatches(candidates=500, neighbours=50)
    found.append(Entry("GraphWalkBatches", "batches", InfoNCE(), [], batches=walks, **in_batch))
    kinds = ("loss", *negatives.core.KINDS, "popularity", "images", "batches")
    places = {kind: place for place, kind in enumerate(kinds)}
    return sorted(found, key=lambda entry: (places[entry.kind], entry.name.lower()))


def images_of(address: str, count: int) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Images to train on, the bank and the queries of the kNN score, decoded and numbered from 0."""
    train, test = open_source(address), open_source(address, split="test")
    sets = [(train, count), (train, BANK), (test, QUERIES)]
    decoded = []
    for source, most in sets:
        part = limit_images(source, min(most, len(source)))
        assert part.labels is not None, f"{address} has no labels to score with"
        columns: dict[str, Any] = {
            "oracle_class": part.labels.clone(),
            "oracle_kind": torch.isin(part.labels, torch.tensor(ANIMALS)).long(),
        }
        decoded.append(in_memory_set(part.load(), part.labels, part.classes, columns, name=source.name))
    return decoded[0], decoded[1], decoded[2]


def data_of(sets: tuple[ImageSet, ImageSet, ImageSet], entry: Entry, method: Any) -> PretrainData:
    """A data module over images in memory, with the views of configs/cifar10/moco_cpu.yaml."""
    views = Views(size=32, view1=Augment(crop_scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1)))
    data = PretrainData(*sets[:1], views, *sets[1:], batch_size=BATCH, channels_last=True, batches=entry.batches)
    data.embed = functools.partial(all_embeddings, method, method.encoder)
    return data


def method_of(entry: Entry) -> Any:
    """An untrained method."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "backbone": Backbone(name="resnet9", width=0.125),
        "projector": Head(hidden=256, out=DIM, batch_norm="all"),
        "temperature": TEMPERATURE,
        "loss": entry.loss,
        "optimizer": Optimizer("adamw", lr=4e-3, scale="none", weight_decay=1e-4, warmup_epochs=0.5),
    }
    settings |= {"stages": entry.stages, **entry.images}
    queue = {"queue_size": QUEUE, "momentum": 0.99} if entry.method is MoCo else {}
    method: Any = entry.method(**settings, **queue)
    return method.to(memory_format=torch.channels_last)


def fit(method: Any, data: PretrainData, steps: int) -> Course:
    """Train for some steps."""
    course = Course()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        precision=LIGHTNING_PRECISION[resolve_precision("auto", "cpu")[0]],
        callbacks=[course],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=max(1, steps // 20),
    )
    trainer.fit(method, datamodule=data)
    return course


def plain_milliseconds(sets: tuple[ImageSet, ImageSet, ImageSet], like: Entry) -> float:
    """Median time of a step of the same method over a full queue, without stages and with InfoNCE."""
    plain = replace(like, loss=InfoNCE(), stages=[], images={}, batches=ShuffledBatches())
    method = method_of(plain)
    if method.__class__ is MoCo:
        draws = torch.Generator().manual_seed(0)
        keys = torch.nn.functional.normalize(torch.randn(QUEUE, DIM, generator=draws), dim=1)
        method.queue.push(keys, torch.arange(QUEUE) % len(sets[0]))
    return 1000 * statistics.median(fit(method, data_of(sets, plain, method), PLAIN_STEPS).seconds[2:])


def step_memory(method: Any, entry: Entry, batch: TwoViews) -> float:
    """What a step over the method's candidates holds at once beyond a step without stages, in MiB."""
    clock = Clock(9, 10, 4.0, 0)
    with torch.no_grad():
        query, positive = unit(method.encoder(batch.view1)), unit(method.encoder(batch.view2))
    support = positive[:, None].expand(-1, 2, -1)
    if isinstance(method, MoCo):
        assert method.queue is not None
        keys, key_id = method.queue.candidates()
    else:
        keys, key_id = positive, batch.image_id

    def step(stages: list[Stage], loss: Objective) -> None:
        leaf = query.clone().requires_grad_()
        arguments = (leaf, positive, batch.image_id, keys, key_id, stages, TEMPERATURE, clock, loss)
        contrast(*arguments, support=support)[0].mean().backward()

    plain = extra_memory(lambda: step([], InfoNCE()))
    return extra_memory(lambda: step(entry.stages, entry.loss)) - plain


def check_finite(method: Any, course: Course) -> None:
    """Refuse a run in which a number went wrong.

    Raises:
        FloatingPointError: A loss, a weight or something a stage remembers is not finite.
    """
    for step, loss in enumerate(course.losses):
        if not loss - loss == 0:
            raise FloatingPointError(f"the loss of step {step} is {loss}")
    for name, tensor in method.state_dict().items():
        confidence = name.endswith(".confidence")  # -inf until a cluster is known
        if tensor.is_floating_point() and bool((tensor.isnan() if confidence else ~tensor.isfinite()).any()):
            raise FloatingPointError(f"{name} is not finite after the run")


def tried(entry: Entry, sets: tuple[ImageSet, ImageSet, ImageSet], steps: int, plain_before: float) -> Row:
    """Train, score and measure one entry; beside a plain run before and one after it.

    Raises:
        FloatingPointError: A number is not finite.
    """
    method = method_of(entry)
    data = data_of(sets, entry, method)
    began = time.perf_counter()
    course = fit(method, data, steps)
    spent = time.perf_counter() - began
    check_finite(method, course)

    dtype = encoder_dtype(method.trainer)
    bank, queries = (extract(method.backbone, data, split, torch.device("cpu"), dtype) for split in ("train", "test"))
    if not (bank.x.isfinite().all() and queries.x.isfinite().all()):
        raise FloatingPointError("features are not finite")
    score = knn_score(bank, queries, k=NEIGHBOURS, temperature=0.07, num_classes=data.num_classes)

    views = two_views(sets[0].load()[:BATCH], data.views, torch.Generator().manual_seed(0))
    memory = step_memory(method.train(), entry, TwoViews(*views, torch.arange(BATCH)))

    plain_after = plain_milliseconds(sets, entry)
    step = statistics.median(course.seconds[len(course.seconds) // 2 :])
    shown = f"negatives/{len(entry.stages)}_{type(entry.stages[-1]).__name__}" if entry.stages else ""
    return Row(
        entry,
        next((loss for loss in course.losses if loss != 0), 0.0),
        statistics.fmean(course.losses[-max(1, steps // 10) :]),
        100 * score.top1,
        course.late(f"{shown}/kept"),
        course.late("negatives/all/same_class"),
        course.late(f"{shown}/same_class"),
        1000 * step,
        plain_before,
        plain_after,
        memory,
        spent,
    )


def table_of(rows: Sequence[Row], title: str) -> Table:
    """The rows as they are printed."""
    table = Table(
        "entry", "kind", "loss first", "last", "kNN %", "kept", "same class before", "after", "ms", "/ plain", "+MiB",
        "s", "", title=title,
    )  # fmt: skip
    for row in rows:
        shares = ("-" if x is None else f"{100 * x:.2f} %" for x in (row.same_before, row.same_after))
        table.add_row(
            row.entry.name,
            row.entry.kind,
            f"{row.first:.3f}",
            f"{row.last:.3f}",
            f"{row.knn:.1f}",
            "-" if row.kept is None else f"{row.kept:.0f}",
            *shares,
            f"{row.milliseconds:.0f}",
            f"{row.to_plain:.2f}",
            f"{row.memory:.1f}",
            f"{row.seconds:.0f}",
            row.entry.note,
        )
    return table


def quiet() -> None:
    """Leave out what Lightning and jsonargparse say of runs as short as these."""
    quiet_lightning()
    for message in (r".*does not have many workers.*", r".*`max_epochs` was not set.*", r".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message=message)


def main() -> int:
    """Try all and print; 1 if an entry failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default="cifar10", metavar="ADDRESS", help="labelled images of one size, with a test split"
    )
    parser.add_argument("--steps", type=int, default=200, help="steps of each run")
    parser.add_argument("--images", type=int, help=f"images to train on; by default what {EPOCHS} epochs need")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these entries only")
    options = parser.parse_args()
    check_tables()
    wanted = [entry for entry in entries() if not options.only or entry.name in options.only]
    unknown = set(options.only) - {entry.name for entry in wanted}
    if unknown:
        raise SystemExit(f"there is no {', '.join(sorted(unknown))} to try")
    quiet()
    keep_freed_memory()
    began = time.perf_counter()
    sets = images_of(options.data, options.images or BATCH * max(1, options.steps // EPOCHS))
    print(
        f"{len(sets[0])} images in memory after {time.perf_counter() - began:.0f} s; {len(wanted)} entries",
        file=sys.stderr,
    )

    rows, failures, plain = [], [], {}  # plain: time of the last such step, by method
    for entry in wanted:
        try:
            plain[entry.method] = plain.get(entry.method) or plain_milliseconds(sets, entry)
            row = tried(entry, sets, options.steps, plain[entry.method])
        except Exception:
            failures.append((entry.name, traceback.format_exc()))
            print(f"{entry.name} FAILED", file=sys.stderr)
            continue
        plain[entry.method] = row.plain_after
        rows.append(row)
        print(f"{entry.name:<20} {row.knn:.1f} % {row.seconds:.0f} s {row.to_plain:.2f} x", file=sys.stderr)
    minutes = (time.perf_counter() - began) / 60
    title = f"{options.steps} steps of {BATCH} of {len(sets[0])} images, {torch.get_num_threads()} threads, {minutes:.1f} min"
    Console(width=150).print(table_of(rows, title))
    for name, reason in failures:
        print(f"\n{name}:\n{reason}")
    print(f"{len(rows)} entries ran, {len(failures)} failed: {', '.join(name for name, _ in failures) or 'none'}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
