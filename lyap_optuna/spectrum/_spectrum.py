"""``lyapunov_spectrum``: the one entry to whole or leading spectra."""

from typing import Any

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics import DrivenLayer, Dynamics, NotMeasurableError, Trajectory, resolve
from lyap_optuna.dynamics._isolate import exactly
from lyap_optuna.spectrum import _growth
from lyap_optuna.spectrum._basis import METHODS
from lyap_optuna.spectrum._schedule import Schedule, integer, make_schedule
from lyap_optuna.spectrum._start import as_rows, starting_vectors
from lyap_optuna.spectrum._workers import map_in_workers, number_of_workers
from lyap_optuna.spectrum.base import LyapunovSpectrum

DEFAULT_K = 4
"""Tangent vectors of a readout."""

_MATRICES_PER_INPUT = 7
"""Matrices of the state's size that a step holds at once, for each input (see ``max_memory``)."""

_SMALLEST_LU = 64  # exponents; below, the algorithm as printed is as fast as any
_WORTH_A_WORKER = {"lu": 192**2, "qr": 192**2, "tangent": 64**2, "textbook": 2**62}
"""Numbers in the tangent vectors of an input; with fewer, threads wait for one another."""


@torch.no_grad()
@exactly()
def lyapunov_spectrum(
    model: nn.Module | Dynamics,
    inputs: Any,
    *,
    layer: str | nn.Module | None = None,
    k: int | None = None,
    warmup: int | None = None,
    qr_every: int = 1,
    state: str = "full",
    initial_state: Any = None,
    keep_history: bool = False,
    lengths: Any = None,
    start: Any = None,
    method: str = "auto",
    rtol: float = 1e-3,
    max_memory: int = 512 * 2**20,
) -> LyapunovSpectrum:
    """Measure the Lyapunov spectrum of a recurrent layer driven by inputs.

    The tangent map T = J_T ... J_2 J_1 acts on tangent vectors that are orthonormalised as they
    go; exponent i is the mean log expansion of the i-th one (paper, equation 5, Algorithms 1 and
    2). Nothing of the model, and no global random state, changes.

    Args:
        model: A recurrent layer (``nn.LSTM``, say); a model with recurrent layers in it; or a
            :class:`~lyap_optuna.RecurrentDynamics`.
        inputs: What the model's forward takes, ``batch_first`` respected: a tensor, a tuple of
            arguments or a dict of keyword arguments. In a model, what reaches the recurrent
            layer in eval mode drives it. For a dynamics ``(batch, time, features)``.
        layer: Name of the recurrent layer in a model with several (``"lstm.l0_reverse"`` for one
            direction of a bidirectional layer), or the layer itself.
        k: Number of leading exponents; None for all S.
        warmup: Steps at the front of the inputs in which states and vectors evolve and nothing
            is averaged; ``min(20, T // 5)`` of the longest sequence where it is None.
        qr_every: Orthonormalisation interval in steps (the paper's T_ON). Longer is faster and
            safe for the leading exponents; the tail gets a spurious plateau (appendix C).
        state: For an LSTM, ``"full"`` (h and c, 2N exponents: the tangent map of its dynamics) or
            ``"hidden"`` (the paper's: h with c held, N exponents). The same for other layers.
        initial_state: As the recurrent layer's forward takes it; zeros where it is None and the
            model passes none.
        keep_history: Keep running estimates, for convergence plots.
        lengths: Steps of each sequence, ``(batch,)``, where they differ; what follows is padding.
            Each sequence is averaged over its own steps, and all weigh equally; one with fewer
            averaged steps than warm-up steps is left out.
        start: Tangent vectors before the first step: None for a fixed random orthonormal basis,
            ``"identity"`` (the paper's, and what None means for ``method="textbook"``), or a
            matrix ``(S, k)`` with vectors as columns, which is made orthonormal.
        method: ``"auto"``; ``"textbook"``, the reference; ``"tangent"``, ``"qr"`` or ``"lu"``.
        rtol: ``"auto"`` uses LU where half of this holds its error (nats/step) against QR on the
            upper 95 % of the spectrum, in an interval of one input.
        max_memory: Bytes for matrices of the state's size. A step holds about 7 S^2 numbers for
            each input that is measured at the same time; where that would be more, fewer are.

    Returns:
        The spectrum, on the CPU in float64.

    Raises:
        ValueError: An argument is bad; the message names it and says what to do.
        NotMeasurableError: The model has no such exponents on these inputs.

    Example:
        >>> import torch
        >>> import lyap_optuna as lyap
        >>> lstm = torch.nn.LSTM(input_size=8, hidden_size=16, batch_first=True)
        >>> spectrum = lyap.lyapunov_spectrum(lstm, torch.randn(10, 100, 8))
        >>> spectrum.exponents.shape
        torch.Size([32])
    """
    _check_options(method, rtol, max_memory, keep_history)
    driven = _only(
        resolve(
            model, inputs, state=state, initial_state=initial_state, layer=layer, lengths=lengths
        )
    )
    vectors = _vectors(driven.trajectory, k, start, method)
    schedule = schedule_of(driven, warmup, qr_every)
    if method == "auto":
        growth, method = _automatic(
            driven.trajectory, vectors, schedule, start is None, keep_history, rtol, max_memory
        )
    else:
        growth = _grown(driven.trajectory, vectors, schedule, method, keep_history, max_memory)
    _forget_at_resets(growth, driven, schedule)
    return _assemble(growth, schedule, driven, method)


