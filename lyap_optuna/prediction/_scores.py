"""The robust scale on which everything is fitted: normal scores of ranks."""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from lyap_optuna.prediction.evidence.base import FloatArray

EQUALLY_GOOD = 0.05
"""Final values are known to within this share of the distance from the median to the best: the
order of those on a plateau, once one trial has left it, means nothing."""


def normal_scores(values: FloatArray, reference: FloatArray, margin: float = 0.0) -> FloatArray:
    """Return the normal scores of ``values`` among the ascending ``reference``.

    The score of v is the normal quantile of (#smaller + #equal / 2) / n, held half a rank inside
    the ends: it depends on the order alone, so that no value, however large, moves another one's
    score. Values nearer than ``margin`` are equal. NaN stays NaN.

    Args:
        values: Any shape.
        reference: Ascending, without NaN, shape (n,), n at least 1; infinity is allowed.
        margin: In the units of the values.
    """
    low = np.searchsorted(reference, values - margin, side="left")
    high = np.searchsorted(reference, values + margin, side="right")
    return np.where(np.isnan(values), math.nan, _score_table(len(reference))[low + high])


@lru_cache(maxsize=512)
def _score_table(n: int) -> FloatArray:
    """Return the normal quantiles of k / (2 n) for k = 0 ... 2 n, the ends half a rank inside."""
    from scipy.special import ndtri

    table: FloatArray = ndtri(np.clip(np.arange(2 * n + 1), 1, 2 * n - 1) / (2 * n))
    table.flags.writeable = False
    return table


def rank_correlation(a: FloatArray, b: FloatArray) -> float:
    """Return Spearman's rank correlation; 0 where either is constant or has fewer than two."""
    from scipy.stats import rankdata

    if len(a) < 2 or np.ptp(rankdata(a)) == 0 or np.ptp(rankdata(b)) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


@dataclass(frozen=True)
class Scale:
    """Oriented final values as normal scores, and back.

    Args:
        values: Oriented final values of a study, infinity allowed, ascending, shape (n,).
        best: Those that can be the best, ascending, shape (n_feasible,).
    """

    values: FloatArray
    best: FloatArray

    @classmethod
    def of(cls, values: FloatArray, feasible: npt.NDArray[np.bool_]) -> "Scale":
        """Sort the values."""
        return cls(np.sort(values), np.sort(values[feasible]))

    @cached_property
    def margin(self) -> float:
        """What values are known to, either way."""
        finite = self.values[np.isfinite(self.values)]
        if not self.best.size or not finite.size:
            return 0.0
        # A diverged value has its place in the order, and no other meaning.
        median = float(np.quantile(self.values, 0.5, method="lower"))
        if math.isinf(median):
            median = float(np.median(finite))
        with np.errstate(over="ignore"):
            spread = median - float(self.best[0])
        # Slightly wider: on a grid of values rounding must not decide which are inside.
        return EQUALLY_GOOD * (1 + 1e-6) * spread if 0.0 < spread < math.inf else 0.0

    def score_of(self, values: FloatArray) -> FloatArray:
        """Return the scores of oriented values as they stand."""
        return normal_scores(np.asarray(values, np.float64), self.values)

    def tied_score_of(self, values: FloatArray) -> FloatArray:
        """Return the scores of oriented values, those nearer than the margin equal."""
        return normal_scores(np.asarray(values, np.float64), self.values, self.margin)

    def draws(self, values: FloatArray, n_draws: int) -> FloatArray:
        """Return scores that the values may have, each known to within the margin, (n_draws, n).

        Each draw moves every value by an amount that is uniform within the margin either way, and
        ranks them; what is equal then stands in a random order. The amounts are the same for
        everyone, and go with the order of the values, not with that of the trials.

        Args:
            values: Oriented values, shape (n,), infinity allowed.
            n_draws: Number of draws.
        """
        n = len(values)
        moves = np.empty((n_draws, n))
        by_value = np.argsort(values, kind="stable")
        moves[:, by_value] = np.random.default_rng(0).uniform(-1.0, 1.0, (n_draws, n))
        order = np.lexsort((moves, values + self.margin * moves))
        scores = np.empty((n_draws, n))
        np.put_along_axis(scores, order, np.broadcast_to(_score_table(n)[1::2], scores.shape), 1)
        return scores

    @cached_property
    def _finite(self) -> tuple[FloatArray, FloatArray]:
        values = self.values[np.isfinite(self.values)]
        return values, self.score_of(values)

    def threshold(self, fraction: float) -> float | None:
        """Return the score that marks the best ``fraction`` of ``best``; None without any."""
        if not self.best.size:
            return None
        return float(np.quantile(self.score_of(self.best), fraction, method="hazen"))

    def value_of(self, score: float) -> float:
        """Return the finite value that stands nearest to a score."""
        values, scores = self._finite
        return float(values[np.argmin(np.abs(scores - score))])

    def lower_of(self, score: float) -> float | None:
        """Return the value nearest to the lower end of an interval; None: no value is as good."""
        _, scores = self._finite
        return None if score < scores[0] else self.value_of(score)

    def upper_of(self, score: float) -> float | None:
        """Return the value nearest to the upper end; None: no value is as bad."""
        _, scores = self._finite
        return None if score > scores[-1] else self.value_of(score)
