"""A list of configurations, each to be run to its end once, by any objective and storage."""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

_KEPT = (TrialState.COMPLETE, TrialState.WAITING)


def enqueue_missing(study: Study, configurations: Sequence[Mapping[str, Any]]) -> int:
    """Queue every configuration that has no COMPLETE trial, so that an interrupted run goes on.

    For plain ``study.optimize`` in one process; ``lyap-optuna campaign run`` does more for several.
    Trials that are RUNNING in the storage are taken for those of a process that was killed, and
    failed: call this before the study runs, and while nothing else runs it. PRUNED and failed
    configurations are queued again.

    Args:
        study: The study.
        configurations: Parameters, as :meth:`optuna.study.Study.enqueue_trial` takes them. One that
            is given twice is run twice.

    Returns:
        How many of its trials are waiting: the ``n_trials`` of ``study.optimize``.

    Example:
        >>> import optuna
        >>> from lyap_optuna.campaign import enqueue_missing
        >>> study = optuna.create_study()
        >>> def objective(trial):
        ...     return trial.suggest_float("x", 0, 10) ** 2
        >>> study.optimize(objective, n_trials=enqueue_missing(study, [{"x": 1.0}, {"x": 2.0}]))
        >>> study.optimize(objective, n_trials=enqueue_missing(study, [{"x": 2.0}, {"x": 3.0}]))
        >>> [trial.value for trial in study.trials]
        [1.0, 4.0, 9.0]
    """
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