def _check_options(method: str, rtol: float, max_memory: int, keep_history: bool) -> None:
    if method != "auto" and method not in METHODS:
        known = ["auto", *METHODS]
        raise ValueError(f"method must be one of {known}, but got {method!r}.")
    if not rtol > 0:
        raise ValueError(f"rtol must be positive, but got {rtol!r}.")
    if not max_memory > 0:
        raise ValueError(f"max_memory must be a positive number of bytes, but got {max_memory!r}.")
    if method == "lu" and keep_history:
        raise ValueError("method='lu' keeps no history: pass method='qr' or 'auto'.")


def _only(layers: dict[str, DrivenLayer]) -> DrivenLayer:
    if len(layers) != 1:
        raise ValueError(
            f"The model has {len(layers)} recurrent layers, {sorted(layers)}, and a spectrum is "
            "one layer's: name it by layer=..."
        )
    return next(iter(layers.values()))


def _vectors(trajectory: Trajectory, k: int | None, start: Any, method: str) -> Tensor:
    """Return the tangent vectors before the first step, ``(S, k)``."""
    size = trajectory.state_size
    if k is None and not trajectory.has_jacobians:
        raise NotMeasurableError(
            "This model has no Jacobians to be had, and a whole spectrum needs them: pass k=4, "
            "say, for the leading exponents."
        )
    columns = start.shape[1] if isinstance(start, Tensor) and start.dim() == 2 else size
    k = checked_k(min(size, columns) if k is None else k, size)
    return starting_vectors(
        "identity" if start is None and method == "textbook" else start, size, k
    )


def _automatic(
    trajectory: Trajectory,
    vectors: Tensor,
    schedule: Schedule,
    any_start: bool,
    history: bool,
    rtol: float,
    max_memory: int,
) -> tuple[_growth.Growth, str]:
    """Measure by the fastest way there is, and say which."""
    if not trajectory.has_jacobians:
        images = trajectory.images(vectors.mT.to(trajectory.states.device))
        if images is not None:
            return _growth.from_images(images, schedule, history=history), "images"
    closed = trajectory.closed_log_growth
    if any_start and closed is not None:
        k = vectors.shape[1]
        return _growth.from_closed_form(closed, k, schedule, history=history), "closed form"
    method = _chosen(trajectory, vectors, schedule, history, rtol)
    return _grown(trajectory, vectors, schedule, method, history, max_memory), method


