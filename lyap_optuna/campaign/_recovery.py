"""What happens to trials whose worker died or was told to stop: each is repeated, once."""

import os
import platform
from collections.abc import Callable, Mapping
from typing import Any

import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from lyap_optuna.campaign._retry import INTERRUPTED, WORKER, retry_once
from lyap_optuna.records import number_in, repeat, stored_trial
from lyap_optuna.records._keys import CONTINUES, REPEATS


def previous_attempt(trial: BaseTrial) -> int | None:
    """Return the number of the trial from whose checkpoint this one may go on, or None.

    That is the latest of the screened or pruned trial which it continues, the interrupted one
    which it repeats, and the one whose worker died. Save checkpoints under ``trial.number`` and
    look for this number's when a trial begins; without a checkpoint, begin from the start.

    Args:
        trial: A running trial.

    Returns:
        A trial number of the same study.

    Example:
        >>> import optuna
        >>> from lyap_optuna.campaign import previous_attempt
        >>> study = optuna.create_study()
        >>> study.enqueue_trial({"x": 1.0}, user_attrs={"lyapunov:continues": 7})
        >>> previous_attempt(study.ask())
        7
    """
    history = getattr(stored_trial(trial), "system_attrs", {}).get("retry_history")
    retried = history[-1] if isinstance(history, list) and history else None
    # A retry inherits what its dead attempt repeats; a repetition inherits what that continues.
    for number in (retried, trial.user_attrs.get(REPEATS), trial.user_attrs.get(CONTINUES)):
        if isinstance(number, int) and not isinstance(number, bool):
            return number
    return None


def owner(task: str) -> dict[str, Any]:
    """Return the mark that a worker leaves on its trial."""
    process = psutil.Process()
    return {
        "task": task,
        "host": platform.node(),
        "pid": process.pid,
        "started": process.create_time(),
    }


def process_is_gone(mark: Mapping[str, Any]) -> bool:
    """Whether a mark is of a process of this machine that has ended."""
    pid, started = mark.get("pid"), mark.get("started")
    if mark.get("host") != platform.node() or not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        return bool(psutil.Process(pid).create_time() != started)
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, ValueError, OverflowError):
        return False


def recover(study: Study, is_dead: Callable[[Mapping[str, Any]], bool]) -> list[int]:
    """Fail the running trials of dead workers and retry each once, with Optuna's own callback.

    On databases Optuna's heartbeat does the same for workers that no parent watches. The state
    decides who was first, so that there is one retry whoever notices.

    Returns:
        Numbers of the trials that were failed.
    """
    failed = []
    for trial in _running(study, is_dead):
        if fail(study, trial):
            retry_once(study, study._storage.get_trial(trial._trial_id))
            failed.append(trial.number)
    return failed


def interrupt(study: Study, is_stopped: Callable[[Mapping[str, Any]], bool]) -> list[int]:
    """End the running trials of workers that were stopped at once.

    Returns:
        Numbers of the trials that were failed.
    """
    failed = []
    for trial in _running(study, is_stopped):
        study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
        if fail(study, trial):
            failed.append(trial.number)
    return failed


def fail(study: Study, trial: FrozenTrial) -> bool:
    """End a running trial as FAIL; whether it was this call that did."""
    try:
        return study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False


def repeat_interrupted(study: Study) -> int:
    """Queue again the interrupted trials that were not; only the parent of a campaign does this.

    Returns:
        How many there were.
    """
    trials = study.get_trials(deepcopy=False)
    repeated = {number_in(trial, REPEATS) for trial in trials}
    n_repeated = 0
    for trial in trials:
        interrupted = trial.user_attrs.get(INTERRUPTED) is True
        if trial.state == TrialState.FAIL and interrupted and trial.number not in repeated:
            repeat(study, trial)
            n_repeated += 1
    return n_repeated


def _running(study: Study, chosen: Callable[[Mapping[str, Any]], bool]) -> list[FrozenTrial]:
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    marked = [(trial, trial.user_attrs.get(WORKER)) for trial in running]
    return [trial for trial, mark in marked if isinstance(mark, Mapping) and chosen(mark)]
