"""The posterior of final values, given several kinds of evidence of unknown worth.

The score y of a trial is a sum of one smooth function of each kind of evidence and of noise. How
much of its variance each of them explains, the *shares*, is drawn from a sparse prior, and the
draws are averaged over by how likely they make the COMPLETE trials. In formulas, for shares w on
the simplex, kernels K_k of unit mean diagonal and the prior mean b m:

    y | w ~ N(b m, C(w)),  C(w) = sum_k w_k K_k + w_0 I + b^2 m m^T,  w ~ Dirichlet(1/K, ..., 1)

Rasmussen and Williams, *Gaussian Processes for Machine Learning*: equations 2.25 and 2.26
(prediction), 2.30 (marginal likelihood), 2.42 (a mean with a Gaussian weight) and 5.10 to 5.12
(leave-one-out).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from lyap_optuna.prediction._scores import normal_scores
from lyap_optuna.prediction.evidence.base import FloatArray

CONCENTRATION = 1.0
"""Of the Dirichlet prior on the shares: as much for the noise as for all kinds together, which part
it evenly. So half of the variance is expected to be noise, however many kinds there are, and of
several kinds few count."""

DRAWS = 64
"""Draws of the shares, for each kind of evidence."""

PRIOR_WEIGHT = 0.3
"""The weight of the prior mean is normal, with this mean and this standard deviation: what the
paper found is probably true, and may be false."""

LENGTH = 1.0
"""Length scale of the kernels, in standard deviations of a column."""

_REACH = math.log(1e4)  # draws this much less likely than the likeliest change no digit shown, nats
_ROUGH, _FAR = 64, 10.0  # trials of a rough estimate, and how much less likely is hopeless, in nats
_JITTER = 1e-6  # keeps the covariance of equal trials invertible
_AT_ONCE = 4_000_000  # numbers of a block of draws, or of trials that are predicted: 32 MB


class Columns:
    """Turns the columns of one kind of evidence into standardised normal scores.

    Constant columns go, and equal columns count once. Where some rows lack a column that they
    could have, a missing value becomes the mean, with one further column that says where values
    are missing. NaN, unknown, stay the values of a row that has none at all, and what is missing
    where no row to learn from was.

    Args:
        features: Shape (n, n_columns), NaN where missing; infinity counts as the largest.
    """

    def __init__(self, features: FloatArray) -> None:
        self._columns: list[tuple[int, FloatArray | None, float, float]] = []
        self._lacked = [bool(np.isnan(column).any()) for column in features.T]
        fitted: dict[bytes, FloatArray] = {}  # equal columns have equal numbers, but for rounding
        for j, column in enumerate(features.T):
            known = np.sort(column[~np.isnan(column)])
            for reference in (known, None) if known.size else (None,):
                raw = _raw(column, reference)
                present = raw[~np.isnan(raw)]
                if np.ptp(present) < 1e-12:
                    continue
                self._columns.append((j, reference, float(present.mean()), float(present.std())))
                scaled = self._scaled(features, self._columns[-1])
                if (key := (scaled.round(9) + 0.0).tobytes()) in fitted:
                    self._columns.pop()
                fitted.setdefault(key, scaled)
        parts = list(fitted.values())
        self.fitted = np.stack(parts, axis=1) if parts else np.zeros((len(features), 0))

    def __call__(self, features: FloatArray) -> FloatArray:
        """Return the columns of further rows, shape (n, n_cleaned), NaN where unknown."""
        cleaned = np.zeros((len(features), len(self._columns)))
        for i, column in enumerate(self._columns):
            cleaned[:, i] = self._scaled(features, column)
        return cleaned

    @property
    def ranked(self) -> bool:
        """Whether the first column holds values, not where they are missing."""
        return bool(self._columns) and self._columns[0][1] is not None

    def _scaled(
        self, features: FloatArray, column: tuple[int, FloatArray | None, float, float]
    ) -> FloatArray:
        j, reference, mean, std = column
        scaled: FloatArray = (_raw(features[:, j], reference) - mean) / std
        if self._lacked[j]:
            has_some = (~np.isnan(features)).any(axis=1)
            scaled[np.isnan(scaled) & has_some] = 0.0
        return scaled


def _raw(column: FloatArray, reference: FloatArray | None) -> FloatArray:
    if reference is None:
        return np.isnan(column).astype(np.float64)
    return normal_scores(column, reference)


def kernel(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the mean of a linear, an additive and a joint squared-exponential kernel, (n, m).

    Each has a mean diagonal of 1 on standardised columns. One kernel for all kinds: a straight
    line, a curve in each column, and what depends on several at once. An unknown value (NaN) says
    nothing of any other: two rows have nothing in common there.
    """
    columns = a.shape[1]
    additive, exponent = np.zeros((len(a), len(b))), np.zeros((len(a), len(b)))
    for j in range(columns):
        gaps = np.subtract.outer(a[:, j], b[:, j]) / LENGTH
        squares = np.where(np.isnan(gaps), -np.inf, -0.5 * gaps**2)
        additive += np.exp(squares) / columns
        exponent += squares / columns
    linear = np.nan_to_num(a) @ np.nan_to_num(b).T / columns
    mean: FloatArray = (linear + additive + np.exp(exponent)) / 3
    return mean


