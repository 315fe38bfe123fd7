"""Steps reported in any order, and trials that were copied into another study."""

import warnings
from typing import ClassVar

import numpy as np
import optuna
import pytest
import torch
from _studies import last_trial, specs, study_of
from optuna.trial import TrialState

import lyap_optuna as lyap
from lyap_optuna.campaign._recovery import repeat
from lyap_optuna.prediction.evidence import EVIDENCE, TrialView
from lyap_optuna.records import baseline_step, read_decisions, read_readouts, report_order
from lyap_optuna.replay import Recording, replay

X = torch.randn(4, 20, 1, generator=torch.Generator().manual_seed(0))
ORDERS = [(2, 1, 0), (14, 12, 10), (3, 5, 4, 0), (0, 1, 2), (1, 2, 0), (7, 6, 8, 2, 3)]


def gru(seed: int = 0) -> torch.nn.GRU:
    torch.manual_seed(seed)
    return torch.nn.GRU(1, 4, batch_first=True)


def train(model: torch.nn.GRU) -> None:
    with torch.no_grad():
        model.weight_hh_l0 *= 1.5


# Readouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("last_step", [99, 4, -1])
@pytest.mark.filterwarnings("ignore:last_step")
def test_the_baseline_is_never_a_readout_in_training(order, at_once, last_step):
    study = optuna.create_study()
    trial, model = study.ask(), gru()
    probe = lyap.LyapunovProbe(model, X, last_step=last_step, **{"trial": trial} if at_once else {})
    untrained, true = probe.measure().max, {}
    lowest = None
    for step in order:
        train(model)
        true[step] = probe.measure().max
        probe.report(trial, 1.0, step)
        lowest = step if lowest is None else min(lowest, step)
        stored = study.trials[0]
        series = read_readouts(stored)
        assert baseline_step(stored, series) == lowest - 1
        assert series.pop(lowest - 1).max == pytest.approx(untrained, rel=1e-5)
        expected = {s: largest for s, largest in true.items() if s <= last_step}
        assert {s: r.max for s, r in series.items()} == pytest.approx(expected, rel=1e-5)
        latest = next((true[s] for s in reversed(true) if s in expected), untrained)
        assert stored.user_attrs["lyapunov:max"] == pytest.approx(latest, rel=1e-5)


@pytest.mark.parametrize("every", [1, 3, 10])
@pytest.mark.parametrize("measured", [(0, 1, 2), (2, 5), (0,), (8,), ()])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.filterwarnings("ignore:last_step")
def test_what_is_measured_more_often_than_reported_is_no_baseline(every, measured, at_once):
    study = optuna.create_study()
    trial, model = study.ask(), gru()
    probe = lyap.LyapunovProbe(model, X, last_step=-1, **{"trial": trial} if at_once else {})
    untrained, latest = probe.measure().max, None
    if not at_once:
        probe.record(trial, -1)
    for epoch in range(20):
        train(model)
        if epoch in measured:
            latest = probe.measure().max
            probe.record(trial, epoch)
        if epoch % every == every - 1:
            probe.report(trial, 1.0, epoch)
    stored = study.trials[0]
    assert read_readouts(stored)[baseline_step(stored, read_readouts(stored))].max == (
        pytest.approx(untrained, rel=1e-5)
    )
    moved = EVIDENCE["displacement"].features(TrialView.of(stored, 1), 19).get("max")
    assert moved == (None if latest is None else pytest.approx(latest - untrained, abs=1e-4))


@pytest.mark.parametrize("order", ORDERS)
def test_whole_spectra_of_the_baseline_move_with_it(order, tmp_path):
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    trial, model = study.ask(), gru()
    probe = lyap.LyapunovProbe(model, X, trial=trial, full_spectrum=True, last_step=99)
    untrained = lyap.lyapunov_spectrum(model, X).max
    for step in order:
        train(model)
        probe.report(trial, 1.0, step)
    found = {s.step: max(s.exponents) for s in lyap.load_spectra(study)}
    assert sorted(found) == sorted([min(order) - 1, *order])
    assert found[min(order) - 1] == pytest.approx(untrained, rel=1e-5)


