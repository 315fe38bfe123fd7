"""Evidence that travels: what earlier studies say about a study that has few COMPLETE trials.

An earlier study may have trained another architecture, on another task, over other
hyperparameters. What both have in common is that every trial has a loss so far, exponents, and
their displacement; and that of each, the *rank within its own study* can be compared where the
numbers cannot. So each kind of evidence that has skill in an earlier study is an *expert*: its
relation of ranks to final ranks, learned there, is applied to ranks here. (For the loss the
relation is that less is better: nothing else about it travels.)

How far an expert can be trusted here is not known. Its skill there is where the belief begins,
drawn towards nothing; each COMPLETE trial of this study moves it. In Fisher's z the belief is
normal, with the precision of a handful of trials; the skill used is the lower end of its one-sided
97.5 % interval. What an expert shows here is averaged over the steps so far: it is asked at every
step, and one that happens to look good at some step, on few trials, must not pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from lyap_optuna.prediction._predictor import Prediction, RankPredictor
from lyap_optuna.prediction._scores import rank_correlation, scores_within
from lyap_optuna.prediction._table import FeatureTable
from lyap_optuna.prediction.evidence import TrialView
from lyap_optuna.prediction.evidence.base import FloatArray

TRAVELLING = ("loss", "exponents", "displacement")
"""Kinds of evidence that mean something in another study; hyperparameters mislead."""

RETAINED = 0.7
"""Fraction of an expert's skill (Fisher's z) that is expected in another study."""

TRANSFER_SPREAD = 0.5
"""Standard deviation, in Fisher's z, of what is found there instead."""

CAUTION = 2.0
"""Standard deviations by which the skill used lies below the one believed in."""

MAX_LOOKS = 8
"""Steps, evenly spaced up to the present one, over which an expert's skill here is averaged."""

MIN_SKILL = 0.1
"""An expert whose lower bound is below this says nothing."""


@dataclass(frozen=True)
class _Expert:
    """One kind of evidence of one earlier study at one step."""

    kind: str
    table: FeatureTable
    predictor: RankPredictor | None  # None for the loss, whose own rank is the prediction
    skill: float
    seen: "WeakKeyDictionary[TrialView, FloatArray]" = field(default_factory=WeakKeyDictionary)

    def features(self, views: Sequence[TrialView]) -> FloatArray:
        """Return the evidence of ``views``, shape (n_views, n_columns); each is read once."""
        new = [view for view in views if view not in self.seen]
        for view, row in zip(new, self.table.matrices(new)[self.kind], strict=True):
            self.seen[view] = row
        rows: FloatArray = np.array([self.seen[view] for view in views])
        return rows

    def scores(self, views: Sequence[TrialView], reference: Sequence[TrialView]) -> FloatArray:
        """Return predicted normal scores, shape (n_views,); 0 where the evidence is missing."""
        if not views:
            return np.zeros(0)
        ours = self.features(views)
        ranked = _ranks(ours, self.features(reference)) if reference else ours * math.nan
        if self.predictor is None:
            mean: FloatArray = np.nan_to_num(ranked).mean(axis=1)
            return mean
        scores = self.predictor.predict({self.kind: ranked}).score
        known: FloatArray = np.where(np.isnan(ours).all(axis=1), 0.0, scores)
        return known


class EarlierStudy:
    """An earlier study, read once; experts are fitted step by step, when first asked for.

    Args:
        finished: Its COMPLETE trials, and those that diverged.
        kinds: Kinds of evidence to take from it.
    """

    def __init__(self, finished: Sequence[TrialView], kinds: Sequence[str]) -> None:
        self._finished = finished
        ends = [int(v.steps[-1]) for v in finished if v.value is not None and v.steps.size]
        self._last_step = max(ends, default=0)
        self._kinds = tuple(kinds)
        self._experts: dict[int, list[_Expert]] = {}

    def experts(self, step: int) -> list[_Expert]:
        """Return the experts at ``step``, or at the study's last one where that comes before."""
        step = min(step, self._last_step)
        if step not in self._experts:
            views = [view for view in self._finished if view.reached(step)]
            found = (self._expert(kind, views, step) for kind in self._kinds)
            self._experts[step] = [expert for expert in found if expert is not None]
        return self._experts[step]

    def _expert(self, kind: str, views: Sequence[TrialView], step: int) -> _Expert | None:
        table = FeatureTable((kind,), views, step)
        matrix = table.fitted[kind]
        values = np.array([math.inf if v.value is None else v.value for v in views])
        if len(values) < 2 or not matrix.shape[1]:
            return None
        if kind == "loss":
            skill = rank_correlation(np.nan_to_num(_ranks(matrix, matrix)).mean(axis=1), values)
            predictor = None
        else:
            predictor = RankPredictor().fit({kind: _ranks(matrix, matrix)}, values)
            skill = predictor.skill
        return _Expert(kind, table, predictor, skill) if skill > 0.0 else None


