"""The posterior against a plain one, the scale of scores, and what the pruner asks of a chance."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm, rankdata
from sklearn.gaussian_process.kernels import RBF, DotProduct

from lyap_optuna.prediction import _posterior
from lyap_optuna.prediction._posterior import (
    LENGTH,
    PRIOR_WEIGHT,
    Columns,
    Posterior,
    Prediction,
    kernel,
    shares_prior,
)
from lyap_optuna.prediction._scores import Scale, normal_scores, rank_correlation
from lyap_optuna.pruner import is_audited, required_chance

Arrays = dict[str, np.ndarray]


def arrays(n: int, seed: int = 0) -> tuple[Arrays, np.ndarray]:
    """Three kinds of evidence, of which displacement tells the score."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n)
    features = {
        "loss": rng.normal(size=(n, 2)),
        "exponents": rng.normal(size=(n, 2)),
        "displacement": y[:, None] + 0.3 * rng.normal(size=(n, 2)),
    }
    return features, y


# The plain posterior -----------------------------------------------------------------------------


def standard(fitted: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Columns without ties and gaps as standardised normal scores."""
    n = len(fitted)
    columns = []
    for known, column in zip(fitted.T, rows.T, strict=True):
        at = np.array([((known < v).mean() + (known <= v).mean()) / 2 for v in column])
        scores = norm.ppf((rankdata(known) - 0.5) / n)
        raw = norm.ppf(at.clip(0.5 / n, 1 - 0.5 / n))
        columns.append((raw - scores.mean()) / scores.std())
    return np.stack(columns, axis=1)


class Plain:
    """The joint normal distribution of fitted and further trials under given shares."""

    def __init__(
        self,
        shares: np.ndarray,
        features: Arrays,
        y: np.ndarray,
        prior: np.ndarray,
        more: Arrays | None = None,
        more_prior: np.ndarray | None = None,
    ) -> None:
        n = len(y)
        m = standard(prior[:, None], np.concatenate([prior, prior if more is None else more_prior])
                     [:, None])[:, 0]  # fmt: skip
        if more is None:
            m = m[:n]
        self.y = y
        self.mean = y.mean() + PRIOR_WEIGHT * m
        self.covariance = shares[-1] * np.eye(len(m)) + PRIOR_WEIGHT**2 * np.outer(m, m)
        for share, (kind, x) in zip(shares[:-1], features.items(), strict=True):
            rows = standard(x, x if more is None else np.concatenate([x, more[kind]]))
            self.covariance += share * kernel(rows, rows)

    def given(self, known: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and variances of those ``asked``, given the values of those ``known``."""
        gain = self.covariance[np.ix_(asked, known)] @ np.linalg.inv(
            self.covariance[np.ix_(known, known)]
        )
        means = self.mean[asked] + gain @ (self.y[known] - self.mean[known])
        rest = self.covariance[np.ix_(asked, asked)] - gain @ self.covariance[np.ix_(known, asked)]
        return means, np.diag(rest)

    def log_likelihood(self, rows: np.ndarray) -> float:
        distribution = multivariate_normal(
            self.mean[rows], self.covariance[np.ix_(rows, rows)], allow_singular=False
        )
        return float(distribution.logpdf(self.y[rows]))


SHARES = np.array([0.1, 0.2, 0.4, 0.3])


@pytest.fixture
def one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_posterior, "shares_prior", lambda kinds: SHARES[None])


@pytest.fixture
def every_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_posterior, "_REACH", math.inf)


@pytest.mark.usefixtures("one_draw")
def test_predictions_are_those_of_the_plain_posterior() -> None:
    features, y = arrays(30)
    more, _ = arrays(12, seed=1)
    prior, more_prior = np.random.default_rng(2).normal(size=30), np.linspace(-2.0, 2.0, 12)
    found = Posterior(features, y, prior).predict(more, more_prior)
    plain = Plain(SHARES, features, y, prior, more, more_prior)
    means, variances = plain.given(np.arange(30), np.arange(30, 42))
    np.testing.assert_allclose(found.mean, means, atol=1e-4)
    np.testing.assert_allclose(found.spread, np.sqrt(variances), rtol=1e-4)


