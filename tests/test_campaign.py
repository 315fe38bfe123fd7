"""Campaigns with a real probe: screening, stopping, and Dask clusters that lose workers."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from _campaigns import Campaign, assert_whole, counts
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.campaign import campaign_status, load_config, storage_of
from lyap_optuna.campaign._strategies import strategy_of

SCREEN = {"name": "screen", "steps": 2, "best": 2, "n_startup_trials": 5}


# Screening


@pytest.mark.parametrize("objective", ["objective", "resuming"])
def test_the_best_of_the_screened_go_on_from_a_checkpoint_or_from_the_start(tmp_path, objective):
    campaign = Campaign(
        tmp_path, objective=f"toy:{objective}", trials=9, workers=2, strategy=SCREEN
    )
    campaign.run()
    trials = campaign.trials
    assert counts(trials) == {"COMPLETE": 7, "PRUNED": 4}
    screened = [t for t in trials if t.state == TrialState.PRUNED]
    assert all(sorted(t.intermediate_values) == [0, 1] for t in screened)
    assert all("1" in t.user_attrs["lyapunov:readouts"] for t in screened)
    assert all(t.user_attrs["lyapunov:decision"]["verdict"] == "pruned" for t in screened)
    continued = [t for t in trials if "lyapunov:continues" in t.user_attrs]
    assert len({t.user_attrs["lyapunov:continues"] for t in continued}) == 2
    for trial in continued:
        first = trials[trial.user_attrs["lyapunov:continues"]]
        assert first in screened
        assert trial.params == first.params
        # The baseline is the one before training, also where training went on from a checkpoint.
        series = trial.user_attrs["lyapunov:readouts"]
        assert series["-1"] == first.user_attrs["lyapunov:readouts"]["-1"]
    epochs = [2, 3] if objective == "resuming" else [0, 1, 2, 3]
    assert all(sorted(t.intermediate_values) == epochs for t in continued)
    status = campaign_status(load_config(campaign.file), campaign.study)
    assert (status.total, status.missing) == (11, 0)
    assert status.epochs_spent == 5 * 4 + 4 * 2 + 2 * len(epochs)
    assert status.epochs_saved == 9 * 4 - status.epochs_spent
    assert campaign.run().states == {}


def test_an_objective_that_never_asks_is_stopped_a_report_later(tmp_path):
    screen = {**SCREEN, "n_startup_trials": 1, "best": 1}
    campaign = Campaign(tmp_path, objective="toy:never_asks", trials=3, strategy=screen)
    campaign.run()
    screened = [t for t in campaign.trials if t.state == TrialState.PRUNED]
    assert [len(t.intermediate_values) for t in screened] == [3, 3]


def test_an_earlier_study_can_train_the_predictor(tmp_path):
    screen = {"name": "screen", "steps": 1, "best": 1, "study": "earlier"}
    campaign = Campaign(tmp_path, trials=3, strategy=screen)
    url = storage_of(load_config(campaign.file), 1)
    earlier = optuna.create_study(study_name="earlier", storage=url)
    space = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    for x in (i / 20 for i in range(20)):  # there, the first loss misleads: a large x is good
        earlier.add_trial(
            optuna.create_trial(
                params={"x": x},
                distributions=space,
                value=1 - x,
                intermediate_values={0: x + 1, 1: 1 - x},
            )
        )
    campaign.run()
    trials = campaign.trials
    assert counts(trials) == {"COMPLETE": 1, "PRUNED": 3}
    largest = max(trials[:3], key=lambda t: t.params["x"])
    assert trials[3].user_attrs["lyapunov:continues"] == largest.number


def test_training_trials_that_fail_are_replaced(tmp_path):
    strategy = strategy_of(load_config(Campaign(tmp_path, trials=9, strategy=SCREEN).file))
    study = optuna.create_study()
    roles = []
    for i in range(10):
        trial = study.ask()
        strategy.begin(trial)
        roles.append(trial.user_attrs["lyapunov:screen"])
        study.tell(trial, 1.0) if i % 2 else study.tell(trial, state=TrialState.FAIL)
    assert roles == ["train"] * 10
    assert strategy.missing(study) == 4


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
