"""Backbones, projection heads, and the key branch that follows them.

Any timm model is a backbone, pooled and without classifier. ResNets may take the stem that small images need, at any
width (``resnets.py``). Everything about an encoder is plain data, so that a checkpoint can rebuild it without a network
connection.
"""

import copy
import difflib
from dataclasses import dataclass
from typing import Any, Literal

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.resnet import ResNet
from torch import nn

from contrastneg.checks import WrongSetting, check_kinds, check_range, check_side
from contrastneg.hub import use_what_was_fetched
from contrastneg.resnets import ResNet9, Stem, replace_stem_, resnet20, resnet_of_width, shape_only

OWN = ("resnet9", "resnet20")
SMALL_IMAGE = 64  # up to this side a ResNet's published stem would leave too little of the picture
WIDEST = 8


@dataclass(frozen=True)
class Backbone:
    """The encoder that is kept after pretraining."""

    name: str = "resnet18"
    """resnet9 or resnet20 (small, for CPUs at 32 pixels) or any model of timm."""
    stem: Literal["auto", "imagenet", "cifar", "stride2"] = "auto"
    """First layers of a ResNet: imagenet as published, cifar 3x3 at full size, stride2 3x3 at half; auto: cifar up to 64 pixels."""
    width: float = 1.0
    """Factor on all channels of a ResNet, above 0 and at most 8; a full resnet9 has 64 channels in its first layer."""
    in_channels: int = 3
    """Channels of the images: 3 (RGB) or 1 (grey)."""
    pretrained: bool = False
    """Start a new run from timm's published weights, at width 1 and with the published stem."""

    def __post_init__(self) -> None:
        check_kinds(self)
        if not 0 < self.width <= WIDEST:
            trouble = f"is {self.width}: give a factor above 0 and at most {WIDEST}, not channels"
            raise WrongSetting(self, "width", trouble)
        if self.in_channels not in (1, 3):
            raise WrongSetting(self, "in_channels", f"is {self.in_channels}: choose 3 (RGB) or 1 (grey)")
        if self.name in OWN and (self.pretrained or self.stem == "imagenet"):
            trouble = f"is {self.name}, which has no published weights or stem: use stem cifar or stride2, or another"
            raise WrongSetting(self, "name", trouble)
        if self.pretrained and self.width != 1:
            trouble = f"is {self.width} but published weights have width 1: leave out one of them"
            raise WrongSetting(self, "width", trouble)
        if self.pretrained and self.stem in ("cifar", "stride2"):
            trouble = f"is {self.stem} but published weights have the published one: use stem imagenet"
            raise WrongSetting(self, "stem", trouble)


@dataclass(frozen=True)
class Head:
    """A stack of linear layers: projector or predictor."""

    layers: int = 2
    """Linear layers, at least 1."""
    hidden: int | None = None
    """Width between layers; none: the width of the input."""
    out: int = 128
    """Width of the output."""
    batch_norm: Literal["none", "hidden", "all"] = "hidden"
    """Batch norm after no layer, after the layers between, or after the last one, too."""
    last_affine: bool = True
    """Whether the last batch norm has a scale and a shift."""
    bias: bool = True
    """Whether linear layers that no batch norm follows have a bias."""

    def __post_init__(self) -> None:
        check_kinds(self)
        check_range(self, "layers", "hidden", "out", least=1)

    @classmethod
    def moco_v1(cls) -> "Head":
        """One linear layer to 128 (arXiv:1911.05722)."""
        return cls(layers=1)

    @classmethod
    def moco_v2(cls) -> "Head":
        """Two layers to 128 without batch norm (arXiv:2003.04297)."""
        return cls(batch_norm="none")

    @classmethod
    def simclr(cls) -> "Head":
        """Two layers to 128, batch norm after each (arXiv:2002.05709); the official last one has a scale but no shift."""
        return cls(batch_norm="all")

    @classmethod
    def moco_v3_projector(cls, layers: int = 2) -> "Head":
        """4096 wide to 256, the last batch norm without scale and shift (arXiv:2104.02057); 3 layers for transformers."""
        return cls(layers=layers, hidden=4096, out=256, batch_norm="all", last_affine=False, bias=False)

    @classmethod
    def moco_v3_predictor(cls, batch_norm: Literal["hidden", "all"] = "hidden") -> "Head":
        """4096 wide to 256 (arXiv:2104.02057); batch norm on the output, too (``all``), for transformers, not for ResNets."""
        return cls(hidden=4096, out=256, batch_norm=batch_norm, last_affine=False, bias=False)


