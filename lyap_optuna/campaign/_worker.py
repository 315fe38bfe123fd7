"""A worker: runs one trial after another, in a process of its own or as tasks of Dask."""

import contextlib
import importlib
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
from lyap_optuna.campaign._config import SAME_SEED_EVERYWHERE, CampaignConfig, make_sampler
from lyap_optuna.campaign._recovery import owner, recover
from lyap_optuna.campaign._retry import INTERRUPTED, WORKER
from lyap_optuna.campaign._storage import open_storage, patiently
from lyap_optuna.campaign._strategies import strategy_of

Notify = Callable[[int, int], None]
"""Called with trial number and reported epochs, at each report."""


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
    _must_stop: Callable[[FrozenTrial], bool]

    @classmethod
    def of(
        cls,
        trial: optuna.Trial,
        stop: threading.Event,
        notify: Notify,
        must_stop: Callable[[FrozenTrial], bool],
    ) -> "CampaignTrial":
        """Return the same trial; making one anew would sample a second time."""
        made = cls.__new__(cls)
        made.__dict__ = trial.__dict__
        made._stop, made._notify, made._must_stop = stop, notify, must_stop
        return made

    def report(self, value: float, step: int) -> None:
        """Report a value; see :meth:`optuna.Trial.report`."""
        super().report(value, step)
        reported = self._cached_frozen_trial
        self._notify(self.number, len(reported.intermediate_values))
        self._check()
        if self._must_stop(reported):
            raise optuna.TrialPruned("The objective did not ask should_prune.")

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
    """

    config: CampaignConfig
    storage: Callable[[], str]
    path: tuple[str, ...]
    threads: int


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
class Result:
    """How a task ended.

    Args:
        number: Number of the trial; None where none was begun.
        state: Name of its state.
        error: Why it failed, in a line.
        interrupted: Whether it was stopped.
        exhausted: Whether the sampler (a grid that is done) or the objective stopped the study.
    """

    number: int | None = None
    state: str | None = None
    error: str | None = None
    interrupted: bool = False
    exhausted: bool = False


class Worker:
    """Runs trials of a campaign, one at a time.

    Args:
        spec: The campaign.
        index: Number of the worker; its sampler's seed is derived from it.

    Raises:
        Exception: Storage, study or objective cannot be opened.
    """

    def __init__(self, spec: WorkerSpec, index: int) -> None:
        config = spec.config
        sys.path[:0] = [folder for folder in spec.path if folder not in sys.path]
        torch.set_num_threads(spec.threads)
        # The parent tells what happens. Optuna would log each failure with its traceback.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._objective = find_objective(config.objective)
        self._strategy = strategy_of(config)
        storage = patiently(
            lambda: open_storage(
                spec.storage(),
                retry_seconds=config.retry_seconds,
                heartbeat_interval=config.heartbeat_interval,
            ),
            config.retry_seconds,
        )
        self.study = optuna.load_study(
            study_name=config.study,
            storage=storage,
            pruner=self._strategy.pruner(),
        )
        n_trials = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = make_sampler(config.sampler, worker_seed(config, index, n_trials))

    def run(self, task: str, stop: threading.Event, notify: Notify) -> Result:
        """Run one trial.

        Args:
            task: What marks the trial as this worker's.
            stop: Set when the campaign was told to stop.
            notify: Called at each report.
        """
        numbers: list[int] = []
        error: list[str] = []

        def objective(trial: optuna.Trial) -> Any:
            numbers.append(trial.number)
            try:
                trial.set_user_attr(WORKER, owner(task))
                self._strategy.begin(trial)
                return self._objective(
                    CampaignTrial.of(trial, stop, notify, self._strategy.must_stop)
                )
            except optuna.TrialPruned:
                raise
            except TrialInterrupted:
                trial.set_user_attr(INTERRUPTED, True)
                raise _Failed("interrupted") from None
            except (Exception, SystemExit) as raised:
                error.append(told(raised))
                raise _Failed(error[-1]) from None

        try:
            self.study.optimize(objective, n_trials=1, catch=(_Failed,))
        except Exception as raised:
            # The storage gave up, or another process has ended the trial.
            return Result(numbers[-1] if numbers else None, "FAIL", told(raised))
        if not numbers:
            return Result()
        trials = self.study.get_trials(deepcopy=False)
        ended = next(trial for trial in reversed(trials) if trial.number == numbers[-1])
        interrupted = ended.user_attrs.get(INTERRUPTED) is True
        reason = error[-1] if error else "its value is not a finite number"
        failed = ended.state == TrialState.FAIL and not interrupted
        return Result(
            ended.number,
            ended.state.name,
            error=reason if failed else None,
            interrupted=interrupted,
            exhausted=self.study._stop_flag,
        )


class _Failed(Exception):
    """An objective's failure, in a line: what it raised may hold a password in its traceback."""


