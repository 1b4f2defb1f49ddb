"""Encoders taken away: written for timm, torchvision, ONNX or the Hugging Face hub, loaded back there, and compared.

Every export is a folder with the weights, ``load.py`` and ``card.json``. Before it gets its name, its ``load.py`` is run and
what that gives, transform and features, is compared with the encoder itself on pictures. Where anything differs, or fails,
nothing is left behind.
"""

import importlib.util
import logging
import math
import os
import runpy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from contrastneg.data.sources import open_source
from contrastneg.data.views import Views, eval_view
from contrastneg.encoders import first_line
from contrastneg.loadcode import (
    ONNX,
    PICKLED,
    SAFETENSORS,
    hub_script,
    is_stock,
    normalisation,
    onnx_script,
    own_script,
    stock_name,
    stock_options,
    timm_script,
    torchvision_script,
)
from contrastneg.modelcard import card, portable_address, readme
from contrastneg.runfolder import write_json
from contrastneg.subjects import Subject, write_encoder
from contrastneg.writing import whole_file, write_text

Target = Literal["timm", "torchvision", "safetensors", "onnx", "hf"]
OPSET = 18  # of the ONNX file; what torch's exporter writes without conversion
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PICTURES = 8  # compared
SAME_INPUT = 1e-6  # largest difference of normalised pixels
SAME_FEATURES = 1e-5  # largest difference of features, as a share of the largest feature
SAME_FEATURES_ONNX = 1e-4  # whose runtime adds in another order


@dataclass(frozen=True)
class Plan:
    """How an encoder is written for a target."""

    code: str
    """The text of ``load.py``."""
    write: Callable[[Path], None]
    """Writes the weights, and what must be with them, to a folder."""
    allowed: float = SAME_FEATURES
    """Largest difference of features, as a share of the largest feature."""


@dataclass(frozen=True)
class Exported:
    """An export that was written and checked."""

    folder: Path
    """Where it is."""
    code: str
    """The text of its ``load.py``."""
    difference: float
    """Largest difference of its features, as a share of the largest feature."""
    allowed: float
    """Largest that would have been allowed."""

    def lines(self) -> list[str]:
        """What to tell the user: where it is, how near it came, and the code that makes the encoder."""
        made = [f"    {line}" for line in self.code.splitlines() if line.startswith(("encoder", "session"))]
        same = f"{self.difference:.1e} of the largest feature is the largest difference ({self.allowed:.0e} allowed)"
        return [f"{self.folder}: {same}", f"  {self.folder / 'load.py'} has transform and encoder:", *made]


def export(subject: Subject, targets: Sequence[Target], out: Path | None = None) -> list[Exported]:
    """Write an encoder for each target to a folder of its own, checked; all of them or none.

    Args:
        subject: The encoder; its projection head is not exported.
        targets: timm, torchvision, safetensors (for contrastneg itself), onnx, hf (a folder as on the Hugging Face hub).
        out: Where the folders go, each under its target's name; None: ``export`` in the run folder, else
            ``NAME-export`` in the current folder.

    Raises:
        ValueError: A target does not have such a network, its folder exists, packages are not installed, or what was
            written does not give the encoder's features.
    """
    if out is None:
        out = Path(f"{subject.name}-export") if subject.run is None else subject.run / "export"
    if not subject.network(black(subject)).isfinite().all():
        raise ValueError(f"the features of {subject.address} are not finite: there is nothing to take away")
    plans = planned(subject, targets)
    for folder in (out, *(out / target for target in plans)):
        if folder.exists() and not (folder is out and folder.is_dir()):
            raise ValueError(f"{folder} exists already: give another --out, or remove it")
    there = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".export-", dir=there) as scratch:
        differences = {target: write(subject, target, plan, Path(scratch) / target) for target, plan in plans.items()}
        out.mkdir(parents=True, exist_ok=True)
        for target in plans:
            os.replace(Path(scratch) / target, out / target)
    return [Exported(out / target, plan.code, differences[target], plan.allowed) for target, plan in plans.items()]


