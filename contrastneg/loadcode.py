"""The code that loads an exported encoder where contrastneg is not installed, as text: ``load.py`` beside the weights.

It is the one description of how an encoder is used elsewhere: the check of an export runs this very text.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models.resnet import ResNet
from torch import nn

from contrastneg.data.views import Views
from contrastneg.encoders import Backbone
from contrastneg.resnets import shape_only, widths_of
from contrastneg.subjects import Subject
from contrastneg.weights import RESNETS

SAFETENSORS, PICKLED, ONNX = "encoder.safetensors", "encoder.pth", "encoder.onnx"
TIMM = "import timm"
TENSORS = "from safetensors.torch import load_file"
LAYERS = "from torch import nn"


def script(subject: Subject, imports: Sequence[str], lines: Sequence[str]) -> str:
    """The whole of ``load.py``: it defines ``encoder`` and ``transform``.

    Args:
        subject: What is exported.
        imports: Import statements that the lines need.
        lines: Statements that make ``encoder`` from the files in ``FOLDER``.
    """
    network_lines = "\n".join(lines)
    needed = {"import torch", "from torchvision.transforms import v2", *imports}
    modules = "\n".join(sorted(needed, key=lambda line: (line.startswith("from"), line)))
    mode, side = "RGB" if subject.in_channels == 3 else "L", subject.views.size
    return f'''"""{subject.name}: an encoder of images. `from load import encoder, transform`, or copy what you need."""

from pathlib import Path

{modules}

FOLDER = Path(__file__).resolve().parent

{network_lines}

transform = v2.Compose(
    [
{transform_lines(subject.views, subject.in_channels)}
    ]
)

# from PIL import Image
# images = torch.stack([transform(Image.open("picture.jpg").convert("{mode}"))])  # (1, {subject.in_channels}, {side}, {side})
# features = encoder(images)  # (1, {subject.width})
'''


def transform_lines(views: Views, channels: int) -> str:
    """The evaluation transform in torchvision's steps, from a PIL picture to what the encoder takes."""
    mean, std = normalisation(views, channels)
    steps = (
        "ToImage()",
        f"Resize({views.short_side}, v2.InterpolationMode.{views.view1.interpolation.upper()}, antialias=True)",
        f"CenterCrop({views.size})",
        "ToDtype(torch.float32, scale=True)",
        f"Normalize({mean}, {std})",
    )
    return "\n".join(f"        v2.{step}," for step in steps)


