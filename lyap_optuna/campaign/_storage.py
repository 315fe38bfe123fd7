"""Where a campaign keeps its study, and a storage that outlives a restart of the database."""

import copy
import json
import logging
import sqlite3
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
import tenacity
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import (
    BaseStorage,
    GrpcStorageProxy,
    RDBStorage,
    get_storage,
)
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages._rdb import models
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._logging import get_logger, lost_scheme
from lyap_optuna.campaign._config import CampaignConfig
from lyap_optuna.campaign._retry import retry_once
from lyap_optuna.records import open_journal
from lyap_optuna.records._storages import unwrapped

_logger = get_logger(__name__)
_T = TypeVar("_T")

_CREATED = "lyapunov:created"
_CONNECT_SECONDS = 10  # a server that takes longer to say that it is there is counted as absent
# SQLSTATEs: no connection, the operator intervened, serialisation, deadlock, too many connections,
# no lock.
_TRANSIENT_STATES = ("08", "57P", "40001", "40P01", "53300", "55P03")
# PyMySQL's own for a closed socket, too many connections, shutdown, no lock, deadlock, killed, no
# socket, no host, server gone, lost while asking, idle for too long.
_TRANSIENT_MYSQL = frozenset({0, 1040, 1053, 1205, 1213, 1927, 2002, 2003, 2006, 2013, 4031})
_TRANSIENT_SQLITE = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


def is_transient(error: BaseException | None) -> bool:
    """Whether a database error will pass: a lost connection, a restart, a deadlock, a busy file.

    A full disk, a missing table, a wrong password or a value that does not fit will not.
    """
    while error is not None:
        # The second: Optuna queries again in a session whose connection has just been lost.
        if isinstance(error, sqlalchemy.exc.TimeoutError | sqlalchemy.exc.PendingRollbackError):
            return True
        if isinstance(error, sqlalchemy.exc.DBAPIError):
            return error.connection_invalidated or _driver_says_transient(error.orig)
        grpc = sys.modules.get("grpc")  # not everybody has it; where its errors are, it is
        if grpc is not None and isinstance(error, grpc.RpcError):
            return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        error = error.__cause__
    return False


def _driver_says_transient(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.OperationalError):
        return (error.sqlite_errorcode & 0xFF) in _TRANSIENT_SQLITE
    if error is None or type(error).__name__ not in ("OperationalError", "InterfaceError"):
        # psycopg has a class for each error; those that matter here are OperationalErrors.
        state = getattr(error, "sqlstate", None)
        return isinstance(state, str) and state.startswith(_TRANSIENT_STATES)
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if isinstance(state, str):
        return state.startswith(_TRANSIENT_STATES)
    number = error.args[0] if error.args else None
    if isinstance(number, int):
        return number in _TRANSIENT_MYSQL
    return "authentication failed" not in str(error)  # PostgreSQL refuses, or is not there yet


# Reading, and the writes whose second time equals the first. All else that Optuna's storages have
# is written below or made of these; a test holds that against Optuna.
_REPEATED = (
    "create_new_study",  # a second time it exists already, which a campaign expects
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "set_trial_param",  # the database refuses a second row, and Optuna ignores that
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial_id_from_study_id_trial_number",
    "get_trial",
    "get_all_trials",
    "get_best_trial",
)


def _repeated(name: str) -> Callable[..., Any]:
    def method(self: "RetryingStorage", *args: Any, **kwargs: Any) -> Any:
        return self.repeat(lambda: getattr(self._backend, name)(*args, **kwargs))

    method.__name__ = name
    return method


_Repeating: Any = type(
    "_Repeating", (BaseStorage, BaseHeartbeat), {name: _repeated(name) for name in _REPEATED}
)