def test_a_baseline_whose_move_failed_is_moved_later(monkeypatch):
    study = optuna.create_study()
    trial, model = study.ask(), gru()
    probe = lyap.LyapunovProbe(model, X, trial=trial)
    untrained = probe.measure().max
    for step in (3, 2, 1):
        train(model)
        with monkeypatch.context() as context, warnings.catch_warnings():
            warnings.simplefilter("ignore", lyap.LyapunovWarning)
            if step == 2:
                context.setattr("lyap_optuna.probe.write_readouts", lambda *a, **k: 1 / 0)
            probe.report(trial, 1.0, step)
    series = read_readouts(study.trials[0])
    assert list(series) == [0, 1, 3]
    assert series[0].max == pytest.approx(untrained, rel=1e-5)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_descending_training_that_is_resumed_has_no_wrong_baseline():
    study = optuna.create_study()
    dead = study.ask()
    probe = lyap.LyapunovProbe(gru(), X, trial=dead)
    for step in (3, 2):
        probe.report(dead, 1.0, step)
    retry = optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
    retry(study, study.trials[0])
    trial = study.ask()
    lyap.LyapunovProbe(gru(1), X, trial=trial).report(trial, 1.0, 1)  # a network that has trained
    stored = study.trials[1]
    assert baseline_step(stored, read_readouts(stored)) is None


# Decisions --------------------------------------------------------------------------------------


def orders(n):
    rng = np.random.default_rng(0)
    return {
        "ascending": lambda: range(n),
        "descending": lambda: range(2 * n, 0, -2),
        "shuffled": lambda: rng.permutation(n),
    }


@pytest.mark.parametrize("name", ["ascending", "descending", "shuffled"])
@pytest.mark.filterwarnings("error::lyap_optuna.LyapunovWarning")
def test_bad_trials_are_pruned_in_whatever_order_they_report(name):
    order = orders(8)[name]
    study = optuna.create_study(pruner=lyap.LyapunovPruner())
    rng = np.random.default_rng(1)

    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        for step in order():
            trial.report(x + 0.05 * rng.normal(), int(step))
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    study.sampler = optuna.samplers.RandomSampler(seed=0)
    study.optimize(objective, n_trials=40)
    pruned = [t for t in study.trials if t.state == TrialState.PRUNED]
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert len(pruned) >= 10
    assert min(t.params["x"] for t in pruned) > min(t.params["x"] for t in complete)
    assert all(read_decisions(t)[-1].step == list(t.intermediate_values)[-1] for t in pruned)
    assert len(lyap.rank_trials(study)) == 40
    assert lyap.prediction_skill(study)


@pytest.mark.parametrize("name", ["ascending", "descending", "shuffled"])
@pytest.mark.parametrize(("warmup", "interval"), [(0, 1), (3, 1), (0, 4), (2, 3), (0, 99), (11, 2)])
def test_warm_up_and_intervals_count_reports_where_steps_do_not_ascend(
    name, warmup, interval, monkeypatch
):
    checked = []
    monkeypatch.setattr("lyap_optuna.pruner.write_decision", lambda *a: checked.append(a[2].step))
    pruner = lyap.LyapunovPruner(
        n_startup_trials=1, n_warmup_steps=warmup, interval_steps=interval, min_probability=0.0
    )
    study = optuna.create_study(pruner=pruner)
    steps = [[int(s) for s in orders(12)[name]()] for _ in range(2)]
    for number in range(2):
        trial = study.ask()
        for step in steps[number]:
            trial.report(1.0 + number, step)
            trial.should_prune()
        study.tell(trial, 1.0 + number)
    assert checked == steps[1][warmup::interval]


def test_predictions_name_the_step_that_was_reported():
    study = optuna.create_study()
    for i in range(12):
        study.add_trial(
            optuna.create_trial(
                value=float(i), intermediate_values={9: i / 2, 4: i + 0.5, 6: 1.0 * i}
            )
        )
    trial = study.ask()
    trial.report(3.0, 9)
    trial.report(3.0, 4)
    ranked = {r.number: r.step for r in lyap.rank_trials(study)}
    assert ranked == dict.fromkeys(range(12), 9) | {12: 4}
    story = str(lyap.explain(study, 12))
    assert story.startswith("Trial 12 is running at step 4, after 2 of 3 reports.")
    assert "at step 4, from loss so far" in story


def test_the_latest_readout_is_the_one_taken_last():
    study = optuna.create_study()
    readouts = {str(s): {"max": s / 10, "mean": -1.0} for s in (1, 2, 5, 8)}
    study.add_trial(
        optuna.create_trial(
            value=1.0,
            intermediate_values={8: 1.0, 5: 0.8, 2: 0.5},
            user_attrs={"lyapunov:readouts": readouts},
        )
    )
    assert "at step 2: maximum exponent 0.2" in str(lyap.explain(study, 0))
    assert "displaced by +0.1000 and" in str(lyap.explain(study, 0))


