"""Evidence, the predictor on arrays, and the models of a study."""

import math
from dataclasses import replace

import numpy as np
import optuna
import pytest
from _studies import DISTRIBUTIONS, specs, study_of
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from scipy.stats import rankdata, tiecorrect

from lyap_optuna.prediction import RankPredictor, prediction_skill
from lyap_optuna.prediction._scores import (
    pairwise_order,
    rank_correlation,
    scores_within,
    untied_share,
)
from lyap_optuna.prediction._study import StepModel, StudyModels, model_step, refit_size
from lyap_optuna.prediction._table import FeatureTable
from lyap_optuna.prediction.evidence import EVIDENCE, TrialView, check_evidence


def view(sign: int = 1, **trial: object) -> TrialView:
    trial.setdefault("state", TrialState.RUNNING)
    return TrialView.of(optuna.create_trial(**trial), sign)


def arrays(n: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    quality = rng.normal(size=n)
    features = {
        "loss": rng.normal(size=(n, 2)),
        "exponents": rng.normal(size=(n, 2)),
        "displacement": quality[:, None] + 0.3 * rng.normal(size=(n, 2)),
    }
    return features, np.exp(quality)


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
        assert EVIDENCE["exponents"].features(trial, step) == {"max": 0.25, "mean": -0.5}
    assert EVIDENCE["exponents"].features(trial, first - 1) == {}


def test_no_displacement_without_a_baseline() -> None:
    trial = view(
        intermediate_values={0: 1.0},
        user_attrs={"lyapunov:readouts": {"0": {"max": 0.25, "mean": -0.5}}},
    )
    assert EVIDENCE["displacement"].features(trial, 0) == {}
    assert EVIDENCE["exponents"].features(trial, 0) == {"max": 0.25, "mean": -0.5}


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


# The predictor


def test_scores_depend_on_order_alone() -> None:
    reference = np.array([1.0, 2.0, 3.0, np.inf])
    values = np.array([-1e30, 2.0, 2.5, np.inf])
    expected = scores_within(values**3, reference**3)
    np.testing.assert_array_equal(scores_within(values, reference), expected)


def test_scores_within_the_noise_are_shared() -> None:
    reference = np.array([0.5, 2.3, 2.301, 2.302, np.inf])
    exact = scores_within(reference, reference)
    np.testing.assert_array_equal(scores_within(reference, reference, np.zeros(5)), exact)
    tiny = scores_within(reference, reference, np.full(5, 1e-9))
    np.testing.assert_allclose(tiny, exact)
    noisy = scores_within(reference, reference, np.full(5, 0.1))
    assert np.ptp(noisy[1:4]) < 0.02 < np.ptp(exact[1:4])
    np.testing.assert_allclose(noisy[[0, 4]], exact[[0, 4]], atol=1e-3)
    assert (np.diff(noisy) > 0).all()


def test_scores_within_the_margin_are_shared() -> None:
    reference = np.array([0.5, 2.3, 2.301, 2.302, 3.0, np.inf])
    exact = scores_within(reference, reference)
    tied = scores_within(reference, reference, margin=0.1)
    np.testing.assert_allclose(tied[1:4], exact[2])
    np.testing.assert_allclose(tied[[0, 4, 5]], exact[[0, 4, 5]])
    noisy = scores_within(reference, reference, np.full(6, 1e-3), margin=0.1)
    np.testing.assert_allclose(noisy, tied)


def test_rank_correlation_ties_what_is_within_the_margin() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, groups = rng.normal(size=20), rng.integers(0, 4, size=20).astype(float)
    b = groups + rng.uniform(0.0, 0.4, size=20)
    found = rank_correlation(a, b, pairwise_order(b, margin=0.5))
    assert found == pytest.approx(spearmanr(a, groups).statistic)
    assert rank_correlation(a, b, pairwise_order(b, margin=5.0)) == 0.0


def test_rank_correlation_is_a_mean_over_orders_within_the_noise() -> None:
    rng = np.random.default_rng(0)
    a, b, noise = rng.normal(size=12), rng.normal(size=12), rng.uniform(0.0, 1.0, size=12)
    sampled = [rank_correlation(a, b + noise * rng.normal(size=12)) for _ in range(20_000)]
    found = rank_correlation(a, b, pairwise_order(b, noise))
    assert found == pytest.approx(np.mean(sampled), abs=0.01)
    assert rank_correlation(a, b, pairwise_order(b, np.zeros(12))) == rank_correlation(a, b)


def test_noise_of_a_curve() -> None:
    rng = np.random.default_rng(0)
    slope = np.linspace(3.0, 1.0, 200)
    line = view(intermediate_values=dict(enumerate(slope)))
    assert line.noise == pytest.approx(0.0, abs=1e-12)
    noisy = slope + 0.05 * rng.normal(size=200)
    noisy[100:] -= 40.0  # one fall
    noisy[150] = math.nan
    assert view(intermediate_values=dict(enumerate(noisy))).noise == pytest.approx(0.05, rel=0.2)
    mirrored = view(-1, intermediate_values=dict(enumerate(-1e3 * noisy)))
    assert mirrored.noise == pytest.approx(50.0, rel=0.2)
    assert view(intermediate_values={0: 1.0, 1: 0.2}).noise == 0.0
    assert view(intermediate_values={0: 1e308, 1: -1e308, 2: 1e308}).noise == 0.0


def test_order_on_a_plateau_is_no_skill() -> None:
    rng = np.random.default_rng(0)
    noise = np.full(24, 0.01)
    values = 2.3 + 0.01 * rng.normal(size=24)
    loss = values[:, None] + 0.003 * rng.normal(size=(24, 1))  # a plateau's order, kept
    assert RankPredictor().fit({"loss": loss}, values).skill > 0.8
    blind = RankPredictor().fit({"loss": loss}, values, noise=noise)
    assert blind.skills["loss",] < 0.75
    values[:8] -= np.linspace(0.2, 1.0, 8)  # who leaves it later, in no order of the loss
    assert RankPredictor().fit({"loss": loss}, values, noise=noise).chosen == ()


def complete(number: int, value: float, reports: dict[int, float]) -> TrialView:
    trial = view(state=TrialState.COMPLETE, value=value, intermediate_values=reports)
    return replace(trial, number=number)


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
    model = StepModel(plateau_that_three_leave(), 0, ["loss"], 1, RankPredictor())
    assert model.chosen == ()
    assert abs(model.predictor.skills["loss",]) < 0.3
    moved = StepModel(plateau_that_three_leave(40.0, 1e-3), 0, ["loss"], 1, RankPredictor())
    assert moved.predictor.skills == pytest.approx(model.predictor.skills, abs=1e-6)
    left = [v for v in plateau_that_three_leave() if v.value > 2.0]  # nobody has
    assert StepModel(left, 0, ["loss"], 1, RankPredictor()).skill > 0.9


def test_noise_as_wide_as_the_margin_makes_no_correlation_above_one() -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)
        values = 2.3 + 0.03 * rng.normal(size=40)
        values[0] = 1.3
        noise = rng.uniform(0.0, 0.06, size=40)
        order = pairwise_order(values, noise, margin=0.05)
        assert rank_correlation(values, values, order) <= 1.0


