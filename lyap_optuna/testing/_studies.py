"""A study that has something of everything, for figures to draw."""

import math
from functools import cache
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from lyap_optuna.testing._expect import HOSTILE

EPOCHS = 6


def study_of_everything(
    n_trials: int = 30, *, quantiles: int = 8, direction: Any = "minimize"
) -> optuna.Study:
    """Return a study whose values fall as the maximum exponent moves up.

    Every fifth trial was pruned after 2 of 6 reports. Readouts are of the first 3 steps.

    Args:
        n_trials: Its trials.
        quantiles: Stored of each spectrum; 0 for none.
        direction: Of the study.
    """
    rng = np.random.default_rng(0)
    study = optuna.create_study(direction=direction)
    for i in range(n_trials):
        moved = i / n_trials
        pruned = i % 5 == 4
        value = 2.0 - moved
        n_reports = 2 if pruned else EPOCHS
        series: dict[str, dict[str, Any]] = {}
        for step in range(min(n_reports, 3) + 1):
            maximum = -1.0 + (moved if step else 0.0)
            spectrum = np.sort(maximum - rng.uniform(0, 2, quantiles))
            spectrum[-1:] = maximum
            series[str(step)] = {"max": maximum, "mean": float(spectrum.mean())}
            if quantiles:
                series[str(step)]["quantiles"] = spectrum.tolist()
        study.add_trial(
            optuna.create_trial(
                state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                value=value,
                intermediate_values={s: value + 1 / s for s in range(1, n_reports + 1)},
                user_attrs={"lyapunov:readouts": series},
            )
        )
    return study


@cache
def wide_study(n_trials: int) -> optuna.Study:
    """Return such a study with all digits that numbers have, long reasons and hostile names."""
    study = optuna.create_study()
    reason = f"{HOSTILE} " * 20
    decision = {"step": 2, "verdict": "pruned", "reason": reason}
    study.add_trials(
        [
            optuna.create_trial(
                state=trial.state,
                value=trial.value * math.pi,
                params={"lr": 1e-3 + trial.number / 7e5, HOSTILE: (HOSTILE, "y")[i % 2]},
                distributions={
                    "lr": FloatDistribution(1e-3, 1.0),
                    HOSTILE: CategoricalDistribution([HOSTILE, "y"]),
                },
                intermediate_values=trial.intermediate_values,
                user_attrs=trial.user_attrs | {"lyapunov:decision": decision | {"trial": i}},
            )
            for i, trial in enumerate(study_of_everything(n_trials, quantiles=32).trials)
            if trial.value is not None
        ]
    )
    return study
