"""From a study to fitted predictors: which trials, at which step, how often refitted."""

import functools
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.prediction._predictor import INTERVAL, Prediction, Predictor, RankPredictor
from lyap_optuna.prediction._prior import TRAVELLING, EarlierStudy, PriorPredictor
from lyap_optuna.prediction._scores import normal_cdf, rank_correlation, untied_share
from lyap_optuna.prediction._table import FeatureTable
from lyap_optuna.prediction.evidence import TrialView
from lyap_optuna.records import prevailing_state

EVERY_STEP = 16
"""Reports of a trial that are each looked at by a model of their own; after that about as many
per doubling."""

REFIT_GROWTH = 0.1
"""Models are fitted again when the COMPLETE trials have grown by this fraction."""

EQUALLY_GOOD = 0.05
"""Final values nearer to one another than this share of the distance from the median to the best
feasible one are equally good: on a plateau all are, once one trial has left it."""

PRIOR = "prior"
"""Name of what earlier studies say, beside the kinds of evidence."""

MIN_PRIOR_TRIALS = 4
"""With earlier studies pruning begins after so many COMPLETE trials of the study."""

MAX_MODELS = 256
"""Fitted models kept, least recently used dropped first."""


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
    on the count alone, so that every process that looks at the study uses the same trials.
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
        ``step`` itself within the first 16 reports; later the latest report whose count from
        0 is a multiple of 2, 4, 8, ... (16 per doubling).
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
        step: The step of the model.
        score: Oriented normal score among the fitted values.
        spread: Its standard deviation.
        value: Predicted final value (median).
        lower: Lower end of the 80 % interval.
        upper: Upper end.
    """

    step: int | None
    score: float
    spread: float
    value: float
    lower: float
    upper: float


class StepModel:
    """A predictor fitted on the finished trials of a study at one step.

    Args:
        rows: COMPLETE trials that reached ``step``, and trials that failed after they reported
            NaN or infinity: those count as worse than every finite value, but not for the skill.
        step: The step; None for what is known before the first report.
        kinds: Kinds of evidence to choose from.
        sign: 1 where the study minimises, -1 where it maximises.
        predictor: An unfitted predictor.
        earlier: Earlier studies; what they say is used where no evidence of this study has skill.
        reference: Trials of this study among which ranks are taken for them.
    """

    chosen: tuple[str, ...]
    """Kinds of evidence used, ``("prior",)`` for earlier studies; empty: nothing is predicted."""

    skill: float
    """Rank correlation of it: out of sample, or for earlier studies what they are trusted with."""

    n_trials: int
    """COMPLETE trials behind it."""

    def __init__(
        self,
        rows: Sequence[TrialView],
        step: int | None,
        kinds: Sequence[str],
        sign: int,
        predictor: Predictor,
        earlier: Sequence[EarlierStudy] = (),
        reference: Sequence[TrialView] = (),
    ) -> None:
        self.step = step
        self._sign = sign
        self._rows = {view.number: i for i, view in enumerate(rows)}
        self._table = FeatureTable(kinds, rows, step)
        self.values = np.array([math.inf if v.value is None else v.value for v in rows])
        self._complete = np.array([v.value is not None for v in rows], dtype=np.bool_)
        self._best_can_be = np.array(
            [v.value is not None and v.feasible is not False for v in rows], dtype=np.bool_
        )
        self._rivals = _rivals(
            [v for v, can in zip(rows, self._best_can_be, strict=True) if can], step
        )
        margin = _margin(self.values, self.values[self._best_can_be])
        self._untied = untied_share(self.values[self._complete], margin)
        self.predictor = predictor.fit(
            self._table.fitted,
            self.values,
            self._complete,
            np.array([v.noise for v in rows]),
            margin,
        )
        self.chosen, self.skill = self.predictor.chosen, self.predictor.skill
        self.n_trials = self.predictor.n_trials if self.chosen else self.n_complete
        self._half_width = self.predictor.half_width if self.chosen else INTERVAL
        self._feasible_scores: npt.NDArray[np.float64] | None = None
        self._prior: PriorPredictor | None = None
        if not self.chosen and earlier and step is not None:
            prior = PriorPredictor(earlier, step, rows, self.values, reference)
            if prior.skill > 0.0:
                self._prior, self.chosen, self.skill = prior, (PRIOR,), prior.skill

    @property
    def n_complete(self) -> int:
        """COMPLETE trials it was fitted on."""
        return int(self._complete.sum())

    def predict(self, view: TrialView) -> StepPrediction | None:
        """Predict ``view`` at the step; a fitted trial by a model that has not seen its value."""
        if not self.chosen:
            return None
        if self._prior is not None:
            return self._single(self._prior.predict([view]))
        row = self._rows.get(view.number)
        if row is not None:
            out = self.predictor.out_of_fold
            return self._in_units(float(out.score[row]), float(out.spread[row]))
        return self._single(self.predictor.predict(self._table.matrices([view])))

    def threshold_score(self, top_fraction: float) -> float | None:
        """Return the score that marks the best fraction of feasible COMPLETE trials, or None."""
        feasible = self.values[self._best_can_be]
        if not feasible.size:
            return None
        if self._feasible_scores is None:
            self._feasible_scores = self.predictor.score_of(feasible)
        return float(np.quantile(self._feasible_scores, top_fraction, method="hazen"))

    def probability_below(self, prediction: StepPrediction, score: float) -> float:
        """Return the chance that the trial ends at or below (better than) ``score``."""
        z = (score - prediction.score) / prediction.spread
        return float(normal_cdf(np.array([z]))[0])

    @property
    def weight(self) -> float:
        """What a prediction counts for: the share of the variance that its evidence explains.

        The squared rank correlation, of the variance that the ranks would have without ties:
        evidence that tells two groups apart says nothing of the order within them. The skill of
        earlier studies is discounted already.
        """
        explained = min(max(self.skill, 0.0), 1.0) ** 2
        return explained if self._prior is not None else explained * self._untied

    @functools.cached_property
    def least_chance(self) -> float:
        """The smallest chance of ending among the best that so few COMPLETE trials can show.

        What was seen in none of n trials has the chance 1 / (2 n + 2) by Jeffreys' prior,
        Beta(1/2, 1/2): the mean of the posterior. Taken for n trials none of which, looking like
        this one, ended among the best; ties show less, so n is the number of COMPLETE trials that
        have the evidence, times what ties leave of the variance of their ranks. 0 for earlier
        studies: what they are trusted with is discounted for the trials that bear it out.
        """
        if self._prior is not None:
            return 0.0
        known = self._complete.copy()
        for kind in self.chosen:
            known &= ~np.isnan(self._table.fitted[kind]).all(axis=1)
        return 0.5 / (float(known.sum()) * self._untied + 1)

    def leads(self, view: TrialView, top_fraction: float) -> bool:
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
        return math.isfinite(last) and bool(ahead < top_fraction * len(self._rivals))

    def value_of(self, score: float) -> float:
        """Return the value at a score, in the study's direction."""
        return self._sign * float(self.predictor.value_of(np.array([score]))[0])

    def _single(self, prediction: Prediction) -> StepPrediction:
        return self._in_units(float(prediction.score[0]), float(prediction.spread[0]))

    def _in_units(self, score: float, spread: float) -> StepPrediction:
        ends = score + spread * self._half_width * np.array([-1.0, 1.0])
        lower, upper = sorted(self.value_of(float(e)) for e in ends)
        return StepPrediction(self.step, score, spread, self.value_of(score), lower, upper)


