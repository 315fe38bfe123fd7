"""Statistics of a stored spectrum, and how well one goes with the loss."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from lyap_optuna import SpectrumRecord


def quantile(probability: float) -> Callable[[SpectrumRecord], float]:
    """Return the function that gives this quantile of the exponents."""
    return lambda spectrum: float(np.quantile(spectrum.exponents, probability))


STATISTICS: Mapping[str, Callable[[SpectrumRecord], float]] = {
    "maximum": lambda spectrum: spectrum.max,
    "mean": lambda spectrum: spectrum.mean,
    "variance": lambda spectrum: spectrum.variance,
    "upper quartile": quantile(0.75),
    "median": quantile(0.5),
    "lower quartile": quantile(0.25),
    "minimum": lambda spectrum: spectrum.exponents[-1],
    "Kaplan-Yorke dimension": lambda spectrum: spectrum.kaplan_yorke_dimension,
}


class Correlation(NamedTuple):
    """Spearman's rank correlation with its 95 % interval; NaN where nothing varies."""

    rho: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.rho):
            return "does not vary"
        return f"{self.rho:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Return the rank correlation of two statistics of the same networks.

    The interval is a percentile bootstrap: 2,000 draws of the networks with replacement.

    Example:
        >>> from studies.spectrum_statistics.statistics import rank_correlation
        >>> str(rank_correlation([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 6, 5]))
        '+0.94 (+0.52 to +1.00)'
        >>> str(rank_correlation([1, 1, 1], [1, 2, 3]))
        'does not vary'
    """
    if len(set(x)) < 2 or len(set(y)) < 2:
        return Correlation(math.nan, math.nan, math.nan)
    drawn = np.random.default_rng(0).integers(0, len(x), (2_000, len(x)))
    a, b = (stats.rankdata(np.asarray(v, dtype=float)[drawn], axis=1) for v in (x, y))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    norm = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    draws = (a * b).sum(1)[norm > 0] / norm[norm > 0]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Correlation(float(stats.spearmanr(x, y).statistic), float(low), float(high))


def partial_rank_correlation(
    x: Sequence[float], y: Sequence[float], given: Sequence[float]
) -> float:
    """Return the rank correlation of x and y that is not explained by a third quantity.

    That of the residuals of their ranks after linear regression on its ranks; NaN where nothing is
    left.

    Example:
        >>> from studies.spectrum_statistics.statistics import partial_rank_correlation
        >>> z = [1, 2, 3, 4, 5, 6, 7, 8]
        >>> x, y = [2, 1, 4, 3, 6, 5, 8, 7], [1, 2, 4, 3, 5, 6, 8, 7]
        >>> bool(partial_rank_correlation(x, y, given=z) < rank_correlation(x, y).rho)
        True
    """
    ranks = [stats.rankdata(values) for values in (x, y, given)]
    left = [r - np.polyval(np.polyfit(ranks[2], r, 1), ranks[2]) for r in ranks[:2]]
    if min(np.abs(residual).max() for residual in left) < 1e-9:
        return math.nan
    return float(np.corrcoef(*left)[0, 1])
