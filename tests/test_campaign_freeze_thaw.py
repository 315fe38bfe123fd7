"""Campaigns that pause: whatever dies, no trial is lost, none is counted twice, none is left."""

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed
import optuna
import pytest
from _campaigns import Campaign, counts, wait_for
from _own_servers import own_server
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

import lyap_optuna as lyap
from lyap_optuna.campaign import (
    CampaignConfig,
    CampaignError,
    RetryingStorage,
    campaign_status,
    load_config,
    previous_attempt,
)
from lyap_optuna.campaign._freeze_thaw import FreezeThawStrategy, _stale
from lyap_optuna.campaign._recovery import Settled, marked, owner, repeat_interrupted, settle
from lyap_optuna.campaign._retry import INTERRUPTED, WORKER
from lyap_optuna.campaign._strategies import Turn
from lyap_optuna.campaign._worker import Result
from lyap_optuna.cli import main
from lyap_optuna.records import read_decisions
from lyap_optuna.records._keys import REPEATS, RESTING

EPOCHS = 6


def freezing(folder: Path, objective: str = "curve", **keys: Any) -> Campaign:
    """A campaign with the strategy; ``n_steps`` and the like are options of that."""
    options = {name: keys.pop(name) for name in ("n_steps", "max_paused") if name in keys}
    if objective == "resuming_curve":
        options["checkpoint"] = str(folder / "checkpoints")
    keys.setdefault("sampler", {"name": "RandomSampler"})
    strategy = {"name": "freeze_thaw", **options}
    return Campaign(folder, objective=f"toy:{objective}", strategy=strategy, **keys)


def reports(trials: list[FrozenTrial]) -> int:
    return sum(len(t.intermediate_values) for t in trials)


def resting(trials: list[FrozenTrial], pid: int | None = None) -> list[FrozenTrial]:
    """Return the trials that rest, in the process ``pid`` or in any."""
    there = [t for t in trials if t.state == TrialState.RUNNING and t.user_attrs.get(RESTING)]
    return [t for t in there if pid is None or t.user_attrs[WORKER]["pid"] == pid]


def assert_nothing_is_lost(trials: list[FrozenTrial]) -> None:
    """Each trial has ended, once; each report that was made is there, in order and with its value.

    A COMPLETE trial has all its epochs, with those of the trials whose checkpoint it went on from.
    """
    assert [t.number for t in trials] == list(range(len(trials)))
    for trial in trials:
        assert trial.state.is_finished()
        assert trial.user_attrs.get(RESTING) is not True
        x, steps = trial.params["x"], sorted(trial.intermediate_values)
        for step, value in trial.intermediate_values.items():
            assert value == x * x + 1 / (1 + step)
        if trial.state == TrialState.PRUNED:
            assert trial.value == trial.intermediate_values[steps[-1]]
            assert read_decisions(trial)[-1].because == "rested"
        if trial.state == TrialState.COMPLETE:
            assert steps == list(range(steps[0], EPOCHS))
    tried = [t.params["x"] for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(set(tried)) == len(tried)  # no configuration counts twice


def trained(folder: Path, x: float, epoch: int) -> list[int]:
    """Return the trials that trained an epoch of a configuration."""
    path = folder / f"trained-{x}-{epoch}"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


# What the parent counts


def strategy(**keys: Any) -> FreezeThawStrategy:
    options = {name: keys.pop(name) for name in ("n_steps", "checkpoint") if name in keys}
    config = CampaignConfig.model_validate(
        {
            "study": "s",
            "objective": "m:f",
            "trials": keys.get("trials", 20),
            "strategy": {"name": "freeze_thaw", **options},
        }
    )
    return FreezeThawStrategy(config, config.strategy)


def running_trial(task: str, steps: int = 0) -> FrozenTrial:
    trial = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        intermediate_values=dict.fromkeys(range(steps), 1.0),
        user_attrs={WORKER: {"task": task}},
    )
    return trial