def planned(subject: Subject, targets: Sequence[Target]) -> dict[Target, Plan]:
    """A plan for each target.

    Raises:
        ValueError: Some cannot be had; the message tells why each cannot, and names those that can.
    """
    plans: dict[Target, Plan] = {}
    refused: dict[Target, ValueError] = {}
    for target in dict.fromkeys(targets):
        try:
            plans[target] = PLANS[target](subject)
        except ValueError as error:
            refused[target] = error
    if not refused:
        return plans
    reasons = "; ".join(map(str, refused.values()))
    if len(plans) + len(refused) == 1:
        raise ValueError(reasons)
    possible = f"; of these, --to {' '.join(plans)} can be written" if plans else ""
    raise ValueError(f"nothing was written: {reasons}{possible}")


def write(subject: Subject, target: str, plan: Plan, folder: Path) -> float:
    """Write one export and check it; returns the largest difference of its features.

    Raises:
        ValueError: It cannot be written, or is not the encoder again.
    """
    folder.mkdir()
    try:
        plan.write(folder)
    except OSError:
        raise
    except Exception as error:  # whatever an exporter raises about a network that it cannot express
        raise ValueError(
            f"the encoder cannot be written for {target} ({first_line(error)}): nothing was written"
        ) from error
    write_text(folder / "load.py", plan.code)
    difference = check(subject, target, folder, plan.allowed)
    about = {"opset": OPSET, "inputs": ["images"], "outputs": ["features"]} if target == "onnx" else {}
    checked = {"pictures": PICTURES, "largest_difference": difference, "allowed": plan.allowed}
    write_json(folder / "card.json", {**card(subject), "target": target, **about, "check": checked})
    return difference


@torch.no_grad()
def check(subject: Subject, target: str, folder: Path, allowed: float) -> float:
    """Run an export's own code on pictures, many at once and one alone.

    Returns:
        The largest difference of its features from the encoder's, as a share of the largest feature.

    Raises:
        ValueError: It cannot be run, or transform or features differ by more than is allowed.
    """
    pictures = sample_pictures(subject)
    images = eval_view(pictures, subject.views)
    try:
        made = runpy.run_path(str(folder / "load.py"))
        transformed = torch.stack([made["transform"](tv.to_pil_image(picture)) for picture in pictures])
        found = [torch.as_tensor(made["encoder"](batch)) for batch in (images, images[:1])]
    except Exception as error:  # whatever the other library raises
        raise ValueError(
            f"the export for {target} cannot be used ({first_line(error)}): nothing was written"
        ) from error
    if not largest_difference(transformed, images) <= SAME_INPUT:  # NaN is never the same
        raise ValueError(f"the export for {target} prepares pictures differently: nothing was written")
    expected = subject.network(images)
    difference = max(share_of_largest(found[0], expected), share_of_largest(found[1], expected[:1]))
    if not difference <= allowed:
        raise ValueError(
            f"the export for {target} gives other features: they differ by {difference:.1e} of the largest one, where "
            f"{allowed:.0e} is allowed: nothing was written"
        )
    return difference


def share_of_largest(found: Tensor, expected: Float[Tensor, "B F"]) -> float:
    """The largest difference as a share of the largest number that is expected; infinite where shapes differ."""
    return largest_difference(found, expected) / max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference between two tensors; infinite where shapes differ or one has numbers that are not finite."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max().nan_to_num(float("inf")))


