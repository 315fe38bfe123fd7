"""The order in which a trial reported its steps, which few storages keep.

Optuna holds reports in a dict from step to value. In memory and in a journal it is in the order of
the reports; databases return it sorted by step or in any order, and a gRPC proxy shuffled. So steps
are taken to ascend, unless another order was seen while the trial ran, and stored.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.trial import FrozenTrial

from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.records import _json, _keys

_MAX_WATCHED = 4096  # trials that run at the same time in one process

_watched: WeakKeyDictionary[BaseStorage, OrderedDict[int, list[int]]] = WeakKeyDictionary()
_lock = threading.Lock()


def keeps_order(storage: BaseStorage) -> bool:
    """Whether trials that are read from ``storage`` hold their reports as they came."""
    return isinstance(storage, (InMemoryStorage, JournalStorage))


def report_order(trial: FrozenTrial, kept: bool = True) -> tuple[int, ...]:
    """Return the reported steps of a trial in the order in which they were reported.

    Args:
        trial: Any trial.
        kept: Whether it comes from where the order is kept (:func:`keeps_order`).

    Example:
        >>> import optuna
        >>> from lyap_optuna.records import report_order
        >>> report_order(optuna.create_trial(value=0.1, intermediate_values={2: 0.4, 1: 0.1}))
        (2, 1)
    """
    values = trial.intermediate_values
    steps = list(values) if kept else sorted(values)
    stored = trial.user_attrs.get(_keys.ORDER)
    if not isinstance(stored, list):
        return tuple(steps)
    # A retry inherits the attribute, and not the reports.
    first = dict.fromkeys(s for s in stored if isinstance(s, int) and s in values)
    return (*first, *(s for s in steps if s not in first))


def watch_order(storage: BaseStorage, trial: FrozenTrial) -> bool:
    """Note which steps a running trial has reported since it was watched last.

    To be called after each report. Where the steps do not ascend, their order is stored with the
    trial; a write that fails is a :class:`~lyap_optuna.LyapunovWarning`.

    Returns:
        Whether something was written.
    """
    kept = keeps_order(storage)
    told = report_order(trial, kept)
    if kept:
        order: Sequence[int] = list(trial.intermediate_values)
    else:
        with _lock:
            trials = _watched.setdefault(storage, OrderedDict())
            seen = [s for s in trials.pop(trial._trial_id, told) if s in trial.intermediate_values]
            # Several since then are taken to lead away from the last that was seen.
            last = seen[-1] if seen else -1
            new = sorted(set(told).difference(seen), key=lambda step: abs(step - last))
            order = trials[trial._trial_id] = [*seen, *new]
            if len(trials) > _MAX_WATCHED:
                trials.popitem(last=False)
    ascends = list(order) == sorted(order)
    if (ascends and tuple(order) == told) or _json.size(order) > _json.MAX_BYTES:
        return False
    if trial.user_attrs.get(_keys.ORDER) == order:
        return False
    try:
        storage.set_trial_user_attr(trial._trial_id, _keys.ORDER, list(order))
    except Exception as error:
        warnings.warn(
            f"The order of the steps of trial {trial.number}, which do not ascend, was not stored: "
            f"{type(error).__name__}.",
            LyapunovWarning,
            stacklevel=3,
        )
        return False
    return True
