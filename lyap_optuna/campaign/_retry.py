"""The one retry of a trial whose worker died, whoever noticed: the parent or Optuna's heartbeat."""

import copy
import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial

from lyap_optuna.records._keys import RESTING

MAX_RETRY = 1
"""A trial whose worker died is repeated so many times."""

WORKER = "lyapunov:worker"
"""Who runs a trial: task, host, process id and when that process began."""

INTERRUPTED = "lyapunov:interrupted"
"""True on a trial that failed because the campaign was told to stop."""


def retry_once(study: Study, trial: FrozenTrial) -> None:
    """Queue a failed trial again, with all its attributes, as Optuna's own callback does.

    The retry does not inherit the marks of the dead worker: whoever looks for trials of dead
    workers would take it for one. A trial that was being interrupted when its worker died is
    left to :func:`~lyap_optuna.campaign._recovery.repeat_interrupted`.
    """
    if trial.user_attrs.get(INTERRUPTED) is True:
        return
    stored = copy.deepcopy(trial)  # the callback extends a list within the attributes
    for mark in (WORKER, RESTING):
        stored.user_attrs.pop(mark, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback(MAX_RETRY)(study, stored)
