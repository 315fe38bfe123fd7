"""The trial that a callback reports to, found again after copies and pickling."""

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator
from types import FrameType
from typing import Any
from weakref import WeakValueDictionary

from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import BaseTrial, Trial, TrialState


class TrialSource:
    """A trial, or the study whose running trial is meant.

    Copies are the source itself, and so is what is pickled and loaded in the same process: a
    library that copies its callbacks does not copy the study with them. In another process the
    trial is found in its storage.

    Args:
        given: A trial, a study, or a source, which is returned as it is.

    Raises:
        ValueError: It is none of them.
    """

    _given: BaseTrial | Study | None
    _key: tuple[int, str]

    def __new__(cls, given: Any) -> "TrialSource":
        """Return ``given`` where it is a source."""
        if isinstance(given, TrialSource):
            return given
        # neuralforecast tries a search space with a stand-in that suggests and reports nothing.
        if not isinstance(given, (BaseTrial, Study)) and not hasattr(given, "suggest_float"):
            raise ValueError(_no_trial(given))
        return cls._of(given)

    @classmethod
    def _of(cls, given: BaseTrial | Study | None) -> "TrialSource":
        source = super().__new__(cls)
        source._given = given
        source._key = os.getpid(), uuid.uuid4().hex
        _living[source._key] = source
        return source

    @property
    def is_study(self) -> bool:
        """Whether the trial is to be found in a study."""
        return isinstance(self._given, Study)

    def find(self) -> BaseTrial:
        """Return the trial.

        Raises:
            ValueError: The study has no running trial, or several and none that this thread
                runs; or its storage cannot be reached from this process. Or what was given only
                stands in for a trial.
        """
        if self._given is None:
            raise ValueError(
                "The callback was pickled in one process and loaded in another, which cannot reach "
                "InMemoryStorage: create the study with storage= a database, for example "
                "'sqlite:///study.db'."
            )
        if isinstance(self._given, Study):
            return running_trial(self._given)
        if not isinstance(self._given, BaseTrial):
            raise ValueError(_no_trial(self._given))
        return self._given

    def __copy__(self) -> "TrialSource":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "TrialSource":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        given = self._given
        study = given if isinstance(given, Study) else getattr(given, "study", None)
        if isinstance(study, Study) and isinstance(study._storage, InMemoryStorage):
            return _found_again, (self._key, None)
        if isinstance(given, Study):
            with contextlib.suppress(ValueError):  # the trial that runs here, not there
                given = running_trial(given)
        return _found_again, (self._key, given)


def _no_trial(given: object) -> str:
    return (
        "trial must be a trial of Optuna, or a study whose running trial is meant, but got "
        f"{type(given).__name__}."
    )


_living: WeakValueDictionary[tuple[int, str], TrialSource] = WeakValueDictionary()


def _found_again(key: tuple[int, str], given: BaseTrial | Study | None) -> TrialSource:
    # After a fork the key is there too, with another process's number.
    known = _living.get(key) if key[0] == os.getpid() else None
    return TrialSource._of(given) if known is None else known


def running_trial(study: Study) -> BaseTrial:
    """Return the trial of ``study`` that runs in this thread, or the only one that runs.

    The functions that are being called are asked for it: the objective's argument, or what
    :meth:`optuna.study.Study.optimize` holds. So it is the right one with ``n_jobs=2``, too.

    Raises:
        ValueError: None is running, or several are and none of them in this thread.

    Example:
        >>> import optuna
        >>> study = optuna.create_study()
        >>> study.optimize(lambda trial: float(running_trial(study) is trial), n_trials=1)
        >>> study.best_value
        1.0
    """
    for frame in frames():
        for value in frame.f_locals.values():
            if isinstance(value, Trial) and _is_of(value, study):
                return value
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if len(running) != 1:
        found = f"{len(running)} trials are" if running else "no trial is"
        raise ValueError(
            f"Study {study.study_name!r} was given in place of a trial, but {found} running and "
            "none of them in this thread: pass the trial."
        )
    return Trial(study, running[0]._trial_id)


def _is_of(trial: Trial, study: Study) -> bool:
    return trial.study is study or (
        trial.study._storage is study._storage and trial.study._study_id == study._study_id
    )


def frames() -> Iterator[FrameType]:
    """Return the functions of others that are being called in this thread, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith(_HERE):
            yield frame
        frame = frame.f_back


_HERE = f"{__name__.rpartition('.')[0]}."