class RetryingStorage(_Repeating):  # type: ignore[misc]  # its methods are made from their names
    """A database, or a gRPC proxy of Optuna's, that is waited for while it does not answer.

    What failed because the connection was lost, the server restarted or a lock was held is
    repeated with growing, random pauses, until ``retry_seconds`` have passed; then Optuna's error
    goes through. An answer that was lost leaves open whether the write happened, so that only
    what is safe to repeat is repeated:

    * reading, and writing attributes, parameters, reports and heartbeats: the second write equals
      the first;
    * a final state: where the trial turns out to be in that state with those values, it is done;
    * a new trial carries a token, and the repetition looks for it, so that there is one trial and
      not two;
    * taking a waiting trial: it cannot be told who took it. The repetition leaves it alone, with
      one heartbeat, so that it is failed and retried if nobody runs it.

    A trial counts as stale only after its worker would have given up waiting. Proxies know no
    heartbeats.

    Args:
        url: URL of a database, or ``grpc://host:port``.
        retry_seconds: How long to go on, for each call.
        heartbeat_interval: Seconds between signs of life.

    Raises:
        ValueError: ``url`` begins as that of a proxy and is none.
        ConnectionError: The proxy does not answer at all.
    """

    def __init__(
        self,
        url: str,
        *,
        retry_seconds: float = 120.0,
        heartbeat_interval: int = 30,
    ) -> None:
        self._retry_seconds = retry_seconds
        self._backend: BaseStorage
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            if url.startswith("grpc://"):
                self._backend = _open_proxy(url)
                self._backend.wait_server_ready(timeout=_CONNECT_SECONDS)
                return
            # Of several first runs at once, each creates the tables, and one is first.
            database = tenacity.Retrying(
                retry=tenacity.retry_if_exception(_came_second),
                wait=tenacity.wait_random(0.0, 0.2),
                stop=tenacity.stop_after_attempt(8),
                reraise=True,
            )(
                _Database,
                url,
                engine_kwargs=_engine_options(url),
                heartbeat_interval=heartbeat_interval,
                grace_period=int(retry_seconds) + 2 * heartbeat_interval,
                heartbeat_stale_trial_callback=retry_once,
            )
        self._backend = get_storage(database)

    def repeat(self, call: Callable[[], _T]) -> _T:
        """Call, and call again while the other side does not answer."""
        return patiently(call, self._retry_seconds, self._unanswered)

    def _unanswered(self) -> None:
        if isinstance(self._backend, GrpcStorageProxy):
            # A channel that failed would wait minutes before it tries again.
            self._backend = copy.copy(self._backend)

    def get_heartbeat_interval(self) -> int | None:
        """Return the seconds between signs of life; None behind a proxy."""
        backend = self._backend
        return backend.get_heartbeat_interval() if isinstance(backend, BaseHeartbeat) else None

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a sign of life; nothing behind a proxy."""
        if isinstance(backend := self._backend, BaseHeartbeat):
            self.repeat(lambda: backend.record_heartbeat(trial_id))

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        if isinstance(backend := self._backend, BaseHeartbeat):
            return self.repeat(lambda: backend._get_stale_trial_ids(study_id))
        return []

    def get_heartbeat_stale_trial_callback(self) -> Callable[[Study, FrozenTrial], None] | None:
        """Return what is done with a trial that shows no sign of life; None behind a proxy."""
        backend = self._backend
        if isinstance(backend, BaseHeartbeat):
            return backend.get_heartbeat_stale_trial_callback()
        return None

    def delete_study(self, study_id: int) -> None:
        """Delete a study, without a repetition: a second time there is none."""
        self._backend.delete_study(study_id)

    def remove_session(self) -> None:
        """Close the connection of this thread."""
        self._backend.remove_session()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial, once."""
        fresh = copy.copy(template_trial or optuna.trial.create_trial(state=TrialState.RUNNING))
        token = uuid.uuid4().hex
        fresh.system_attrs = {**fresh.system_attrs, _CREATED: token}
        tried = False

        def attempt() -> int:
            nonlocal tried
            if tried:
                for trial in self._backend.get_all_trials(study_id, deepcopy=False):
                    if trial.system_attrs.get(_CREATED) == token:
                        return trial._trial_id
            tried = True
            return self._backend.create_new_trial(study_id, fresh)

        return self.repeat(attempt)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Set state and values, or find that an earlier attempt did."""
        lost_answer = False

        def attempt() -> bool:
            nonlocal lost_answer
            try:
                done = self._backend.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if not lost_answer:
                    raise
                stored = self._backend.get_trial(trial_id)
                if stored.state == state and (values is None or stored.values == list(values)):
                    return True
                raise
            except Exception:
                lost_answer = True
                raise
            taken = lost_answer and not done and state == TrialState.RUNNING
            if taken and isinstance(self._backend, BaseHeartbeat):
                self._backend.record_heartbeat(trial_id)
            return done

        return self.repeat(attempt)


class _Database(RDBStorage):
    """Optuna's database storage, in which a new trial with a token is made once.

    This is the one place that replaces what is private to Optuna, and a test holds it against
    Optuna's source. Optuna itself repeats the making of a trial, whatever failed, and only within
    the lock on the study, which it takes for each attempt, is it known that the one before is over.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._tried: dict[int, object] = {}  # by thread, the token that came last
        super().__init__(url, **options)

    def _get_prepared_new_trial(
        self,
        study_id: int,
        template_trial: FrozenTrial | None,
        session: "sqlalchemy.orm.Session",
    ) -> models.TrialModel:
        token = None if template_trial is None else template_trial.system_attrs.get(_CREATED)
        thread = threading.get_ident()
        if token is not None and self._tried.get(thread) == token:
            attribute = models.TrialSystemAttributeModel
            found = (
                session.query(models.TrialModel)
                .join(attribute, attribute.trial_id == models.TrialModel.trial_id)
                .filter(models.TrialModel.study_id == study_id)
                .filter(attribute.key == _CREATED, attribute.value_json == json.dumps(token))
                .first()
            )
            if found is not None:
                return found
        self._tried[thread] = token
        return super()._get_prepared_new_trial(study_id, template_trial, session)


