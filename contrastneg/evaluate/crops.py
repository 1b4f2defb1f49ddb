"""Labelled images in random crops, epoch after epoch, for the protocols that train on pictures."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import DataLoader

from contrastneg import distributed
from contrastneg.checks import WrongSetting
from contrastneg.data.draws import Augment, draw_crops, rows_of
from contrastneg.data.module import PretrainData, StreamedCrops
from contrastneg.data.views import crop_batch, crop_one, normalized
from contrastneg.randomness import generator

LEAST = 2  # images of a batch on each process: batch norm needs them


class LabelledCrops:
    """Minibatches of randomly cropped and flipped images with their labels, of each batch this process's share.

    Order, boxes and flips are a function of seed, epoch and place and do not depend on the number of processes. The
    batches of an epoch differ by at most one image, so that none is so small that it weighs too much; they are larger than
    asked for where a process would get fewer than two images of one, which batch norm cannot use. Pictures are
    taken from the device's memory or from loader workers, as the data module says.

    Args:
        data: Its bank (``train``) is learned from; size, normalisation and way of loading are its own.
        positions: Positions in the bank of the labelled images to use.
        crop_scale: Smallest and largest share of the area that a crop keeps, in (0, 1].
        batch_size: Images per step on all processes together, at least 1; fewer where there are fewer.
        seed: Draws order, boxes and flips.

    Raises:
        ValueError: There are fewer than two images per process.
    """

    def __init__(
        self,
        data: PretrainData,
        positions: Int64[Tensor, " n"],
        crop_scale: tuple[float, float],
        batch_size: int,
        seed: int,
    ) -> None:
        world = distributed.world_size()
        if len(positions) < LEAST * world:
            raise ValueError(
                f"{len(positions)} labelled images are fewer than {LEAST} for each of {world} processes: label more"
            )
        bank = data.sets["train"]
        assert bank is not None
        self.data = data
        self.positions = positions
        self.labels = data.labels("train")[positions]
        self.seed = seed
        self.steps = min(-(-len(positions) // batch_size), len(positions) // (LEAST * world))
        plain = Augment(crop_scale=crop_scale, interpolation=data.views.view1.interpolation, jitter_prob=0, gray_prob=0)
        self.views = replace(data.views, view1=plain, view2=None)
        self.number = 0
        self._size = bank.uniform_size if data.loading == "memory" else None
        self._loader: DataLoader | None = None
        if self._size is None:
            self._loader = DataLoader(
                OneCrop(bank.subset(positions), self.views, seed, data.skip_bad_images),
                batch_sampler=self,
                num_workers=data.workers,
                persistent_workers=data.workers > 0,
                pin_memory=torch.cuda.is_available(),
            )

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Batches of the current epoch for worker processes: lists of (epoch, place among the labelled images)."""
        for batch in self._order():
            yield [(self.number, place) for place in batch[share(len(batch))].tolist()]

    def epoch(
        self, number: int, device: torch.device
    ) -> Iterator[tuple[Float[Tensor, "b C S S"], Int64[Tensor, " b"]]]:
        """This process's share of every batch of an epoch: images and labels on the device.

        Args:
            number: Which epoch, from 0.
            device: Where the images go.
        """
        self.number = number
        for images, place in self._streamed(device) if self._loader is not None else self._from_memory(device):
            yield images.contiguous(memory_format=self.data.memory_format), self.labels[place].to(device)

    def _order(self) -> tuple[Tensor, ...]:
        order = torch.randperm(len(self.positions), generator=generator(self.seed, "crops", self.number))
        return order.tensor_split(self.steps)

    def _from_memory(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._size is not None
        pixels = self.data.pixels("train", device)
        for step, batch in enumerate(self._order()):
            draws = generator(self.seed, "boxes", self.number, step)
            height, width = self._size
            boxes, own = draw_crops(len(batch), height, width, self.views.view1, draws), share(len(batch))
            images = pixels[self.positions[batch[own]].to(device)]
            yield crop_batch(images, rows_of(boxes, own), self.views), batch[own]

    def _streamed(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._loader is not None
        for place, crops in self._loader:
            yield normalized(crops.to(device), self.views), place


class OneCrop(StreamedCrops):
    """(epoch, position) -> one uint8 crop of that image; an image that cannot be read is replaced as in pretraining."""

    def __getitem__(self, item: tuple[int, int]) -> tuple[int, Tensor]:
        epoch, asked = item
        position, image = self._readable(asked)
        draws = generator(self.seed, "crop", epoch, asked)
        return position, crop_one(image, self.views.view1, self.views.size, draws)


def share(rows: int) -> slice:
    """This process's rows of a batch.

    Args:
        rows: Rows of the whole batch.
    """
    rank, world = distributed.rank(), distributed.world_size()
    return slice(rows * rank // world, rows * (rank + 1) // world)


def labelled_positions(data: PretrainData) -> Int64[Tensor, " n"]:
    """Positions of the bank's images that have a label."""
    return (data.labels("train") >= 0).nonzero().flatten()


def check_crop_scale(owner: Any) -> None:
    """Refuse shares of the area from which no crop can be drawn.

    Args:
        owner: Has the setting ``crop_scale``.

    Raises:
        WrongSetting: They are not two rising shares.
    """
    low, high = owner.crop_scale
    if not 0 < low <= high <= 1:
        raise WrongSetting(owner, "crop_scale", f"is {(low, high)}: give two shares of the area, 0 < low <= high <= 1")
