"""``lyapunov_readout``: maximum and mean exponent, without the spectrum in between."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics import DrivenLayer, Dynamics, NotMeasurableError, Trajectory, resolve
from lyap_optuna.dynamics._isolate import exactly
from lyap_optuna.spectrum import _growth
from lyap_optuna.spectrum._schedule import Schedule
from lyap_optuna.spectrum._spectrum import DEFAULT_K, checked_k, grow, schedule_of
from lyap_optuna.spectrum._start import random_start
from lyap_optuna.spectrum._workers import map_in_workers, number_of_workers
from lyap_optuna.spectrum.base import LyapunovReadout, maximum_of, standard_error

_ALL_PAIRS = 200  # as many log-determinants, or fewer, are all computed
_PILOT = 4  # strata per input in the pilot
_SAFETY = 3.0  # standard errors that the tolerance has to hold
_BYTES_AT_ONCE = 16 * 2**20  # of Jacobians formed together
_WORTH_A_WORKER = 64  # dimensions of the state


@torch.no_grad()
@exactly()
def lyapunov_readout(
    model: nn.Module | Dynamics,
    inputs: Any,
    *,
    layer: str | Sequence[str] | nn.Module | None = None,
    state: str = "full",
    k: int = DEFAULT_K,
    warmup: int | None = None,
    lengths: Any = None,
    mean_tolerance: float = 0.01,
    seed: int = 0,
    initial_state: Any = None,
) -> LyapunovReadout:
    """Measure the maximum and the mean Lyapunov exponent, the fast path.

    The maximum comes from k tangent vectors, whose exponents equal the whole spectrum's first k: it
    is the largest of them or, if that is larger, the growth of the block of all k, which depends
    less on where they start. The mean comes from log-determinants: sum_i lambda_i = (1/T)
    sum_t log|det J_t|, exactly, at every T. For vanilla layers and the LSTM's full state they have
    a closed form. Elsewhere up to 200 are computed; of more, one random step is drawn in each of
    equal strata of time, for every input, as many as a pilot says ``mean_tolerance`` needs. Not
    every exponent can be below their mean: where k vectors say so, ``max`` is the mean, less its
    sampling error.

    Args:
        model: As in :func:`~lyap_optuna.lyapunov_spectrum`; with any number of recurrent layers.
        inputs: As there; 10 sequences of 100 steps serve well.
        layer: Name of one recurrent layer, the layer itself, or a list of names; None for all.
        state: ``"full"`` or ``"hidden"``, as there.
        k: Tangent vectors. A state with fewer than 4 dimensions uses all of them by default.
        warmup: Steps of warm-up; ``min(20, T // 5)`` of the longest sequence where it is None.
        lengths: Steps of each sequence, as there.
        mean_tolerance: Bound on the sampling error of the mean against this batch's exact mean:
            this fraction of it or this many nats/step, whichever is larger.
        seed: Seeds the draw of time steps, with a generator of its own.
        initial_state: As in :func:`~lyap_optuna.lyapunov_spectrum`.

    Returns:
        The readout, with standard errors; ``mean`` is None where the model has none to be had.

    Raises:
        ValueError: An argument is bad; the message names it and says what to do.
        NotMeasurableError: The model has no exponents on these inputs.

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
        model,
        inputs,
        state=state,
        initial_state=initial_state,
        layer=layer,
        lengths=lengths,
        seed=seed,
        split_resets=True,
    )
    return LyapunovReadout.from_layers(
        [_read(driven, k, warmup, mean_tolerance, seed) for driven in layers.values()]
    )


def _read(
    driven: DrivenLayer, k: int, warmup: int | None, tolerance: float, seed: int
) -> LyapunovReadout:
    trajectory = driven.trajectory
    size = trajectory.state_size
    k = min(k, size) if k == DEFAULT_K else checked_k(k, size)
    schedule = schedule_of(driven, warmup)
    vectors = random_start(size, k)
    closed = trajectory.closed_log_growth
    images = (
        None if closed is not None else trajectory.images(vectors.mT.to(trajectory.states.device))
    )
    if closed is not None:
        growth = _growth.from_closed_form(closed, k, schedule)
    elif images is not None:
        growth = _growth.from_images(images, schedule)
    else:
        growth = grow(
            trajectory, vectors, schedule, "tangent", affordable=trajectory.batch, block=k
        )
    rates = growth.rates.cpu().double()  # (sequences, k)
    exponents, order = rates.mean(0).sort(descending=True, stable=True)
    maximum, max_stderr = maximum_of(rates[:, order[0]], growth.block)
    mean = mean_stderr = sampling_error = None
    measured = _mean_exponents(trajectory, schedule, tolerance, seed)
    if measured is not None:
        means, sampling_error = measured
        mean, mean_stderr = float(means.mean()), standard_error(means)
        if maximum < mean - sampling_error:  # impossible: an effect of the starting vectors
            maximum, max_stderr = mean - sampling_error, mean_stderr
    return LyapunovReadout(
        max=maximum,
        mean=mean,
        max_stderr=max_stderr,
        mean_stderr=mean_stderr,
        mean_sampling_error=sampling_error,
        exponents=exponents,
        sequences=len(rates),
        steps=schedule.averaged,
        warmup=schedule.warmup,
        state_size=size,
        state=driven.state,
        layer=driven.name,
    )


