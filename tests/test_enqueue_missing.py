"""An interrupted list of configurations goes on where it stopped."""

import optuna
import pytest
from optuna.trial import TrialState

from lyap_optuna.campaign import enqueue_missing

CONFIGURATIONS = [{"x": float(i) / 3, "kind": kind} for i in range(4) for kind in "ab"]


def objective(trial: optuna.Trial) -> float:
    trial.suggest_categorical("kind", ["a", "b"])
    return trial.suggest_float("x", 0, 2)


def test_only_what_is_missing_is_run(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name="s")
    assert enqueue_missing(study, CONFIGURATIONS) == 8
    study.optimize(objective, n_trials=2)
    study.ask()  # of a process that is killed now

    def fails(trial):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        study.optimize(fails, n_trials=1)

    again = optuna.load_study(storage=storage, study_name="s")
    assert enqueue_missing(again, CONFIGURATIONS) == 6
    assert enqueue_missing(again, CONFIGURATIONS) == 6  # those are waiting
    again.optimize(objective, n_trials=6)
    complete = again.get_trials(states=(TrialState.COMPLETE,))
    key = lambda params: (params["x"], params["kind"])  # noqa: E731
    assert sorted((t.params for t in complete), key=key) == sorted(CONFIGURATIONS, key=key)
    assert enqueue_missing(again, CONFIGURATIONS) == 0
    assert [t.state for t in again.trials if t.state != TrialState.COMPLETE] == [
        TrialState.FAIL
    ] * 2


def test_one_that_is_given_twice_is_run_twice():
    study = optuna.create_study()
    study.optimize(objective, n_trials=enqueue_missing(study, CONFIGURATIONS[:1] * 2))
    assert len(study.trials) == 2
    assert enqueue_missing(study, CONFIGURATIONS[:1] * 3) == 1
