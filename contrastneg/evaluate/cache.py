"""Features on the disk, so that an encoder sees a set once: found again only for the same weights, images and transform."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from contrastneg import distributed
from contrastneg.config import plain
from contrastneg.data.imageset import ImageSet
from contrastneg.data.module import PretrainData
from contrastneg.data.views import Views
from contrastneg.evaluate.features import Features, Progress, encode_set
from contrastneg.writing import whole_file

SAMPLED = 1_000  # encoded pictures that a fingerprint reads; of sets in memory it reads all pixels
MAPPED = 2**28  # bytes of features from which on a cached file is mapped, not read


def fingerprint(source: ImageSet) -> str:
    """Twelve hexadecimal digits that differ where images or labels do, wherever the set lies on the disk.

    Made of the stable indices, labels, class names and the pictures themselves: all pixels of a set in memory, else the
    encoded bytes of at most 1,000 pictures spread over the set and the number of all.
    """
    digest = hashlib.blake2b(digest_size=6)
    digest.update(json.dumps([len(source), source.channels, source.classes]).encode())
    digest.update(source.image_id.numpy().tobytes())
    if source.labels is not None:
        digest.update(source.labels.numpy().tobytes())
    if source.pixels is not None:
        digest.update(source.pixels.numpy().tobytes())
    else:
        assert source.reader is not None
        for place in np.linspace(0, len(source) - 1, min(SAMPLED, len(source))).round().astype(int).tolist():
            with source.reader.open(int(source.image_id[place])) as stream:
                digest.update(stream.read())
    return digest.hexdigest()


def weights_of(encoder: nn.Module) -> str:
    """Twelve hexadecimal digits that differ where the weights do."""
    digest = hashlib.blake2b(digest_size=6)
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FeatureCache:
    """Features by encoder, set and transform in a folder, float32 or float16, mapped into memory where they are large.

    Args:
        folder: Where the files are; made when the first is written.
        half: Store float16: half the size, each number rounded to 11 bits.
        enabled: False computes everything anew and writes nothing.
    """

    def __init__(self, folder: Path, half: bool = False, enabled: bool = True) -> None:
        self.folder = folder
        self.half = half
        self.enabled = enabled
        self.found = 0
        """How many sets of features were on the disk already."""

    def features(
        self,
        encoder: nn.Module,
        data: PretrainData,
        split: str,
        key: str,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress | None = None,
    ) -> Features:
        """Features of a split; all ranks must ask, and all get the same.

        Args:
            encoder: Images to features.
            data: Gives images and labels.
            split: "train" (bank) or "test" (queries).
            key: What tells these images from others: the fingerprint of the set.
            device: Where the encoder is.
            dtype: Arithmetic of the encoder.
            progress: Told of every batch of images that is encoded.
        """
        path = self.folder / f"{self._name(encoder, data.views, split, key, dtype)}.npy"
        there = self.enabled and bool(distributed.largest(int(path.exists() and distributed.rank() == 0)))
        if there:
            self.found += 1
            return self._read(path, data, split)
        features = features_of(encoder, data, split, device, dtype, progress=progress)
        if self.half:
            features = replace(features, x=features.x.half().float())
        if self.enabled and distributed.is_first_process():
            self._write(path, features)
        return features

    def _name(self, encoder: nn.Module, views: Views, split: str, key: str, dtype: torch.dtype) -> str:
        how = json.dumps(
            [views.size, views.view1.interpolation, plain(views.mean), plain(views.std), str(dtype), self.half]
        )
        return f"{split}-{key}-{weights_of(encoder)}-{hashlib.blake2b(how.encode(), digest_size=4).hexdigest()}"

    def _write(self, path: Path, features: Features) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        assert features.position is not None
        for target, rows in (
            (path.with_suffix(".position.npy"), features.position),
            (path, features.x.half() if self.half else features.x),  # last: its presence says that all is there
        ):
            with whole_file(target) as partial, partial.open("wb") as file:
                np.save(file, rows.numpy())

    def _read(self, path: Path, data: PretrainData, split: str) -> Features:
        position = torch.from_numpy(np.load(path.with_suffix(".position.npy")))
        large = path.stat().st_size >= MAPPED
        rows = np.load(path, mmap_mode="c" if large else None)  # copy on write: torch wants it writable
        x: Tensor = torch.from_numpy(rows)
        return Features(x.float() if self.half else x, labels_of(data, split)[position], position)


def features_of(
    encoder: nn.Module,
    data: PretrainData,
    split: str,
    device: torch.device,
    dtype: torch.dtype,
    only: Int64[Tensor, " n"] | None = None,
    progress: Progress | None = None,
) -> Features:
    """Features of a split, labelled or not; see :func:`contrastneg.evaluate.features.encode_set`."""
    x, position = encode_set(encoder, data, split, device, dtype, only, progress)
    return Features(x, labels_of(data, split)[position], position)


def labels_of(data: PretrainData, split: str) -> Int64[Tensor, " N"]:
    """Labels of a split by position, -1 throughout where nothing is labelled."""
    source = data.sets[split]
    assert source is not None
    return source.labels if source.labels is not None else torch.full((len(source),), -1)
