"""Backbones, projection heads, and the key branch that follows them.

Any timm model is a backbone, pooled and without classifier. ResNets may take the stem that small images need, at any
width. Two small networks of our own are for CPUs. Everything about an encoder is plain data, so that a checkpoint can
rebuild it without the network.
"""

import copy
import difflib
from dataclasses import dataclass
from typing import Literal

import timm
import torch
from jaxtyping import Float
from timm.models.resnet import ResNet
from torch import Tensor, nn

SMALL_IMAGE = 64  # up to this side a ResNet's published stem would leave too little of the picture


@dataclass(frozen=True)
class Backbone:
    """The encoder that is kept after pretraining."""

    name: str = "resnet18"
    """resnet9 (small, for CPUs at 32 pixels) or any model of timm."""
    stem: Literal["auto", "imagenet", "cifar", "stride2"] = "auto"
    """First layers of a ResNet: imagenet as published, cifar 3x3 at full size, stride2 3x3 at half; auto: cifar up to 64 pixels."""
    width: float = 1.0
    """Factor on the channels of a ResNet, above 0; of resnet9, whose full width is 64 channels in its first layer."""
    in_channels: int = 3
    """Channels of the images: 3 (RGB) or 1 (grey)."""
    pretrained: bool = False
    """Start a new run from timm's published weights."""

    def __post_init__(self) -> None:
        if self.width <= 0:
            raise ValueError(f"backbone.width is {self.width}: give a factor above 0")
        if self.in_channels not in (1, 3):
            raise ValueError(f"backbone.in_channels is {self.in_channels}: choose 3 (RGB) or 1 (grey)")
        if self.name == "resnet9" and (self.pretrained or self.stem == "imagenet"):
            raise ValueError(
                "backbone.name resnet9 has no published weights or stem: use stem cifar or stride2, or another"
            )


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

    def __post_init__(self) -> None:
        for name in ("layers", "out", "hidden"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"head.{name} is {getattr(self, name)}: give at least 1")

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
        """Two layers to 128, batch norm after each (arXiv:2002.05709)."""
        return cls(batch_norm="all")

    @classmethod
    def moco_v3_projector(cls, layers: int = 2) -> "Head":
        """4096 wide to 256, the last batch norm without scale and shift (arXiv:2104.02057); 3 layers for transformers."""
        return cls(layers=layers, hidden=4096, out=256, batch_norm="all", last_affine=False)

    @classmethod
    def moco_v3_predictor(cls) -> "Head":
        """4096 wide to 256, no batch norm on the output, as for ResNets (arXiv:2104.02057)."""
        return cls(hidden=4096, out=256, batch_norm="hidden")


def build_backbone(settings: Backbone, image_size: int | None = None, load_pretrained: bool = True) -> nn.Module:
    """A network from images (B, C, S, S) to pooled features (B, F), with F as its ``num_features``.

    Args:
        settings: Which network.
        image_size: Side of the images, for models that must know it (vision transformers).
        load_pretrained: False never fetches published weights: a checkpoint will be loaded over them.

    Raises:
        ValueError: The name is unknown, or the stem or width cannot be had with it.
    """
    if settings.name == "resnet9":
        return ResNet9(round(64 * settings.width), settings.in_channels, 2 if settings.stem == "stride2" else 1)
    if not timm.is_model(settings.name):
        near = difflib.get_close_matches(settings.name, [*timm.list_models(), "resnet9"], n=3)
        raise ValueError(f"backbone.name {settings.name!r} is not known to timm: did you mean {' or '.join(near)}?")
    options: dict = {}
    if settings.width != 1:
        options["channels"] = tuple(max(8, round(planes * settings.width)) for planes in (64, 128, 256, 512))
    pretrained = settings.pretrained and load_pretrained
    network = timm_model(settings, image_size, pretrained, options)
    plain_resnet = isinstance(network, ResNet) and isinstance(network.conv1, nn.Conv2d)
    if settings.stem in ("cifar", "stride2") and not plain_resnet:
        raise ValueError(
            f"backbone.stem is {settings.stem} but {settings.name} is not a plain ResNet: use stem imagenet"
        )
    small = image_size is not None and image_size <= SMALL_IMAGE and settings.stem == "auto" and not pretrained
    if plain_resnet and (small or settings.stem in ("cifar", "stride2")):
        small_stem_(network, stride=2 if settings.stem == "stride2" else 1)
    return network


