"""Trials that take up an earlier one: with its parameters, its readouts, and its number."""

from collections.abc import Mapping

from optuna.study import Study
from optuna.trial import FrozenTrial

from lyap_optuna.records import _keys


def number_in(trial: FrozenTrial, key: str) -> int | None:
    """Return the trial number stored under ``key``, or None: attributes may be edited by hand."""
    number = trial.user_attrs.get(key)
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def repeat(study: Study, trial: FrozenTrial, mark: str = _keys.REPEATS) -> None:
    """Queue a new trial with the parameters of ``trial``.

    As in Optuna's retries, it inherits the readouts, with the number of ``trial``: they count for
    its baseline, and at steps that it reports itself.
    """
    fixed = trial.system_attrs.get("fixed_params")
    params = {**(fixed if isinstance(fixed, Mapping) else {}), **trial.params}
    attrs = {
        key: trial.user_attrs[key]
        for key in (_keys.READOUTS, _keys.CONTINUES)
        if key in trial.user_attrs
    }
    if _keys.READOUTS in attrs:
        attrs[_keys.TRIAL] = trial.number
    study.enqueue_trial(params, user_attrs={**attrs, mark: trial.number})
