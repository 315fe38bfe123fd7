"""The parent of a campaign: lets workers run trials until the total is reached or it is stopped."""

import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial

from lyap_optuna.campaign._config import CampaignConfig, CampaignFileError, Dask
from lyap_optuna.campaign._dask import DaskPool
from lyap_optuna.campaign._local import LocalPool
from lyap_optuna.campaign._objective import check_name
from lyap_optuna.campaign._pool import Event, Pool
from lyap_optuna.campaign._recovery import (
    marked,
    process_is_gone,
    repeat_interrupted,
    settle,
)
from lyap_optuna.campaign._sole import CampaignError, SoleRun
from lyap_optuna.campaign._storage import open_storage, storage_of
from lyap_optuna.campaign._strategies import Strategy
from lyap_optuna.campaign._worker import Ended, Secret, WorkerSpec, strategy_of

_POLL_SECONDS = 0.2  # how soon a signal or the time limit is noticed

POOLS: dict[str, type[Pool]] = {"dask": DaskPool, "local": LocalPool}
"""Where trials can run; what of the file is about it says which."""


class View:
    """What a campaign tells while it runs. This one shows nothing."""

    def started(self, study: Study, tried: int, total: int) -> None:
        """The study is open and workers are starting."""

    def progress(self, tried: int, total: int, trials: Sequence[FrozenTrial]) -> None:
        """The number of trials that are done with may have changed; these are all trials."""

    def reported(self, worker: int, number: int, epochs: int) -> None:
        """A trial has reported a value."""

    def ended(self, worker: int, trial: FrozenTrial, interrupted: bool) -> None:
        """A trial has ended, or was interrupted with the campaign."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


@dataclass
class CampaignResult:
    """How a run of a campaign ended.

    Args:
        missing: Trials that are still to end.
        stopped: Why it was stopped before: ``"interrupted"``, ``"time limit"``, ``"exhausted"``
            (the sampler or the objective stopped the study, as grids do), ``"failed"`` or None.
        states: Names of states and how many trials of this run ended in them; those that were
            stopped with the campaign, FAIL in the study, count as ``"INTERRUPTED"``.
    """

    missing: int = 0
    stopped: str | None = None
    states: dict[str, int] = field(default_factory=dict)


def run_campaign(
    config: CampaignConfig, *, dask: str | None = None, view: View | None = None
) -> CampaignResult:
    """Run a campaign, or go on with it, until its total is reached or it is stopped.

    SIGINT and SIGTERM stop the workers at their next report; a second one stops them at once.
    Either way the trials that were running fail, marked ``lyapunov:interrupted``, and their
    parameters are queued once, so that running the campaign again repeats them. A script that
    calls this needs the usual ``if __name__ == "__main__":``, because workers start by ``spawn``.

    Args:
        config: What the campaign file says, from :func:`load_config`.
        dask: Address of a Dask scheduler, instead of what the file says about Dask.
        view: Is told what happens.

    Returns:
        How it ended.

    Raises:
        CampaignError: Another run of the campaign is going on, a worker could not start, or too
            many trials failed.
        ValueError: Storage and workers do not go together, or there is no such objective.
    """
    view = view or View()
    if dask is not None:
        config = config.model_copy(update={"dask": Dask(address=dask)})
    url = storage_of(config, config.workers or (1 if config.dask is None else 2))
    if config.dask is not None and not ("://" in url and not url.startswith("sqlite")):
        raise ValueError(
            "Workers of a Dask cluster meet in a database that all their machines reach: name one "
            "in the file (storage: postgresql+psycopg://user@host/name, or grpc://host:port)."
        )
    one_machine = "://" not in url or url.startswith("sqlite")
    if config.dask is None:
        check_name(config.objective, str(config.path.parent))  # before anything is written
    study = open_study(config, url)
    spec = WorkerSpec(
        config,
        Secret(url),
        (str(config.path.parent),),
        _threads(config),
        run=uuid.uuid4().hex,
    )
    sole = SoleRun(study, spec.run, one_machine=one_machine, note=view.note)
    try:
        return _run(spec, study, sole, one_machine, view)
    finally:
        sole.release()


def _run(
    spec: WorkerSpec, study: Study, sole: SoleRun, one_machine: bool, view: View
) -> CampaignResult:
    config, strategy = spec.config, strategy_of(spec.config)
    _recover_earlier_runs(study, strategy, one_machine, view)
    trials = study.get_trials(deepcopy=False)
    if strategy.missing(trials) == 0:
        return CampaignResult()
    view.started(study, strategy.tried(trials), config.trials)
    with _signals() as signals:
        pool = POOLS["local" if config.dask is None else "dask"](spec)
        campaign = _Run(spec, study, sole, strategy, pool, view, signals)
        try:
            campaign.until_done()
        finally:
            campaign.close()
    return campaign.result()


def open_study(config: CampaignConfig, url: str, *, create: bool = True) -> Study:
    """Open the campaign's study, by default creating it where it does not exist.

    Raises:
        ValueError: It has another direction.
        CampaignFileError: The place that the file names cannot be written to.
        KeyError: It does not exist and is not to be created.
    """
    try:
        storage = open_storage(
            url,
            retry_seconds=config.retry_seconds,
            heartbeat_interval=config.heartbeat_interval,
        )
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or 'the storage'})"
        raise CampaignFileError(f"{config.line_of('storage')}: {reason}.") from None
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        if create:
            study = optuna.create_study(
                study_name=config.study,
                storage=storage,
                direction=config.direction,
                load_if_exists=True,
            )
        else:
            study = optuna.load_study(study_name=config.study, storage=storage)
    finally:
        optuna.logging.set_verbosity(verbosity)
    directions = [direction.name.lower() for direction in study.directions]
    if directions != [config.direction]:
        raise ValueError(
            f"The study exists with direction {', '.join(directions)}; the campaign says "
            f"{config.direction}."
        )
    return study


def _recover_earlier_runs(study: Study, strategy: Strategy, one_machine: bool, view: View) -> None:
    gone = marked(study, lambda mark: process_is_gone(mark, one_machine=one_machine))
    dead = settle(study, gone, strategy.has_checkpoint)
    if dead.failed:
        view.note(f"{len(dead.failed)} trials of workers that are gone are queued again.")
    if dead.rested:
        view.note(f"{len(dead.rested)} trials that rested in them have ended.")
    repeat_interrupted(study)


def _threads(config: CampaignConfig) -> int:
    if config.threads_per_worker is not None:
        return config.threads_per_worker
    if config.dask is not None:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max((cores or 1) // (config.workers or 1), 1)


class _Run:
    def __init__(
        self,
        spec: WorkerSpec,
        study: Study,
        sole: SoleRun,
        strategy: Strategy,
        pool: Pool,
        view: View,
        signals: list[int],
    ) -> None:
        self._config, self._id = spec.config, spec.run
        self._study = study
        self._sole = sole
        self._strategy = strategy
        self._pool = pool
        self._view = view
        self._signals = signals
        self._result = CampaignResult()
        self._n_failures = 0
        self._all_left = False  # whether each worker was asked to end, by others than this parent
        self._error: str | None = None
        limit = spec.config.time_limit
        self._deadline = None if limit is None else time.monotonic() + limit

    def until_done(self) -> None:
        changed = True
        trials: list[FrozenTrial] = []
        while True:
            self._stop_if_told()
            self._sole.beat()
            if changed:
                trials = self._study.get_trials(deepcopy=False)
                self._view.progress(self._strategy.tried(trials), self._config.trials, trials)
            if self._result.stopped is not None:
                if not self._pool.running or len(self._signals) > 1:
                    break
            elif not self._give_turns(trials) and not self._pool.running:
                break
            changed = False
            for event in self._pool.events(_POLL_SECONDS):
                changed |= self._handle(event)
        for events in self._pool.finish(self._interrupted):
            for event in events:
                self._handle(event)
            if len(self._signals) > 1:
                break

    @property
    def _interrupted(self) -> bool:
        return self._result.stopped not in (None, "exhausted")

    def close(self) -> None:
        """End the workers, and the trials of those that could not do it themselves."""
        self._pool.close()
        # They were told to stop a second time, or their process died at rest.
        may_go_on = self._strategy.has_checkpoint if self._interrupted else lambda number: False
        left = marked(self._study, lambda mark: mark.get("run") == self._id)
        settle(self._study, left, may_go_on, interrupted=self._interrupted)
        repeat_interrupted(self._study)

    def result(self) -> CampaignResult:
        """Return how it ended.

        Raises:
            CampaignError: It could not go on.
        """
        if self._error is not None:
            raise CampaignError(self._error)
        trials = self._study.get_trials(deepcopy=False)
        self._result.missing = self._strategy.missing(trials)
        self._view.progress(self._strategy.tried(trials), self._config.trials, trials)
        if self._result.missing and self._strategy.exhausted:
            self._result.stopped = self._result.stopped or "exhausted"
        return self._result

    def _give_turns(self, trials: list[FrozenTrial]) -> bool:
        """Give idle workers turns; whether there is more to do."""
        while turn := self._strategy.turn(trials, self._pool.running, self._pool.alive):
            if self._pool.idle == 0:
                if self._all_left:
                    self._stop("interrupted", "All workers were stopped.")
                return True
            self._pool.submit(turn)
        return False

    def _stop_if_told(self) -> None:
        if self._result.stopped in (None, "exhausted"):
            if self._signals:
                self._stop(
                    "interrupted",
                    "Stopping at the next report of each trial; once more to stop at once.",
                )
            elif self._deadline is not None and time.monotonic() >= self._deadline:
                self._stop("time limit", "The time limit is reached: stopping at the next reports.")

    def _stop(self, reason: str, note: str) -> None:
        self._result.stopped = reason
        self._view.note(note)
        self._pool.stop()

    def _handle(self, event: Event) -> bool:
        """Take note of an event; whether it may have changed what is missing."""
        if event.kind == "report" and event.number is not None:
            self._view.reported(event.worker, event.number, event.epochs)
            return False
        if event.kind == "broken":
            self._give_up(f"Worker {event.worker} cannot work: {event.message}")
            return False
        self._all_left = event.kind == "stopped" and self._pool.alive == 0
        if event.kind == "died":
            self._died(event)
        elif event.result is not None:
            result = event.result
            if event.turn is not None:
                self._strategy.took(event.turn, result)
            for ended in result.ended:
                self._ended(event.worker, ended)
            if any(ended.interrupted for ended in result.ended):
                repeat_interrupted(self._study)
            if result.exhausted and self._result.stopped is None:
                self._result.stopped = "exhausted"  # what runs may end
        return True

    def _ended(self, worker: int, ended: Ended) -> None:
        states, name = self._result.states, "INTERRUPTED" if ended.interrupted else ended.state
        states[name] = states.get(name, 0) + 1
        if ended.number is not None:
            trial = self._study.get_trials(deepcopy=False)[ended.number]
            self._view.ended(worker, trial, ended.interrupted)
        if ended.error is not None:
            self._failed(f"Trial {ended.number} failed: {ended.error}")

    def _died(self, event: Event) -> None:
        text = f"Worker {event.worker} died ({event.message})."
        task = None if event.turn is None else event.turn.task
        settled = settle(
            self._study,
            marked(self._study, lambda mark: mark.get("task") == task or process_is_gone(mark)),
            self._strategy.has_checkpoint,
            interrupted=self._result.stopped is not None,
        )
        repeat_interrupted(self._study)
        for number in settled.failed:
            text += f" Its trial {number} failed and is queued again."
        if settled.rested:
            text += f" {len(settled.rested)} that rested in it ended as they were."
        self._failed(text)

    def _failed(self, text: str) -> None:
        self._view.note(text)
        self._n_failures += 1
        if self._n_failures > self._config.max_failures:
            self._give_up(
                f"{self._n_failures} failures in this run, more than "
                f"max_failures={self._config.max_failures}. The last: {text}"
            )

    def _give_up(self, error: str) -> None:
        if self._error is None and self._result.stopped in (None, "exhausted"):
            self._error = error
            self._stop("failed", "Stopping at the next report of each trial.")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of raising, in the main thread."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before: dict[int, Any] = {n: signal.signal(n, receive) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
