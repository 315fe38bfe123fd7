"""Ranks, normal scores and rank correlation: the robust scale on which everything is fitted."""

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from lyap_optuna.prediction.evidence.base import FloatArray

_NORMAL = NormalDist()


@functools.lru_cache(maxsize=512)
def _score_table(n: int) -> FloatArray:
    # Normal quantile of k / (2 n) for k = 0 .. 2 n, the two ends held at half a rank inside.
    inside = np.clip(np.arange(2 * n + 1), 1, 2 * n - 1) / (2 * n)
    table = np.array([_NORMAL.inv_cdf(p) for p in inside])
    table.flags.writeable = False
    return table


def normal_quantile(probability: float) -> float:
    """Return the standard normal quantile."""
    return _NORMAL.inv_cdf(probability)


def normal_cdf(z: FloatArray) -> FloatArray:
    """Return the standard normal distribution function, elementwise."""
    return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in np.ravel(z)]).reshape(np.shape(z))


def scores_within(
    values: FloatArray,
    reference: FloatArray,
    noise: FloatArray | None = None,
    margin: float = 0.0,
) -> FloatArray:
    """Return the normal scores of ``values`` among the ascending ``reference``.

    The score of v is the normal quantile of (#smaller + #equal / 2) / n, so that without noise and
    margin it depends on the order alone: no value, however large, moves another one's score.
    ``reference`` has at least one element and no NaN; infinity is allowed.

    With ``noise``, the standard deviation of each element of ``reference``, each counts as
    smaller with the chance that it is, v being as noisy: values nearer to one another than their
    noise have nearly the same score. Values nearer than ``margin`` count as equal.
    """
    if noise is None or not noise.any():
        if margin == 0.0:
            low = np.searchsorted(reference, values, side="left")
            high = np.searchsorted(reference, values, side="right")
            scores: FloatArray = _score_table(len(reference))[low + high]
            return scores
        noise = np.zeros(len(reference))
    from scipy.special import ndtri

    n = len(reference)
    share = _chances_below(values, reference, math.sqrt(2) * noise, margin).mean(axis=1)
    scores = ndtri(np.clip(share, 0.5 / n, 1 - 0.5 / n))
    return scores


def _chances_below(
    values: FloatArray, reference: FloatArray, widths: FloatArray, margin: float
) -> FloatArray:
    """Return the chances that each of ``reference`` is truly below each of ``values``.

    Those nearer than ``margin`` count for a half.
    """
    from scipy.special import ndtr

    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        difference = np.subtract.outer(values, reference)
        z = np.nan_to_num(difference / widths, nan=0.0, posinf=40.0, neginf=-40.0)
    chances: FloatArray = np.where(np.abs(difference) < margin, 0.5, ndtr(z))
    return chances


@dataclass(frozen=True)
class PairwiseOrder:
    """Who is below whom, among n values that are known to within noise and a margin.

    Args:
        likely: Chance that value j is truly below value i, a half where they are nearer than the
            margin, shape (n, n).
        exact: The same without noise.
    """

    likely: FloatArray
    exact: FloatArray

    def among(self, chosen: npt.NDArray[np.bool_]) -> "PairwiseOrder":
        """Return the order of the values that ``chosen`` marks, shape (n,)."""
        pairs = np.ix_(chosen, chosen)
        return PairwiseOrder(self.likely[pairs], self.exact[pairs])


def pairwise_order(
    values: FloatArray, noise: FloatArray | None = None, margin: float = 0.0
) -> PairwiseOrder | None:
    """Return the order of ``values``; None where neither noise nor a margin blurs it."""
    noisy = noise is not None and bool(noise.any())
    if not noisy and margin == 0.0:
        return None
    exact = _chances_below(values, values, np.zeros(len(values)), margin)
    if noise is None or not noisy:
        return PairwiseOrder(exact, exact)
    return PairwiseOrder(
        _chances_below(values, values, np.hypot.outer(noise, noise), margin), exact
    )


def midranks(values: FloatArray, margin: float = 0.0) -> FloatArray:
    """Return the ranks of ``values`` from 1, ties sharing their average.

    Values nearer than ``margin`` are tied.
    """
    reference = np.sort(values)
    low = np.searchsorted(reference, values, side="left")
    high = np.searchsorted(reference, values, side="right")
    if margin > 0.0:  # infinity is tied with itself, whatever the margin
        low = np.minimum(low, np.searchsorted(reference, values - margin, side="right"))
        high = np.maximum(high, np.searchsorted(reference, values + margin, side="left"))
    return (low + high + 1) / 2.0


def untied_share(values: FloatArray, margin: float = 0.0) -> float:
    """Return the variance of the ranks of ``values`` as a share of what it is without ties.

    1 where no two are tied, 0 where all are or there are fewer than two; values nearer than
    ``margin`` are tied. For groups of t equal values it is 1 - sum(t^3 - t) / (n^3 - n), the
    correction for ties of rank statistics (Kendall, *Biometrika* 33 (1945) 239).
    """
    n = len(values)
    if n < 2:
        return 0.0
    ranks = midranks(values, margin)
    ranks -= ranks.mean()
    return 12.0 * float(ranks @ ranks) / (n**3 - n)


def rank_correlation(a: FloatArray, b: FloatArray, order: PairwiseOrder | None = None) -> float:
    """Return Spearman's rank correlation; 0 where either is constant or has fewer than two.

    With ``order``, the :func:`pairwise_order` of ``b``, its mean over what the order of ``b`` may
    truly be: differences within the noise count neither for nor against. What is within the margin
    is tied.
    """
    if len(a) < 2:
        return 0.0
    x = midranks(a)
    y = midranks(b) if order is None else order.likely.sum(axis=1)
    exact = y if order is None else order.exact.sum(axis=1)
    x, y, exact = x - x.mean(), y - y.mean(), exact - exact.mean()
    scale = math.sqrt(float(x @ x) * float(exact @ exact))
    return float(x @ y) / scale if scale > 1e-9 else 0.0
