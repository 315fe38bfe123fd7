"""Ranks, normal scores and rank correlation: the robust scale on which everything is fitted."""

import functools
import math
from statistics import NormalDist

import numpy as np

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


def scores_within(values: FloatArray, reference: FloatArray) -> FloatArray:
    """Return the normal scores of ``values`` among the ascending ``reference``.

    The score of v is the normal quantile of (#smaller + #equal / 2) / n, so that it depends on
    the order alone: no value, however large, moves another one's score. ``reference`` has at
    least one element and no NaN; infinity is allowed.
    """
    low = np.searchsorted(reference, values, side="left")
    high = np.searchsorted(reference, values, side="right")
    scores: FloatArray = _score_table(len(reference))[low + high]
    return scores


def midranks(values: FloatArray) -> FloatArray:
    """Return the ranks of ``values`` from 1, ties sharing their average."""
    reference = np.sort(values)
    low = np.searchsorted(reference, values, side="left")
    high = np.searchsorted(reference, values, side="right")
    return (low + high + 1) / 2.0


def rank_correlation(a: FloatArray, b: FloatArray) -> float:
    """Return Spearman's rank correlation; 0 where either is constant or has fewer than two."""
    if len(a) < 2:
        return 0.0
    x, y = midranks(a), midranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else 0.0