@pytest.mark.usefixtures("one_draw")
def test_out_of_fold_predictions_are_those_with_the_trial_really_left_out() -> None:
    features, y = arrays(30)
    prior = np.random.default_rng(2).normal(size=30)
    found = Posterior(features, y, prior).out_of_fold
    plain = Plain(SHARES, features, y, prior)
    for i in range(30):
        mean, variance = plain.given(np.delete(np.arange(30), i), np.array([i]))
        assert found.mean[i] == pytest.approx(mean[0], abs=1e-4)
        assert found.spread[i] == pytest.approx(math.sqrt(variance[0]), rel=1e-4)


@pytest.mark.usefixtures("every_draw")
def test_draws_weigh_what_they_make_of_the_values() -> None:
    features, y = arrays(20)
    prior = np.random.default_rng(2).normal(size=20)
    draws = shares_prior(3)
    plain = [Plain(shares, features, y, prior) for shares in draws]
    posterior = Posterior(features, y, prior)

    def weights(rows: np.ndarray) -> np.ndarray:
        logs = np.array([p.log_likelihood(rows) for p in plain])
        return np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()

    everyone = np.arange(20)
    np.testing.assert_allclose(posterior.predict(features).weights[:, 0], weights(everyone),
                               rtol=1e-2, atol=1e-4)  # fmt: skip
    unseen = posterior.out_of_fold.weights
    for i in range(20):
        np.testing.assert_allclose(unseen[:, i], weights(np.delete(everyone, i)), rtol=1e-2,
                                   atol=1e-4)  # fmt: skip


def test_draws_that_are_left_out_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, y = arrays(40)
    few = Posterior(features, y)
    monkeypatch.setattr(_posterior, "_REACH", math.inf)
    every = Posterior(features, y)
    np.testing.assert_allclose(few.out_of_fold.mean, every.out_of_fold.mean, atol=2e-2)
    np.testing.assert_allclose(
        few.predict(features).chance_below(-1.0),
        every.predict(features).chance_below(-1.0),
        atol=5e-3,
    )


def test_the_mixture_is_what_sampling_it_finds() -> None:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(5), size=3).T
    mixture = Prediction(weights, rng.normal(size=(5, 3)), rng.uniform(0.3, 2.0, size=(5, 3)))
    for i in range(3):
        drawn = rng.choice(5, p=weights[:, i], size=200_000)
        sampled = mixture.means[drawn, i] + mixture.spreads[drawn, i] * rng.normal(size=200_000)
        assert mixture.mean[i] == pytest.approx(sampled.mean(), abs=0.02)
        assert mixture.spread[i] == pytest.approx(sampled.std(), abs=0.02)
        for score in (-1.5, -0.3, 1.0):
            below = (sampled < score).mean()
            assert mixture.chance_below(score)[i] == pytest.approx(below, abs=0.005)


def test_trials_predicted_in_blocks_are_predicted_as_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, y = arrays(25)
    more, prior = arrays(17, seed=1)
    posterior = Posterior(features, y, y[::-1].copy())
    at_once = posterior.predict(more, prior)
    monkeypatch.setattr(_posterior, "_AT_ONCE", 1)
    one_by_one = posterior.predict(more, prior)
    np.testing.assert_allclose(one_by_one.means, at_once.means, atol=1e-12)
    np.testing.assert_allclose(one_by_one.spreads, at_once.spreads, atol=1e-12)


def test_the_kernel_is_a_line_a_curve_in_each_column_and_a_joint_one() -> None:
    a, b = (np.random.default_rng(seed).normal(size=(n, 3)) for seed, n in ((0, 9), (1, 5)))
    line = DotProduct(0.0)(a, b) / 3
    curves = sum(RBF(LENGTH)(a[:, [j]], b[:, [j]]) for j in range(3)) / 3
    joint = RBF(LENGTH * math.sqrt(3))(a, b)
    np.testing.assert_allclose(kernel(a, b), (line + curves + joint) / 3)


