"""A second chance for pruned trials."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from _studies import specs, study_of
from click.testing import CliRunner
from optuna.trial import TrialState

import lyap_optuna as lyap
from lyap_optuna.campaign import previous_attempt
from lyap_optuna.cli import main
from lyap_optuna.records import read_readouts

WAITING = (TrialState.WAITING,)


def half_pruned(n_complete: int = 30, sign: int = 1, **options: Any) -> optuna.Study:
    """COMPLETE trials, and as many again, pruned after four epochs, the best among them too."""
    trials = specs("easy", 2 * n_complete, sign=sign)
    for trial in trials[n_complete:]:
        kept = dict(list(trial["intermediate_values"].items())[:4])
        trial |= {"intermediate_values": kept, "value": None, "state": TrialState.PRUNED}
    return study_of(trials, sign=sign, **options)


def chances(study: optuna.Study) -> dict[int, float]:
    return {
        p.number: p.probability
        for p in lyap.rank_trials(study)
        if p.state == TrialState.PRUNED and p.probability is not None
    }


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("asked", [1, 2, 40])
def test_those_that_promise_more_than_a_new_trial_are_queued_best_first(
    sign: int, asked: int
) -> None:
    study = half_pruned(sign=sign)
    better = [n for n, p in sorted(chances(study).items(), key=lambda x: -x[1]) if p > 0.1]
    assert 1 < len(better) < 30
    outcome = lyap.second_chance(study, asked)
    assert [p.number for p in outcome.queued] == better[:asked]
    assert sorted([*outcome.left_out, *better[:asked]]) == list(range(30, 60))
    waiting = study.get_trials(states=WAITING)
    assert [t.user_attrs["lyapunov:continues"] for t in waiting] == better[:asked]
    for number in better[:asked]:
        trial = study.ask()
        asked_for = {
            name: trial._suggest(name, distribution)
            for name, distribution in study.trials[number].distributions.items()
        }
        assert asked_for == study.trials[number].params
        assert previous_attempt(trial) == number
        # The baseline counts; what was measured later does where this trial reports too.
        assert list(read_readouts(study.trials[trial.number])) == [-1]
        trial.report(1.0, 1)
        assert list(read_readouts(study.trials[trial.number])) == [-1, 1]


def test_none_is_queued_twice_whatever_became_of_it() -> None:
    study = half_pruned()
    first = {p.number for p in lyap.second_chance(study, 40).queued}
    for state in (TrialState.FAIL, TrialState.PRUNED, None):  # one waits, one runs, the rest wait
        trial = study.ask()
        for name, distribution in study.trials[first.copy().pop()].distributions.items():
            trial._suggest(name, distribution)
        if state is not None:
            trial.report(1e9, 0)
            study.tell(trial, state=state)
    again = lyap.second_chance(study, 40)
    assert not first & {p.number for p in again.queued}
    assert {again.left_out[number] for number in first} == {"continued already"}
    assert f"{len(first)} (continued already)" in str(again)
    assert not lyap.second_chance(study, 40).queued


def test_a_trial_is_not_queued_where_its_parameters_have_run_or_wait() -> None:
    study = half_pruned()
    best, second = sorted(chances(study), key=lambda n: -chances(study)[n])[:2]
    study.enqueue_trial(study.trials[best].params)
    study.add_trial(
        optuna.create_trial(
            value=3.0,
            params=study.trials[second].params,
            distributions=study.trials[second].distributions,
        )
    )
    outcome = lyap.second_chance(study, 40)
    reason = "a trial of the same parameters is COMPLETE, runs or waits"
    assert outcome.left_out[best] == outcome.left_out[second] == reason
    assert len(study.get_trials(states=WAITING)) == 1 + len(outcome.queued)


def test_a_continued_trial_that_is_pruned_may_be_continued_again() -> None:
    study = half_pruned()
    (first,) = lyap.second_chance(study, 1).queued
    trial = study.ask()
    for name, distribution in study.trials[first.number].distributions.items():
        trial._suggest(name, distribution)
    for step, value in study.trials[first.number].intermediate_values.items():
        trial.report(value, step)
    study.tell(trial, state=TrialState.PRUNED)
    outcome = lyap.second_chance(study, 40)
    assert trial.number in [p.number for p in outcome.queued]
    assert outcome.left_out[first.number] == "continued already"


def test_trials_that_rested_when_a_search_ended_count_as_pruned() -> None:
    def curve(trial: optuna.Trial) -> Any:
        x = trial.suggest_float("x", -1.0, 1.0)
        yield
        for epoch in range(8):
            trial.report(x**2 + 1 / (1 + epoch), epoch)
            yield
        return x**2

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    lyap.freeze_thaw(study, curve, n_steps=120, seed=0, cost="steps")
    rested = [t.number for t in study.trials if t.state != TrialState.COMPLETE]
    untrained = [t.number for t in study.trials if t.state == TrialState.FAIL]
    assert untrained
    outcome = lyap.second_chance(study, 100)
    assert sorted([*outcome.left_out, *(p.number for p in outcome.queued)]) == rested
    # A search begins with what is queued, and trains it.
    first = study.get_trials(states=WAITING)[0]
    lyap.freeze_thaw(study, curve, n_trials=1, seed=0, cost="steps")
    begun = study.trials[first.number]
    assert begun.state.is_finished()
    assert begun.params == study.trials[begun.user_attrs["lyapunov:continues"]].params


def test_a_failed_trial_is_left_alone() -> None:
    study = half_pruned()
    before = len(study.trials)
    study.add_trial(
        optuna.create_trial(
            state=TrialState.FAIL,
            intermediate_values={0: 1e-9},
            params=study.trials[-1].params | {"lr": 0.05},
            distributions=study.trials[-1].distributions,
        )
    )
    outcome = lyap.second_chance(study, 40)
    assert before not in {*outcome.left_out, *(p.number for p in outcome.queued)}


def test_infeasible_trials_are_not_queued() -> None:
    study = half_pruned()
    best = max(chances(study).items(), key=lambda x: x[1])[0]
    constrained = optuna.create_study()
    for trial in study.trials:
        trial.system_attrs["constraints"] = [1.0 if trial.number == best else -1.0]
        constrained.add_trial(trial)
    assert lyap.second_chance(constrained, 40).left_out[best] == "constraints not met"


def test_why_nothing_was_queued_is_said() -> None:
    assert "no trial of the study was pruned" in str(lyap.second_chance(optuna.create_study(), 1))
    unknown = study_of([{"state": TrialState.PRUNED, "intermediate_values": {0: 1.0}}])
    assert str(lyap.second_chance(unknown, 1)) == (
        "Nothing was queued. Pruned and not queued: 1 (nothing can be predicted)."
    )
    hopeless = study_of(
        [
            *specs("easy", 30),
            {
                "state": TrialState.PRUNED,
                "intermediate_values": dict.fromkeys(range(4), 1e6),
                "params": {"fixed": 0.5},
                "distributions": {"fixed": optuna.distributions.FloatDistribution(0, 1)},
            },
        ]
    )
    told = str(lyap.second_chance(hopeless, 1))
    assert told.endswith("1 (no more promising than a new trial).")
    assert not hopeless.get_trials(states=WAITING)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="n_trials=0"):
        lyap.second_chance(optuna.create_study(), 0)
    with pytest.raises(ValueError, match="several objectives"):
        lyap.second_chance(optuna.create_study(directions=["minimize", "maximize"]), 1)
    with pytest.raises(ValueError, match="vibes"):
        lyap.second_chance(optuna.create_study(), 1, evidence=["vibes"])


def test_the_command_queues_and_says_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = half_pruned(storage=url, study_name="tune")
    expected = sorted(chances(study), key=lambda n: -chances(study)[n])[:2]
    arguments = ["rank", "--storage", url, "--enqueue", "2", "-f", "json"]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    assert f"(a new trial has 0.1): {expected[0]} (" in " ".join(first.stderr.split())
    waiting = study.get_trials(states=WAITING)
    assert [t.user_attrs["lyapunov:continues"] for t in waiting] == expected
    second = CliRunner().invoke(main, arguments)
    assert "2 (continued already)" in " ".join(second.stderr.split())
    later = study.get_trials(states=WAITING)[2:]
    assert not {t.user_attrs["lyapunov:continues"] for t in later} & {*expected}
    assert CliRunner().invoke(main, [*arguments[:3], "--enqueue", "0"]).exit_code == 2
