"""A list of configurations, each to be run to its end once, by any objective and storage."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from tqdm import tqdm

_KEPT = (TrialState.COMPLETE, TrialState.WAITING)


def run_configurations(
    study: Study,
    objective: Callable[[Trial], float],
    configurations: Sequence[Mapping[str, Any]],
    *,
    jobs: int = 1,
) -> None:
    """Run every configuration that has no COMPLETE trial; an interrupted run goes on.

    For a list of one's own (a grid, pairs drawn beforehand), in one process and any storage, also
    SQLite; ``lyap-optuna campaign run`` is for samplers, pruners and several processes. Trials that
    are RUNNING in the storage are taken for those of a process that was killed, and failed: let one
    process at a time run the study. PRUNED and failed configurations are run again. A bar shows the
    progress on a terminal.

    Args:
        study: The study.
        objective: As :meth:`optuna.study.Study.optimize` takes it. With several jobs it runs in
            threads; random numbers should then come from generators of its own.
        configurations: Parameters, as :meth:`optuna.study.Study.enqueue_trial` takes them. One that
            is given twice is run twice.
        jobs: How many trials run at a time. After an interruption or an error no new one begins,
            and those that run end first.

    Raises:
        ValueError: ``jobs`` is not positive.
        Exception: Whatever the objective raises, as ``study.optimize`` does.

    Example:
        >>> import optuna
        >>> from lyap_optuna.campaign import run_configurations
        >>> study = optuna.create_study()
        >>> def objective(trial):
        ...     return trial.suggest_float("x", 0, 10) ** 2
        >>> run_configurations(study, objective, [{"x": 1.0}, {"x": 2.0}])
        >>> run_configurations(study, objective, [{"x": 2.0}, {"x": 3.0}])
        >>> [trial.value for trial in study.trials]
        [1.0, 4.0, 9.0]
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, but got {jobs!r}.")
    missing = _enqueue_missing(study, configurations)
    asking = threading.Lock()

    def run_one() -> None:
        # Optuna's queue in SQLite gives one trial to two threads that ask at the same moment. The
        # lock is held from here until the objective begins.
        begun = False

        def locked(trial: Trial) -> float:
            nonlocal begun
            begun = True
            asking.release()
            return objective(trial)

        asking.acquire()
        try:
            study.optimize(locked, n_trials=1)
        finally:
            if not begun:
                asking.release()

    with tqdm(total=missing, desc=study.study_name, unit="trial", disable=None) as bar:
        if jobs == 1:
            for _ in range(missing):
                run_one()
                bar.update()
            return
        with ThreadPoolExecutor(jobs) as pool:
            try:
                for future in as_completed([pool.submit(run_one) for _ in range(missing)]):
                    future.result()
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _enqueue_missing(study: Study, configurations: Sequence[Mapping[str, Any]]) -> int:
    """Queue what is missing; return how many trials are waiting."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    there = [_configuration(t) for t in study.get_trials(deepcopy=False, states=_KEPT)]
    for configuration in configurations:
        if dict(configuration) in there:
            there.remove(dict(configuration))
        else:
            study.enqueue_trial(dict(configuration))
    return len(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def _configuration(trial: FrozenTrial) -> dict[str, Any]:
    fixed = trial.system_attrs.get("fixed_params")
    return dict(fixed) if isinstance(fixed, Mapping) else trial.params