@given(
    n_steps=st.integers(1, 60),
    alive=st.integers(1, 5),
    done=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), max_size=40),
)
def test_turns_never_spend_more_steps_than_there_are(
    n_steps: int, alive: int, done: list[tuple[int, int]]
) -> None:
    parent = strategy(n_steps=n_steps, trials=1000)
    trials: list[FrozenTrial] = []
    running: list[Turn] = []
    for which, makes in done:
        while len(running) < alive and (turn := parent.turn(trials, running, alive)):
            running.append(turn)
        if not running:
            break
        turn = running.pop(which % len(running))
        assert turn.n_steps is not None
        trials.append(running_trial(turn.task, min(makes, turn.n_steps)))
        parent.took(turn, Result())
        assert reports(trials) + sum(t.n_steps or 0 for t in running) <= n_steps
    if not running and reports(trials) < n_steps:
        assert parent.turn(trials, [], alive) is not None
    if reports(trials) == n_steps:
        assert parent.turn(trials, [], alive) is None
        assert parent.missing(trials) == 0


def test_no_more_trials_begin_than_the_total_and_it_ends_when_all_have_nothing_left() -> None:
    parent = strategy(trials=3)
    first, second = Turn(), Turn()
    turn = parent.turn([], [first, second], 4)
    assert turn is not None
    assert turn.begin
    turn = parent.turn([], [first, second, turn], 4)
    assert turn is not None
    assert not turn.begin
    # Both have begun: their trials are there, and are not counted again.
    trials = [running_trial(first.task), running_trial(second.task)]
    turn = parent.turn(trials, [first, second], 4)
    assert turn is not None
    assert turn.begin
    trials.append(running_trial("third"))
    for n in range(2):
        turn = parent.turn(trials, [], 2)
        assert turn is not None, n
        assert not turn.begin
        parent.took(turn, Result(idle=True))
    assert parent.turn(trials, [], 2) is None
    parent.took(Turn(begin=False), Result())  # something has changed
    assert parent.turn(trials, [], 2) is not None
    assert not parent.exhausted


# Trials of workers that are gone


@pytest.mark.parametrize("kept", [False, True])
def test_what_rested_in_a_dead_worker_is_pruned_or_goes_on_exactly_once(
    tmp_path: Path, kept: bool
) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}")
    untrained, rested, ran = (
        study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}) for _ in range(3)
    )
    for trial in (untrained, rested, ran):
        trial.set_user_attr(WORKER, owner("t"))
        trial.set_user_attr(RESTING, trial is not ran)
    for trial in (rested, ran):
        trial.report(0.7, 0)
        trial.report(0.5, 1)
    (tmp_path / "checkpoints").mkdir()
    if kept:
        (tmp_path / "checkpoints" / f"{rested.number}.pt").touch()
    (tmp_path / "checkpoints" / f"{untrained.number}0.pt").touch()  # another's
    has = strategy(checkpoint=str(tmp_path / "checkpoints")).has_checkpoint
    all_of = [marked(study, lambda mark: mark["task"] == "t") for _ in range(2)]
    settled = settle(study, all_of[0], has)
    assert settled == (Settled([1, 2], [0]) if kept else Settled([2], [0, 1]))
    assert settle(study, all_of[1], has) == Settled()
    assert [repeat_interrupted(study) for _ in range(2)] == [int(kept), 0]
    ended = study.trials[:3]
    assert [t.state.name for t in ended] == ["FAIL", "FAIL" if kept else "PRUNED", "FAIL"]
    assert ended[1].value == (None if kept else 0.5)
    assert (ended[1].user_attrs.get(INTERRUPTED) is True) == kept
    assert "worker ended" in read_decisions(ended[0])[-1].reason
    again = [study.ask() for t in study.trials if t.state == TrialState.WAITING]
    assert {previous_attempt(t) for t in again} == ({1, 2} if kept else {2})
    assert not any(t.user_attrs.get(RESTING) for t in again)


# Whole campaigns


@pytest.mark.parametrize("workers", [1, 2])
def test_all_workers_together_make_as_many_steps_as_the_file_says(
    tmp_path: Path, workers: int
) -> None:
    campaign = freezing(tmp_path, n_steps=90, trials=500, workers=workers)
    result = campaign.run()
    trials = campaign.trials
    assert_nothing_is_lost(trials)
    assert reports(trials) == 90
    assert (result.missing, result.stopped) == (0, None)
    assert result.states == counts(trials)
    assert counts(trials)["PRUNED"] > 3
    assert len({t.user_attrs[WORKER]["pid"] for t in trials}) == workers
    assert campaign.run().states == {}
    assert reports(campaign.trials) == 90
    status = campaign_status(load_config(campaign.file), campaign.study)
    assert (status.total, status.tried, status.missing) == (500, len(trials), 0)


