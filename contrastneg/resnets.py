"""ResNets for small images and small machines: stems, widths, and two networks that timm does not have."""

from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

Stem = Literal["imagenet", "cifar", "stride2"]
PLANES = (64, 128, 256, 512)  # of every ResNet, ResNeXt and SE-ResNet as published


def replace_stem_(network: Any, stem: Stem, in_channels: int) -> None:
    """Replace everything before the first stage by one convolution, in place; with ``imagenet`` by the published one.

    Args:
        network: Any ResNet of timm, deep stems included.
        stem: ``cifar`` is 3x3 at full size and no max-pool, for 32-pixel images (SimCLR, arXiv:2002.05709, appendix B.9);
            ``stride2`` the same at half size; ``imagenet`` 7x7 with stride 2, and the max-pool stays.
        in_channels: Channels of the images.
    """
    side, stride = {"imagenet": (7, 2), "cifar": (3, 1), "stride2": (3, 2)}[stem]
    network.conv1 = nn.Conv2d(in_channels, network.bn1.num_features, side, stride, side // 2, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm's other convolutions
    if stem != "imagenet":
        network.maxpool = nn.Identity()


def resnet_of_width(name: str, width: float, in_channels: int) -> ResNet:
    """A ResNet of timm, untrained, with every channel count times ``width``, that of the stem included.

    Args:
        name: A ResNet, ResNeXt or SE-ResNet of timm.
        width: Factor above 0; counts are rounded to whole channels.
        in_channels: Channels of the images.

    Raises:
        ValueError: The model is of another family.
    """
    published: Any = shape_only(name)
    if not isinstance(published, ResNet) or widths_of(published) != PLANES:
        raise ValueError(
            f"method.backbone.width is {width:g} but {name} has no width to set: choose a ResNet, or width 1"
        )
    shape: Any = published
    stem_width = max(1, round(shape.bn1.num_features * width / 2))
    deep = isinstance(published.conv1, nn.Sequential)
    options = {"channels": tuple(max(1, round(planes * width)) for planes in PLANES), "stem_width": stem_width}
    if not deep:
        options["stem_type"] = "deep"  # the only type whose width timm lets one choose; replaced below
    network = timm.create_model(name, num_classes=0, in_chans=in_channels, **options)
    assert isinstance(network, ResNet)
    if not deep:
        replace_stem_(network, "imagenet", in_channels)
    return network


def shape_only(name: str) -> nn.Module:
    """A model of timm whose tensors have a shape but no memory; draws no random numbers."""
    with torch.device("meta"):
        return timm.create_model(name)


def widths_of(network: Any) -> tuple[int, ...]:
    """Channels inside the blocks of each stage."""
    return tuple(info["num_chs"] // network.layer1[0].expansion for info in network.feature_info[1:])


def resnet20(width: float = 1.0, in_channels: int = 3, stem: Stem = "cifar") -> ResNet:
    """The ResNet-20 of CIFAR (arXiv:1512.03385, section 4.2): 0.27 M parameters, 64 average-pooled features at width 1.

    Three stages of three blocks; where the size changes the shortcut is a 1x1 convolution (option B of the paper).

    Args:
        width: Factor on its 16, 32 and 64 channels, above 0.
        in_channels: Channels of the images.
        stem: ``cifar`` as published, or ``stride2``.
    """
    channels = tuple(max(2, 2 * round(planes * width / 2)) for planes in (16, 32, 64))
    network = ResNet(
        BasicBlock,  # type: ignore[arg-type]  # timm's annotation names instances
        layers=(3, 3, 3),
        num_classes=0,
        channels=channels,
        stem_type="deep",
        stem_width=channels[0] // 2,
    )
    network.layer4 = nn.Identity()  # timm's forward names four stages
    replace_stem_(network, stem, in_channels)
    return network


class ResNet9(nn.Module):
    """A small residual network for 32-pixel images on CPUs, in the shape of the DAWNBench CIFAR-10 entries.

    Thin at full size, where most of the time goes: with 16 channels in its first layer it has 0.41 M parameters. The
    features are the *largest* value of each channel over the picture, as in that shape, not the average.

    Args:
        width: Channels of the first layer; the features are 8 times as many.
        in_channels: Channels of the images.
        stem: ``cifar`` at full size, or ``stride2``.
    """

    def __init__(self, width: int = 64, in_channels: int = 3, stem: Stem = "cifar") -> None:
        super().__init__()
        self.num_features = 8 * width
        self.stem = nn.Sequential(
            conv_bn_relu(in_channels, width, stride=2 if stem == "stride2" else 1), conv_bn(width, 2 * width)
        )
        self.stage1 = nn.Sequential(MaxPoolReLU(), Residual(2 * width))
        self.stage2 = nn.Sequential(conv_bn(2 * width, 4 * width), MaxPoolReLU())
        self.stage3 = nn.Sequential(conv_bn(4 * width, 8 * width), MaxPoolReLU(), Residual(8 * width))
        self.pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        """Pooled features; images have sides of at least 8 pixels (16 with ``stride2``)."""
        return self.pool(self.stage3(self.stage2(self.stage1(self.stem(images)))))


class Residual(nn.Module):
    """Two convolutions around which the input is carried."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv_bn_relu(channels, channels), conv_bn_relu(channels, channels))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Input plus branch."""
        return x + self.branch(x)


class MaxPoolReLU(nn.Module):
    """Largest of 2 x 2, then ReLU: what ReLU and pooling give, with the same gradient, and a quarter of the ReLUs."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """Halved sides, rounded down."""
        return F.relu_(F.max_pool2d(x, 2))


def conv_bn_relu(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    return conv_bn(in_channels, out_channels, stride).append(nn.ReLU(inplace=True))


def conv_bn(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False), nn.BatchNorm2d(out_channels))
