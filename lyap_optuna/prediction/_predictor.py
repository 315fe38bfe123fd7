"""The predictor: arrays in, predictions on the normal-score scale out. It knows no study.

A later and better predictor takes the place of :class:`RankPredictor` by offering what
:class:`Predictor` asks for.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from lyap_optuna.prediction._gaussian_process import Columns, GaussianProcess
from lyap_optuna.prediction._scores import (
    normal_quantile,
    pairwise_order,
    rank_correlation,
    scores_within,
)
from lyap_optuna.prediction.evidence.base import FloatArray

MAX_FIT_TRIALS = 200
"""Trials that a fit uses at most, evenly spaced in the order of their values, best and worst
among them. The cost of a fit grows with their cube."""

MIN_FIT_TRIALS = 6
"""Below that many COMPLETE trials nothing has measurable skill."""

SIGNIFICANCE = 2.0
"""Evidence has skill where its rank correlation exceeds this many standard errors of a
correlation that is truly zero, 1 / sqrt(n - 1). That is low: of two worthless kinds one
passes in up to a quarter of studies of 12 trials. But what passes is weighed by its squared
correlation, and discounted: over all such studies it ends less than 3 % of trials at one check
and less than 12 % at 20 checks of evidence that does not change
(``test_noise_is_seldom_chosen_and_prunes_little`` asserts these numbers)."""

LOSS_SIGNIFICANCE = 1.25
"""The same for the loss alone, the one kind that is expected to have skill."""

DISCOUNT = 1.28
"""Predictions are made as if the skill were this many standard errors (of Fisher's z,
1 / sqrt(n - 3)) lower than measured: the lower end of its one-sided 90 % interval."""

LOSS_DISCOUNT = 0.25
"""The same for the loss alone: it is where the choice starts, not the best of several."""

MARGIN = 1.0
"""Richer evidence replaces a simpler one where its correlation is larger by this many standard
errors of their difference (Meng, Rosenthal and Rubin 1992) ..."""

MIN_GAIN = 0.02
"""... and by at least this much."""


INTERVAL = normal_quantile(0.9)
"""Half-width of the central 80 % interval of a normal distribution, in standard deviations."""


@dataclass(frozen=True)
class Prediction:
    """Predictions of n trials on the normal-score scale, smaller is better.

    Args:
        score: Medians, shape (n,).
        spread: Standard deviations, calibrated on out-of-fold residuals, shape (n,).
    """

    score: FloatArray
    spread: FloatArray


class Predictor(Protocol):
    """What the pruner and the ranking ask of a predictor.

    ``features`` map each kind of evidence to a matrix of shape (n, n_columns), NaN where
    missing. ``values`` are oriented (smaller is better), infinity allowed, shape (n,); ``noise``
    is the standard deviation of a loss of each row, shape (n,); values nearer than ``margin`` are
    equally good.
    """

    chosen: tuple[str, ...]
    """Kinds of evidence used; empty where none has skill, and then nothing is predicted."""

    skill: float
    """Out-of-sample rank correlation of ``chosen``."""

    skills: dict[tuple[str, ...], float]
    """The same for every combination that was tried and has any usable feature."""

    counts: dict[tuple[str, ...], int]
    """Trials behind each of them: those that have the evidence."""

    n_trials: int
    """Trials behind the skill."""

    half_width: float
    """Half-width of the central 80 % interval in spreads."""

    out_of_fold: Prediction
    """Predictions of the fitted rows by models that have not seen their value."""

    def fit(
        self,
        features: Mapping[str, FloatArray],
        values: FloatArray,
        scored: npt.NDArray[np.bool_] | None = None,
        noise: FloatArray | None = None,
        margin: float = 0.0,
    ) -> Self:
        """Learn; ``scored`` marks the rows that count for the skill (all, by default)."""
        ...

    def predict(self, features: Mapping[str, FloatArray]) -> Prediction:
        """Predict further rows. Only where ``chosen`` is not empty."""
        ...

    def score_of(self, values: FloatArray) -> FloatArray:
        """Return the normal scores of oriented values among those fitted."""
        ...

    def value_of(self, scores: FloatArray) -> FloatArray:
        """Return the oriented values at normal scores, always finite."""
        ...


class RankPredictor:
    """Chooses evidence by its out-of-sample skill, and predicts by a Gaussian process on ranks.

    Features and values enter as normal scores (the normal quantile of the rank), so that one
    diverged trial moves no other; losses and values that are nearer to one another than their
    noise share a score, and values that are equally good too, so that the order of trials that
    rest on one plateau counts for nothing.
    Each combination of evidence is judged by the Spearman correlation of its leave-one-out
    predictions with the values. The choice starts from the loss alone and takes a richer
    combination, one kind more at a time, or another single kind, only where it is better by a
    margin (:data:`MARGIN`); what is left must be distinguishable from no skill
    (:data:`SIGNIFICANCE`, :data:`LOSS_SIGNIFICANCE`).

    The spread is the Gaussian process's, times the root mean square of the standardised
    leave-one-out residuals; medians and spreads are then discounted for the uncertainty of the
    skill itself (:data:`DISCOUNT`). The 80 % interval is as many spreads wide as holds 80 % of
    the leave-one-out residuals (split conformal prediction's quantile, by the jackknife:
    Barber, Candès, Ramdas and Tibshirani 2021), and no narrower than a normal one.

    Args:
        seed: Unused: this predictor draws no random numbers.

    Example:
        >>> import numpy as np
        >>> from lyap_optuna.prediction import RankPredictor
        >>> rng = np.random.default_rng(0)
        >>> values = rng.normal(size=40)
        >>> features = {"loss": rng.normal(size=(40, 1)), "exponents": values[:, None] + 0.1}
        >>> RankPredictor().fit(features, values).chosen
        ('exponents',)
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed
        self._reset()

    def _reset(self) -> None:
        self.chosen: tuple[str, ...] = ()
        self.skill = 0.0
        self.skills: dict[tuple[str, ...], float] = {}
        self.counts: dict[tuple[str, ...], int] = {}
        self.n_trials = 0
        self.half_width = INTERVAL
        self.out_of_fold = Prediction(np.zeros(0), np.zeros(0))
        self._reference = np.zeros(0)
        self._noise: FloatArray | None = None
        self._margin = 0.0
        self._at: FloatArray | None = None
        self._columns: dict[str, Columns] = {}
        self._model: GaussianProcess | None = None
        self._shrinkage = 1.0
        self._calibration = 1.0

    def fit(
        self,
        features: Mapping[str, FloatArray],
        values: FloatArray,
        scored: npt.NDArray[np.bool_] | None = None,
        noise: FloatArray | None = None,
        margin: float = 0.0,
    ) -> Self:
        """Choose the evidence and fit.

        Args:
            features: By kind of evidence, shape (n, n_columns), NaN where missing.
            values: Oriented final values, shape (n,), without NaN.
            scored: Which rows count for the skill, shape (n,); all by default.
            noise: Standard deviation of each row's losses and value, in the objective's units,
                shape (n,): what lies within it is not ordered. Exact by default.
            margin: Values nearer to one another than this are equally good, in the objective's
                units.

        Raises:
            ValueError: Shapes do not fit, or a value is NaN.
        """
        values = np.asarray(values, dtype=np.float64)
        scored = np.ones(len(values), dtype=np.bool_) if scored is None else scored
        if np.isnan(values).any():
            raise ValueError("A value is NaN; what has diverged is given as infinity.")
        for kind, matrix in features.items():
            if matrix.ndim != 2 or len(matrix) != len(values):
                raise ValueError(
                    f"The features of {kind!r} must have shape ({len(values)}, n_columns), "
                    f"but got {matrix.shape}."
                )
        self._reset()
        rows = _spread_over(values)
        ordered = rows[np.argsort(values[rows], kind="stable")]
        self._reference = values[ordered]
        self._noise = None if noise is None else noise[ordered]
        self._margin = margin
        order = pairwise_order(values[rows], None if noise is None else noise[rows], self._margin)
        self.n_trials = int(scored[rows].sum())
        if self.n_trials < MIN_FIT_TRIALS:
            return self
        targets = self.score_of(values[rows])
        targets = targets - targets.mean()
        if np.ptp(targets[scored[rows]]) == 0:
            return self
        self._columns = {
            kind: Columns(
                matrix[rows], noise[rows] if kind == "loss" and noise is not None else None
            )
            for kind, matrix in features.items()
        }
        usable = [k for k, c in self._columns.items() if c.fitted.shape[1]]

        models: dict[tuple[str, ...], GaussianProcess] = {}

        def present(kinds: tuple[str, ...]) -> npt.NDArray[np.bool_]:
            # Rows that have the evidence: that it is missing must not pass for skill.
            has = np.ones(len(rows), dtype=np.bool_)
            for kind in kinds:
                has &= ~np.isnan(features[kind][rows]).all(axis=1)
            return has

        def correlation_on(has: npt.NDArray[np.bool_], kinds: tuple[str, ...]) -> float:
            return rank_correlation(
                models[kinds].out_of_fold[has],
                values[rows][has],
                None if order is None else order.among(has),
            )

        def skill_of(kinds: tuple[str, ...]) -> float:
            if kinds not in models:
                parts = [self._columns[k].fitted for k in kinds]
                # Each kind weighs the same, however many columns it has.
                weights = np.concatenate(
                    [np.full(p.shape[1], 1 / (len(parts) * p.shape[1])) for p in parts]
                )
                models[kinds] = GaussianProcess.fit(np.hstack(parts), weights, targets)
                has = scored[rows] & present(kinds)
                self.counts[kinds] = int(has.sum())
                if self.counts[kinds] >= MIN_FIT_TRIALS:
                    self.skills[kinds] = correlation_on(has, kinds)
            return self.skills.get(kinds, -math.inf)

        def better(kinds: tuple[str, ...], than: tuple[str, ...]) -> bool:
            # On the trials that have the evidence of both.
            has = scored[rows] & present(kinds) & present(than)
            if has.sum() < MIN_FIT_TRIALS:
                return False
            ours, theirs, between = correlation_on(has, kinds), 0.0, 0.0
            if than:
                theirs = correlation_on(has, than)
                between = rank_correlation(
                    models[kinds].out_of_fold[has], models[than].out_of_fold[has]
                )
            return _is_better(ours, theirs, between, int(has.sum()))

        def noise_level(kinds: tuple[str, ...]) -> float:
            bar = LOSS_SIGNIFICANCE if kinds == ("loss",) else SIGNIFICANCE
            return bar / math.sqrt(max(self.counts[kinds], 2) - 1)

        def step_to(candidates: list[tuple[str, ...]], current: tuple[str, ...]) -> tuple[str, ...]:
            # The best candidate, where it is better by the margin; else `current`.
            best = max(candidates, key=skill_of, default=())
            accepted = bool(best) and skill_of(best) > noise_level(best) and better(best, current)
            return best if accepted else current

        singles: list[tuple[str, ...]] = [(kind,) for kind in usable]
        current: tuple[str, ...] = ()
        if "loss" in usable and skill_of(("loss",)) > noise_level(("loss",)):
            current = ("loss",)
        before, current = None, step_to(singles, current)
        while current and current != before:
            richer = [
                tuple(k for k in usable if k in current or k == more)
                for more in usable
                if more not in current
            ]
            before, current = current, step_to(richer, current)
        if not current:
            return self
        self.chosen, self.skill = current, self.skills[current]
        self.n_trials = self.counts[current]
        self._model = model = models[current]
        residuals = (targets - model.out_of_fold) / model.out_of_fold_std
        residuals = residuals[scored[rows]]
        # The skill is the best of several, measured on few trials: what to expect of new ones is
        # less. Medians shrink towards the middle and spreads grow as they would at the lower end.
        r = min(max(self.skill, 0.0), 0.999)
        discount = LOSS_DISCOUNT if current == ("loss",) else DISCOUNT
        lower = max(math.tanh(math.atanh(r) - discount / math.sqrt(self.n_trials - 3)), 0.0)
        self._shrinkage = lower / r
        self._calibration = math.sqrt(
            max(float(residuals @ residuals) / len(residuals), 1e-3) * (1 - lower**2) / (1 - r**2)
        )
        score, spread = np.empty(len(values)), np.empty(len(values))
        score[rows] = model.out_of_fold * self._shrinkage
        spread[rows] = model.out_of_fold_std * self._calibration
        misses = np.abs(targets - score[rows])[scored[rows]] / spread[rows][scored[rows]]
        self.half_width = max(float(np.sort(misses)[_tolerance_rank(len(misses)) - 1]), INTERVAL)
        others = np.setdiff1d(np.arange(len(values)), rows)
        if others.size:
            rest = self.predict({kind: matrix[others] for kind, matrix in features.items()})
            score[others], spread[others] = rest.score, rest.spread
        self.out_of_fold = Prediction(score, spread)
        return self

    def predict(self, features: Mapping[str, FloatArray]) -> Prediction:
        """Predict the scores of further trials.

        Raises:
            RuntimeError: Nothing is predicted, because no evidence has skill or nothing was
                fitted.
        """
        if self._model is None:
            raise RuntimeError("No evidence has skill: there is no prediction.")
        cleaned = np.hstack([self._columns[kind](features[kind]) for kind in self.chosen])
        score, spread = self._model.predict(cleaned)
        return Prediction(score * self._shrinkage, spread * self._calibration)

    def score_of(self, values: FloatArray) -> FloatArray:
        """Return the normal scores of oriented values among those fitted."""
        return scores_within(
            np.asarray(values, np.float64), self._reference, self._noise, self._margin
        )

    def value_of(self, scores: FloatArray) -> FloatArray:
        """Return the oriented values at normal scores, interpolated between those fitted.

        Finite always: where the fitted value is infinite, it is the nearest finite value. Beyond
        the ends it goes on as between the end and one score inside it, on a logarithmic scale
        where all fitted values are positive, by at most the distance of the end from the median.
        Across a gap more than ten times as wide as the range of all better values
        (a diverged trial) it is the nearer end, not something between.
        """
        values = np.unique(self._reference[np.isfinite(self._reference)])
        if not values.size:
            return np.zeros(np.shape(scores))
        scores = np.asarray(scores, dtype=np.float64)
        if self._at is None:
            self._at = self.score_of(values)
        at = self._at
        i = np.clip(np.searchsorted(at, scores, side="right") - 1, 0, max(len(at) - 2, 0))
        j = np.minimum(i + 1, len(at) - 1)
        width = np.where(at[j] > at[i], at[j] - at[i], 1.0)
        fraction = np.clip((scores - at[i]) / width, 0.0, 1.0)
        with np.errstate(over="ignore", invalid="ignore"):
            gap = values[j] - values[i]
            wide = (i > 0) & (gap > 10 * (values[i] - values[0]))
            fraction = np.where(wide, np.round(fraction), fraction)
            between = values[i] + fraction * gap
        inside = np.where(fraction == 0.0, values[i], np.where(fraction == 1.0, values[j], between))
        below, above = np.minimum(scores - at[0], 0.0), np.maximum(scores - at[-1], 0.0)
        beyond: FloatArray = (
            inside
            + _beyond(values, at, below, -1)
            + np.where(wide, 0.0, _beyond(values, at, above, 1))
        )
        return beyond