def normalisation(views: Views, channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel; a single channel has the average of three."""
    numbers = [torch.tensor(values) for values in (views.mean, views.std)]
    if channels == 1:
        numbers = [values.mean(dim=0, keepdim=True) for values in numbers]
    mean, std = ([round(number, 7) for number in values.tolist()] for values in numbers)
    return mean, std


def timm_script(subject: Subject) -> str:
    """``load.py`` beside ``encoder.safetensors`` for timm.

    Raises:
        ValueError: timm has no such network.
    """
    settings = timm_settings(subject, "timm")
    if is_stock(subject):
        place = f'checkpoint_path=str(FOLDER / "{SAFETENSORS}")'
        made = call("timm.create_model", repr(stock_name(settings)), *stock_arguments(subject), place)
        return script(subject, [TIMM], [f"encoder = {made}.eval()"])
    imports = [TENSORS, LAYERS]
    network: Any = subject.network
    if settings.name == "resnet20":
        imports += ["from timm.models.resnet import BasicBlock, ResNet"]
        options = f'num_classes=0, channels={widths_of(network)}, stem_type="deep", stem_width={stem_width(network)}'
        lines = [f"encoder = ResNet(BasicBlock, (3, 3, 3), {options})", "encoder.layer4 = nn.Identity()"]
    else:
        imports += [TIMM]
        lines = [f"encoder = {call('timm.create_model', repr(stock_name(settings)), *width_arguments(subject))}"]
    load = f'encoder.load_state_dict(load_file(FOLDER / "{SAFETENSORS}"))'
    return script(subject, imports, [*lines, *stem_lines(network), load, "encoder.eval()"])


def hub_script(subject: Subject) -> str:
    """``load.py`` inside a folder in the form of the Hugging Face hub, for timm.

    Raises:
        ValueError: timm does not make the network by its name alone.
    """
    settings = timm_settings(subject, "hf")
    if not is_stock(subject):
        raise ValueError(
            f"hf takes networks that timm makes by their name alone, but this {settings.name} has another width or stem: "
            "give --to timm, whose load.py makes it, or --to onnx"
        )
    made = 'timm.create_model("local-dir:" + str(FOLDER), pretrained=True)'
    return script(subject, [TIMM], [f"encoder = {made}.eval()"])


def torchvision_script(subject: Subject) -> str:
    """``load.py`` beside ``encoder.pth`` for torchvision.

    Raises:
        ValueError: torchvision has no such network.
    """
    load = f'encoder.load_state_dict(torch.load(FOLDER / "{PICKLED}", weights_only=True))'
    imports = ["import torchvision", LAYERS]
    if subject.backbone is None:
        name = subject.address.partition(":")[2].partition(".")[0]
        removed = [layer for layer, module in subject.network.named_modules() if isinstance(module, nn.Identity)][-1]
        made = f"encoder = torchvision.models.{name}(weights=None)"
        return script(subject, imports, [made, f"encoder.{removed} = nn.Identity()", load, "encoder.eval()"])
    name = stock_name(subject.backbone)
    if name not in RESNETS or subject.backbone.width != 1:
        wide = f" of width {subject.backbone.width:g}" if subject.backbone.width != 1 else ""
        raise ValueError(
            f"torchvision has no {subject.backbone.name}{wide}: give --to {others(subject)} (it has {', '.join(RESNETS)})"
        )
    stem = [] if is_stock(subject) and subject.in_channels == 3 else stem_lines(subject.network)
    made = f"encoder = torchvision.models.{name}(weights=None)"
    return script(subject, imports, [made, *stem, "encoder.fc = nn.Identity()", load, "encoder.eval()"])


def own_script(subject: Subject) -> str:
    """``load.py`` beside ``encoder.safetensors`` for contrastneg itself.

    Raises:
        ValueError: The network is none that contrastneg makes.
    """
    if subject.backbone is None:
        raise ValueError(
            f"safetensors is read by contrastneg, which does not make {subject.address}: give --to torchvision or onnx"
        )
    made = f'encoder = open_subject(str(FOLDER / "{SAFETENSORS}")).network'
    return script(subject, ["from contrastneg.subjects import open_subject"], [made])


def onnx_script(subject: Subject) -> str:
    """``load.py`` beside ``encoder.onnx`` for onnxruntime; torch is there for the transform only."""
    lines = (
        f'session = onnxruntime.InferenceSession(str(FOLDER / "{ONNX}"), providers=["CPUExecutionProvider"])',
        "",
        "",
        "def encoder(images):",
        '    """Images (B, C, S, S), float32, to features (B, F), of numpy."""',
        '    return session.run(["features"], {"images": images.numpy()})[0]',
        "",
    )
    return script(subject, ["import onnxruntime"], lines)


def timm_settings(subject: Subject, target: str) -> Backbone:
    """Which network of timm it is.

    Raises:
        ValueError: None.
    """
    if subject.backbone is None:
        raise ValueError(f"{target} takes networks of timm but {subject.address} is not: give --to torchvision or onnx")
    if subject.backbone.name == "resnet9":
        raise ValueError(f"timm has no resnet9, so {target} cannot take it: give --to {others(subject)}")
    return subject.backbone


def others(subject: Subject) -> str:
    """The targets that take a network of contrastneg for certain."""
    assert subject.backbone is not None
    return "safetensors or onnx" if subject.backbone.name == "resnet9" else "timm, safetensors or onnx"


def stock_name(settings: Backbone) -> str:
    """The name of a model without the tag of published weights."""
    return settings.name.partition(".")[0]


def is_stock(subject: Subject) -> bool:
    """Whether timm makes the network by its name, with the stem and at the width that it was published with."""
    network: Any = subject.network
    assert subject.backbone is not None
    small_stem = isinstance(network, ResNet) and isinstance(network.maxpool, nn.Identity)
    return subject.backbone.name != "resnet20" and subject.backbone.width == 1 and not small_stem


def stock_arguments(subject: Subject) -> list[str]:
    """What :func:`timm.create_model` must be told beside the name."""
    return [f"{name}={setting!r}" for name, setting in stock_options(subject).items()]


def stock_options(subject: Subject) -> dict[str, Any]:
    """Arguments of :func:`timm.create_model` that are not its defaults, but for the weights."""
    assert subject.backbone is not None
    options: dict[str, Any] = {
        "num_classes": 0,
        **({"in_chans": subject.in_channels} if subject.in_channels != 3 else {}),
    }
    with torch.random.fork_rng(devices=[]):
        network: Any = timm.create_model(stock_name(subject.backbone), **options)
        if network.pretrained_cfg["input_size"][-1] != subject.views.size:
            try:
                timm.create_model(stock_name(subject.backbone), img_size=subject.views.size, **options)
                options["img_size"] = subject.views.size
            except TypeError as error:  # most take images of any size and have no such argument
                if "img_size" not in str(error):
                    raise
    heads = heads_of(subject.network)
    return options if heads == heads_of(network) else {**options, "num_heads": heads}


def heads_of(network: Any) -> int:
    """Heads of a vision transformer's attention, which its tensors do not tell; 0 for other networks."""
    return network.blocks[0].attn.num_heads if "blocks.0.attn.qkv.weight" in network.state_dict() else 0


def width_arguments(subject: Subject) -> list[str]:
    """What :func:`timm.create_model` must be told of a ResNet with another width or stem."""
    assert subject.backbone is not None
    arguments = ["num_classes=0", *([f"in_chans={subject.in_channels}"] if subject.in_channels != 3 else [])]
    if subject.backbone.width == 1:
        return arguments
    published: Any = shape_only(stock_name(subject.backbone))
    deep = [] if isinstance(published.conv1, nn.Sequential) else ['stem_type="deep"']  # replaced below
    width = stem_width(subject.network)
    return [*arguments, f"channels={widths_of(subject.network)}", f"stem_width={width}", *deep]


def stem_width(network: Any) -> int:
    """timm's ``stem_width`` of a deep stem, whose last layer is twice as wide."""
    return network.bn1.num_features // 2


def stem_lines(network: Any) -> list[str]:
    """Statements that give a ResNet of timm or torchvision the first layers of this one."""
    first = network.conv1
    lines = []
    if isinstance(first, nn.Conv2d):
        numbers = (first.in_channels, first.out_channels, first.kernel_size[0], first.stride[0], first.padding[0])
        lines = [f"encoder.conv1 = nn.Conv2d({', '.join(map(str, numbers))}, bias=False)"]
    return [*lines, *(["encoder.maxpool = nn.Identity()"] if isinstance(network.maxpool, nn.Identity) else [])]


def call(function: str, *arguments: str) -> str:
    """The text of a call."""
    return f"{function}({', '.join(arguments)})".replace("'", '"')
