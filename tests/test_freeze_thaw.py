# ruff: noqa: NPY002 (NumPy's global generator is one of those that a trial has of its own)
"""freeze_thaw: no trial is thrown away while it may still win, and each is as it would be alone."""

import _thread
import copy
import functools
import math
import pickle
import random
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import tqdm.auto
from optuna.trial import FrozenTrial, TrialState

import lyap_optuna as lyap
from lyap_optuna.records import _keys, read_decisions
from lyap_optuna.replay import Recording, replay_freeze_thaw
from lyap_optuna.search import _choice, _ending, _rests, _search
from lyap_optuna.search._choice import GROWTH, Begun, Choice
from lyap_optuna.search._sampling import SeesRestingAsPruned, as_pruned
from lyap_optuna.search._worlds import World

EPOCHS = 8
OVER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def curve(trial: optuna.Trial) -> Generator[None, None, float]:
    x = trial.suggest_float("x", -1.0, 1.0)
    for epoch in range(EPOCHS):
        trial.report(x**2 + 1 / (1 + epoch), epoch)
        yield
    return x**2


def asking_curve(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -1.0, 1.0)
    for epoch in range(EPOCHS):
        trial.report(x**2 + 1 / (1 + epoch), epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x**2


def crossing_curve(trial: optuna.Trial) -> Generator[None, None, float]:
    """Early reports say little, so trials change places."""
    x, y = (trial.suggest_float(name, -1.0, 1.0) for name in "xy")
    for epoch in range(EPOCHS):
        late = (epoch + 1) / EPOCHS
        trial.report(late * x**2 + (1 - late) * abs(y), epoch)
        yield
    return x**2


def resumed(order: list[int]) -> set[int]:
    """The trials that went on after another had run."""
    visits = Counter(n for i, n in enumerate(order) if i == 0 or order[i - 1] != n)
    return {n for n, times in visits.items() if times > 1}


def random_study(seed: int = 0, **options: Any) -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed), **options)


def told(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(t.state, t.params, t.intermediate_values, t.values) for t in study.trials]


def reports(study: optuna.Study) -> int:
    return sum(len(t.intermediate_values) for t in study.trials)


def started_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("lyap-optuna-trial")]


@pytest.fixture(autouse=True)
def nothing_stays() -> Generator[None, None, None]:
    """After every test: no thread of a trial is left."""
    yield
    assert not started_threads()


# The search


def test_every_trial_ends_and_what_rested_says_so() -> None:
    study = random_study()
    lyap.freeze_thaw(study, curve, n_steps=120, seed=0, cost="steps")
    states = Counter(t.state for t in study.trials)
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert states[TrialState.COMPLETE] >= 4
    for trial in study.get_trials(states=[TrialState.PRUNED]):
        assert trial.value == trial.intermediate_values[trial.last_step]
        decision = read_decisions(trial)[-1]
        assert (decision.step, decision.verdict, decision.because) == (
            trial.last_step,
            "pruned",
            "rested",
        )
        assert "rested" in decision.reason
        assert "rested" in str(lyap.explain(study, trial.number))
    assert not any(t.user_attrs.get(_keys.RESTING) for t in study.trials)
    assert type(study.sampler) is optuna.samplers.RandomSampler


@pytest.mark.parametrize("n_steps", [0, 1, 13, 57, 100])
@pytest.mark.parametrize("objective", [curve, asking_curve])
def test_steps_are_reports_and_no_more_are_made_than_asked_for(
    n_steps: int, objective: Callable[..., Any]
) -> None:
    study = random_study()
    lyap.freeze_thaw(study, objective, n_steps=n_steps, seed=0)
    assert reports(study) == n_steps
    assert all(t.state in OVER for t in study.trials)


def test_an_unchanged_objective_takes_the_same_way_as_a_generator() -> None:
    studies = random_study(), random_study()
    for study, objective in zip(studies, (curve, asking_curve), strict=True):
        lyap.freeze_thaw(study, objective, n_steps=150, seed=3, cost="steps")
    assert told(studies[0]) == told(studies[1])


def test_the_same_seed_makes_the_same_choices_and_another_seed_others() -> None:
    def choices(seed: int) -> list[int]:
        order: list[int] = []

        def objective(trial: optuna.Trial) -> Generator[None, None, float]:
            for _ in crossing_curve(trial):
                order.append(trial.number)
                yield
            return trial.params["x"] ** 2

        study = random_study()
        lyap.freeze_thaw(study, objective, n_steps=150, seed=seed, cost="steps")
        return order

    first = choices(0)
    assert first == choices(0)
    assert first != choices(1)
    # The first four run to their end; later ones go on by half of what they have had.
    assert first[: 4 * EPOCHS] == [n for n in range(4) for _ in range(EPOCHS)]
    assert len(resumed(first)) > 1
    assert GROWTH == 0.5


def test_n_trials_are_begun_and_the_best_are_found() -> None:
    study = random_study()
    lyap.freeze_thaw(study, curve, n_trials=60, seed=0)
    assert len(study.trials) == 60
    assert reports(study) < 0.5 * 60 * EPOCHS
    best = min(t.params["x"] ** 2 for t in study.trials)
    assert study.best_value <= sorted(t.params["x"] ** 2 for t in study.trials)[2]
    assert best >= 0


def test_the_clock_ends_a_search_at_the_next_pause() -> None:
    study = random_study()
    lyap.freeze_thaw(study, curve, timeout=1.0, seed=0)
    assert len(study.trials) > 4
    assert all(t.state in OVER for t in study.trials)


def test_maximising_is_minimising_of_the_negative() -> None:
    def negative(trial: optuna.Trial) -> Generator[None, None, float]:
        x = trial.suggest_float("x", -1.0, 1.0)
        for epoch in range(EPOCHS):
            trial.report(-(x**2) - 1 / (1 + epoch), epoch)
            yield
        return -(x**2)

    down, up = random_study(), random_study(direction="maximize")
    lyap.freeze_thaw(down, curve, n_steps=150, seed=0, cost="steps")
    lyap.freeze_thaw(up, negative, n_steps=150, seed=0, cost="steps")
    assert [t.state for t in down.trials] == [t.state for t in up.trials]
    assert down.best_value == -up.best_value


