"""From a study to posteriors: which trials, at which step, how often refitted."""

import copy
import itertools
import math
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.prediction._posterior import DRAWS, Posterior, Prediction
from lyap_optuna.prediction._scores import Scale, rank_correlation
from lyap_optuna.prediction._table import FeatureTable
from lyap_optuna.prediction.evidence import TrialView
from lyap_optuna.prediction.evidence.base import FloatArray
from lyap_optuna.records import keeps_order, prevailing_state, report_order

EVERY_STEP = 64
"""Reports of a trial that are each looked at by a model of their own; after that about as many
per doubling."""

REFIT_GROWTH = 0.1
"""Models are fitted again when the COMPLETE trials have grown by this fraction."""

MAX_FIT_TRIALS = 256
"""Trials that a fit uses at most: its cost grows with their cube."""

MAX_MODELS, MAX_MODEL_BYTES = 256, 2**29
"""Fitted models kept, and what they may hold: of 256 trials each takes some 25 MB. The least
recently used are dropped first."""

TOP_FRACTION = 0.1
"""The fraction of COMPLETE trials that count as the best, by default."""

_INTERVAL = 1.2815515655446004  # standard deviations, the normal quantile of 0.9: 80 % intervals


def single_direction(study: Study) -> int:
    """Return 1 where ``study`` minimises its one objective, -1 where it maximises it.

    Raises:
        ValueError: It has several objectives.
    """
    if len(study.directions) != 1:
        names = ", ".join(d.name.lower() for d in study.directions)
        raise ValueError(
            f"Study {study.study_name!r} has several objectives (directions: {names}); the final "
            "value is predicted in studies of one objective only."
        )
    return -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1


def refit_size(n_complete: int) -> int:
    """Return how many COMPLETE trials, in order of completion, a fit uses when there are n.

    The sizes 1, 2, ..., 20, 22, 24, 26, 28, 30, 33, ... grow by :data:`REFIT_GROWTH`. They depend
    on the count alone, so that every process that reads the study uses the same trials.
    """
    size = min(n_complete, 1)
    while (larger := max(size + 1, math.floor(size * (1 + REFIT_GROWTH) + 1e-9))) <= n_complete:
        size = larger
    return size