def test_what_can_never_be_best_and_what_diverged_move_no_margin() -> None:
    base = [complete(i, float(i), {0: float(i)}) for i in range(40)]

    def tied(rows: list[TrialView]) -> float:
        model = StepModel(rows, 0, ["loss"], 1, RankPredictor())
        scores = model.predictor.score_of(np.arange(40.0))
        return float((np.diff(scores) == 0.0).mean())

    assert tied(base) == 0.0
    infeasible = replace(complete(40, -1e3, {0: 0.0}), feasible=False)
    assert tied([*base, infeasible]) == 0.0
    assert tied([*base, replace(infeasible, feasible=True)]) > 0.9
    diverged = [complete(40 + i, math.inf, {0: 1.0}) for i in range(60)]
    assert tied([*base, *diverged]) == 0.0


def test_a_trial_leads_where_hardly_a_feasible_one_was_as_good() -> None:
    rows = [complete(i, float(i), {0: float(i), 2: i + 0.5}) for i in range(20)]
    rows += [replace(complete(20 + i, -1.0, {0: -1.0, 2: -1.0}), feasible=False) for i in range(9)]

    def leads(loss: float, step: int = 0, feasible: bool = True) -> bool:
        trial = replace(view(intermediate_values={step: loss}), feasible=feasible)
        return StepModel(rows, step, ["loss"], 1, RankPredictor()).leads(trial, 0.1)

    assert all(map(leads, [-0.5, 0.5, 1.0]))  # behind none, one, and one and a half
    assert not any(map(leads, [1.5, math.nan, math.inf]))
    assert not leads(0.5, feasible=False)
    # Nobody reported at step 1: what they reported next counts.
    assert leads(1.4, step=1)
    assert not leads(1.6, step=1)