@pytest.mark.parametrize("columns", [1, 2, 7])
def test_kernels_of_standardised_columns_have_a_mean_variance_of_one(columns: int) -> None:
    x = Columns(np.random.default_rng(0).normal(size=(40, columns))).fitted
    matrix = kernel(x, x)
    assert np.diag(matrix).mean() == pytest.approx(1.0)
    assert np.linalg.eigvalsh(matrix).min() > -1e-9
    np.testing.assert_allclose(np.diag(matrix), _posterior._own(x))


# Shares ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [0, 1, 2, 4])
def test_draws_of_shares_are_sparse_and_fair(kinds: int) -> None:
    draws = shares_prior(kinds)
    np.testing.assert_allclose(draws.sum(axis=1), 1.0)
    assert (draws >= 0).all()
    of_kinds = draws[:, :-1].mean(axis=0)  # no kind is favoured
    np.testing.assert_allclose(of_kinds, (1 - draws[:, -1].mean()) / max(kinds, 1), atol=1e-9)
    assert all(np.array_equal(np.sort(draws[:, k]), np.sort(draws[:, 0])) for k in range(kinds))
    assert shares_prior(kinds) is draws
    with pytest.raises(ValueError):
        draws[0, 0] = 1.0


def test_a_telling_kind_has_a_large_share_and_a_worthless_one_a_small_one() -> None:
    for seed in range(5):
        shares = Posterior(*arrays(60, seed)).shares
        assert shares["displacement"] > 0.5
        assert shares["loss"] < 0.3
        assert shares["exponents"] < 0.3
        assert sum(shares.values()) <= 1.0


@given(
    st.integers(4, 30),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.03, 0.3, 1.0, 10.0]),
    st.lists(st.floats(0, 1), min_size=1, max_size=5).map(sorted),
)
def test_quantiles_of_a_share_ascend_within_its_draws(
    n: int, seed: int, noise: float, levels: list[float]
) -> None:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n)
    features = {
        kind: scale * y[:, None] + rng.normal(size=(n, 2))
        for kind, scale in (("loss", 0.0), ("exponents", noise), ("displacement", noise**2))
    }
    posterior = Posterior(features, y)
    found = posterior.share_quantiles(0.0, *levels, 1.0)
    for kind, mean in posterior.shares.items():
        assert list(found[kind]) == sorted(found[kind])
        assert 0 <= found[kind][0] <= mean + 1e-9
        assert mean - 1e-9 <= found[kind][-1] <= 1
    weights, shares = posterior._weights[:, 0], posterior._shares[:, 0]
    median = posterior.share_quantiles(0.5)["loss"][0]
    assert weights[shares < median - 1e-12].sum() <= 0.5 + weights.max()
    assert weights[shares > median + 1e-12].sum() <= 0.5 + weights.max()


def test_two_kinds_that_tell_a_half_each_share_it() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 80))
    shares = Posterior(
        {"loss": a[:, None], "exponents": rng.normal(size=(80, 2)), "displacement": b[:, None]},
        (a + b) / math.sqrt(2),
    ).shares
    assert shares["loss"] > 0.2
    assert shares["displacement"] > 0.2
    assert shares["exponents"] < shares["loss"]


def test_noise_foretells_nothing_and_is_nearly_certain_of_no_one() -> None:
    correlations, chances = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        posterior = Posterior(
            {"loss": rng.normal(size=(20, 2)), "hyperparameters": rng.normal(size=(20, 4))},
            y := rng.normal(size=20),
        )
        correlations.append(rank_correlation(posterior.out_of_fold.mean, y))
        more = {"loss": rng.normal(size=(50, 2)), "hyperparameters": rng.normal(size=(50, 4))}
        chances.append(posterior.predict(more).chance_below(norm.ppf(0.1)))
    assert -0.5 < np.mean(correlations) < 0.1
    assert np.mean(chances) == pytest.approx(0.1, abs=0.05)
    assert (np.array(chances) < 0.005).mean() < 0.05


def test_intervals_cover_what_they_say() -> None:
    covered = []
    for seed in range(20):
        features, y = arrays(240, seed)
        posterior = Posterior({k: f[:40] for k, f in features.items()}, y[:40])
        predicted = posterior.predict({k: f[40:] for k, f in features.items()})
        covered.append(np.mean(np.abs(y[40:] - predicted.mean) < 1.2816 * predicted.spread))
    assert 0.7 < np.mean(covered) < 0.9


