"""What an analysis is told, as one frozen record; attribute docstrings are the help texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from contrastneg.analyze.sections import SECTIONS
from contrastneg.checks import WrongSetting, check_range
from contrastneg.encoders import Backbone


@dataclass(frozen=True)
class Analyze:
    """Measure what the negatives of an encoder are."""

    encoder: str = ""
    """What is looked at: a run folder, a checkpoint (of ours or of another project), a .safetensors file, timm:NAME or torchvision:NAME."""
    data: str | None = None
    """Images that are each other's negatives, with labels or without. Default: what the run was scored on."""
    sections: tuple[str, ...] = ("all",)
    """Which measures: names of sections, or all; a name that there is not is answered with those that there are."""
    checkpoints: tuple[str, ...] = ()
    """Further encoders, earlier checkpoints of the run for instance, in order, for the sections that compare several; a folder of
    .ckpt files stands for those in it, by step. States of one run are put by step where that is known of all."""
    samplers: tuple[Path, ...] = ()
    """Samplers beside the usual ones: recipes and runs, whose stages are taken, or YAML files with a list of stages for each name."""
    layer: Literal["auto", "backbone", "projector", "both"] = "auto"
    """Whose embeddings are compared: the backbone's, or the projection head's, as in training; auto is the latter where there is one,
    both measures that and puts the key numbers of the backbone beside it."""
    split: Literal["train", "test"] = "train"
    """Which images."""

    queries: int | None = None
    """Images that are asked about, at most; all others are candidates of each. Default: 2,048, of more than 131,072 images fewer,
    down to 256."""
    temperature: float = 0.1
    """Temperature of the softmax whose gradient is looked at, above 0."""
    clusters: int | None = None
    """Clusters that stand in for classes; none: as many as there are classes, without labels 100 or a twentieth of the images."""
    gallery: int = 32
    """Queries that the page shows with their hardest negatives; 0 leaves the gallery out."""

    random_init: bool = False
    """Random weights in place of the encoder's own; nothing is fetched."""
    backbone: Backbone | None = None
    """What another project's checkpoint holds; none: recognised by its tensors."""
    prefix: str | None = None
    """Part of another project's checkpoint that is meant, where it holds several encoders."""
    size: int | None = None
    """Side of the images in pixels; none: what the encoder was made for."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel for pixels in [0, 1]; none: what the encoder was made for."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel; none: what the encoder was made for."""

    root: Path | None = None
    """Folder where torchvision data sets are looked for and downloaded to."""
    unlabelled: bool = False
    """Leave labels aside, and take sub-folders for mere folders."""
    limit_images: int | None = None
    """At most so many images, equally many of each class."""
    on_bad_image: Literal["raise", "skip"] = "raise"
    """What to do about images that cannot be read: stop with their names, or leave them out and count them."""
    loading: Literal["auto", "memory", "stream"] = "auto"
    """Keep all pixels on the device, or decode in workers; auto keeps equal-sized images of up to 2 GiB in memory."""
    workers: int = 2
    """Loader processes in streaming mode."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Kind of device that embeds; the measures are taken on the CPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the frozen encoder."""
    half: bool = False
    """Keep embeddings as float16: half the disk, each number rounded to 11 bits."""
    cache: bool = True
    """Keep embeddings on the disk and use those found there."""
    seed: int = 0
    """Seed of everything random."""
    out: Path | None = None
    """Folder of the results; default: RUN/analysis/DATA-LAYER for a run, else analyses/ENCODER-on-DATA-LAYER."""
    overwrite: bool = False
    """Replace an analysis of other images, of another encoder or of more sections; cached embeddings stay."""

    def __post_init__(self) -> None:
        check_range(self, "queries", "limit_images", "size", least=1)
        check_range(self, "clusters", least=2)
        check_range(self, "workers", "gallery", least=0)
        check_range(self, "temperature", above=0)
        unknown = [name for name in self.sections if name not in (*SECTIONS, "all")]
        if unknown or not self.sections:
            met = f"holds {unknown[0]!r}" if unknown else "is empty"
            raise WrongSetting(self, "sections", f"{met}: choose from {', '.join(SECTIONS)}, or all")
        if self.samplers and "samplers" not in self.asked:
            raise WrongSetting(self, "samplers", "are given but sections has no samplers: add it, or leave them out")
        if self.layer == "both" and "layers" not in self.asked:
            raise WrongSetting(self, "layer", "is both but sections has no layers: add it, or name one layer")

    @property
    def asked(self) -> tuple[str, ...]:
        """The sections in the order in which they are measured and shown."""
        return tuple(name for name in SECTIONS if name in self.sections or "all" in self.sections)