def build_backbone(settings: Backbone, image_size: int | None = None, load_pretrained: bool = True) -> nn.Module:
    """A network from images (B, C, S, S) to pooled features (B, F), with F as its ``num_features``.

    Args:
        settings: Which network.
        image_size: Side of the images in pixels, for models that must know it (vision transformers) and for the
            ``auto`` stem; None: the size that the model was published for.
        load_pretrained: False never fetches published weights: a checkpoint will be loaded over them.

    Raises:
        ValueError: The name is unknown, the stem, width or image size cannot be had with it, its output is not pooled,
            or its published weights cannot be fetched.
    """
    if image_size is not None:
        check_side(image_size)
    small = image_size is not None and image_size <= SMALL_IMAGE
    stem: Stem = ("cifar" if small else "imagenet") if settings.stem == "auto" else settings.stem
    if settings.name in OWN:
        stem = "stride2" if stem == "stride2" else "cifar"
        if settings.name == "resnet20":
            network: nn.Module = resnet20(settings.width, settings.in_channels, stem)
        else:
            network = ResNet9(max(1, round(64 * settings.width)), settings.in_channels, stem)
        return checked_if_small(network, settings, image_size)
    if not timm.is_model(settings.name):
        raise ValueError(unknown_name(settings.name))
    if settings.pretrained and stem != "imagenet" and isinstance(shape_only(settings.name), ResNet):
        raise ValueError(
            f"method.backbone.stem auto means cifar at {image_size} pixels but the published weights have another: "
            "set method.backbone.stem to imagenet, or method.backbone.pretrained to false"
        )
    if settings.width != 1:
        network = resnet_of_width(settings.name, settings.width, settings.in_channels)
    else:
        network = timm_model(settings, image_size, settings.pretrained and load_pretrained)
    if not isinstance(network, ResNet):
        check_patches(network, settings, image_size)
        if settings.stem in ("cifar", "stride2"):
            raise ValueError(f"method.backbone.stem is {stem} but {settings.name} is not a ResNet: use stem imagenet")
        check_output(network, settings, image_size)
    elif stem != "imagenet":
        replace_stem_(network, stem, settings.in_channels)
    return checked_if_small(network, settings, image_size)


def checked_if_small(network: nn.Module, settings: Backbone, image_size: int | None) -> nn.Module:
    """The network itself; tried first on images so small that its pooling may leave nothing of them."""
    if image_size is not None and image_size <= SMALL_IMAGE:
        check_output(network, settings, image_size)
    return network


def unknown_name(name: str) -> str:
    """What to say about a name that no model has, with the names nearest to it."""
    near = difflib.get_close_matches(name, [*timm.list_models(), *OWN], n=3)
    advice = f"did you mean {' or '.join(near)}?" if near else f"use {', '.join(OWN)} or one of timm.list_models()"
    return f"method.backbone.name {name!r} is not known to timm: {advice}"


def timm_model(settings: Backbone, image_size: int | None, pretrained: bool) -> nn.Module:
    """A timm model without classifier; told the image size only if it wants to know."""
    options: dict = {"num_classes": 0, "in_chans": settings.in_channels, "pretrained": pretrained}
    if pretrained:
        use_what_was_fetched()
    try:
        if image_size is None:
            return timm.create_model(settings.name, **options)
        try:
            return timm.create_model(settings.name, img_size=image_size, **options)
        except TypeError as error:  # raised by the model's constructor before anything is built
            if "img_size" not in str(error):
                raise
            return timm.create_model(settings.name, **options)
    except OSError as error:
        raise ValueError(
            f"the published weights of {settings.name} could not be fetched ({type(error).__name__}): connect once, "
            "or set method.backbone.pretrained to false"
        ) from error
    except RuntimeError as error:  # an unknown tag after the dot, or no published weights
        raise ValueError(f"method.backbone.name {settings.name} cannot be built: {first_line(error)}") from error