def test_evidence_that_says_the_opposite_is_heard() -> None:
    # As well as the one: both make the values likely, and disagree about what is new.
    y = norm.ppf((np.arange(14) + 0.5) / 14)
    features = {"loss": y[:, None], "hyperparameters": -y[:, None]}
    more = {"loss": np.array([[2.0]]), "hyperparameters": np.array([[2.0]])}
    (chance,) = Posterior(features, y).predict(more).chance_below(-1.28)
    assert chance > 0.05


def test_the_prior_mean_is_believed_until_trials_speak() -> None:
    rng = np.random.default_rng(0)
    distance = rng.normal(size=200)
    noise = {"loss": rng.normal(size=(200, 1))}
    few = {k: x[:6] for k, x in noise.items()}
    near, far = (
        Posterior(few, rng.normal(size=6), distance[:6]).predict(
            {"loss": np.zeros((1, 1))}, np.array([at])
        )
        for at in (-3.0, 3.0)
    )
    assert near.mean[0] < far.mean[0]
    opposite = Posterior(noise, -distance, distance).predict(
        {"loss": np.zeros((2, 1))}, np.array([-2.0, 2.0])
    )
    assert opposite.mean[0] > opposite.mean[1] + 0.5


# Columns -----------------------------------------------------------------------------------------


def test_constant_columns_go_and_equal_ones_count_once() -> None:
    d = np.random.default_rng(0).normal(size=(40, 2))
    padded = np.column_stack([d, np.exp(d[:, 0]), np.ones(40), np.full(40, math.nan)])
    np.testing.assert_allclose(Columns(padded).fitted, Columns(d).fitted)
    assert Columns(np.ones((5, 3))).fitted.shape == (5, 0)


def test_what_is_missing_is_the_mean_and_said_to_be_missing() -> None:
    d = np.random.default_rng(0).normal(size=(40, 2))
    d[::4, 0] = math.nan
    d[8] = math.nan  # has none at all: unknown
    columns = Columns(d)
    assert columns.fitted.shape == (40, 4)
    expected = np.where(np.arange(40)[::4] == 8, math.nan, 0.0)
    np.testing.assert_array_equal(columns.fitted[::4, 0], expected)
    assert len(np.unique(columns.fitted[:, 1])) == len(np.unique(columns.fitted[:, 3])) == 2
    np.testing.assert_allclose(columns(d), columns.fitted)
    rows = columns(np.array([[math.nan, d[0, 1]], [math.nan, math.nan]]))
    np.testing.assert_allclose(rows, columns.fitted[[0, 8]])


@pytest.mark.parametrize("n_lacking", [0, 1, 4, 15])
@pytest.mark.parametrize("telling", ["loss", "displacement"])
def test_who_lacks_the_evidence_that_tells_all_is_as_uncertain_as_without_it(
    n_lacking: int, telling: str
) -> None:
    rng = np.random.default_rng(n_lacking)
    y = norm.ppf((rng.permutation(45) + 0.5) / 45)
    features = {
        "loss": rng.normal(size=(45, 1)),
        "displacement": rng.normal(size=(45, 2)),
        "hyperparameters": rng.normal(size=(45, 3)),
    }
    width = features[telling].shape[1]
    features[telling] = y[:, None] + 0.03 * rng.normal(size=(45, width))
    features[telling][:n_lacking] = np.nan
    posterior = Posterior(features, y)
    assert posterior.shares[telling] > 0.5
    further = {kind: rng.normal(size=(20, x.shape[1])) for kind, x in features.items()}
    further[telling] = np.repeat(further[telling][:, :1], width, axis=1)
    further[telling][10:] = np.nan
    predicted = posterior.predict(further)
    assert predicted.spread[:10].max() < 0.5
    assert predicted.spread[10:].min() > 0.7
    assert np.abs(predicted.mean[10:]).max() < 0.8
    top = float(norm.ppf(0.1))
    assert predicted.chance_below(top)[10:] == pytest.approx(0.1, abs=0.09)
    if n_lacking > 1:  # nor do those that lack it vouch for one another
        assert posterior.out_of_fold.spread[:n_lacking].min() > 0.7