def _own(a: FloatArray) -> FloatArray:
    """Return the kernel of each row with itself, (n,): an unknown value has the mean square."""
    diagonal: FloatArray = (np.nan_to_num(a**2, nan=1.0).mean(axis=1) + 2.0) / 3
    return diagonal


@cache
def shares_prior(kinds: int) -> FloatArray:
    """Return draws of the shares of so many kinds and, last, of the noise, (n_draws, kinds + 1).

    From a Sobol sequence, which fills the simplex evenly, the same for everyone. In each of
    :data:`DRAWS` points the kinds change places in turn, so that the one with the least noise,
    which wins where evidence is strong, favours no kind.
    """
    from scipy.special import gammaincinv
    from scipy.stats import qmc

    turns = max(kinds, 1)
    points = qmc.Sobol(kinds + 1, rng=np.random.default_rng(0)).random(DRAWS)
    concentration = CONCENTRATION * np.append(np.full(kinds, 1 / max(kinds, 1)), 1.0)
    drawn = np.maximum(gammaincinv(concentration, np.clip(points, 1e-9, 1 - 1e-9)), 1e-12)
    drawn /= drawn.sum(axis=1, keepdims=True)
    turned = [np.roll(drawn[:, :-1], turn, axis=1) for turn in range(turns)]
    shares = np.column_stack([np.concatenate(turned), np.tile(drawn[:, -1], turns)])
    shares.flags.writeable = False
    return shares


def _covariances(shares: FloatArray, matrices: FloatArray) -> FloatArray:
    """Return C(w), shape (draws, n, n), from a kernel of each kind and, last, what all share."""
    n = matrices.shape[1]
    weights = np.column_stack([shares[:, :-1], np.ones(len(shares))])
    covariances = weights @ matrices.reshape(len(matrices), n * n)
    covariances[:, :: n + 1] += shares[:, -1:]
    return covariances.reshape(-1, n, n)