def model_step(steps: npt.NDArray[np.int64], step: int | None) -> int | None:
    """Return the reported step whose model judges a trial at ``step``.

    Args:
        steps: Reported steps of the trial, ascending, shape (n_reports,).
        step: The step at which it is judged, at or after the first report; None before.

    Returns:
        ``step`` itself within the first 64 reports; later the latest report whose count from
        0 is a multiple of 2, 4, 8, ... (64 per doubling).
    """
    position = -1 if step is None else int(np.searchsorted(steps, step, side="right")) - 1
    if position < 0:
        return None
    stride = 1
    while position >= EVERY_STEP * stride:
        stride *= 2
    stride = max(stride // 2, 1)
    return int(steps[position // stride * stride])


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


def _stamp(trial: FrozenTrial) -> tuple[object, ...]:
    # Databases reuse ids of deleted studies; the times tell them apart.
    return trial.number, trial.datetime_start, trial.datetime_complete


class StudyModels:
    """The finished trials of one study, each read once, and the models fitted on them.

    Not thread-safe: the caller holds a lock.

    Args:
        sign: 1 where the study minimises, -1 where it maximises.
        kinds: Kinds of evidence.
        top_fraction: The fraction of feasible COMPLETE trials that are the best.
        ordered: Whether the trials come from where the order of their reports is kept.
    """

    def __init__(
        self,
        sign: int,
        kinds: Sequence[str],
        top_fraction: float = TOP_FRACTION,
        *,
        ordered: bool = True,
    ) -> None:
        self.sign = sign
        self._ordered = ordered
        self.kinds = tuple(kinds)
        self._top_fraction = top_fraction
        self._state: str | None = None
        self._counting: str | None = None
        self._counted = self._others_counted = False  # by reports; because of trials that ran
        self._ascending: set[int] = set()  # pruned trials that were looked at
        self._told: set[str] = set()
        self._seen: dict[int, tuple[FrozenTrial, TrialView | None]] = {}
        self._finished: list[TrialView] = []
        self._ends: list[int] = []  # how many had ended with each COMPLETE one
        self._models: OrderedDict[tuple[int, int | None], StepModel] = OrderedDict()

    @classmethod
    def of_study(
        cls, study: Study, kinds: Sequence[str], top_fraction: float = TOP_FRACTION
    ) -> "StudyModels":
        """Return models of a study, which have read nothing yet.

        Raises:
            ValueError: The study has several objectives.
        """
        ordered = keeps_order(study._storage)
        return cls(single_direction(study), kinds, top_fraction, ordered=ordered)

    def of(self, kinds: Sequence[str]) -> "StudyModels":
        """Return models of some kinds of evidence alone, on the trials read so far."""
        other = copy.copy(self)
        other.kinds, other._models = tuple(kinds), OrderedDict()
        return other

    @property
    def complete(self) -> list[TrialView]:
        """COMPLETE trials in order of completion."""
        return [view for view in self._finished if view.value is not None]

    @property
    def n_complete(self) -> int:
        """How many they are."""
        return len(self._ends)

    @cached_property
    def length(self) -> int:
        """The most reports that a COMPLETE trial made; 0 where none reported."""
        return max((len(view.steps) for view in self.complete), default=0)

    def update(self, trials: Iterable[FrozenTrial]) -> None:
        """Read the trials not seen before. Finished trials do not change in Optuna."""
        trials = list(trials)
        ended, new, counted = 0, False, False
        for trial in trials:
            state = trial.state
            if state is not TrialState.COMPLETE and state is not TrialState.FAIL:
                if not counted and trial._trial_id not in self._ascending:
                    counted = not self._ascends(trial)
                continue
            ended += 1
            seen = self._seen.get(trial._trial_id)
            if seen is not None and (seen[0] is trial or _stamp(seen[0]) == _stamp(trial)):
                continue
            diverged = not all(map(math.isfinite, trial.intermediate_values.values()))
            counts = state is TrialState.COMPLETE or diverged
            view = self.seen(trial) if counts else None
            if view is not None and view.cut_at is not None:
                self._warn_once(
                    "cut short",
                    f"Trial {trial.number} is COMPLETE, but was pruned at step {view.cut_at}: the "
                    "exception was caught on its way to Optuna. The predictor leaves out such "
                    "trials, which were cut short. (Call check_pruned() of the callback after "
                    "training.)",
                )
                view = None
            if seen is not None:
                self._models.clear()
            self._seen[trial._trial_id] = trial, view
            new = True
        if ended < len(self._seen):  # some are gone: read the rest anew
            self._seen.clear()
            self._ascending.clear()
            self._models.clear()
            self.update(trials)
            return
        if new or not self._finished or counted != self._others_counted:
            self._others_counted = counted
            self._gather()

    def _ascends(self, trial: FrozenTrial) -> bool:
        """Whether a trial that does not count reported at ascending steps."""
        steps = report_order(trial, self._ordered)
        if any(a > b for a, b in itertools.pairwise(steps)):
            return False
        if trial.state.is_finished():
            self._ascending.add(trial._trial_id)
        return True

    def _gather(self) -> None:
        raw = [view for _, view in self._seen.values() if view is not None]
        state, counting = self._prevailing_state(raw), self._prevailing_counting(raw)
        counted = self._others_counted or not all(view.in_order for view in raw)
        if (state, counting, counted) != (self._state, self._counting, self._counted):
            self._models.clear()
            self._state, self._counting, self._counted = state, counting, counted
        times = [v.completed.timestamp() if v.completed else -math.inf for v in raw]
        order = sorted(range(len(raw)), key=lambda i: (times[i], raw[i].number))
        numbers = [view.number for view in self._finished]
        self._finished = [self._as_used(raw[i]) for i in order]
        if [view.number for view in self._finished[: len(numbers)]] != numbers:
            self._models.clear()  # one that ended earlier became known later
        self._ends = [i for i, view in enumerate(self._finished, 1) if view.value is not None]
        self.__dict__.pop("length", None)

    def _as_used(self, view: TrialView) -> TrialView:
        view = view.with_readouts_of(self._state).counted_by(self._counting or view.counting)
        return view.counted() if self._counted else view

    def _prevailing_state(self, views: Iterable[TrialView]) -> str | None:
        """Return the state whose readouts are used, where there are readouts of both."""
        complete = [v.measured_state for v in views if v.value is not None]
        states = [state for state in complete if state is not None]
        return self._prevailing(
            states,
            prevailing_state(states),
            "The COMPLETE trials hold readouts of different states ({}), which do not compare: "
            "those of {} are used.",
        )

    def _prevailing_counting(self, views: Iterable[TrialView]) -> str | None:
        """Return what the steps that are used count, where trials count differently."""
        counted = [v.counting for v in views if v.value is not None and v.steps.size]
        return self._prevailing(
            counted,
            max(sorted(set(counted)), key=counted.count, default=None),
            "The COMPLETE trials count their steps differently ({}), which do not compare: the "
            "reports by {} are used. Pass step= to the callbacks.",
        )

    def _prevailing(self, found: Sequence[str], used: str | None, differ: str) -> str | None:
        """Return what is used of what was found, and say so once where trials differ."""
        if len(set(found)) > 1:
            counts = ", ".join(f"{found.count(f)} of {f!r}" for f in sorted(set(found)))
            self._warn_once(differ, differ.format(counts, repr(used)))
        return used

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(message, LyapunovWarning, stacklevel=5)

    def seen(self, trial: FrozenTrial) -> TrialView:
        """Return what can be read of ``trial``, by its own steps and with all its readouts."""
        return TrialView.of(trial, self.sign, self._ordered)

    def view(self, trial: FrozenTrial) -> TrialView:
        """Return what the evidence may read of ``trial``, with the readouts that are used.

        Where a trial of the study reports at steps that do not ascend, the reports of all are
        counted.
        """
        view = self.seen(trial)
        if not self._counted and not view.in_order:
            self._others_counted = True
            self._gather()
        return self._as_used(view)

    def at(self, step: int | None, *, refit: bool = False) -> StepModel:
        """Return the model at ``step``.

        Args:
            step: The step; None for what is known before the first report.
            refit: Whether to use every trial, rather than those that ended up to the
                :func:`refit_size`-th COMPLETE one. (Not those that failed since: a later
                call must use the same.)
        """
        size = len(self._finished)
        if not refit:
            size = self._ends[refit_size(self.n_complete) - 1] if self._ends else 0
        model = self._models.get((size, step))
        if model is None:
            rows = [view for view in self._finished[:size] if view.reached(step)]
            model = StepModel(rows, step, self.kinds, self.sign, self._top_fraction)
            for key in [key for key in self._models if key[0] < size]:
                del self._models[key]
            self._models[size, step] = model
            held = sum(known.nbytes for known in self._models.values())
            while len(self._models) > MAX_MODELS or (
                held > MAX_MODEL_BYTES and len(self._models) > 1
            ):
                held -= self._models.popitem(last=False)[1].nbytes
        self._models.move_to_end((size, step))
        return model


def describe(kinds: Sequence[str]) -> str:
    """Return the name of a combination of evidence in tables and decisions."""
    return " + ".join(kinds)
