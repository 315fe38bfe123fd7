"""The pruner: Optuna's conventions, its decisions, and what it records."""

import copy
import math
import pickle
import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from _studies import last_trial, pruned_at, spec, specs, start, study_of
from optuna.pruners import MedianPruner
from optuna.trial import TrialState

from lyap_optuna import LyapunovWarning
from lyap_optuna.prediction import Audit, _step_model, _study, audited, explain
from lyap_optuna.prediction._posterior import Posterior
from lyap_optuna.prediction._study import StudyModels
from lyap_optuna.pruner import LyapunovPruner, is_audited
from lyap_optuna.records import Decision, read_decisions


def extremes(kind: str, n: int = 60, **options: Any) -> tuple[list[Any], list[Any]]:
    """The best and the worst few of fresh trials of a kind."""
    fresh = sorted(specs(kind, n, seed=99, **options), key=lambda t: abs(t["value"]))
    return fresh[:3], fresh[-10:]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_startup_trials", -1),
        ("n_warmup_steps", -2),
        ("interval_steps", 0),
        ("top_fraction", 0.0),
        ("top_fraction", 1.0),
        ("top_fraction", math.nan),
        ("min_probability", -0.1),
        ("min_probability", 1.1),
        ("audit", -0.1),
        ("audit", 1.1),
        ("audit", math.nan),
    ],
)
def test_bad_arguments_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        LyapunovPruner(**{name: value})


def test_unknown_evidence_is_named() -> None:
    with pytest.raises(ValueError, match="'phase of the moon'"):
        LyapunovPruner(evidence=["loss", "phase of the moon"])


def test_repr_can_be_read_back() -> None:
    pruner = LyapunovPruner(top_fraction=0.2, evidence=["loss"], audit=0.1)
    assert "top_fraction=0.2" in repr(pruner)
    assert repr(eval(repr(pruner))) == repr(pruner)


