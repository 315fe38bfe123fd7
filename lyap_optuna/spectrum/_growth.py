"""Growth of nested volumes along a trajectory: one time loop over a basis of tangent vectors."""

from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import Tensor

from lyap_optuna.dynamics import NotMeasurableError
from lyap_optuna.dynamics.base import Trajectory
from lyap_optuna.dynamics.linalg import wide
from lyap_optuna.spectrum._basis import METHODS
from lyap_optuna.spectrum._schedule import Schedule
from lyap_optuna.spectrum._start import as_rows

_CHECKED = 6  # intervals after which LU is compared with QR


@dataclass
class Growth:
    """Finite-time exponents, nats/step, in float64 (float32 on MPS, which has no other).

    Args:
        rates: Mean log expansion of each kept input's vectors, ``(kept, k)``.
        history: Running estimates, summed over the kept inputs, ``(averaged steps, k)``, or None.
        block: Growth of the norm of each kept input's leading vectors taken together, ``(kept,)``:
            of what has grown most within the span of their start. None unless asked for.
    """

    rates: Tensor
    history: Tensor | None = None
    block: Tensor | None = None


def measure(
    method: str,
    trajectory: Trajectory,
    rows: Tensor,
    schedule: Schedule,
    *,
    history: bool = False,
    block: int = 0,
    singular: bool = False,
    since: int = 0,
) -> Growth:
    """Follow tangent vectors along a trajectory: the time loop.

    Args:
        method: One of ``METHODS``.
        trajectory: The linearised system.
        rows: The vectors before the first step, ``(batch, k, state)``.
        schedule: Where they are orthonormalised, and what is averaged.
        history: Whether to keep running estimates.
        block: How many vectors ``Growth.block`` takes together.
        singular: Whether Jacobians are known to be singular: then a vector that has come to depend
            on those before it has expansion zero; rounding would leave it some.
        since: The first step.
    """
    basis = METHODS[method](trajectory, rows)
    done = [t + 1 for t in range(since, schedule.steps) if schedule.closes(t)]
    # In one piece: small tensors, one a step, would settle in the gaps that matrices leave, and
    # memory would grow with the steps.
    expansions = rows.new_empty(len(done), rows.shape[0], rows.shape[1])
    factors = rows.new_empty(len(done), rows.shape[0], block, block)
    closed = 0
    for t in range(since, schedule.steps):
        basis.advance(t)
        if schedule.closes(t):
            factor = basis.orthonormalise(schedule.ends(t))
            expansion = factor.diagonal(dim1=1, dim2=2).abs()
            if singular:
                noise = trajectory.state_size * torch.finfo(factor.dtype).eps
                lost = expansion <= noise * factor.triu().norm(dim=1)
                expansion = expansion.masked_fill(lost, 0)
            expansions[closed], factors[closed] = expansion, factor[:, :block, :block].triu()
            closed += 1
    growth = average(wide(expansions).log(), done, schedule, history)
    if block:
        growth.block = _growth_of_norm(wide(factors), done, schedule)
    return growth


def _growth_of_norm(factors: Tensor, done: list[int], schedule: Schedule) -> Tensor:
    """Return log(||R_T ... R_1|| / ||R_w ... R_1||) / (T - w) of each kept input, ``(kept,)``."""
    kept = torch.tensor(schedule.kept, device=factors.device)
    counts = torch.tensor(schedule.counts, device=factors.device)
    factors = factors[:, kept]
    until = torch.tensor(done, device=factors.device).unsqueeze(1) <= counts + schedule.warmup
    eye = torch.eye(factors.shape[3], dtype=factors.dtype, device=factors.device)
    factors = torch.where(until[..., None, None], factors, eye)
    before = _log_norm_of_product(factors[: bisect_right(done, schedule.warmup)])
    rate = (_log_norm_of_product(factors) - before) / counts
    return rate.nan_to_num(nan=-torch.inf, neginf=-torch.inf)  # nothing was left to grow


