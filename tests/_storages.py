"""Every kind of storage that a study may be kept in. A line here puts another through the battery.

Each opens an empty storage and yields a function that returns it; called again, the same one as
another process would open it. What needs a server or a driver that is not there is skipped.
"""

import contextlib
import itertools
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from _own_servers import free_port
from _servers import KINDS, database, memory_folder
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages._grpc.server import make_server
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from lyap_optuna.campaign._storage import RetryingStorage
from lyap_optuna.records import open_journal

Opened = Callable[[], BaseStorage]
Opening = Callable[[], contextlib.AbstractContextManager[Opened]]


def _twice(first: BaseStorage, second: BaseStorage) -> Opened:
    both = itertools.cycle([first, second])
    return lambda: next(both)


@contextlib.contextmanager
def in_memory() -> Iterator[Opened]:
    storage = InMemoryStorage()
    yield lambda: storage


@contextlib.contextmanager
def sqlite_in_memory() -> Iterator[Opened]:
    storage = RDBStorage("sqlite:///:memory:")
    yield lambda: storage


def in_database(kind: str, storage: Callable[[str], BaseStorage]) -> Opening:
    @contextlib.contextmanager
    def opening() -> Iterator[Opened]:
        with database(kind) as url:
            yield _twice(storage(url), storage(url))

    return opening


def in_journal(storage: Callable[[str], BaseStorage]) -> Opening:
    @contextlib.contextmanager
    def opening() -> Iterator[Opened]:
        with memory_folder() as folder:
            path = str(Path(folder) / "study.journal")
            yield _twice(storage(path), storage(path))

    return opening


@contextlib.contextmanager
def in_redis() -> Iterator[Opened]:
    redis = pytest.importorskip("redis")
    url = os.environ.get("LYAP_REDIS_URL", "redis://127.0.0.1:6379")
    client, prefix = redis.from_url(url), f"lyap_test_{uuid.uuid4().hex}"
    try:
        client.ping()
    except redis.ConnectionError:
        pytest.skip("No redis answers at LYAP_REDIS_URL. To run its tests: docker run -p 6379:6379")

    def opened() -> BaseStorage:
        backend = optuna.storages.journal.JournalRedisBackend(url, prefix=prefix)
        return JournalStorage(backend)

    yield _twice(opened(), opened())
    for key in client.scan_iter(f"{prefix}*"):
        client.delete(key)


class Proxy:
    """A gRPC proxy in this process, that can go and come back."""

    def __init__(self, storage: BaseStorage) -> None:
        self.port, self._storage = free_port(), storage
        self.start()

    def start(self) -> None:
        self._server = make_server(self._storage, "localhost", self.port)
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def down(self, seconds: float) -> threading.Timer:
        self.stop()
        later = threading.Timer(seconds, self.start)
        later.start()
        return later


def behind_proxy(storage: Callable[[str, int], BaseStorage]) -> Opening:
    @contextlib.contextmanager
    def opening() -> Iterator[Opened]:
        proxy = Proxy(InMemoryStorage())
        both = [storage("localhost", proxy.port) for _ in range(2)]
        try:
            yield _twice(*both)
        finally:
            for client in both:
                client.remove_session()
            proxy.stop()

    return opening


def proxied(host: str, port: int) -> BaseStorage:
    storage = optuna.storages.GrpcStorageProxy(host=host, port=port)
    storage.wait_server_ready(timeout=30)
    return storage


class Shuffling(RDBStorage):
    """A database whose trials hold their reports in no order, as a gRPC proxy hands them out."""

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._shuffled(super().get_trial(trial_id))

    def _get_trials(self, *args, **kwargs):
        return [self._shuffled(t) for t in super()._get_trials(*args, **kwargs)]

    def _shuffled(self, trial: FrozenTrial) -> FrozenTrial:
        reports = trial.intermediate_values
        trial.intermediate_values = {
            s: reports[s] for s in sorted(reports, key=lambda s: s * 7 % 9)
        }
        return trial


STORAGES: dict[str, Opening] = {
    "memory": in_memory,
    "sqlite in memory": sqlite_in_memory,
    **{kind: in_database(kind, RDBStorage) for kind in KINDS},
    **{f"retrying {kind}": in_database(kind, RetryingStorage) for kind in KINDS},
    "shuffling": in_database("sqlite", Shuffling),
    "journal": in_journal(lambda path: JournalStorage(JournalFileBackend(path))),
    "our journal": in_journal(open_journal),
    "redis": in_redis,
    "grpc": behind_proxy(proxied),
    "retrying grpc": behind_proxy(lambda host, port: RetryingStorage(f"grpc://{host}:{port}")),
}

_SERVERS = (*KINDS[1:], "redis", "grpc")
LOCAL = [name for name in STORAGES if not any(server in name for server in _SERVERS)]
"""Those that need no server."""
