"""What the candidates of a step are: how full the queue, how many the query's own image, how many of its class."""

from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Int64
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from contrastneg import distributed
from contrastneg.data.module import TwoViews
from contrastneg.negatives import Stage
from contrastneg.negatives.pipeline import check_candidates
from contrastneg.stepping import ends_epoch, is_logged


def own_share(query_id: Int64[Tensor, " B"], key_id: Int64[Tensor, " K"]) -> float:
    """Share of (query, key) pairs that show the same image; keys without an image (-1) never do."""
    keys, counts = key_id[key_id >= 0].unique(return_counts=True)
    if len(keys) == 0 or len(query_id) == 0:
        return 0.0
    place = torch.searchsorted(keys, query_id).clamp(max=len(keys) - 1)
    pairs = torch.where(keys[place] == query_id, counts[place], 0).sum()
    return pairs.item() / (len(query_id) * len(key_id))


def same_class_share(
    query_id: Int64[Tensor, " B"], key_id: Int64[Tensor, " K"], label_table: Int64[Tensor, " T"]
) -> float:
    """Share of pairs of two different images with the same known label: the false negatives of a step.

    Pairs in which either label is unknown are left out of the count and of the total; NaN where none remain.
    """
    query_label, key_label = label_table[query_id], label_table[key_id[key_id >= 0]]
    counts = key_label[key_label >= 0].bincount(minlength=int(label_table.max()) + 1)
    known = query_label >= 0
    total = int(known.sum()) * int(counts.sum())
    own = own_share(query_id[known], key_id) * int(known.sum()) * len(key_id)
    different = total - own
    return (int(counts[query_label[known]].sum()) - own) / different if different > 0 else float("nan")


def mean_age(keys: int, batch: int) -> float:
    """How many batches ago the keys of a queue were made, on average; those of the last batch 1 ago.

    Args:
        keys: Keys held, at least 1.
        batch: Keys that every batch pushed.
    """
    whole, rest = divmod(keys, batch)
    return (batch * whole * (whole + 1) / 2 + rest * (whole + 1)) / keys


def choosing(method: Any) -> list[Stage]:
    """Source stages that choose or add candidates; one that takes another positive leaves the candidates as they are."""
    return [stage for stage in method.stages if stage.chooses]


def source_of(method: Any) -> Stage | None:
    """The stage that chooses a method's candidates in place of its queue or batch, if there is one."""
    return next((stage for stage in reversed(method.stages) if stage.replaces_candidates), None)


def batch_candidates(method: Any, global_batch: int) -> int | None:
    """Candidates per query in a full batch of all processes; None where they come from a queue.

    SimCLR contrasts with both views of the other images, MoCo with their one key.
    """
    if getattr(method, "queue", None) is not None:
        return None
    return (global_batch - 1) * (1 if hasattr(method, "key_encoder") else 2)


def check_batch(method: Any, global_batch: int) -> None:
    """Refuse stages that ask for more candidates than a batch has, where candidates come from the batch.

    Args:
        method: The method.
        global_batch: Images of a micro-batch on all processes.

    Raises:
        ValueError: A stage does.
    """
    if (most := batch_candidates(method, global_batch)) is not None:
        check_candidates(method.stages, most, "a batch has {} candidates for a query: raise batch_size")


class CandidateShares(Callback):
    """Logs the state of the candidates that the coming step will see, over all ranks, at every step that is logged.

    Also before the last step of each epoch, as ``epoch/...`` for the line that ends the epoch. Where source stages choose or
    add candidates ``same_class`` is that of the table after the last of them, which the step itself counts, and so is ``own``
    where that one replaces the candidates (:meth:`contrastneg.negatives.Record.note_candidates`).

    Args:
        label_table: Label of each image by stable index, -1 unknown; None without labels. Used for this statistic only.
    """

    def __init__(self, label_table: Int64[Tensor, " T"] | None = None) -> None:
        self.label_table = label_table
        self.last: dict[str, float] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: TwoViews, batch_idx: int) -> None:
        """Look at the queue before the step changes it, or at the batch where there is no queue."""
        if is_logged(trainer) or ends_epoch(trainer, batch_idx):
            self.last = self.shares(pl_module, distributed.all_gather(batch.image_id).cpu())
            for name, share in self.last.items():
                pl_module.log(f"candidates/{name}", share)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: TwoViews, batch_idx: int
    ) -> None:
        """Keep what the step counted itself, for the end of the epoch."""
        told = {
            name.removeprefix("candidates/"): share for name, share in outputs.items() if name.startswith("candidates/")
        }
        self.last |= {name: float(share) for name, share in told.items()}

    def shares(self, method: Any, query_id: Int64[Tensor, " B"]) -> dict[str, float]:
        """``queue_fill``, ``queue_age``, ``own`` and ``same_class``, as far as they are known before the step."""
        queue: Any = getattr(method, "queue", None)
        key_id = query_id if queue is None else queue.filled_keys()[1].cpu()
        found = {}
        if queue is not None and source_of(method) is None:
            found["queue_fill"] = len(key_id) / len(queue.keys)
            if len(key_id):
                found["queue_age"] = mean_age(
                    len(key_id), len(query_id) * (2 if getattr(method, "symmetric", False) else 1)
                )
        if not len(key_id) or choosing(method):
            return found
        if queue is not None:
            found["own"] = own_share(query_id, key_id)
        if self.label_table is not None:
            found["same_class"] = same_class_share(query_id, key_id, self.label_table)
        return found

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what the epoch's last step saw, which need not be a logged step."""
        for name, share in self.last.items():
            pl_module.log(f"epoch/{name}", share)
