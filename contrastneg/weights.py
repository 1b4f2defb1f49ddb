"""Encoders out of other people's checkpoints: found by the layout of the keys, loaded strictly, without a network.

Read are files of torch and safetensors whose keys are those of a torchvision or timm ResNet or vision transformer under any
prefix, or of a ResNet whose layers were numbered by ``nn.Sequential``: official MoCo v1, v2 and v3, SimCLR ports, solo-learn,
lightly and the like. Every tensor of the encoder must be there and fit; what else the file holds (heads, queues, key
branches, optimizers) is named, not dropped in silence.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from contrastneg.encoders import Backbone, build_backbone
from contrastneg.writing import UNREADABLE

RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
    "resnext50_32x4d", "resnext101_32x8d",
)  # fmt: skip
TRANSFORMERS = ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224")
HOLDERS = ("state_dict", "model", "model_state_dict", "net", "network")  # where files keep their tensors
MOCO_V3_SMALL_HEADS = 12  # of its ViT-S (arXiv:2104.02057, official code); timm's has 6
CLASSIFIERS = (
    "fc",
    "head",
    "heads",
    "classifier",
    "head_dist",
)  # of the networks themselves, or a projector in its place
FOLLOWERS = ("encoder_k", "momentum_encoder", "momentum_backbone", "teacher", "key_encoder", "target")
FIRST_BLOCK = re.compile(r"^(.*?)(?:layer1\.0\.conv1|blocks\.0\.attn\.qkv)\.weight$")
NUMBERED_BLOCK = re.compile(r"^((?:.*\.)?)(\d+)\.0\.conv1\.weight$")
COUNTER = "num_batches_tracked"  # of batch norm; unused in evaluation, and absent from ports of TensorFlow's weights


@dataclass(frozen=True)
class ForeignEncoder:
    """An encoder from a checkpoint that this package did not write."""

    network: nn.Module
    """Images (B, C, S, S) to pooled features (B, F), in evaluation mode."""
    build: Callable[[], nn.Module]
    """Makes the same network without its weights."""
    backbone: Backbone
    """What it was recognised as."""
    prefix: str
    """Part of the file that it was read from."""
    notes: tuple[str, ...]
    """What a reader of its scores must know: what was left out of the file, what its tensors do not tell."""


def read_foreign(path: Path, backbone: Backbone | None = None, prefix: str | None = None) -> ForeignEncoder:
    """The encoder of a file.

    Args:
        path: A ``.safetensors`` file or one of ``torch.save``, read with ``weights_only=True``.
        backbone: What it is; None: recognised by names and shapes.
        prefix: Part of the file that is meant, where it holds several encoders; None: the one that was trained by
            gradient, if it can be told by its name.

    Raises:
        ValueError: The file cannot be read, holds no encoder or several, or its tensors are not those of the network.
    """
    tensors = read_tensors(path)
    found = encoders_in(tensors)
    if prefix is not None:
        found = {name: state for name, state in found.items() if name.rstrip(".") == prefix.rstrip(".")}
    if not found:
        raise ValueError(
            f"{path} holds no encoder{f' under {prefix}' if prefix else ''}: its tensors are {some(tensors)}"
        )
    name = chosen(found, path)
    state = found[name]
    backbone = replace(backbone or recognise(state, name, path), pretrained=False)
    heads = MOCO_V3_SMALL_HEADS if "base_encoder" in name and backbone.name == "vit_small_patch16_224" else None

    def build() -> nn.Module:
        try:
            network = build_backbone(backbone)
        except ValueError as error:  # which names the settings of a run
            raise ValueError(str(error).replace("method.backbone.", "backbone.")) from error
        if heads is not None:
            set_heads_(network, heads)
        return network

    network = build()
    body = without_heads(state, network.state_dict())
    load_strictly(network, body, backbone, path)
    notes = []
    left = parts(key for key in tensors if not key.startswith(name)) | {
        name + part for part in parts(state.keys() - body.keys())
    }
    if left:
        notes.append(f"left out of the file: {', '.join(sorted(left))}")
    if backbone.stem == "cifar":
        notes.append(
            "its first convolution is 3x3, taken as one of stride 1 without a max-pool: the tensors do not tell"
        )
    if heads is not None:
        notes.append(f"its attention has {heads} heads, as MoCo v3's ViT-S: the tensors do not tell")
    return ForeignEncoder(network.eval(), build, backbone, name, tuple(notes))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name.

    Raises:
        ValueError: It cannot be read, or holds no tensors where checkpoints have them.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read as safetensors: it is damaged or something else") from error
    try:
        held: Any = torch.load(
            path, map_location="cpu", weights_only=True
        )  # no mmap: MoCo's files are of the old format
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as tensors of torch: it is damaged, or holds code") from error
    for holder in HOLDERS:
        if isinstance(held, Mapping) and isinstance(held.get(holder), Mapping):
            held = held[holder]
    if not isinstance(held, Mapping):
        raise ValueError(f"{path} holds a {type(held).__name__}, no tensors by name: save a state_dict")
    return {name: tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}


def encoders_in(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each encoder in a file, under torchvision's and timm's names, by the prefix that they had."""
    found = {}
    for key in tensors:
        if match := FIRST_BLOCK.match(key):
            found[match[1]] = under(match[1], tensors)
        elif (match := NUMBERED_BLOCK.match(key)) and match[1] not in found:
            found[match[1]] = named_layers(under(match[1], tensors))
    return found