@pytest.mark.parametrize("steps", [(6, 4, 2, 0), (3, 0, 7, 5), (0, 1, 5)])
def test_a_recording_keeps_the_order_of_reports(steps, tmp_path):
    study = optuna.create_study()
    measured = (min(steps) - 1, *steps[:2], max(steps) + 3)
    for i in range(3):
        study.add_trial(
            optuna.create_trial(
                value=float(i),
                intermediate_values={s: i + k / 10 for k, s in enumerate(steps)},
                user_attrs={
                    "lyapunov:readouts": {str(s): {"max": s / 10, "mean": -1.0} for s in measured}
                },
            )
        )
    recording = Recording.from_study(study)
    recording.save(tmp_path / "recording.json")
    loaded = Recording.load(tmp_path / "recording.json")
    again = Recording.from_study(loaded.to_study(f"sqlite:///{tmp_path}/study.db"))
    for held in (recording, loaded, again):
        assert [list(t.values) for t in held.trials] == [list(steps)] * 3

    class Watching(optuna.pruners.BasePruner):
        seen: ClassVar = []

        def prune(self, study, trial):
            self.seen.append((list(trial.intermediate_values), set(read_readouts(trial))))
            return False

    replay(loaded, Watching())
    before, first, second = measured[:3]
    known = [{-1}, {before, first}] + [{before, first, second}] * (len(steps) - 1)
    expected = list(zip([list(steps[:n]) for n in range(len(steps) + 1)], known, strict=True))
    assert Watching.seen == expected * 3


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("steps", [range(9), range(40, 4, -4), range(3, 30, 3)])
def test_who_is_asked_now_and_then_still_sees_where_steps_lead(every, steps, tmp_path):
    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path}/study.db", pruner=lyap.LyapunovPruner()
    )
    trial = study.ask()
    for i, step in enumerate(steps):
        trial.report(1.0, step)
        if i % every == 0 or i == 8:
            trial.should_prune()
    study.tell(trial, 1.0)
    assert report_order(study.trials[0], kept=False) == tuple(steps)
    assert ("lyapunov:order" in study.trials[0].user_attrs) == (steps[1] < steps[0])


