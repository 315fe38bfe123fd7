"""What happens to trials whose worker died or was told to stop: each is repeated, once."""

import contextlib
import functools
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from lyap_optuna.campaign._retry import INTERRUPTED, WORKER, retry_once
from lyap_optuna.records import Decision, number_in, repeat, stored_trial, write_decision
from lyap_optuna.records._keys import CONTINUES, REPEATS, RESTING
from lyap_optuna.search._sampling import as_pruned


def previous_attempt(trial: BaseTrial) -> int | None:
    """Return the number of the trial from whose checkpoint this one may go on, or None.

    That is the latest of the pruned trial which it continues, the one which it repeats because that
    was interrupted or ran out of memory, and the one whose worker died. Save checkpoints under
    ``trial.number`` and look for this number's when a trial begins; without a checkpoint, begin
    from the start.

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


def owner(task: str, run: str = "") -> dict[str, Any]:
    """Return the mark that a worker leaves on its trial."""
    return {"run": run, "task": task, **_this_process(os.getpid())}


@functools.cache
def _this_process(pid: int) -> dict[str, Any]:
    return {
        "host": platform.node(),
        "space": process_space(),
        "pid": pid,
        "started": psutil.Process(pid).create_time(),
        "booted": psutil.boot_time(),
    }


def process_space() -> str:
    """Return what process ids are valid in: a boot of a machine, and a namespace (a container)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux: the host alone tells
        return ""


_SAME_START = 2.0  # seconds: the time of the boot is known to one


def is_local(mark: Mapping[str, Any]) -> bool:
    """Whether the process id of a mark means the same here: same host, boot and container."""
    return mark.get("host") == platform.node() and mark.get("space") == process_space()


def process_is_gone(mark: Mapping[str, Any], *, one_machine: bool = False) -> bool:
    """Whether a mark is of a process that has ended; not where that cannot be told from here.

    Processes are told apart by when they began since the boot, on a clock that nobody sets.

    Args:
        mark: What :func:`owner` returned there.
        one_machine: Whether the mark is in a file that one machine has: what signed it under the
            same host name before another boot is gone.
    """
    pid, started, booted = (mark.get(key) for key in ("pid", "started", "booted"))
    if not is_local(mark):
        before = str(mark.get("space", "")).partition(" ")[0]
        now = process_space().partition(" ")[0]
        same_host = mark.get("host") == platform.node()
        return one_machine and same_host and bool(before) and before != now
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        now = psutil.Process(pid).create_time() - psutil.boot_time()
        return bool(abs(now - (started - booted)) > _SAME_START)  # type: ignore[operator]
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, TypeError, ValueError, OverflowError):
        return False


def marked(study: Study, chosen: Callable[[Mapping[str, Any]], bool]) -> list[FrozenTrial]:
    """Return the running trials, also those that rest, whose worker's mark is ``chosen``."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    marks = [(trial, trial.user_attrs.get(WORKER)) for trial in running]
    return [trial for trial, mark in marks if isinstance(mark, Mapping) and chosen(mark)]


def same_process(trials: Iterable[FrozenTrial]) -> Callable[[Mapping[str, Any]], bool]:
    """Return whether a mark is of a process that signed one of these trials."""
    processes = {_process(trial.user_attrs[WORKER]) for trial in trials} - {None}
    return lambda mark: _process(mark) in processes


def _process(mark: Mapping[str, Any]) -> tuple[str, int, float] | None:
    match mark:
        case {"host": str(host), "pid": int(pid), "started": float(started)}:
            return host, pid, started
    return None


@dataclass(frozen=True)
class Settled:
    """What has become of trials whose worker is gone, as numbers.

    Args:
        failed: They failed and are queued again.
        rested: They rested, and ended with their last report.
    """

    failed: list[int] = field(default_factory=list)
    rested: list[int] = field(default_factory=list)


def settle(
    study: Study,
    trials: Iterable[FrozenTrial],
    has_checkpoint: Callable[[int], bool],
    *,
    interrupted: bool = False,
) -> Settled:
    """End running trials of workers that are gone, each once whoever notices: the state decides.

    * One that ran fails, and is retried once, with Optuna's own callback. (On databases Optuna's
      heartbeat does the same for workers that no parent watches.)
    * One that rested is PRUNED with its last report; FAIL where it has none.
    * One that rested and has a checkpoint, and all that ran where the campaign was ``interrupted``,
      are left to :func:`repeat_interrupted`.
    """
    settled = Settled()
    for trial in trials:
        rests = trial.user_attrs.get(RESTING) is True
        goes_on = has_checkpoint(trial.number)
        if rests and not goes_on:
            if _end_at_rest(study, trial):
                settled.rested.append(trial.number)
            continue
        if rests or interrupted:
            with contextlib.suppress(UpdateFinishedTrialError):
                study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
                study._storage.set_trial_user_attr(trial._trial_id, RESTING, False)
        if fail(study, trial):
            retry_once(study, study._storage.get_trial(trial._trial_id))
            settled.failed.append(trial.number)
    return settled


def _end_at_rest(study: Study, trial: FrozenTrial) -> bool:
    ended = as_pruned(trial)
    told = "It rested when its worker ended, and no other could go on with it."
    step = trial.last_step or 0
    try:
        study._storage.set_trial_user_attr(trial._trial_id, RESTING, False)
        write_decision(study, trial, Decision(step, verdict="pruned", because="rested", told=told))
        return study._storage.set_trial_state_values(trial._trial_id, ended.state, ended.values)
    except UpdateFinishedTrialError:
        return False


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
