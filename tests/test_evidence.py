"""Every registered kind of evidence keeps the contract of ``evidence/base.py``."""

import math
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.prediction.evidence import EVIDENCE, Feature, TrialView
from lyap_optuna.probe import UNTRAINED_STEP

STEPS = range(1, 6)

numbers = st.floats(-3, 3).map(lambda x: round(x, 3))
readouts = st.fixed_dictionaries(
    {"max": numbers, "state": st.just("full")},
    optional={
        "mean": numbers,
        "max_stderr": st.floats(0, 1),
        "quantiles": st.lists(numbers, min_size=4, max_size=4).map(sorted),
    },
)


@st.composite
def trials(draw: st.DrawFn) -> FrozenTrial:
    """Draw a running trial that has reported and measured at some steps, perhaps none."""
    reported = sorted(draw(st.sets(st.sampled_from(list(STEPS)))))
    measured = sorted(draw(st.sets(st.sampled_from([UNTRAINED_STEP, *reported]))))
    losses = st.one_of(numbers, st.sampled_from([math.nan, math.inf, -math.inf]))
    return optuna.create_trial(
        state=TrialState.RUNNING,
        params={"lr": draw(st.floats(0.0, 1.0)), "cell": draw(st.sampled_from(["GRU", "LSTM"]))},
        distributions={
            "lr": FloatDistribution(0.0, 1.0),
            "cell": CategoricalDistribution(["GRU", "LSTM"]),
        },
        intermediate_values={step: draw(losses) for step in reported},
        user_attrs={"lyapunov:readouts": {str(step): draw(readouts) for step in measured}},
    )


def until(trial: FrozenTrial, step: int | None) -> FrozenTrial:
    """Return the trial as it was at ``step``."""
    last = UNTRAINED_STEP if step is None else step
    known: dict[str, Any] = trial.user_attrs["lyapunov:readouts"]
    return optuna.create_trial(
        state=TrialState.RUNNING,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values={s: v for s, v in trial.intermediate_values.items() if s <= last},
        user_attrs={"lyapunov:readouts": {s: r for s, r in known.items() if int(s) <= last}},
    )


def same(a: dict[str, Feature], b: dict[str, Feature]) -> bool:
    return repr(sorted(a.items())) == repr(sorted(b.items()))  # NaN equals NaN here


@pytest.mark.parametrize("name", EVIDENCE)
@given(trial=trials(), step=st.sampled_from([None, *STEPS]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_kind_knows_only_what_was_known_at_the_step(
    name: str, trial: FrozenTrial, step: int | None
) -> None:
    kind = EVIDENCE[name]
    assert kind.name == name
    found = kind.features(TrialView.of(trial, 1), step)
    assert all(isinstance(value, float | str) for value in found.values())
    assert same(found, kind.features(TrialView.of(until(trial, step), 1), step))
    if step is not None and not any(s <= step for s in trial.intermediate_values):
        assert same(found, kind.features(TrialView.of(until(trial, None), 1), None))


@pytest.mark.parametrize("name", EVIDENCE)
@given(trial=trials(), step=st.sampled_from([None, *STEPS]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_score_that_is_maximised_is_a_loss_that_is_minimised(
    name: str, trial: FrozenTrial, step: int | None
) -> None:
    kind = EVIDENCE[name]
    mirrored = until(trial, max(STEPS))
    mirrored.intermediate_values = {s: -v for s, v in trial.intermediate_values.items()}
    assert same(
        kind.features(TrialView.of(trial, 1), step), kind.features(TrialView.of(mirrored, -1), step)
    )
