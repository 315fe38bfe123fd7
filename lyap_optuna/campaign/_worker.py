"""A worker: runs one trial after another, in a process of its own or as tasks of Dask."""

import contextlib
import os
import platform
import queue
import signal
import sys
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._logging import without_passwords
from lyap_optuna.campaign._config import (
    SAME_SEED_EVERYWHERE,
    CampaignConfig,
    FreezeThaw,
    make_sampler,
)
from lyap_optuna.campaign._freeze_thaw import FreezeThawStrategy
from lyap_optuna.campaign._objective import find_objective
from lyap_optuna.campaign._recovery import owner
from lyap_optuna.campaign._retry import INTERRUPTED, WORKER
from lyap_optuna.campaign._storage import close_storage, open_storage, patiently
from lyap_optuna.campaign._strategies import PruneStrategy, Session, Strategy, Turn

Notify = Callable[[int, int], None]
"""Called with trial number and reported epochs, at each report."""

_LOOK_SECONDS = 1.0
"""How often a process looks whether its parent is there: a system call."""


class TrialInterrupted(BaseException):
    """Raised within an objective, at a report, when the campaign was told to stop.

    Not an :class:`Exception`, so that an objective which catches those does not go on.
    """


class CampaignTrial(optuna.Trial):
    """The trial that an objective is given: Optuna's, which can be stopped at a report.

    After a value is stored, :meth:`report` raises :class:`TrialInterrupted` when the campaign was
    told to stop, and so does :meth:`should_prune`. The objective need not know.
    """

    _stop: threading.Event
    _notify: Notify

    @classmethod
    def of(cls, trial: optuna.Trial, stop: threading.Event, notify: Notify) -> "CampaignTrial":
        """Return the same trial; making one anew would sample a second time."""
        made = cls.__new__(cls)
        made.__dict__ = trial.__dict__
        made._stop, made._notify = stop, notify
        return made

    def report(self, value: float, step: int) -> None:
        """Report a value; see :meth:`optuna.Trial.report`."""
        super().report(value, step)
        self._notify(self.number, len(self._cached_frozen_trial.intermediate_values))
        self._check()

    def should_prune(self) -> bool:
        """Suggest whether to prune; see :meth:`optuna.Trial.should_prune`."""
        self._check()
        return super().should_prune()

    def _check(self) -> None:
        if self._stop.is_set():
            raise TrialInterrupted


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker must know. It reaches workers through a pipe, never on a command line.

    Args:
        config: The campaign.
        storage: URL or path; hidden from ``repr``, which Dask puts into its log.
        path: Folders on which the objective is looked up first.
        threads: Threads that the worker may use.
        run: What marks the trials of this run of the campaign.
    """

    config: CampaignConfig
    storage: Callable[[], str]
    path: tuple[str, ...]
    threads: int
    run: str


@dataclass(frozen=True)
class Secret:
    """A text that ``repr`` does not show; call it to read it."""

    _text: str

    def __call__(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"


@dataclass(frozen=True)
class Ended:
    """How a trial ended.

    Args:
        number: Its number; None where it is not known.
        state: Name of its state.
        error: Why it failed, in a line.
        interrupted: Whether it was stopped with the campaign.
    """

    number: int | None
    state: str
    error: str | None = None
    interrupted: bool = False


@dataclass(frozen=True)
class Result:
    """How a turn ended.

    Args:
        ended: Trials that ended in it.
        idle: Whether there was no trial to run.
        exhausted: Whether the sampler (a grid that is done) or the objective stopped the study.
        broken: Why the worker cannot work at all.
    """

    ended: tuple[Ended, ...] = ()
    idle: bool = False
    exhausted: bool = False
    broken: str | None = None


@dataclass(frozen=True)
class End:
    """Tells a worker to end.

    Args:
        interrupted: Whether the campaign was stopped before it was done.
    """

    interrupted: bool


class Worker:
    """Runs trials of a campaign, one at a time.

    Args:
        spec: The campaign.
        index: Number of the worker; the seeds of its sampler and its choices are derived from it.
        stop: Set when the campaign was told to stop.
        notify: Called at each report.

    Raises:
        Exception: Storage, study or objective cannot be opened.
    """

    def __init__(self, spec: WorkerSpec, index: int, stop: threading.Event, notify: Notify) -> None:
        config = spec.config
        sys.path[:0] = [folder for folder in spec.path if folder not in sys.path]
        torch.set_num_threads(spec.threads)
        # The parent tells what happens. Optuna would log each failure with its traceback.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.objective = find_objective(config.objective)
        storage = patiently(
            lambda: open_storage(
                spec.storage(),
                retry_seconds=config.retry_seconds,
                heartbeat_interval=config.heartbeat_interval,
            ),
            config.retry_seconds,
        )
        self.study = optuna.load_study(study_name=config.study, storage=storage)
        self.seed = worker_seed(config, index, len(self.study.get_trials(deepcopy=False)))
        self.study.sampler = make_sampler(config.sampler, self.seed)
        self._run_id, self._lock = spec.run, threading.Lock()
        self._stop, self._notify = stop, notify
        self._turn = Turn()
        self._signed: tuple[int, str] | None = None  # the last trial, and the turn's task
        self._ended: list[Ended] = []
        self._errors: dict[int, str] = {}
        self.strategy = strategy_of(config)
        self._session: Session | None = None

    def run(self, turn: Turn) -> Result:
        """Run a trial until its turn ends."""
        with self._lock:
            self._turn = turn
            try:
                if self._session is None:
                    self._session = self.strategy.session(self)
                idle = not self._session.run(turn)
            except Exception as raised:
                # The storage gave up, or another process has ended the trial.
                number, task = self._signed or (None, "")
                number = number if task == turn.task else None
                self._ended.append(Ended(number, "FAIL", told(raised)))
                return Result((*self._close(interrupted=True), *self._take()))
            return Result(self._take(), idle, exhausted=self.study._stop_flag)

    def close(self, interrupted: bool) -> Result:
        """End what is left, unless a trial runs; that sees to it when it ends."""
        if not self._lock.acquire(blocking=False):
            return Result()
        try:
            return Result((*self._close(interrupted), *self._take()))
        finally:
            close_storage(self.study._storage)
            self._lock.release()

    def _close(self, interrupted: bool) -> tuple[Ended, ...]:
        session, self._session = self._session, None
        try:
            if session is not None:
                session.close(interrupted)
        except Exception as raised:
            return (Ended(None, "FAIL", told(raised)),)
        return ()

    def _take(self) -> tuple[Ended, ...]:
        ended, self._ended = tuple(self._ended), []
        return ended

    def begin(self, trial: optuna.Trial) -> CampaignTrial:
        """Return the trial that the objective is given, signed."""
        self.sign(trial)
        return CampaignTrial.of(trial, self._stop, self._notify)

    def sign(self, trial: optuna.Trial) -> None:
        """Say that the trial runs here in this turn."""
        if self._signed != (trial.number, self._turn.task):
            self._signed = trial.number, self._turn.task
            trial.set_user_attr(WORKER, owner(self._turn.task, self._run_id))

    def failed(self, trial: optuna.Trial, error: BaseException) -> None:
        """Take note of why a trial is to fail."""
        if isinstance(error, TrialInterrupted):
            trial.set_user_attr(INTERRUPTED, True)
        else:
            self._errors[trial.number] = told(error)

    def ended(self, trial: FrozenTrial, otherwise: str | None = None) -> None:
        """Take note of a trial that has ended; ``otherwise`` is why, where it failed silently."""
        interrupted = trial.user_attrs.get(INTERRUPTED) is True
        error = None
        if trial.state == TrialState.FAIL and not interrupted:
            error = self._errors.pop(trial.number, otherwise)
        self._ended.append(Ended(trial.number, trial.state.name, error, interrupted))


def strategy_of(config: CampaignConfig) -> Strategy:
    """Return the strategy that the file names."""
    if isinstance(config.strategy, FreezeThaw):
        return FreezeThawStrategy(config, config.strategy)
    return PruneStrategy(config)


def told(error: BaseException) -> str:
    """Return type and message of an error, without passwords."""
    while isinstance(error, AssertionError) and error.__context__ is not None:
        error = error.__context__  # Optuna asserts in a `finally`, over what went wrong
    return without_passwords(f"{type(error).__name__}: {error}")[:500]


def worker_seed(config: CampaignConfig, index: int, n_trials: int) -> int:
    """Return the seed of a worker's sampler.

    Samplers that draw at random get another one in each worker, on each machine, and each time
    the campaign is continued; those that share a sequence or a grid get the same one everywhere.
    """
    if config.sampler.name in SAME_SEED_EVERYWHERE:
        return config.seed
    machine = zlib.crc32(platform.node().encode())
    entropy = np.random.SeedSequence([config.seed, index, n_trials, machine])
    return int(entropy.generate_state(1)[0])


def process_main(connection: Connection, spec: WorkerSpec, index: int) -> None:
    """Run trials in this process, as the parent asks for them, until it says so or is gone."""
    stop = threading.Event()
    inbox: queue.SimpleQueue[Turn | End] = queue.SimpleQueue()

    def end(*_: object) -> None:
        stop.set()
        inbox.put(End(interrupted=True))

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which tells us
    signal.signal(signal.SIGTERM, end)
    # A thread, such as that of the heartbeat, must not print what a driver has to say.
    threading.excepthook = lambda args: sys.stderr.write(
        f"A thread of worker {index} ended: {args.exc_type.__name__}.\n"
    )

    parent = os.getppid()

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError):
            # What the parent has forked may hold its end of the pipe.
            while connection.poll(_LOOK_SECONDS) or os.getppid() == parent:
                if not connection.poll():
                    continue
                message = connection.recv()
                if message is None:
                    stop.set()  # what runs stops at its next report
                else:
                    inbox.put(message)
        end()  # the parent is gone

    def send(*message: Any) -> None:
        with contextlib.suppress(OSError):  # the parent is gone
            connection.send(message)

    threading.Thread(target=listen, daemon=True).start()
    try:
        worker = Worker(spec, index, stop, lambda number, epochs: send("report", number, epochs))
    except Exception as error:
        send("broken", told(error))
        return
    send("ready")
    while isinstance(order := inbox.get(), Turn):
        send("result", Result() if stop.is_set() else worker.run(order))
    send("result", worker.close(order.interrupted))
    send("stopped")