def _beyond(values: FloatArray, at: FloatArray, distance: FloatArray, side: int) -> FloatArray:
    """Return what is to be added to the end of ``values`` on a side, ``distance`` scores out."""
    end, score = (values[0], at[0]) if side < 0 else (values[-1], at[-1])
    median = float(np.interp(0.0, at, values))
    limit = abs(end - median)
    if not math.isfinite(limit) or limit == 0.0:
        return np.zeros(np.shape(distance))
    inside = float(np.interp(score - side, at, values))
    with np.errstate(over="ignore"):
        if values[0] > 0.0:
            slope = (math.log(end) - math.log(inside)) * side
            change = end * np.expm1(np.clip(slope * distance, -50.0, 50.0))
        else:
            change = (end - inside) * side * distance
    clipped: FloatArray = np.clip(change, -limit, limit)
    return clipped


def _spread_over(values: FloatArray) -> npt.NDArray[np.intp]:
    order = np.argsort(values, kind="stable")
    if len(order) > MAX_FIT_TRIALS:
        order = order[np.linspace(0, len(order) - 1, MAX_FIT_TRIALS).round().astype(np.intp)]
    return np.sort(order)


@functools.cache
def _tolerance_rank(n: int) -> int:
    """Return the rank k of n at which P(Beta(k, n + 1 - k) > 0.8) reaches 75 %; n at most."""
    from scipy.special import betainc

    for k in range(math.ceil(0.8 * n), n):
        if betainc(k, n + 1 - k, 0.8) <= 0.25:
            return k
    return n


def _is_better(new: float, old: float, between: float, n: int) -> bool:
    # Meng, Rosenthal and Rubin, Psychological Bulletin 111 (1992) 172, equations 1 to 3:
    # correlations of two predictions with one outcome, themselves correlated.
    if new - old < MIN_GAIN:
        return False
    new, old, between = (float(np.clip(r, -0.9999, 0.9999)) for r in (new, old, between))
    squares = (new**2 + old**2) / 2
    f = min((1 - between) / (2 * (1 - squares)), 1.0)
    h = (1 - f * squares) / (1 - squares)
    z = (math.atanh(new) - math.atanh(old)) * math.sqrt((n - 3) / (2 * (1 - between) * h))
    return z > MARGIN
