"""From an :class:`ImageSet` to batches of two views on the training device, and to batches for evaluation.

Two ways in, one interface. *Memory*: all pixels are one uint8 tensor on the training device, the loader yields positions
only and both views are made there in one batched call. *Stream*: loader workers decode and crop, the rest of the
augmentation runs batched on the device. Either way the order of images is a function of (seed, epoch) and of what the
batches save, and every random parameter a function of (seed, epoch, batch, rank) or (seed, epoch, image), so the loader's
whole state is its position.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contrastneg import distributed
from contrastneg.config import plain
from contrastneg.data.batches import Batches, ShuffledBatches
from contrastneg.data.sources import ImageSet, UnreadableImage
from contrastneg.data.views import Views, crop_pair, eval_crop, eval_view, finish_views, two_views
from contrastneg.negatives.core import Facts
from contrastneg.randomness import derive_seed, generator
from contrastneg.wording import count_of

EVAL_BATCH = 512
log = logging.getLogger("contrastneg")


class TwoViews(NamedTuple):
    """What a training step receives: two views of B images and the stable index of each image."""

    view1: Float[Tensor, "B C S S"]
    view2: Float[Tensor, "B C S S"]
    image_id: Int64[Tensor, " B"]
    support: Float[Tensor, "B V C S S"] | None = None
    """Further views of each image, for stages that ask for them."""


class Pending(NamedTuple):
    """A batch on its way to the device: ``crops`` in streaming mode, None when the pixels are there already."""

    position: Int64[Tensor, " B"]
    image_id: Int64[Tensor, " B"]
    crops: UInt8[Tensor, "B pairs*2 C S S"] | None
    seed: int


class EpochOrder:
    """Which positions make each batch of an epoch on this rank.

    Every rank sees the same order and takes its own part of each global batch. With ``drop_last`` False the rest
    of the epoch is shared out as evenly as it goes, unless that leaves some rank with a single image, which batch norm
    cannot use: fewer than two images per rank, at most 2 x ranks - 1 in all, are left out.
    """

    def __init__(
        self,
        n_images: int,
        batch_size: int,
        seed: int,
        drop_last: bool = True,
        batches: Batches = ShuffledBatches(),
    ) -> None:
        self.n_images = n_images
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.batches = batches
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        per_step = self.batch_size * distributed.world_size()
        full, rest = divmod(self.n_images, per_step)
        return full + int(not self.drop_last and rest // distributed.world_size() >= 2)

    def positions(self) -> list[Int64[Tensor, " b"]]:
        """This rank's batches of the current epoch, from its first to its last."""
        world, rank = distributed.world_size(), distributed.rank()
        order = self.batches.order(self.n_images, self.batch_size * world, self.seed, self.epoch)
        steps = order.split(self.batch_size * world)[: len(self)]
        return [step.tensor_split(world)[rank] for step in steps]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Batches for worker processes, from ``start``: lists of (epoch, position)."""
        for batch in self.positions()[self.start :]:
            yield [(self.epoch, position) for position in batch.tolist()]


class StreamedCrops(Dataset):
    """(epoch, position) -> ``pairs`` of uint8 crops of that image; runs in loader workers.

    With ``skip_bad`` an image whose damage no scan had seen is replaced by the next one of the set that can be read, so
    that batches keep their size on every rank; the position that is returned is that of the image really taken.
    """

    def __init__(self, source: ImageSet, views: Views, seed: int, skip_bad: bool = False, pairs: int = 1) -> None:
        self.source = source
        self.views = views
        self.seed = seed
        self.skip_bad = skip_bad
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: tuple[int, int]) -> tuple[int, Tensor]:
        epoch, asked = item
        position, image = self._readable(asked)
        draws = generator(self.seed, "crop", epoch, asked)
        return position, torch.cat([crop_pair(image, self.views, draws) for _ in range(self.pairs)])

    def _readable(self, position: int) -> tuple[int, UInt8[Tensor, "C H W"]]:
        for _ in range(len(self.source)):
            try:
                return position, self.source.read(position)
            except UnreadableImage as error:
                if not self.skip_bad:
                    raise
                log.warning("%s; the next image takes its place", error)
                position = (position + 1) % len(self.source)
        raise ValueError(f"no image of {self.source.address} can be read")


class StreamedEvaluation(Dataset):
    """position -> the uint8 evaluation crop of that image; runs in loader workers.

    With ``skip_bad`` an image whose damage no scan had seen has position -1 and no picture: none can take its place.
    """

    def __init__(self, source: ImageSet, views: Views, skip_bad: bool = False) -> None:
        self.source = source
        self.views = views
        self.skip_bad = skip_bad

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: int) -> tuple[int, Tensor]:
        try:
            return position, eval_crop(self.source.read(position), self.views)
        except UnreadableImage as error:
            if not self.skip_bad:
                raise
            log.warning("%s; it is left out", error)
            return -1, torch.zeros(self.source.channels, self.views.size, self.views.size, dtype=torch.uint8)


class TrainLoader:
    """Yields :class:`Pending` batches; a stateful loader in Lightning's sense, whose state is (epoch, next batch).

    ``begin`` is called with the epoch before its first batch, but not where an epoch is resumed later on.
    """

    def __init__(
        self,
        order: EpochOrder,
        image_id: Int64[Tensor, " N"],
        workers: DataLoader | None,
        begin: Callable[[int], None],
    ) -> None:
        self.order = order
        self.begin = begin
        self.image_id = image_id
        self.workers = workers
        self.sampler = self  # Lightning calls set_epoch on a loader's sampler
        self._next = 0
        self._resume_at: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.order.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """The epoch and the first batch that has not been delivered."""
        return {"epoch": self.order.epoch, "batch": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at the saved batch when that epoch comes round; a finished epoch resumes at the next one's start."""
        self._resume_at = (state["epoch"], state["batch"])

    def __iter__(self) -> Iterator[Pending]:
        # A generator: the body first runs when Lightning asks for a batch, after it has set the epoch.
        epoch, batch = self._resume_at or (-1, 0)
        self._resume_at = None
        self.order.start = batch if epoch == self.order.epoch and batch < len(self) else 0
        self._next = self.order.start
        if self.order.start == 0:
            self.begin(self.order.epoch)
        for position, crops in self._batches():
            seed = derive_seed(self.order.seed, "views", self.order.epoch, self._next, distributed.rank())
            self._next += 1
            yield Pending(position, self.image_id[position], crops, seed)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        if self.workers is None:
            for position in self.order.positions()[self.order.start :]:
                yield position, None
        else:
            for position, crops in self.workers:
                yield position, crops


