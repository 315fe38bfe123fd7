"""Things break: workers, servers, wires, disks, clocks. Afterwards every readout is there, once."""

import contextlib
import datetime
import inspect
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import optuna
import pytest
import sqlalchemy as sa
import torch
from _campaigns import EPOCHS, Campaign, assert_whole, counts, wait_for
from _own_servers import Wire, free_port, own_server
from _servers import KINDS
from _storages import Proxy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import TrialState

import lyap_optuna as lyap
from lyap_optuna.campaign import CampaignError, RetryingStorage, open_storage
from lyap_optuna.campaign._storage import _REPEATED, _Database, is_transient, patiently
from lyap_optuna.records import ReadoutRecord, read_readouts, write_readouts
from lyap_optuna.records._storages import engine_of

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")


def retried(trials: list) -> list[list[int]]:
    return [t.system_attrs["retry_history"] for t in trials if "retry_history" in t.system_attrs]


# A worker is killed


PROXY = """
import sys
from lyap_optuna.campaign import open_storage
from optuna.storages import run_grpc_proxy_server

url = sys.stdin.readline().strip()
storage = open_storage(url, retry_seconds=120, heartbeat_interval=30)
run_grpc_proxy_server(storage, port=int(sys.argv[1]))
"""


@contextlib.contextmanager
def grpc_proxy(url: str) -> Iterator[str]:
    """Run a proxy as the documentation says; yield its URL."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROXY, str(port)],
        stdin=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        process.stdin.write(url + "\n")
        process.stdin.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            GrpcStorageProxy(port=port).wait_server_ready(timeout=60)
        yield f"grpc://localhost:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def grpc_url(new_database):
    with grpc_proxy(new_database("postgresql")) as url:
        yield url


@pytest.mark.parametrize("kind", ["journal", "grpc", "postgresql", "mariadb"])
def test_a_killed_worker_costs_one_attempt(tmp_path, request, new_database, kind):
    keys = {"workers": 2, "trials": 4}
    if kind == "grpc":
        keys["storage"] = request.getfixturevalue("grpc_url")
    elif kind != "journal":
        keys["storage"] = new_database(kind)
    campaign = Campaign(tmp_path, **keys)
    hold = campaign.hold(1, 2)
    with campaign.process() as process:
        os.kill(campaign.pid_at(1, 2), signal.SIGKILL)
        hold.unlink()
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "died (exit code -9). Its trial 1 failed and is queued again." in output
    trials = campaign.trials
    assert counts(trials) == {"COMPLETE": 4, "FAIL": 1}
    assert retried(trials) == [[1]]
    assert_whole(trials)
    second = next(t for t in trials if "retry_history" in t.system_attrs)
    assert second.params == trials[1].params
    # Of what it inherited only the baseline counted, until it reported itself.
    assert second.user_attrs["inherited"] == [-1]
    assert sorted(trials[1].user_attrs["lyapunov:readouts"]) == ["-1", "0", "1"]


def test_a_trial_whose_worker_is_killed_twice_is_not_tried_a_third_time(tmp_path):
    campaign = Campaign(tmp_path, workers=2, trials=2)
    campaign.hold(0, 1)
    with campaign.process() as process:
        # Killed where they wait, never in the middle of a write, which holds the journal's lock.
        pid = campaign.pid_at(0, 1)
        campaign.hold()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: retried(campaign.trials) == [[0]])
        again = next(t.number for t in campaign.trials if "retry_history" in t.system_attrs)
        os.kill(campaign.pid_at(again, 0), signal.SIGKILL)
        for path in tmp_path.glob("hold*"):
            path.unlink()
        process.communicate(timeout=100)
    assert process.returncode == 0
    assert retried(campaign.trials) == [[0]]
    assert counts(campaign.trials) == {"COMPLETE": 2, "FAIL": 2}


def test_after_everything_was_killed_the_next_run_goes_on(tmp_path):
    campaign = Campaign(tmp_path, workers=2, trials=3)
    campaign.hold()
    with campaign.process() as process:
        pids = [campaign.pid_at(0, 0), campaign.pid_at(1, 0)]
        for pid in (process.pid, *pids):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    assert counts(campaign.trials) == {"RUNNING": 2}
    (tmp_path / "hold").unlink()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    campaign.run()
    assert counts(campaign.trials) == {"COMPLETE": 3, "FAIL": 2}
    assert sorted(retried(campaign.trials)) == [[0], [1]]
    assert_whole(campaign.trials)


def test_workers_stop_at_their_next_report_when_the_parent_is_gone(tmp_path):
    campaign = Campaign(tmp_path, workers=2, trials=3)
    hold = campaign.hold()
    with campaign.process() as process:
        pids = [campaign.pid_at(0, 0), campaign.pid_at(1, 0)]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        hold.unlink()
        wait_for(lambda: counts(campaign.trials) == {"FAIL": 2})
        wait_for(lambda: not any(running(pid) for pid in pids))
    assert all(t.user_attrs["lyapunov:interrupted"] is True for t in campaign.trials)
    campaign.run()  # queues them: only the parent of a campaign does, so that it happens once
    assert counts(campaign.trials) == {"COMPLETE": 3, "FAIL": 2}


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


LONE_WORKER = """
import sys, time, optuna
from lyap_optuna.campaign import RetryingStorage
from lyap_optuna.records import ReadoutRecord, write_readouts

