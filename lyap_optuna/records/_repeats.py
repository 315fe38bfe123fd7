"""Trials that are begun again, as new ones: Optuna cannot go on with a trial that has ended."""

from collections.abc import Mapping

from optuna.study import Study
from optuna.trial import FrozenTrial

from lyap_optuna.records import _keys


def repeat(study: Study, trial: FrozenTrial) -> None:
    """Queue a new trial with the parameters of ``trial``; its attribute REPEATS names that.

    As in Optuna's retries, it inherits the readouts, with the number of ``trial``: they count for
    its baseline, and at steps that it reports itself.
    """
    fixed = trial.system_attrs.get("fixed_params")
    params = {**(fixed if isinstance(fixed, Mapping) else {}), **trial.params}
    inherited = (_keys.READOUTS, _keys.CONTINUES)
    attrs = {key: trial.user_attrs[key] for key in inherited if key in trial.user_attrs}
    if _keys.READOUTS in attrs:
        attrs[_keys.TRIAL] = trial.number
    study.enqueue_trial(params, user_attrs={**attrs, _keys.REPEATS: trial.number})