def test_nobody_leads_where_reports_say_the_opposite_of_values() -> None:
    rows = [complete(i, float(i), {0: 1.0, 1: -float(i)}) for i in range(20)]
    assert not StepModel(rows, 0, ["loss"], 1, RankPredictor()).leads(
        view(intermediate_values={0: 0.5}), 0.1
    )


def test_ties_lower_the_weight_and_raise_the_least_chance() -> None:
    values = [0.5, 0.8, 1.1, 1.4, *np.linspace(2.30, 2.31, 6)]
    rows = [complete(i, v, {0: v + 0.001 * i, 1: v}) for i, v in enumerate(values)]
    failed = TrialView.of(
        optuna.create_trial(state=TrialState.FAIL, intermediate_values={0: 9.0, 1: math.inf}), 1
    )
    rows.append(replace(failed, number=10))
    model = StepModel(rows, 0, ["loss"], 1, RankPredictor())
    untied = 1 - (6**3 - 6) / (10**3 - 10)
    assert model.chosen == ("loss",)
    assert model.weight == pytest.approx(model.skill**2 * untied, rel=1e-9)
    assert model.least_chance == pytest.approx(1 / (2 * 10 * untied + 2), rel=1e-9)


def test_the_least_chance_counts_trials_that_have_the_evidence() -> None:
    many = [complete(i, float(i), {0: float(i), 1: float(i)}) for i in range(400)]
    model = StepModel(many, 0, ["loss"], 1, RankPredictor())
    assert model.n_trials == 200  # a fit takes no more
    untied = untied_share(np.arange(400.0), 0.05 * 199 * (1 + 1e-6))
    assert 0.98 < untied < 1.0
    assert model.least_chance == pytest.approx(1 / (2 * 400 * untied + 2), rel=1e-6)

    trials = specs("plateau", 30)
    for trial in trials[::3]:
        trial["user_attrs"] = {}
    models = StudyModels(1, ["displacement"])
    models.update(study_of(trials).trials)
    least = models.at(2).least_chance
    models = StudyModels(1, ["displacement"])
    models.update(study_of([t for t in trials if t["user_attrs"]]).trials)
    assert models.at(2).n_complete == 20
    assert least == pytest.approx(models.at(2).least_chance, rel=0.02)


def test_scores_on_a_grid_depend_on_no_unit() -> None:
    # The median is 20 above the best: the margin is one step of the grid.
    rng = np.random.default_rng(0)
    below, above = rng.integers(10, 30, size=14), rng.integers(31, 60, size=15)
    counts = np.concatenate([[10.0, 30.0], below, above])

    def scores(values: np.ndarray) -> np.ndarray:
        rows = [complete(i, float(v), {0: float(v)}) for i, v in enumerate(values)]
        return StepModel(rows, 0, ["loss"], 1, RankPredictor()).predictor.score_of(values)

    np.testing.assert_allclose(scores(counts / 100), scores(counts))
    np.testing.assert_allclose(scores(-(1 - counts / 100)), scores(counts))


@given(st.lists(st.sampled_from([0.0, 1.0, 2.5, 7.0, math.inf]), min_size=2, max_size=30))
def test_untied_share_is_the_correction_for_ties(values: list[float]) -> None:
    expected = tiecorrect(rankdata(values))
    assert untied_share(np.array(values)) == pytest.approx(expected, abs=1e-12)