def _rivals(feasible: Sequence[TrialView], step: int | None) -> npt.NDArray[np.float64]:
    """Return their first reports at ``step`` or after, with which a trial is compared there.

    Empty before the first report, and where better last reports do not go with better values.
    """
    last = np.array([v.losses[-1] for v in feasible if v.steps.size])
    values = np.array([v.value for v in feasible if v.steps.size], dtype=np.float64)
    if step is None or rank_correlation(last, values) <= 0.0:
        return np.zeros(0)
    return np.array([v.losses[np.searchsorted(v.steps, step)] for v in feasible])


def _margin(values: npt.NDArray[np.float64], feasible: npt.NDArray[np.float64]) -> float:
    """Return the distance within which oriented final values are equally good."""
    finite = values[np.isfinite(values)]
    if not feasible.size or not finite.size:
        return 0.0
    # A diverged value has its place in the order, and no other meaning.
    median = float(np.quantile(values, 0.5, method="lower"))
    if math.isinf(median):
        median = float(np.median(finite))
    with np.errstate(over="ignore"):
        spread = median - float(feasible.min())
    # A hair wider: on a grid of values it must not depend on rounding who is inside.
    return EQUALLY_GOOD * (1 + 1e-6) * spread if 0.0 < spread < math.inf else 0.0