def _ranks(features: FloatArray, reference: FloatArray) -> FloatArray:
    """Return normal scores of each column within the reference's, NaN where missing."""
    ranked = np.full(features.shape, math.nan)
    for j in range(features.shape[1]):
        known = np.sort(reference[:, j][~np.isnan(reference[:, j])])
        present = ~np.isnan(features[:, j])
        if known.size:
            ranked[present, j] = scores_within(features[present, j], known)
    return ranked


class PriorPredictor:
    """Predicts trials of a study at a step from earlier studies, each as far as it is trusted.

    Args:
        earlier: The earlier studies.
        step: The step.
        rows: COMPLETE trials of this study that reached it, and trials that diverged.
        values: Their oriented final values, shape (n_rows,).
        reference: Every trial of this study among which the ranks are taken.
    """

    def __init__(
        self,
        earlier: Sequence[EarlierStudy],
        step: int,
        rows: Sequence[TrialView],
        values: FloatArray,
        reference: Sequence[TrialView],
    ) -> None:
        self._reference = reference
        self._experts: list[tuple[_Expert, float, float]] = []  # with scale and trusted skill
        trusted = 0.0
        steps = sorted({int(s) for view in rows for s in view.steps if s <= step}) or [step]
        places = np.linspace(0, len(steps) - 1, min(MAX_LOOKS, len(steps))).round().astype(int)
        looks = [steps[i] for i in places]
        for study in earlier:
            for expert in study.experts(step):
                among = expert.scores(reference, reference)
                scale = float(among.std()) if among.size else 0.0
                found = [
                    _correlation(e, s, rows, values, reference)
                    for s in looks
                    for e in study.experts(s)
                    if e.kind == expert.kind
                ]
                skill = _trusted(expert.skill, float(np.mean(found)), len(rows))
                if scale > 1e-9 and skill > MIN_SKILL:
                    self._experts.append((expert, scale, skill))
                    trusted = max(trusted, skill)
        self.skill = trusted
        """Rank correlation that the prediction is trusted to have; 0 where nothing is said."""

    def predict(self, views: Sequence[TrialView]) -> Prediction:
        """Return normal scores and spreads among the trials of this study."""
        total = np.zeros(len(views))
        weights = 0.0
        for expert, scale, skill in self._experts:
            total += skill**2 * expert.scores(views, self._reference) / scale
            weights += skill**2
        score = self.skill * total / max(weights, 1e-12)
        return Prediction(score, np.full(len(views), math.sqrt(1 - self.skill**2)))


def _correlation(
    expert: _Expert,
    step: int,
    rows: Sequence[TrialView],
    values: FloatArray,
    reference: Sequence[TrialView],
) -> float:
    """Return Fisher's z of the expert's prediction and the values of this study at a step."""
    there = np.array([view.reached(step) for view in rows], dtype=np.bool_)
    if there.sum() < 4:
        return 0.0
    reached = [view for view in rows if view.reached(step)]
    scores = expert.scores(reached, [view for view in reference if view.reached(step)])
    return math.atanh(float(np.clip(rank_correlation(scores, values[there]), -0.95, 0.95)))


def _trusted(skill: float, found: float, n_trials: int) -> float:
    expected = RETAINED * math.atanh(min(skill, 0.95))
    precision, n = 1 / TRANSFER_SPREAD**2, max(n_trials - 3, 0)
    z = (precision * expected + n * found) / (precision + n)
    return max(math.tanh(z - CAUTION / math.sqrt(precision + n)), 0.0)
