"""The strategy ``freeze_thaw``: each worker pauses trials, and goes on with the most promising."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.storages._heartbeat import BaseHeartbeat
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from lyap_optuna.campaign._config import CampaignConfig, FreezeThaw
from lyap_optuna.campaign._recovery import settle
from lyap_optuna.campaign._retry import INTERRUPTED, WORKER
from lyap_optuna.campaign._strategies import Session, Strategy, Turn
from lyap_optuna.records import number_in
from lyap_optuna.records._keys import REPEATS, RESTING
from lyap_optuna.search._budget import Budget
from lyap_optuna.search._freeze_thaw import choice_of
from lyap_optuna.search._search import Search

if TYPE_CHECKING:
    from lyap_optuna.campaign._worker import Result, Worker


class FreezeThawStrategy(Strategy):
    """Workers take turns at trials: each goes on with one that rests in it, or begins a new one.

    The parent counts trials and steps over all workers and shares out what is left; which trial a
    worker goes on with is the worker's to choose.

    Args:
        config: What the campaign file says.
        options: What it says of the strategy.
    """

    def __init__(self, config: CampaignConfig, options: FreezeThaw) -> None:
        self._config, self.options = config, options
        self._idle = 0  # turns in a row that found nothing to go on with

    def tried(self, trials: Sequence[FrozenTrial]) -> int:
        """Return how many are done with; also those that rested untrained to the end."""
        again = {number_in(trial, REPEATS) for trial in trials}
        return super().tried(trials) + sum(
            trial.state == TrialState.FAIL
            and RESTING in trial.user_attrs
            and not trial.intermediate_values
            and trial.user_attrs.get(INTERRUPTED) is not True
            and trial.number not in again
            for trial in trials
        )

    def missing(self, trials: Sequence[FrozenTrial]) -> int:
        """Return the total less the trials that have ended, or 0 where the steps are spent."""
        if self._steps_left(trials) == 0:
            return 0
        return max(self._config.trials - self.tried(trials), 0)

    def _steps_left(self, trials: Sequence[FrozenTrial]) -> int | None:
        if self.options.n_steps is None:
            return None
        spent = sum(len(t.intermediate_values) for t in trials)
        return max(self.options.n_steps - spent, 0)

    def turn(
        self, trials: Sequence[FrozenTrial], running: Sequence[Turn], alive: int
    ) -> Turn | None:
        """Return a turn with an equal share of the steps that are left, reserved ones aside."""
        n_steps = self._steps_left(trials)
        if n_steps is not None:
            n_steps -= sum(turn.n_steps or 0 for turn in running)
            if n_steps <= 0:
                return None
            n_steps = max(n_steps // max(alive, 1), 1)
        live = [t for t in trials if t.state == TrialState.RUNNING]
        signed = {_task(trial) for trial in live}
        coming = sum(turn.begin and turn.task not in signed for turn in running)
        begun = self.tried(trials) + len(live) + coming
        begin = begun < self._config.trials and not self.exhausted
        if not begin and self._idle >= alive - len(running):
            return None
        return Turn(begin=begin, n_steps=n_steps)

    def took(self, turn: Turn, result: "Result") -> None:
        """Take note of whether the worker had a trial to go on with."""
        self._idle = self._idle + 1 if result.idle else 0
        self.exhausted |= result.idle and turn.begin  # the sampler has no more to suggest

    def session(self, worker: "Worker") -> Session:
        """Return a search that keeps the trials of this worker."""
        return _Share(worker, self)

    def has_checkpoint(self, number: int) -> bool:
        """Return whether the folder holds a file or folder that is named by the trial's number."""
        if self.options.checkpoint is None:
            return False
        folder = Path(self.options.checkpoint)
        return (folder / str(number)).exists() or any(folder.glob(f"{number}.*"))


def _task(trial: FrozenTrial) -> object:
    mark = trial.user_attrs.get(WORKER)
    return mark.get("task") if isinstance(mark, Mapping) else None


class _Share(Session):
    """What one worker does of the search."""

    def __init__(self, worker: "Worker", strategy: FreezeThawStrategy) -> None:
        self._search = _WorkersSearch(worker, strategy)
        self._open = contextlib.ExitStack()
        self._open.enter_context(self._search.in_study())

    def run(self, turn: Turn) -> bool:
        return self._search.turn(begin=turn.begin, n_steps=turn.n_steps)

    def close(self, interrupted: bool) -> None:
        with self._open:
            self._search.close(interrupted)


class _WorkersSearch(Search):
    def __init__(self, worker: "Worker", strategy: FreezeThawStrategy) -> None:
        super().__init__(
            worker.study,
            worker.objective,
            choice=choice_of(worker.study, None, "seconds", worker.seed),
            budget=Budget(),  # what a turn allows
            max_paused=strategy.options.max_paused,
            seed=worker.seed,
            catch=(BaseException,),  # the worker takes note of it
            callbacks=(lambda study, trial: worker.ended(trial),),
        )
        self._worker, self._strategy = worker, strategy
        self._interrupted = False

    def close(self, interrupted: bool) -> None:
        """End what rests. Of an interrupted campaign it goes on where there is a checkpoint."""
        self._interrupted = interrupted
        error = self.end_all(self._callbacks)
        if error is not None:
            raise error

    def ask(self) -> Trial:
        return self._worker.begin(super().ask())

    def goes_on(self, trial: Trial) -> None:
        self._worker.sign(trial)

    def raised(self, trial: Trial, error: BaseException) -> None:
        self._worker.failed(trial, error)

    def goes_elsewhere(self, trial: Trial) -> bool:
        if not self._interrupted or not self._strategy.has_checkpoint(trial.number):
            return False
        trial.set_user_attr(INTERRUPTED, True)
        return True

    def fail_stale(self) -> None:
        settle(self._study, _stale(self._study), self._strategy.has_checkpoint)


def _stale(study: Study) -> list[FrozenTrial]:
    storage = study._storage
    assert isinstance(storage, BaseHeartbeat)
    return [storage.get_trial(i) for i in storage._get_stale_trial_ids(study._study_id)]