_Key = tuple[object, ...]


class StudyModels:
    """The finished trials of one study, each read once, and the models fitted on them.

    Not thread-safe: the caller holds a lock.

    Args:
        sign: 1 where the study minimises, -1 where it maximises.
        kinds: Kinds of evidence to choose from.
        make_predictor: Returns an unfitted predictor.
        earlier: Earlier studies.
    """

    def __init__(
        self,
        sign: int,
        kinds: Sequence[str],
        make_predictor: Callable[[], Predictor] = RankPredictor,
        earlier: Sequence[EarlierStudy] = (),
    ) -> None:
        self._earlier = earlier
        self._trials: Sequence[FrozenTrial] = ()
        self.sign = sign
        self._kinds = tuple(kinds)
        self._make_predictor = make_predictor
        self._state: str | None = None
        self._told = False
        self._seen: dict[_Key, TrialView | None] = {}
        self._viewed: dict[_Key, TrialView] = {}
        self._finished: list[TrialView] = []
        self.last_step = math.inf
        """The last step that any COMPLETE trial reported; infinity where none reported."""
        self._models: OrderedDict[tuple[int, int | None], StepModel] = OrderedDict()

    @property
    def complete(self) -> list[TrialView]:
        """COMPLETE trials in order of completion."""
        return [view for view in self._finished if view.value is not None]

    @property
    def finished(self) -> list[TrialView]:
        """COMPLETE trials, and those that failed after reporting NaN or infinity."""
        return self._finished

    def update(self, trials: Iterable[FrozenTrial]) -> None:
        """Read the trials not seen before. Finished trials do not change in Optuna."""
        trials = list(trials)
        self._trials = trials
        current: dict[_Key, FrozenTrial] = {
            # Databases reuse ids of deleted studies; the times tell them apart.
            (t._trial_id, t.number, t.datetime_start, t.datetime_complete): t
            for t in trials
            if t.state in (TrialState.COMPLETE, TrialState.FAIL)
        }
        if not self._seen.keys() <= current.keys():
            self._seen.clear()
            self._forget()
        new = [key for key in current if key not in self._seen]
        if not new and self._finished:
            return
        for key in new:
            trial = current[key]
            if trial.state == TrialState.FAIL and all(
                math.isfinite(v) for v in trial.intermediate_values.values()
            ):
                self._seen[key] = None
            else:
                self._seen[key] = TrialView.of(trial, self.sign)
        raw = [view for view in self._seen.values() if view is not None]
        state = self._prevailing_state(raw)
        if state != self._state:
            self._forget()
            self._state = state
        views = [view.with_readouts_of(state) for view in raw]
        times = [v.completed.timestamp() if v.completed else -math.inf for v in views]
        order = sorted(range(len(views)), key=lambda i: (times[i], views[i].number))
        self._finished = [views[i] for i in order]
        ends = [float(v.steps[-1]) for v in views if v.value is not None and v.steps.size]
        self.last_step = max(ends, default=math.inf)

    def _forget(self) -> None:
        self._viewed.clear()
        self._finished = []
        self._models.clear()

    def _prevailing_state(self, views: Iterable[TrialView]) -> str | None:
        """Return the state whose readouts are used, where there are readouts of both."""
        complete = [v.measured_state for v in views if v.value is not None]
        states = [state for state in complete if state is not None]
        state = prevailing_state(states)
        if len(set(states)) > 1 and not self._told:
            self._told = True
            counts = ", ".join(f"{states.count(s)} of {s!r}" for s in sorted(set(states)))
            warnings.warn(
                f"The COMPLETE trials hold readouts of different states ({counts}), which do not "
                f"compare: those of {state!r} are used.",
                LyapunovWarning,
                stacklevel=4,
            )
        return state

    def view(self, trial: FrozenTrial) -> TrialView:
        """Return what the evidence may read of ``trial``, with the readouts that are used."""
        return TrialView.of(trial, self.sign).with_readouts_of(self._state)

    def at(self, step: int | None, *, refit: bool = False) -> StepModel:
        """Return the model at ``step``.

        Args:
            step: The step; None for what is known before the first report.
            refit: Whether to use every COMPLETE trial, rather than the first
                :func:`refit_size` in order of completion.
        """
        n_complete = sum(view.value is not None for view in self._finished)
        size = n_complete if refit else refit_size(n_complete)
        model = self._models.get((size, step))
        if model is None:
            rows: list[TrialView] = []
            counted = 0
            for view in self._finished:
                counted += view.value is not None
                if counted > size:
                    break
                if view.reached(step):
                    rows.append(view)
            reference = self._reference(size, step, everything=refit) if self._earlier else ()
            model = StepModel(
                rows,
                step,
                self._kinds,
                self.sign,
                self._make_predictor(),
                self._earlier,
                reference,
            )
            for key in [key for key in self._models if key[0] < size]:
                del self._models[key]
            self._models[size, step] = model
            while len(self._models) > MAX_MODELS:
                self._models.popitem(last=False)
        self._models.move_to_end((size, step))
        return model

    def _reference(self, size: int, step: int | None, *, everything: bool) -> list[TrialView]:
        """Return the trials among which ranks are taken.

        All of them, or those that had finished when the model's last COMPLETE trial had: then a
        fresh process decides as one that watched the study grow.
        """
        complete = self.complete[:size]
        latest = complete[-1].completed if complete else None
        views = []
        for trial in self._trials:
            ended = trial.datetime_complete
            counts = ended is not None and latest is not None and ended <= latest
            if trial.state == TrialState.WAITING or not (counts or everything):
                continue
            key = (trial._trial_id, trial.number, trial.datetime_start, ended)
            view = self._viewed.get(key) or self._seen.get(key) or TrialView.of(trial, self.sign)
            view = view.with_readouts_of(self._state)
            if ended is not None:
                self._viewed[key] = view
            views.append(view)
        return [view for view in views if view.steps.size and view.reached(step)]


def earlier_studies(studies: Iterable[Study], kinds: Sequence[str]) -> list[EarlierStudy]:
    """Read earlier studies, to be given to :class:`StudyModels`.

    Raises:
        ValueError: One has several objectives.
    """
    earlier = []
    for study in studies:
        models = StudyModels(single_direction(study), ())
        models.update(study.get_trials(deepcopy=False))
        travelling = [kind for kind in TRAVELLING if kind in kinds]
        earlier.append(EarlierStudy(models.finished, travelling))
    return earlier


def describe(kinds: Sequence[str]) -> str:
    """Return the name of a combination of evidence in tables and decisions."""
    return " + ".join(kinds)


__all__ = [
    "MIN_PRIOR_TRIALS",
    "PRIOR",
    "StepModel",
    "StepPrediction",
    "StudyModels",
    "describe",
    "earlier_studies",
    "model_step",
    "refit_size",
    "single_direction",
]
