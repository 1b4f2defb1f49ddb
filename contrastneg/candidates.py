"""What the candidates of a step are: how full the queue, how many the query's own image, how many of its class."""

from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Int64
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from contrastneg import distributed
from contrastneg.data.module import TwoViews
from contrastneg.stepping import is_logged


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


class CandidateShares(Callback):
    """Logs the state of the candidates that the coming step will see, over all ranks, at every step that is logged.

    Also before the last step of each epoch, for the line that ends the epoch.

    Args:
        label_table: Label of each image by stable index, -1 unknown; None without labels. Used for this statistic only.
    """

    def __init__(self, label_table: Int64[Tensor, " T"] | None = None) -> None:
        self.label_table = label_table

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: TwoViews, batch_idx: int) -> None:
        """Look at the queue before the step changes it, or at the batch where there is no queue."""
        if not is_logged(trainer) and batch_idx + 1 < trainer.num_training_batches:
            return
        query_id = distributed.all_gather(batch.image_id).cpu()
        queue: Any = getattr(pl_module, "queue", None)
        key_id = query_id if queue is None else queue.filled_keys()[1].cpu()
        if queue is not None:
            pl_module.log("candidates/queue_fill", len(key_id) / len(queue.keys))
            if len(key_id):
                pl_module.log("candidates/own", own_share(query_id, key_id))
        if self.label_table is not None and len(key_id):
            pl_module.log("candidates/same_class", same_class_share(query_id, key_id, self.label_table))