def sample_pictures(subject: Subject) -> UInt8[Tensor, "n C H W"]:
    """Drawn pictures, larger than the encoder's images and wider than high, so that resizing and cropping are checked, too."""
    source = open_source("shapes", split="test", channels=subject.in_channels)
    pictures = torch.stack([source.read(position) for position in range(PICTURES)])
    side = subject.views.short_side
    return tv.resize(pictures, [side + side // 4, side + side // 2], antialias=True)


def black(subject: Subject) -> Float[Tensor, "2 C S S"]:
    """Two black images; two, since exporters take a batch of one for a constant."""
    return torch.zeros(2, subject.in_channels, subject.views.size, subject.views.size)


def for_timm(subject: Subject) -> Plan:
    """Weights that timm loads strictly."""
    return Plan(timm_script(subject), lambda folder: write_weights(folder / SAFETENSORS, subject))


def for_own(subject: Subject) -> Plan:
    """The file that a run writes."""
    code, settings, data = own_script(subject), subject.backbone, portable_address(subject.data)
    assert settings is not None
    if settings.stem == "auto" and isinstance(
        subject.network, ResNet
    ):  # which depends on the size, and that may be asked for
        settings = replace(settings, stem="imagenet" if is_stock(subject) else "cifar")
    return Plan(
        code,
        lambda folder: write_encoder(folder / SAFETENSORS, subject.network, asdict(settings), subject.views, data),
    )


def for_torchvision(subject: Subject) -> Plan:
    """Weights that torchvision loads strictly, with nothing in place of the classifier."""

    def write(folder: Path) -> None:
        with whole_file(folder / PICKLED) as partial:
            torch.save(weights_of(subject.network), partial)

    return Plan(torchvision_script(subject), write)


def for_hub(subject: Subject) -> Plan:
    """A folder that can be uploaded to the Hugging Face hub as it is."""
    code = hub_script(subject)

    def write(folder: Path) -> None:
        write_weights(folder / "model.safetensors", subject)
        write_json(folder / "config.json", hub_config(subject))
        write_text(folder / "README.md", readme(subject, hub_config(subject)["architecture"]))

    return Plan(code, write)


def for_onnx(subject: Subject) -> Plan:
    """An ONNX graph with its weights in one file, for batches of any size.

    Raises:
        ValueError: Packages are missing.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"onnx needs {' and '.join(missing)}: pip install 'contrastneg[onnx]'")

    def write(folder: Path) -> None:
        with silent():
            torch.onnx.export(
                subject.network,
                (black(subject),),
                folder / ONNX,
                input_names=["images"],
                output_names=["features"],
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                dynamo=True,
                verbose=False,
            )

    return Plan(onnx_script(subject), write, SAME_FEATURES_ONNX)


@contextmanager
def silent() -> Iterator[None]:
    """Without warnings and log lines, which exporters have for each of their own parts."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


PLANS: dict[Target, Callable[[Subject], Plan]] = {
    "timm": for_timm,
    "torchvision": for_torchvision,
    "safetensors": for_own,
    "onnx": for_onnx,
    "hf": for_hub,
}


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Tensors of a network by name, none of them sharing memory."""
    return {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}


def write_weights(path: Path, subject: Subject) -> None:
    """Weights as safetensors."""
    with whole_file(path) as partial:
        save_file(weights_of(subject.network), partial)


def hub_config(subject: Subject) -> dict[str, Any]:
    """``config.json`` as timm writes it for the Hugging Face hub."""
    assert subject.backbone is not None
    network: Any = subject.network
    views = subject.views
    mean, std = normalisation(views, subject.in_channels)
    options = {name: setting for name, setting in stock_options(subject).items() if name != "num_classes"}
    return {
        "architecture": stock_name(subject.backbone),
        "num_classes": 0,
        "num_features": subject.width,
        **({"model_args": options} if options else {}),
        "pretrained_cfg": {
            "tag": "contrastneg",
            "input_size": [subject.in_channels, views.size, views.size],
            "interpolation": views.view1.interpolation,
            "crop_pct": crop_share(views),
            "crop_mode": "center",
            "mean": mean,
            "std": std,
            "num_classes": 0,
            "pool_size": None,
            **{name: network.pretrained_cfg.get(name) for name in ("fixed_input_size", "first_conv", "classifier")},
        },
    }


def crop_share(views: Views) -> float:
    """The share of the short side in the crop, from which timm, rounding down, gets the very short side."""
    share = views.size / views.short_side
    return share if math.floor(views.size / share) == views.short_side else share - 1e-6