def test_slow_trials_must_promise_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]  # seconds, by a clock of the test's own: a busy machine makes every trial slow
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("lyap_optuna.search._search.time", clock)

    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        for _ in curve(trial):
            now[0] += 1.0 if trial.number > 3 and trial.params["x"] > 0 else 0.05
            yield
        return trial.params["x"] ** 2

    study = random_study(1)
    lyap.freeze_thaw(study, objective, n_steps=130, seed=0)
    ended = [t for t in study.get_trials(states=[TrialState.COMPLETE]) if t.number > 3]
    slow = sum(t.params["x"] > 0 for t in ended)
    assert slow < len(ended) - slow


def test_beyond_max_paused_the_least_promising_ends_first() -> None:
    paused: list[int] = []

    def count(study: optuna.Study, trial: FrozenTrial) -> None:
        paused.append(len(study.get_trials(deepcopy=False, states=[TrialState.RUNNING])))

    study = random_study()
    lyap.freeze_thaw(
        study, curve, n_trials=40, max_paused=3, seed=0, cost="steps", callbacks=[count]
    )
    assert max(paused) <= 3
    rested = study.get_trials(states=[TrialState.PRUNED])
    complete = study.get_trials(states=[TrialState.COMPLETE])[4:]
    assert np.median([t.params["x"] ** 2 for t in rested]) > np.median([t.value for t in complete])


def test_a_trial_may_rest_untrained_and_then_ends_as_fail() -> None:
    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        x = trial.suggest_float("x", -1.0, 1.0)
        yield
        for epoch in range(EPOCHS):
            trial.report(x**2, epoch)
            yield
        return x**2

    study = random_study()
    lyap.freeze_thaw(study, objective, n_steps=80, seed=0, cost="steps")
    assert reports(study) == 80
    untrained = [t for t in study.trials if not t.intermediate_values]
    assert untrained
    assert {t.state for t in untrained} == {TrialState.FAIL}
    assert read_decisions(untrained[0])[-1].because == "rested"
    begun = [t for t in study.trials[4:] if t.intermediate_values]
    assert np.mean([abs(t.params["x"]) for t in begun]) < np.mean(
        [abs(t.params["x"]) for t in untrained]
    )


def test_an_objective_that_cannot_pause_runs_through_with_one_warning() -> None:
    study = random_study()
    with pytest.warns(lyap.LyapunovWarning, match="neither yields nor calls") as caught:
        lyap.freeze_thaw(study, lambda trial: trial.suggest_float("x", 0, 1), n_trials=6)
    assert sum(isinstance(w.message, lyap.LyapunovWarning) for w in caught) == 1
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 6


def test_objectives_that_never_report_count_their_pauses() -> None:
    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        x = trial.suggest_float("x", 0, 1)
        for _ in range(5):
            yield
        return x

    study = random_study()
    lyap.freeze_thaw(study, objective, n_steps=60, seed=0)
    assert len(study.trials) > 4
    assert all(t.state in OVER for t in study.trials)


def test_generators_in_disguise_pause_too() -> None:
    class Objective:
        def __call__(self, trial: optuna.Trial) -> Generator[None, None, float]:
            return (yield from curve(trial))

    expected = random_study()
    lyap.freeze_thaw(expected, curve, n_steps=90, seed=0, cost="steps")
    for objective in (Objective(), lambda trial: curve(trial)):
        study = random_study()
        lyap.freeze_thaw(study, objective, n_steps=90, seed=0, cost="steps")
        assert told(study) == told(expected)


def test_hyperband_is_not_asked_and_hides_no_trials() -> None:
    band, none = random_study(pruner=optuna.pruners.HyperbandPruner()), random_study()
    for study in (band, none):
        lyap.freeze_thaw(study, asking_curve, n_steps=80, seed=0, cost="steps")
    assert told(band) == told(none)


def test_it_goes_on_with_a_study_and_asks_no_pruner(tmp_path: Any) -> None:
    class Never(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
            raise AssertionError("a pruner was asked")

    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = random_study(storage=storage, study_name="s")
    study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=3)
    study.pruner = Never()
    lyap.freeze_thaw(study, asking_curve, n_steps=40, seed=0, cost="steps")
    again = optuna.load_study(study_name="s", storage=storage, sampler=study.sampler)
    again.pruner = Never()
    lyap.freeze_thaw(again, asking_curve, n_steps=40, seed=0, cost="steps")
    assert reports(again) == 80
    assert all(t.state in OVER for t in again.trials)


