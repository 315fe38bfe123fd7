"""What the trials of a study that reached a step say of a trial at that step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lyap_optuna.prediction._posterior import DRAWS, Posterior, Prediction
from lyap_optuna.prediction._scores import Scale, rank_correlation
from lyap_optuna.prediction._table import FeatureTable
from lyap_optuna.prediction.evidence import TrialView
from lyap_optuna.prediction.evidence.base import FloatArray

MAX_FIT_TRIALS = 256
"""Trials that a fit uses at most: its cost grows with their cube."""

TOP_FRACTION = 0.1
"""The fraction of COMPLETE trials that count as the best, by default."""

_INTERVAL = 1.2815515655446004  # standard deviations, the normal quantile of 0.9: 80 % intervals


@dataclass(frozen=True)
class StepPrediction:
    """The predicted final value of one trial, in the units and direction of the study.

    Args:
        step: The step of the model; None before the first report.
        score: Expected normal score among the COMPLETE trials, smaller is better.
        value: Predicted final value: that of the COMPLETE trial that stands there.
        lower: Lower end of the 80 % interval; None where no COMPLETE trial ended beyond it.
        upper: Upper end; None likewise.
        probability: Chance of ending among the best; None where no trial is feasible.
    """

    step: int | None
    score: float
    value: float
    lower: float | None
    upper: float | None
    probability: float | None


class StepModel:
    """The posterior of the final values of a study's trials at one step.

    Args:
        rows: COMPLETE trials that reached ``step``, and trials that failed after they reported
            NaN or infinity: those count as worse than every finite value, but not for the skill.
        step: The step; None for what is known before the first report.
        kinds: Kinds of evidence.
        sign: 1 where the study minimises, -1 where it maximises.
        top_fraction: The fraction of feasible COMPLETE trials that are the best.
    """

    def __init__(
        self,
        rows: Sequence[TrialView],
        step: int | None,
        kinds: Sequence[str],
        sign: int,
        top_fraction: float = TOP_FRACTION,
    ) -> None:
        self.step = step
        self._sign = sign
        self._top_fraction = top_fraction
        values = np.array([math.inf if v.value is None else v.value for v in rows], np.float64)
        can_be_best = [v.value is not None and v.feasible is not False for v in rows]
        self.scale = Scale.of(values, np.array(can_be_best, dtype=np.bool_))
        self._feasible = [v for v, can in zip(rows, can_be_best, strict=True) if can]
        chosen = _spread_over(values)
        fitted = [rows[i] for i in chosen]
        self._rows = {view.number: i for i, view in enumerate(fitted)}
        self._complete = np.array([v.value is not None for v in fitted], dtype=np.bool_)
        self.n_complete = sum(v.value is not None for v in rows)
        """COMPLETE trials that reached the step."""
        self.values = values[chosen]
        self._table = FeatureTable(kinds, fitted, step)
        self._has = ~np.array([np.isnan(m).all(axis=1) for m in self._table.fitted.values()])
        # The prior mean is about tangent maps; with an LSTM's cell held fixed there is none.
        measured = {v.measured_state for v in fitted} - {None}
        self._mean_known = measured == {"full"}
        self.posterior: Posterior | None = None
        if np.isfinite(self.values).any() and np.unique(self.values).size > 1:
            scores = self.scale.draws(self.values, DRAWS * max(len(kinds), 1))
            self.posterior = Posterior(self._table.fitted, scores, self._mean(self._table.fitted))

    def _mean(self, matrices: dict[str, FloatArray]) -> FloatArray | None:
        """Return the distance of the maximum exponent from 0: what the paper expects to be bad."""
        known = self._mean_known
        return self._table.column(matrices, "exponents", "distance") if known else None

    @property
    def nbytes(self) -> int:
        """Bytes that the posterior takes."""
        return 0 if self.posterior is None else self.posterior.nbytes

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of evidence that vary; empty where nothing is predicted."""
        return () if self.posterior is None else self.posterior.kinds

    @property
    def shares(self) -> dict[str, float]:
        """By kind, the share of the variance that it is expected to explain: the mean."""
        return {} if self.posterior is None else self.posterior.shares

    def share_quantiles(self, *levels: float) -> dict[str, tuple[float, ...]]:
        """Return, by kind, quantiles of the share of the variance that it explains."""
        return {} if self.posterior is None else self.posterior.share_quantiles(*levels)

    @cached_property
    def _out_of_fold(self) -> Prediction:
        assert self.posterior is not None
        return self.posterior.out_of_fold

    @cached_property
    def n_trials(self) -> int:
        """Fitted COMPLETE trials that have some of the evidence."""
        return int((self._has.any(axis=0) & self._complete).sum()) if len(self._has) else 0

    @cached_property
    def skill(self) -> float | None:
        """Rank correlation of out-of-fold predictions and values; None for fewer than 3 trials."""
        unseen = self.unseen
        if unseen is None:
            return None
        counts = np.isfinite(unseen[0])
        return rank_correlation(unseen[0][counts], unseen[1][counts])

    @property
    def unseen(self) -> tuple[FloatArray, FloatArray] | None:
        """Out-of-fold scores of the fitted trials and their actual ones, shape (n_fitted,) each.

        A prediction is NaN for a trial that does not count: one without any of the evidence, or
        not COMPLETE. None where nothing is predicted, and for fewer than 3 trials.
        """
        if self.posterior is None or not self.kinds or self.n_trials < 3:
            return None
        counts = self._has.any(axis=0) & self._complete
        predicted = np.where(counts, self._out_of_fold.mean, np.nan)
        return predicted, self.scale.tied_score_of(self.values)

    def predict(self, views: Sequence[TrialView]) -> list[StepPrediction | None]:
        """Predict trials at the step; fitted ones by a posterior that has not seen their value."""
        if self.posterior is None or not views:
            return [None] * len(views)
        threshold = self.scale.threshold(self._top_fraction)
        matrices = self._table.matrices(views)
        predicted = self.posterior.predict(matrices, self._mean(matrices))
        known = [self._rows.get(view.number) for view in views]
        means, spreads = predicted.mean, predicted.spread
        chances = None if threshold is None else predicted.chance_below(threshold)
        if any(row is not None for row in known):
            unseen = self._out_of_fold
            mean, spread = unseen.mean, unseen.spread
            chance = None if threshold is None else unseen.chance_below(threshold)
            for i, row in enumerate(known):
                if row is not None:
                    means[i], spreads[i] = mean[row], spread[row]
                    if chances is not None and chance is not None:
                        chances[i] = chance[row]
        return [
            self._in_units(float(m), float(s), None if chances is None else float(chances[i]))
            for i, (m, s) in enumerate(zip(means, spreads, strict=True))
        ]

    def _in_units(self, score: float, spread: float, chance: float | None) -> StepPrediction:
        ends = (
            self._in_direction(self.scale.lower_of(score - _INTERVAL * spread)),
            self._in_direction(self.scale.upper_of(score + _INTERVAL * spread)),
        )
        lower, upper = ends if self._sign > 0 else ends[::-1]
        value = self._sign * self.scale.value_of(score)
        return StepPrediction(self.step, score, value, lower, upper, chance)

    def _in_direction(self, value: float | None) -> float | None:
        return None if value is None else self._sign * value

    @property
    def threshold(self) -> float | None:
        """The value that marks the best, in the study's direction; None: no trial is feasible."""
        score = self.scale.threshold(self._top_fraction)
        return None if score is None else self._sign * self.scale.value_of(score)

    def grounds(self, predicted: StepPrediction) -> dict[str, Any]:
        """Return what a :class:`~lyap_optuna.records.Decision` records of a prediction."""
        return {
            "predicted_value": predicted.value,
            "lower": predicted.lower,
            "upper": predicted.upper,
            "threshold": self.threshold,
            "top_fraction": self._top_fraction,
            "probability": predicted.probability,
            "evidence": self.kinds,
            "shares": self.shares,
            "skill": self.skill,
            "n_trials": self.n_complete,
        }

    @cached_property
    def _rivals(self) -> FloatArray:
        """First reports at the step or after of feasible COMPLETE trials.

        Empty before the first report, and where better last reports do not go with better values.
        """
        reported = [v for v in self._feasible if v.steps.size]
        last = np.array([v.losses[-1] for v in reported])
        values = np.array([v.value for v in reported], dtype=np.float64)
        if self.step is None or rank_correlation(last, values) <= 0.0:
            return np.zeros(0)
        return np.array([v.losses[np.searchsorted(v.steps, self.step)] for v in reported])

    def leads(self, view: TrialView) -> bool:
        """Return whether fewer than ``top_fraction`` of COMPLETE trials were as good at the step.

        Only feasible ones count; where one did not report at the step, its next report does.
        Equal reports count for a half. Never in studies whose last reports say the opposite of
        the final values, such as losses where an accuracy is maximised; nor does an infeasible
        trial lead.
        """
        if not self._rivals.size or view.feasible is False:
            return False
        last = float(view.losses[view.reports(self.step) - 1])
        ahead = (self._rivals < last).sum() + (self._rivals == last).sum() / 2
        return math.isfinite(last) and bool(ahead < self._top_fraction * len(self._rivals))


def _spread_over(values: FloatArray) -> npt.NDArray[np.intp]:
    """Return which of the values are fitted: all, or evenly spaced in their order."""
    order = np.argsort(values, kind="stable")
    if len(order) > MAX_FIT_TRIALS:
        order = order[np.linspace(0, len(order) - 1, MAX_FIT_TRIALS).round().astype(np.intp)]
    return np.sort(order)