def told(error: BaseException) -> str:
    """Return type and message of an error, without passwords."""
    return without_passwords(f"{type(error).__name__}: {error}")[:500]


def find_objective(name: str) -> Callable[[optuna.Trial], Any]:
    """Import ``package.module:function``.

    Raises:
        ValueError: There is no such function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"The objective {name} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"The objective {name} is not a function.")
    return found  # type: ignore[no-any-return]


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
    """Run trials in this process, as the parent asks for them, until it says stop or is gone."""
    stop = threading.Event()
    inbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def end(*_: object) -> None:
        stop.set()
        inbox.put(None)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which tells us
    signal.signal(signal.SIGTERM, end)
    # A thread, such as that of the heartbeat, must not print what a driver has to say.
    threading.excepthook = lambda args: sys.stderr.write(
        f"A thread of worker {index} ended: {args.exc_type.__name__}.\n"
    )

    def listen() -> None:
        try:
            while (message := connection.recv()) is not None:
                inbox.put(message)
        except (EOFError, OSError):
            pass  # the parent is gone
        end()

    def send(*message: Any) -> None:
        with contextlib.suppress(OSError):  # the parent is gone
            connection.send(message)

    threading.Thread(target=listen, daemon=True).start()
    try:
        worker = Worker(spec, index)
    except Exception as error:
        send("broken", told(error))
        return
    send("ready")
    while not stop.is_set() and (task := inbox.get()) is not None:
        result = worker.run(task, stop, lambda number, epochs: send("report", number, epochs))
        send("result", result)
    send("stopped")


_dask_workers: dict[tuple[str, int], Worker] = {}
_dask_stops: dict[str, threading.Event] = {}
_dask_lock = threading.Lock()


def dask_task(spec: WorkerSpec, run: str, task: str, index: int) -> Result:
    """Run one trial as a task of Dask.

    The worker, with its study and sampler, stays in the thread that it was made in. Dask runs a
    task again when the process that ran it is gone: the trial it left is then failed and retried.
    """
    key = (run, threading.get_ident())
    try:
        stop = _dask_stop(run)
        worker = _dask_workers.get(key)
        if worker is None:
            worker = _dask_workers[key] = Worker(spec, index)
        recover(worker.study, lambda mark: mark.get("task") == task)
    except Exception as error:
        return Result(error=told(error))
    if stop.is_set():
        return Result()
    return worker.run(task, stop, lambda number, epochs: None)


def _dask_stop(run: str) -> threading.Event:
    from distributed import Event, get_client

    with _dask_lock:
        if run not in _dask_stops:
            stop = _dask_stops[run] = threading.Event()
            told_to_stop = Event(f"lyap-optuna-stop-{run}", client=get_client())

            def listen() -> None:
                # Also when the scheduler is gone: nobody would take the result.
                with contextlib.suppress(Exception):
                    told_to_stop.wait()
                stop.set()

            threading.Thread(target=listen, daemon=True).start()
        return _dask_stops[run]
