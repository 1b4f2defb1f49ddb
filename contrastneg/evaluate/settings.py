"""What an evaluation is told, as one frozen record; attribute docstrings are the help texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from contrastneg.checks import WrongSetting, check_range
from contrastneg.encoders import Backbone

Protocol = Literal[
    "knn", "linear", "logistic", "few_labels", "retrieval", "clustering", "geometry", "augmented", "finetune", "all"
]
PROTOCOLS = tuple(name for name in get_args(Protocol) if name != "all")
USUAL: tuple[Protocol, ...] = ("knn", "linear", "logistic", "few_labels", "retrieval", "clustering", "geometry")


@dataclass(frozen=True)
class Evaluate:
    """Judge an encoder by the field's protocols."""

    encoder: str = ""
    """What is judged: a run folder, a checkpoint (of ours or of another project), a .safetensors file, timm:NAME or torchvision:NAME."""
    data: str | None = None
    """Labelled set; scores learn from its training images and are tested on its test images. Default: what the run was scored on."""
    test: str | None = None
    """Another set to test on."""
    protocols: tuple[Protocol, ...] = USUAL
    """Which scores: knn, linear, logistic, few_labels, retrieval, clustering, geometry, augmented, finetune, or all."""
    transfer: tuple[str, ...] = ()
    """Further labelled sets that the encoder is judged on by knn, linear and logistic; all are opened before the first is judged."""
    baselines: bool = True
    """Score raw pixels and a random encoder (the same network, its weights drawn by the seed) beside it."""
    layer: Literal["backbone", "projector"] = "backbone"
    """Features that are judged: of the backbone, or of the projection head where the file has one."""

    group: str = "auto"
    """Column of metadata whose equal values mark test images of one origin, such as frames of a film or pictures of a patient.

    Retrieval leaves these out of each other's answers, and intervals resample them together. auto: the column group or
    sequence where there is one; none: no column."""

    label_shares: tuple[float, ...] = (1.0, 10.0)
    """Percent of the labels that few_labels and finetune learn from, above 0 and at most 100."""
    preset: Literal["cifar", "simclr", "moco", "moco_v3"] = "cifar"
    """Conventions of the augmented protocol."""
    augmented_epochs: int | None = None
    """Epochs of the augmented protocol; none: those of the preset."""
    finetune_epochs: int | None = None
    """Epochs of fine-tuning; none: 60 for less than a tenth of the labels, else 30."""

    random_init: bool = False
    """A random encoder: weights drawn by the seed in place of its own; nothing is fetched."""
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
    limit_images: int | None = None
    """At most so many training images, equally many of each class."""
    limit_test_images: int | None = None
    """At most so many test images, equally many of each class."""
    on_bad_image: Literal["raise", "skip"] = "raise"
    """What to do about images that cannot be read: stop with their names, or leave them out and count them."""
    loading: Literal["auto", "memory", "stream"] = "auto"
    """Keep all pixels on the device, or decode in workers; auto keeps equal-sized images of up to 2 GiB in memory."""
    workers: int = 2
    """Loader processes in streaming mode."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Kind of device."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the encoder where its features are kept."""
    training_precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoder in augmented and finetune; auto: bfloat16 where the processor or GPU has it, else float32."""
    half: bool = False
    """Keep features as float16: half the disk, each number rounded to 11 bits."""
    cache: bool = True
    """Keep features on the disk and use those found there."""
    seed: int = 0
    """Seed of everything random."""
    out: Path | None = None
    """Folder of the results; default: RUN/evaluation/DATA for a run, else evaluations/ENCODER-on-DATA."""
    overwrite: bool = False
    """Replace results that are there already; the cached features stay."""

    def __post_init__(self) -> None:
        check_range(self, "limit_images", "limit_test_images", "augmented_epochs", "finetune_epochs", "size", least=1)
        check_range(self, "workers", least=0)
        if not self.protocols:
            raise WrongSetting(self, "protocols", f"is empty: give some of {', '.join(PROTOCOLS)}, or all")
        for share in self.label_shares:
            if not 0 < share <= 100:
                raise WrongSetting(self, "label_shares", f"holds {share:g}: give percents above 0 and at most 100")

    @property
    def asked(self) -> tuple[str, ...]:
        """The protocols in the order in which they are taken."""
        return tuple(name for name in PROTOCOLS if name in self.protocols or "all" in self.protocols)