def objective(trial):
    trial.suggest_float("x", 0, 1)
    for epoch in range(2):
        write_readouts(trial, {epoch: ReadoutRecord(-0.1, -0.5)})
        trial.report(1.0, epoch)
    print("here", flush=True)
    time.sleep(100)

storage = RetryingStorage(sys.stdin.readline().strip(), retry_seconds=1, heartbeat_interval=1)
optuna.load_study(study_name="s", storage=storage).optimize(objective, n_trials=1)
"""


def test_where_no_parent_sees_it_the_heartbeat_does(server_database_url):
    storage = RetryingStorage(server_database_url, retry_seconds=1, heartbeat_interval=1)
    study = optuna.create_study(study_name="s", storage=storage)
    worker = subprocess.Popen(
        [sys.executable, "-c", LONE_WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        worker.stdin.write(server_database_url + "\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "here\n"
    finally:
        worker.kill()
        worker.wait()
    study_id = study._study_id
    wait_for(lambda: storage._get_stale_trial_ids(study_id) != [])
    seen: list[list[int]] = []

    def objective(trial: optuna.Trial) -> float:
        stored = study._storage.get_trial(trial._trial_id)
        seen.append(sorted(read_readouts(stored)))
        return trial.suggest_float("x", 0, 1)

    # Two at once: the state decides who fails and retries it.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: study.optimize(objective, n_trials=2), range(2)))
    trials = study.get_trials()
    assert trials[0].state == TrialState.FAIL
    assert retried(trials) == [[0]]
    assert [0] not in [s[1:] for s in seen], "a readout of the dead attempt counted"
    assert counts(trials) == {"COMPLETE": 4, "FAIL": 1}


# The server restarts, the wire is cut


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "behind"),
    [
        ("postgresql", contextlib.nullcontext),
        ("mariadb", contextlib.nullcontext),
        ("postgresql", grpc_proxy),
    ],
    ids=["postgresql", "mariadb", "grpc"],
)
def test_a_restart_of_the_server_while_four_workers_report(tmp_path, kind, behind):
    with own_server(kind) as server, behind(server.url()) as url:
        campaign = Campaign(tmp_path, workers=4, trials=8, storage=url)
        holds = [campaign.hold(number, 1) for number in range(4)]
        with campaign.process() as process:
            for number in range(4):
                campaign.pid_at(number, 1)
            server.stop()
            for hold in holds:
                hold.unlink()  # they report to a server that is not there
            time.sleep(2.0)
            server.start()
            output, _ = process.communicate(timeout=110)
        assert process.returncode == 0, output
        assert counts(campaign.trials) == {"COMPLETE": 8}
        assert_whole(campaign.trials)
        assert_no_twins(campaign.trials)


def assert_no_twins(trials: list) -> None:
    created = [t.system_attrs["lyapunov:created"] for t in trials]
    assert len(set(created)) == len(created)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[1:])
def test_connections_are_cut_for_ten_seconds(kind):
    with own_server(kind) as server:
        wire = Wire(server.port)
        url = server.url(wire.port)
        optuna.create_study(study_name="s", storage=RetryingStorage(server.url()))
        epoch_one = threading.Barrier(5, timeout=60)

        def objective(trial: optuna.Trial) -> float:
            x = trial.suggest_float("x", 0, 1)
            for epoch in range(EPOCHS):
                if epoch == 1 and trial.number < 4:
                    epoch_one.wait()
                readout = ReadoutRecord(max=-0.1 * epoch, mean=-0.5)
                write_readouts(trial, {epoch: readout}, baseline=(-1, readout))
                trial.report(x, epoch)
            return x

        def worker(_: int) -> None:
            study = optuna.load_study(study_name="s", storage=RetryingStorage(url))
            study.optimize(objective, n_trials=2)

        with ThreadPoolExecutor(4) as pool:
            workers = [pool.submit(worker, i) for i in range(4)]
            epoch_one.wait()
            wire.cut()
            time.sleep(10.0)
            wire.join()
            for future in workers:
                future.result()
        wire.cut()
        trials = optuna.load_study(study_name="s", storage=server.url()).trials
        assert counts(trials) == {"COMPLETE": 8}
        assert_whole(trials)
        assert_no_twins(trials)


def test_a_users_own_storage_lets_the_error_through():
    with own_server("postgresql") as server:
        study = optuna.create_study(storage=RDBStorage(server.url()))
        server.stop()
        with pytest.raises((StorageInternalError, sa.exc.OperationalError)):
            study.set_user_attr("a", 1)


def test_waiting_is_bounded():
    with own_server("postgresql") as server:
        study = optuna.create_study(storage=RetryingStorage(server.url(), retry_seconds=0.5))
        server.stop()
        with pytest.raises((StorageInternalError, sa.exc.OperationalError)):
            study.set_user_attr("a", 1)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("table", ["trials", "trial_params", "trial_user_attributes"])
def test_a_connection_that_is_cut_while_trials_are_read_is_opened_again(new_database, kind, table):
    url = new_database(kind)
    study = optuna.create_study(storage=RetryingStorage(url, retry_seconds=30))
    for number in range(3):
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0.0, 1.0)})
        trial.set_user_attr("number", number)
        study.tell(trial, float(number))
    engine = sa.create_engine(url)
    cut = []

    def cut_once(connection, cursor, statement, *_):
        if not cut and f"FROM {table} " in " ".join(f"{statement} ".split()):
            cut.append(statement)
            kill, own = {
                "postgresql": ("SELECT pg_terminate_backend({})", "SELECT pg_backend_pid()"),
                "mariadb": ("KILL {}", "SELECT connection_id()"),
            }[kind]
            cursor.execute(own)
            session = cursor.fetchone()[0]
            with engine.connect() as other:
                other.execute(sa.text(kill.format(session)))

    reader = RetryingStorage(url, retry_seconds=30)
    sa.event.listen(engine_of(reader), "before_cursor_execute", cut_once)
    trials = reader.get_all_trials(study._study_id)
    assert cut
    assert [trial.values for trial in trials] == [[0.0], [1.0], [2.0]]
    assert [trial.user_attrs["number"] for trial in trials] == [0, 1, 2]
    engine.dispose()


def test_a_process_that_slept_past_its_patience_tries_again():
    failures = iter([True, True, False])

    def call():
        time.sleep(0.01)  # longer than it may wait
        if next(failures):
            raise sa.exc.OperationalError("x", {}, driver_error("57P01"))
        return "there"

    assert patiently(call, seconds=0.001) == "there"


@pytest.mark.parametrize("kind", KINDS[1:])
def test_first_runs_at_once_on_an_empty_database_all_open_it(new_database, kind):
    for _ in range(3):
        url, n_runs = new_database(kind), 6
        together = threading.Barrier(n_runs)

        def first_run(_: int, url: str = url, together: threading.Barrier = together) -> int:
            together.wait()
            storage = open_storage(url, retry_seconds=10, heartbeat_interval=30)
            study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
            return study.ask().number

        with ThreadPoolExecutor(n_runs) as pool:
            assert sorted(pool.map(first_run, range(n_runs))) == list(range(n_runs))
        engine = sa.create_engine(url)
        with engine.connect() as connection:
            for table in ("version_info", "alembic_version"):
                found = connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar()
                assert found == 1
        engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True])
def test_whole_spectra_wait_for_the_database_as_scalars_do(new_database, elsewhere):
    with own_server("postgresql") as server:
        url = new_database("postgresql") if elsewhere else server.url()
        storage = open_storage(url, retry_seconds=60, heartbeat_interval=30)
        study = optuna.create_study(study_name="s", storage=storage)
        spectra_url = server.url() if elsewhere else None
        torch.manual_seed(0)
        probe = lyap.LyapunovProbe(
            torch.nn.GRU(2, 3, batch_first=True),
            torch.randn(2, 12, 2),
            full_spectrum=True,
            sink=lyap.DatabaseSink(spectra_url),
        )
        trial = study.ask()
        for step in (0, 1):  # with the table still to be made, and with it
            server.stop()
            later = threading.Timer(2.0, server.start)
            later.start()
            probe.report(trial, 0.5, step)
            later.join()
        spectra = lyap.load_spectra(study, spectra_url=spectra_url)
        assert [s.step for s in spectra] == [-1, 0, 1]


# A proxy that is down


@pytest.fixture
def proxy():
    made = Proxy(optuna.storages.InMemoryStorage())
    yield made
    made.stop()


def test_a_proxy_that_is_down_is_waited_for(proxy):
    storage = open_storage(f"grpc://localhost:{proxy.port}", retry_seconds=60, heartbeat_interval=1)
    study = optuna.create_study(study_name="s", storage=storage)
    study.enqueue_trial({"x": 0.25})

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        for epoch in range(EPOCHS):
            readout = ReadoutRecord(max=-0.1 * epoch, mean=-0.5)
            write_readouts(trial, {epoch: readout}, baseline=(-1, readout))
            trial.report(x, epoch)
        return x

    first = proxy.down(1.0)
    study.optimize(objective, n_trials=1)
    first.join()
    trial = study.ask()
    calls = (
        lambda: study.ask(),
        lambda: trial.suggest_float("x", 0, 1),
        lambda: trial.report(0.5, 1),
        lambda: trial.set_user_attr("a", 1),
        lambda: study.set_user_attr("a", 1),
        lambda: study.get_trials(),
        lambda: study.tell(trial, 0.5),
        lambda: optuna.load_study(study_name="s", storage=storage),
    )
    for call in calls:
        later = proxy.down(0.3)
        call()
        later.join()
    trials = study.get_trials()
    assert counts(trials) == {"COMPLETE": 2, "RUNNING": 1}
    assert_whole(trials[:1])
    assert (trials[1].value, trials[1].intermediate_values, trials[1].user_attrs) == (
        0.5,
        {1: 0.5},
        {"a": 1},
    )


def test_waiting_for_a_proxy_is_bounded_and_a_refusal_is_not_waited_for(proxy):
    url = f"grpc://localhost:{proxy.port}"
    study = optuna.create_study(storage=open_storage(url, retry_seconds=60, heartbeat_interval=1))
    trial = study.ask()
    study.tell(trial, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        trial.report(1.0, 1)
    with pytest.raises(KeyError):
        study._storage.get_trial(99)
    impatient = RetryingStorage(url, retry_seconds=0.5)
    proxy.stop()
    with pytest.raises(grpc.RpcError):
        impatient.get_all_studies()


class Unavailable(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE


def test_a_proxy_whose_answer_is_lost_makes_no_second_trial(proxy, monkeypatch):
    storage = RetryingStorage(f"grpc://localhost:{proxy.port}", retry_seconds=30)
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    trial_id = trial._trial_id
    uniform = optuna.distributions.FloatDistribution(0, 1)
    writes = {
        "CreateNewTrial": lambda: storage.create_new_trial(study._study_id),
        "SetTrialParameter": lambda: storage.set_trial_param(trial_id, "x", 0.5, uniform),
        "SetTrialIntermediateValue": lambda: trial.report(0.5, 3),
        "SetTrialStateValues": lambda: study.tell(trial, 0.25),
    }
    for name, write in writes.items():
        stub, lost = storage._backend._stub, []
        send = getattr(stub, name)

        def answer(request, send=send, lost=lost):
            done = send(request)
            if not lost:
                lost.append(done)
                raise Unavailable
            return done

        monkeypatch.setattr(stub, name, answer)
        write()
        assert lost, name
    trials = study.get_trials()
    assert counts(trials) == {"COMPLETE": 1, "RUNNING": 1}
    assert (trials[0].params, trials[0].intermediate_values) == ({"x": 0.5}, {3: 0.5})


# An answer is lost: the write happened, but nobody was told


class LoseAnswer:
    """Lose the connection, once, right after a commit of a storage has reached the database."""

    def __init__(self, storage: RetryingStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        self._armed = False
        dialect = engine_of(storage).dialect
        commit = dialect.do_commit
        error = dialect.loaded_dbapi.OperationalError(2013, "lost")
        if dialect.name == "sqlite":
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        elif dialect.name == "postgresql":
            error = dialect.loaded_dbapi.errors.AdminShutdown("lost")

        def do_commit(connection: object) -> None:
            commit(connection)
            if self._armed:
                self._armed = False
                raise error

        monkeypatch.setattr(dialect, "do_commit", do_commit)

    def once(self, write: Callable[[], object]) -> None:
        self._armed = True
        write()
        assert not self._armed


@pytest.fixture
def unsure(database_url, monkeypatch):
    storage = RetryingStorage(database_url)
    study = optuna.create_study(storage=storage)
    return study, LoseAnswer(storage, monkeypatch)


def test_a_new_trial_is_not_made_twice(unsure):
    study, lose = unsure
    study.add_trial(optuna.create_trial(value=1.0))
    create = study._storage.create_new_trial
    lose.once(lambda: create(study._study_id))
    lose.once(lambda: study.enqueue_trial({"x": 1.0}))
    assert study.ask().number == 2
    assert counts(study.get_trials()) == {"COMPLETE": 1, "RUNNING": 2}


def test_a_write_that_is_repeated_counts_once(unsure):
    study, lose = unsure
    trial = study.ask()
    storage, trial_id = study._storage, trial._trial_id
    uniform = optuna.distributions.FloatDistribution(0, 1)
    lose.once(lambda: storage.set_trial_param(trial_id, "x", 0.5, uniform))
    lose.once(lambda: storage.set_trial_intermediate_value(trial_id, 3, 0.5))
    lose.once(lambda: storage.set_trial_user_attr(trial_id, "a", [1]))
    lose.once(lambda: storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.25]))
    stored = study.get_trials()[0]
    assert stored.intermediate_values == {3: 0.5}
    assert (stored.params, stored.user_attrs, stored.value) == ({"x": 0.5}, {"a": [1]}, 0.25)


def test_a_final_state_that_another_process_wrote_is_not_ours(unsure):
    study, _ = unsure
    trial = study.ask()
    study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    with pytest.raises(UpdateFinishedTrialError):
        study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [1.0])


def test_a_waiting_trial_that_may_have_been_taken_is_left_with_a_heartbeat(unsure):
    study, lose = unsure
    study.enqueue_trial({"x": 1.0})
    storage, trial_id = study._storage, study.get_trials()[0]._trial_id
    lose.once(lambda: storage.set_trial_state_values(trial_id, TrialState.RUNNING))
    assert study.ask().number == 1
    with engine_of(storage).connect() as connection:
        query = sa.text("SELECT trial_id FROM trial_heartbeats")
        assert connection.execute(query).scalars().all() == [trial_id]


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode = code
    return error


def driver_error(state: str | None, text: str = "") -> Exception:
    error = type("OperationalError", (Exception,), {})(text)
    error.sqlstate = state
    return error


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (sqlite_error(sqlite3.SQLITE_BUSY), True),
        (sqlite_error(sqlite3.SQLITE_FULL), False),
        (sqlite_error(sqlite3.SQLITE_READONLY), False),
        (driver_error("57P01"), True),
        (driver_error("40P01"), True),
        (driver_error("53100"), False),  # disk full
        (driver_error("42P01"), False),  # no such table
        (driver_error(None, "connection refused"), True),
        (driver_error(None, "FATAL: password authentication failed"), False),
        (type("OperationalError", (Exception,), {})(2013, "lost"), True),
        (type("OperationalError", (Exception,), {})(1045, "denied"), False),
    ],
)
def test_only_what_will_pass_is_waited_for(error, transient):
    assert is_transient(sa.exc.OperationalError("x", {}, error)) is transient
    wrapped = StorageInternalError("x")
    wrapped.__cause__ = sa.exc.OperationalError("x", {}, error)
    assert is_transient(wrapped) is transient
    assert not is_transient(ValueError("x"))


# The disk is full


LIMIT_PAGES = """
from sqlalchemy import event
from sqlalchemy.engine import Engine
from toy import *

