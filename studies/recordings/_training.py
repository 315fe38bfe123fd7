"""Trains one configuration, in whatever process it is called."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution
from optuna.trial import FixedTrial

import lyap_optuna as lyap
from lyap_optuna.dynamics import NonFiniteParametersError
from lyap_optuna.records import ReadoutRecord
from studies.recordings.tasks import TASKS

STEPS = (0, 1, 2, 4, 8)
"""Epochs after which exponents are measured; 0 is the baseline."""

N_QUANTILES = 32


@dataclass(frozen=True)
class Outcome:
    """What one configuration did.

    Args:
        number: Which configuration.
        losses: Validation loss by epoch.
        readouts: By state, by epoch, as stored.
        seconds: Of training alone, and of measuring, by state.
    """

    number: int
    losses: dict[int, float]
    readouts: dict[str, dict[str, Any]]
    seconds: dict[str, float]


def configurations(
    name: str, n: int, data: Path | None
) -> list[tuple[dict[str, Any], dict[str, BaseDistribution]]]:
    """Draw ``n`` configurations at random, the same every time."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = []
    for _ in range(n):
        trial = study.ask()
        TASKS[name].start(trial, data)
        drawn.append((dict(trial.params), dict(trial.distributions)))
    return drawn


def measure(model: torch.nn.Module, inputs: torch.Tensor, state: str) -> dict[str, Any] | None:
    """Return the whole spectrum's readout as stored, or None where weights or states diverged."""
    try:
        spectrum = lyap.lyapunov_spectrum(model, inputs, state=state)
    except NonFiniteParametersError:
        return None
    except ValueError:
        if all(bool(p.isfinite().all()) for p in model.parameters()):
            raise
        return None
    readout = lyap.LyapunovReadout.from_spectrum(spectrum)
    return ReadoutRecord.from_measurement(
        max=readout.max,
        mean=readout.mean,
        max_stderr=readout.max_stderr,
        mean_stderr=readout.mean_stderr,
        quantiles=tuple(float(q) for q in spectrum.quantiles(N_QUANTILES)),
        clipped_fraction=float((spectrum.exponents < -16.0).double().mean()),
        state=state,
    ).to_json()


def train(name: str, number: int, params: dict[str, Any], data: Path | None) -> Outcome:
    """Train one configuration to its end."""
    torch.set_num_threads(1)
    task = TASKS[name]
    torch.manual_seed(number)
    run = task.start(FixedTrial(params, number=number), data)
    losses: dict[int, float] = {}
    readouts: dict[str, dict[str, Any]] = {state: {} for state in task.states}
    seconds = dict.fromkeys(("training", *task.states), 0.0)
    for epoch in range(task.epochs + 1):
        begin = time.perf_counter()
        if epoch and not any(math.isnan(loss) for loss in losses.values()):
            run.train_epoch()
        if epoch:
            losses[epoch] = run.validate()
        seconds["training"] += time.perf_counter() - begin
        for state in task.states if epoch in STEPS else ():
            begin = time.perf_counter()
            measured = measure(run.model, run.probe_inputs, state)
            seconds[state] += time.perf_counter() - begin
            if measured is not None:
                readouts[state][str(epoch)] = measured
    return Outcome(number, losses, readouts, {k: round(v, 3) for k, v in seconds.items()})