def _mean_exponents(
    trajectory: Trajectory, schedule: Schedule, tolerance: float, seed: int
) -> tuple[Tensor, float] | None:
    """Return the mean exponent of each kept input, ``(kept,)``, and its sampling error."""
    if not trajectory.has_jacobians:
        return None
    closed = trajectory.closed_log_abs_det
    if closed is not None:
        logs = closed[:, : schedule.steps].mT.unsqueeze(2)
        every = list(range(1, schedule.steps + 1))
        rates = _growth.average(logs, every, schedule, False).rates
        return rates[:, 0].cpu().double() / trajectory.state_size, 0.0
    try:
        return _from_determinants(trajectory, schedule, tolerance, seed)
    except NotMeasurableError:
        return None


def _from_determinants(
    trajectory: Trajectory, schedule: Schedule, tolerance: float, seed: int
) -> tuple[Tensor, float]:
    size, counts = trajectory.state_size, torch.tensor(schedule.counts, device="cpu")
    batch, pairs = len(counts), int(counts.sum())
    if pairs <= _ALL_PAIRS:
        return _exact(trajectory, schedule), 0.0

    def values_at(strata_times: Tensor, rows: Tensor) -> Tensor:
        return _log_abs_dets(trajectory, rows, strata_times + schedule.warmup) / size

    generator = torch.Generator("cpu").manual_seed(seed)
    rows = torch.tensor(schedule.kept, device="cpu").unsqueeze(1)
    # The pilot: one random step in each of `strata` equal parts of the time, for every input.
    strata = min(_PILOT, int(counts.min()))
    times = _draw(counts, strata, generator)
    values = values_at(times, rows.expand_as(times))
    # Neighbours differ by twice the variance within strata, and by the trend: conservative.
    variance = float(values.diff(dim=1).square().mean() / 2) if strata > 1 else math.inf
    bound = tolerance * max(1.0, abs(float(values.mean())))
    needed = (_SAFETY / bound) ** 2 * variance / batch
    if not math.isfinite(needed) or needed >= pairs / batch / 2:
        return _exact(trajectory, schedule), 0.0
    refinement = max(1, math.ceil(needed / strata))
    if refinement * strata >= pairs / batch / 2:
        return _exact(trajectory, schedule), 0.0
    if refinement > 1:
        # Each stratum is cut into `refinement` parts. The pilot's step stays, in whichever part
        # it fell; the others get a step each: one random step in each part, none wasted.
        strata *= refinement
        finer = _draw(counts, strata, generator)
        part = torch.searchsorted(_edges(counts, strata)[:, 1:].contiguous(), times, right=True)
        fresh = torch.ones_like(finer, dtype=torch.bool).scatter_(1, part, False)
        values = values.new_empty(batch, strata).scatter_(1, part, values)
        values[fresh] = values_at(finer[fresh], rows.expand_as(finer)[fresh])
        variance = float(values.diff(dim=1).square().mean() / 2)
    weights = _edges(counts, strata).diff().double() / counts.unsqueeze(1)
    unsampled = (1 - strata / counts.double()).clamp(min=0).mean()
    error = math.sqrt(variance * float(unsampled) / (batch * strata))
    return torch.where(weights > 0, values * weights, 0).sum(1), error


def _exact(trajectory: Trajectory, schedule: Schedule) -> Tensor:
    lengths = zip(schedule.kept, schedule.counts, strict=True)
    rows = torch.cat([torch.full((n,), i, device="cpu") for i, n in lengths])
    times = torch.cat([torch.arange(n, device="cpu") for n in schedule.counts])
    values = _log_abs_dets(trajectory, rows, times + schedule.warmup)
    parts = values.split(schedule.counts)
    return torch.stack([part.mean() for part in parts]) / trajectory.state_size


def _edges(counts: Tensor, strata: int) -> Tensor:
    return torch.arange(strata + 1, device="cpu") * counts.unsqueeze(1) // strata


def _draw(counts: Tensor, strata: int, generator: torch.Generator) -> Tensor:
    edges = _edges(counts, strata)
    shape = (len(counts), strata)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    return edges[:, :-1] + (uniform * edges.diff()).long()


def _log_abs_dets(trajectory: Trajectory, rows: Tensor, times: Tensor) -> Tensor:
    """Return log|det J| of pairs of input and step, in their shape, on the CPU in float64."""
    device = trajectory.states.device
    inputs, flat = rows.reshape(-1).to(device), times.reshape(-1).to(device)
    worth = trajectory.state_size >= _WORTH_A_WORKER and not trajectory.single_threaded
    workers = number_of_workers(device) if worth else 1
    at_once = max(1, _BYTES_AT_ONCE // trajectory.bytes_per_jacobian)
    at_once = min(at_once, -(-len(flat) // workers))
    parts = map_in_workers(
        lambda i: trajectory.log_abs_det(inputs[i : i + at_once], flat[i : i + at_once]),
        range(0, len(flat), at_once),
        workers,
    )
    return torch.cat(parts).view(times.shape).cpu().double()
