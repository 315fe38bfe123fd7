"""What is behind a storage: the one place that looks into those of Optuna."""

import contextlib
import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.trial import BaseTrial, Trial

from lyap_optuna._logging import without_passwords
from lyap_optuna.records._errors import NoDatabaseError

if TYPE_CHECKING:
    import sqlalchemy as sa


def unwrapped(storage: BaseStorage) -> Any:
    """Return the storage itself: Optuna wraps an RDBStorage in its cache, and a campaign both."""
    while isinstance(inner := getattr(storage, "_backend", None), BaseStorage):
        storage = inner
    return storage


def is_proxy(storage: BaseStorage) -> bool:
    """Whether it is Optuna's gRPC proxy; importing the class would load grpc."""
    return any(kind.__name__ == "GrpcStorageProxy" for kind in type(unwrapped(storage)).__mro__)


def kept(trial: BaseTrial) -> Trial | None:
    """Return the running trial of a storage that ``trial`` is; None where no storage keeps it.

    :class:`optuna.trial.FixedTrial` has none, and in optuna_integration's TorchDistributedTrial
    only the process of rank 0.
    """
    trial = getattr(trial, "_delegate", trial)
    return trial if isinstance(trial, Trial) and isinstance(trial.storage, BaseStorage) else None


def repeated(storage: BaseStorage, call: Callable[[], None]) -> None:
    """Call, and while a database does not answer, wait for it as long as ``storage`` would."""
    # The campaigns' storages have it.
    getattr(storage, "repeat", lambda once: once())(call)


def engine_of(storage: BaseStorage, url: str | None = None) -> "sa.Engine":
    """Return the engine of the database at ``url``, else that of the storage.

    Raises:
        NoDatabaseError: The storage is no relational database, and there is no URL.
    """
    if url is not None:
        return _engine(url, os.getpid())
    storage = unwrapped(storage)
    if isinstance(storage, RDBStorage):
        return storage.engine
    if isinstance(storage, InMemoryStorage):
        kind = "The study is kept in memory"
    elif isinstance(storage, JournalStorage):
        kind = "The study is kept in a journal"
    elif is_proxy(storage):
        kind = "The study is reached through a gRPC proxy"
    else:
        kind = f"The study is kept in a {type(storage).__name__}"
    raise NoDatabaseError(
        f"{kind}, where trials have attributes only; whole spectra need a relational database."
    )


@functools.lru_cache(maxsize=8)
def _engine(url: str, pid: int) -> "sa.Engine":
    # One pool per process and database; `pid` keeps a forked child from using its parent's.
    import sqlalchemy as sa

    parsed = sa.make_url(url)
    return sa.create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")


def checked_url(url: object, name: str, *, exists: bool = False) -> str:
    """Return the URL of a database, whose file, if it has one, may have to exist.

    Raises:
        ValueError: It is none. The message has its name and not the URL, with its password.
    """
    import sqlalchemy as sa

    parsed = None
    if isinstance(url, str):
        with contextlib.suppress(sa.exc.ArgumentError, ValueError):
            parsed = sa.make_url(url)
    if parsed is None:
        raise ValueError(
            f"{name} must be the URL of a database, such as sqlite:///spectra.db or "
            "postgresql://user@host/name."
        )
    path = parsed.database if parsed.get_backend_name() == "sqlite" else None
    named = path and path != ":memory:" and not path.startswith("file:")
    if exists and path and named and not os.path.exists(path):
        raise ValueError(f"{name} names the SQLite file {path}, which does not exist.")
    return str(url)


def place_of(storage: BaseStorage) -> str:
    """Return where a storage is kept, without logins; what tells two of them apart."""
    place: Any = unwrapped(storage)
    backend: Any = getattr(place, "_backend", None)  # of a journal
    if isinstance(place, RDBStorage):
        url = place.engine.url
        if url.get_backend_name() != "sqlite":
            return f"{url.host}:{url.port}/{url.database}"
        if url.database and url.database != ":memory:":
            return os.path.realpath(url.database)
    elif hasattr(backend, "_file_path"):
        return os.path.realpath(str(backend._file_path))
    elif hasattr(backend, "_url"):  # Redis
        return without_passwords(str(backend._url))
    elif is_proxy(place):
        return f"{place._host}:{place._port}"
    return f"memory {os.getpid()} {id(place)}"
