"""How every trial of a recording truly ended, and so how good a value or an interval is."""

import math
from dataclasses import dataclass

import numpy as np

from lyap_optuna.prediction.evidence.base import FloatArray, oriented
from lyap_optuna.records import Decision
from lyap_optuna.replay._recording import Recording

TOP = 0.05
"""The true best: this fraction of the recorded trials, at least one."""

MAX_REGRET = 0.05
"""Normalised regret at which an order still succeeds, and a trial still is a winner."""

LEVEL = 0.8
"""What share of final values the interval of a decision is to hold."""


@dataclass(frozen=True)
class Calibration:
    """What the 80 % intervals of decisions that pruned were worth; add two to pool them.

    An interval that is open at an end cannot be missed there.

    Args:
        held: Trials whose final value lay in the interval.
        better: Trials that would have ended better than the interval.
        worse: Trials that would have ended worse.
        score: Sum over these trials of the interval score (Gneiting and Raftery, *Journal of the
            American Statistical Association* 102 (2007) 359, equation 43): the width, and 10 times
            the distance by which the value was missed. Smaller is better. On the normal scores of
            the recorded final values, so that it has no unit; an open end counts as the best or
            the worst of them.

    Example:
        >>> from lyap_optuna.replay import Calibration
        >>> pooled = Calibration(3, 1, 0, 6.5) + Calibration(1, 0, 0, 1.0)
        >>> pooled.n, pooled.share, pooled.mean_score
        (5, 0.8, 1.5)
    """

    held: int = 0
    better: int = 0
    worse: int = 0
    score: float = 0.0

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(
            self.held + other.held,
            self.better + other.better,
            self.worse + other.worse,
            self.score + other.score,
        )

    @property
    def n(self) -> int:
        """Pruned trials whose decision had an interval."""
        return self.held + self.better + self.worse

    @property
    def share(self) -> float | None:
        """Share of them whose interval held; None without any."""
        return self.held / self.n if self.n else None

    @property
    def mean_score(self) -> float | None:
        """Mean interval score; None without any."""
        return self.score / self.n if self.n else None


class Truth:
    """The true final values of a recording, smaller is better, what is not finite as infinity.

    Args:
        recording: The study.
    """

    def __init__(self, recording: Recording) -> None:
        self._sign = 1 if recording.direction == "minimize" else -1
        self.finals: FloatArray = np.array([self.oriented(t.final) for t in recording.trials])
        self._ranked = np.sort(self.finals)
        self._best, self._median = float(self._ranked[0]), float(np.median(self._ranked))
        n = len(self._ranked)
        self.top = float(self._ranked[max(round(TOP * n), 1) - 1])

    def oriented(self, value: float) -> float:
        """Return a value so that smaller is better; NaN and infinities are worst."""
        return oriented(value, self._sign)

    def regret(self, value: float) -> float:
        """Return the normalised regret of an oriented value: 0 for the best, 1 for the median.

        Where more than half diverged, any finite value is far better than the median.
        """
        if not math.isfinite(value):
            return math.inf
        return (value - self._best) / max(self._median - self._best, 1e-300)

    def wins(self, value: float) -> bool:
        """Whether a trial of this oriented value is a winner: hardly any better, and not by much.

        Its regret is at most 0.05, and fewer than ``max(1, round(0.05 n))`` trials are better.
        """
        return value <= self.top and self.regret(value) <= MAX_REGRET

    def interval(self, decision: Decision) -> tuple[float, float] | None:
        """Return the oriented interval of a decision, an open end infinite; None without any."""
        if decision.lower is None and decision.upper is None:
            return None
        low = -math.inf if decision.lower is None else decision.lower
        high = math.inf if decision.upper is None else decision.upper
        return (low, high) if self._sign > 0 else (-high, -low)

    def judge(self, decision: Decision, final: float) -> Calibration:
        """Return what the interval of a decision was worth, for a trial that truly ended so."""
        interval = self.interval(decision)
        if interval is None:
            return Calibration()
        low, high = interval
        value = self.oriented(final)
        below, above = value < low, value > high
        x, scored_low, scored_high = self._scores(np.array([value, low, high]))
        missed = max(scored_low - x, x - scored_high, 0.0) if below or above else 0.0
        return Calibration(
            held=int(not below and not above),
            better=int(below),
            worse=int(above),
            score=float(scored_high - scored_low + 2 / (1 - LEVEL) * missed),
        )

    def _scores(self, values: FloatArray) -> FloatArray:
        """Return normal quantiles of the ranks among the final values, ties at their middle."""
        from scipy.special import ndtri

        n = len(self._ranked)
        below = np.searchsorted(self._ranked, values, side="left")
        up_to = np.searchsorted(self._ranked, values, side="right")
        # Half a rank inside, so that the best and the worst have finite scores.
        scores: FloatArray = ndtri(np.clip((below + up_to) / (2 * n), 0.5 / n, 1 - 0.5 / n))
        return scores


def winners(recording: Recording) -> list[int]:
    """Return the numbers of the recorded trials that are winners.

    A winner has a normalised regret of at most 0.05, and fewer than ``max(1, round(0.05 n))``
    trials are better than it.

    Example:
        >>> import optuna
        >>> from lyap_optuna.replay import Recording, winners
        >>> study = optuna.create_study()
        >>> for value in (3.0, 1.0, 2.0):
        ...     study.add_trial(optuna.create_trial(intermediate_values={1: value}, value=value))
        >>> winners(Recording.from_study(study))
        [1]
    """
    truth = Truth(recording)
    return [i for i, value in enumerate(truth.finals) if truth.wins(float(value))]
