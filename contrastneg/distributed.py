"""Collectives over all ranks, each the identity without a process group. Ranks may hold different numbers of rows.

A gathered tensor lists the rows of rank 0, then of rank 1, and so on: the global index of a local row is its local index
plus :func:`row_offset`. Every function here must be called on all ranks, in the same order.
"""

import os
import pickle
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

Result = TypeVar("Result")


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if _active() else 1


def row_offset(n_local: int) -> int:
    """Number of rows on lower ranks: where this rank's rows begin in a gathered tensor.

    Args:
        n_local: Rows on this rank.
    """
    return sum(_row_counts(n_local)[: rank()])


def all_gather(x: Shaped[Tensor, "b *rest"]) -> Shaped[Tensor, "B *rest"]:
    """All ranks' rows, without gradient.

    Args:
        x: This rank's rows; the other axes must agree between ranks.
    """
    x = x.detach()
    return _gather(x, _row_counts(len(x))) if _active() else x


def all_gather_with_grad(x: Float[Tensor, "b *rest"]) -> Float[Tensor, "B *rest"]:
    """All ranks' rows, with gradient: what any rank's loss does to a row flows back to the rank that owns it.

    The backward pass sums the gradient over ranks. With :func:`global_mean` and the gradient averaging of data-parallel
    training, W ranks then equal one process on the joined batch.

    Args:
        x: This rank's rows; the other axes must agree between ranks.
    """
    return _GatherWithGrad.apply(x) if _active() else x


def global_mean(values: Float[Tensor, " b"], valid: Bool[Tensor, " b"] | None = None) -> Float[Tensor, ""]:
    """Mean over all ranks' valid rows, scaled so that averaging its gradient over ranks gives the mean's gradient.

    Local sum / global count x world size. The number differs between ranks; its average over them is the mean.

    Args:
        values: One value per local row, for instance losses.
        valid: Rows that count; None means all. Rows without a positive belong here.

    Returns:
        A scalar; 0 if no rank has a valid row.
    """
    if valid is None:
        valid = torch.ones_like(values, dtype=torch.bool)
    count = valid.sum()
    if _active():
        dist.all_reduce(count)
    return torch.where(valid, values, 0).sum() * world_size() / count.clamp(min=1)


def total(x: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
    """Sum over all ranks of a tensor that has the same shape on each, without gradient.

    Args:
        x: This rank's numbers.
    """
    x = x.detach().clone()
    if _active():
        dist.all_reduce(x)
    return x


def shuffle_batch(
    x: Shaped[Tensor, "b *rest"], generator: torch.Generator
) -> tuple[Shaped[Tensor, "b *rest"], Int64[Tensor, " b"]]:
    """Deal the rows of all ranks out again at random, so that batch statistics do not give the positive away (MoCo).

    Each rank gets as many rows as it had. On one process the rows are only permuted, which protects nothing unless
    batch norm works on split groups.

    Args:
        x: This rank's rows.
        generator: CPU generator in the same state on every rank.

    Returns:
        The rows to encode, and the ``undo`` for :func:`unshuffle_batch`.
    """
    counts = _row_counts(len(x))
    start = sum(counts[: rank()])
    order = torch.randperm(sum(counts), generator=generator).to(x.device)
    rows = _gather(x, counts) if _active() else x
    own = slice(start, start + len(x))
    return rows[order[own]], order.argsort()[own]


@torch.no_grad()
def unshuffle_batch(y: Shaped[Tensor, "b *rest"], undo: Int64[Tensor, " b"]) -> Shaped[Tensor, "b *rest"]:
    """Bring what was computed from shuffled rows back to the rank and the order they came from.

    Args:
        y: One row per shuffled row, for instance key embeddings; constants.
        undo: What :func:`shuffle_batch` gave.
    """
    return all_gather(y)[undo]


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        counts = _row_counts(len(x))
        start = sum(counts[: rank()])
        ctx.own = slice(start, start + len(x))
        return _gather(x, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad.clone(memory_format=torch.contiguous_format)  # all_reduce writes in place
        dist.all_reduce(grad)
        return grad[ctx.own]


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def _row_counts(n_local: int) -> list[int]:
    """Rows on every rank. A short last batch makes them differ."""
    if not _active():
        return [n_local]
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    mine = torch.tensor([n_local], device=device)
    counts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(counts, mine)
    return torch.cat(counts).tolist()


def _gather(x: Tensor, counts: list[int]) -> Tensor:
    """Rows of all ranks; the collective wants equal shapes, so short ranks are padded and cut again."""
    most = max(counts)
    padded = x.new_zeros(most, *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def of_first_rank(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The first rank's tensor, on all ranks.

    Args:
        x: On the first rank, what to tell; on the others any tensor of that shape and type.
    """
    if not _active():
        return x
    told = x.detach().to("cuda" if dist.get_backend() == "nccl" else "cpu").contiguous().clone()
    dist.broadcast(told, 0)
    return told.to(x.device)


def is_first_process() -> bool:
    """Whether this is the process that writes files; known before a process group exists."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def from_first(name: str, work: Callable[[], Result]) -> Result:
    """What ``work`` returns on rank 0, which alone does it. The others wait however long it takes: no collective is pending,
    so none can time out, and signals are obeyed meanwhile.

    Args:
        name: Tells this call from others that may be under way.
        work: Its result must pickle.

    Raises:
        RuntimeError: On the other ranks, where ``work`` failed.
    """
    if not _active():
        return work()
    store = dist.distributed_c10d._get_default_store()
    if rank() == 0:
        sent = b""  # what the others find where it failed
        try:
            result = work()
            sent = pickle.dumps(result)
        finally:
            store.set(name, sent)  # pyright: ignore[reportArgumentType] - bytes are taken, too
    else:
        try:
            while not store.check([name]):
                time.sleep(0.1)
            sent = store.get(name)
        except dist.DistNetworkError:  # the first process has ended, and the store with it
            sent = b""
        if not sent:
            raise RuntimeError(f"the first process failed at {name!r}: its own message says why")
        result = pickle.loads(sent)
    largest(0)  # returns when all have read it
    if rank() == 0:
        store.delete_key(name)
    return result


def largest(number: int) -> int:
    """The largest of the ranks' numbers."""
    return int(_reduced(number, dist.ReduceOp.MAX))


def mean(number: float) -> float:
    """Mean of the ranks' numbers."""
    return _reduced(number, dist.ReduceOp.SUM) / world_size()


def collect(numbers: Sequence[float]) -> list[list[float]]:
    """Every rank's numbers, in rank order; for a checkpoint, from which :func:`own_part` takes them back.

    Args:
        numbers: As many on every rank.
    """
    if not _active():
        return [list(numbers)]
    held = torch.tensor([numbers], device="cuda" if dist.get_backend() == "nccl" else "cpu", dtype=torch.float64)
    return all_gather(held).tolist()


def own_part(collected: Sequence[Sequence[float]]) -> list[float]:
    """This rank's numbers out of :func:`collect`; where the number of ranks has changed, rank 0 takes the sums.

    Args:
        collected: One list for each rank of the run that collected them.
    """
    if len(collected) == world_size():
        return list(collected[rank()])
    return [sum(numbers) if rank() == 0 else 0 for numbers in zip(*collected, strict=True)]


def _reduced(number: float, how: dist.ReduceOp.RedOpType) -> float:
    if not _active():
        return number
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    held = torch.tensor(number, device=device, dtype=torch.float32 if device == "cuda" else torch.float64)
    dist.all_reduce(held, how)
    return held.item()