@event.listens_for(Engine, "connect")
def limit(connection, record):
    if (HERE / "quota").exists():
        cursor = connection.cursor()
        (pages,) = cursor.execute("PRAGMA page_count").fetchone()
        cursor.execute(f"PRAGMA max_page_count = {max(pages, int((HERE / 'quota').read_text()))}")

def grows(trial):
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("ballast", "x" * 20_000)
    return objective(trial)
"""


def test_a_full_disk_ends_the_run_with_everything_kept(tmp_path):
    campaign = Campaign(tmp_path, objective="full:grows", trials=1)
    (tmp_path / "full.py").write_text(LIMIT_PAGES)
    campaign.run()
    with sqlite3.connect(tmp_path / "campaign.db") as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (tmp_path / "quota").write_text(str(pages + 13))  # a trial takes five pages
    campaign.write(objective="full:grows", trials=6, max_failures=1)
    with pytest.raises(CampaignError, match="StorageInternalError"):
        campaign.run()
    before = campaign.trials
    assert 1 < counts(before)["COMPLETE"] < 6
    assert_whole(before)
    (tmp_path / "quota").unlink()
    campaign.run()
    trials = campaign.trials
    assert counts(trials)["COMPLETE"] == 6
    assert "RUNNING" not in counts(trials)
    assert_whole(trials)
    for was, now in zip(before, trials, strict=False):
        assert was.intermediate_values == now.intermediate_values
        assert was.user_attrs.get("lyapunov:readouts") == now.user_attrs.get("lyapunov:readouts")


# Two at once, clocks that differ


def test_two_workers_prune_at_once(server_database_url):
    pruner = lyap.LyapunovPruner(n_startup_trials=5)
    study = optuna.create_study(study_name="s", storage=RetryingStorage(server_database_url))
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    for i in range(20):
        x = i / 20
        study.add_trial(
            optuna.create_trial(
                params={"x": x}, distributions=space, value=x, intermediate_values={0: x, 1: x}
            )
        )
    at_once = threading.Barrier(2, timeout=60)

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        trial.report(x, 0)
        at_once.wait()
        if trial.should_prune():
            raise optuna.TrialPruned
        return x

    for x in (0.95, 0.97):
        study.enqueue_trial({"x": x})

    def worker(_: int) -> None:
        storage = RetryingStorage(server_database_url)
        mine = optuna.load_study(study_name="s", storage=storage, pruner=pruner)
        mine.optimize(objective, n_trials=1)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(worker, range(2)))
    ended = study.get_trials()[20:]
    assert counts(ended) == {"PRUNED": 2}
    assert {t.user_attrs["lyapunov:decision"]["verdict"] for t in ended} == {"pruned"}
    assert [len(t.intermediate_values) for t in ended] == [1, 1]


def test_clocks_that_differ_by_hours_make_no_worker_stale(server_database_url, monkeypatch):
    offset = threading.local()

    class Skewed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            hours = datetime.timedelta(hours=getattr(offset, "hours", 0))
            return datetime.datetime.now(tz) + hours

    monkeypatch.setattr("optuna.storages._rdb.storage.datetime", Skewed)
    optuna.create_study(study_name="s", storage=RetryingStorage(server_database_url))

    def worker(hours: int) -> None:
        offset.hours = hours
        storage = RetryingStorage(server_database_url, retry_seconds=5, heartbeat_interval=1)
        study = optuna.load_study(study_name="s", storage=storage)

        def objective(trial: optuna.Trial) -> float:
            x = trial.suggest_float("x", 0, 1)
            for epoch in range(EPOCHS):
                readout = ReadoutRecord(max=-0.1, mean=-0.5)
                write_readouts(trial, {epoch: readout}, baseline=(-1, readout))
                trial.report(x, epoch)
            return x

        study.optimize(objective, n_trials=3)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(worker, (-5, 0, 5)))
    trials = optuna.load_study(study_name="s", storage=server_database_url).trials
    assert counts(trials) == {"COMPLETE": 9}
    assert_whole(trials)
    assert (
        len(lyap.rank_trials(optuna.load_study(study_name="s", storage=server_database_url))) == 9
    )


# What Optuna must not change unnoticed


def methods(kind: type) -> set[str]:
    return {name for name, it in vars(kind).items() if inspect.isfunction(it)}


def test_every_call_of_optunas_storages_is_repeated_or_made_of_such() -> None:
    ours = {*_REPEATED, *methods(RetryingStorage)}
    for kind in (BaseStorage, BaseHeartbeat):
        for name in methods(kind) - ours - {"check_trial_is_updatable"}:  # which asks nothing
            used = set(re.findall(r"self\.(\w+)\(", inspect.getsource(getattr(kind, name))))
            assert used, name
            assert used <= ours, name


def test_the_private_method_that_is_replaced_is_that_of_optuna() -> None:
    name = "_get_prepared_new_trial"
    theirs = inspect.signature(getattr(RDBStorage, name)).parameters
    assert list(inspect.signature(getattr(_Database, name)).parameters) == list(theirs)
    source = inspect.getsource(RDBStorage._create_new_trial)
    lock = source.index("for_update=True")
    assert lock < source.index(f"self.{name}(study_id, template_trial, session)")
    assert methods(_Database) & methods(RDBStorage) == {"__init__", name}
