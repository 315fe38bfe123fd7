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


def scores_within(
    values: FloatArray, reference: FloatArray, noise: FloatArray | None = None
) -> FloatArray:
    """Return the normal scores of ``values`` among the ascending ``reference``.

    The score of v is the normal quantile of (#smaller + #equal / 2) / n, so that it depends on
    the order alone: no value, however large, moves another one's score. ``reference`` has at
    least one element and no NaN; infinity is allowed.

    With ``noise``, the standard deviation of each element of ``reference``, each counts as
    smaller with the chance that it is, v being as noisy: values nearer to one another than their
    noise have nearly the same score.
    """
    if noise is not None and noise.any():
        return _noisy_scores(values, reference, noise)
    low = np.searchsorted(reference, values, side="left")
    high = np.searchsorted(reference, values, side="right")
    scores: FloatArray = _score_table(len(reference))[low + high]
    return scores


def _noisy_scores(values: FloatArray, reference: FloatArray, noise: FloatArray) -> FloatArray:
    from scipy.special import ndtri

    n = len(reference)
    share = _chances_below(values, reference, math.sqrt(2) * noise).mean(axis=1)
    scores: FloatArray = ndtri(np.clip(share, 0.5 / n, 1 - 0.5 / n))
    return scores


def _chances_below(values: FloatArray, reference: FloatArray, widths: FloatArray) -> FloatArray:
    """Return the chances that each of ``reference`` is truly below each of ``values``."""
    from scipy.special import ndtr

    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        z = np.subtract.outer(values, reference) / widths
    chances: FloatArray = ndtr(np.nan_to_num(z, nan=0.0, posinf=40.0, neginf=-40.0))
    return chances


def pairwise_order(values: FloatArray, noise: FloatArray | None = None) -> FloatArray | None:
    """Return the chance that value j is truly below value i, shape (n, n); None without noise."""
    if noise is None or not noise.any():
        return None
    return _chances_below(values, values, np.hypot.outer(noise, noise))


def midranks(values: FloatArray) -> FloatArray:
    """Return the ranks of ``values`` from 1, ties sharing their average."""
    reference = np.sort(values)
    low = np.searchsorted(reference, values, side="left")
    high = np.searchsorted(reference, values, side="right")
    return (low + high + 1) / 2.0


def rank_correlation(a: FloatArray, b: FloatArray, order: FloatArray | None = None) -> float:
    """Return Spearman's rank correlation; 0 where either is constant or has fewer than two.

    With ``order``, the :func:`pairwise_order` of ``b``, its mean over what the order of ``b`` may
    truly be: differences within the noise count neither for nor against.
    """
    if len(a) < 2:
        return 0.0
    x, y = midranks(a), midranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    if order is not None:
        y = order.sum(axis=1)
        y = y - y.mean()
    return float(x @ y) / scale if scale > 0 else 0.0
