"""Campaigns with a real probe: stopping, going on, and Dask clusters that lose workers."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from _campaigns import Campaign, assert_whole, counts, wait_for
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.campaign import View, campaign_status, load_config
from lyap_optuna.campaign._dask import keep_collector_out_of_frames
from lyap_optuna.records._storages import unwrapped

# Stopping


def stopped_and_repeated(trials: list[FrozenTrial]) -> list[int]:
    """Numbers of interrupted trials, each of which has one repetition with its parameters."""
    stopped = [t for t in trials if t.user_attrs.get("lyapunov:interrupted") is True]
    assert all(t.state == TrialState.FAIL for t in stopped)
    repeats = [t for t in trials if "lyapunov:repeats" in t.user_attrs]
    numbers = sorted(t.user_attrs["lyapunov:repeats"] for t in repeats)
    assert numbers == [t.number for t in stopped]
    for trial in repeats:
        params = trial.params or trial.system_attrs["fixed_params"]
        assert params == trials[trial.user_attrs["lyapunov:repeats"]].params
    return numbers


def test_an_objective_that_catches_every_exception_is_stopped_too(tmp_path):
    campaign = Campaign(tmp_path, objective="toy:swallows", workers=2, trials=3)
    hold = campaign.hold()
    with campaign.process() as process:
        campaign.pid_at(0, 0)
        campaign.pid_at(1, 0)
        os.kill(process.pid, signal.SIGTERM)
        while "Stopping" not in process.stdout.readline():
            assert process.poll() is None
        hold.unlink()
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert counts(campaign.trials) == {"FAIL": 2, "WAITING": 2}
    assert stopped_and_repeated(campaign.trials) == [0, 1]
    campaign.run()
    assert counts(campaign.trials) == {"COMPLETE": 3, "FAIL": 2}
    assert stopped_and_repeated(campaign.trials) == [0, 1]
    assert_whole(campaign.trials)


@pytest.mark.parametrize("objective", ["objective", "resuming"])
def test_a_stopped_trial_goes_on_from_its_checkpoint_or_from_the_start(tmp_path, objective):
    campaign = Campaign(tmp_path, objective=f"toy:{objective}", trials=3)
    hold = campaign.hold(1, 2)
    with campaign.process() as process:
        campaign.pid_at(1, 2)
        os.kill(process.pid, signal.SIGTERM)
        while "Stopping" not in process.stdout.readline():
            assert process.poll() is None
        hold.unlink()
        process.communicate(timeout=60)
    campaign.run()
    trials = campaign.trials
    assert stopped_and_repeated(trials) == [1]
    stopped, again = (t for t in trials if t.params == trials[1].params)
    assert sorted(stopped.intermediate_values) == [0, 1, 2]
    # It was stopped at the third report, before that epoch was saved.
    epochs = [2, 3] if objective == "resuming" else [0, 1, 2, 3]
    assert sorted(again.intermediate_values) == epochs
    # The baseline is the one before training, also where training went on from a checkpoint.
    first, second = (t.user_attrs["lyapunov:readouts"]["-1"] for t in (stopped, again))
    assert first == second
    status = campaign_status(load_config(campaign.file), campaign.study)
    assert (status.total, status.missing, status.resting) == (3, 0, 0)
    assert status.epochs_spent == 2 * 4 + 3 + len(epochs)
    assert status.epochs_saved == 3 * 4 - status.epochs_spent


# Processes that are gone, or will not go


@pytest.mark.parametrize("objective", ["forks", "spawns"])
def test_a_killed_worker_is_replaced_though_a_child_holds_its_pipe(tmp_path, objective):
    campaign = Campaign(tmp_path, objective=f"toy:{objective}", trials=2)
    hold = campaign.hold(0, 1)
    with campaign.process() as process:
        os.kill(campaign.pid_at(0, 1), signal.SIGKILL)
        hold.unlink()
        process.wait(100)  # the child holds its output too
    assert process.returncode == 0
    assert counts(campaign.trials) == {"COMPLETE": 2, "FAIL": 1}
    assert campaign.trials[1].system_attrs["retry_history"] == [0]


def test_the_time_limit_ends_a_run_whose_worker_was_killed_beside_its_child(tmp_path, monkeypatch):
    campaign = Campaign(tmp_path, objective="toy:forks", trials=2, time_limit=9999)
    clock = SimpleNamespace(ahead=0.0, monotonic=lambda: time.monotonic() + clock.ahead)
    monkeypatch.setattr("lyap_optuna.campaign._runner.time", clock)

    class Kills(View):
        def reported(self, worker: int, number: int, epochs: int) -> None:
            os.kill(campaign.pid_at(number, 0), signal.SIGKILL)
            clock.ahead = 1e4

    campaign.hold(0, 1)
    result = campaign.run(view=Kills())
    campaign.kill_children()
    assert (result.stopped, result.missing) == ("time limit", 2)
    assert counts(campaign.trials) == {"FAIL": 1, "WAITING": 1}


def test_a_worker_that_a_thread_keeps_is_killed_when_it_has_nothing_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("lyap_optuna.campaign._local.EXIT_SECONDS", 0.5)
    campaign = Campaign(tmp_path, objective="toy:leaves_a_thread", trials=2)
    campaign.run()
    assert counts(campaign.trials) == {"COMPLETE": 2}
    assert not Path(f"/proc/{campaign.pid_at(1, 3)}").exists()


LEAVES_A_CHILD = """
import os, subprocess
from toy import objective

