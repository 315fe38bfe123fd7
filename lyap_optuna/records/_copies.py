"""Copies of studies with their spectra, which are whole or known to be incomplete."""

import contextlib
import uuid

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import Study

from lyap_optuna.records._errors import SpectraError
from lyap_optuna.records._spectra import copy_spectra

_COPYING = "lyapunov:copying"
"""Attribute of a copy that is not complete: a token of the process that makes it."""


def copy_study(study: Study, storage: BaseStorage, name: str) -> tuple[Study, int]:
    """Copy a study as :func:`optuna.copy_study` does, with its whole spectra.

    What fails leaves no study of that name. What an interruption or a kill leaves is known to be
    incomplete (:func:`is_incomplete`): the next copy to that name begins anew in its place.

    Args:
        study: The study to copy.
        storage: Where to; may be the study's own.
        name: The name of the copy.

    Returns:
        The copy, and how many spectra it has.

    Raises:
        optuna.exceptions.DuplicatedStudyError: There is a study of that name, and it is whole.
        SpectraError: The spectra cannot be copied, or another process makes the same copy.
    """
    if is_incomplete(study):
        raise SpectraError(f"Study {study.study_name!r} is itself an incomplete copy.")
    token = uuid.uuid4().hex
    copy = _begun(study, storage, name)
    study_id = copy._study_id
    storage.set_study_system_attr(study_id, _COPYING, token)
    try:
        for key, value in study._storage.get_study_system_attrs(study._study_id).items():
            if key != _COPYING:
                storage.set_study_system_attr(study_id, key, value)
        for key, value in study.user_attrs.items():
            copy.set_user_attr(key, value)
        for trial in study.get_trials(deepcopy=False):
            # SQLite gives the id of a study that was deleted to the next one.
            _check_token(storage, study_id, token)
            copy.add_trial(trial)
        n_spectra = copy_spectra(study, copy)
        _check_token(storage, study_id, token)
        storage.set_study_system_attr(study_id, _COPYING, None)
    except Exception:
        with contextlib.suppress(KeyError):
            if storage.get_study_system_attrs(study_id).get(_COPYING) == token:
                storage.delete_study(study_id)
        raise
    return copy, n_spectra


def _check_token(storage: BaseStorage, study_id: int, token: str) -> None:
    if storage.get_study_system_attrs(study_id).get(_COPYING) != token:
        raise SpectraError("Another process makes the same copy, and has taken its place.")


def is_incomplete(study: Study) -> bool:
    """Whether a study is a copy that was interrupted, or is still being made."""
    return study._storage.get_study_system_attrs(study._study_id).get(_COPYING) is not None


def _begun(study: Study, storage: BaseStorage, name: str) -> Study:
    """Return an empty study, in place of an incomplete copy of that name."""
    for _ in range(2):
        try:
            return optuna.create_study(
                study_name=name, storage=storage, directions=study.directions
            )
        except DuplicatedStudyError:
            found = optuna.load_study(study_name=name, storage=storage)
            if is_incomplete(found):
                with contextlib.suppress(KeyError):
                    storage.delete_study(found._study_id)
                continue
            # A kill before it could be marked leaves one without anything, which can be filled.
            attrs = storage.get_study_system_attrs(found._study_id) or found.user_attrs
            if attrs or found.get_trials(deepcopy=False) or found.directions != study.directions:
                raise
            return found
    raise SpectraError(f"Another process makes a study {name!r} too. Copy it once more.")