def _came_second(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, sqlalchemy.exc.IntegrityError):
            return True
        if isinstance(error, sqlalchemy.exc.DBAPIError) and "exists" in str(error.orig):
            return True
        error = error.__cause__
    return False


def _open_proxy(url: str) -> GrpcStorageProxy:
    host, _, port = url.removeprefix("grpc://").rstrip("/").rpartition(":")
    if not host or not port.isdigit():
        shown = f"grpc://...@{url.rpartition('@')[2]}" if "@" in url else url
        raise ValueError(f"write storage: grpc://HOST:PORT, not {shown!r}")
    return GrpcStorageProxy(host=host, port=int(port))


def patiently(
    call: Callable[[], _T], seconds: float, unanswered: Callable[[], None] = lambda: None
) -> _T:
    """Call until there is no transient error, for so many seconds, with growing random pauses.

    Three times at least: a process that was stopped meanwhile has not waited for anything.
    """

    def wait(state: tenacity.RetryCallState) -> None:
        _log_waiting(state)
        unanswered()

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=5.0),
        stop=tenacity.stop_all(tenacity.stop_after_delay(seconds), tenacity.stop_after_attempt(3)),
        before_sleep=wait,
        reraise=True,
    )(call)


def _log_waiting(state: tenacity.RetryCallState) -> None:
    # The type only: messages of database drivers may hold the URL with its password.
    error = state.outcome.exception() if state.outcome else None
    level = logging.INFO if state.attempt_number == 3 else logging.DEBUG
    _logger.log(level, f"The database does not answer ({type(error).__name__}); waiting for it.")


def _engine_options(url: str) -> dict[str, Any]:
    # Connections are tested before use; one is kept, and threads (of heartbeats) open more.
    driver = sqlalchemy.make_url(url).get_dialect().driver
    options: dict[str, Any] = {"pool_pre_ping": True, "pool_size": 1, "max_overflow": 4}
    if driver == "pysqlite":
        options["connect_args"] = {"timeout": 60}
    elif driver in ("psycopg", "psycopg2", "pymysql", "mysqldb"):
        options["connect_args"] = {"connect_timeout": _CONNECT_SECONDS}
    return options


def storage_of(config: CampaignConfig, workers: int) -> str:
    """Return the URL or path of the storage: the file's, or a default beside the file.

    Raises:
        ValueError: Several workers would share a bare SQLite file.
    """
    if config.storage is not None:
        url = config.storage.get_secret_value()
        if workers > 1 and url.startswith("sqlite"):
            raise ValueError(
                f"{workers} workers cannot share an SQLite file. Leave storage out (a journal file "
                "is used), name a journal file (storage: campaign.journal), or use a database "
                "server."
            )
        return url
    journal, database = (config.path.with_suffix(s) for s in (".journal", ".db"))
    if workers == 1 and not journal.exists():
        return f"sqlite:///{database.as_posix()}"
    if workers > 1 and database.exists():
        raise ValueError(
            f"The campaign has its trials in {database}, and {workers} workers cannot share an "
            "SQLite file. Go on with workers: 1, or name another storage."
        )
    return str(journal)


def open_storage(url: str, *, retry_seconds: float, heartbeat_interval: int) -> BaseStorage:
    """Open the storage of a campaign.

    Args:
        url: URL of a database, ``grpc://host:port``, or path of a journal file.
        retry_seconds: How long to wait for a database or proxy that does not answer.
        heartbeat_interval: Seconds between signs of life in a database.
    """
    if lost_scheme(url):
        raise ValueError(
            "The storage holds a login, as the URL of a database does, but begins with no scheme "
            "such as postgresql+psycopg://."
        )
    if "://" not in url:
        Path(url).parent.mkdir(parents=True, exist_ok=True)
        return open_journal(url)
    return RetryingStorage(url, retry_seconds=retry_seconds, heartbeat_interval=heartbeat_interval)


def close_storage(storage: BaseStorage) -> None:
    """Close the connections that a storage keeps; what is asked of it later opens them anew."""
    storage = unwrapped(storage)
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()