def test_untied_share_ties_what_is_within_the_margin() -> None:
    values = np.array([0.0, 0.4, 0.8, 3.0, math.inf, math.inf])
    order = pairwise_order(values, margin=0.5)
    assert order is not None
    ranks = order.exact.sum(axis=1)
    assert untied_share(values, 0.5) == pytest.approx(np.var(ranks) / np.var(np.arange(6)))
    assert untied_share(values[:3], 1.0) == 0.0
    assert untied_share(values[:4]) == 1.0
    assert untied_share(values[:1]) == untied_share(values[:0]) == 0.0


def test_rank_correlation_agrees_with_scipy() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 8, size=30).astype(float), rng.normal(size=30)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(np.ones(5), np.arange(5.0)) == 0.0


def test_leave_one_out_is_what_refitting_without_the_trial_gives() -> None:
    from lyap_optuna.prediction._gaussian_process import GaussianProcess

    rng = np.random.default_rng(1)
    x, weights = rng.normal(size=(30, 2)), np.full(2, 0.5)
    y = x[:, 0] + 0.5 * rng.normal(size=30)
    y = y - y.mean()
    model = GaussianProcess.fit(x, weights, y)
    kernel = np.linalg.inv(model.precision)
    for i in (0, 13, 29):
        rest = np.delete(np.arange(30), i)
        expected = kernel[i, rest] @ np.linalg.solve(kernel[np.ix_(rest, rest)], y[rest])
        assert model.out_of_fold[i] == pytest.approx(expected, abs=1e-8)
    # A fitted row predicts as the kernel says, so further rows are centred consistently.
    mean, _ = model.predict(x)
    np.testing.assert_allclose(mean, y - model.noise * model.alpha, atol=1e-8)


@pytest.mark.parametrize("odd", [1e30, math.inf])
def test_one_diverged_trial_moves_no_other(odd: float) -> None:
    features, values = arrays(40)
    worst = int(np.argmax(values))
    diverged = values.copy()
    diverged[worst] = odd
    calm, wild = RankPredictor().fit(features, values), RankPredictor().fit(features, diverged)
    np.testing.assert_array_equal(calm.out_of_fold.score, wild.out_of_fold.score)
    below = calm.out_of_fold.score < calm.score_of(np.sort(values)[[-2]])
    assert below.sum() > 30
    np.testing.assert_array_equal(
        calm.value_of(calm.out_of_fold.score)[below], wild.value_of(wild.out_of_fold.score)[below]
    )
    assert np.isfinite(wild.value_of(np.array([-9.0, 0.0, 9.0]))).all()


def test_diverged_features_are_ranked_too() -> None:
    features, values = arrays(40)
    worst = int(np.argmax(values))
    features["displacement"][worst] = 50.0
    calm = RankPredictor().fit(features, values).out_of_fold.score
    features["displacement"][worst] = math.inf
    np.testing.assert_array_equal(calm, RankPredictor().fit(features, values).out_of_fold.score)


def test_noise_is_seldom_chosen_and_prunes_little() -> None:
    chosen = 0
    pruned = {1: 0.0, 20: 0.0}  # by checks of a trial whose evidence does not change
    for seed in range(60):
        rng = np.random.default_rng(seed)

        def trial(number: int, rng: np.random.Generator = rng, **options: object) -> TrialView:
            noise = view(
                intermediate_values={0: rng.normal(), 1: 0.0},
                params={"x": rng.normal()},
                distributions={"x": FloatDistribution(-9.0, 9.0)},
                **options,
            )
            return replace(noise, number=number)

        rows = [trial(i, state=TrialState.COMPLETE, value=rng.normal()) for i in range(12)]
        model = StepModel(rows, 0, ["loss", "hyperparameters"], 1, RankPredictor())
        if not model.chosen:
            continue
        chosen += 1
        threshold = model.threshold_score(0.1)
        assert threshold is not None
        for _ in range(50):
            prediction = model.predict(trial(99))
            assert prediction is not None
            now = max(model.probability_below(prediction, threshold), model.least_chance)
            chance = 0.1
            for check in range(1, 21):
                chance = model.weight * now + (1 - model.weight) * chance
                if check in pruned:
                    pruned[check] += (chance < 0.06) / (60 * 50)
    assert 0 < chosen <= 15
    assert pruned[1] < 0.03
    assert 0 < pruned[20] < 0.12