def _log_norm_of_product(factors: Tensor) -> Tensor:
    """Return log ||R_n ... R_1|| of ``(n, batch, k, k)``, ``(batch,)``; 0 where n is 0.

    Neighbours are multiplied, all pairs at once, and rescaled, until one matrix is left.
    """
    scale = factors.new_zeros(factors.shape[1])
    if len(factors) == 0:
        return scale
    while len(factors) > 1:
        pairs = factors[1::2] @ factors[: len(factors) // 2 * 2 : 2]
        size = pairs.abs().amax((2, 3), keepdim=True)
        scale = scale + size.log().sum((0, 2, 3))
        pairs = pairs / torch.where(size > 0, size, 1)
        factors = torch.cat([pairs, factors[len(factors) // 2 * 2 :]])
    return scale + _norm(factors[0]).log()


def _norm(matrices: Tensor) -> Tensor:
    # What has overflowed is noticed elsewhere; here it must not keep the SVD from converging.
    norm: Tensor = torch.linalg.matrix_norm(matrices.nan_to_num(0, 0, 0), 2)
    return norm


def lu_error(trajectory: Trajectory, vectors: Tensor, schedule: Schedule, singular: bool) -> float:
    """Return how far LU is off from QR, nats/step on the upper 95 % of exponents.

    In one interval of one input, after some through which each went by itself: a single interval
    shows little at first, for errors add up.
    """
    i = max(schedule.kept, key=lambda i: schedule.lengths[i])
    every, steps = schedule.qr_every, schedule.lengths[i]
    last = min(steps, every * min(_CHECKED, max(4, steps // every // 5)))
    # What was lost before an interval would come back in it as anything: there, all of them count.
    whole = singular or last < 4 * every
    first = Schedule(0 if whole else last - every, every, (last,))
    path = trajectory.select(slice(i, i + 1))
    rows = as_rows(vectors, path.states)
    by_qr, by_lu = (
        measure(method, path, rows, first, singular=singular).rates[0] for method in ("qr", "lu")
    )
    upper = max(1, int(0.95 * len(by_qr)))
    difference = torch.where(by_qr == by_lu, 0, by_qr - by_lu)  # both may be minus infinity
    return float(difference[:upper].abs().max())


def joined(parts: list[Growth]) -> Growth:
    """Put parts of a batch together."""
    histories = [part.history for part in parts if part.history is not None]
    longest = max((len(h) for h in histories), default=0)
    # A part that ended early keeps its last estimate.
    padded = [torch.cat([h, h[-1:].expand(longest - len(h), -1)]) for h in histories]
    blocks = [part.block for part in parts if part.block is not None]
    return Growth(
        torch.cat([part.rates for part in parts]),
        torch.stack(padded).sum(0) if padded else None,
        torch.cat(blocks) if blocks else None,
    )


def average(logs: Tensor, done: list[int], schedule: Schedule, history: bool) -> Growth:
    """Average log expansions over each sequence's own steps.

    Args:
        logs: Log expansion of each interval, ``(intervals, batch, k)``.
        done: Steps taken when each interval closes.
        schedule: What is averaged.
        history: Whether to keep running estimates.
    """
    kept = torch.tensor(schedule.kept, device=logs.device)
    ends = torch.tensor(schedule.counts, device=logs.device)
    taken = torch.tensor(done, device=logs.device) - schedule.warmup
    counted = (taken > 0).unsqueeze(1) & (taken.unsqueeze(1) <= ends)
    logs = torch.where(counted.unsqueeze(2), logs[:, kept], 0)
    rates = logs.sum(0) / ends.unsqueeze(1)
    if not history:
        return Growth(rates)
    # A row holds the estimate at the last orthonormalisation.
    first = bisect_right(done, schedule.warmup)
    closed = [bisect_right(done, t + 1) for t in range(schedule.warmup, schedule.steps)]
    last = [n - 1 if n > first else -1 for n in closed]
    running = logs.cumsum(0) / taken.unsqueeze(1).minimum(ends).clamp(min=1).unsqueeze(2)
    none = torch.full_like(running[:1, 0], torch.nan)
    return Growth(rates, torch.cat([running.sum(1), none])[last])


def from_closed_form(
    log_growth: Tensor, k: int, schedule: Schedule, *, history: bool = False
) -> Growth:
    """Diagonal Jacobians: every dimension is its own direction; the k that grow most."""
    steps = list(range(1, schedule.steps + 1))
    growth = average(log_growth[:, : schedule.steps].transpose(0, 1), steps, schedule, history)
    order = growth.rates.mean(0).argsort(descending=True, stable=True)[:k]
    running = growth.history
    return Growth(growth.rates[:, order], None if running is None else running[:, order])


def from_images(images: Tensor, schedule: Schedule, *, history: bool = False) -> Growth:
    """Growth of log|diag R| of the images of orthonormal vectors, which are never rescaled.

    A vector that has come to depend on those before it is dropped, with those after it.

    Args:
        images: After every step, ``(time, batch, k, state)`` in float64.
        schedule: What is averaged.
        history: Whether to keep running estimates.

    Raises:
        NotMeasurableError: The images over- or underflow.
    """
    every = range(max(1, schedule.warmup), schedule.steps + 1)
    done = [t for t in every if history or schedule.ends(t - 1)]
    factors = torch.linalg.qr(images[[t - 1 for t in done]].mT, mode="r")[1]
    expansion = factors.diagonal(dim1=2, dim2=3).abs()  # (times, batch, k)
    own = torch.tensor(done).unsqueeze(1) <= torch.tensor(schedule.lengths)
    leading = expansion[own.to(expansion.device)]
    float64 = torch.finfo(torch.float64)
    if not bool(torch.isfinite(leading).all()) or bool((leading[:, 0] < float64.tiny).any()):
        raise NotMeasurableError(
            f"Tangent vectors over- or underflow within {schedule.steps} steps of this model, "
            "which cannot be rescaled on the way: pass shorter sequences."
        )
    # R_jj is known to eps R_11: a vector is dropped where that is more than a millionth of it
    lost = (leading <= 1e6 * float64.eps * leading[:, :1]).any(0)
    k = int((~lost).long().cumprod(0).sum())
    logs = expansion[..., :k].log()
    growth = average(logs.diff(dim=0, prepend=torch.zeros_like(logs[:1])), done, schedule, history)
    norms = _norm(factors).log()
    ends = torch.tensor([done.index(schedule.lengths[i]) for i in schedule.kept])
    counts = torch.tensor(schedule.counts, device=norms.device)
    before = norms[0, schedule.kept] if schedule.warmup else 0
    growth.block = (norms[ends.to(norms.device), schedule.kept] - before) / counts
    return growth