def test_a_column_that_no_trial_to_learn_from_lacked_is_unknown_where_it_is_missing() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    y = norm.ppf((rankdata(x[:, 0]) - 0.5) / 40)
    posterior = Posterior({"hyperparameters": x}, y)
    row = np.array([[-1.0, 0.3], [np.nan, 0.3], [-1.0, np.nan]])
    told, *unknown = posterior.predict({"hyperparameters": row}).spread
    assert told < 0.5 < 0.7 < min(unknown)


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_kernels_with_unknown_values_are_covariances(columns: int) -> None:
    rng = np.random.default_rng(columns)
    a = rng.normal(size=(60, columns))
    a[rng.random(a.shape) < 0.3] = np.nan
    full = kernel(a, a)
    np.fill_diagonal(full, _posterior._own(a))
    assert np.linalg.eigvalsh(full).min() > -1e-9
    assert np.isfinite(full).all()


def test_where_a_constant_is_missing_the_prior_mean_says_nothing() -> None:
    features, y = arrays(30)
    prior = np.where(np.arange(30) % 3 == 0, np.nan, 16.0)
    with_it, without = Posterior(features, y, prior), Posterior(features, y)
    row = {kind: x[:3] for kind, x in features.items()}
    expected = without.predict(row).mean
    assert with_it.predict(row, np.array([np.nan, 16.0, 1.0])).mean == pytest.approx(expected)


@pytest.mark.parametrize("odd", [1e300, math.inf])
def test_features_are_ranked(odd: float) -> None:
    features, y = arrays(40)
    worst = int(np.argmax(features["displacement"][:, 0]))
    calm = Posterior(features, y).out_of_fold.mean
    features["displacement"][worst, 0] = odd
    np.testing.assert_array_equal(calm, Posterior(features, y).out_of_fold.mean)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_trials_and_columns_means_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, y = arrays(30, seed)
    features["exponents"][::3, 1] = math.nan
    prior = features["exponents"][:, 1]
    rows = rng.permutation(30)
    shuffled = {k: x[rows][:, rng.permutation(x.shape[1])] for k, x in features.items()}
    plain, other = Posterior(features, y, prior), Posterior(shuffled, y[rows], prior[rows])
    for a, b in ((plain.out_of_fold, other.out_of_fold), (
        plain.predict(features, prior), other.predict(shuffled, prior[rows])
    )):  # fmt: skip
        np.testing.assert_allclose(a.mean[rows], b.mean, atol=1e-9)
        np.testing.assert_allclose(a.spread[rows], b.spread, atol=1e-9)
        np.testing.assert_allclose(a.chance_below(-1.0)[rows], b.chance_below(-1.0), atol=1e-9)
    for kind, share in plain.shares.items():
        assert other.shares[kind] == pytest.approx(share, abs=1e-9)


def test_without_evidence_that_varies_everyone_is_average() -> None:
    y = np.array([1.0, 2.0, 4.0])
    posterior = Posterior({"loss": np.ones((3, 1))}, y)
    assert posterior.kinds == ()
    assert posterior.shares == {}
    np.testing.assert_allclose(posterior.predict({"loss": np.zeros((2, 1))}).mean, y.mean())


def test_bad_arrays_are_named() -> None:
    with pytest.raises(ValueError, match="'loss' must have shape \\(3, n_columns\\)"):
        Posterior({"loss": np.zeros((2, 1))}, np.zeros(3))


# Scores ------------------------------------------------------------------------------------------

VALUES = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, 2.5, math.inf]), st.floats(-1e6, 1e6)), min_size=1
)


@given(VALUES)
def test_scores_are_the_normal_quantiles_of_mid_ranks(values: list[float]) -> None:
    v = np.array(values)
    expected = norm.ppf((rankdata(v) - 0.5) / len(v))
    np.testing.assert_allclose(normal_scores(v, np.sort(v)), expected, atol=1e-9)