def timm_model(settings: Backbone, image_size: int | None, pretrained: bool, options: dict) -> nn.Module:
    """A timm model without classifier; told the image size only if it wants to know."""
    options = {"num_classes": 0, "in_chans": settings.in_channels, "pretrained": pretrained, **options}
    if image_size is not None:
        try:
            return timm.create_model(settings.name, img_size=image_size, **options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise_for_width(settings, error)
    try:
        return timm.create_model(settings.name, **options)
    except TypeError as error:
        raise_for_width(settings, error)
        raise


def raise_for_width(settings: Backbone, error: TypeError) -> None:
    """Say that a model has no width setting, if that is what it stumbled over."""
    if "channels" in str(error):
        raise ValueError(
            f"backbone.width is {settings.width} but {settings.name} has no width to set: choose a ResNet or width 1"
        ) from error
    raise error


def small_stem_(network: ResNet, stride: int) -> None:
    """Replace the first 7x7 convolution by a 3x3 one and leave out the max-pool, for small images (SimCLR, appendix B.9)."""
    first = network.conv1
    network.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 3, stride, 1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()


class ResNet9(nn.Module):
    """A small residual network for 32-pixel images on CPUs, in the shape of the DAWNBench CIFAR-10 entries.

    Thin at full size, where most of the time goes: at width 16 it has 0.41 M parameters. Features are the largest value
    of each channel over the picture.

    Args:
        width: Channels of the first layer; the features are 8 times as many.
        in_channels: Channels of the images.
        stride: Stride of the first convolution, 1 or 2.
    """

    def __init__(self, width: int = 64, in_channels: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.num_features = 8 * width
        self.stem = nn.Sequential(conv_bn_relu(in_channels, width, stride), conv_bn_relu(width, 2 * width))
        self.stage1 = nn.Sequential(nn.MaxPool2d(2), Residual(2 * width))
        self.stage2 = nn.Sequential(conv_bn_relu(2 * width, 4 * width), nn.MaxPool2d(2))
        self.stage3 = nn.Sequential(conv_bn_relu(4 * width, 8 * width), nn.MaxPool2d(2), Residual(8 * width))
        self.pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        """Pooled features."""
        return self.pool(self.stage3(self.stage2(self.stage1(self.stem(images)))))


class Residual(nn.Module):
    """Two convolutions around which the input is carried."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv_bn_relu(channels, channels), conv_bn_relu(channels, channels))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Input plus branch."""
        return x + self.branch(x)


def conv_bn_relu(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def build_head(in_features: int, settings: Head) -> nn.Sequential:
    """A projection or prediction head.

    Args:
        in_features: Width of what it is given.
        settings: Its layers.
    """
    hidden = settings.hidden or in_features
    layers: list[nn.Module] = []
    width = in_features
    for number in range(1, settings.layers + 1):
        last = number == settings.layers
        normed = settings.batch_norm == "all" or (settings.batch_norm == "hidden" and not last)
        out = settings.out if last else hidden
        layers.append(nn.Linear(width, out, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(out, affine=settings.last_affine or not last))
        if not last:
            layers.append(nn.ReLU(inplace=True))
        width = out
    return nn.Sequential(*layers)


def make_key_branch(query_branch: nn.Module) -> nn.Module:
    """A copy that no gradient and no optimizer reaches."""
    return copy.deepcopy(query_branch).requires_grad_(False)


@torch.no_grad()
def update_key_branch_(
    key_branch: nn.Module, query_branch: nn.Module, momentum: float, buffers: Literal["own", "copy"] = "own"
) -> None:
    r"""Move the key branch towards the query branch, in place and in one fused call.

    .. math:: \theta_k \leftarrow m \theta_k + (1 - m) \theta_q

    Args:
        key_branch: Moves.
        query_branch: Stays.
        momentum: m in [0, 1]: 1 freezes, 0 copies.
        buffers: Batch-norm statistics are the key branch's ``own``, from the keys it has embedded (MoCo's official
            code), or a ``copy`` of the query branch's.
    """
    torch._foreach_lerp_(list(key_branch.parameters()), list(query_branch.parameters()), 1 - momentum)
    if buffers == "copy":
        for key_buffer, query_buffer in zip(key_branch.buffers(), query_branch.buffers(), strict=True):
            key_buffer.copy_(query_buffer)