def test_the_skill_of_noise_is_around_zero() -> None:
    skills = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        predictor = RankPredictor().fit({"loss": rng.normal(size=(40, 2))}, rng.normal(size=40))
        skills.append(predictor.skills["loss",])
    assert abs(np.mean(skills)) < 0.1


def test_informative_evidence_alone_is_chosen() -> None:
    features, values = arrays(40)
    predictor = RankPredictor().fit(features, values)
    assert predictor.chosen == ("displacement",)
    assert predictor.skill > 0.8


def test_two_complementary_kinds_are_chosen_together() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 60))
    features = {
        "loss": a[:, None],
        "exponents": rng.normal(size=(60, 2)),
        "displacement": b[:, None],
    }
    predictor = RankPredictor().fit(features, a + b + 0.2 * rng.normal(size=60))
    assert predictor.chosen == ("loss", "displacement")


def test_equal_evidence_leaves_loss_alone() -> None:
    features, values = arrays(40)
    features["loss"] = features["displacement"]
    assert RankPredictor().fit(features, values).chosen == ("loss",)


def test_intervals_cover_what_they_say() -> None:
    covered = []
    for seed in range(20):
        features, values = arrays(240, seed)
        predictor = RankPredictor().fit({k: f[:40] for k, f in features.items()}, values[:40])
        prediction = predictor.predict({k: f[40:] for k, f in features.items()})
        away = np.abs(predictor.score_of(values[40:]) - prediction.score)
        covered.append(np.mean(away < 1.2816 * prediction.spread))
    assert 0.7 < np.mean(covered) < 0.9


def test_missing_constant_and_repeated_columns() -> None:
    features, values = arrays(40)
    d = features["displacement"]
    padded = np.column_stack([d, d, np.ones(40), np.full(40, math.nan)])
    np.testing.assert_allclose(
        RankPredictor().fit({"displacement": padded}, values).out_of_fold.score,
        RankPredictor().fit({"displacement": d}, values).out_of_fold.score,
    )
    gaps = d.copy()
    gaps[::5] = math.nan
    predictor = RankPredictor().fit({"displacement": gaps}, values)
    assert predictor.chosen == ("displacement",)
    prediction = predictor.predict({"displacement": np.full((1, 2), math.nan)})
    assert np.isfinite(prediction.score).all()
    assert np.isfinite(prediction.spread).all()


def test_whether_a_readout_is_missing_is_no_skill_of_exponents() -> None:
    # Half the trials have readouts, of noise, and are better: say, an import of older trials.
    rng = np.random.default_rng(0)
    values = np.arange(40.0)
    exponents = np.where(values < 20, rng.normal(size=40), math.nan)[:, None]
    predictor = RankPredictor().fit({"exponents": exponents}, values)
    assert predictor.chosen == ()
    assert predictor.counts["exponents",] == 20
    assert abs(predictor.skills["exponents",]) < 0.5


def test_too_few_or_equal_values_predict_nothing() -> None:
    features, values = arrays(5)
    assert RankPredictor().fit(features, values).chosen == ()
    features, values = arrays(30)
    predictor = RankPredictor().fit(features, np.ones(30))
    assert predictor.chosen == ()
    with pytest.raises(RuntimeError, match="No evidence"):
        predictor.predict(features)


