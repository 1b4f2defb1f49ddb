"""Log-sum-exp over many keys in one pass, with a gradient that comes out of the same pass; and over a table.

The gradient of ``log sum_j exp(q.k_j / t)`` with respect to ``q`` is the softmax-weighted mean of the keys, over t. Both
numbers are sums over keys, so one walk over tiles of keys yields them together and the (B, K) table never exists.
Where stages edit the table it must exist; then :func:`table_logsumexp` touches it as few times as it can.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

# Keys per tile. A CPU wants few launches and a (B, tile) block near its second-level cache: a tile as long as CPU_BLOCK numbers
# allow, between the two lengths. Neither is a power of two, with which rows share cache sets: 512 took a tenth longer.
CPU_TILE = 2304
CPU_TILE_AT_LEAST = 576
CPU_BLOCK = 256 * 2304
GPU_TILE = 8192  # few, large launches
# Numbers of a table that are worked on at once.
TABLE_CPU = 1 << 17
TABLE_GPU = 1 << 24


def one_pass_logsumexp(
    query: Float[Tensor, "B D"],
    keys: Float[Tensor, "K D"],
    *,
    temperature: float,
    exclude: Int64[Tensor, "E 2"] | None = None,
) -> Float[Tensor, " B"]:
    r"""Log-sum-exp of each query's similarities to all keys, differentiable in the query.

    .. math:: \log \sum_j e^{q \cdot k_j / t}

    A running maximum keeps it exact at any temperature. Extra memory is O(B (tile + D)). Nothing of the keys is kept for
    the backward pass, so they may be overwritten before it: a queue needs no clone.

    Args:
        query: Query embeddings. Computed in float32, or in float64 if they are.
        keys: Key embeddings, constants; a lower precision is widened tile by tile.
        temperature: Softmax temperature t > 0.
        exclude: Pairs (row of query, row of keys) to leave out, for instance :func:`own_pairs`.

    Returns:
        One value per query, in nats; -inf with zero gradient for a query that has no key left.

    Raises:
        ValueError: The temperature is not positive, or the keys ask for a gradient.
    """
    return one_pass_logsumexp_max(query, keys, temperature=temperature, exclude=exclude)[0]


def one_pass_logsumexp_max(
    query: Float[Tensor, "B D"],
    keys: Float[Tensor, "K D"],
    *,
    temperature: float,
    exclude: Int64[Tensor, "E 2"] | None = None,
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """As :func:`one_pass_logsumexp`, and each query's largest similarity from the same pass.

    Args:
        query: See :func:`one_pass_logsumexp`.
        keys: See :func:`one_pass_logsumexp`.
        temperature: See :func:`one_pass_logsumexp`.
        exclude: See :func:`one_pass_logsumexp`.

    Returns:
        The log-sum-exp, and the largest cosine among the keys that count (-inf if none), without gradient. A query whose
        positive is above it is a hit of the proxy task.

    Raises:
        ValueError: The temperature is not positive, or the keys ask for a gradient.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if keys.requires_grad:
        raise ValueError(
            "one_pass_logsumexp has no gradient for keys but they require one: detach them or use info_nce"
        )
    wide = query.to(torch.promote_types(query.dtype, torch.float32))
    return _OnePass.apply(wide, keys.detach(), temperature, exclude)


