"""Signs of life: one thread gives those of all trials of a search, also of trials that rest."""

import threading

from optuna.storages import BaseStorage
from optuna.storages._heartbeat import BaseHeartbeat, is_heartbeat_enabled

from lyap_optuna._logging import get_logger

_logger = get_logger(__name__)


class Heartbeat:
    """Records heartbeats where the storage has them, as ``study.optimize`` does for one trial.

    Args:
        storage: The study's storage.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage: BaseHeartbeat | None = None
        if is_heartbeat_enabled(storage):
            assert isinstance(storage, BaseHeartbeat)
            self._storage = storage
        self._trials: set[int] = set()
        self._lock = threading.Lock()  # held for a beat: none is recorded after `remove`
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, trial_id: int) -> None:
        """Record the first heartbeat of a trial and go on with it."""
        if self._storage is None:
            return
        self._storage.record_heartbeat(trial_id)
        with self._lock:
            self._trials.add(trial_id)
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="lyap-optuna-heartbeat", daemon=True
            )
            self._thread.start()

    def remove(self, trial_id: int) -> None:
        """Record no more heartbeats of a trial."""
        with self._lock:
            self._trials.discard(trial_id)

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        storage = self._storage
        assert storage is not None
        while not self._stop.wait(storage.get_heartbeat_interval()):
            for trial_id in list(self._trials):
                with self._lock:
                    if trial_id not in self._trials or self._stop.is_set():
                        continue
                    try:
                        storage.record_heartbeat(trial_id)
                    except Exception as error:  # the next beat may get through
                        name = type(error).__name__  # a driver's message may hold a password
                        _logger.warning(f"A heartbeat could not be recorded ({name}).")
