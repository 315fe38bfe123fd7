"""Campaigns with a real probe: stopping, going on, and Dask clusters that lose workers."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from _campaigns import Campaign, assert_whole, counts
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.campaign import campaign_status, load_config

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


# Dask


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