def last_bar(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().split("\r")[-1]


def test_a_bar_shows_steps_the_best_value_and_what_rests(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = functools.partial(tqdm.auto.tqdm, mininterval=0, miniters=0)
    monkeypatch.setattr("tqdm.auto.tqdm", every)
    study = random_study()
    lyap.freeze_thaw(study, curve, n_steps=60, seed=0, cost="steps", show_progress_bar=True)
    bars = capsys.readouterr().err.strip().split("\r")
    assert "60/60" in bars[-1]
    assert f"best {study.best_value:.4g}, 0 rest" in bars[-1]  # the search has ended
    running = [bar for bar in bars if "runs, " in bar]
    assert any("trial 0 runs, 0 rest" in bar for bar in running)
    assert any(" 3 rest" in bar for bar in running)
    assert "left at most" not in bars[-1]


def test_a_bar_shows_trials_begun_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    study = random_study()
    lyap.freeze_thaw(study, curve, n_trials=6, timeout=3600, seed=0, show_progress_bar=True)
    shown = last_bar(capsys)
    assert f"{reports(study)}step" in shown
    assert "6/6 trials begun" in shown
    assert "59:" in shown
    assert "left at most" in shown


# How trials end


def test_finally_blocks_run_in_every_trial() -> None:
    opened, closed = set(), set()

    def generator(trial: optuna.Trial) -> Generator[None, None, float]:
        opened.add(trial.number)
        try:
            return (yield from curve(trial))
        finally:
            closed.add(trial.number)

    def asking(trial: optuna.Trial) -> float:
        opened.add(trial.number)
        try:
            return asking_curve(trial)
        finally:
            closed.add(trial.number)

    for objective in (generator, asking):
        opened.clear()
        closed.clear()
        lyap.freeze_thaw(random_study(), objective, n_steps=90, seed=0)
        assert len(opened) > 5
        assert opened == closed


@pytest.mark.parametrize("threaded", [False, True])
def test_an_objective_that_raises_fails_its_trial_alone(threaded: bool) -> None:
    def failing(trial: optuna.Trial) -> Generator[None, None, float]:
        for pause in curve(trial):
            if trial.number == 6:
                raise ZeroDivisionError("six")
            yield pause
        return trial.params["x"] ** 2

    objective: Any = (lambda trial: failing(trial)) if threaded else failing
    study = random_study()
    lyap.freeze_thaw(study, objective, n_steps=100, seed=0, catch=ZeroDivisionError)
    assert study.trials[6].state == TrialState.FAIL
    assert len(study.trials) > 10

    study = random_study()
    with pytest.raises(ZeroDivisionError, match="six"):
        lyap.freeze_thaw(study, objective, n_steps=100, seed=0, catch=(ValueError,))
    assert study.trials[6].state == TrialState.FAIL
    assert len(study.trials) == 7
    assert all(t.state in OVER for t in study.trials)
    study.optimize(asking_curve, n_trials=1)  # the study is as it was before


@pytest.mark.parametrize("threaded", [False, True])
def test_an_interrupt_leaves_nothing_running(threaded: bool) -> None:
    closed = []

    def interrupted(trial: optuna.Trial) -> Generator[None, None, float]:
        try:
            for pause in curve(trial):
                if trial.number == 7:
                    _thread.interrupt_main()
                    for _ in range(1000):
                        threading.Event().wait(0.01)
                    raise AssertionError("nobody was interrupted")
                yield pause
            return trial.params["x"] ** 2
        finally:
            closed.append(trial.number)

    study = random_study()
    with pytest.raises(KeyboardInterrupt):
        lyap.freeze_thaw(
            study, (lambda trial: interrupted(trial)) if threaded else interrupted, seed=0
        )
    assert study.trials[7].state == TrialState.FAIL
    assert sorted(closed) == list(range(8))
    assert all(t.state in OVER for t in study.trials)


def test_a_finally_block_that_raises_hides_nothing_and_leaves_nothing_running() -> None:
    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        try:
            return (yield from curve(trial))
        except optuna.TrialPruned:
            raise OSError(f"disk of {trial.number}") from None

    study = random_study()
    with pytest.raises(OSError, match="disk of"):
        lyap.freeze_thaw(study, objective, n_steps=60, seed=0)
    assert {t.state for t in study.trials} == {TrialState.COMPLETE, TrialState.FAIL}


def test_a_generator_that_will_not_end_is_closed() -> None:
    def stubborn(trial: optuna.Trial) -> Generator[None, None, float]:
        x = trial.suggest_float("x", -1.0, 1.0)
        for epoch in range(EPOCHS):
            trial.report(x**2, epoch)
            try:
                yield
            except optuna.TrialPruned:
                yield
        return x**2

    study = random_study()
    lyap.freeze_thaw(study, stubborn, n_steps=60, seed=0)
    assert reports(study) == 60
    assert {t.state for t in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_what_is_no_number_is_a_fail_and_a_trial_may_prune_itself() -> None:
    def objective(trial: optuna.Trial) -> Generator[None, None, Any]:
        trial.report(1.0, 0)
        yield
        if trial.number == 3:
            raise optuna.TrialPruned
        return (math.nan, "twelve", None)[trial.number]

    study = random_study()
    lyap.freeze_thaw(study, objective, n_trials=4)
    assert [t.state.name for t in study.trials] == ["FAIL", "FAIL", "FAIL", "PRUNED"]
    assert not read_decisions(study.trials[3])


# study.stop, callbacks


@pytest.mark.parametrize("objective", [curve, asking_curve])
def test_stop_from_an_objective_lets_that_trial_finish(objective: Callable[..., Any]) -> None:
    stopped = []

    def generator(trial: optuna.Trial) -> Generator[None, None, float]:
        for epoch, pause in enumerate(curve(trial)):
            if trial.number == 9 and epoch == 0:
                trial.study.stop()
                stopped.append(9)
            yield pause
        return trial.params["x"] ** 2

    def asking(trial: optuna.Trial) -> float:
        if trial.number == 9:
            trial.study.stop()
            stopped.append(9)
        return asking_curve(trial)

    study = random_study()
    lyap.freeze_thaw(study, generator if objective is curve else asking, seed=0)
    assert stopped == [9]
    assert len(study.trials) == 10
    assert study.trials[9].state == TrialState.COMPLETE
    assert all(t.state in OVER for t in study.trials)


def test_callbacks_see_every_trial_once_and_may_stop_the_search() -> None:
    seen: list[int] = []

    def see(study: optuna.Study, trial: FrozenTrial) -> None:
        assert trial.state in OVER
        seen.append(trial.number)

    study = random_study()
    stop = optuna.study.MaxTrialsCallback(6, states=(TrialState.COMPLETE,))
    lyap.freeze_thaw(study, curve, seed=0, callbacks=[see, stop])
    assert len(study.get_trials(states=[TrialState.COMPLETE])) == 6
    assert sorted(seen) == [t.number for t in study.trials]


def test_a_callback_that_raises_ends_the_search_with_nothing_running() -> None:
    def raising(study: optuna.Study, trial: FrozenTrial) -> None:
        if trial.number > 3:
            raise LookupError

    study = random_study()
    with pytest.raises(LookupError):
        lyap.freeze_thaw(study, asking_curve, seed=0, callbacks=[raising])
    assert all(t.state in OVER for t in study.trials)


def test_no_search_within_a_search() -> None:
    def nested(trial: optuna.Trial) -> float:
        lyap.freeze_thaw(trial.study, curve, n_trials=1)
        return 0.0

    for run in (lambda s: lyap.freeze_thaw(s, nested), lambda s: s.optimize(nested)):
        with pytest.raises(RuntimeError, match="within a search"):
            run(random_study())


# Samplers


def test_a_sampler_sees_a_resting_trial_as_pruned_with_its_last_report() -> None:
    study = optuna.create_study()
    running, resting, untrained = (study.ask({"x": FLOAT}) for _ in range(3))
    for trial in (running, resting):
        trial.report(3.0, 0)
        trial.report(2.0, 1)
    views: list[list[tuple[TrialState, Any]]] = []

    class Looks(optuna.samplers.RandomSampler):
        def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
            for trials in (
                study.trials,
                study.get_trials(deepcopy=False),
                study._get_trials(deepcopy=False, use_cache=True),
                study._storage.get_all_trials(study._study_id),
            ):
                views.append([(t.state, t.values) for t in trials])

    ids = {resting._trial_id, untrained._trial_id}
    study.sampler = SeesRestingAsPruned(Looks(), study, ids)
    study.ask()
    R, P, F = TrialState.RUNNING, TrialState.PRUNED, TrialState.FAIL
    assert len(views) == 4
    assert all(v == [(R, None), (P, [2.0]), (F, None), (R, None)] for v in views)
    assert [t.state for t in study.trials] == [R, R, R, R]


FLOAT = optuna.distributions.FloatDistribution(0.0, 1.0)


def test_tpe_counts_resting_trials_towards_its_startup() -> None:
    def suggested(rest: bool) -> bool:
        sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=5)
        study = optuna.create_study(sampler=sampler)
        trials = [study.ask() for _ in range(6)]
        for trial in trials:
            trial.suggest_float("x", 0, 1)
            trial.report(trial.params["x"], 0)
        ids = {t._trial_id for t in trials} if rest else set()
        study.sampler = SeesRestingAsPruned(sampler, study, ids)
        models: list[Any] = []
        build = sampler._build_parzen_estimator
        sampler._build_parzen_estimator = lambda *a, **k: (  # type: ignore[method-assign]
            models.append(1) or build(*a, **k)
        )
        study.ask().suggest_float("x", 0, 1)
        return bool(models)

    assert suggested(True)
    assert not suggested(False)


def test_what_a_pruned_trial_is_to_optuna_a_resting_one_is_to_samplers() -> None:
    study = optuna.create_study()
    trial = study.ask({"x": FLOAT})
    trial.report(1.0, 3)
    seen = as_pruned(study.trials[0])
    study.tell(trial, state=TrialState.PRUNED)
    told = study.trials[0]
    assert (seen.state, seen.values, seen.params, seen.last_step) == (
        told.state,
        told.values,
        told.params,
        told.last_step,
    )
    assert seen.datetime_complete is not None


@pytest.mark.parametrize("n_steps", [None, 90, 10_000])
@pytest.mark.parametrize("kind", ["grid", "brute"])
def test_an_exhausted_sampler_begins_no_more(kind: str, n_steps: int | None) -> None:
    grid = [i / 10 for i in range(-10, 11)]
    sampler: optuna.samplers.BaseSampler = (
        optuna.samplers.GridSampler({"x": grid}, seed=0)
        if kind == "grid"
        else optuna.samplers.BruteForceSampler(seed=0)
    )
    study = optuna.create_study(sampler=sampler)

    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        x = trial.suggest_float("x", -1.0, 1.0, step=0.1)
        for epoch in range(EPOCHS):
            trial.report(x**2 + 1 / (1 + epoch), epoch)
            yield
        return x**2

    lyap.freeze_thaw(study, objective, n_steps=n_steps, seed=0, cost="steps")
    begun = [round(t.params["x"], 1) for t in study.trials]
    assert len(begun) == len(set(begun))
    assert all(t.state in OVER for t in study.trials)
    if n_steps == 10_000:  # with a budget left, what rests goes on to its end
        assert sorted(begun) == grid
        assert {t.state for t in study.trials} == {TrialState.COMPLETE}
    elif n_steps is None:
        assert sorted(begun) == grid
        assert reports(study) < len(grid) * EPOCHS
    else:
        assert reports(study) == n_steps


@pytest.mark.parametrize(
    "sampler",
    [
        optuna.samplers.TPESampler(seed=0, constant_liar=True),
        optuna.samplers.TPESampler(seed=0, multivariate=True, group=True),
        optuna.samplers.QMCSampler(seed=0),
        optuna.samplers.NSGAIISampler(seed=0, population_size=5),
    ],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_samplers_work(sampler: optuna.samplers.BaseSampler) -> None:
    study = optuna.create_study(sampler=sampler)
    lyap.freeze_thaw(study, curve, n_steps=100, seed=0)
    assert reports(study) == 100
    assert study.sampler is sampler


def test_queued_trials_come_first_and_conditional_spaces_work() -> None:
    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        cell = trial.suggest_categorical("cell", ["a", "b"])
        x = trial.suggest_float(f"x_{cell}", -1.0, 1.0)
        for epoch in range(EPOCHS):
            trial.report(x**2, epoch)
            yield
        return x**2

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.enqueue_trial({"cell": "b", "x_b": 0.25})
    lyap.freeze_thaw(study, objective, n_steps=100, seed=0)
    assert study.trials[0].params == {"cell": "b", "x_b": 0.25}
    assert {t.params["cell"] for t in study.trials} == {"a", "b"}


def test_the_best_are_the_best_feasible_ones() -> None:
    def constraints(trial: FrozenTrial) -> tuple[float]:
        return (trial.user_attrs.get("c", 1.0),)

    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        x = trial.suggest_float("x", -1.0, 1.0)
        trial.set_user_attr("c", x)  # feasible where x <= 0
        for epoch in range(EPOCHS):
            trial.report(x + 1, epoch)
            yield
        return x + 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=0, constraints_func=constraints)
    study = optuna.create_study(sampler=sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        lyap.freeze_thaw(study, objective, n_steps=150, seed=0)
    assert all("constraints" in t.system_attrs for t in study.trials)
    assert study.best_value < 0.5


def test_arguments_are_checked() -> None:
    study = optuna.create_study()
    for wrong in (
        {"n_trials": -1},
        {"n_steps": -1},
        {"timeout": -1.0},
        {"max_paused": 0},
        {"seed": -1},
        {"cost": "hours"},
        {"evidence": ["tea leaves"]},
    ):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values()))).strip("[]'")):
            lyap.freeze_thaw(study, curve, **wrong)  # type: ignore[arg-type]
    several = optuna.create_study(directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="several objectives"):
        lyap.freeze_thaw(several, curve)
    assert not study.trials


