"""Growth of nested volumes along a trajectory: one function per way of orthonormalising.

Each returns the summed logarithms of the expansion of k tangent vectors, which start as the first
k columns of the identity, over the averaged steps. Exponents depend only on the nested spans of
the leading columns, so all of them give the same numbers in exact arithmetic.

Vectors are rows, ``(batch, k, state)``: Z^T = Q^T J^T.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lyap_optuna.dynamics.base import Trajectory
from lyap_optuna.dynamics.linalg import lu_factor, wide, wide_dtype
from lyap_optuna.spectrum._schedule import Schedule


@dataclass
class Growth:
    """Summed log expansions.

    Args:
        total: ``(batch, k)`` in float64 (float32 on MPS, which has no other).
        history: Running sums averaged over the inputs, ``(averaged steps, k)``, or None.
        error: How far one step was off from QR, nats/step on the upper 95 % of exponents, where
            it was checked.
    """

    total: Tensor
    history: Tensor | None = None
    error: Tensor | None = None

    @classmethod
    def zero(cls, trajectory: Trajectory, k: int, schedule: Schedule, history: bool) -> "Growth":
        """Return the start of a sum."""
        device = trajectory.states.device
        return cls(
            torch.zeros(trajectory.batch, k, dtype=wide_dtype(device), device=device),
            torch.full((schedule.averaged, k), torch.nan, dtype=wide_dtype(device), device=device)
            if history
            else None,
        )

    def add(self, expansion: Tensor, t: int, schedule: Schedule) -> None:
        """Add log|expansion| ``(batch, k)`` of the interval that closes after step t."""
        if not schedule.counts(t):
            return
        self.total += wide(expansion).abs().log()
        if self.history is not None:
            self.history[t - schedule.warmup :] = self.total.mean(0)


GrowthMethod = Callable[[Trajectory, int, Schedule, bool], Growth]


def identity_rows(trajectory: Trajectory, k: int) -> Tensor:
    """Return the first k columns of the identity as rows, ``(batch, k, state)``."""
    eye = torch.eye(
        k, trajectory.state_size, dtype=trajectory.states.dtype, device=trajectory.states.device
    )
    return eye.expand(trajectory.batch, -1, -1)


def from_closed_form(
    log_growth: Tensor, k: int, schedule: Schedule, history: bool = False
) -> Growth:
    """Diagonal Jacobians: every dimension is its own direction; the k that grow most."""
    averaged = log_growth[:, schedule.warmup :]
    total = averaged.sum(1)
    order = total.mean(0).argsort(descending=True, stable=True)[:k]
    running = averaged[..., order].mean(0).cumsum(0) if history else None
    return Growth(total[:, order], running)


def textbook(trajectory: Trajectory, k: int, schedule: Schedule, history: bool = False) -> Growth:
    """Algorithms 1 and 2 of the paper as printed: form J, multiply, QR. The reference."""
    growth = Growth.zero(trajectory, k, schedule, history)
    q = identity_rows(trajectory, k).mT
    for t in range(schedule.steps):
        q = trajectory.jacobian(t) @ q
        if schedule.closes(t):
            q, r = torch.linalg.qr(q)
            growth.add(r.diagonal(dim1=1, dim2=2), t, schedule)
    return growth


def by_tangent(trajectory: Trajectory, k: int, schedule: Schedule, history: bool = False) -> Growth:
    """Push vectors through the tangent map, no Jacobian formed; QR. For few vectors."""
    growth = Growth.zero(trajectory, k, schedule, history)
    rows = identity_rows(trajectory, k)
    for t in range(schedule.steps):
        rows = trajectory.tangent(t, rows)
        if schedule.closes(t):
            q, r = torch.linalg.qr(rows.mT)
            rows = q.mT
            growth.add(r.diagonal(dim1=1, dim2=2), t, schedule)
    return growth


def by_qr(trajectory: Trajectory, k: int, schedule: Schedule, history: bool = False) -> Growth:
    """Householder QR; Q is not formed where its reflectors can go into the next Jacobian."""
    growth = Growth.zero(trajectory, k, schedule, history)
    rows: Tensor | None = identity_rows(trajectory, k)
    reflectors = tau = identity_rows(trajectory, k)
    thin = 2 * k <= trajectory.state_size  # then forming Q costs less than applying all of it
    for t in range(schedule.steps):
        jacobian = trajectory.jacobian(t)
        if rows is None:
            rows = torch.ormqr(reflectors, tau, jacobian, left=False)[..., :k].mT
        else:
            rows = rows @ jacobian.mT
        if schedule.closes(t):
            reflectors, tau = torch.geqrf(rows.mT)
            growth.add(reflectors.diagonal(dim1=1, dim2=2), t, schedule)
            rows = torch.linalg.householder_product(reflectors, tau).mT if thin else None
    return growth


def lu_error(trajectory: Trajectory, k: int, schedule: Schedule) -> float:
    """Return how far LU is off from QR, nats/step on the upper 95 % of exponents.

    Of one input, at the first interval after the warm-up.
    """
    steps = min(schedule.steps, schedule.warmup + schedule.qr_every + 1)
    first = Schedule(steps, schedule.warmup, schedule.qr_every)
    error = by_lu(trajectory.select(slice(0, 1)), k, first, check=True).error
    return 0.0 if error is None else float(error)


def by_lu(
    trajectory: Trajectory,
    k: int,
    schedule: Schedule,
    history: bool = False,
    *,
    check: bool = False,
) -> Growth:
    """LU with partial pivoting in place of QR, closed by a QR.

    With Z = P L U the next basis is P L; P goes into the rows of the next transposed Jacobian,
    and L, lower-triangular, is multiplied in blocks of columns. With ``check`` one step of the
    first input is compared with QR, and the difference returned as ``error``.

    Raises:
        ValueError: ``history`` is asked for.
    """
    if history:
        raise ValueError("method='lu' has no running estimates: keep_history needs 'qr'.")
    growth = Growth.zero(trajectory, k, schedule, history)
    rows: Tensor | None = identity_rows(trajectory, k)
    factors = permutation = None
    for t in range(schedule.steps):
        transposed = trajectory.jacobian(t).mT
        if factors is not None and permutation is not None:
            rows = _times_lower(factors.mT, _permuted(transposed, permutation))
            factors = permutation = None
        else:
            assert rows is not None
            rows = rows @ transposed
        if not schedule.closes(t):
            continue
        if schedule.ends(t):
            q, r = torch.linalg.qr(rows.mT, mode="r" if t + 1 == schedule.steps else "reduced")
            growth.add(r.diagonal(dim1=1, dim2=2), t, schedule)
            rows = None if t + 1 == schedule.steps else q.mT
            continue
        factors, pivots = lu_factor(rows.mT)
        expansion = factors.diagonal(dim1=1, dim2=2).clone()
        growth.add(expansion, t, schedule)
        _unit_lower(factors)
        if check and growth.error is None and schedule.counts(t):
            growth.error = (
                _one_step_error(rows[:1].mT, expansion[:1], factors[:1]) / schedule.qr_every
            )
        permutation = _permutation(factors, pivots)
        rows = None
    return growth


def _unit_lower(factors: Tensor) -> None:
    # Blocks on the diagonal become unit lower-triangular; what lies above is never read.
    for start, end in _column_blocks(factors.shape[2]):
        block = factors[:, start:end, start:end]
        block.tril_(-1)
        block.diagonal(dim1=1, dim2=2).fill_(1)


def _times_lower(lower_transposed: Tensor, transposed: Tensor) -> Tensor:
    # (J P L)^T = L^T (J P)^T, skipping the zeros of L in blocks of columns.
    batch, k, size = lower_transposed.shape
    out = transposed.new_empty(batch, k, size)
    for start, end in _column_blocks(k):
        # `out` slices are not contiguous for one call over the batch: one matrix at a time
        for b in range(batch):
            torch.mm(
                lower_transposed[b, start:end, start:],
                transposed[b, start:],
                out=out[b, start:end],
            )
    return out


def _column_blocks(k: int) -> list[tuple[int, int]]:
    n = max(1, min(8, k // 64))
    edges = [i * k // n for i in range(n + 1)]
    return list(pairwise(edges))


def _permutation(factors: Tensor, pivots: Tensor) -> Tensor:
    # p with (J P)[:, j] = J[:, p[j]]: the row of each column's one in P.
    p, _, _ = torch.lu_unpack(factors, pivots, unpack_data=False)
    size = p.shape[1]
    columns: Tensor = torch.arange(size, dtype=p.dtype, device=p.device) @ p
    order: Tensor = columns.long()
    return order


def _permuted(transposed: Tensor, permutation: Tensor) -> Tensor:
    # Whole rows are moved: the columns of J are the rows of its transpose.
    batch, size, _ = transposed.shape
    offsets = torch.arange(batch, device=transposed.device).unsqueeze(1) * size
    flat = (permutation + offsets).view(-1)
    moved: Tensor = transposed.reshape(batch * size, size).index_select(0, flat)
    return moved.view(batch, size, size)


def _one_step_error(z: Tensor, expansion: Tensor, lower: Tensor) -> Tensor:
    k = z.shape[2]

    def log_r(matrix: Tensor) -> Tensor:
        r = torch.linalg.qr(matrix, mode="r")[1]
        return wide(r.diagonal(dim1=1, dim2=2)).abs().log()

    full = torch.cat([lower[:, :k].tril(), lower[:, k:]], dim=1)
    by_qr, by_lu = log_r(z), wide(expansion).abs().log() + log_r(full)
    # Below rounding neither knows anything: there they agree.
    noise = by_qr.amax(1, keepdim=True) + math.log(torch.finfo(z.dtype).eps)
    difference = by_qr.maximum(noise) - by_lu.maximum(noise)
    upper = max(1, int(0.95 * k))
    error: Tensor = difference[:, :upper].abs().max()
    return error
