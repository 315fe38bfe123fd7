"""Who publishes, and when: one publisher at a time, and only what has changed."""

import contextlib
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._logging import get_logger, without_passwords
from lyap_optuna.dashboard import _publish
from lyap_optuna.records import SpectraError

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

_logger = get_logger(__name__)

INTERVAL = 60.0
"""Seconds between two looks at a storage, at least."""

_PUBLISHER_ATTR = "lyapunov:publisher"


class Publisher:
    """Publishes the studies of a storage, one look after the other.

    A study is published when it has readouts and something changed since it was published last.
    In a journal, which only grows, that happens at the first look, and after it only once no trial
    runs and nothing has changed between two looks. The study's file of spectra is written while
    no trial runs, and at the first look; until then a trial that ends gets its note, and notes that
    are there stay as they are.

    Of several publishers, on whatever machine, one at a time writes to a study: it holds a lease
    that ends by itself.

    Args:
        storage: Any storage.
        artifact_store: Passed on to :func:`~lyap_optuna.dashboard.publish`.
        study_name: Only this study.
        interval: Seconds between two looks.
    """

    def __init__(
        self,
        storage: BaseStorage,
        *,
        artifact_store: "ArtifactStore | None" = None,
        study_name: str | None = None,
        interval: float = INTERVAL,
    ) -> None:
        self._storage = storage
        self._artifact_store = artifact_store
        self._only = study_name
        self._interval = interval
        self._token = uuid.uuid4().hex
        self._studies: dict[str, Study] = {}
        self._seen: dict[str, object] = {}
        self._published: dict[str, object] = {}
        self._warned: set[tuple[str, str]] = set()

    def run(self, stop: threading.Event) -> None:
        """Look again and again until ``stop`` is set, then give up the leases."""
        while True:
            began = time.monotonic()
            self.look(stop)
            # A large study takes a while to draw: spend nine tenths of the time waiting.
            if stop.wait(max(self._interval, 9 * (time.monotonic() - began))):
                break
        for study in self._studies.values():
            with contextlib.suppress(Exception):
                self._release(study)

    def look(self, stop: threading.Event | None = None) -> list[str]:
        """Publish what changed; return the names of the studies that were written to.

        A study that cannot be published is logged, once for each kind of error.
        """
        written = []
        try:
            names = optuna.get_all_study_names(self._storage)
        except Exception as error:
            self._warn("", error)
            return []
        for name in names:
            if stop is not None and stop.is_set():
                break
            if self._only not in (None, name):
                continue
            try:
                if self._look_at(name):
                    written.append(name)
            except Exception as error:
                self._warn(name, error)
        return written

    def _look_at(self, name: str) -> bool:
        study = self._study(name)
        trials = study.get_trials(deepcopy=False)
        if not _publish.measured(trials):
            return False
        now = _fingerprint(study, trials)
        unchanged = self._seen.get(name) == now
        self._seen[name] = now
        if self._published.get(name) == now:
            return False
        first = name not in self._published
        running = any(trial.state == TrialState.RUNNING for trial in trials)
        if isinstance(self._storage, JournalStorage) and not first and (running or not unchanged):
            return False
        if not self._lease(study):
            return False
        # The file reads all spectra, and every new value changes what is known of all trials: both
        # wait for the campaign's end.
        whole = first or not running
        store = self._artifact_store if whole else None
        wrote = bool(_publish.write(study, store, only_new_notes=not whole))
        self._published[name] = now
        return wrote

    def _study(self, name: str) -> Study:
        # Kept, because a study of a database remembers its finished trials.
        study = self._studies.get(name)
        if study is None or study._study_id != self._storage.get_study_id_from_name(name):
            study = self._studies[name] = optuna.load_study(study_name=name, storage=self._storage)
        return study

    def _lease(self, study: Study) -> bool:
        storage, study_id = study._storage, study._study_id
        held = storage.get_study_system_attrs(study_id).get(_PUBLISHER_ATTR)
        if isinstance(held, dict) and held.get("by") != self._token:
            until = held.get("until")
            if isinstance(until, (int, float)) and until > time.time():
                return False
        lease: dict[str, Any] = {
            "by": self._token,
            "until": round(time.time() + 3 * self._interval),
        }
        storage.set_study_system_attr(study_id, _PUBLISHER_ATTR, lease)
        # Another one may have written its own at the same moment.
        return storage.get_study_system_attrs(study_id).get(_PUBLISHER_ATTR) == lease

    def _release(self, study: Study) -> None:
        storage, study_id = study._storage, study._study_id
        held = storage.get_study_system_attrs(study_id).get(_PUBLISHER_ATTR)
        if isinstance(held, dict) and held.get("by") == self._token and held.get("until"):
            storage.set_study_system_attr(study_id, _PUBLISHER_ATTR, {"until": 0})

    def _warn(self, name: str, error: Exception) -> None:
        kind = type(error).__name__
        if (name, kind) not in self._warned:
            self._warned.add((name, kind))
            # The type only: messages of database drivers may hold the URL with its password.
            what = f"Study {name!r}" if name else "The storage"
            why = f"{error} " if isinstance(error, SpectraError) else ""
            _logger.warning(f"{what} could not be published ({kind}); trying again later. {why}")
            trace = "".join(traceback.format_exception(error))
            _logger.debug(f"Publishing failed.\n{without_passwords(trace)}")


def _fingerprint(study: Study, trials: Sequence[FrozenTrial]) -> object:
    # Finished trials do not change in Optuna, and running ones report.
    states = Counter(trial.state for trial in trials)
    n_reports = sum(len(trial.intermediate_values) for trial in trials)
    n_attrs = sum(len(trial.user_attrs) for trial in trials)
    return study._study_id, sorted(states.items()), n_reports, n_attrs