def _grown(
    trajectory: Trajectory,
    vectors: Tensor,
    schedule: Schedule,
    method: str,
    history: bool,
    max_memory: int,
) -> _growth.Growth:
    per_input = _MATRICES_PER_INPUT * trajectory.bytes_per_jacobian
    return grow(
        trajectory,
        vectors,
        schedule,
        method,
        affordable=max(1, int(max_memory // per_input)),
        history=history,
        block=min(vectors.shape[1], DEFAULT_K),
    )


def schedule_of(driven: DrivenLayer, warmup: int | None, qr_every: int = 1) -> Schedule:
    """Return the time line of a layer's sequences."""
    path = driven.trajectory
    if warmup is None and driven.longest is not None:
        warmup = min(20, driven.longest // 5, path.steps - 1)
    return make_schedule(path.steps, warmup, qr_every, batch=path.batch, lengths=driven.lengths)


def _forget_at_resets(growth: _growth.Growth, driven: DrivenLayer, schedule: Schedule) -> None:
    if driven.reset is None:
        return
    reset = driven.reset[schedule.kept].to(growth.rates.device)
    for own in (growth.rates, growth.block):
        if own is not None:
            own[reset] = -torch.inf
    if growth.history is not None and bool(reset.any()):
        growth.history.fill_(-torch.inf)


def _chosen(
    trajectory: Trajectory, vectors: Tensor, schedule: Schedule, history: bool, rtol: float
) -> str:
    k = vectors.shape[1]
    if trajectory.tangent_is_cheaper(k):
        return "tangent"
    if k < _SMALLEST_LU:
        return "textbook"
    if history:
        return "qr"
    error = _growth.lu_error(trajectory, vectors, schedule, _singular(trajectory, schedule))
    return "lu" if 2 * error <= rtol else "qr"  # one interval of one input may show less than all


def _singular(trajectory: Trajectory, schedule: Schedule) -> bool:
    volumes = trajectory.closed_log_abs_det
    return volumes is not None and bool((volumes[:, schedule.warmup :] == -torch.inf).any())


def grow(
    trajectory: Trajectory,
    vectors: Tensor,
    schedule: Schedule,
    method: str,
    *,
    affordable: int,
    history: bool = False,
    block: int = 0,
) -> _growth.Growth:
    """Run a method over the batch: whole, in affordable pieces, or one input to a worker.

    Raises:
        ValueError: The vectors over- or underflow.
    """
    batch, dtype = trajectory.batch, trajectory.states.dtype
    workers = min(number_of_workers(trajectory.states.device), affordable, batch)
    piece = affordable
    if trajectory.single_threaded or vectors.numel() < _WORTH_A_WORKER[method]:
        workers = 1
    elif workers > 1:
        piece = 1 if method in ("lu", "qr") else -(-batch // workers)
    singular = _singular(trajectory, schedule)

    def run(part: slice) -> _growth.Growth:
        path = trajectory if piece >= batch else trajectory.select(part)
        return _growth.measure(
            method,
            path,
            as_rows(vectors, path.states),
            schedule.select(part),
            history=history,
            block=block,
            singular=singular,
        )

    pieces = [slice(i, i + piece) for i in range(0, batch, piece)]
    growths = map_in_workers(run, [p for p in pieces if any(schedule.lengths[p])], workers)
    growth = _growth.joined(growths)
    lost = growth.rates == -torch.inf
    beyond = torch.isnan(growth.rates) | (growth.rates == torch.inf)
    if bool(beyond.any()) or (schedule.qr_every > 1 and not singular and bool(lost.any())):
        raise ValueError(
            f"Tangent vectors over- or underflow {dtype} within qr_every={schedule.qr_every} "
            "steps: pass a smaller qr_every, or float64."
        )
    return growth


def _assemble(
    growth: _growth.Growth, schedule: Schedule, driven: DrivenLayer, method: str
) -> LyapunovSpectrum:
    per_input = growth.rates.cpu().double()  # (kept, k)
    order = per_input.mean(0).argsort(descending=True, stable=True)
    per_input = per_input[:, order]
    batch = len(per_input)
    return LyapunovSpectrum(
        exponents=per_input.mean(0),
        std=per_input.std(0) if batch > 1 else torch.full_like(per_input[0], torch.nan),
        per_input=per_input,
        history=None if growth.history is None else growth.history.cpu().double()[:, order] / batch,
        state_size=driven.trajectory.state_size,
        steps=schedule.averaged,
        warmup=schedule.warmup,
        method=method,
        layer=driven.name,
        state=driven.state,
        leading=None if growth.block is None else growth.block.cpu().double(),
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
