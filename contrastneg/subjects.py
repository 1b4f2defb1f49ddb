"""An encoder by its address: a run, a checkpoint of ours or of others, a released file, a published model of timm or torchvision.

Whatever it is, it comes with the transform that it wants its images in, and nothing is fetched but what a ``timm:`` or
``torchvision:`` address asks for by name.
"""

import difflib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
import yaml
from jsonargparse import ArgumentError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from contrastneg.config import build_method, plain
from contrastneg.data.address import short_name
from contrastneg.data.draws import Augment
from contrastneg.data.views import EXACT_SIZE_UP_TO, Views
from contrastneg.encoders import OWN, Backbone, build_backbone, first_line
from contrastneg.hub import answers
from contrastneg.loading import without_download
from contrastneg.randomness import derive_seed
from contrastneg.runfolder import newest_checkpoint, read_checkpoint
from contrastneg.weights import load_strictly, read_foreign, read_tensors
from contrastneg.writing import whole_file

METADATA = "contrastneg"  # key of a safetensors file's own description
Layer = Literal["backbone", "projector"]
PUBLISHED = ("timm:", "torchvision:")
PHOTOGRAPH = 224  # side of the images that encoders of unknown origin are taken to have seen
OWN_CROP = 0.875  # share of the short side that the evaluation transform shows