@pytest.mark.slow
def test_a_total_of_trials_ends_it_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    campaign = freezing(tmp_path, trials=10, workers=2)
    campaign.run()
    assert_nothing_is_lost(campaign.trials)
    assert len(campaign.trials) == 10
    assert reports(campaign.trials) < 10 * EPOCHS
    campaign = freezing(tmp_path, trials=14, workers=2)
    campaign.run()
    assert_nothing_is_lost(campaign.trials)
    assert len(campaign.trials) == 14


def test_generators_rest_untrained_and_count_as_tried(tmp_path: Path) -> None:
    campaign = freezing(tmp_path, "generator", trials=20)
    result = campaign.run()
    trials = campaign.trials
    assert len(trials) == 20
    assert result.missing == 0
    untrained = [t for t in trials if not t.intermediate_values]
    assert {t.state for t in untrained} == {TrialState.FAIL}
    assert len(untrained) > 2
    assert campaign.run().states == {}


def test_a_grid_is_tried_once_and_its_best_go_on(tmp_path: Path) -> None:
    grid = {"name": "GridSampler", "search_space": {"i": list(range(10))}}
    campaign = freezing(tmp_path, "on_a_grid", sampler=grid, trials=15, n_steps=45)
    campaign.run()
    trials = campaign.trials
    assert sorted(t.params["i"] for t in trials) == list(range(10))
    assert reports(trials) == 45
    assert campaign.study.best_value == 0
    campaign = freezing(tmp_path, "on_a_grid", sampler=grid, trials=15, study="again")
    result = campaign.run()
    assert (result.stopped, result.missing) == ("exhausted", 5)
    assert sorted(t.params["i"] for t in campaign.trials) == list(range(10))


def test_failures_are_told_without_passwords_and_bounded(tmp_path: Path) -> None:
    campaign = freezing(tmp_path, "fails", max_failures=1)
    with pytest.raises(CampaignError, match=r"2 failures in this run.*\n?.*luck"):
        campaign.run()
    assert counts(campaign.trials) == {"FAIL": 2}
    campaign = freezing(tmp_path, "returns_nan", max_failures=0, study="nan")
    with pytest.raises(CampaignError, match="nan is not acceptable"):
        campaign.run()


def test_out_of_memory_is_no_failure_of_the_campaign(tmp_path: Path) -> None:
    campaign = freezing(tmp_path, "out_of_memory", n_steps=60, trials=500, max_failures=0)
    campaign.run()
    trials = campaign.trials
    assert_nothing_is_lost(trials)
    assert reports(trials) == 60
    failed = [t for t in trials if t.state == TrialState.FAIL]
    assert failed
    again = {t.user_attrs.get(REPEATS): t.params for t in trials}
    assert all(again[t.number] == t.params for t in failed)


