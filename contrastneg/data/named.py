"""The public data sets that torchvision knows, by name."""

import os
import tarfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets

from contrastneg.data.address import AddressError
from contrastneg.data.folders import open_folder
from contrastneg.data.imageset import ImageSet, in_memory_set
from contrastneg.data.lock import alone

NAMED = ("cifar10", "cifar100", "stl10", "fashion-mnist", "imagenet")
IMAGENET_FILES = "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz"


def default_root() -> Path:
    """Where public data sets are kept: $CONTRASTNEG_DATA, or contrastneg in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("CONTRASTNEG_DATA") or os.path.join(cache, "contrastneg"))


def open_named(name: str, split: str, channels: int, labels: bool | None, root: Path) -> ImageSet:
    """Open one of ``NAMED``, downloading it into ``root`` unless it is there.

    The train split of ``stl10`` is its 5,000 labelled and 100,000 unlabelled pictures (label -1). ``imagenet`` cannot
    be downloaded: ``root`` or ``root/imagenet`` must hold ``train/`` and ``val/`` with class folders, or the
    challenge's archives, which are then unpacked. Several processes open a set one after the other.

    Raises:
        AddressError: The set is neither there nor to be had.
    """
    if name == "imagenet":
        return _imagenet(split, channels, labels, root)
    with alone(root, name):
        images, targets, classes = _arrays(name, split == "train", root)
    known = labels is not False
    return in_memory_set(
        images, targets if known else None, classes if known else None, name=name, split=split, channels=channels
    )


def _arrays(name: str, train: bool, root: Path) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Pixels, labels and class names of a set that fits the memory."""
    if name == "stl10":
        return _stl10(train, root)
    if name == "fashion-mnist":
        found = _fetch(name, root, lambda download: datasets.FashionMNIST(root, train, download=download))
        return found.data[:, None], found.targets, list(found.classes)
    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    found = _fetch(name, root, lambda download: kind(root, train, download=download))
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(found.targets), list(found.classes)


def _fetch(name: str, root: Path, build: Callable[[bool], Any]) -> Any:
    """Open what lies in root; download only where torchvision finds it absent or damaged."""
    try:
        return build(False)
    except RuntimeError:  # torchvision's "not found or corrupted"
        pass
    try:
        root.mkdir(parents=True, exist_ok=True)
        return build(True)
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AddressError(f"{name} is not in {root} and cannot be downloaded ({reason}): copy it there") from error


def _stl10(train: bool, root: Path) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    if not train:
        found = _fetch("stl10", root, lambda download: datasets.STL10(root, "test", download=download))
        return torch.from_numpy(found.data), torch.from_numpy(found.labels).long(), list(found.classes)
    found = _fetch("stl10", root, lambda download: datasets.STL10(root, "train", download=download))
    # torchvision's "train+unlabeled" holds the 2.8 GB twice while it joins them
    file = root / "stl10_binary" / "unlabeled_X.bin"
    unlabelled = np.memmap(file, np.uint8, "r").reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)  # stored column by column
    n = len(found.data)
    images = np.empty((n + len(unlabelled), 3, 96, 96), np.uint8)
    images[:n], images[n:] = found.data, unlabelled
    targets = torch.cat([torch.from_numpy(found.labels).long(), torch.full((len(unlabelled),), -1)])
    return torch.from_numpy(images), targets, list(found.classes)


def _imagenet(split: str, channels: int, labels: bool | None, root: Path) -> ImageSet:
    archives = IMAGENET_FILES.replace(" and ", ", ").split(", ")
    unpacking = any((at / file).is_file() for at in (root / "imagenet", root) for file in archives)
    with alone(root, "imagenet") if unpacking else nullcontext():
        folder = _imagenet_folder(root)
    return open_folder(folder, split, channels, labels)


def _imagenet_folder(root: Path) -> Path:
    """The folder that holds train/ and val/, unpacked if only the archives are there."""
    folder = next((at for at in (root / "imagenet", root) if (at / "train").is_dir() and (at / "val").is_dir()), None)
    if folder is None:
        folder = root / "imagenet" if (root / "imagenet").is_dir() else root
        try:
            for part in ("train", "val"):
                datasets.ImageNet(folder, part)  # unpacks the archives where they lie there
        except (OSError, RuntimeError, ImportError, tarfile.TarError) as error:
            raise AddressError(
                f"imagenet is not in {root} and may not be downloaded: put {IMAGENET_FILES} there (image-net.org), "
                "or give the folder that holds train/ and val/"
            ) from error
    return folder