class PretrainData(pl.LightningDataModule):
    """Two views for training, plain images for evaluation.

    Args:
        train: Images to pretrain on.
        views: Recipe of the two views.
        bank: Labelled images that kNN and linear probe learn from; None when nothing is labelled.
        queries: Labelled images they are asked about.
        batch_size: Images per device and micro-batch, at least 2.
        loading: ``memory`` keeps all pixels on the device, ``stream`` decodes in workers.
        workers: Loader processes in streaming mode; 0 decodes in the training process.
        seed: Seed of order, crops and colours.
        drop_last: Leave out the last, smaller batch of each epoch.
        skip_bad_images: Replace images that turn out to be unreadable while streaming, and leave them out of evaluation;
            else they end the run by name.
        channels_last: Memory format of the views that the encoder receives.
        batches: Which images share a batch. Those that follow embeddings need ``embed`` to be set to a function that gives
            the embeddings of all images by stable index, as ``contrastneg pretrain`` does.

    Raises:
        ValueError: If there are too few images for one step.
    """

    def __init__(
        self,
        train: ImageSet,
        views: Views,
        bank: ImageSet | None = None,
        queries: ImageSet | None = None,
        *,
        batch_size: int = 256,
        loading: Literal["memory", "stream"] = "memory",
        workers: int = 0,
        seed: int = 0,
        drop_last: bool = True,
        channels_last: bool = False,
        skip_bad_images: bool = False,
        batches: Batches = ShuffledBatches(),
    ) -> None:
        super().__init__()
        self.sets = {"pretrain": train, "train": bank, "test": queries}
        self.views = views
        self.batch_size = batch_size
        self.loading = loading
        self.workers = workers
        self.seed = seed
        self.drop_last = drop_last
        self.skip_bad_images = skip_bad_images
        self.batches = copy.deepcopy(batches)  # what it remembers belongs to this run
        self.embed: Callable[[], Float[Tensor, "T D"]] | None = None
        self.support_views = 0  # further views of each image, set before training by stages that ask for them
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._pixels: dict[int, UInt8[Tensor, "N C H W"]] = {}
        self._loader: TrainLoader | None = None
        self._resume_at: dict[str, Any] | None = None

    @property
    def scored(self) -> bool:
        """Whether there are labelled images to score an encoder on."""
        return self.sets["train"] is not None and self.sets["test"] is not None

    @property
    def num_classes(self) -> int:
        """Number of classes that scores are over."""
        bank = self._labelled("train")
        return len(bank.classes) if bank.classes else int(self.labels("train").max()) + 1

    @property
    def classes(self) -> list[str]:
        """Class names by label."""
        return self._labelled("train").classes or [str(label) for label in range(self.num_classes)]

    def labels(self, split: str) -> Int64[Tensor, " N"]:
        """Labels of the ``train`` (bank) or ``test`` (queries) images, by position."""
        labels = self._labelled(split).labels
        assert labels is not None
        return labels

    def label_table(self) -> Int64[Tensor, " T"] | None:
        """Label of each pretraining image by its stable index, -1 where there is none; None without any labels."""
        source = self.sets["pretrain"]
        assert source is not None
        if source.labels is None or (source.labels < 0).all():
            return None
        return by_stable_index(source.labels, source.image_id, -1)

    def facts(self, dim: int) -> Facts:
        """What stages may know of the pretraining images.

        Args:
            dim: Width of the embeddings that are compared.
        """
        source = self.sets["pretrain"]
        assert source is not None
        columns = {name: column_by_stable_index(column, source.image_id) for name, column in source.columns.items()}
        return Facts(int(source.image_id.max()) + 1, dim, self.label_table(), columns, len(source))

    def train_dataloader(self) -> TrainLoader:
        """Batches of this rank; refuses a set that is too small for a single step."""
        source = self.sets["pretrain"]
        assert source is not None
        order = EpochOrder(len(source), self.batch_size, self.seed, self.drop_last, self.batches)
        check_steps(len(source), self.batch_size, distributed.world_size(), self.drop_last)
        workers = None if self.loading == "memory" else self._worker_loader(source, order)
        self._loader = TrainLoader(order, source.image_id, workers, self._begin_epoch)
        if self._resume_at is not None:
            self._loader.load_state_dict(self._resume_at)
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        """Position of the training loader, what the order of batches depends on, and how images are prepared, which
        whoever uses the encoder must know."""
        if self._loader is None:
            return {}
        batches = self.batches.state_dict()
        state = {**self._loader.state_dict(), "views": plain(self.views)}
        return {**state, **({"batches": batches} if batches else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a saved position; Lightning restores the data module before it asks for the loader."""
        self._resume_at = state_dict or None
        if "batches" in state_dict:
            self.batches.load_state_dict(state_dict["batches"])

    def _begin_epoch(self, epoch: int) -> None:
        self.batches.refresh(self._embeddings, self.seed, epoch)

    def _embeddings(self) -> Float[Tensor, "N D"]:
        source = self.sets["pretrain"]
        assert source is not None
        if self.embed is None:
            raise ValueError(f"{type(self.batches).__name__} follows embeddings: set `embed` of the data module")
        return self.embed()[source.image_id]

    def _worker_loader(self, source: ImageSet, order: EpochOrder) -> DataLoader:
        return DataLoader(
            StreamedCrops(source, self.views, self.seed, self.skip_bad_images, self._pairs),
            batch_sampler=order,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the two views on the device that the batch has just reached."""
        if not isinstance(batch, Pending):
            return batch
        pairs = [self._pair(batch, place) for place in range(self._pairs)]
        dtype = self.trainer.lightning_module.dtype if self.trainer is not None else pairs[0][0].dtype
        (view1, view2), *further = [[self._formatted(view).to(dtype) for view in pair] for pair in pairs]
        views = [view for pair in further for view in pair][: self.support_views]
        support = torch.stack(views, dim=1) if views else None
        return TwoViews(view1, view2, batch.image_id, support)

    @property
    def _pairs(self) -> int:
        """Pairs of views made of each image."""
        return 1 + -(-self.support_views // 2)

    def _pair(self, batch: Pending, place: int) -> tuple[Float[Tensor, "B C S S"], Float[Tensor, "B C S S"]]:
        """Two views of each image; the first pair is what is contrasted, the others are support."""
        seed = batch.seed if place == 0 else derive_seed(batch.seed, "support", place)
        draws = torch.Generator().manual_seed(seed)
        if batch.crops is None:
            pixels = self.pixels("pretrain", batch.position.device)
            return two_views(pixels[batch.position], self.views, draws)
        return finish_views(batch.crops[:, 2 * place : 2 * place + 2], self.views, draws)

    def pixels(self, split: str, device: torch.device | str = "cpu") -> UInt8[Tensor, "N C H W"]:
        """All pixels of one set as one tensor on ``device``; sets that are the same object share it."""
        source = self.sets[split]
        assert source is not None
        known = self._pixels.get(id(source))
        if known is None:
            known = source.load()
        if known.device != torch.device(device):
            known = known.to(device)
        self._pixels[id(source)] = known
        return known

    def feature_batches(
        self, split: str, device: torch.device | str = "cpu", only: Int64[Tensor, " n"] | None = None
    ) -> Iterator[tuple[Float[Tensor, "b C S S"], Int64[Tensor, " b"]]]:
        """This rank's share of a set, prepared for evaluation: (images, positions), unreadable ones left out.

        Args:
            split: "pretrain", "train" (bank) or "test" (queries).
            device: Where the images go.
            only: Positions to give; None gives the whole set.
        """
        source = self._labelled(split) if split != "pretrain" else self.sets["pretrain"]
        assert source is not None
        wanted = torch.arange(len(source)) if only is None else only
        positions = wanted[distributed.rank() :: distributed.world_size()]
        if self.loading == "memory" and source.uniform_size is not None:
            pixels = self.pixels(split, device)
            for part in positions.split(EVAL_BATCH):
                yield self._formatted(eval_view(pixels[part.to(device)], self.views)), part
            return
        loader = DataLoader(
            StreamedEvaluation(source, self.views, self.skip_bad_images),
            batch_size=EVAL_BATCH if self.views.size <= 64 else 64,
            sampler=positions.tolist(),
            num_workers=self.workers,
        )
        for part, crops in loader:
            part, crops = part[part >= 0], crops[part >= 0]
            if len(part):
                yield self._formatted(eval_view(crops.to(device), self.views)), part

    def example_views(self, count: int) -> tuple[UInt8[Tensor, "n 3 S S"], UInt8[Tensor, "n 3 S S"]]:
        """Both views of some images, as pictures: what the encoder is asked to match."""
        source = self.sets["pretrain"]
        assert source is not None
        position = torch.randperm(len(source), generator=generator(self.seed, "examples"))[:count]
        streamed = StreamedCrops(source, self.views, self.seed, self.skip_bad_images)
        crops = torch.stack([streamed[0, index][1] for index in position.tolist()])
        view1, view2 = finish_views(crops, self.views, generator(self.seed, "examples", "views"))
        return self.pictures(view1), self.pictures(view2)

    def pictures(self, view: Float[Tensor, "n C S S"]) -> UInt8[Tensor, "n 3 S S"]:
        """Normalised views as pictures again."""
        mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (self.views.mean, self.views.std))
        pixels = view.cpu() * std + mean if view.shape[1] == len(mean) else view.cpu() * std.mean() + mean.mean()
        return (255 * pixels).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)

    def _labelled(self, split: str) -> ImageSet:
        source = self.sets[split]
        if source is None:
            raise ValueError(f"there is no labelled {split} set: give one with --val")
        return source

    def _formatted(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=self.memory_format)


def by_stable_index(values: Tensor, image_id: Int64[Tensor, " N"], missing: float) -> Tensor:
    """A table of values by stable index, ``missing`` where an index is not in the set."""
    table = torch.full((int(image_id.max()) + 1, *values.shape[1:]), missing, dtype=values.dtype)
    table[image_id] = values
    return table


def column_by_stable_index(column: Any, image_id: Int64[Tensor, " N"]) -> Tensor | list:
    """A metadata column by stable index: -1, NaN, False or None where an index is not in the set."""
    if isinstance(column, Tensor):
        missing = float("nan") if column.is_floating_point() else 0 if column.dtype == torch.bool else -1
        return by_stable_index(column, image_id, missing)
    table: list = [None] * (int(image_id.max()) + 1)
    for index, value in zip(image_id.tolist(), column, strict=True):
        table[index] = value
    return table


def check_steps(n_images: int, batch_size: int, world_size: int, drop_last: bool) -> None:
    """Refuse, before anything is written, a set from which not one training step can be made.

    Raises:
        ValueError: If the set is smaller than one global batch (with ``drop_last``), or gives a rank fewer than 2 images.
    """
    if batch_size < 2:
        raise ValueError(f"batch_size is {batch_size}: batch norm and negatives need at least 2 images per device")
    needed = batch_size * world_size if drop_last else 2 * world_size
    if n_images < needed:
        raise ValueError(
            f"{n_images} {'image is' if n_images == 1 else 'images are'} fewer than one step needs ({needed} = "
            f"{batch_size if drop_last else 2} per device x {count_of(world_size, 'device')}, drop_last {drop_last}): "
            "lower batch_size or add images"
        )
