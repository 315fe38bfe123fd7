"""Ranking and explanation."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from _studies import pruned_at, specs, start, study_of
from optuna.trial import TrialState

from lyap_optuna.prediction import _step_model, explain, prediction_skill, rank_trials
from lyap_optuna.prediction.evidence import EVIDENCE
from lyap_optuna.pruner import LyapunovPruner


def half_run(kind: str = "easy", **options: Any) -> list[dict[str, Any]]:
    """Thirty COMPLETE trials, and ten pruned after four epochs."""
    trials = specs(kind, 40, **options)
    for t in trials[30:]:
        kept = dict(list(t["intermediate_values"].items())[:4])
        t |= {"intermediate_values": kept, "value": None, "state": TrialState.PRUNED}
    return trials


def test_complete_trials_stand_by_their_value() -> None:
    study = study_of(specs("easy", 30))
    ranking = rank_trials(study)
    values = [t.value for t in ranking]
    assert values == sorted(values)
    assert all(t.lower is None or t.lower <= t.predicted_value for t in ranking)
    assert all(t.upper is None or t.upper >= t.predicted_value for t in ranking)
    assert all(0 <= t.probability <= 1 for t in ranking)
    assert all(t.step == 2 and t.max is not None for t in ranking)


@pytest.mark.parametrize("sign", [1, -1])
def test_pruned_and_running_trials_stand_by_their_prediction(sign: int) -> None:
    study = study_of(half_run(sign=sign), sign=sign)
    running = start(study, specs("easy", 1, seed=5, sign=sign)[0])
    running.report(sign * 0.01, 0)
    study.enqueue_trial({})
    study.add_trial(optuna.create_trial(state=TrialState.FAIL))
    ranking = rank_trials(study)
    assert len(ranking) == 41
    keys = [sign * (t.predicted_value if t.value is None else t.value) for t in ranking]
    assert keys == sorted(keys)
    assert all(t.value is None for t in ranking if t.state != TrialState.COMPLETE)
    assert ranking[[t.number for t in ranking].index(40)].step == 0


def test_predictions_of_complete_trials_have_not_seen_their_value() -> None:
    trials = specs("noise", 30)
    for t in trials:  # what tells nothing but of the trial itself must not be learned by heart
        t["user_attrs"] = {}
    ranking = rank_trials(study_of(trials), step=2)
    spearman = np.corrcoef(
        np.argsort(np.argsort([t.predicted_value for t in ranking])), np.arange(len(ranking))
    )
    assert spearman[0, 1] < 0.4


@pytest.mark.parametrize("transform", [lambda v: 5 * v - 2, lambda v: 1e-6 * v, lambda v: v + 8])
def test_the_ranking_depends_on_no_unit_and_no_offset(transform: Callable[[float], float]) -> None:
    def numbers(f: Callable[[float], float]) -> list[int]:
        trials = half_run()
        for t in trials:
            t["value"] = None if t["value"] is None else float(f(t["value"]))
            t["intermediate_values"] = {s: float(f(v)) for s, v in t["intermediate_values"].items()}
        return [t.number for t in rank_trials(study_of(trials))]

    assert numbers(transform) == numbers(lambda v: v)


def test_maximise_mirrors_minimise() -> None:
    down = rank_trials(study_of(half_run()))
    up = rank_trials(study_of(half_run(sign=-1), sign=-1))
    assert [t.number for t in down] == [t.number for t in up]
    assert [t.predicted_value for t in down] == [-t.predicted_value for t in up]
    mirrored = [None if t.upper is None else -t.upper for t in up]
    assert [t.lower for t in down] == mirrored
    assert [t.probability for t in down] == [t.probability for t in up]


def test_copying_a_study_keeps_its_ranking() -> None:
    source, target = (optuna.storages.InMemoryStorage() for _ in range(2))
    study = study_of(half_run("plateau"), study_name="s", storage=source)
    optuna.copy_study(from_study_name="s", from_storage=source, to_storage=target)
    assert rank_trials(optuna.load_study(study_name="s", storage=target)) == rank_trials(study)


def test_the_order_in_which_trials_were_added_means_nothing() -> None:
    trials = half_run("plateau")
    order = np.random.default_rng(0).permutation(len(trials))
    plain = rank_trials(study_of(trials))
    other = rank_trials(study_of([trials[i] for i in order]))
    assert [order[t.number] for t in other] == [t.number for t in plain]
    for a, b in zip(plain, other, strict=True):
        assert a.probability == pytest.approx(b.probability, abs=1e-9)


def test_at_a_step_only_what_was_known_then_counts() -> None:
    trials = half_run()
    early = rank_trials(study_of(trials), step=1)
    for t in trials:
        for step in [s for s in t["intermediate_values"] if s > 1]:
            t["intermediate_values"][step] = 7.0
    assert rank_trials(study_of(trials), step=1) == early
    assert all(t.step == 1 for t in early)


def test_unpredictable_trials_come_last() -> None:
    trials = half_run()
    for t in trials[:30]:
        t["value"] = 1.0  # nobody is better than another
    ranking = rank_trials(study_of(trials))
    assert [t.state for t in ranking[:30]] == [TrialState.COMPLETE] * 30
    assert [t.number for t in ranking[30:]] == list(range(30, 40))
    assert all(t.predicted_value is t.lower is t.upper is None for t in ranking[30:])


def test_infeasible_trials_come_after_feasible_ones() -> None:
    trials = half_run()
    best = min(range(30), key=lambda i: trials[i]["value"])
    for i, t in enumerate(trials[:30]):
        t["constraints"] = {"c": 1.0 if i == best else 0.0}
    ranking = rank_trials(study_of(trials))
    assert ranking[-1].number == best
    assert ranking[-1].feasible is False
    assert {t.feasible for t in ranking if t.state == TrialState.PRUNED} == {None}
    assert {t.feasible for t in rank_trials(study_of(half_run()))} == {True}


def test_a_diverged_trial_is_last_and_moves_no_other() -> None:
    trials = specs("easy", 30)
    worst = max(range(30), key=lambda i: trials[i]["value"])
    calm = {t.number: t.predicted_value for t in rank_trials(study_of(trials))}
    trials[worst]["value"] = math.inf
    ranking = rank_trials(study_of(trials))
    assert (ranking[-1].number, ranking[-1].value) == (worst, math.inf)
    second = ranking[-2].value
    for t in ranking[:-1]:
        if calm[t.number] <= second:
            assert t.predicted_value == calm[t.number]
        assert t.predicted_value <= max(second, calm[t.number])


def test_a_study_without_reports_is_ranked_by_hyperparameters() -> None:
    rng = np.random.default_rng(0)
    study = optuna.create_study()
    distribution = optuna.distributions.FloatDistribution(0.0, 1.0)
    for x in rng.uniform(size=30):
        study.add_trial(
            optuna.create_trial(value=x**2, params={"x": x}, distributions={"x": distribution})
        )
    study.enqueue_trial({"x": 0.5})
    study.ask({"x": distribution})
    by_number = {t.number: t for t in rank_trials(study)}
    assert by_number[30].predicted_value == pytest.approx(0.25, abs=0.1)
    assert by_number[30].step is None
    assert by_number[30].evidence == ("hyperparameters",)


def test_evidence_can_be_switched_off() -> None:
    study = study_of(half_run("plateau"))
    assert {t.evidence for t in rank_trials(study)} == {tuple(EVIDENCE)}
    assert {t.evidence for t in rank_trials(study, evidence=["loss"])} == {("loss",)}


def test_an_empty_study_has_an_empty_ranking() -> None:
    assert rank_trials(optuna.create_study()) == []


@pytest.mark.parametrize("function", [rank_trials, prediction_skill, lambda s: explain(s, 0)])
def test_several_objectives_are_named(function: Callable[[optuna.study.Study], Any]) -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.add_trial(optuna.create_trial(values=[1.0, 2.0]))
    with pytest.raises(ValueError, match="minimize, maximize"):
        function(study)


# Explanation


def test_a_pruned_trial_tells_why() -> None:
    study = study_of(specs("plateau", 40), pruner=LyapunovPruner())
    worst = max(specs("plateau", 40, seed=1), key=lambda t: t["value"])
    step = pruned_at(study, worst)
    explanation = explain(study, 40)
    story = str(explanation)
    assert story.startswith(f"Trial 40 was pruned at step {step}, after ")
    assert "from displacement " in story
    assert "shares of the variance" in story
    assert "nats/step" in story
    assert explanation.decisions[-1].verdict == "pruned"
    assert explanation.prediction.predicted_value is not None  # what is known now, beside it
    assert explanation.rank == 1 + [t.number for t in rank_trials(study)].index(40)
    assert f"rank {explanation.rank} of 41" in story


def test_a_trial_without_a_decision_is_predicted_now() -> None:
    study = study_of(half_run())
    explanation = explain(study, 35)
    assert "No LyapunovPruner judged it" in str(explanation)
    assert "In hindsight, on " in str(explanation)
    assert explanation.prediction.predicted_value is not None
    assert "has not seen its value" in str(explain(study, 0))


def test_nothing_known_is_said() -> None:
    study = study_of([{**t, "value": 1.0} for t in specs("noise", 40)])
    assert "predicts nothing at step 2, on 40 COMPLETE trials" in str(explain(study, 0))
    study.enqueue_trial({})
    assert explain(study, 40).sentence == "Trial 40 is waiting to be run."
    assert "Nothing is predicted for a trial that is WAITING" in str(explain(study, 40))


def test_a_study_without_readouts_says_so() -> None:
    study = study_of(specs("easy", 20, readouts=False))
    assert "No trial of this study has Lyapunov readouts" in str(explain(study, 0))
    assert "without a baseline" not in str(explain(study, 0))


def test_an_unknown_trial_is_named() -> None:
    with pytest.raises(ValueError, match=r"no trial 7; it has trials 0 to 2"):
        explain(study_of(specs("easy", 3)), 7)
    with pytest.raises(ValueError, match=r"no trial 0; it has none"):
        explain(optuna.create_study(), 0)


def odd_study(seed: int) -> optuna.study.Study:
    """A study of what storages allow: gaps, ties, odd numbers, conditional spaces."""
    rng = np.random.default_rng(seed)
    odd = [math.nan, math.inf, -math.inf, 1e308, -1e308, 1e-320, 0.0, 0.0]
    choices = [None, True, 1, "x", 2.5]
    space = {
        "a": optuna.distributions.FloatDistribution(0.0, 1.0),
        "c": optuna.distributions.CategoricalDistribution(choices),
        "i": optuna.distributions.IntDistribution(0, 5),
    }

    def number() -> float:
        return float(rng.choice(odd) if rng.random() < 0.15 else rng.normal())

    study = optuna.create_study(
        direction=["minimize", "maximize"][seed % 2],
        pruner=LyapunovPruner(n_startup_trials=3, top_fraction=0.3, min_probability=0.2),
    )
    for _ in range(int(rng.integers(0, 50))):
        state = rng.choice([TrialState.COMPLETE] * 4 + [TrialState.PRUNED, TrialState.FAIL])
        values = {"a": rng.random(), "c": choices[rng.integers(5)], "i": int(rng.integers(5))}
        suggested = [name for name in space if rng.random() < 0.7]
        steps = range(int(rng.integers(2)), int(rng.integers(30)), int(rng.integers(1, 4)))
        readouts = {
            str(step): {"max": rng.normal(), "mean": rng.normal()}
            for step in range(-1, int(rng.integers(-1, 6)))
        }
        value = number()
        study.add_trial(
            optuna.create_trial(
                state=TrialState(int(state)),
                value=(0.0 if math.isnan(value) else value) if state == 1 else None,
                params={name: values[name] for name in suggested},
                distributions={name: space[name] for name in suggested},
                intermediate_values={step: number() for step in steps},
                user_attrs={"lyapunov:readouts": readouts} if rng.random() < 0.8 else {},
                constraints={"k": float(rng.normal())} if seed % 3 == 0 else None,
            )
        )
    running = study.ask({"a": space["a"]})
    for step in range(20):
        running.report(number(), step)
        running.should_prune()
    return study


@pytest.mark.filterwarnings("error::RuntimeWarning")  # of numbers; not what other tests left open
@pytest.mark.parametrize("seed", range(12))
def test_odd_studies_are_ranked_and_explained(seed: int) -> None:
    study = odd_study(seed)
    for t in [*rank_trials(study), *rank_trials(study, step=3)]:
        if t.predicted_value is not None:
            assert math.isfinite(t.predicted_value)
            assert t.lower is None or -math.inf < t.lower <= t.predicted_value
            assert t.upper is None or t.predicted_value <= t.upper < math.inf
    for s in prediction_skill(study):
        assert s.rank_correlation is None or -1 <= s.rank_correlation <= 1
    for number in range(0, len(study.trials), 5):
        assert explain(study, number).sentence.startswith(f"Trial {number} ")


# Large studies


def test_a_study_is_read_once_and_fitted_once_for_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trials = specs("easy", 120, epochs=8)
    for i, t in enumerate(trials[40:]):
        kept = dict(list(t["intermediate_values"].items())[: 1 + i % 5])
        t |= {"intermediate_values": kept, "value": None, "state": TrialState.PRUNED}
    study = study_of(trials)
    fitted: list[int] = []
    read: list[int] = []
    posterior, of = _step_model.Posterior, _step_model.TrialView.of.__func__
    monkeypatch.setattr(
        _step_model, "Posterior", lambda *a: fitted.append(len(a[1])) or posterior(*a)
    )
    monkeypatch.setattr(
        _step_model.TrialView,
        "of",
        classmethod(lambda cls, trial, *a: read.append(trial.number) or of(cls, trial, *a)),
    )
    rank_trials(study)
    assert sorted(read) == list(range(120))
    assert len(fitted) <= 5
    read.clear()
    prediction_skill(study)
    assert sorted(read) == list(range(40))