child = subprocess.Popen(["sleep", "600"])
open(f"{os.path.dirname(__file__)}/child-{child.pid}", "w").write(str(child.pid))
"""


def test_a_child_that_the_import_of_an_objective_leaves_behind_holds_nothing_up(tmp_path):
    campaign = Campaign(tmp_path, objective="left:objective", trials=1)
    (tmp_path / "left.py").write_text(LEAVES_A_CHILD)
    try:
        campaign.run()
    finally:
        campaign.kill_children()
    assert counts(campaign.trials) == {"COMPLETE": 1}


PARENT = """
import os, sys, time
from lyap_optuna.campaign import View, load_config, run_campaign

class Forks(View):
    def reported(self, worker, number, epochs):
        if epochs == 1 and os.fork() == 0:
            open("child-of-parent", "w").write(str(os.getpid()))
            time.sleep(600)
            os._exit(0)

if __name__ == "__main__":
    run_campaign(load_config("campaign.yaml"), view=Forks())
"""


def test_workers_stop_when_the_parent_is_gone_though_a_child_holds_their_pipes(tmp_path):
    campaign = Campaign(tmp_path, objective="toy:endless", trials=2)
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, env=environment)
    try:
        child = tmp_path / "child-of-parent"
        wait_for(lambda: child.exists() and child.read_text() != "")
        worker = campaign.pid_at(0, 0)
        parent.kill()
        parent.wait()
        wait_for(lambda: not Path(f"/proc/{worker}").exists())
    finally:
        parent.kill()
        parent.wait()
        campaign.kill_children()
    assert stopped_and_left(campaign.trials) == [0]


def stopped_and_left(trials: list[FrozenTrial]) -> list[int]:
    """Numbers of interrupted trials, which nobody has repeated yet."""
    assert not any("lyapunov:repeats" in t.user_attrs for t in trials)
    assert {t.state for t in trials} == {TrialState.FAIL}
    return [t.number for t in trials if t.user_attrs.get("lyapunov:interrupted") is True]


# Dask


def held_by(cluster: Any) -> list[Any]:
    """What the processes of a cluster hold of campaigns."""
    from distributed import Client

    def runs() -> list[str]:
        from lyap_optuna.campaign import _dask

        return list(_dask._runs)

    with Client(cluster, set_as_default=False) as client:
        return [run for answer in client.run(runs).values() for run in answer]


def connections(study: Any) -> int:
    """How many connections to its database there are, but for that which asks."""
    engine = unwrapped(study._storage).engine
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    with engine.connect() as connection:
        return connection.execute(sqlalchemy.text(query)).scalar_one() - 1


@pytest.mark.slow
def test_processes_of_a_dask_cluster_hold_nothing_of_campaigns_that_are_over(
    tmp_path, new_database, cluster
):
    storage = new_database("postgresql")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        keys = {"study": name, "trials": 3, "storage": storage}
        campaign = Campaign(tmp_path / name, **keys)
        campaign.run(dask=cluster.scheduler_address)
        assert counts(campaign.trials) == {"COMPLETE": 3}
        assert held_by(cluster) == []
    gc.collect()  # the parents were here
    wait_for(lambda: connections(campaign.study) == 0)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_workers_of_a_dask_cluster_stop_when_the_parent_is_told_to_or_gone(
    tmp_path, new_database, cluster, sent
):
    storage = new_database("postgresql")
    campaign = Campaign(tmp_path, objective="toy:endless", trials=2, storage=storage)
    with campaign.process("--dask", cluster.scheduler_address) as process:
        campaign.pid_at(0, 0)
        campaign.pid_at(1, 0)
        process.send_signal(sent)
        process.wait(300)
        wait_for(lambda: "RUNNING" not in counts(campaign.trials))
    checked = stopped_and_left if sent == signal.SIGKILL else stopped_and_repeated
    assert checked(campaign.trials) == [0, 1]
    wait_for(lambda: held_by(cluster) == [])
    wait_for(lambda: connections(campaign.study) == 0)
    campaign.write(trials=2, storage=storage)
    campaign.run(dask=cluster.scheduler_address)
    assert counts(campaign.trials) == {"COMPLETE": 2, "FAIL": 2}


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="from 3.12 on nothing is collected there")
@pytest.mark.parametrize("collects", [True, False])
def test_the_collector_keeps_out_of_the_frames_of_other_threads(monkeypatch, collects):
    seen = []
    monkeypatch.setattr(sys, "_current_frames", lambda: seen.append(gc.isenabled()) or {1: None})
    keep_collector_out_of_frames()
    keep_collector_out_of_frames()
    if not collects:
        gc.disable()
    try:
        assert sys._current_frames() == {1: None}
        assert gc.isenabled() is collects
    finally:
        gc.enable()
    assert seen == [False]


@pytest.fixture
def cluster() -> Iterator[Any]:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as made:
        yield made


@pytest.mark.slow
def test_a_killed_worker_of_a_dask_cluster_costs_one_attempt(tmp_path, new_database, cluster):
    campaign = Campaign(tmp_path, trials=5, storage=new_database("postgresql"))
    hold = campaign.hold(1, 2)
    with campaign.process("--dask", cluster.scheduler_address) as process:
        os.kill(campaign.pid_at(1, 2), signal.SIGKILL)
        hold.unlink()
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    trials = campaign.trials
    assert counts(trials) == {"COMPLETE": 5, "FAIL": 1}
    histories = [t.system_attrs.get("retry_history") for t in trials]
    assert [history for history in histories if history] == [[1]]
    assert_whole(trials)
    assert len({t.user_attrs["lyapunov:worker"]["pid"] for t in trials}) >= 2


@pytest.mark.slow
def test_ctrl_c_reaches_the_workers_of_a_dask_cluster(tmp_path, new_database, cluster):
    campaign = Campaign(tmp_path, trials=5, storage=new_database("postgresql"))
    hold = campaign.hold()
    with campaign.process("--dask", cluster.scheduler_address) as process:
        campaign.pid_at(0, 0)
        campaign.pid_at(1, 0)
        os.kill(process.pid, signal.SIGINT)
        while "Stopping" not in process.stdout.readline():
            assert process.poll() is None
        hold.unlink()
        process.communicate(timeout=60)
    assert process.returncode == 130
    # The event travels through the scheduler: a trial may have ended before it arrived.
    stopped_and_repeated(campaign.trials)
    assert "RUNNING" not in counts(campaign.trials)
    campaign.run()
    assert counts(campaign.trials)["COMPLETE"] == 5
    assert_whole(campaign.trials)


@pytest.mark.slow
def test_a_jobqueue_cluster_described_in_the_file(tmp_path, new_database):
    options = {
        "cores": 1,
        "processes": 1,
        "memory": "1GB",
        "scheduler_options": {"dashboard_address": None},
        "log_directory": str(tmp_path),
    }
    dask = {"cluster": "dask_jobqueue.local:LocalCluster", "jobs": 2, "options": options}
    campaign = Campaign(tmp_path, trials=3, storage=new_database("postgresql"), dask=dask)
    campaign.run()
    assert counts(campaign.trials) == {"COMPLETE": 3}
