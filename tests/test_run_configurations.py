"""An interrupted list of configurations goes on where it stopped."""

import threading

import optuna
import pytest
from optuna.trial import TrialState

from lyap_optuna.campaign import run_configurations

CONFIGURATIONS = [{"x": float(i) / 3, "kind": kind} for i in range(4) for kind in "ab"]


def objective(trial: optuna.Trial) -> float:
    trial.suggest_categorical("kind", ["a", "b"])
    return trial.suggest_float("x", 0, 2)


def by_value(params):
    return (params["x"], params["kind"])


@pytest.mark.parametrize("jobs", [1, 3])
def test_only_what_is_missing_is_run(tmp_path, jobs):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name="s")
    failing = threading.Event()

    def fails_at_last(trial):
        value = objective(trial)
        if trial.params == CONFIGURATIONS[3] and not failing.is_set():
            failing.set()
            raise ZeroDivisionError
        return value

    with pytest.raises(ZeroDivisionError):
        run_configurations(study, fails_at_last, CONFIGURATIONS, jobs=jobs)
    assert [t.state for t in study.trials].count(TrialState.FAIL) == 1
    if jobs == 1:
        assert [t.state for t in study.trials].count(TrialState.WAITING) == 4
    study.ask()  # of a process that is killed now

    again = optuna.load_study(storage=storage, study_name="s")
    run_configurations(again, objective, CONFIGURATIONS, jobs=jobs)
    complete = again.get_trials(states=(TrialState.COMPLETE,))
    assert sorted((t.params for t in complete), key=by_value) == sorted(
        CONFIGURATIONS, key=by_value
    )
    n_trials = len(again.trials)
    run_configurations(again, objective, CONFIGURATIONS, jobs=jobs)
    assert len(again.trials) == n_trials
    assert {t.state for t in again.trials} == {TrialState.COMPLETE, TrialState.FAIL}


def test_threads_never_get_the_same_trial(tmp_path):
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}")
    seen: list[int] = []

    def remembers(trial):
        seen.append(trial.number)
        return objective(trial)

    run_configurations(study, remembers, CONFIGURATIONS * 5, jobs=8)
    assert sorted(seen) == list(range(40))


def test_a_storage_that_fails_while_asking_releases_the_others(monkeypatch):
    study = optuna.create_study()
    monkeypatch.setattr(study, "ask", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_configurations(study, objective, CONFIGURATIONS, jobs=2)


def test_one_that_is_given_twice_is_run_twice():
    study = optuna.create_study()
    run_configurations(study, objective, CONFIGURATIONS[:1] * 2)
    assert len(study.trials) == 2
    run_configurations(study, objective, CONFIGURATIONS[:1] * 3)
    assert len(study.trials) == 3
    with pytest.raises(ValueError, match="jobs must be at least 1, but got 0"):
        run_configurations(study, objective, CONFIGURATIONS, jobs=0)
