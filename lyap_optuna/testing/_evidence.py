"""The contract of ``prediction/evidence/base.py`` as checks."""

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.prediction.evidence import Evidence, Feature, TrialView
from lyap_optuna.probe import UNTRAINED_STEP
from lyap_optuna.testing._expect import expect, require

_STEPS = range(1, 6)
_TRIALS = 100
_ENDINGS = (
    (TrialState.COMPLETE, 0.25),
    (TrialState.COMPLETE, math.inf),
    (TrialState.PRUNED, 0.25),
    (TrialState.PRUNED, None),
    (TrialState.FAIL, None),
)
_DISTRIBUTIONS = {
    "lr": FloatDistribution(0.0, 1.0),
    "cell": CategoricalDistribution(["GRU", "LSTM"]),
}


def _trials() -> Iterator[tuple[FrozenTrial, int | None]]:
    """Yield running trials that reported and measured at some steps, and the step of interest."""
    rng = np.random.default_rng(0)

    def readout() -> dict[str, Any]:
        numbers = rng.uniform(-3, 3, 4).round(3).tolist()
        more = {"mean": numbers[1], "max_stderr": abs(numbers[2]), "quantiles": sorted(numbers)}
        some = {name: value for name, value in more.items() if rng.random() < 0.6}
        return {"max": numbers[0], "state": "full", **some}

    def loss() -> float:
        odd = (math.nan, math.inf, -math.inf)
        return odd[rng.integers(3)] if rng.random() < 0.3 else round(rng.uniform(-3, 3), 3)

    for i in range(_TRIALS):
        reported = [s for s in _STEPS if rng.random() < (i % 4) / 3]
        measured = [s for s in (UNTRAINED_STEP, *reported) if rng.random() < 0.7]
        params = {"lr": float(rng.random()), "cell": ("GRU", "LSTM")[rng.integers(2)]}
        trial = optuna.create_trial(
            state=TrialState.RUNNING,
            params=params if i % 5 else {},
            distributions=_DISTRIBUTIONS if i % 5 else {},
            intermediate_values={step: loss() for step in reported},
            user_attrs={"lyapunov:readouts": {str(step): readout() for step in measured}},
        )
        for step in (None, *_STEPS):
            yield trial, step


def _until(trial: FrozenTrial, step: int | None) -> FrozenTrial:
    """Return the trial as it was at ``step``."""
    last = UNTRAINED_STEP if step is None else step
    known = trial.user_attrs["lyapunov:readouts"]
    return optuna.create_trial(
        state=TrialState.RUNNING,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values={s: v for s, v in trial.intermediate_values.items() if s <= last},
        user_attrs={"lyapunov:readouts": {s: r for s, r in known.items() if int(s) <= last}},
    )


def _ended(trial: FrozenTrial, state: TrialState, value: float | None, cut: bool) -> FrozenTrial:
    """Return the trial as it is after it ended, perhaps cut short by a callback."""
    ended = deepcopy(trial)
    ended.state, ended.values = state, None if value is None else [value]
    ended.datetime_complete = ended.datetime_start
    ended.set_constraint("weight", 1.0)
    if cut and trial.intermediate_values:
        last = max(trial.intermediate_values)
        ended.user_attrs["lyapunov:pruned"] = {"trial": trial.number, "step": last}
    return ended


def _features(
    kind: Evidence, trial: FrozenTrial, step: int | None, sign: int = 1
) -> dict[str, Feature]:
    try:
        return kind.features(TrialView.of(trial, sign), step)
    except Exception as error:
        reports, state = list(trial.intermediate_values.values()), trial.state.name
        raise ValueError(
            f"{kind.name} raised {type(error).__name__} ({error}) at step {step} of a {state} "
            f"trial that reported {reports}: leave out what such a trial does not tell."
        ) from error


def _told(kind: Evidence, trial: FrozenTrial, step: int | None, sign: int = 1) -> str:
    # As text: NaN equals NaN.
    return repr(sorted(_features(kind, trial, step, sign).items()))


def it_has_a_name(kind: Evidence) -> None:
    """A kind has a name in one word, which people type in ``evidence=``."""
    name = getattr(kind, "name", None)
    require(
        isinstance(name, str) and name.isidentifier(),
        f"name must be one word, such as 'loss', not {name!r}.",
    )


def its_features_are_numbers_or_words(kind: Evidence) -> None:
    """Features are floats or strings by name, of any trial that Optuna can store."""
    for trial, step in _trials():
        for name, value in _features(kind, trial, step).items():
            require(
                isinstance(name, str) and isinstance(value, Feature),
                f"features must be floats or strings by name, not {value!r} under {name!r}.",
            )


def it_knows_only_what_was_known_at_the_step(kind: Evidence) -> None:
    """Reports and readouts at later steps do not exist, nor does training before the first."""
    for trial, step in _trials():
        then = _until(trial, step)
        now = _told(kind, trial, step)
        expect(now, _told(kind, then, step), f"what {kind.name} knows of a trial at step {step}")
        if step is not None and not then.intermediate_values:
            before = _told(kind, _until(trial, None), None)
            expect(now, before, f"what {kind.name} knows before the first report")


def it_does_not_know_how_a_trial_ended(kind: Evidence) -> None:
    """A trial that is complete, pruned or failed has the features that it had while it ran."""
    rng = np.random.default_rng(1)
    for trial, step in _trials():
        state, value = _ENDINGS[rng.integers(len(_ENDINGS))]
        ended = _ended(trial, state, value, cut=rng.random() < 0.3)
        now = _told(kind, ended, step)
        ending = f"is {state.name} with the value {value}, at step {step}"
        expect(now, _told(kind, trial, step), f"what {kind.name} knows of a trial that {ending}")


def a_score_that_is_maximised_is_a_loss_that_is_minimised(kind: Evidence) -> None:
    """The negative of all losses, in a study that maximises, has the same features."""
    for trial, step in _trials():
        mirrored = deepcopy(trial)
        mirrored.intermediate_values = {s: -v for s, v in trial.intermediate_values.items()}
        expect(
            _told(kind, mirrored, step, -1),
            _told(kind, trial, step),
            f"what {kind.name} knows of scores",
        )


def it_remembers_nothing(kind: Evidence) -> None:
    """Features depend on no other trial, and a trial is left as it was."""
    all_of_them = list(_trials())
    before = repr(all_of_them)
    once = [_told(kind, trial, step) for trial, step in all_of_them]
    again = [_told(kind, trial, step) for trial, step in reversed(all_of_them)]
    expect(again[::-1], once, f"what {kind.name} knows when it is asked once more")
    expect(repr(all_of_them), before, "the trials afterwards")


EVIDENCE_CHECKS = (
    it_has_a_name,
    its_features_are_numbers_or_words,
    it_knows_only_what_was_known_at_the_step,
    it_does_not_know_how_a_trial_ended,
    a_score_that_is_maximised_is_a_loss_that_is_minimised,
    it_remembers_nothing,
)
"""The contract of a kind of evidence, each a function of an ``Evidence``."""