# Worlds


def train(trial: optuna.Trial, trace: dict[Any, Any]) -> Generator[None, None, float]:
    """Trains a network with every kind of chance, and pauses in awkward places."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x = torch.randn(32, 3) * random.random() + float(np.random.rand())
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), 8, shuffle=True)
    losses: list[float] = []
    with torch.no_grad():
        before = model(x).mean().item()
        yield
        assert not torch.is_grad_enabled()
    if trial.number % 2:
        torch.set_default_dtype(torch.float64)
    for epoch in range(6):
        for (batch,) in data:
            with torch.autocast("cpu", torch.bfloat16, enabled=trial.number % 3 == 0):
                loss = ((model(batch.float()) - batch.sum(1, keepdim=True)) ** 2).mean()
                if epoch == 2:
                    yield
                    assert torch.is_autocast_enabled("cpu") == (trial.number % 3 == 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.inference_mode():
            losses.append(model(x).pow(2).mean().item())
            trial.report(losses[-1], epoch)
            yield
            assert torch.is_inference_mode_enabled()
        losses.append(torch.zeros(1).double().item() + torch.rand(1).double().item())
        assert torch.zeros(1).dtype == (torch.float64 if trial.number % 2 else torch.float32)
        trace["order"].append(trial.number)
    trace[trial.number] = [before, losses, [p.detach().clone() for p in model.parameters()]]
    return losses[-2]


def asking_train(trial: optuna.Trial, trace: dict[Any, Any]) -> float:
    generator = train(trial, trace)
    try:
        while True:
            next(generator)
            if trial.should_prune():
                generator.throw(optuna.TrialPruned())
    except StopIteration as stop:
        return float(stop.value)


@pytest.mark.parametrize("threaded", [False, True])
def test_a_trial_ends_bit_for_bit_as_it_would_alone(
    threaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    started: list[int] = []

    def at_random(self: Choice, resting: Sequence[Begun]) -> Begun | None:
        if not resting or (len(started) < 8 and len(resting) < 5):
            return None
        return resting[int(rng.integers(len(resting)))]

    among: dict[Any, Any] = {"order": []}

    def generator(trial: optuna.Trial) -> Generator[None, None, float]:
        started.append(trial.number)
        return (yield from train(trial, among))

    def asking(trial: optuna.Trial) -> float:
        started.append(trial.number)
        return asking_train(trial, among)

    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    study = random_study()
    with monkeypatch.context() as patch:
        patch.setattr(_choice, "N_STARTUP_TRIALS", 0)
        patch.setattr(Choice, "choose", at_random)
        patch.setattr(Begun, "goal", lambda begun: begun.steps + 1)
        lyap.freeze_thaw(study, asking if threaded else generator, n_trials=8, seed=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert len(resumed(among["order"])) > 4
    for number in range(8):
        alone: dict[Any, Any] = {"order": []}
        single = optuna.create_study()
        for _ in range(number):  # the same number, and nothing else that runs
            single.add_trial(optuna.create_trial(state=TrialState.FAIL))

        def objective(
            trial: optuna.Trial, alone: dict[Any, Any] = alone
        ) -> Generator[None, None, float]:
            return (yield from train(trial, alone))

        lyap.freeze_thaw(single, objective, n_trials=1, seed=5, max_paused=1)
        assert alone[number][:2] == among[number][:2]
        for a, b in zip(alone[number][2], among[number][2], strict=True):
            assert torch.equal(a, b)


def test_workers_of_a_data_loader_draw_as_they_would_alone() -> None:
    class Noise(torch.utils.data.Dataset[float]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> float:
            return torch.rand(1).item() + random.random()

    def objective(drawn: dict[int, list[float]]) -> Callable[..., Any]:
        def run(trial: optuna.Trial) -> Generator[None, None, float]:
            drawn[trial.number] = []
            for epoch in range(3):
                for batch in torch.utils.data.DataLoader(Noise(), 2, num_workers=1):
                    drawn[trial.number] += batch.tolist()
                    yield  # with the worker at work
                trial.report(float(trial.number), epoch)
            return float(trial.number)

        return run

    among: dict[int, list[float]] = {}
    lyap.freeze_thaw(random_study(), objective(among), n_trials=6, seed=5)
    for number in (0, 5):
        alone: dict[int, list[float]] = {}
        single = optuna.create_study()
        for _ in range(number):
            single.add_trial(optuna.create_trial(state=TrialState.FAIL))
        lyap.freeze_thaw(single, objective(alone), n_trials=1, seed=5)
        assert alone[number][: len(among[number])] == among[number]
    assert len(alone[5]) == 12


def test_default_devices_and_nested_autocast_stay_within_their_trial() -> None:
    seen: list[tuple[int, str, int]] = []

    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        x = trial.suggest_float("x", -1.0, 1.0)
        device = "meta" if trial.number % 2 else "cpu"
        with torch.device(device):
            for epoch in range(EPOCHS):
                trial.report(x**2, epoch)
                with torch.autocast("cpu"), torch.autocast("cpu"):
                    yield
                    depth = torch.autocast_increment_nesting() - 1
                    torch.autocast_decrement_nesting()
                seen.append((trial.number, torch.zeros(1).device.type, depth))
        return x**2

    lyap.freeze_thaw(random_study(), objective, n_steps=100, seed=0)
    assert all(device == ("meta" if n % 2 else "cpu") for n, device, _ in seen)
    assert {depth for _, _, depth in seen} == {2}
    assert torch.zeros(1).device.type == "cpu"
    assert torch.autocast_increment_nesting() == 1
    torch.autocast_decrement_nesting()


def test_a_thread_begins_in_the_callers_surroundings() -> None:
    seen = []

    def objective(trial: optuna.Trial) -> float:
        seen.append((torch.is_grad_enabled(), torch.zeros(1).device.type))
        trial.should_prune()
        seen.append((torch.is_grad_enabled(), torch.zeros(1).device.type))
        return 0.0

    with torch.no_grad(), torch.device("meta"):
        lyap.freeze_thaw(random_study(), objective, n_trials=2)
    assert set(seen) == {(False, "meta")}


def test_two_hundred_trials_rest_in_little_memory() -> None:
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    most = 0

    def objective(trial: optuna.Trial) -> float:
        nonlocal most
        most = max(most, process.memory_info().rss)
        for epoch in range(EPOCHS):
            trial.report(float(trial.number), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(trial.number)

    for n_trials in (10, 204):  # what is loaded on first use is not the trials'
        before, most = process.memory_info().rss, 0
        lyap.freeze_thaw(random_study(), objective, n_trials=n_trials, max_paused=200, seed=0)
    print(f"200 resting trials: {(most - before) / 1e6:.1f} MB")
    assert most - before < 100e6


# Replay


def test_a_replay_knows_only_what_has_begun() -> None:
    recorded = random_study(2, pruner=optuna.pruners.NopPruner())
    recorded.optimize(asking_curve, n_trials=40)
    result = replay_freeze_thaw(Recording.from_study(recorded), 1)
    assert result.succeeded
    assert result.found_by < 1
    assert 0.5 <= result.epochs_spent <= 1.0
    assert result.regret_at[0] >= result.regret_at[1] >= result.regret_at[2]
    again = replay_freeze_thaw(Recording.from_study(recorded), 1)
    assert (again.found_by, again.regret_at) == (result.found_by, result.regret_at)


# What rests says so, and gives signs of life


def test_a_trial_says_that_it_rests_exactly_while_it_does() -> None:
    seen: list[tuple[bool, int]] = []

    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        for _ in crossing_curve(trial):
            running = trial.study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
            resting = [t.number for t in running if t.user_attrs.get(_keys.RESTING)]
            seen.append((trial.number in resting, len(running) - len(resting)))
            yield
        return trial.params["x"] ** 2

    study = random_study()
    lyap.freeze_thaw(study, objective, n_steps=150, seed=0, cost="steps")
    assert set(seen) == {(False, 1)}


class Beating(optuna.storages.RDBStorage):
    """A storage that counts the heartbeats of each trial, and which thread they came from."""

    def __init__(self, url: str, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(url, **options)
        self.beats: Counter[int] = Counter()
        self.threads: set[int] = set()

    def record_heartbeat(self, trial_id: int) -> None:
        self.beats[trial_id] += 1
        if threading.current_thread() is not threading.main_thread():
            self.threads.add(threading.get_ident())
        super().record_heartbeat(trial_id)


def test_one_thread_records_the_heartbeats_of_all_that_run_and_rest(tmp_path: Any) -> None:
    storage = Beating(f"sqlite:///{tmp_path / 'study.db'}", heartbeat_interval=1)
    study = random_study(storage=storage)
    while_waiting: list[dict[int, int]] = []

    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        for epoch, _ in enumerate(crossing_curve(trial)):
            resting = [
                t._trial_id
                for t in trial.study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
                if t.user_attrs.get(_keys.RESTING)
            ]
            if len(resting) >= 2 and epoch == 0 and not while_waiting:
                before = Counter(storage.beats)
                live = {*resting, trial._trial_id}
                limit = time.monotonic() + 30
                while not all(storage.beats[i] > before[i] for i in live):
                    assert time.monotonic() < limit, "a trial gives no sign of life"
                    time.sleep(0.02)
                while_waiting.append(dict(storage.beats))
            yield
        return trial.params["x"] ** 2

    lyap.freeze_thaw(study, objective, n_steps=80, seed=0, cost="steps")
    assert while_waiting
    assert len(storage.threads) == 1
    assert not [t for t in threading.enumerate() if t.name == "lyap-optuna-heartbeat"]
    assert set(storage.beats) == {t._trial_id for t in study.trials}
    after = dict(storage.beats)
    time.sleep(1.2)
    assert storage.beats == after


def test_stale_trials_of_others_fail_and_the_callback_is_told(tmp_path: Any) -> None:
    told_of: list[int] = []
    storage = Beating(
        f"sqlite:///{tmp_path / 'study.db'}",
        heartbeat_interval=1,
        grace_period=1,
        heartbeat_stale_trial_callback=lambda study, trial: told_of.append(trial.number),
    )
    study = random_study(storage=storage)
    dead = study.ask()
    dead.set_user_attr(_keys.RESTING, True)
    storage.record_heartbeat(dead._trial_id)
    limit = time.monotonic() + 30
    while not storage._get_stale_trial_ids(study._study_id):
        assert time.monotonic() < limit
        time.sleep(0.05)
    lyap.freeze_thaw(study, curve, n_trials=2, seed=0)
    assert told_of == [0]
    assert [t.state for t in study.trials] == [TrialState.FAIL] + [TrialState.COMPLETE] * 2


@pytest.mark.parametrize("objective", [curve, asking_curve])
def test_a_trial_that_another_process_has_ended_does_not_end_the_search(
    objective: Callable[..., Any], tmp_path: Any
) -> None:
    study = random_study(storage=f"sqlite:///{tmp_path / 'study.db'}")
    ended: list[int] = []

    def end_one(study: optuna.Study, trial: FrozenTrial) -> None:
        resting = [
            t
            for t in study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
            if t.user_attrs.get(_keys.RESTING)
        ]
        if resting and not ended:
            ended.extend(t.number for t in resting)
            for other in resting:
                study._storage.set_trial_state_values(other._trial_id, TrialState.FAIL)

    lyap.freeze_thaw(study, objective, n_steps=120, seed=0, cost="steps", callbacks=[end_one])
    assert ended
    assert [study.trials[n].state for n in ended] == [TrialState.FAIL] * len(ended)
    assert all(t.state in OVER for t in study.trials)
    assert reports(study) == 120


# Out of memory


OUT_OF_MEMORY = [
    MemoryError("no memory is left"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"),
]


def memory_of(n: int, when: str, threaded: bool) -> tuple[Callable[..., Any], list[int]]:
    """An objective that fails where more than ``n`` models would be in memory."""
    models: set[int] = set()
    failed: list[int] = []

    def generator(trial: optuna.Trial) -> Generator[None, None, float]:
        x = trial.suggest_float("x", -1.0, 1.0)
        models.add(trial.number)
        try:
            for epoch in range(EPOCHS):
                if (epoch > 0) == (when == "going on") and len(models) > n:
                    failed.append(trial.number)
                    raise OUT_OF_MEMORY[len(failed) % len(OUT_OF_MEMORY)]
                trial.report(x**2 + 1 / (1 + epoch), epoch)
                yield
            return x**2
        finally:
            models.discard(trial.number)

    def asking(trial: optuna.Trial) -> float:
        running = generator(trial)
        try:
            while True:
                next(running)
                if trial.should_prune():
                    raise optuna.TrialPruned
        except StopIteration as stop:
            return float(stop.value)
        finally:
            running.close()

    return (asking if threaded else generator), failed


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("when", ["beginning", "going on"])
def test_out_of_memory_the_least_promising_ends_and_the_search_goes_on(
    when: str, threaded: bool
) -> None:
    study = random_study()
    objective, failed = memory_of(4, when, threaded)
    lyap.freeze_thaw(study, objective, n_steps=90, seed=0, cost="steps")
    assert len(failed) > 3
    assert reports(study) == 90
    trials = study.trials
    assert {t.number for t in trials if t.state == TrialState.FAIL} == set(failed)
    repeats = {t.user_attrs["lyapunov:repeats"]: t for t in trials if _keys.REPEATS in t.user_attrs}
    assert repeats
    assert set(repeats) <= set(failed)
    for number, again in repeats.items():
        assert again.params == trials[number].params
        assert again.number > number
    ended = [t for t in trials if t.state == TrialState.PRUNED]
    won = [t for t in trials if t.state == TrialState.COMPLETE][4:]
    assert np.median([abs(t.params["x"]) for t in ended]) > np.median(
        [abs(t.params["x"]) for t in won]
    )


def test_a_trial_that_is_too_large_is_tried_twice_and_costs_one_that_rests() -> None:
    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        x = trial.suggest_float("x", -1.0, 1.0)
        if trial.number > 12 and abs(x) > 0.8:  # what ends badly, and needs more than there is
            raise MemoryError
        for epoch in range(EPOCHS):
            trial.report(x**2 + 1 / (1 + epoch), epoch)
            yield
        return x**2

    study = random_study()
    lyap.freeze_thaw(study, objective, n_steps=110, seed=0, cost="steps")
    failed = [t for t in study.trials if t.state == TrialState.FAIL]
    assert failed
    assert {abs(t.params["x"]) > 0.8 for t in failed} == {True}
    assert max(Counter(t.params["x"] for t in failed).values()) == 2
    assert any(t.state == TrialState.COMPLETE and t.number > failed[0].number for t in study.trials)


def test_a_lone_trial_that_is_out_of_memory_fails_as_any_other() -> None:
    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        trial.suggest_float("x", 0, 1)
        raise MemoryError("alone")
        yield

    study = random_study()
    with pytest.raises(MemoryError, match="alone"):
        lyap.freeze_thaw(study, objective, n_trials=5)
    assert [t.state for t in study.trials] == [TrialState.FAIL]
    lyap.freeze_thaw(study, objective, n_trials=5, catch=MemoryError)
    assert [t.state for t in study.trials] == [TrialState.FAIL] * 6


def test_the_memory_of_what_failed_and_ended_is_free_when_it_is_tried_again() -> None:
    class Model:
        pass

    alive: weakref.WeakSet[Model] = weakref.WeakSet()
    at_failure: list[int] = []
    at_retry: list[int] = []

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1.0, 1.0)
        if trial.user_attrs.get(_keys.REPEATS) is not None:
            at_retry.append(len(alive))
        model = Model()
        alive.add(model)
        if len(alive) > 3:
            at_failure.append(len(alive))
            raise MemoryError
        for epoch in range(EPOCHS):
            trial.report(x**2 + 1 / (1 + epoch), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x**2

    lyap.freeze_thaw(random_study(), objective, n_steps=70, seed=0, cost="steps")
    assert set(at_failure) == {4}
    assert set(at_retry) == {2}


# Objectives of other people


def test_n_steps_ends_a_search_whose_trials_never_report() -> None:
    def silent(trial: optuna.Trial) -> float:
        return trial.suggest_float("x", -1.0, 1.0)

    def broken(trial: optuna.Trial) -> Generator[None, None, float]:
        raise OSError("no such data")
        yield

    study = random_study()
    with pytest.warns(lyap.LyapunovWarning, match="neither yields nor"):
        lyap.freeze_thaw(study, silent, n_steps=7)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 7
    failing = random_study()
    lyap.freeze_thaw(failing, broken, n_steps=5, catch=OSError)
    assert [t.state for t in failing.trials] == [TrialState.FAIL] * 5


class _NoNumber:
    def __float__(self) -> float:
        raise RuntimeError("on another device")

    def __repr__(self) -> str:
        raise RuntimeError("nor can it be shown")


@pytest.mark.parametrize("value", [10**400, _NoNumber(), [_NoNumber()], "much", 1j, {}])
def test_a_value_that_is_no_number_leaves_nothing_running(value: Any) -> None:
    def objective(trial: optuna.Trial) -> Generator[None, None, Any]:
        trial.report(1.0, 0)
        yield
        return value

    study = random_study()
    lyap.freeze_thaw(study, objective, n_trials=3)
    assert [t.state for t in study.trials] == [TrialState.FAIL] * 3


def test_who_does_not_heed_should_prune_is_ended_at_the_next_report() -> None:
    def heedless(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1.0, 1.0)
        for epoch in range(EPOCHS):
            trial.report(x**2 + 1 / (1 + epoch), epoch)
            trial.should_prune()
        return x**2

    def asks_twice(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1.0, 1.0)
        for epoch in range(EPOCHS):
            trial.report(x**2 + 1 / (1 + epoch), epoch)
            if trial.should_prune():
                assert trial.should_prune()
                trial.set_user_attr("told", True)
                raise optuna.TrialPruned
        return x**2

    study, other = random_study(), random_study()
    lyap.freeze_thaw(study, heedless, n_steps=80, seed=0, cost="steps")
    lyap.freeze_thaw(other, asks_twice, n_steps=80, seed=0, cost="steps")
    assert [t.state for t in study.trials] == [t.state for t in other.trials]
    pruned = other.get_trials(states=[TrialState.PRUNED])
    assert pruned
    assert all(t.user_attrs["told"] for t in pruned)
    assert reports(study) <= reports(other) + len(pruned)


def test_an_objective_may_ask_from_threads_of_its_own() -> None:
    def folds(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1.0, 1.0)

        def fold(k: int) -> None:
            for epoch in range(EPOCHS):
                trial.report(x**2 + 1 / (1 + epoch), 3 * epoch + k)
                if trial.should_prune():
                    raise optuna.TrialPruned

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(fold, range(3)))
        return x**2

    study = random_study()
    lyap.freeze_thaw(study, folds, n_steps=300, seed=0, cost="steps")
    states = Counter(t.state for t in study.trials)
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert states[TrialState.COMPLETE] >= 4


def test_a_thread_that_outlives_its_objective_is_told_to_end() -> None:
    late: list[bool] = []
    threads: list[threading.Thread] = []

    def objective(trial: optuna.Trial) -> float:
        returned = threading.Event()

        def straggler() -> None:
            returned.wait()
            time.sleep(0.01)
            late.append(trial.should_prune())

        threads.append(threading.Thread(target=straggler))
        threads[-1].start()
        try:
            return asking_curve(trial)
        finally:
            returned.set()

    lyap.freeze_thaw(random_study(), objective, n_trials=6, seed=0)
    for thread in threads:
        thread.join(timeout=20)
    assert late == [True] * 6


@pytest.mark.parametrize("objective", [curve, asking_curve])
def test_a_trial_can_be_copied(objective: Callable[[optuna.Trial], Any], tmp_path: Any) -> None:
    def asks_a_copy(trial: optuna.Trial) -> Any:
        assert not pickle.loads(pickle.dumps(trial.should_prune))()
        return objective(copy.deepcopy(copy.copy(trial)))

    study = random_study(storage=f"sqlite:///{tmp_path}/study.db")  # shared by copies
    lyap.freeze_thaw(study, asks_a_copy, n_steps=60, seed=0)
    assert reports(study) == 60
    assert TrialState.FAIL not in {t.state for t in study.trials}


def test_an_objective_that_catches_an_interrupt_does_not_keep_the_search_going() -> None:
    """As Lightning's trainer does: it ends its training in good order, and returns."""

    def objective(trial: optuna.Trial) -> float:
        trial.report(0.5, 0)
        trial.should_prune()
        if trial.number == 2:
            try:
                _thread.interrupt_main()
                for _ in range(2000):  # the interrupt arrives between two instructions
                    time.sleep(0.01)
            except KeyboardInterrupt:
                return 0.25
        return 0.5

    study = random_study()
    with pytest.raises(KeyboardInterrupt):
        lyap.freeze_thaw(study, objective, n_trials=50, seed=0)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 3
    assert study.trials[2].value == 0.25