def test_where_no_parent_sees_it_the_heartbeat_of_another_ends_what_rested(
    new_database: Callable[[str], str],
) -> None:
    storage = RetryingStorage(new_database("sqlite"), retry_seconds=1, heartbeat_interval=1)
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Heartbeat of storage")
        rested, ran = study.ask(), study.ask()
    for trial in (rested, ran):
        trial.suggest_float("x", 0, 1)
        trial.report(0.5, 0)
        storage.record_heartbeat(trial._trial_id)
    rested.set_user_attr(RESTING, True)
    wait_for(lambda: len(storage._get_stale_trial_ids(study._study_id)) == 2)
    settle(study, _stale(study), lambda number: False)
    settle(study, _stale(study), lambda number: False)
    assert [t.state.name for t in study.trials] == ["PRUNED", "FAIL", "WAITING"]
    assert study.trials[2].params == ran.params
    # Optuna's own way, of a worker with another strategy, begins both again.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, rested = study.ask(), study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    storage.record_heartbeat(rested._trial_id)
    rested.set_user_attr(RESTING, True)
    wait_for(lambda: len(storage._get_stale_trial_ids(study._study_id)) == 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.storages.fail_stale_trials(study)
    again = study.trials[-1]
    assert (again.state, again.user_attrs) == (TrialState.WAITING, {})


@contextlib.contextmanager
def held(campaign: Campaign, *arguments: str) -> Iterator[tuple[Any, int, int]]:
    """A campaign that waits where a late trial begins while others rest in the same process.

    Yields the process that was started, that of the worker, and the number of the late trial.
    """
    (campaign.folder / "hold-later").touch()
    with campaign.process(*arguments) as process:
        found: list[tuple[int, int]] = []

        def is_held() -> bool:
            trials = campaign.trials if any(campaign.folder.glob("at-*")) else []
            for trial in trials[9:]:
                at = campaign.folder / f"at-{trial.number}-0"
                pid = int(at.read_text() or 0) if at.exists() else 0
                if trial.state == TrialState.RUNNING and pid and resting(trials, pid):
                    found.append((pid, trial.number))
            return bool(found)

        wait_for(is_held)
        yield process, *found[0]


def go_on(campaign: Campaign) -> None:
    (campaign.folder / "hold-later").unlink()


@pytest.mark.parametrize("kind", ["sqlite", "journal", "postgresql"])
def test_a_killed_worker_loses_no_report(
    tmp_path: Path, kind: str, new_database: Callable[[str], str]
) -> None:
    keys: dict[str, Any] = {} if kind == "sqlite" else {"workers": 2}
    if kind == "postgresql":
        keys["storage"] = new_database(kind)
    campaign = freezing(tmp_path, trials=16, n_steps=70, **keys)
    with held(campaign) as (process, pid, number):
        before = resting(campaign.trials, pid)
        status = CliRunner().invoke(main, ["campaign", "status", "--once", str(campaign.file)])
        shown = int(status.output.split("resting")[1].split()[0])
        assert shown == len(before) if kind == "sqlite" else shown >= len(before)
        os.kill(pid, signal.SIGKILL)
        go_on(campaign)
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert f"Its trial {number} failed and is queued again." in output
    trials = campaign.trials
    assert_nothing_is_lost(trials)
    for trial in before:
        ended = trials[trial.number]
        assert ended.state == TrialState.PRUNED
        assert ended.intermediate_values == trial.intermediate_values
        assert "worker ended" in read_decisions(ended)[-1].reason
    assert [t.number for t in trials if t.state == TrialState.FAIL] == [number]
    retries = [t for t in trials if "retry_history" in t.system_attrs]
    assert [t.system_attrs["retry_history"] for t in retries] == [[number]]
    assert retries[0].params == trials[number].params
    assert reports(trials) == 70 or len(trials) == 17


def test_with_checkpoints_what_rested_in_a_killed_worker_goes_on(tmp_path: Path) -> None:
    campaign = freezing(tmp_path, "resuming_curve", trials=16, workers=2)
    with held(campaign) as (process, pid, number):
        before = resting(campaign.trials, pid)
        os.kill(pid, signal.SIGKILL)
        go_on(campaign)
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    trials = campaign.trials
    assert_nothing_is_lost(trials)
    failed = {t.number for t in trials if t.state == TrialState.FAIL}
    assert failed == {number, *(t.number for t in before)}
    assert len(trials) - len(failed) == 16
    for trial in before:
        (again,) = (t for t in trials if t.user_attrs.get(REPEATS) == trial.number)
        assert again.params == trial.params
        assert min(again.intermediate_values) == 1 + max(trial.intermediate_values)
    for x in {t.params["x"] for t in trials}:
        assert all(len(trained(tmp_path, x, epoch)) <= 1 for epoch in range(EPOCHS))


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True])
def test_stopping_and_going_on(tmp_path: Path, kept: bool) -> None:
    campaign = freezing(tmp_path, "resuming_curve" if kept else "curve", trials=14, workers=2)
    with held(campaign) as (process, pid, _):
        before = resting(campaign.trials, pid)  # the other worker may go on with those it has
        process.send_signal(signal.SIGINT)
        told = ""
        while "Stopping" not in told:
            told += process.stdout.readline()
            assert process.poll() is None, told
        go_on(campaign)
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, told + output
    assert "Traceback" not in told + output
    stopped = campaign.trials
    # What ran when it was told to stop has failed, or ended by itself just before.
    ended_so = {"COMPLETE", "FAIL", "WAITING"} | (set() if kept else {"PRUNED"})
    assert {t.state.name for t in stopped} <= ended_so
    for trial in before:
        ended = stopped[trial.number]
        assert ended.state in (TrialState.FAIL if kept else TrialState.PRUNED, TrialState.COMPLETE)
        assert ended.intermediate_values.items() >= trial.intermediate_values.items()
    failed = [t for t in stopped if t.state == TrialState.FAIL]
    assert all(t.user_attrs[INTERRUPTED] is True for t in failed)
    waiting = [t for t in stopped if t.state == TrialState.WAITING]
    assert sorted(t.user_attrs[REPEATS] for t in waiting) == sorted(t.number for t in failed)
    campaign.run()
    trials = campaign.trials
    assert_nothing_is_lost(trials)
    assert sum(t.state != TrialState.FAIL for t in trials) == 14
    if kept:
        for x in {t.params["x"] for t in trials}:
            assert all(len(trained(tmp_path, x, epoch)) <= 1 for epoch in range(EPOCHS))


