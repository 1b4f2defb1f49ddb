"""The hardest keys of each query, and the log-sum-exp over all keys from the same similarities.

A few queries at a time meet all keys, so that one block of similarities serves the log-sum-exp, its gradient and an
exact search for the hardest, and the (B, K) table never exists.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg.negatives.mixes import largest_columns, row_parts

# Chunks of similarities that are held at once. On a CPU 16 are 16 MiB: with less the matrix products slow down, and from
# 32 MiB on glibc would ask the kernel for the block anew at every step.
BLOCK = 16


@dataclass(frozen=True)
class Search:
    """What the queries found among the keys; constants."""

    column: Int64[Tensor, "B N"]
    """Columns of each query's hardest keys; a query's own come first, filled up with excluded ones if fewer than N."""
    size: Int64[Tensor, " B"]
    """How many are the query's own."""
    similarity: Float[Tensor, "B N"]
    """Their cosines; 0 at excluded ones."""
    top: Float[Tensor, " B"]
    """The largest of them; -inf for a query without keys."""
    logsumexp: Float[Tensor, " B"]
    """``log sum_j e^{s_j / t}`` over all keys that are not excluded; -inf without any."""
    gradient: Float[Tensor, "B D"]
    """Its gradient to the query; 0 without any key, and where it was not asked for."""


@torch.no_grad()
def search(
    query: Float[Tensor, "B D"],
    keys: Float[Tensor, "K D"],
    exclude: Int64[Tensor, "E 2"],
    count: int,
    *,
    temperature: float,
    with_gradient: bool,
) -> Search:
    """The hardest keys of each query and the log-sum-exp over all of them.

    Args:
        query: Unit-norm queries, in the precision of the keys.
        keys: Unit-norm keys, at least one.
        exclude: Pairs (row of query, row of keys) that do not count.
        count: Keys to find for each query, from 1 to K.
        temperature: Softmax temperature t > 0 of the log-sum-exp.
        with_gradient: Whether its gradient is needed, which takes a matrix product more.
    """
    size = (len(keys) - exclude[:, 0].bincount(minlength=len(query))).clamp(max=count)
    ordered = bool((size < count).any())
    scaled = query / temperature
    column, logit = exclude.new_empty(len(query), count), query.new_empty(len(query), count)
    total, mean = query.new_empty(len(query), 1), torch.zeros_like(query)
    with torch.autocast(query.device.type, enabled=False):  # it would round the logits
        parts = list(row_parts(query, len(keys), BLOCK))
        # One block for all parts: a second that lives beside it would pass what glibc keeps of freed memory.
        room = query.new_empty(max((part.stop - part.start for part in parts), default=0), len(keys))
        for part in parts:
            block = torch.mm(scaled[part], keys.T, out=room[: part.stop - part.start])
            row, excluded = exclude[(exclude[:, 0] >= part.start) & (exclude[:, 0] < part.stop)].unbind(1)
            block[row - part.start, excluded] = -torch.inf
            found = [largest_columns(block[few], count, ordered) for few in row_parts(block, len(keys), 4)]
            column[part] = torch.cat(found)
            logit[part] = block.gather(1, column[part])
            total[part] = torch.cat([_sum_(block[few], logit[part][few]) for few in row_parts(block, len(keys))])
            if with_gradient:
                mean[part] = block @ keys
    top = logit.amax(dim=1)
    gradient = mean / (temperature * total.clamp(min=1))  # at least 1, the share of the largest, unless there is none
    similarity = (logit * temperature).masked_fill(logit == -torch.inf, 0)
    return Search(column, size, similarity, top * temperature, top + total[:, 0].log(), gradient)


def _sum_(block: Tensor, logit: Tensor) -> Tensor:
    """Turns rows of logits that fit the cache into ``exp(logit - top)``, the largest of them being known, and sums them."""
    # At least a finite number: -inf minus -inf would be NaN in a row without keys.
    top = logit.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(logit.dtype).min)
    return block.sub_(top).exp_().sum(dim=1, keepdim=True)