def _weighed(
    shares: FloatArray, matrices: FloatArray, y: FloatArray
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield, for a block of draws at a time, their log evidence and their factors.

    The evidence is the log marginal likelihood of each draw's y, less a constant, shape (draws,).
    The factor of a draw is the Cholesky factor L of C(w), and below it a row that holds what
    solves L z = y: shape (draws, n + 1, n + 1).
    """
    n = y.shape[1]
    blocks = -(-len(shares) * n**2 // _AT_ONCE)
    for part, own in zip(np.array_split(shares, blocks), np.array_split(y, blocks), strict=True):
        bordered = np.full((len(part), n + 1, n + 1), 1 / _JITTER**2)
        bordered[:, :n, :n] = _covariances(part, matrices)
        bordered[:, n, :n] = own
        factors = np.linalg.cholesky(bordered)
        logs = np.log(np.diagonal(factors, axis1=1, axis2=2)[:, :n]).sum(axis=1)
        yield -0.5 * (factors[:, n, :n] ** 2).sum(axis=1) - logs, factors


def _log_evidence(shares: FloatArray, matrices: FloatArray, y: FloatArray) -> FloatArray:
    """Return the log marginal likelihood of each draw's y, less a constant, shape (draws,)."""
    return np.concatenate([evidence for evidence, _ in _weighed(shares, matrices, y)])


def _likeliest(
    shares: FloatArray, matrices: FloatArray, y: FloatArray
) -> tuple[npt.NDArray[np.bool_], FloatArray, FloatArray]:
    """Return which draws count, and of those the weights, (draws, 1), and the factors."""
    evidence, held, factors = np.zeros(0), np.zeros(0, np.bool_), []
    for found, of_block in _weighed(shares, matrices, y):
        evidence = np.append(evidence, found)
        likely = found > evidence.max() - _REACH
        held = np.append(held, likely)
        factors.append(of_block[likely])
    kept = evidence > evidence.max() - _REACH
    weights = np.exp(evidence[kept] - evidence.max())[:, None]
    return kept, weights / weights.sum(), np.concatenate(factors)[kept[held]]


def _inverted(triangles: FloatArray) -> FloatArray:
    """Return the inverses of lower triangular matrices, (draws, n, n)."""
    from scipy.linalg.lapack import dtrtri

    inverses = np.empty_like(triangles)
    for triangle, inverse in zip(triangles, inverses, strict=True):
        inverse[:] = dtrtri(triangle.T)[0].T
    return inverses


@dataclass(frozen=True)
class Prediction:
    """Scores of n trials: a mixture of normal distributions, one for each draw.

    Args:
        weights: Of the draws, summing to 1 over the first axis, (draws, n) or (draws, 1).
        means: (draws, n).
        spreads: Standard deviations, noise included, (draws, n).
    """

    weights: FloatArray
    means: FloatArray
    spreads: FloatArray

    @property
    def mean(self) -> FloatArray:
        """Expected scores, (n,)."""
        mean: FloatArray = (self.weights * self.means).sum(axis=0)
        return mean

    @property
    def spread(self) -> FloatArray:
        """Standard deviations of the mixture, (n,)."""
        squares = (self.weights * (self.spreads**2 + self.means**2)).sum(axis=0)
        spread: FloatArray = np.sqrt(np.maximum(squares - self.mean**2, 1e-12))
        return spread

    def chance_below(self, score: float) -> FloatArray:
        """Return the chances of a score of at most ``score``, (n,)."""
        from scipy.special import ndtr

        chance: FloatArray = (self.weights * ndtr((score - self.means) / self.spreads)).sum(axis=0)
        return chance


class Posterior:
    """The posterior of scores, fitted on COMPLETE trials.

    Args:
        features: By kind of evidence, shape (n, n_columns), NaN where missing.
        scores: Normal scores of the final values, shape (n,); where they are known to a margin,
            draws of what they may be, shape (n_draws, n), which the draws of shares take in turn.
        prior: The prior mean's column, shape (n,), NaN where missing: larger is expected to be
            worse. None without one.

    Raises:
        ValueError: Shapes do not fit.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> y = rng.normal(size=40)
        >>> told, noise = y[:, None] + 0.3 * rng.normal(size=(40, 1)), rng.normal(size=(40, 1))
        >>> posterior = Posterior({"loss": noise, "exponents": told}, y)
        >>> shares = posterior.shares
        >>> shares["exponents"] > 3 * shares["loss"]
        True
    """

    def __init__(
        self,
        features: Mapping[str, FloatArray],
        scores: FloatArray,
        prior: FloatArray | None = None,
    ) -> None:
        scores = np.atleast_2d(scores)
        n = scores.shape[1]
        for kind, matrix in features.items():
            if matrix.ndim != 2 or len(matrix) != n:
                raise ValueError(
                    f"The features of {kind!r} must have shape ({n}, n_columns), but got "
                    f"{matrix.shape}."
                )
        columns = {kind: Columns(matrix) for kind, matrix in features.items()}
        self._columns = {kind: c for kind, c in columns.items() if c.fitted.shape[1]}
        self.kinds = tuple(self._columns)
        """Kinds of evidence that vary."""
        self._level = float(scores.mean())
        self._prior = None if prior is None else Columns(prior[:, None])
        m = self._mean_column(prior, n)
        draws = shares_prior(len(self.kinds))
        y = np.resize(scores, (len(draws), n)) - self._level - PRIOR_WEIGHT * m
        kernels = [kernel(c.fitted, c.fitted) for c in self._columns.values()]
        for own, c in zip(kernels, self._columns.values(), strict=True):
            np.fill_diagonal(own, _own(c.fitted))
        kernels.append(PRIOR_WEIGHT**2 * np.outer(m, m) + _JITTER * np.eye(n))
        matrices = np.array(kernels)
        if n > 2 * _ROUGH:  # what a part of the trials makes very unlikely is not looked at
            part = np.linspace(0, n - 1, _ROUGH).round().astype(np.intp)
            rough = _log_evidence(draws, matrices[:, part][:, :, part], y[:, part])
            likely = rough > rough.max() - _FAR
            draws, y = draws[likely], y[likely]
        kept, self._weights, factors = _likeliest(draws, matrices, y)
        self._shares, self._y = draws[kept], y[kept]
        self._inverses = _inverted(factors[:, :n, :n])
        self._alphas = (factors[:, None, n, :n] @ self._inverses)[:, 0]
        self._m = m

    def _mean_column(self, prior: FloatArray | None, n: int) -> FloatArray:
        if prior is None or self._prior is None or not self._prior.ranked:
            return np.zeros(n)
        return np.nan_to_num(self._prior(prior[:, None])[:, 0])

    @property
    def nbytes(self) -> int:
        """Bytes that it takes: nearly all are those of an inverse factor for each draw."""
        return self._inverses.nbytes

    @property
    def shares(self) -> dict[str, float]:
        """By kind, the share of the variance that it is expected to explain: the mean."""
        means = self._weights[:, 0] @ self._shares[:, :-1]
        return {kind: float(mean) for kind, mean in zip(self.kinds, means, strict=True)}

    def share_quantiles(self, *levels: float) -> dict[str, tuple[float, ...]]:
        """Return, by kind, quantiles of the share of the variance that it explains.

        A draw is the quantile at the middle of its weight; between draws they are interpolated.
        """
        found = {}
        for k, kind in enumerate(self.kinds):
            order = np.argsort(self._shares[:, k])
            weights = self._weights[order, 0]
            middles = np.cumsum(weights) - weights / 2
            found[kind] = tuple(map(float, np.interp(levels, middles, self._shares[order, k])))
        return found

    @property
    def out_of_fold(self) -> Prediction:
        """What is predicted of each fitted trial by a posterior that has not seen its value."""
        diagonal = np.einsum("dij,dij->dj", self._inverses, self._inverses)  # of C(w)^-1
        means, variances = self._y - self._alphas / diagonal, 1 / diagonal
        # A draw's weight less what the trial's own value contributed to it.
        own = -0.5 * ((self._y - means) ** 2 / variances + np.log(variances))
        logs = np.log(self._weights) - own
        weights = np.exp(logs - logs.max(axis=0))
        means = means + self._level + PRIOR_WEIGHT * self._m
        return Prediction(weights / weights.sum(axis=0), means, np.sqrt(variances))

    def predict(
        self, features: Mapping[str, FloatArray], prior: FloatArray | None = None
    ) -> Prediction:
        """Predict further trials; ``features`` and ``prior`` as at construction."""
        rows = {kind: columns(features[kind]) for kind, columns in self._columns.items()}
        n = len(next(iter(features.values())))
        m = self._mean_column(prior, n)
        size = max(1, _AT_ONCE // self._y.size)
        parts = [
            self._part({k: x[i : i + size] for k, x in rows.items()}, m[i : i + size])
            for i in range(0, n, size)
        ]
        means, variances = (np.concatenate(p, axis=1) for p in zip(*parts, strict=True))
        return Prediction(self._weights, means, np.sqrt(np.maximum(variances, _JITTER)))

    def _part(self, rows: Mapping[str, FloatArray], m: FloatArray) -> tuple[FloatArray, FloatArray]:
        shape = (len(self._shares), len(m), len(self._m))
        cross = np.broadcast_to(PRIOR_WEIGHT**2 * np.outer(m, self._m), shape)
        own = self._shares[:, -1:] + PRIOR_WEIGHT**2 * m**2
        if rows:
            kernels = [kernel(x, self._columns[kind].fitted) for kind, x in rows.items()]
            cross = cross + np.tensordot(self._shares[:, :-1], np.array(kernels), 1)
            own = own + self._shares[:, :-1] @ np.array([_own(x) for x in rows.values()])
        means = (cross @ self._alphas[:, :, None])[..., 0] + self._level + PRIOR_WEIGHT * m
        explained = ((cross @ self._inverses.swapaxes(1, 2)) ** 2).sum(axis=2)
        return means, own - explained