def check_patches(network: nn.Module, settings: Backbone, image_size: int | None) -> None:
    """Refuse images that a network would cut into patches with a rest, which it leaves out without a word."""
    cut = next((module for module in network.modules() if isinstance(module, PatchEmbed)), None)
    if image_size is None or cut is None or cut.dynamic_img_pad:
        return
    patch = int(max(cut.patch_size))
    if image_size % patch:
        raise ValueError(f"views.size is {image_size}: {settings.name} takes multiples of its patch, {patch}")


@torch.no_grad()
def check_output(network: Any, settings: Backbone, image_size: int | None) -> None:
    """Try one black image; make ``num_features`` the width of what comes out, which in some families timm's is not.

    ResNets need none above 64 pixels: their features are pooled, and as wide as they tell.
    """
    sides = (image_size, image_size) if image_size else network.pretrained_cfg["input_size"][1:]
    try:
        output = network.eval()(torch.zeros(1, settings.in_channels, *sides))
    except (RuntimeError, AssertionError) as error:
        small = isinstance(error, RuntimeError) and sides[0] <= SMALL_IMAGE
        reason = "its layers leave nothing of them" if small else first_line(error)
        raise ValueError(
            f"{settings.name} cannot take images of {sides[0]} pixels ({reason}): choose {'a larger' if small else 'another'} "
            "views.size, or another method.backbone.name"
        ) from error
    if output.ndim != 2:
        raise ValueError(
            f"{settings.name} gives an output of shape {tuple(output.shape)} where pooled features (1, F) are needed: "
            "choose another method.backbone.name"
        )
    network.num_features = output.shape[1]
    network.train()


def first_line(error: Exception) -> str:
    """The first line of an error's message, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]


def build_head(in_features: int, settings: Head) -> nn.Sequential:
    """A projection or prediction head: linear layers with ReLU between them, and batch norm before each ReLU if asked.

    Args:
        in_features: Width F of what it is given.
        settings: Its layers.

    Returns:
        A network from (B, F) to (B, ``settings.out``). A linear layer has no bias where batch norm would remove it.
    """
    hidden = settings.hidden or in_features
    layers: list[nn.Module] = []
    width = in_features
    for number in range(1, settings.layers + 1):
        last = number == settings.layers
        normed = settings.batch_norm == "all" or (settings.batch_norm == "hidden" and not last)
        out = settings.out if last else hidden
        layers.append(nn.Linear(width, out, bias=settings.bias and not normed))
        if normed:
            layers.append(nn.BatchNorm1d(out, affine=settings.last_affine or not last))
        if not last:
            layers.append(nn.ReLU(inplace=True))
        width = out
    return nn.Sequential(*layers)


def make_key_branch(query_branch: nn.Module) -> nn.Module:
    """A copy with memory of its own that no gradient and no optimizer reaches."""
    return copy.deepcopy(query_branch).requires_grad_(False)


@torch.no_grad()
def update_key_branch_(
    key_branch: nn.Module, query_branch: nn.Module, momentum: float, buffers: Literal["own", "copy"] = "own"
) -> None:
    r"""Move the key branch towards the query branch, in place and in one fused call.

    .. math:: \theta_k \leftarrow m \theta_k + (1 - m) \theta_q

    Args:
        key_branch: Moves.
        query_branch: Stays; the same parameters in the same order, of any mix of dtypes.
        momentum: m in [0, 1]: 1 freezes, 0 copies.
        buffers: Batch-norm statistics are the key branch's ``own``, from the keys it has embedded in training mode
            (MoCo's official code), or a ``copy`` of the query branch's.

    Raises:
        ValueError: The momentum is out of range.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"the momentum of the key branch is {momentum}: give a number, or a schedule, within 0 and 1")
    torch._foreach_lerp_(list(key_branch.parameters()), list(query_branch.parameters()), 1 - momentum)
    if buffers == "copy":
        for key_buffer, query_buffer in zip(key_branch.buffers(), query_branch.buffers(), strict=True):
            key_buffer.copy_(query_buffer)