def table_logsumexp(
    neg: Float[Tensor, "B M"], log_weight: Float[Tensor, "B M"] | None = None, *, temperature: float
) -> Float[Tensor, " B"]:
    r"""Log-sum-exp of each row of a table of similarities, differentiable (once) in similarities and weights.

    .. math:: \log \sum_j w_j e^{n_j / t}

    No table is made forward and one backward; torch's own operators would make about eight, and at 65,536 columns it is
    memory, not arithmetic, that takes the time.

    Args:
        neg: Similarities. Computed in float32, or in float64 if they are.
        log_weight: ``log w``, -inf drops an entry. None means all 0.
        temperature: Softmax temperature t > 0.

    Returns:
        One value per row, in nats; -inf with zero gradient for a row that has no entry left.

    Raises:
        ValueError: The temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    wide = neg.to(torch.promote_types(neg.dtype, torch.float32))
    if wide.shape[1] == 0:
        return wide.sum(dim=1) - torch.inf
    return _TableLogSumExp.apply(wide, log_weight, temperature)


def own_pairs(query_id: Int64[Tensor, " B"], key_id: Int64[Tensor, " K"]) -> Int64[Tensor, "E 2"]:
    """Pairs (query, key) that come from the same image; an id of -1 matches nothing, lower ones name foreign images.

    The keys are first looked up among the sorted query ids, so a large queue costs K log B and no (B, K) comparison.

    Args:
        query_id: Image index of each query.
        key_id: Image index of each key.

    Returns:
        Rows (index into queries, index into keys).
    """
    if len(query_id) == 0:
        return query_id.new_empty(0, 2)
    known, order = query_id.sort()
    place = torch.searchsorted(known, key_id)
    column = ((known[place.clamp(max=len(known) - 1)] == key_id) & (key_id != -1)).nonzero()[:, 0]
    begin = place[column]
    count = torch.searchsorted(known, key_id[column], right=True) - begin  # queries of the image of each such key
    shift = (begin - count.cumsum(dim=0) + count).repeat_interleave(count)
    row = order[torch.arange(len(shift), device=shift.device) + shift]
    return torch.stack([row, column.repeat_interleave(count)], dim=1)


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, keys, temperature, exclude):
        # Autocast would round the products to bfloat16: at t = 0.01 that is an error of 0.2 in a logit.
        with torch.autocast(query.device.type, enabled=False):
            lse, top, mean_key = _walk(query / temperature, keys, exclude, with_mean=ctx.needs_input_grad[0])
        ctx.save_for_backward(mean_key.div_(temperature))
        top = top.mul_(temperature)
        ctx.mark_non_differentiable(top)
        return lse, top

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_lse, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return grad_lse[:, None] * gradient, None, None, None


class _TableLogSumExp(torch.autograd.Function):
    """Keeps the table itself and one number per row; a few rows at a time, so that no second table is made forward."""

    @staticmethod
    def forward(ctx, neg, log_weight, temperature):
        lse = neg.new_empty(len(neg))
        for part in _row_parts(neg):
            weight = _logits(neg, log_weight, temperature, part)
            # At least a finite number: -inf minus -inf would be NaN in a row without entries.
            top = weight.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(weight.dtype).min)
            lse[part] = (top + weight.sub_(top).exp_().sum(dim=1, keepdim=True).log_())[:, 0]
        ctx.temperature = temperature
        ctx.save_for_backward(neg, log_weight, lse)
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_lse):  # pyright: ignore[reportIncompatibleMethodOverride]
        neg, log_weight, lse = ctx.saved_tensors
        to_neg, to_weight, _ = ctx.needs_input_grad
        share = torch.empty_like(neg)
        scale = grad_lse[:, None] if to_weight else grad_lse[:, None] / ctx.temperature
        lowest = lse.clamp(min=torch.finfo(lse.dtype).min)[:, None]  # finite, as above
        for part in _row_parts(neg):
            weight = _logits(neg, log_weight, ctx.temperature, part).sub_(lowest[part]).exp_()
            torch.mul(weight, scale[part], out=share[part])
        if not to_weight:
            return share, None, None
        return (share / ctx.temperature if to_neg else None), share, None


def _logits(neg: Tensor, log_weight: Tensor | None, temperature: float, part: slice) -> Tensor:
    logit = neg[part] / temperature
    return logit if log_weight is None else logit.add_(log_weight[part])


def _row_parts(table: Tensor) -> Iterator[slice]:
    """Rows whose numbers stay in the second-level cache of a CPU, or that are a good launch on a GPU."""
    numbers = TABLE_CPU if table.device.type == "cpu" else TABLE_GPU
    step = max(1, numbers // max(1, table.shape[1]))
    return (slice(start, start + step) for start in range(0, len(table), step))


def _walk(scaled: Tensor, keys: Tensor, exclude: Tensor | None, with_mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp (B,), largest logit (B,) and softmax-weighted mean key (B, D) of ``scaled @ keys.T``."""
    tile = _tile(scaled)
    block = scaled.new_empty(len(scaled), min(tile, len(keys)))
    # A finite start: -inf minus -inf would be NaN where a whole tile is excluded.
    top = scaled.new_full((len(scaled),), torch.finfo(scaled.dtype).min)
    total = torch.zeros_like(top)  # sum of exp(logit - top)
    mean = torch.zeros_like(scaled)  # sum of exp(logit - top) * key
    holes = _by_tile(exclude, len(keys), tile)
    for number, start in enumerate(range(0, len(keys), tile)):
        part = keys[start : start + tile].to(scaled.dtype)
        logit = torch.mm(scaled, part.T, out=block[:, : len(part)])
        if (hole := holes[number]) is not None:
            row, column = hole.unbind(1)
            logit[row, column - start] = -torch.inf
        higher = torch.maximum(top, logit.amax(dim=1))
        shrink = (top - higher).exp_()
        top = higher
        weight = logit.sub_(top[:, None]).exp_()
        total.mul_(shrink).add_(weight.sum(dim=1))
        if with_mean:
            mean.mul_(shrink[:, None]).addmm_(weight, part)
    empty = total == 0  # otherwise total >= 1, the share of the maximum itself
    mean.div_(total.clamp(min=1)[:, None])
    return top + total.log(), top.masked_fill(empty, -torch.inf), mean


def _tile(query: Tensor) -> int:
    """Keys to walk over at once."""
    if query.device.type != "cpu":
        return GPU_TILE
    return min(CPU_TILE, max(CPU_TILE_AT_LEAST, CPU_BLOCK // max(1, len(query))))


def _by_tile(exclude: Tensor | None, count: int, tile: int) -> list[Tensor | None]:
    """The excluded pairs of each tile, None for a tile without any."""
    tiles = -(-count // tile)
    if exclude is None or len(exclude) == 0:
        return [None] * tiles
    ordered = exclude[exclude[:, 1].argsort()]
    ends = torch.arange(tile, tiles * tile + 1, tile, device=exclude.device)
    bounds = [0, *torch.searchsorted(ordered[:, 1].contiguous(), ends).tolist()]
    return [ordered[a:b] if b > a else None for a, b in pairwise(bounds)]