def named_layers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet's layers under their names, from their numbers in an ``nn.Sequential`` without its classifier."""
    stages = sorted({int(match[2]) for key in state if (match := NUMBERED_BLOCK.match(key)) and not match[1]})
    names = {"0": "conv1", "1": "bn1"} | {str(number): f"layer{i + 1}" for i, number in enumerate(stages)}
    renamed = {}
    for key, tensor in state.items():
        number, _, rest = key.partition(".")
        renamed[f"{names.get(number, number)}.{rest}"] = tensor
    return renamed


def chosen(found: Mapping[str, Any], path: Path) -> str:
    """The prefix of the encoder that was trained by gradient.

    Raises:
        ValueError: There are several.
    """
    leading = [name for name in found if not set(name.split(".")) & set(FOLLOWERS)] or list(found)
    if len(leading) > 1:
        raise ValueError(
            f"{path} holds several encoders, {', '.join(leading)}: say which one with --prefix, for instance "
            f"--prefix {leading[0].rstrip('.')}"
        )
    return leading[0]


def recognise(state: Mapping[str, Tensor], prefix: str, path: Path) -> Backbone:
    """Which network the tensors belong to.

    Raises:
        ValueError: None that is known has them.
    """
    lacking: dict[str, set[str]] = {}
    for backbone in possible(state):
        own = shapes_of(backbone)
        theirs = shapes_in(state, own)
        if theirs == own:
            return backbone
        if theirs.items() <= own.items():
            lacking[backbone.name] = own.keys() - theirs.keys()
    if lacking:
        name, missing = min(lacking.items(), key=lambda pair: len(pair[1]))
        raise ValueError(
            f"{path}: the encoder under {prefix!r} would be {name} but lacks {some(missing)}: give a whole file, "
            "or name it with --backbone.name"
        )
    raise ValueError(
        f"{path}: the encoder under {prefix!r} is none of {', '.join((*RESNETS, *TRANSFORMERS))} at any width: name it "
        "with --backbone.name"
    )


def possible(state: Mapping[str, Tensor]) -> Iterator[Backbone]:
    """The networks that tensors may belong to, by their first layer."""
    if "blocks.0.attn.qkv.weight" in state:
        yield from map(Backbone, TRANSFORMERS)
    elif "conv1.weight" in state:
        channels, in_channels, side = *state["conv1.weight"].shape[:2], state["conv1.weight"].shape[-1]
        stem = "cifar" if side == 3 else "imagenet"
        for name in RESNETS:
            yield Backbone(name=name, stem=stem, width=channels / 64, in_channels=int(in_channels))


def shapes_of(backbone: Backbone) -> dict[str, torch.Size]:
    """Shape of each tensor of a network by name, batch norm's counters aside; nothing is allocated."""
    with torch.device("meta"):
        tensors = build_backbone(backbone).state_dict()
    return {key: tensor.shape for key, tensor in tensors.items() if not key.endswith(COUNTER)}


def shapes_in(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, torch.Size]:
    """Shape of each tensor of a file by name, heads that a network does not have and counters aside."""
    return {key: tensor.shape for key, tensor in without_heads(state, own).items() if not key.endswith(COUNTER)}


def without_heads(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The tensors but for those of a classifier, or of a projector in its place, that the network does not have."""
    return {key: tensor for key, tensor in state.items() if key in own or key.split(".")[0] not in CLASSIFIERS}


def load_strictly(
    network: nn.Module,
    state: Mapping[str, Tensor],
    backbone: Backbone,
    path: Path,
    advice: str = "give a whole file, or name another --backbone.name",
) -> None:
    """Put tensors into a network, every one into its place; batch norm's counters alone may be missing.

    Args:
        network: Takes them.
        state: The tensors.
        backbone: What the network is, for the message.
        path: Where they are from.
        advice: What to do where they do not fit.

    Raises:
        ValueError: A tensor is missing, surplus or of another shape.
    """
    own = network.state_dict()
    state = {key: tensor for key, tensor in own.items() if key.endswith(COUNTER)} | dict(state)
    missing, surplus = own.keys() - state.keys(), state.keys() - own.keys()
    shaped = [f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in own.keys() & state.keys()
              if own[key].shape != state[key].shape]  # fmt: skip
    problems = [
        f"{what}: {some(keys)}"
        for what, keys in (("missing", missing), ("not of it", surplus), ("of another shape", shaped))
        if keys
    ]
    if problems:
        raise ValueError(f"{path} does not fit {backbone.name} ({'; '.join(problems)}): {advice}")
    network.load_state_dict(state)


def set_heads_(network: Any, heads: int) -> None:
    """Divide the attention of a vision transformer into so many heads, in place; its tensors are the same for any number."""
    for block in network.blocks:
        attention = block.attn
        attention.head_dim = attention.num_heads * attention.head_dim // heads
        attention.num_heads, attention.scale = heads, attention.head_dim**-0.5


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def parts(keys: Iterable[str]) -> set[str]:
    """What keys belong to: their first name, and their second one under the wrappers' first."""
    return {".".join(key.split(".")[: 2 if key.startswith(("module.", "model.", "_orig_mod.")) else 1]) for key in keys}


def some(names: Iterable[str], most: int = 4) -> str:
    """The first few names and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
