"""The trials of a recording, suggested and reported again as they were."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.prediction._study import StudyModels
from lyap_optuna.prediction.evidence import EVIDENCE
from lyap_optuna.probe import UNTRAINED_STEP
from lyap_optuna.records import _keys
from lyap_optuna.replay._outcome import Log
from lyap_optuna.replay._recording import RecordedTrial, Recording, stored_readouts


def order_of(recording: Recording, order: int) -> list[int]:
    """Return the trials' indices in the random order of that number."""
    return [int(i) for i in np.random.default_rng(order).permutation(len(recording.trials))]


class RecordedTrials(BaseSampler):
    """Suggests what was recorded.

    Args:
        recording: The study.
        order: Number of the order of trials.
        choose: Whether the next trial is the one of all that have not begun, whose chance of
            ending among the best is largest by its hyperparameters and its readout before
            training. In order where nothing can be told yet, and among equal ones.
    """

    def __init__(self, recording: Recording, order: int, choose: bool = False) -> None:
        self.trials = [recording.trials[i] for i in order_of(recording, order)]
        self._left = list(range(len(self.trials)))
        self._begun: list[int] = []
        self._state = recording.state
        self._models: StudyModels | None = None
        self._choose = choose

    def begun(self, study: Study, number: int) -> RecordedTrial:
        """Return what the trial of that number is a replay of."""
        while len(self._begun) <= number:
            next_one = self._next(study) if self._choose else 0
            self._begun.append(self._left.pop(next_one))
        return self.trials[self._begun[number]]

    def _next(self, study: Study) -> int:
        if self._models is None:
            self._models = StudyModels.of_study(study, tuple(EVIDENCE))
        self._models.update(study.get_trials(deepcopy=False))
        model = self._models.at(None)
        if not model.kinds:
            return 0
        views = [self._models.view(self._untrained(index)) for index in self._left]
        predicted = model.predict(views)
        return int(np.argmax([0.0 if p is None else p.probability or 0.0 for p in predicted]))

    def _untrained(self, index: int) -> FrozenTrial:
        recorded = self.trials[index]
        before = _baseline(recorded, self._state)
        return FrozenTrial(
            number=-1,
            trial_id=-1 - index,  # no trial of the study
            state=TrialState.RUNNING,
            value=None,
            datetime_start=None,
            datetime_complete=None,
            params=dict(recorded.params),
            distributions=dict(recorded.distributions),
            user_attrs={} if before is None else {_keys.READOUTS: {str(UNTRAINED_STEP): before}},
            system_attrs={},
            intermediate_values={},
        )

    def is_exhausted(self, study: Study) -> bool:
        """Return whether all trials have begun; ``freeze_thaw`` asks."""
        return len(study.get_trials(deepcopy=False)) >= len(self.trials)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self.begun(study, trial.number).params[param_name]


def reported(
    trial: optuna.Trial, recorded: RecordedTrial, state: str | None, log: Log
) -> Iterator[int | None]:
    """Report and store what was recorded, and stop after each step.

    Yields:
        None where a readout before training was recorded and is stored now; then each step.
    """
    before = _baseline(recorded, state)
    if before is not None:
        trial.set_user_attr(_keys.READOUTS, {str(UNTRAINED_STEP): before})
        yield None
    series = _series(recorded, state)
    for step, value in recorded.values.items():
        trial.report(value, step)
        log.reported(recorded)
        if step in series:
            trial.set_user_attr(_keys.READOUTS, series[step])
        yield step


def _baseline(trial: RecordedTrial, state: str | None) -> dict[str, Any] | None:
    """Return the readout before training; None where none was recorded."""
    measured = stored_readouts(trial, state)
    before = [s for s in measured if s < min(trial.values)]
    step = max([s for s in before if s < 0] or before, default=None)
    return None if step is None else measured[step]


def _series(trial: RecordedTrial, state: str | None) -> dict[int, dict[str, Any]]:
    """Return the readouts known after each reported step at which one was taken."""
    steps = list(trial.values)
    measured = stored_readouts(trial, state)
    places: dict[int, int] = {}
    for step in measured:
        # Taken between two steps, it is known at the second; after the last, it is of no use.
        at = min((reported for reported in steps if reported >= step), default=None)
        if at is not None:
            places[step] = 0 if step < min(steps) else steps.index(at)
    return {
        steps[place]: {str(s): measured[s] for s, before in places.items() if before <= place}
        for place in set(places.values())
    }