def test_a_retry_does_not_inherit_the_order_of_a_dead_attempt(tmp_path):
    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path}/study.db", pruner=lyap.LyapunovPruner()
    )
    dead = study.ask()
    for step in (3, 1, 2):
        dead.report(1.0, step)
        dead.should_prune()
    assert report_order(study.trials[0], kept=False) == (3, 1, 2)
    study.tell(dead, state=TrialState.FAIL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.RetryHeartbeatStaleTrialCallback()(study, study.trials[0])
    trial = study.ask()
    for step in (1, 2, 3):
        trial.report(1.0, step)
        trial.should_prune()
    assert report_order(study.trials[1], kept=False) == (1, 2, 3)


@pytest.mark.parametrize("stored", [None, "x", {"1": 2}, [3, [1], "2", 9, 3, 1.5]])
def test_an_order_that_makes_no_sense_is_ignored(stored):
    trial = optuna.create_trial(
        value=1.0,
        intermediate_values={5: 1.0, 3: 1.0, 4: 1.0},
        user_attrs={"lyapunov:order": stored},
    )
    first = [3] if isinstance(stored, list) else []
    assert list(report_order(trial)) == first + [s for s in (5, 3, 4) if s not in first]
    assert list(report_order(trial, kept=False)) == [3, 4, 5]


def test_one_pruned_trial_out_of_order_is_the_same_for_who_saw_it_and_who_comes_later():
    pruner = lyap.LyapunovPruner()
    study = study_of(specs("easy", 12, readouts=False), pruner=pruner)
    odd = study.ask()
    for step in (7, 2):
        odd.report(1.0, step)
        odd.should_prune()
    study.tell(odd, state=TrialState.PRUNED)
    trial = study.ask()
    said = []
    for step in (0, 3, 4, 8):
        trial.report(1.0, step)
        for judge in (pruner, lyap.LyapunovPruner()):
            judge.prune(study, last_trial(study))
            said.append(read_decisions(last_trial(study))[-1])
    assert said[::2] == said[1::2]


def test_one_descending_trial_is_judged_among_ascending_ones():
    pruner = lyap.LyapunovPruner()
    study = optuna.create_study(pruner=pruner)
    for i in range(15):
        study.add_trial(
            optuna.create_trial(value=float(i), intermediate_values=dict.fromkeys(range(8), i / 1))
        )
    for loss, bad in ((99.0, True), (0.5, False)):
        trial = study.ask()
        verdicts = []
        for step in range(7, 0, -1):
            trial.report(loss, step)
            verdicts.append(trial.should_prune())
        assert any(verdicts) == bad


def curve(x, n=60):
    """A plateau, and a fall that comes later where it goes deeper."""
    fall = int(40 * x)
    return {
        e: 1.2 if e < fall else 1 - x + (0.2 + x) * float(np.exp((fall - e) / 3)) for e in range(n)
    }


@pytest.mark.parametrize("largest", [0.75, 0.6])
@pytest.mark.parametrize("sign", [1, -1])
def test_evidence_as_good_that_says_the_opposite_keeps_a_trial(largest, sign):
    # So far, who fell early ended badly: by the hyperparameter this one will be the best of all.
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    study = study_of([], sign=sign, pruner=lyap.LyapunovPruner())
    for x in np.linspace(0.02, largest, 11):
        study.add_trial(
            optuna.create_trial(
                params={"x": float(x)},
                distributions=space,
                intermediate_values={e: sign * v for e, v in curve(x).items()},
                value=sign * float(1 - x),
            )
        )
    study.enqueue_trial({"x": 0.99})
    trial = study.ask(space)
    for step, value in curve(0.99).items():
        trial.report(sign * value, step)
        assert not trial.should_prune(), step


# Copies -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source():
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0), pruner=lyap.LyapunovPruner()
    )

    def objective(trial):
        q = trial.suggest_float("q", 0, 1)
        model = gru(trial.number)
        probe = lyap.LyapunovProbe(model, X, last_step=3, trial=trial)
        for epoch in range(5):
            train(model)
            probe.report(trial, q + 1 / (epoch + 1), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return q

    study.optimize(objective, n_trials=22)
    assert {t.state.name for t in study.trials} == {"COMPLETE", "PRUNED"}
    return study


def test_copied_trials_keep_readouts_and_decisions_under_another_number(source):
    merged = study_of(specs("easy", 5, readouts=False))
    merged.add_trials(source.trials)
    for before in source.trials:
        after = merged.trials[5 + before.number]
        series = read_readouts(after)
        assert series == read_readouts(before)
        assert baseline_step(after, series) == -1
        assert [d.step for d in read_decisions(after)] == [d.step for d in read_decisions(before)]
        assert {d.copied_from for d in read_decisions(after)} <= {before.number}
        assert {d.copied_from for d in read_decisions(before)} <= {None}
        assert TrialView.of(after, 1).baseline is not None
    pruned = next(t.number for t in source.trials if t.state == TrialState.PRUNED)
    sentence = f"as trial {pruned} of another study, on "
    assert sentence in str(lyap.explain(merged, 5 + pruned))
    assert "another study" not in str(lyap.explain(source, pruned))


def test_a_copy_of_a_copy_and_a_part_of_a_study_keep_them_too(source):
    part = study_of([])
    part.add_trials([t for t in source.trials if t.number % 3 == 2])
    again = study_of(specs("easy", 2))
    again.add_trials(part.trials)
    for i, trial in enumerate(again.trials[2:]):
        assert read_readouts(trial) == read_readouts(source.trials[3 * i + 2])


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("how", ["optuna", "campaign"])
@pytest.mark.parametrize("end", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, None])
def test_a_retry_never_takes_its_dead_attempts_readouts_for_its_own(how, end):
    study = optuna.create_study()
    dead = study.ask()
    probe = lyap.LyapunovProbe(gru(), X, trial=dead)
    for step in range(3):
        probe.report(dead, 1.0, step)
    study.tell(dead, state=TrialState.FAIL)
    for attempt in (0, 1):  # the second one dies before it measures anything
        if how == "optuna":
            optuna.storages.RetryHeartbeatStaleTrialCallback()(study, study.trials[attempt])
        else:
            repeat(study, study.trials[attempt])
        retried = study.ask()
        if attempt == 0:
            study.tell(retried, state=TrialState.FAIL)
    retried.report(1.0, 1)
    if end is not None:
        study.tell(retried, 1.0 if end == TrialState.COMPLETE else None, state=end)
    assert list(read_readouts(last_trial(study))) == [-1, 1]


def test_a_retry_that_measured_itself_keeps_its_own_when_it_is_copied():
    study = optuna.create_study()
    dead = study.ask()
    lyap.LyapunovProbe(gru(), X, trial=dead).report(dead, 1.0, 0)
    study.tell(dead, state=TrialState.FAIL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.RetryHeartbeatStaleTrialCallback()(study, study.trials[0])
    trial = study.ask()
    probe = lyap.LyapunovProbe(gru(1), X, trial=trial)
    for step in range(3):
        probe.report(trial, 1.0, step)
    study.tell(trial, 1.0)
    other = study_of(specs("easy", 4))
    other.add_trial(study.trials[1])
    assert read_readouts(last_trial(other)) == read_readouts(study.trials[1])
    assert list(read_readouts(last_trial(other))) == [-1, 0, 1, 2]
