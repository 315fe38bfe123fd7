"""Every kind of pool keeps what ``lyap_optuna.campaign._pool.Pool`` promises."""

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from _campaigns import Campaign, counts, wait_for

from lyap_optuna.campaign import load_config, open_study, storage_of
from lyap_optuna.campaign._pool import Event, Pool
from lyap_optuna.campaign._runner import POOLS
from lyap_optuna.campaign._strategies import Turn
from lyap_optuna.campaign._worker import Secret, WorkerSpec

OPTIONS = {"threads_per_worker": 1, "dashboard_address": None}
FILES = {
    "local": {"workers": 2},
    "dask": {
        "workers": 2,
        "dask": {"cluster": "distributed:LocalCluster", "jobs": 2, "options": OPTIONS},
    },
}
KINDS = [pytest.param(kind, marks=[] if kind == "local" else [pytest.mark.slow]) for kind in POOLS]


class Used:
    """A pool with two workers, and what it has told."""

    def __init__(self, campaign: Campaign, pool: Pool) -> None:
        self.campaign, self.pool = campaign, pool
        self.events: list[Event] = []
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.pool.close()

    def submit(self, n: int) -> list[str]:
        turns = [Turn() for _ in range(n)]
        for turn in turns:
            self.wait(lambda: self.pool.idle > 0)
            idle = self.pool.idle
            self.pool.submit(turn)
            assert turn in self.pool.running
            assert self.pool.idle == idle - 1
        return [turn.task for turn in turns]

    def wait(self, condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            self.events += self.pool.events(0.05)
            return condition()

        wait_for(holds)

    def back(self, tasks: list[str]) -> list[Event]:
        """Wait for turns; each comes back once."""
        self.wait(lambda: not self.pool.running)
        told = [event for event in self.events if event.kind != "report" and event.turn is not None]
        assert Counter(event.turn.task for event in told if event.turn) == Counter(tasks)
        return told


@pytest.fixture(params=KINDS)
def use(
    request: pytest.FixtureRequest, tmp_path: Path, new_database: Callable[[str], str]
) -> Iterator[Callable[[str], Used]]:
    with contextlib.ExitStack() as opened:

        def make(objective: str) -> Used:
            url = new_database("postgresql")
            keys = {"objective": f"toy:{objective}", "trials": 9, "storage": url}
            campaign = Campaign(tmp_path, **keys, **FILES[request.param])
            config = load_config(campaign.file)
            open_study(config, storage_of(config, 2))
            spec = WorkerSpec(config, Secret(url), (str(tmp_path),), 1, run="run")
            pool = POOLS[request.param](spec)
            used = Used(campaign, pool)
            opened.callback(used.close)
            return used

        yield make


def test_every_turn_comes_back_once_and_the_workers_end(use: Callable[[str], Used]) -> None:
    used = use("objective")
    told = used.back(used.submit(3))
    assert [event.kind for event in told] == ["result"] * 3
    ended = [end for event in told if event.result for end in event.result.ended]
    assert sorted((end.number, end.state) for end in ended) == [(n, "COMPLETE") for n in range(3)]
    list(used.pool.finish(False))
    assert counts(used.campaign.trials) == {"COMPLETE": 3}


def test_a_worker_that_is_killed_costs_the_others_nothing(use: Callable[[str], Used]) -> None:
    used = use("objective")
    hold = used.campaign.hold(0, 2)
    tasks = used.submit(1)
    used.wait(lambda: (used.campaign.folder / "at-0-2").exists())
    tasks += used.submit(1)
    os.kill(used.campaign.pid_at(0, 2), signal.SIGKILL)
    hold.unlink()
    used.back(tasks)
    assert used.campaign.trials[1].state.name == "COMPLETE"
    used.wait(lambda: used.pool.idle == 2)  # it was replaced


def test_stopping_reaches_what_runs_and_what_is_still_to_run(use: Callable[[str], Used]) -> None:
    used = use("endless")
    tasks = used.submit(2)
    used.campaign.pid_at(0, 0)
    used.campaign.pid_at(1, 0)
    used.pool.stop()
    told = used.back(tasks)
    assert [[e.interrupted for e in event.result.ended] for event in told if event.result] == [
        [True],
        [True],
    ]
    used.back(tasks + used.submit(1))
    assert counts(used.campaign.trials) == {"FAIL": 2}


def test_closing_ends_what_runs(use: Callable[[str], Used]) -> None:
    used = use("endless")
    used.submit(1)
    pid = used.campaign.pid_at(0, 0)
    used.close()
    assert used.pool.running == []
    wait_for(lambda: not psutil.pid_exists(pid) or counts(used.campaign.trials) == {"FAIL": 1})
