"""``lyapunov_readout``: maximum and mean exponent, without the spectrum in between."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics import Dynamics, Trajectory, resolve
from lyap_optuna.spectrum import _growth
from lyap_optuna.spectrum._schedule import Schedule, make_schedule
from lyap_optuna.spectrum._spectrum import checked_k, grow
from lyap_optuna.spectrum._workers import map_in_workers, number_of_workers
from lyap_optuna.spectrum.base import LyapunovReadout, standard_error

DEFAULT_K = 4
_ALL_PAIRS = 200  # as many log-determinants, or fewer, are all computed
_PILOT = 4  # strata per input in the pilot
_SAFETY = 3.0  # standard errors that the tolerance has to hold
_BYTES_AT_ONCE = 16 * 2**20  # of Jacobians formed together
_WORTH_A_WORKER = 64  # dimensions of the state


@torch.no_grad()
def lyapunov_readout(
    module: nn.Module | Dynamics,
    inputs: Any,
    *,
    state: str = "hidden",
    k: int = DEFAULT_K,
    warmup: int | None = None,
    mean_tolerance: float = 0.01,
    seed: int = 0,
    initial_state: Any = None,
    layer: str | nn.Module | None = None,
) -> LyapunovReadout:
    """Measure the maximum and the mean Lyapunov exponent, the fast path.

    The maximum comes from k tangent vectors (they equal the whole spectrum's first k), the mean
    from log-determinants: sum_i lambda_i = (1/T) sum_t log|det J_t|, exactly, at every T. For
    vanilla layers and the LSTM's full state they have a closed form. Elsewhere up to 200 are
    computed; of more, one random step is drawn in each of equal strata of time, for every input,
    as many as a pilot says ``mean_tolerance`` needs.

    Args:
        module: As in :func:`~lyap_optuna.lyapunov_spectrum`.
        inputs: As there; 10 sequences of 100 steps serve well.
        state: ``"hidden"`` or ``"full"``, as there.
        k: Tangent vectors. A state with fewer than 4 dimensions uses all of them by default.
        warmup: Steps of warm-up; ``min(20, T // 5)`` where it is None.
        mean_tolerance: Bound on the sampling error of the mean against this batch's exact mean:
            this fraction of it or this many nats/step, whichever is larger.
        seed: Seeds the draw of time steps, with a generator of its own.
        initial_state: As in :func:`~lyap_optuna.lyapunov_spectrum`.
        layer: As there.

    Returns:
        The readout, with standard errors.

    Raises:
        ValueError: An argument is bad; the message names it and says what to do.

    Example:
        >>> import torch
        >>> import lyap_optuna as lyap
        >>> gru = torch.nn.GRU(input_size=8, hidden_size=16, batch_first=True)
        >>> readout = lyap.lyapunov_readout(gru, torch.randn(10, 100, 8))
        >>> readout.mean < readout.max < 0
        True
    """
    if not mean_tolerance > 0:
        raise ValueError(f"mean_tolerance must be positive, but got {mean_tolerance!r}.")
    layers = resolve(
        module, inputs, state=state, initial_state=initial_state, layer=layer, seed=seed
    )
    (driven,) = layers.values()
    trajectory = driven.trajectory
    size = trajectory.state_size
    k = min(k, size) if k == DEFAULT_K else checked_k(k, size)
    schedule = make_schedule(trajectory.steps, warmup, 1)

    closed = trajectory.closed_log_growth
    if closed is not None:
        growth = _growth.from_closed_form(closed, k, schedule)
    else:
        growth = grow(trajectory, k, schedule, False, "tangent", trajectory.batch)
    leading = growth.total.cpu().double() / schedule.averaged  # (batch, k)
    exponents, order = leading.mean(0).sort(descending=True, stable=True)
    means, sampling_error = _mean_exponents(trajectory, schedule, mean_tolerance, seed)
    return LyapunovReadout(
        max=float(exponents[0]),
        mean=float(means.mean()),
        max_stderr=standard_error(leading[:, order[0]]),
        mean_stderr=standard_error(means),
        mean_sampling_error=sampling_error,
        exponents=exponents,
        inputs=trajectory.batch,
        steps=schedule.averaged,
        warmup=schedule.warmup,
        state_size=size,
    )


def _mean_exponents(
    trajectory: Trajectory, schedule: Schedule, tolerance: float, seed: int
) -> tuple[Tensor, float]:
    """Return the mean exponent of each input, ``(batch,)``, and its sampling error."""
    closed = trajectory.closed_log_abs_det
    size, batch, steps = trajectory.state_size, trajectory.batch, schedule.averaged
    if closed is not None:
        return closed[:, schedule.warmup :].mean(1).cpu().double() / size, 0.0
    if batch * steps <= _ALL_PAIRS:
        return _exact(trajectory, schedule), 0.0

    generator = torch.Generator("cpu").manual_seed(seed)
    # The pilot: one random step in each of `strata` equal parts of the time, for every input.
    strata = min(_PILOT, steps)
    times = _draw(batch, steps, strata, generator)
    values = _log_abs_dets(trajectory, times + schedule.warmup) / size
    # Neighbours differ by twice the variance within strata, and by the trend: conservative.
    variance = float(values.diff(dim=1).square().mean() / 2)
    bound = tolerance * max(1.0, abs(float(values.mean())))
    needed = (_SAFETY / bound) ** 2 * variance / batch
    if not math.isfinite(needed) or needed >= steps / 2:
        return _exact(trajectory, schedule), 0.0
    refinement = max(1, math.ceil(needed / strata))
    if refinement * strata >= steps / 2:
        return _exact(trajectory, schedule), 0.0
    if refinement > 1:
        # Each stratum is cut into `refinement` parts. The pilot's step stays, in whichever part
        # it fell; the others get a step each: one random step in each part, none wasted.
        strata *= refinement
        finer = _draw(batch, steps, strata, generator)
        part = torch.bucketize(times, _edges(steps, strata)[1:], right=True)
        fresh = torch.ones_like(finer, dtype=torch.bool).scatter_(1, part, False)
        rest = finer[fresh].view(batch, -1)
        new = _log_abs_dets(trajectory, rest + schedule.warmup) / size
        values = values.new_empty(batch, strata).scatter_(1, part, values)
        values[fresh] = new.view(-1)
        variance = float(values.diff(dim=1).square().mean() / 2)
    weights = _edges(steps, strata).diff().double() / steps
    unsampled = 1 - strata / steps
    error = math.sqrt(max(0.0, variance * unsampled / (batch * strata)))
    return values @ weights, error


def _exact(trajectory: Trajectory, schedule: Schedule) -> Tensor:
    times = torch.arange(schedule.warmup, schedule.steps, device="cpu").expand(trajectory.batch, -1)
    return _log_abs_dets(trajectory, times).mean(1) / trajectory.state_size


def _edges(steps: int, strata: int) -> Tensor:
    return torch.arange(strata + 1, device="cpu") * steps // strata


def _draw(batch: int, steps: int, strata: int, generator: torch.Generator) -> Tensor:
    edges = _edges(steps, strata)
    uniform = torch.rand(batch, strata, generator=generator, dtype=torch.float64, device="cpu")
    return edges[:-1] + (uniform * edges.diff()).long()


def _log_abs_dets(trajectory: Trajectory, times: Tensor) -> Tensor:
    """Return log|det J| at ``times``, ``(batch, n)``, on the CPU in float64."""
    batch, n = times.shape
    device = trajectory.states.device
    inputs = torch.arange(batch, device="cpu").unsqueeze(1).expand(batch, n).reshape(-1).to(device)
    flat = times.reshape(-1).to(device)
    workers = number_of_workers(device) if trajectory.state_size >= _WORTH_A_WORKER else 1
    at_once = max(1, _BYTES_AT_ONCE // trajectory.bytes_per_jacobian)
    at_once = min(at_once, -(-len(flat) // workers))
    parts = map_in_workers(
        lambda i: trajectory.log_abs_det(inputs[i : i + at_once], flat[i : i + at_once]),
        range(0, len(flat), at_once),
        workers,
    )
    return torch.cat(parts).view(batch, n).cpu().double()
