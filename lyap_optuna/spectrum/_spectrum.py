"""``lyapunov_spectrum``: the one entry to whole or leading spectra."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics import Dynamics, Trajectory, resolve
from lyap_optuna.spectrum import _growth
from lyap_optuna.spectrum._schedule import Schedule, integer, make_schedule
from lyap_optuna.spectrum._workers import map_in_workers, number_of_workers
from lyap_optuna.spectrum.base import LyapunovSpectrum

_METHODS: Mapping[str, _growth.GrowthMethod] = {
    "textbook": _growth.textbook,
    "tangent": _growth.by_tangent,
    "qr": _growth.by_qr,
    "lu": _growth.by_lu,
}

_MATRICES_PER_INPUT = 7
"""Matrices of the state's size that a step holds at once, for each input (see ``max_memory``)."""

_SMALLEST_LU = 64  # exponents; below, calls cost more than what LU saves
_WORTH_A_WORKER = 64 * 64  # numbers in the tangent vectors of an input


@torch.no_grad()
def lyapunov_spectrum(
    module: nn.Module | Dynamics,
    inputs: Any,
    *,
    k: int | None = None,
    warmup: int | None = None,
    qr_every: int = 1,
    state: str = "hidden",
    initial_state: Any = None,
    keep_history: bool = False,
    method: str = "auto",
    layer: str | nn.Module | None = None,
    rtol: float = 1e-3,
    max_memory: int = 512 * 2**20,
) -> LyapunovSpectrum:
    """Measure the Lyapunov spectrum of a recurrent network driven by inputs.

    The tangent map T = J_T ... J_2 J_1 acts on tangent vectors that start as the identity and
    are orthonormalised as they go; exponent i is the mean log expansion of the i-th one (paper,
    equation 5, Algorithms 1 and 2). Nothing of the module, and no global random state, changes.

    Args:
        module: An ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU``; a model that contains exactly one (or
            whose one is named by ``layer``); or a :class:`~lyap_optuna.RecurrentDynamics`.
        inputs: What the module's forward takes, ``batch_first`` respected: a tensor, a tuple of
            arguments or a dict of keyword arguments. In a model, what reaches the recurrent
            layer in eval mode drives it. For a dynamics ``(batch, time, features)``.
        k: Number of leading exponents; None for all S.
        warmup: Steps at the front of the inputs in which states and vectors evolve and nothing
            is averaged; ``min(20, T // 5)`` where it is None.
        qr_every: Orthonormalisation interval in steps (the paper's T_ON). Longer is faster and
            safe for the leading exponents; the tail gets a spurious plateau (appendix C).
        state: For an LSTM, ``"hidden"`` (the paper's: h with c held, N exponents) or ``"full"``
            (h and c, 2N exponents). The same for other layers.
        initial_state: As the recurrent layer's forward takes it; zeros where it is None and the
            model passes none.
        keep_history: Keep running estimates, for convergence plots.
        method: ``"auto"``; ``"textbook"``, the reference; ``"tangent"``, ``"qr"`` or ``"lu"``.
        layer: Name of the recurrent layer in a model with several, or the layer itself.
        rtol: ``"auto"`` uses LU unless it is off from QR, on one step, by more than this
            (nats/step) on the upper 95 % of the spectrum.
        max_memory: Bytes for matrices of the state's size. A step holds about 7 S^2 numbers for
            each input that is measured at the same time; where that would be more, fewer are.

    Returns:
        The spectrum, on the CPU in float64.

    Raises:
        ValueError: An argument is bad; the message names it and says what to do.

    Example:
        >>> import torch
        >>> import lyap_optuna as lyap
        >>> lstm = torch.nn.LSTM(input_size=8, hidden_size=16, batch_first=True)
        >>> spectrum = lyap.lyapunov_spectrum(lstm, torch.randn(10, 100, 8))
        >>> spectrum.exponents.shape
        torch.Size([16])
    """
    if method != "auto" and method not in _METHODS:
        raise ValueError(f"method must be one of {['auto', *_METHODS]}, but got {method!r}.")
    if not rtol > 0:
        raise ValueError(f"rtol must be positive, but got {rtol!r}.")
    if not max_memory > 0:
        raise ValueError(f"max_memory must be a positive number of bytes, but got {max_memory!r}.")
    if method == "lu" and keep_history:
        raise ValueError("method='lu' keeps no history: pass method='qr' or 'auto'.")
    layers = resolve(module, inputs, state=state, initial_state=initial_state, layer=layer)
    (driven,) = layers.values()
    trajectory = driven.trajectory
    size = trajectory.state_size
    k = size if k is None else checked_k(k, size)
    schedule = make_schedule(trajectory.steps, warmup, qr_every)

    closed = trajectory.closed_log_growth
    if method == "auto" and closed is not None:
        growth = _growth.from_closed_form(closed, k, schedule, keep_history)
        return _assemble(growth.total, growth.history, schedule, size, "closed form")

    per_input = _MATRICES_PER_INPUT * trajectory.bytes_per_jacobian
    affordable = max(1, int(max_memory // per_input))
    if method == "auto":
        method, growth = _automatic(trajectory, k, schedule, keep_history, rtol, affordable)
    else:
        growth = grow(trajectory, k, schedule, keep_history, method, affordable)
    _check_expansion(growth.total, trajectory, schedule)
    total = _without_lost_directions(growth.total, trajectory, schedule)
    return _assemble(total, growth.history, schedule, size, method)


def _check_expansion(total: Tensor, trajectory: Trajectory, schedule: Schedule) -> None:
    overflow = bool((torch.isnan(total) | (total == torch.inf)).any())
    underflow = trajectory.rank is None and bool((total == -torch.inf).any())
    if overflow or (underflow and schedule.qr_every > 1):
        raise ValueError(
            f"Tangent vectors over- or underflow {trajectory.states.dtype} within qr_every="
            f"{schedule.qr_every} steps: pass a smaller qr_every, or float64."
        )


def _without_lost_directions(total: Tensor, trajectory: Trajectory, schedule: Schedule) -> Tensor:
    rank = trajectory.rank
    if rank is None:
        return total
    least = rank[:, schedule.warmup :].amin(1, keepdim=True)
    index = torch.arange(total.shape[1], device=total.device)
    return total.masked_fill(index >= least, -torch.inf)


def _automatic(
    trajectory: Trajectory, k: int, schedule: Schedule, history: bool, rtol: float, affordable: int
) -> tuple[str, _growth.Growth]:
    if trajectory.tangent_is_cheaper(k):
        method = "tangent"
    elif history or k < _SMALLEST_LU:
        method = "qr"
    else:
        method = "lu" if _growth.lu_error(trajectory, k, schedule) <= rtol else "qr"
    return method, grow(trajectory, k, schedule, history, method, affordable)


def grow(
    trajectory: Trajectory, k: int, schedule: Schedule, history: bool, method: str, affordable: int
) -> _growth.Growth:
    """Run a method over the batch: whole, in affordable pieces, or one input to a worker."""
    workers = min(number_of_workers(trajectory.states.device), affordable, trajectory.batch)
    piece = affordable
    if method == "textbook" or k * trajectory.state_size < _WORTH_A_WORKER:
        workers = 1
    elif workers > 1:
        piece = 1 if method in ("lu", "qr") else -(-trajectory.batch // workers)

    def run(part: Trajectory) -> _growth.Growth:
        return _METHODS[method](part, k, schedule, history)

    if piece >= trajectory.batch:
        return run(trajectory)
    pieces = [
        trajectory.select(slice(start, start + piece))
        for start in range(0, trajectory.batch, piece)
    ]
    growths = map_in_workers(run, pieces, workers)
    running = None
    if history:
        weighted = [
            g.history * (len(g.total) / trajectory.batch) for g in growths if g.history is not None
        ]
        running = torch.stack(weighted).sum(0)
    return _growth.Growth(torch.cat([g.total for g in growths]), running)


def _assemble(
    total: Tensor, history: Tensor | None, schedule: Schedule, size: int, method: str
) -> LyapunovSpectrum:
    per_input = total.cpu().double() / schedule.averaged  # (batch, k)
    mean = per_input.mean(0)
    order = mean.argsort(descending=True, stable=True)
    per_input = per_input[:, order]
    if history is not None:
        counts = torch.arange(1, schedule.averaged + 1, dtype=torch.float64, device="cpu")
        # A row holds the last estimate: divide by the steps up to the last orthonormalisation.
        last = counts - counts % schedule.qr_every
        last[-1] = schedule.averaged
        history = (history.cpu().double() / last.unsqueeze(1))[:, order]
    batch = per_input.shape[0]
    return LyapunovSpectrum(
        exponents=per_input.mean(0),
        std=per_input.std(0) if batch > 1 else torch.full_like(mean, torch.nan),
        per_input=per_input,
        history=history,
        state_size=size,
        steps=schedule.averaged,
        warmup=schedule.warmup,
        method=method,
    )


def checked_k(k: int, size: int) -> int:
    """Return the number of exponents.

    Raises:
        ValueError: It is not between 1 and the state's size.
    """
    k = integer("k", k)
    if not 1 <= k <= size:
        raise ValueError(
            f"k must be between 1 and the dimension of the state, {size}, but got {k}."
        )
    return k
