"""Synthetic studies: trials whose final value depends on known things."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

DISTRIBUTIONS = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "units": IntDistribution(16, 48),
    "cell": CategoricalDistribution(["LSTM", "GRU"]),
    "fixed": FloatDistribution(0.5, 0.5),
}


def spec(
    rng: np.random.Generator,
    kind: str,
    *,
    first: int = 0,
    epochs: int = 10,
    sign: int = 1,
    readouts: bool = True,
) -> dict[str, Any]:
    """One trial of a study of a kind, as arguments of ``create_trial``.

    ``plateau``: the loss is 1 plus noise until the last epoch; the displacement of the exponents
    tells the final value. ``easy``: the loss curve tells it, nothing else does. ``noise``:
    nothing tells it.
    """
    quality = float(rng.normal())
    value = math.exp(quality)
    noise = rng.normal(size=epochs)
    if kind == "easy":
        losses = value * np.exp(0.05 * noise) + np.exp(-np.arange(epochs))
    else:
        losses = 1.0 + 0.01 * noise
        losses[-1] = value
    start = rng.normal(size=2) * 0.3
    moved = 0.1 * (quality if kind == "plateau" else rng.normal()) + 0.01 * rng.normal(size=2)
    series = {str(first - 1): {"max": float(start[0]), "mean": float(start[1])}}
    for epoch in range(3):
        now = start + moved * (1 + epoch)
        series[str(first + epoch)] = {"max": float(now[0]), "mean": float(now[1])}
    return {
        "value": sign * value,
        "intermediate_values": {first + i: sign * float(v) for i, v in enumerate(losses)},
        "params": {
            "lr": float(10 ** rng.uniform(-4, -1)),
            "units": int(rng.integers(16, 49)),
            "cell": str(rng.choice(["LSTM", "GRU"])),
            "fixed": 0.5,
        },
        "distributions": DISTRIBUTIONS,
        "user_attrs": {"lyapunov:readouts": series} if readouts else {},
    }


def specs(kind: str, n: int, seed: int = 0, **options: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [spec(rng, kind, **options) for _ in range(n)]


def study_of(
    trials: Iterable[dict[str, Any]], *, sign: int = 1, **options: Any
) -> optuna.study.Study:
    """A study of finished trials; a trial is COMPLETE unless its spec has a ``state``."""
    study = optuna.create_study(direction="minimize" if sign > 0 else "maximize", **options)
    study.add_trials([optuna.create_trial(**t) for t in trials])
    return study


def start(study: optuna.study.Study, trial: dict[str, Any]) -> optuna.trial.Trial:
    """A running trial of the study with the hyperparameters and readouts of a spec."""
    study.enqueue_trial(trial["params"])
    running = study.ask(trial["distributions"])
    for key, value in trial["user_attrs"].items():
        running.set_user_attr(key, value)
    return running


def pruned_at(study: optuna.study.Study, trial: dict[str, Any], *, upto: int = 5) -> int | None:
    """Report a spec's losses to a running trial; the step at which it is pruned, or None."""
    running = start(study, trial)
    for step, loss in list(trial["intermediate_values"].items())[:upto]:
        running.report(loss, step)
        if running.should_prune():
            study.tell(running, state=TrialState.PRUNED)
            return int(step)
    study.tell(running, state=TrialState.FAIL)
    return None


def last_trial(study: optuna.study.Study) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[-1]
