"""Evidence, the models of a study, and what its kinds of evidence are worth."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import optuna
import pytest
from _studies import DISTRIBUTIONS, specs, study_of
from optuna.trial import TrialState

from lyap_optuna.prediction import EvidenceSkill, prediction_skill
from lyap_optuna.prediction._scores import rank_correlation
from lyap_optuna.prediction._step_model import MAX_FIT_TRIALS, StepModel
from lyap_optuna.prediction._study import EVERY_STEP, StudyModels, model_step, refit_size
from lyap_optuna.prediction._table import FeatureTable
from lyap_optuna.prediction.evidence import EVIDENCE, TrialView, check_evidence


def view(sign: int = 1, **trial: object) -> TrialView:
    trial.setdefault("state", TrialState.RUNNING)
    return TrialView.of(optuna.create_trial(**trial), sign)


# Evidence


def test_loss_is_last_and_best_so_far() -> None:
    trial = view(intermediate_values={5: 0.1, 3: 0.4, 1: 0.3})
    assert EVIDENCE["loss"].features(trial, 3) == {"last": 0.4, "best": 0.3}
    assert EVIDENCE["loss"].features(trial, 4) == {"last": 0.4, "best": 0.3}
    assert EVIDENCE["loss"].features(trial, 0) == {}
    assert EVIDENCE["loss"].features(trial, None) == {}


def test_loss_is_oriented() -> None:
    trial = view(-1, intermediate_values={0: 0.9, 1: 0.7})
    assert EVIDENCE["loss"].features(trial, 1) == {"last": -0.7, "best": -0.9}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_reported_nan_and_infinity_are_worst(odd: float, sign: int) -> None:
    trial = view(sign, intermediate_values={0: 0.5, 1: odd})
    features = EVIDENCE["loss"].features(trial, 1)
    assert features == {"last": math.inf, "best": sign * 0.5}


@pytest.mark.parametrize("first", [0, 1, 7])
def test_displacement_wherever_the_loop_begins(first: int) -> None:
    trial = view(
        intermediate_values={first: 1.0, first + 1: 0.9},
        user_attrs={
            "lyapunov:readouts": {
                str(first - 1): {"max": 0.0, "mean": -1.0, "quantiles": [-2.0, 0.0]},
                str(first): {"max": 0.25, "mean": -0.5, "quantiles": [-1.0, 0.0]},
            }
        },
    )
    for step in (first, first + 1):
        assert EVIDENCE["displacement"].features(trial, step) == pytest.approx(
            {"max": 0.25, "mean": 0.5, "rms": math.sqrt(0.5)}
        )
        assert EVIDENCE["exponents"].features(trial, step) == {
            **{"max": 0.25, "distance": 0.25, "mean": -0.5}
        }
    for before in (first - 1, None):  # until then the baseline is what is known
        assert EVIDENCE["exponents"].features(trial, before) == {
            **{"max": 0.0, "distance": 0.0, "mean": -1.0}
        }
        assert EVIDENCE["displacement"].features(trial, before) == {}


def test_no_displacement_without_a_baseline() -> None:
    trial = view(
        intermediate_values={0: 1.0},
        user_attrs={"lyapunov:readouts": {"0": {"max": 0.25, "mean": -0.5}}},
    )
    assert EVIDENCE["displacement"].features(trial, 0) == {}
    assert EVIDENCE["exponents"].features(trial, 0)["max"] == 0.25
    assert EVIDENCE["exponents"].features(trial, None) == {}


@pytest.mark.parametrize("largest", [-0.3, 0.3])
def test_the_distance_of_the_maximum_from_the_edge_is_a_feature(largest: float) -> None:
    series = {"0": {"max": largest, "mean": -0.5, "layers": {"a": {"max": -0.7, "mean": -1.0}}}}
    trial = view(intermediate_values={0: 1.0}, user_attrs={"lyapunov:readouts": series})
    features = EVIDENCE["exponents"].features(trial, 0)
    assert (features["distance"], features["a:distance"]) == (0.3, 0.7)


def test_later_readouts_do_not_exist_yet() -> None:
    series = {str(s): {"max": float(s), "mean": 0.0} for s in range(-1, 5)}
    trial = view(
        intermediate_values=dict.fromkeys(range(5), 1.0), user_attrs={"lyapunov:readouts": series}
    )
    assert EVIDENCE["exponents"].features(trial, 2)["max"] == 2.0
    assert EVIDENCE["displacement"].features(trial, 2)["max"] == 3.0


def test_hyperparameters_numeric_log_categorical_conditional_single() -> None:
    full = view(
        params={"lr": 1e-2, "units": 20, "cell": "GRU", "fixed": 0.5}, distributions=DISTRIBUTIONS
    )
    assert EVIDENCE["hyperparameters"].features(full, None) == {
        "lr": math.log(1e-2),
        "units": 20.0,
        "cell": "str:GRU",
    }
    partial = view(params={"lr": 1e-3}, distributions={"lr": DISTRIBUTIONS["lr"]})
    table = FeatureTable(["hyperparameters"], [full, partial], None)
    # Columns: cell=GRU, lr, units.
    np.testing.assert_allclose(
        table.fitted["hyperparameters"],
        [[1.0, math.log(1e-2), 20.0], [0.0, math.log(1e-3), math.nan]],
    )


def test_evidence_names_are_checked() -> None:
    assert check_evidence(["displacement", "loss"]) == ("loss", "displacement")
    assert check_evidence("loss") == ("loss",)
    with pytest.raises(ValueError, match="'moon'"):
        check_evidence(["moon"])
    with pytest.raises(ValueError, match="At least one"):
        check_evidence([])


# The model of a step


def complete(number: int, value: float, reports: dict[int, float], **trial: object) -> TrialView:
    made = view(state=TrialState.COMPLETE, value=value, intermediate_values=reports, **trial)
    return replace(made, number=number)


def running(**trial: object) -> TrialView:
    return replace(view(**trial), number=10_000)


def plateau_that_three_leave(offset: float = 0.0, unit: float = 1.0) -> list[TrialView]:
    """Forty trials in the order of their loss, but for three that end far below."""
    rng = np.random.default_rng(0)
    views = []
    for i in range(40):
        plateau = 2.3 + 1e-3 * i
        end = {5: 1.0, 17: 1.4, 30: 1.5}.get(i, plateau)
        curve = {0: plateau + 1e-4 * rng.normal(), 1: end}
        reports = {step: offset + unit * v for step, v in curve.items()}
        views.append(complete(i, offset + unit * end, reports))
    return views


def test_the_order_of_a_plateau_is_no_skill_once_one_trial_has_left_it() -> None:
    model = StepModel(plateau_that_three_leave(), 0, ["loss"], 1)
    assert model.skill < 0.3
    moved = StepModel(plateau_that_three_leave(40.0, 1e-3), 0, ["loss"], 1)
    assert moved.skill == pytest.approx(model.skill, abs=1e-6)
    left = [v for v in plateau_that_three_leave() if v.value > 2.0]  # nobody has
    assert StepModel(left, 0, ["loss"], 1).skill > 0.9


def test_a_trial_leads_where_hardly_a_feasible_one_was_as_good() -> None:
    rows = [complete(i, float(i), {0: float(i), 2: i + 0.5}) for i in range(20)]
    rows += [replace(complete(20 + i, -1.0, {0: -1.0, 2: -1.0}), feasible=False) for i in range(9)]

    def leads(loss: float, step: int = 0, feasible: bool = True) -> bool:
        trial = replace(running(intermediate_values={step: loss}), feasible=feasible)
        return StepModel(rows, step, ["loss"], 1, top_fraction=0.1).leads(trial)

    assert all(map(leads, [-0.5, 0.5, 1.0]))  # behind none, one, and one and a half
    assert not any(map(leads, [1.5, math.nan, math.inf]))
    assert not leads(0.5, feasible=False)
    # Nobody reported at step 1: what they reported next counts.
    assert leads(1.4, step=1)
    assert not leads(1.6, step=1)


def test_nobody_leads_where_reports_say_the_opposite_of_values() -> None:
    rows = [complete(i, float(i), {0: 1.0, 1: -float(i)}) for i in range(20)]
    assert not StepModel(rows, 0, ["loss"], 1).leads(running(intermediate_values={0: 0.5}))


def test_rank_correlation_agrees_with_scipy() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 8, size=30).astype(float), rng.normal(size=30)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(np.ones(5), np.arange(5.0)) == 0.0


def easy(n: int, transform: Callable[[float], float] = float) -> list[TrialView]:
    """COMPLETE trials whose first report tells the value."""
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(size=n))
    first = values * np.exp(0.3 * rng.normal(size=n))
    return [
        complete(i, transform(v), {0: transform(f), 1: transform(v)})
        for i, (v, f) in enumerate(zip(values, first, strict=True))
    ]


def diverged(rows: list[TrialView]) -> list[TrialView]:
    worst = max(rows, key=lambda v: v.value)
    return [replace(v, value=math.inf) if v is worst else v for v in rows]


def test_one_diverged_trial_moves_no_other() -> None:
    calm, wild = easy(40), diverged(easy(40))
    worst = wild[int(np.argmax([v.value for v in wild]))].number
    pairs = [StepModel(rows, 0, ["loss"], 1).predict(rows) for rows in (calm, wild)]
    for i, (a, b) in enumerate(zip(*pairs, strict=True)):
        assert math.isfinite(b.value)
        assert a.score == pytest.approx(b.score, abs=1e-12)
        if i != worst:
            assert a.probability == pytest.approx(b.probability, abs=1e-12)


@pytest.mark.parametrize("move", [lambda v: 5 * v - 2, lambda v: 1e-6 * v, lambda v: v + 8])
def test_predictions_move_with_unit_and_offset(move: Callable[[float], float]) -> None:
    plain, moved = easy(40), easy(40, move)
    here, there = (StepModel(rows, 0, ["loss"], 1) for rows in (plain, moved))
    assert there.threshold == pytest.approx(move(here.threshold))
    for a, b in zip(here.predict(plain), there.predict(moved), strict=True):
        assert (b.score, b.probability) == pytest.approx((a.score, a.probability), abs=1e-9)
        assert b.value == pytest.approx(move(a.value))
        for mine, other in ((a.lower, b.lower), (a.upper, b.upper)):
            assert (mine is None) == (other is None)
            assert mine is None or other == pytest.approx(move(mine))


def test_trials_predicted_together_are_predicted_as_alone() -> None:
    rows = easy(30)
    model = StepModel(rows, 0, ["loss"], 1)
    asked = [*rows[:5], *(running(intermediate_values={0: v}) for v in (0.1, 1.0, 9.0))]
    for one, alone in zip(
        model.predict(asked), [model.predict([v])[0] for v in asked], strict=True
    ):
        assert one.score == pytest.approx(alone.score, abs=1e-12)
        assert one.probability == pytest.approx(alone.probability, abs=1e-12)


def test_a_fitted_trial_is_predicted_by_a_posterior_that_has_not_seen_it() -> None:
    rows = easy(30)
    odd = replace(rows[0], value=-5.0)  # its report says nothing of the kind
    (before,), (after,) = (
        StepModel([first, *rows[1:]], 0, ["loss"], 1).predict([first]) for first in (rows[0], odd)
    )
    assert after.probability <= before.probability + 0.05


def test_equal_or_too_few_values_predict_nothing() -> None:
    equal = [complete(i, 1.0, {0: float(i)}) for i in range(30)]
    for rows in ([], equal[:1], equal, diverged(equal[:1])):
        model = StepModel(rows, 0, ["loss"], 1)
        assert model.predict([running(intermediate_values={0: 1.0})]) == [None]
        assert model.kinds == ()
        assert model.skill is None


def test_whether_a_readout_is_missing_is_not_counted_as_skill() -> None:
    # Half the trials have readouts, of noise, and are better: say, an import of older trials.
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        series = {"0": {"max": rng.normal(), "mean": -1.0}}
        attrs = {"lyapunov:readouts": series} if i < 20 else {}
        rows.append(complete(i, float(i), {0: 1.0}, user_attrs=attrs))
    model = StepModel(rows, 0, ["exponents"], 1)
    assert model.n_trials == 20
    assert abs(model.skill) < 0.5


def test_layers_that_some_trials_lack_count_for_those_that_have_them() -> None:
    rows = []
    for i in range(40):
        told = {"max": 0.0, "mean": -1.0, "layers": {"gate": {"max": i / 40, "mean": -1.0}}}
        if i % 4 == 0:
            del told["layers"]
        rows.append(complete(i, float(i), {0: 1.0}, user_attrs={"lyapunov:readouts": {"0": told}}))
    model = StepModel(rows, 0, ["exponents"], 1)
    found = model.predict(rows)
    has = [i for i in range(40) if i % 4]
    assert rank_correlation(np.array([found[i].score for i in has]), np.array(has)) > 0.8
    assert all(0.1 < found[i].probability + 0.1 < 0.6 for i in range(0, 40, 4))


def with_baseline(i: int, largest: float, state: str) -> TrialView:
    series = {"-1": {"max": largest, "mean": -1.0, "state": state}}
    return complete(i, float(i), {0: 1.0}, user_attrs={"lyapunov:readouts": series})


def test_exponents_count_before_the_first_report() -> None:
    rows = [with_baseline(i, -i / 40, "full") for i in range(40)]
    model = StepModel(rows, None, ["loss", "exponents"], 1)
    assert model.kinds == ("exponents",)
    assert model.skill > 0.9
    near, far = model.predict(
        [replace(with_baseline(i, largest, "full"), number=100 + i, value=None)
         for i, largest in ((0, -0.01), (1, -0.99))]
    )  # fmt: skip
    assert near.step is far.step is None
    assert near.probability > 0.5 > 0.05 > far.probability


def test_the_edge_is_expected_to_be_good_in_the_full_state_alone() -> None:
    # Values that have nothing to do with the exponents, and too few of them to see it.
    def asked(state: str) -> float:
        rows = [
            with_baseline(i, largest, state) for i, largest in enumerate([-0.4, 0.6, -0.5, 0.3])
        ]
        model = StepModel(rows, None, ["exponents"], 1)
        views = [replace(with_baseline(9, largest, state), value=None) for largest in (0.01, 3.0)]
        near, far = model.predict(views)
        return far.score - near.score

    assert asked("full") > asked("hidden")


def test_a_large_study_is_fitted_on_some_of_it_and_predicted_whole() -> None:
    rows = easy(600)
    model = StepModel(rows, 0, ["loss"], 1)
    assert model.n_complete == 600
    assert model.n_trials <= MAX_FIT_TRIALS
    scores = np.array([p.score for p in model.predict(rows)])
    assert rank_correlation(scores, np.array([v.value for v in rows])) > 0.8
    again = StepModel(rows[::-1], 0, ["loss"], 1)
    np.testing.assert_allclose([p.score for p in again.predict(rows)], scores, atol=1e-9)


# Steps and refits


def test_steps_are_thinned_as_reports_grow_many() -> None:
    steps = np.arange(100, 100 + 10_000)
    looked_at = {model_step(steps, int(s)) for s in steps}
    first = range(100, 100 + EVERY_STEP)
    assert [model_step(steps, s) for s in first] == list(first)
    assert len(looked_at) < EVERY_STEP * 9
    assert all(model_step(steps, int(s)) <= s for s in steps)
    assert model_step(steps, 99) is None
    assert model_step(steps, None) is None


def test_refits_grow_by_a_tenth() -> None:
    assert [refit_size(n) for n in (0, 1, 7, 19, 20, 21, 22, 23, 32, 33)] == [
        0, 1, 7, 19, 20, 20, 22, 22, 30, 33,
    ]  # fmt: skip
    sizes = {refit_size(n) for n in range(1, 1001)}
    assert len(sizes) < 70


@pytest.mark.parametrize("held", [["A", "B"], ["A", "B", None], list("ABCDE")])
def test_a_category_that_was_not_seen_is_unknown(held: list[str | None]) -> None:
    space = optuna.distributions.CategoricalDistribution(list("ABCDEF"))
    rng = np.random.default_rng(0)

    def of(category: str | None, **trial: object) -> TrialView:
        given = {} if category is None else {"c": category}
        return view(params=given, distributions=dict.fromkeys(given, space), **trial)

    rows = []
    for i in range(40):
        where = i % len(held)
        value = where + 0.01 * float(rng.normal())
        rows.append(of(held[where], value=value, state=TrialState.COMPLETE))
    rows = [replace(row, number=i) for i, row in enumerate(rows)]
    model = StepModel(rows, None, ("hyperparameters",), 1)
    unseen = {"F", None} - set(held)
    for i, category in enumerate([*held, *unseen]):
        (row,) = model._table.matrices([of(category)])["hyperparameters"]
        assert np.isnan(row).all() == (category in unseen)
        (predicted,) = model.predict([replace(of(category), number=100 + i)])
        assert predicted is not None
        if category in unseen:
            assert predicted.probability == pytest.approx(0.1, abs=0.09)
            assert predicted.lower is None or predicted.lower <= min(v.value for v in rows) + 0.05


@pytest.mark.parametrize("late", [(), (33,)])  # known later than those that ended after them
@pytest.mark.parametrize("failed", [(), (6, 11), (10, 12, 23)])
def test_who_saw_every_trial_end_and_who_comes_later_predict_the_same(
    failed: tuple[int, ...], late: tuple[int, ...]
) -> None:
    trials = study_of(specs("easy", 45, seed=1)).trials
    for i, trial in enumerate(trials):
        trial.datetime_complete = datetime(2026, 1, 1) + timedelta(minutes=i)
        if i in failed:
            trial.state, trial.values = TrialState.FAIL, None
            trial.intermediate_values[9] = math.nan
    running = trials[43:]

    def predicted(models: StudyModels) -> list[object]:
        return [models.at(step).predict([models.view(t) for t in running]) for step in (0, 2)]

    models = StudyModels(1, tuple(EVIDENCE))
    for n in range(5, 43):
        known = [t for i, t in enumerate(trials[:n]) if i not in late or n > i + 4]
        models.update(known)
        fresh = StudyModels(1, tuple(EVIDENCE))
        fresh.update(known)
        assert predicted(models) == predicted(fresh), n


def test_finished_trials_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(specs("easy", 12))
    models = StudyModels(1, ("loss",))
    models.update(study.get_trials(deepcopy=False))
    read = []
    original = TrialView.of.__func__
    monkeypatch.setattr(
        TrialView, "of", classmethod(lambda cls, t, *a: read.append(t) or original(cls, t, *a))
    )
    study.add_trials([optuna.create_trial(**s) for s in specs("easy", 2, seed=1)])
    models.update(study.get_trials(deepcopy=False))
    assert [t.number for t in read] == [12, 13]
    assert len(models.complete) == 14


def test_a_study_deleted_and_made_anew_is_read_anew() -> None:
    models = StudyModels(1, ("loss",))
    models.update(study_of(specs("easy", 12)).get_trials(deepcopy=False))
    models.update(study_of(specs("easy", 3, seed=5)).get_trials(deepcopy=False))
    assert len(models.complete) == 3


def test_failed_trials_count_only_where_they_diverged() -> None:
    trials = specs("easy", 10)
    for k, loss in ((3, math.nan), (4, 0.5)):
        trials[k] |= {"value": None, "state": TrialState.FAIL}
        trials[k]["intermediate_values"] = {0: 1.0, 1: loss}
    models = StudyModels(1, ("loss",))
    models.update(study_of(trials).get_trials(deepcopy=False))
    assert [v.number for v in models._finished if v.value is None] == [3]
    assert models.at(1).n_complete == 8
    assert math.isinf(models.at(1).values.max())


# Skill


FOUR = ("loss", "exponents", "displacement", "hyperparameters")


def skills_at(study: optuna.study.Study, step: int) -> dict[str, EvidenceSkill]:
    return {s.evidence: s for s in prediction_skill(study, steps=[step], evidence=FOUR)}


def test_displacement_is_what_counts_on_a_plateau() -> None:
    skills = skills_at(study_of(specs("plateau", 40)), 1)
    assert skills["displacement"].rank_correlation > 0.8
    assert skills["displacement"].n_trials == 40
    assert abs(skills["loss"].rank_correlation) < 0.4
    shares = {kind: skill.share for kind, skill in skills.items() if skill.share is not None}
    assert max(shares, key=shares.__getitem__) == "displacement"
    assert shares["displacement"] > 0.3
    assert sum(shares.values()) <= 1.0
    for skill in skills.values():
        if skill.share is not None:
            assert 0 <= skill.share_lower <= skill.share <= skill.share_upper <= 1


def test_the_loss_is_what_counts_on_an_easy_task() -> None:
    skills = skills_at(study_of(specs("easy", 40)), 3)
    assert skills["loss"].rank_correlation > 0.9
    assert skills["loss"].share > 0.5


def test_nothing_counts_in_noise() -> None:
    for step in (0, 1, 2):
        *each, together = prediction_skill(study_of(specs("noise", 40)), steps=[step])
        assert together.chosen
        assert abs(together.rank_correlation) < 0.4
        assert sum(skill.share or 0.0 for skill in each) < 0.5


def test_all_kinds_that_vary_are_used() -> None:
    *each, together = prediction_skill(study_of(specs("plateau", 30)), steps=[1])
    assert [s.evidence for s in each] == list(EVIDENCE)
    vary = [s.evidence for s in each if s.n_trials]
    assert set(vary) >= set(FOUR)
    assert together.evidence == " + ".join(vary)
    assert together.share is None
    assert [s.evidence for s in (*each, together) if s.chosen] == [together.evidence]


def test_skill_without_readouts_says_so() -> None:
    skills = skills_at(study_of(specs("easy", 20, readouts=False)), 2)
    for kind in ("exponents", "displacement"):
        skill = skills[kind]
        assert (skill.rank_correlation, skill.n_trials, skill.share) == (None, 0, None)
    assert skills["loss + hyperparameters"].chosen


def test_skill_of_the_kinds_asked_for() -> None:
    skills = prediction_skill(study_of(specs("plateau", 40)), evidence=["loss", "exponents"])
    assert {s.evidence for s in skills} == {"loss", "exponents", "loss + exponents"}


def test_skill_of_an_empty_study_is_empty() -> None:
    assert prediction_skill(optuna.create_study()) == []


def test_loops_from_zero_and_one_have_the_same_skill() -> None:
    zero = prediction_skill(study_of(specs("plateau", 30, first=0)))
    one = prediction_skill(study_of(specs("plateau", 30, first=1)))
    assert [(s.step + 1, s.evidence, s.rank_correlation) for s in zero] == [
        (s.step, s.evidence, s.rank_correlation) for s in one
    ]