@pytest.mark.parametrize("n_warmup_steps", [0, 2, 5])
@pytest.mark.parametrize("interval_steps", [1, 3])
@pytest.mark.parametrize("reported", [range(10), range(1, 10), (0, 1, 4, 5, 6, 9), (3, 8)])
def test_checks_are_due_when_those_of_the_median_pruner_are(
    n_warmup_steps: int, interval_steps: int, reported: Any
) -> None:
    # A trial that reports NaN alone is pruned by both at every check that is due.
    options = {"n_warmup_steps": n_warmup_steps, "interval_steps": interval_steps}
    study = study_of(specs("easy", 12))
    due: dict[bool, list[int]] = {True: [], False: []}
    trial = study.ask()
    for step in reported:
        trial.report(math.nan, step)
        frozen = study._storage.get_trial(trial._trial_id)
        if LyapunovPruner(**options).prune(study, frozen):
            due[True].append(step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            if MedianPruner(**options).prune(study, frozen):
                due[False].append(step)
    assert due[True] == due[False]


@pytest.mark.parametrize("n_startup_trials", [0, 1, 4, 5, 6])
@pytest.mark.parametrize("n_complete", [0, 5])
def test_startup_counts_complete_trials_as_the_median_pruner_does(
    n_startup_trials: int, n_complete: int
) -> None:
    study = study_of(specs("easy", n_complete))
    for state in (TrialState.PRUNED, TrialState.FAIL):
        study.add_trial(optuna.create_trial(state=state, intermediate_values={0: 1.0}))
    trial = study.ask()
    trial.report(math.nan, 0)
    frozen = study._storage.get_trial(trial._trial_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = MedianPruner(n_startup_trials).prune(study, frozen)
    assert LyapunovPruner(n_startup_trials=n_startup_trials).prune(study, frozen) is expected


def test_a_trial_that_reported_nothing_is_kept() -> None:
    study = study_of(specs("easy", 20), pruner=LyapunovPruner())
    assert not study.ask().should_prune()


@pytest.mark.parametrize("kind", ["plateau", "easy"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("first", [0, 1])
def test_losers_are_pruned_and_winners_kept(kind: str, sign: int, first: int) -> None:
    options: Any = {"sign": sign, "first": first}
    study = study_of(specs(kind, 40, **options), sign=sign, pruner=LyapunovPruner())
    best, worst = extremes(kind, **options)
    steps = [pruned_at(study, t) for t in best]
    assert steps == [None] * 3
    assert all(pruned_at(study, t) is not None for t in worst)


def test_the_plateau_is_judged_by_displacement() -> None:
    study = study_of(specs("plateau", 40), pruner=LyapunovPruner())
    _, worst = extremes("plateau")
    pruned_at(study, worst[-1])
    decision = read_decisions(last_trial(study))[-1]
    assert max(decision.shares, key=decision.shares.__getitem__) == "displacement"
    assert decision.verdict == "pruned"


@pytest.mark.parametrize("n_lacking", [0, 1, 6])
@pytest.mark.parametrize("sign", [1, -1])
def test_where_displacement_tells_all_a_trial_without_readouts_is_not_condemned(
    n_lacking: int, sign: int
) -> None:
    trials = specs("plateau", 40, sign=sign)
    for trial in trials[:n_lacking]:
        trial["user_attrs"] = {}
    study = study_of(trials, sign=sign, pruner=LyapunovPruner())
    _, worst = extremes("plateau", sign=sign)
    assert pruned_at(study, worst[-1]) is not None
    for seed in range(4):
        without = spec(np.random.default_rng(seed), "plateau", sign=sign, readouts=False)
        pruned_at(study, without)
        chance = read_decisions(last_trial(study))[0].probability
        assert chance is not None
        assert chance > 0.01


def test_a_chance_well_below_that_of_any_trial_takes_evidence() -> None:
    study = study_of(specs("noise", 40), pruner=LyapunovPruner(min_probability=0.02))
    steps = [pruned_at(study, t) for t in specs("noise", 20, seed=1)]
    assert sum(step is not None for step in steps) <= 4


def test_maximise_mirrors_minimise() -> None:
    def decisions(sign: int) -> list[Any]:
        study = study_of(specs("easy", 30, sign=sign), sign=sign, pruner=LyapunovPruner())
        for t in specs("easy", 15, seed=1, sign=sign):
            pruned_at(study, t)
        return [
            (d.step, d.verdict, sign * d.predicted_value, d.probability)
            for t in study.get_trials(deepcopy=False)[30:]
            for d in read_decisions(t)
        ]

    assert decisions(1) == decisions(-1)


def test_loops_from_zero_and_one_decide_alike() -> None:
    def steps(first: int) -> list[int | None]:
        study = study_of(specs("plateau", 30, first=first), pruner=LyapunovPruner())
        return [pruned_at(study, t) for t in specs("plateau", 15, seed=1, first=first)]

    assert steps(1) == [None if s is None else s + 1 for s in steps(0)]


def run(study: optuna.study.Study, n: int, n_jobs: int = 1, *, seed: int = 0) -> None:
    def objective(trial: optuna.Trial) -> float:
        made = spec(np.random.default_rng([seed, trial.number]), "easy", readouts=False)
        trial.suggest_float("x", 0, 1)
        for step, loss in made["intermediate_values"].items():
            trial.report(loss, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(made["value"])

    study.optimize(objective, n_trials=n, n_jobs=n_jobs)


def outcome(study: optuna.study.Study) -> list[tuple[TrialState, int | None]]:
    return [(t.state, t.last_step) for t in study.get_trials(deepcopy=False)]


def test_same_order_same_decisions() -> None:
    outcomes = []
    for _ in range(2):
        study = optuna.create_study(
            sampler=optuna.samplers.RandomSampler(seed=0), pruner=LyapunovPruner()
        )
        run(study, 30)
        outcomes.append(outcome(study))
    assert outcomes[0] == outcomes[1]
    assert sum(state == TrialState.PRUNED for state, _ in outcomes[0]) >= 5


def test_a_fresh_pruner_decides_as_one_that_saw_the_study_grow() -> None:
    grown = study_of([], pruner=LyapunovPruner())
    run(grown, 25)
    resumed = study_of([])
    resumed.pruner = LyapunovPruner()
    for trial in grown.get_trials():
        resumed.add_trial(trial)
    for t in specs("easy", 6, seed=3):
        assert pruned_at(grown, t) == pruned_at(resumed, t)


def test_threads_share_one_pruner() -> None:
    study = optuna.create_study(pruner=LyapunovPruner())
    run(study, 60, n_jobs=4)
    states = [t.state for t in study.get_trials(deepcopy=False)]
    assert TrialState.FAIL not in states
    assert states.count(TrialState.PRUNED) >= 10
    values = sorted(spec(np.random.default_rng([0, i]), "easy")["value"] for i in range(60))
    assert study.best_value == values[0]


def test_a_pruner_can_be_pickled_and_copied_after_use() -> None:
    pruner = LyapunovPruner(evidence=["loss"])
    study = study_of(specs("easy", 20), pruner=pruner)
    pruned_at(study, specs("easy", 1, seed=4)[0])
    for twin in (pickle.loads(pickle.dumps(pruner)), copy.deepcopy(pruner)):
        assert repr(twin) == repr(pruner)
        study.pruner = twin
        _, worst = extremes("easy")
        assert pruned_at(study, worst[-1]) is not None


def test_one_pruner_serves_two_studies() -> None:
    pruner = LyapunovPruner()
    storage = optuna.storages.InMemoryStorage()
    down = study_of(specs("easy", 30), pruner=pruner, storage=storage)
    up = study_of(specs("easy", 30, sign=-1), sign=-1, pruner=pruner, storage=storage)
    (best, *_), (*_, worst) = extremes("easy")
    (up_best, *_), (*_, up_worst) = extremes("easy", sign=-1)
    for _ in range(2):
        assert pruned_at(down, best) is None
        assert pruned_at(down, worst) is not None
        # In the maximised study the largest value is the least negative one.
        assert pruned_at(up, up_best) is None
        assert pruned_at(up, up_worst) is not None


def test_models_are_refitted_only_as_the_study_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Any] = []
    monkeypatch.setattr(_step_model, "Posterior", lambda *a: fitted.append(a) or Posterior(*a))
    study = study_of(specs("easy", 30), pruner=LyapunovPruner())
    (best, *_), _ = extremes("easy")
    for _ in range(3):
        pruned_at(study, best, upto=4)
    assert len(fitted) == 4
    study.add_trials([optuna.create_trial(**t) for t in specs("easy", 2, seed=8)])
    pruned_at(study, best, upto=4)
    assert len(fitted) == 4
    study.add_trial(optuna.create_trial(**specs("easy", 1, seed=9)[0]))
    pruned_at(study, best, upto=4)
    assert len(fitted) == 8


def test_thousands_of_reports_take_few_models() -> None:
    trials = specs("easy", 12, epochs=2000, readouts=False)
    study = study_of(trials, pruner=LyapunovPruner(min_probability=0.0))
    running = study.ask()
    for step in range(0, 2000):
        running.report(1.0, step)
        if step % 50 == 7:
            assert not running.should_prune()
    (models,) = study.pruner._studies[study._storage].values()  # type: ignore[attr-defined]
    assert len(models._models) <= _study.MAX_MODELS


@pytest.mark.parametrize("most", [0, 200_000])
def test_models_hold_no_more_than_they_may_and_what_is_dropped_is_fitted_again(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    for bound in (_study.MAX_MODEL_BYTES, most):
        monkeypatch.setattr(_study, "MAX_MODEL_BYTES", bound)
        study = study_of(specs("noise", 30), pruner=LyapunovPruner(min_probability=0.0))
        for seed in (1, 2):
            pruned_at(study, *specs("noise", 1, seed=seed), upto=8)
            told.append([d.probability for d in read_decisions(last_trial(study))])
        (models,) = study.pruner._studies[study._storage].values()  # type: ignore[attr-defined]
        held = [model.nbytes for model in models._models.values()]
        assert sum(held) <= bound or len(held) == 1
        assert len(held) < 8 or bound > most
    assert told[:2] == told[2:]


def test_decisions_are_recorded() -> None:
    study = study_of(specs("easy", 30), pruner=LyapunovPruner())
    _, worst = extremes("easy")
    step = pruned_at(study, worst[-1])
    trial = last_trial(study)
    decision = read_decisions(trial)[-1]
    assert (decision.step, decision.verdict) == (step, "pruned")
    assert decision.evidence == ("loss", "exponents", "displacement", "hyperparameters")
    assert decision.shares["loss"] > 0.5
    assert sum(decision.shares.values()) <= 1.0
    assert decision.lower is None or decision.lower <= decision.predicted_value
    assert decision.upper is None or decision.upper >= decision.predicted_value
    assert decision.probability < decision.min_probability
    assert decision.threshold < decision.predicted_value
    assert 0.5 < decision.skill <= 1
    assert decision.n_trials == 30
    assert "its chance of ending among the best" in decision.reason
    assert "from loss " in decision.reason
    assert trial.user_attrs["lyapunov:predicted_value"] == decision.predicted_value


@pytest.mark.parametrize(
    ("chance", "least", "told"),
    [
        (1e-287, 0.05, "is less than 0.0001, below 0.05."),
        (0.0, 0.1, "is less than 0.0001, below 0.1."),
        (0.0499, 0.05, "is 0.0499, below 0.05."),
        (0.3, 0.05, "is 0.3, not below 0.05."),
        (2e-5, 4e-5, "is 2e-05, below 4e-05."),
        (2e-5, 0.0, "is 2e-05, not below 0."),
    ],
)
def test_a_chance_is_told_as_closely_as_a_study_knows_it(
    chance: float, least: float, told: str
) -> None:
    decision = Decision(step=1, verdict="kept", probability=chance, min_probability=least)
    assert decision.reason.endswith(told)


def test_asking_twice_says_what_asking_once_says() -> None:
    study = study_of(specs("easy", 30), pruner=LyapunovPruner())
    best, _ = extremes("easy")
    often, once = start(study, best[0]), start(study, best[0])
    for step, loss in list(best[0]["intermediate_values"].items())[:5]:
        for trial in (often, once):
            trial.report(loss, step)
        for trial in (often, often, once):
            assert not trial.should_prune()
    chances = [
        read_decisions(study.trials[trial.number])[-1].probability for trial in (often, once)
    ]
    assert chances[0] == chances[1]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_trial_that_leads_is_kept(sign: int) -> None:
    # What it is judged by does not see the loss, and its loss is far from the best final ones.
    study = study_of(
        specs("plateau", 30, sign=sign), sign=sign, pruner=LyapunovPruner(evidence=["displacement"])
    )
    _, worst = extremes("plateau", sign=sign)
    assert pruned_at(study, worst[-1]) is not None
    trial = start(study, worst[-1])
    for step, loss in enumerate([0.9, 0.9, 1.0, 0.9, 1.0, 1.0]):
        trial.report(sign * loss, step)
        pruned = trial.should_prune()
        decision = read_decisions(last_trial(study))[-1]
        if decision.probability < decision.min_probability:
            assert pruned == (loss == 1.0)
            assert decision.because == ("leads" if loss == 0.9 else "chance")
            assert ("hardly a COMPLETE trial was as good" in decision.reason) == (loss == 0.9)
    assert pruned


def test_the_lead_is_as_wide_as_the_best_fraction() -> None:
    options = {"evidence": ["displacement"], "min_probability": 0.4}
    _, worst = extremes("plateau")
    for top_fraction, kept in ((0.1, False), (0.4, True)):
        study = study_of(
            specs("plateau", 30), pruner=LyapunovPruner(top_fraction=top_fraction, **options)
        )
        at_zero = sorted(t.intermediate_values[0] for t in study.trials)
        trial = start(study, worst[-1])
        trial.report(at_zero[8], 0)  # behind 8 and a half of 30
        trial.should_prune()
        reason = read_decisions(last_trial(study))[-1].reason
        assert ("hardly a COMPLETE trial was as good" in reason) == kept


def test_nobody_leads_where_a_loss_is_reported_and_an_accuracy_is_maximised() -> None:
    def accuracy(trial: dict[str, Any]) -> dict[str, Any]:
        return {**trial, "value": math.exp(-trial["value"])}

    study = study_of(map(accuracy, specs("easy", 30)), sign=-1, pruner=LyapunovPruner())
    best, worst = extremes("easy")
    assert all(pruned_at(study, trial) is not None for trial in worst)
    assert all(pruned_at(study, trial) is None for trial in best)


def test_an_infeasible_trial_does_not_lead() -> None:
    study = study_of(specs("plateau", 30), pruner=LyapunovPruner(evidence=["displacement"]))
    _, worst = extremes("plateau")
    for limit, kept in ((-1.0, True), (1.0, False)):
        trial = start(study, worst[-1])
        trial.set_constraint("c", limit)
        trial.report(0.5, 0)
        assert trial.should_prune() != kept


def test_a_trial_of_nan_is_pruned_with_a_reason() -> None:
    study = study_of(specs("easy", 12), pruner=LyapunovPruner())
    trial = study.ask()
    trial.report(math.nan, 0)
    assert trial.should_prune()
    assert "nothing but NaN" in read_decisions(last_trial(study))[-1].reason


def test_infinite_values_count_as_worst() -> None:
    trials = specs("easy", 30)
    worst = max(trials, key=lambda t: t["value"])
    worst["value"] = math.inf
    study = study_of(trials, pruner=LyapunovPruner())
    running = start(study, trials[0])
    running.report(math.inf, 0)
    running.report(math.inf, 1)
    assert running.should_prune()
    decision = read_decisions(last_trial(study))[-1]
    assert math.isfinite(decision.predicted_value)


def test_a_failure_inside_keeps_the_trial_and_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, trials: Any) -> None:
        raise ZeroDivisionError("no luck")

    monkeypatch.setattr(StudyModels, "update", fail)
    study = study_of(specs("easy", 20), pruner=LyapunovPruner())
    _, worst = extremes("easy")
    with pytest.warns(LyapunovWarning, match=r"ZeroDivisionError: no luck") as caught:
        assert [pruned_at(study, t) for t in worst] == [None] * len(worst)
    assert len(caught) == 1


def test_the_best_are_the_best_feasible() -> None:
    def study_with(feasible: Any) -> optuna.study.Study:
        trials = specs("easy", 40)
        for t, ok in zip(trials, feasible(trials), strict=True):
            t["constraints"] = {"c": -1.0 if ok else 1.0}
        return study_of(trials, pruner=LyapunovPruner())

    median = float(np.median([t["value"] for t in specs("easy", 40)]))
    middling = next(t for t in specs("easy", 60, seed=99) if 0.9 < t["value"] / median < 1.3)
    everything = study_with(lambda ts: [True] * 40)
    only_bad = study_with(lambda ts: [t["value"] > median for t in ts])
    assert pruned_at(everything, middling) is not None
    assert pruned_at(only_bad, middling) is None
    assert read_decisions(last_trial(only_bad))[-1].threshold > median

    none = study_with(lambda ts: [False] * 40)
    assert pruned_at(none, extremes("easy")[1][-1]) is None
    assert "no COMPLETE trial is feasible" in read_decisions(last_trial(none))[-1].reason


def test_pruned_trials_are_no_targets() -> None:
    trials = specs("easy", 20)
    study = study_of(trials, pruner=LyapunovPruner())
    for t in specs("easy", 20, seed=1):
        study.add_trial(optuna.create_trial(**{**t, "state": TrialState.PRUNED, "value": -5.0}))
    (best, *_), _ = extremes("easy")
    pruned_at(study, best)
    decision = read_decisions(last_trial(study))[-1]
    assert decision.n_trials == 20
    assert decision.predicted_value > 0


def test_without_any_evidence_it_runs_as_without_a_pruner() -> None:
    kept = study_of([], pruner=LyapunovPruner(evidence=["exponents", "displacement"]))
    run(kept, 30)
    nop = study_of([], pruner=optuna.pruners.NopPruner())
    run(nop, 30)
    assert outcome(kept) == outcome(nop)
    loss = study_of([], pruner=LyapunovPruner(n_startup_trials=10))
    run(loss, 30)
    assert outcome(loss)[:10] == outcome(nop)[:10]
    assert loss.best_value == nop.best_value


def test_several_objectives_are_optunas_own_error() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], pruner=LyapunovPruner())
    with pytest.raises(NotImplementedError):
        study.ask().should_prune()


def test_a_fixed_trial_is_never_pruned() -> None:
    trial = optuna.trial.FixedTrial({"x": 1.0})
    trial.report(1.0, 0)
    assert not trial.should_prune()


# Audits


@pytest.mark.parametrize("sign", [1, -1])
def test_condemned_trials_that_are_audited_run_on_and_are_counted(sign: int) -> None:
    def objective(trial: optuna.Trial) -> float:
        made = spec(np.random.default_rng([7, trial.number]), "easy", sign=sign)
        for step, loss in made["intermediate_values"].items():
            trial.report(loss, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(made["value"])

    study = study_of(specs("easy", 20, sign=sign), sign=sign, pruner=LyapunovPruner(audit=0.5))
    study.optimize(objective, n_trials=40)
    grounds = {t.number: {d.because for d in read_decisions(t)} for t in study.trials}
    spared = [t for t in study.trials if "audit" in grounds[t.number]]
    assert len(spared) > 5
    assert {t.state for t in spared} == {TrialState.COMPLETE}
    assert all(is_audited(t.number, 0.5) for t in spared)
    pruned = [t.number for t in study.trials if t.state == TrialState.PRUNED]
    assert pruned
    assert not any(is_audited(number, 0.5) for number in pruned)

    audit = audited(study)
    assert audit.condemned == len(spared)
    values = sorted(sign * t.value for t in study.trials if t.state == TrialState.COMPLETE)
    best = values[: len(values) // 10 + 1]
    assert abs(audit.wrong - sum(sign * t.value in best for t in spared)) <= 1
    assert str(audit) in str(explain(study, spared[0].number))
    assert str(audit) in str(explain(study, 0))
    assert "so that prunings can be judged" in str(explain(study, spared[0].number))


@pytest.mark.parametrize(
    ("value", "fraction", "wrong"),
    [(0.0, None, 1), (0.5, None, 0), (0.25, 0.1, 0), (0.25, 0.4, 1), (0.6, 0.5, 0), (0.6, 0.8, 1)],
)
@pytest.mark.parametrize("feasible", [True, False])
def test_a_pruning_was_wrong_where_the_trial_ended_among_the_best_feasible(
    value: float, fraction: float | None, wrong: int, feasible: bool
) -> None:
    study = study_of([])
    for i in range(1, 30):
        study.add_trial(optuna.create_trial(value=i / 30))
    assert audited(study) == Audit(0, 0)
    decision = {"step": 1, "verdict": "kept", "because": "audit", "top_fraction": fraction}
    attrs = {"lyapunov:decision": decision}
    for state in (TrialState.RUNNING, TrialState.FAIL, TrialState.PRUNED):  # nothing to be learned
        study.add_trial(optuna.create_trial(state=state, user_attrs=attrs))
    study.add_trial(
        optuna.create_trial(
            value=value, user_attrs=attrs, constraints={"c": -1.0 if feasible else 1.0}
        )
    )
    assert audited(study) == Audit(1, wrong if feasible else 0)


def test_an_audit_that_found_nothing_is_not_told() -> None:
    study = study_of(specs("easy", 20))
    assert "audit" not in str(explain(study, 0))
    assert str(audited(study)) == "No condemned trial has run to its end."
