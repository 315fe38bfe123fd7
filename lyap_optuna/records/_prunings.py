"""Where a callback gave a trial up, and what the steps of a trial count."""

from optuna.trial import BaseTrial, FrozenTrial

from lyap_optuna.records import _keys
from lyap_optuna.records._order import report_order
from lyap_optuna.records._readouts import is_own


def write_pruned(trial: BaseTrial, step: int) -> None:
    """Record that ``trial`` is being pruned at ``step``, before anything is raised.

    A library may catch the exception, or raise it in a process where Optuna does not receive it.
    """
    trial.set_user_attr(_keys.PRUNED, {"trial": trial.number, "step": step})


def pruned_at(trial: FrozenTrial, ordered: bool = True) -> int | None:
    """Return the step at which a callback gave ``trial`` up, if it reported nothing afterwards.

    A retried trial inherits the mark of the dead one, which is none of its own.

    Args:
        trial: Any trial.
        ordered: Whether it comes from where the order of its reports is kept.

    Example:
        >>> import optuna
        >>> from lyap_optuna.records import pruned_at
        >>> mark = {"lyapunov:pruned": {"trial": 0, "step": 1}}
        >>> values = {0: 0.9, 1: 0.8}
        >>> study = optuna.create_study()
        >>> study.add_trial(
        ...     optuna.create_trial(value=0.8, intermediate_values=values, user_attrs=mark)
        ... )
        >>> pruned_at(study.trials[0])
        1
    """
    mark = trial.user_attrs.get(_keys.PRUNED)
    if not isinstance(mark, dict) or not is_own(trial, mark.get("trial")):
        return None
    step = mark.get("step", mark.get("epoch"))  # trials of earlier versions have an epoch
    if not isinstance(step, int):
        return None
    reported = report_order(trial, ordered)
    trained_on = reported[-1] != step if step in reported else max(reported, default=step) > step
    return None if trained_on else step


def write_counting(trial: BaseTrial, counting: str) -> None:
    """Record what the steps of ``trial`` count, where it is not epochs."""
    trial.set_user_attr(_keys.COUNTING, counting)


def counting_of(trial: FrozenTrial) -> str:
    """Return what the steps of ``trial`` count: ``"epoch"`` unless it says otherwise."""
    counting = trial.user_attrs.get(_keys.COUNTING)
    return counting if isinstance(counting, str) else "epoch"
