"""What samplers see of a search that pauses: a trial that rests looks PRUNED to them.

Samplers know no paused trials. RUNNING ones they leave out, or put among the bad; PRUNED ones
count, with their last report. Optuna's Hyperband shows samplers a filtered study in the same way
(``optuna/pruners/_hyperband.py``); here it is the storage behind the study that filters, because
some samplers ask that directly.
"""

import copy
import math
from collections.abc import Callable, Container, Sequence
from datetime import datetime
from typing import Any, cast

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, BruteForceSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.study.study import _ThreadLocalStudyAttribute
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.records import _keys

Rests = Callable[[FrozenTrial], bool]


def as_pruned(trial: FrozenTrial) -> FrozenTrial:
    """Return a copy of a resting trial as it would be if it were pruned now.

    One without reports is a FAIL: samplers ignore those.
    """
    seen = copy.copy(trial)
    last = None if trial.last_step is None else trial.intermediate_values[trial.last_step]
    seen.state = TrialState.FAIL if last is None else TrialState.PRUNED
    seen.values = None if last is None or math.isnan(last) else [last]
    seen.datetime_complete = datetime.now()
    return seen


class _SeenStorage:
    """A storage in which resting trials are PRUNED; everything else is the storage's own."""

    def __init__(self, storage: BaseStorage, rests: Rests) -> None:
        self._seen, self._rests = storage, rests

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seen, name)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        trials = [self._of(t) for t in self._seen.get_all_trials(study_id, deepcopy=deepcopy)]
        return trials if states is None else [t for t in trials if t.state in states]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._of(self._seen.get_trial(trial_id))

    def _of(self, trial: FrozenTrial) -> FrozenTrial:
        if trial.state != TrialState.RUNNING or not self._rests(trial):
            return trial
        return as_pruned(trial)


class _SeenStudy(Study):
    """The study in front of it. A sampler that calls ``stop`` has no more to suggest."""

    def __init__(self, study: Study, rests: Rests, exhaust: Callable[[], None]) -> None:
        self.__dict__.update(study.__dict__)
        self._storage = cast(BaseStorage, _SeenStorage(study._storage, rests))
        self._thread_local = _ThreadLocalStudyAttribute()  # caches of trials are its own
        self._exhaust = exhaust

    def stop(self) -> None:
        self._exhaust()


class SeesRestingAsPruned(BaseSampler):
    """A sampler that is shown the resting trials as PRUNED.

    Args:
        sampler: The study's sampler.
        study: The study.
        resting: The ids of this search's trials that rest, kept up to date by it. Those of other
            processes say so in an attribute.
    """

    def __init__(self, sampler: BaseSampler, study: Study, resting: Container[int]) -> None:
        self.sampler = sampler
        self.exhausted = False
        """Whether the sampler has said that it has no more to suggest."""
        self._study = study
        # Infeasible trials are told by constraints, which are computed when a trial ends: a trial
        # that rests has none yet and is shown as it is.
        self._constrained = getattr(sampler, "_constraints_func", None) is not None
        self._resting = resting
        self._seen_by: tuple[int, _SeenStudy] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["sampler"], name)

    def __str__(self) -> str:
        return str(self.sampler)

    def _seen(self, trial: FrozenTrial, fresh: bool = False) -> _SeenStudy:
        """Return the study as ``trial`` sees it; Optuna too reads the trials once per trial."""
        if fresh or self._seen_by is None or self._seen_by[0] != trial._trial_id:
            seen = _SeenStudy(self._study, self._rests, self._exhaust)
            self._seen_by = trial._trial_id, seen
        return self._seen_by[1]

    def _rests(self, trial: FrozenTrial) -> bool:
        if self._constrained:
            return False
        return trial._trial_id in self._resting or trial.user_attrs.get(_keys.RESTING) is True

    def _exhaust(self) -> None:
        self.exhausted = True

    def is_out(self, resting: Sequence[FrozenTrial]) -> bool:
        """Return whether a new trial would only repeat one, the resting trials counted as done."""
        if self.exhausted:
            return True
        is_exhausted = getattr(self.sampler, "is_exhausted", None)  # GridSampler's
        study = _SeenStudy(self._study, self._rests, self._exhaust)
        if is_exhausted is not None:
            return bool(is_exhausted(study))
        if resting and isinstance(self.sampler, BruteForceSampler):  # says so after a trial only
            last = as_pruned(resting[-1])
            self.sampler.after_trial(study, last, last.state, last.values)
        return self.exhausted

    def reseed_rng(self) -> None:
        self.sampler.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.sampler.infer_relative_search_space(self._seen(trial), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.sampler.sample_relative(self._seen(trial), trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        seen = self._seen(trial)
        return self.sampler.sample_independent(seen, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.sampler.before_trial(self._seen(trial, fresh=True), trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self.sampler.after_trial(self._seen(trial, fresh=True), trial, state, values)
