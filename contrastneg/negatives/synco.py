"""The six kinds of synthetic negatives of SynCo."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.negatives.core import Clock, Negatives, Stage, whole
from contrastneg.negatives.mixes import Pool, pair_norms, pair_similarity, products, query_similarity
from contrastneg.schedules import Schedule, value

COUNTS = ("interpolated", "extrapolated", "mixed", "noisy", "shifted", "signed")


@dataclass(frozen=True)
class SynCo(Stage):
    r"""Append six kinds of points made of each query's hardest candidates (arXiv:2410.02401).

    With x, y drawn from the ``pool`` candidates most similar to the query q, with replacement, each kind scaled to unit
    length:

    .. math::
        \text{interpolated: } b q + (1 - b) x,\ b \sim U(0, 1/2) \qquad
        \text{extrapolated: } q + b (x - q),\ b \sim U(1, \texttt{extrapolation}) \\
        \text{mixed: } a x + (1 - a) y,\ a \sim U(0, 1) \qquad
        \text{noisy: } x + e,\ e \sim N(0, \texttt{noise}^2 I) \\
        \text{shifted: } x + \texttt{shift} \, \nabla_x (q \cdot x) \qquad
        \text{signed: } x + \texttt{sign\_shift} \, \mathrm{sign} \nabla_x (q \cdot x)

    The gradient of q.x in x is q, so a shifted point is an interpolated one with b = shift / (1 + shift). The first and
    third kinds are MoCHi's. All points are constants, the q inside them too: the gradient reaches the query through the
    similarity alone.

    Faithful: formulas and defaults are those of the official code, with its switches for noise and shift uncrossed.
    """

    kind: ClassVar[str] = "synthesize"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})
    of_candidates: ClassVar[tuple[str, ...]] = ("pool",)

    pool: int | Schedule = 1024
    """Candidates, hardest first, that points are made of. A number or a schedule."""
    interpolated: int | Schedule = 256
    """Points between the query and a candidate, per query. A number or a schedule."""
    extrapolated: int | Schedule = 256
    """Points beyond a candidate, away from the query, per query. A number or a schedule."""
    mixed: int | Schedule = 256
    """Mixes of two candidates per query. A number or a schedule."""
    noisy: int | Schedule = 64
    """Candidates with noise per query. A number or a schedule."""
    shifted: int | Schedule = 64
    """Candidates moved along the gradient of their similarity, per query. A number or a schedule."""
    signed: int | Schedule = 64
    """Candidates moved along the signs of that gradient, per query. A number or a schedule."""
    extrapolation: float | Schedule = 1.5
    """Largest step of an extrapolated point, in steps from the query to the candidate, at least 1. A number or a schedule."""
    noise: float | Schedule = 0.01
    """Standard deviation of the noise in each coordinate. A number or a schedule."""
    shift: float | Schedule = 0.01
    """Step along the gradient. A number or a schedule."""
    sign_shift: float | Schedule = 0.01
    """Step in each coordinate along the sign of the gradient. A number or a schedule."""
    warmup_epochs: float = 10.0
    """Epochs without synthetic points."""

    def __post_init__(self) -> None:
        check_range(self, "pool", "extrapolation", least=1)
        check_range(self, *COUNTS, "noise", "shift", "sign_shift", "warmup_epochs", least=0)

    def first_epoch(self, epochs: float) -> float:
        """The end of the warm-up."""
        return self.warmup_epochs

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with the points of all six kinds appended, in the order of the settings."""
        counts = [whole(getattr(self, name), clock) for name in COUNTS]
        if clock.epoch < self.warmup_epochs or negatives.n_keys == 0 or sum(counts) == 0:
            return negatives
        pool = Pool.of(negatives, whole(self.pool, clock))
        draws = clock.generator("SynCo", negatives.similarity.device)
        extrapolation, noise, shift, sign_shift = (
            value(number, clock.progress) for number in (self.extrapolation, self.noise, self.shift, self.sign_shift)
        )
        query, share = negatives.query, shift / (1 + shift)
        kinds = [
            interpolated(query, pool, counts[0], (0.0, 0.5), draws),
            interpolated(query, pool, counts[1], (1 - extrapolation, 0.0), draws),
            mixed(pool, counts[2], draws),
            noisy(query, pool, counts[3], noise, draws),
            interpolated(query, pool, counts[4], (share, share), draws),
            signed(query, pool, counts[5], sign_shift, draws),
        ]
        return negatives.appended(torch.cat(kinds, dim=1), kept=pool.kept)


def interpolated(
    query: Float[Tensor, "B D"], pool: Pool, count: int, span: tuple[float, float], generator: torch.Generator
) -> Float[Tensor, "B count"]:
    """Cosines of the query with points on the line through itself and candidates; a share below 0 lies beyond those."""
    (x,), share = pool.draw(count, 1, span, generator)
    return query_similarity(query, pool.similarity.gather(1, x), share)


def mixed(pool: Pool, count: int, generator: torch.Generator) -> Float[Tensor, "B count"]:
    """Cosines of the query with mixes of two candidates."""
    (x, y), a = pool.draw(count, 2, (0.0, 1.0), generator)
    norm = pair_norms(pool.keys, pool.column.gather(1, x), pool.column.gather(1, y), a)
    return pair_similarity(pool.similarity.gather(1, x), pool.similarity.gather(1, y), norm, a)


def noisy(
    query: Float[Tensor, "B D"], pool: Pool, count: int, scale: float, generator: torch.Generator
) -> Float[Tensor, "B count"]:
    """Cosines of the query with candidates plus noise; the one kind that needs its (B, count, D) numbers."""
    (x,), _ = pool.draw(count, 1, (0.0, 1.0), generator)
    size = (len(query), count, query.shape[1])
    noise = scale * torch.randn(size, generator=generator, device=query.device, dtype=query.dtype)
    along_key = products(pool.keys, pool.column.gather(1, x), noise)
    norm = (1 + 2 * along_key + noise.square().sum(dim=2)).sqrt()
    with torch.autocast(query.device.type, enabled=False):
        along_query = (noise @ query[:, :, None]).squeeze(2)
    return (pool.similarity.gather(1, x) + along_query) / norm.clamp(min=1e-12)


def signed(
    query: Float[Tensor, "B D"], pool: Pool, count: int, step: float, generator: torch.Generator
) -> Float[Tensor, "B count"]:
    r"""Cosines of the query with candidates moved by ``step`` along the signs c of the query.

    .. math:: (s_x + \eta \, q \cdot c) / \sqrt{1 + 2 \eta \, x \cdot c + \eta^2 \|c\|^2}
    """
    (x,), _ = pool.draw(count, 1, (0.0, 1.0), generator)
    sign = query.detach().sign()
    along_key = products(pool.keys, pool.column.gather(1, x), sign)
    norm = (1 + 2 * step * along_key + step**2 * sign.abs().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
    along_query = (query * sign).sum(dim=1, keepdim=True)
    return (pool.similarity.gather(1, x) + step * along_query) / norm.clamp(min=1e-12)
