"""From a study to models: which trials, at which step, how often refitted."""

import copy
import itertools
import math
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.prediction._step_model import TOP_FRACTION, StepModel
from lyap_optuna.prediction.evidence import TrialView
from lyap_optuna.records import keeps_order, prevailing_state, report_order

EVERY_STEP = 64
"""Reports of a trial that are each looked at by a model of their own; after that about as many
per doubling."""

REFIT_GROWTH = 0.1
"""Models are fitted again when the COMPLETE trials have grown by this fraction."""

MAX_MODELS, MAX_MODEL_BYTES = 256, 2**29
"""Fitted models kept, and what they may hold: of 256 trials each takes some 25 MB. The least
recently used are dropped first."""


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