@dataclass(frozen=True)
class Subject:
    """An encoder that is to be judged, used or taken away."""

    address: str
    """What the user asked for."""
    name: str
    """Short name, safe in file names."""
    network: nn.Module
    """Images (B, C, S, S) to pooled features (B, F), in evaluation mode."""
    views: Views
    """How images are prepared: size, normalisation, interpolation."""
    build: Callable[[], nn.Module]
    """Makes the same network without its weights."""
    backbone: Backbone | None = None
    """What it is; None for networks of torchvision."""
    projector: nn.Module | None = None
    """Its projection head, where the file holds one."""
    data: str | None = None
    """Address of what its run was scored on, where that is known."""
    run: Path | None = None
    """The run folder that it belongs to."""
    in_channels: int = 3
    """Channels of its images."""
    step: int | None = None
    """Optimizer steps that its weights have seen, where that is known."""
    notes: tuple[str, ...] = ()
    """What a reader of its scores must know."""

    def encoder(self, layer: Layer = "backbone") -> nn.Module:
        """The network up to a layer, in evaluation mode.

        Raises:
            ValueError: There is no projection head.
        """
        if layer == "backbone":
            return self.network
        if self.projector is None:
            checkpoint = "a checkpoint of a run" if self.run is None else f"{self.run / 'checkpoints' / 'last.ckpt'}"
            raise ValueError(
                f"layer is projector but {self.address} holds no projection head: give layer backbone, or {checkpoint}"
            )
        return nn.Sequential(self.network, self.projector).eval()

    @property
    def width(self) -> int:
        """Number F of its features."""
        with torch.no_grad():
            return self.network(torch.zeros(1, self.in_channels, self.views.size, self.views.size)).shape[1]

    def untrained(self, seed: int) -> nn.Module:
        """The same network with weights that are a function of the seed, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "weights"))
            return self.build().eval()


def open_subject(
    address: str,
    *,
    backbone: Backbone | None = None,
    prefix: str | None = None,
    random_init: bool = False,
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    seed: int = 0,
) -> Subject:
    """Read an encoder.

    ===========================  ========================================================================================
    address                      what it is
    ===========================  ========================================================================================
    ``runs/NAME``                a run folder: its ``encoder.safetensors``, or the newest checkpoint of an unfinished run
    ``x.ckpt``                   a checkpoint of a run, with its projection head
    ``x.safetensors``, ``x``     an encoder that was written by contrastneg; the ending may be left out
    ``x.pth``, ``x.safetensors`` a checkpoint of another project, see :mod:`contrastneg.weights`
    ``timm:NAME[.TAG]``          a published model of timm, without its classifier
    ``torchvision:NAME[.TAG]``   a published model of torchvision, without its last linear layer
    ===========================  ========================================================================================

    Args:
        address: One of these.
        backbone: What the encoder of another project's checkpoint is; None: recognised by its tensors.
        prefix: Part of another project's checkpoint that is meant, where it holds several encoders.
        random_init: Random weights, a function of the seed, in place of those that the address names; nothing is fetched.
        size: Side of the images in pixels; None: what the encoder was made for.
        mean: Mean of each channel for pixels in [0, 1]; None: what the encoder was made for.
        std: Standard deviation of each channel; None: what the encoder was made for.
        seed: Of random weights.

    Raises:
        ValueError: There is no such encoder, it cannot be read or fetched, or it does not fit the settings.
    """
    if address.startswith(PUBLISHED):
        check_unneeded(address, backbone, prefix)
        kind, _, name = address.partition(":")
        subject = (timm_subject if kind == "timm" else torchvision_subject)(name, address, size, random_init)
    else:
        subject = subject_of_path(path_of(address), address, backbone, prefix, size)
    subject = with_statistics(subject, mean, std)
    if size is not None and size != subject.views.size:
        subject = of_size(subject, size)
    if random_init:
        told = f"a random encoder by seed {seed}, as asked"
        return replace(
            subject, network=subject.untrained(seed), projector=None, step=None, notes=(*subject.notes, told)
        )
    subject.network.eval()
    return subject


def with_statistics(subject: Subject, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Subject:
    """The encoder with the mean and deviation of pixels that are asked for, and a note where they are not its own."""
    given = {"mean": mean, "std": std}
    asked: dict[str, Any] = {name: tuple(values) for name, values in given.items() if values is not None}
    notes = [
        f"{name} is {list(values)} as asked, not the encoder's own {list(getattr(subject.views, name))}"
        for name, values in asked.items()
        if values != tuple(getattr(subject.views, name))
    ]
    return replace(subject, views=replace(subject.views, **asked), notes=(*subject.notes, *notes))


def of_size(subject: Subject, size: int) -> Subject:
    """The encoder for images of another side than it was made for, with a note.

    Raises:
        ValueError: It cannot take them.
    """
    note = f"images are {size} pixels as asked, not the {subject.views.size} that the encoder was made for"
    subject = replace(subject, views=replace(subject.views, size=size), notes=(*subject.notes, note))
    check_takes_size(subject)
    return subject


def path_of(address: str) -> Path:
    """The address as a path, ``~`` expanded."""
    try:
        return Path(address).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{address} is no encoder: there is no such user") from error


def check_unneeded(address: str, backbone: Backbone | None, prefix: str | None) -> None:
    """Refuse settings that say what an encoder is where the encoder says so itself."""
    for name, setting in (("backbone", backbone), ("prefix", prefix)):
        if setting is not None:
            raise ValueError(
                f"{name} is for checkpoints of other projects but {address} tells itself what it is: leave it out"
            )


@torch.no_grad()
def check_takes_size(subject: Subject) -> None:
    """Refuse a size of images that was asked for and that the network cannot take, by trying a black one."""
    side = subject.views.size
    try:
        subject.network.eval()(torch.zeros(1, subject.in_channels, side, side))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{subject.address} cannot take images of {side} pixels ({first_line(error)}): leave size out, or give another"
        ) from error


def subject_of_path(
    path: Path, address: str, backbone: Backbone | None, prefix: str | None, size: int | None
) -> Subject:
    """An encoder on the disk."""
    if path.is_dir():
        encoder = path / "encoder.safetensors"
        if not encoder.exists() and not any(path.glob("checkpoints/*.ckpt")):
            raise ValueError(f"{address} is a folder without encoder.safetensors and checkpoints: give a run folder")
        return subject_of_path(
            encoder if encoder.exists() else newest_checkpoint(path), address, backbone, prefix, size
        )
    released = path.with_name(f"{path.name}.safetensors")
    if not path.exists() and released.exists():
        path = released
    if not path.exists():
        raise ValueError(
            f"{address} is no encoder: give a run folder, a checkpoint, a .safetensors file, timm:NAME or torchvision:NAME"
        )
    facts = own_facts(path)
    if facts is not None:
        check_unneeded(address, backbone, prefix)
        return own_file(path, address, facts)
    if path.suffix == ".ckpt" and (checkpoint := own_checkpoint(path)) is not None:
        check_unneeded(address, backbone, prefix)
        return checkpoint_subject(path, address, checkpoint)
    return foreign_subject(path, address, backbone, prefix, size)


def own_facts(path: Path) -> dict[str, Any] | None:
    """What a safetensors file of ours says of itself, its ``backbone`` and ``views``; None for any other file.

    Raises:
        ValueError: It is damaged, or of a version that has other settings.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            described = (file.metadata() or {}).get(METADATA)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: it is damaged or something else") from error
    if described is None:
        return None
    try:
        facts = json.loads(described)
        return {**facts, "backbone": backbone_of(facts["backbone"]), "views": views_of(facts["views"])}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} says of itself what this version does not understand ({first_line(error)}): use the one that wrote it"
        ) from error