@pytest.mark.parametrize("threaded", [False, True])
def test_context_variables_are_a_trials_own(threaded: bool) -> None:
    """``np.errstate`` and ``decimal.localcontext`` are such."""

    def generator(trial: optuna.Trial) -> Generator[None, None, float]:
        kind = "raise" if trial.number % 2 else "ignore"
        before = np.geterr()
        with np.errstate(over=kind):
            for epoch in range(EPOCHS):
                trial.report(trial.number % 5 + 1 / (1 + epoch), epoch)
                yield
                assert np.geterr()["over"] == kind
        assert np.geterr() == before
        return float(trial.number % 5)

    def asking(trial: optuna.Trial) -> float:
        running = generator(trial)
        try:
            while True:
                next(running)
                if trial.should_prune():
                    running.throw(optuna.TrialPruned())
        except StopIteration as stop:
            return float(stop.value)

    before = np.geterr()
    study = random_study()
    lyap.freeze_thaw(study, asking if threaded else generator, n_steps=120, seed=0, cost="steps")
    assert {t.state for t in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert np.geterr() == before


@pytest.mark.parametrize("objective", [curve, asking_curve])
@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.parametrize(
    ("module", "place"),
    [
        (_search, "World"),
        (_search, "drive"),
        (_ending, "_values_of"),
        (_search, "write_decision"),
        (_rests, "write_stretches"),
        (_search, "log"),
    ],
)
def test_an_interrupt_between_two_steps_leaves_nothing_running(
    module: ModuleType,
    place: str,
    at: int,
    objective: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = [0]
    whole = getattr(module, place)

    def interrupted(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == at + 1:
            raise KeyboardInterrupt
        return whole(*args, **options)

    monkeypatch.setattr(module, place, interrupted)
    study = random_study()
    with pytest.raises(KeyboardInterrupt):
        lyap.freeze_thaw(study, objective, n_steps=80, seed=0, cost="steps", max_paused=4)
    assert calls[0] > at
    assert all(t.state in OVER for t in study.trials)
    if place == "_values_of":  # what has returned is not lost
        assert study.trials[-1].state == TrialState.COMPLETE or at
        whole_ones = [t for t in study.trials if len(t.intermediate_values) == EPOCHS]
        assert {t.state for t in whole_ones} == {TrialState.COMPLETE}


def test_an_interrupt_amid_a_change_of_worlds_leaves_the_callers_world(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        torch.set_default_dtype(torch.float64)
        with torch.no_grad():
            return (yield from curve(trial))

    calls = [0]
    leave = World.leave

    def interrupted(world: World) -> None:
        calls[0] += 1
        if calls[0] == 11:
            raise KeyboardInterrupt
        leave(world)

    monkeypatch.setattr(World, "leave", interrupted)
    study = random_study()
    with pytest.raises(KeyboardInterrupt):
        lyap.freeze_thaw(study, objective, n_steps=80, seed=0)
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert all(t.state in OVER for t in study.trials)


def test_two_threads_do_not_search_one_study() -> None:
    refused: list[BaseException] = []

    def other(study: optuna.Study) -> None:
        try:
            lyap.freeze_thaw(study, curve, n_steps=5)
        except RuntimeError as error:
            refused.append(error)

    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        thread = threading.Thread(target=other, args=(trial.study,))
        thread.start()
        thread.join()
        return (yield from curve(trial))

    study = random_study()
    sampler = study.sampler
    lyap.freeze_thaw(study, objective, n_trials=2, seed=0)
    assert [("another thread" in str(error)) for error in refused] == [True, True]
    assert len(study.trials) == 2
    assert study.sampler is sampler