def test_bad_arrays_are_named() -> None:
    with pytest.raises(ValueError, match="'loss' must have shape \\(3, n_columns\\)"):
        RankPredictor().fit({"loss": np.zeros((2, 1))}, np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        RankPredictor().fit({"loss": np.zeros((2, 1))}, np.array([0.0, math.nan]))


def test_a_capped_fit_predicts_every_row() -> None:
    features, values = arrays(500)
    predictor = RankPredictor().fit(features, values)
    assert predictor.n_trials == 200
    assert predictor.out_of_fold.score.shape == (500,)
    assert rank_correlation(predictor.out_of_fold.score, values) > 0.8


# Steps and refits


def test_steps_are_thinned_after_sixteen_reports() -> None:
    steps = np.arange(100, 100 + 10_000)
    looked_at = {model_step(steps, int(s)) for s in steps}
    assert [model_step(steps, s) for s in range(100, 116)] == list(range(100, 116))
    assert model_step(steps, 133) == 132
    assert len(looked_at) < 16 * 11
    assert all(model_step(steps, int(s)) <= s for s in steps)
    assert model_step(steps, 99) is None
    assert model_step(steps, None) is None


def test_refits_grow_by_a_tenth() -> None:
    assert [refit_size(n) for n in (0, 1, 7, 19, 20, 21, 22, 23, 32, 33)] == [
        0, 1, 7, 19, 20, 20, 22, 22, 30, 33,
    ]  # fmt: skip
    sizes = {refit_size(n) for n in range(1, 1001)}
    assert len(sizes) < 70


def test_finished_trials_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(specs("easy", 12))
    models = StudyModels(1, ("loss",))
    models.update(study.get_trials(deepcopy=False))
    read = []
    original = TrialView.of.__func__
    monkeypatch.setattr(
        TrialView, "of", classmethod(lambda cls, t, sign: read.append(t) or original(cls, t, sign))
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
    assert [v.number for v in models.finished if v.value is None] == [3]
    assert models.at(1).n_complete == 8
    assert math.isinf(models.at(1).values.max())


# Skill


def chosen(study: optuna.study.Study, step: int) -> list[str]:
    return [s.evidence for s in prediction_skill(study) if s.chosen and s.step == step]


def test_displacement_is_chosen_on_a_plateau() -> None:
    study = study_of(specs("plateau", 40))
    assert chosen(study, 1) == ["displacement"]
    skills = {s.evidence: s for s in prediction_skill(study) if s.step == 1}
    assert skills["displacement"].rank_correlation > 0.8
    assert skills["displacement"].n_trials == 40
    assert abs(skills["loss"].rank_correlation) < 0.4


def test_loss_is_chosen_on_an_easy_task() -> None:
    assert chosen(study_of(specs("easy", 40)), 3) == ["loss"]


def test_nothing_is_chosen_from_noise() -> None:
    assert not any(
        s.chosen for s in prediction_skill(study_of(specs("noise", 40)), steps=[0, 1, 2])
    )


def test_skill_without_readouts_says_so() -> None:
    skills = prediction_skill(study_of(specs("easy", 20, readouts=False)), steps=[2])
    by_kind = {s.evidence: (s.rank_correlation, s.n_trials) for s in skills}
    assert by_kind["exponents"] == by_kind["displacement"] == (None, 0)


def test_skill_of_the_kinds_asked_for() -> None:
    skills = prediction_skill(study_of(specs("plateau", 40)), evidence=["loss", "exponents"])
    assert {s.evidence for s in skills} == {"loss", "exponents"}


def test_skill_of_an_empty_study_is_empty() -> None:
    assert prediction_skill(optuna.create_study()) == []


def test_loops_from_zero_and_one_have_the_same_skill() -> None:
    zero = prediction_skill(study_of(specs("plateau", 30, first=0)))
    one = prediction_skill(study_of(specs("plateau", 30, first=1)))
    assert [(s.step + 1, s.evidence, s.rank_correlation) for s in zero] == [
        (s.step, s.evidence, s.rank_correlation) for s in one
    ]


def test_a_value_does_not_depend_on_the_scores_asked_beside_it() -> None:
    rng = np.random.default_rng(0)
    values = np.append(rng.uniform(1.0, 2.0, 30), 1e6)
    predictor = RankPredictor().fit({"loss": rng.normal(size=(31, 1))}, values)
    scores = np.array([-5.0, -0.3, 0.0, 2.0, 2.1, 5.0])
    alone = [float(predictor.value_of(np.array([score]))[0]) for score in scores]
    assert predictor.value_of(scores).tolist() == alone
    assert np.diff(alone).min() >= 0.0


def test_values_go_beyond_the_ends_and_stay_finite() -> None:
    rng = np.random.default_rng(0)
    values = np.geomspace(1e-30, 1e300, 12)
    predictor = RankPredictor().fit({"loss": rng.normal(size=(12, 1))}, values)
    beyond = predictor.value_of(np.array([-9.0, 9.0]))
    assert np.isfinite(beyond).all()
    assert 0.0 <= beyond[0] < values[0]