def own_file(path: Path, address: str, facts: dict[str, Any]) -> Subject:
    """The encoder of a safetensors file that a run wrote."""
    settings, views = facts["backbone"], facts["views"]

    def build() -> nn.Module:
        return build_backbone(settings, views.size, load_pretrained=False)

    network = build()
    load_strictly(network, read_tensors(path), settings, path, "it is damaged, get it anew")
    run = path.parent if (path.parent / "config.yaml").exists() and path.name == "encoder.safetensors" else None
    name = path.resolve().parent.name if path.name == "encoder.safetensors" else path.stem
    data = facts.get("data") or (None if run is None else data_of_run(run))
    return Subject(
        address, short_name(name), network, views, build, settings, data=data, run=run, in_channels=settings.in_channels
    )


def write_encoder(
    path: Path, network: nn.Module, backbone: Mapping[str, Any], views: Views, data: str | None = None
) -> None:
    """An encoder's weights with what is needed to use them, as :func:`open_subject` reads it.

    Args:
        path: A ``.safetensors`` file.
        network: The encoder.
        backbone: Its settings.
        views: How its images are prepared.
        data: Address of what it was pretrained on, if that means the same on other machines.
    """
    weights = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
    facts = {"backbone": dict(backbone), "views": plain(views), **({"data": data} if data else {})}
    with whole_file(path) as partial:
        save_file(weights, partial, metadata={METADATA: json.dumps(facts)})


def own_checkpoint(path: Path) -> dict[str, Any] | None:
    """A checkpoint that a run of ours wrote; None for anything else."""
    with suppress(ValueError):
        checkpoint = read_checkpoint(path)
        if dict(checkpoint.get("hyper_parameters", {})).get("class_name") in ("MoCo", "SimCLR"):
            return checkpoint
    return None


def checkpoint_subject(path: Path, address: str, checkpoint: Mapping[str, Any]) -> Subject:
    """Backbone and projection head of a run's checkpoint.

    Raises:
        ValueError: Its settings or tensors are those of another version.
    """
    from contrastneg import methods  # imports the whole of training

    settings = without_download(dict(checkpoint["hyper_parameters"]))
    try:
        method: Any = build_method(getattr(methods, settings["class_name"]), settings)
        method.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, ArgumentError) as error:
        raise ValueError(
            f"{path} was written by another version, whose {settings['class_name']} differs ({first_line(error)}): use that one"
        ) from error
    backbone = backbone_of(settings["backbone"])
    folder = Path(os.path.normpath(path.parent / ".."))
    run = folder if (folder / "config.yaml").exists() else None
    views, notes = views_of_checkpoint(checkpoint, run, settings.get("image_size"), path)
    return Subject(
        address,
        short_name(f"{run.resolve().name}-{path.stem}" if run else path.stem),
        method.backbone,
        views,
        lambda: build_backbone(backbone, views.size, load_pretrained=False),
        backbone,
        projector=method.encoder.projector.eval(),
        data=None if run is None else data_of_run(run),
        run=run,
        in_channels=backbone.in_channels,
        step=checkpoint["global_step"],
        notes=(f"weights of {path.name}, step {checkpoint['global_step']:,}", *notes),
    )


def views_of_checkpoint(
    checkpoint: Mapping[str, Any], run: Path | None, size: int | None, path: Path
) -> tuple[Views, list[str]]:
    """How a checkpoint's images were prepared: as it tells itself, else as its run's settings do.

    Raises:
        ValueError: Nothing tells.
    """
    told = checkpoint.get("PretrainData", {}).get("views")
    if told is None and run is not None:
        told = settings_of_run(run).get("views")
    if told is not None:
        return views_of(told), []
    if size is None:
        raise ValueError(f"{path} does not tell the size of its images: evaluate it inside its run folder")
    return Views(size), ["the checkpoint does not tell its normalisation: ImageNet's is used"]


def foreign_subject(
    path: Path, address: str, backbone: Backbone | None, prefix: str | None, size: int | None
) -> Subject:
    """The encoder of another project's checkpoint; its normalisation is not in the file."""
    found = read_foreign(path, backbone, prefix)
    settings = found.backbone
    side = 32 if settings.stem == "cifar" else PHOTOGRAPH
    views = Views(side)
    notes = (
        *found.notes,
        f"the file does not tell its images: {size or side} pixels and ImageNet's normalisation are used",
    )
    return Subject(
        address,
        short_name(path.name.split(".")[0]),
        found.network,
        views,
        found.build,
        settings,
        in_channels=settings.in_channels,
        notes=notes,
    )