@given(VALUES, st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_scores_depend_on_order_alone(values: list[float], more: list[float]) -> None:
    # Ranks are an order-preserving map of whatever was there, and so is where others fall.
    reference, asked = np.sort(values), np.array(more)
    everything = np.unique(np.concatenate([reference, asked]))
    ranks = [np.searchsorted(everything, part).astype(float) for part in (asked, reference)]
    np.testing.assert_array_equal(normal_scores(asked, reference), normal_scores(*ranks))


@given(VALUES, st.floats(0.0, 10.0))
def test_scores_ascend_and_are_finite(values: list[float], margin: float) -> None:
    reference = np.sort(values)
    asked = np.array([-math.inf, *reference, math.inf])
    scores = normal_scores(asked, reference, margin)
    assert np.isfinite(scores).all()
    assert (np.diff(scores) >= 0).all()


def test_scores_within_the_margin_are_shared_and_nan_stays() -> None:
    reference = np.array([0.5, 2.3, 2.301, 2.302, 3.0, np.inf])
    exact = normal_scores(reference, reference)
    tied = normal_scores(reference, reference, margin=0.1)
    np.testing.assert_allclose(tied[1:4], exact[2])
    np.testing.assert_allclose(tied[[0, 4, 5]], exact[[0, 4, 5]])
    assert np.isnan(normal_scores(np.array([math.nan]), reference)).all()


def scale(values: Any, feasible: Any = None) -> Scale:
    values = np.asarray(values, dtype=np.float64)
    return Scale.of(values, np.ones(len(values), np.bool_) if feasible is None else feasible)


@given(
    st.lists(st.one_of(st.just(math.inf), st.floats(-1e9, 1e9)), min_size=2, max_size=30).filter(
        lambda values: min(values) < math.inf
    ),
    st.lists(st.floats(-4.0, 4.0), min_size=2, max_size=10),
)
def test_from_scores_to_values(values: list[float], scores: list[float]) -> None:
    of = scale(values)
    lowest, highest = min(values), max(v for v in values if v < math.inf)
    asked = sorted(scores)
    found = [of.value_of(s) for s in asked]
    assert found == sorted(found)
    assert all(value in values and math.isfinite(value) for value in found)
    lower, upper = [of.lower_of(s) for s in asked], [of.upper_of(s) for s in asked]
    for ends, open_end in ((lower, -math.inf), (upper, math.inf)):
        closed = [open_end if end is None else end for end in ends]
        assert closed == sorted(closed)
        assert all(end is None or math.isfinite(end) for end in ends)
    assert of.lower_of(-9.0) is None
    assert of.upper_of(9.0) is None
    assert of.lower_of(9.0) == highest  # a further end than all
    assert of.upper_of(-9.0) == lowest
    for low, value, high in zip(lower, values, upper, strict=False):
        assert low is None or high is None or low <= high, value


def test_the_margin_ties_a_plateau_once_one_has_left_it() -> None:
    plateau = np.linspace(2.30, 2.33, 20)
    assert len(set(scale(plateau).tied_score_of(plateau))) == 20
    left = scale([*plateau, 1.0])
    assert len(set(left.tied_score_of(plateau))) == 1


@given(
    st.lists(
        st.one_of(st.just(math.inf), st.integers(-50, 50).map(float), st.floats(-1e6, 1e6)),
        min_size=1,
        max_size=30,
    )
)
def test_drawn_scores_are_orders_that_the_margin_allows(values: list[float]) -> None:
    of, given = scale(values), np.array(values)
    drawn = of.draws(given, 16)
    np.testing.assert_array_equal(drawn, of.draws(given, 16))
    distinct = normal_scores(np.arange(len(given)), np.arange(len(given)))
    np.testing.assert_allclose(np.sort(drawn, axis=1), np.broadcast_to(distinct, drawn.shape))
    # Rounding of values apart by twice the margin, to the bit, may go either way.
    apart = given[:, None] + 2 * of.margin * (1 + 1e-9) + 1e-9 < given
    assert (drawn[:, :, None] < drawn[:, None, :])[:, apart].all()


def test_what_is_equal_stands_in_every_order() -> None:
    values = np.array([0.0, 1.0, 1.0, 1.0, math.inf, math.inf])
    ranks = scale(values).draws(values, 400).argsort(axis=1)
    orders = {tuple(row) for row in ranks}
    assert len(orders) == 12  # 3! of the equal ones, 2! of those that diverged


def test_evidence_that_orders_a_plateau_alone_explains_nothing() -> None:
    rng = np.random.default_rng(0)
    values = np.append(rng.uniform(2.30, 2.33, size=24), [1.0, 0.5])  # two have left it
    told = {"loss": values[:, None] + 1e-6 * rng.normal(size=(26, 1))}
    of = scale(values)
    known = Posterior(told, of.score_of(values)).shares["loss"]
    drawn = Posterior(told, of.draws(values, 64)).shares["loss"]
    assert known > 0.9
    assert drawn < 0.7


def test_what_can_never_be_best_and_what_diverged_move_no_margin() -> None:
    base = list(np.arange(40.0))

    def tied(values: list[float], feasible: Any = None) -> float:
        of = scale(values, feasible)
        return float((np.diff(of.tied_score_of(np.arange(40.0))) == 0.0).mean())

    assert tied(base) == 0.0
    assert tied([*base, -1e3], np.array([True] * 40 + [False])) == 0.0
    assert tied([*base, -1e3]) > 0.9
    assert tied([*base, *[math.inf] * 60]) == 0.0


@pytest.mark.parametrize(("offset", "unit"), [(0.0, 0.01), (-1.0, 0.01), (7.0, 1e3)])
def test_scores_on_a_grid_depend_on_no_unit(offset: float, unit: float) -> None:
    # The median is 20 above the best: the margin is one step of the grid.
    rng = np.random.default_rng(0)
    below, above = rng.integers(10, 30, size=14), rng.integers(31, 60, size=15)
    counts = np.concatenate([[10.0, 30.0], below, above])
    moved = offset + unit * counts
    np.testing.assert_allclose(
        scale(moved).tied_score_of(moved), scale(counts).tied_score_of(counts)
    )


def test_the_best_are_the_best_feasible() -> None:
    feasible = np.arange(40) >= 20
    of = scale(np.arange(40.0), feasible)
    score = of.threshold(0.1)
    assert score is not None
    assert 20 <= of.value_of(score) <= 23
    assert scale(np.arange(4.0), np.zeros(4, np.bool_)).threshold(0.1) is None


# What the pruner asks ----------------------------------------------------------------------------


UNIT = st.floats(0.0, 1.0)


@given(UNIT, UNIT, UNIT, st.integers(1, 500), st.data())
def test_the_chance_that_a_trial_needs(
    a: float, b: float, explained: float, total: int, data: st.DataObject
) -> None:
    done = data.draw(st.integers(0, total - 1))
    low, high = min(a, b), max(a, b)
    assert 0.0 <= required_chance(a, explained, done, total) < math.inf
    assert required_chance(0.0, explained, done, total) == 0.0
    assert required_chance(a, 0.0, done, total) == 0.0
    for one, other in (
        ((low, explained), (high, explained)),
        ((explained, low), (explained, high)),
    ):
        assert required_chance(*one, done, total) <= required_chance(*other, done, total)


@pytest.mark.parametrize("total", [4, 10, 100])
def test_little_is_asked_where_little_is_left_to_save(total: int) -> None:
    needed = [required_chance(0.1, 1.0, done, total) for done in range(total)]
    assert needed[-1] <= needed[total // 2]
    assert needed[-1] <= 2 * 0.1 / total * (1 + 1e-9)


@pytest.mark.parametrize("share", [0.05, 0.1, 1 / 3, 0.5, 0.9])
def test_audits_are_spread_evenly_over_numbers(share: float) -> None:
    numbers = np.cumsum([is_audited(number, share) for number in range(3000)])
    n = np.arange(1, 3001)
    assert np.abs(numbers - share * n).max() <= 3
    more = [is_audited(number, 1.1 * share) for number in range(3000)]
    assert all(m or not is_audited(i, share) for i, m in enumerate(more))


def test_nobody_and_everybody_can_be_audited() -> None:
    assert not any(is_audited(number, 0.0) for number in range(1000))
    assert all(is_audited(number, 1.0) for number in range(1000))