@pytest.mark.slow
def test_after_everything_was_killed_the_next_run_goes_on(tmp_path: Path) -> None:
    campaign = freezing(tmp_path, trials=14)
    with held(campaign) as (process, pid, _):
        before = resting(campaign.trials)
        for killed in (process.pid, pid):
            os.kill(killed, signal.SIGKILL)
        process.wait()
        wait_for(lambda: not Path(f"/proc/{pid}").exists())
    go_on(campaign)
    assert len(resting(campaign.trials)) == len(before)
    campaign.run()
    trials = campaign.trials
    assert_nothing_is_lost(trials)
    assert counts(trials)["FAIL"] == 1
    assert {trials[t.number].state for t in before} == {TrialState.PRUNED}
    assert len(trials) == 15


@pytest.mark.slow
def test_workers_end_what_rests_when_the_parent_is_gone(tmp_path: Path) -> None:
    campaign = freezing(tmp_path, trials=14, storage=str(tmp_path / "c.journal"))
    with held(campaign) as (process, _, number):
        before = resting(campaign.trials)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        go_on(campaign)
        wait_for(lambda: all(t.state.is_finished() for t in campaign.trials))
    trials = campaign.trials
    assert {trials[t.number].state for t in before} == {TrialState.PRUNED}
    assert trials[number].state == TrialState.FAIL
    assert trials[number].user_attrs[INTERRUPTED] is True
    campaign.run()
    assert_nothing_is_lost(campaign.trials)
    assert len(campaign.trials) == 15


@pytest.mark.slow
def test_a_restart_of_the_server_while_trials_rest(tmp_path: Path) -> None:
    with own_server("postgresql") as server:
        campaign = freezing(tmp_path, trials=300, n_steps=80, workers=2, storage=server.url())
        with held(campaign) as (process, pid, _):
            before = resting(campaign.trials)
            server.stop()
            go_on(campaign)  # it reports to a server that is not there
            time.sleep(2.0)
            server.start()
            output, _ = process.communicate(timeout=110)
        assert process.returncode == 0, output
        trials = campaign.trials
        assert_nothing_is_lost(trials)
        assert "FAIL" not in counts(trials)
        assert reports(trials) == 80
        assert pid in {t.user_attrs[WORKER]["pid"] for t in trials[10:]}
        assert before


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["nobody", "worker", "parent", "stopped"])
def test_a_dask_cluster_runs_the_same_campaign(
    tmp_path: Path,
    new_database: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    killed: str,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    storage = new_database("postgresql")
    campaign = freezing(tmp_path, trials=16, n_steps=70, storage=storage)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        with held(campaign, "--dask", cluster.scheduler_address) as (process, pid, number):
            before = resting(campaign.trials, pid)
            if killed == "worker":
                os.kill(pid, signal.SIGKILL)
            elif killed == "parent":
                process.kill()
            elif killed == "stopped":
                process.send_signal(signal.SIGINT)
            go_on(campaign)
            output, _ = process.communicate(timeout=300)
        if killed in ("parent", "stopped"):
            assert process.returncode == {"parent": -9, "stopped": 130}[killed], output
            campaign.run(dask=cluster.scheduler_address)
        else:
            assert process.returncode == 0, output
    trials = campaign.trials
    assert_nothing_is_lost(trials)
    failed = [t.number for t in trials if t.state == TrialState.FAIL]
    assert reports(trials) == 70 or len(trials) - len(failed) == 16
    if killed == "nobody":
        assert not failed
    elif killed in ("parent", "stopped"):  # its turn may have ended before the worker noticed
        assert set(failed) <= {number}
    else:
        assert number in failed
    if killed != "nobody":
        assert {trials[t.number].state for t in before} == {TrialState.PRUNED}
        assert "rested" in str(lyap.explain(campaign.study, before[0].number))