def timm_subject(name: str, address: str, size: int | None, random_init: bool) -> Subject:
    """A model of timm with the weights and the transform it was published with.

    Raises:
        ValueError: The name is unknown or its weights cannot be fetched.
    """
    if name in OWN:
        raise ValueError(f"{address} is no model of timm: give a run or file that holds a {name}")
    settings = Backbone(name=name, stem="imagenet", pretrained=not random_init)
    try:
        network: Any = build_backbone(settings, size)
    except ValueError as error:  # which names the settings of a run
        told = str(error).replace("set method.backbone.pretrained to false", "give --random-init for random ones")
        told = told.replace("views.size", "size")
        raise ValueError(told.replace("method.backbone.name ", "timm:", 1)) from error
    published = network.pretrained_cfg
    interpolation = published.get("interpolation", "bilinear")
    views = Views(
        published["input_size"][-1],
        view1=Augment(interpolation=interpolation if interpolation in ("bilinear", "bicubic") else "bilinear"),
        mean=tuple(published["mean"]),
        std=tuple(published["std"]),
    )
    notes = []
    if views.size > EXACT_SIZE_UP_TO and (crop := published.get("crop_pct") or OWN_CROP) != OWN_CROP:
        notes = [f"published with the middle {crop:g} of the short side, here {OWN_CROP:g}"]
    plain = replace(settings, pretrained=False)
    return Subject(
        address, short_name(name), network, views, lambda: build_backbone(plain, size), plain, notes=tuple(notes)
    )


def torchvision_subject(name: str, address: str, size: int | None, random_init: bool) -> Subject:
    """A model of torchvision; its features are the input of its last linear layer.

    Raises:
        ValueError: The name is unknown or its weights cannot be fetched.
    """
    model, _, tag = name.partition(".")
    known = torchvision.models.list_models(module=torchvision.models)
    try:
        if model not in known:
            raise KeyError(model)
        choices = torchvision.models.get_model_weights(model)
        weights = choices[tag] if tag else choices["DEFAULT"]
    except KeyError as error:
        near = " or ".join(difflib.get_close_matches(model, known, n=3) or known[:3])
        advice = f"did you mean {near}?" if model not in known else "its tags are like IMAGENET1K_V1"
        raise ValueError(f"torchvision:{name} is not known to torchvision: {advice}") from error

    def build(published: bool = False) -> nn.Module:
        network = torchvision.models.get_model(model, weights=weights if published else None)
        return without_classifier(network, name)

    stored = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        if not (random_init or stored.exists() or answers(weights.url)):
            raise OSError("no answer")
        network = build(published=not random_init)
    except (OSError, RuntimeError) as error:  # RuntimeError: not the file that was asked for
        raise ValueError(
            f"the published weights of torchvision:{name} could not be fetched ({type(error).__name__}): connect once, "
            "or give --random-init for random ones"
        ) from error
    transform: Any = weights.transforms()
    views = Views(
        transform.crop_size[0],
        view1=Augment(interpolation=transform.interpolation.value),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )
    published = transform.resize_size[0]
    told = f"published with a short side of {published} pixels, here {views.short_side}"
    notes = (told,) if views.short_side != published else ()
    return Subject(address, short_name(name), network, views, build, notes=notes)


def without_classifier(network: nn.Module, name: str) -> nn.Module:
    """The network with nothing in place of its last linear layer.

    Raises:
        ValueError: It has none.
    """
    layers = [layer for layer, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"torchvision:{name} has no linear layer whose input would be its features: choose another")
    parent, _, child = layers[-1].rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network


def backbone_of(settings: Mapping[str, Any]) -> Backbone:
    """Settings of a backbone that will be given weights: published ones are not fetched."""
    return Backbone(**{**settings, "pretrained": False})


def views_of(settings: Mapping[str, Any]) -> Views:
    """A recipe of views from its plain settings."""
    values = dict(settings)
    for name in ("view1", "view2"):
        if values.get(name) is not None:
            view: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values[name].items()}
            values[name] = Augment(**view)
    return Views(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def settings_of_run(run: Path) -> dict[str, Any]:
    """The settings in a run's ``config.yaml``; empty where they cannot be read."""
    with suppress(OSError, yaml.YAMLError):
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        return settings if isinstance(settings, dict) else {}
    return {}


def data_of_run(run: Path) -> str | None:
    """Address of what a run was scored on: its labelled set, else what it was pretrained on."""
    settings = settings_of_run(run)
    return settings.get("val") or settings.get("data")
