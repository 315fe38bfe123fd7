"""Where trials run: processes of this machine, or a Dask cluster. Both do the same few things."""

import abc
import contextlib
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from lyap_optuna.campaign._config import Component, Dask
from lyap_optuna.campaign._strategies import Turn
from lyap_optuna.campaign._worker import (
    End,
    Result,
    WorkerSpec,
    dask_task,
    end_dask_workers,
    process_main,
    told,
)


@dataclass(frozen=True)
class Event:
    """Something that happened in a pool.

    Args:
        kind: ``report``, ``result``, ``died`` (a worker was killed or crashed), ``stopped`` (a
            worker ended because it was asked to), ``broken`` (a worker cannot work at all).
        worker: Number of the worker.
        turn: What it was running.
        number: Trial number of a report.
        epochs: Reported epochs of that trial.
        result: How the turn ended.
        message: What went wrong.
    """

    kind: str
    worker: int = 0
    turn: Turn | None = None
    number: int | None = None
    epochs: int = 0
    result: Result | None = None
    message: str = ""


class Pool(abc.ABC):
    """Workers that each run one trial at a time."""

    @property
    @abc.abstractmethod
    def running(self) -> list[Turn]:
        """Turns that run."""

    @property
    @abc.abstractmethod
    def idle(self) -> int:
        """Workers that wait for a turn."""

    @property
    @abc.abstractmethod
    def alive(self) -> int:
        """Workers that there are."""

    @abc.abstractmethod
    def submit(self, turn: Turn) -> None:
        """Give an idle worker a turn."""

    @abc.abstractmethod
    def events(self, timeout: float) -> list[Event]:
        """Wait until something happens, at most so many seconds."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Ask all workers to stop at their next report."""

    @abc.abstractmethod
    def finish(self, interrupted: bool) -> Iterator[list[Event]]:
        """Let workers end what rests in them, ``interrupted`` or done; yield what happens."""

    @abc.abstractmethod
    def close(self) -> None:
        """End all workers at once and release everything."""


@dataclass
class _Process:
    index: int
    process: BaseProcess
    connection: Connection
    ready: bool = False
    stopped: bool = False
    turn: Turn | None = None


class LocalPool(Pool):
    """Processes of this machine, started by ``spawn``; one that dies is replaced.

    Each has a pipe. A worker that finds its pipe closed knows that the parent is gone, and stops
    at its next report.

    Args:
        spec: The campaign.
        n_workers: How many processes.
    """

    def __init__(self, spec: WorkerSpec, n_workers: int) -> None:
        self._spec = spec
        self._stopping = False
        self._workers = [self._start(index) for index in range(n_workers)]

    def _start(self, index: int) -> _Process:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=process_main, args=(theirs, self._spec, index), name=f"worker {index}"
        )
        with _threads_in_environment(self._spec.threads), _no_interrupts():
            process.start()
        theirs.close()  # so that its end shows when the worker is gone
        return _Process(index, process, ours)

    @property
    def running(self) -> list[Turn]:
        """Turns that run."""
        return [w.turn for w in self._workers if w.turn is not None]

    @property
    def idle(self) -> int:
        """Workers that wait for a turn."""
        return sum(w.ready and w.turn is None for w in self._workers)

    @property
    def alive(self) -> int:
        """Workers that there are."""
        return len(self._workers)

    def pid(self, worker: int) -> int | None:
        """Return the process id of a worker."""
        return next((w.process.pid for w in self._workers if w.index == worker), None)

    def submit(self, turn: Turn) -> None:
        """Give an idle worker a turn."""
        worker = next(w for w in self._workers if w.ready and w.turn is None)
        worker.turn = turn
        with contextlib.suppress(OSError):  # it died; its pipe tells us
            worker.connection.send(turn)

    def events(self, timeout: float) -> list[Event]:
        """Wait until something happens, at most so many seconds."""
        if not self._workers:
            time.sleep(timeout)
        events: list[Event] = []
        readable = wait([w.connection for w in self._workers], timeout)
        for worker in [w for w in self._workers if w.connection in readable]:
            try:
                message: Any = worker.connection.recv()
            except (EOFError, OSError):
                message = ("gone",)
            event = self._event(worker, *message)
            if event is not None:
                events.append(event)
        return events

    def _event(self, worker: _Process, kind: str, *content: Any) -> Event | None:
        if kind == "ready":
            worker.ready = True
        elif kind == "stopped":
            worker.ready, worker.stopped = False, True
        elif kind == "broken":
            worker.stopped = True
            return Event("broken", worker.index, message=content[0])
        elif kind == "report":
            return Event("report", worker.index, worker.turn, number=content[0], epochs=content[1])
        elif kind == "result":
            turn, worker.turn = worker.turn, None
            return Event("result", worker.index, turn, result=content[0])
        elif kind == "gone":
            worker.process.join()
            worker.connection.close()
            self._workers.remove(worker)
            if worker.stopped:
                return Event("stopped", worker.index)
            if not self._stopping:
                self._workers.append(self._start(worker.index))
            code = worker.process.exitcode
            return Event("died", worker.index, worker.turn, message=f"exit code {code}")
        return None

    def stop(self) -> None:
        """Ask all workers to stop at their next report."""
        self._stopping = True
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.connection.send(None)

    def finish(self, interrupted: bool) -> Iterator[list[Event]]:
        """Let workers end what rests in them; yield what happens until all have gone."""
        self._stopping = True
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.connection.send(End(interrupted))
        while self._workers:
            yield self.events(0.2)

    def close(self) -> None:
        """Kill what has not ended."""
        self._stopping = True
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers = []


@contextlib.contextmanager
def _threads_in_environment(threads: int) -> Iterator[None]:
    # Numerical libraries read these when they are loaded, before any code of ours runs.
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    # A new process inherits what is blocked: Ctrl-C is for the parent, also while workers start.
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it, which spawn would do, unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class DaskPool(Pool):
    """The workers of a Dask cluster; one task is one trial.

    Args:
        spec: The campaign.
        dask: An address, or the cluster to start.
        n_workers: Trials at a time; None for as many as the cluster has threads.

    Raises:
        OSError: No scheduler answers.
    """

    def __init__(self, spec: WorkerSpec, dask: Dask, n_workers: int | None) -> None:
        import distributed

        self._spec = spec
        self._n_workers = n_workers
        self._cluster = _start_cluster(dask) if dask.cluster is not None else None
        try:
            self._client = distributed.Client(
                self._cluster or dask.address, timeout=30, set_as_default=False
            )
        except BaseException:
            if self._cluster is not None:
                self._cluster.close()
            raise
        self._event = distributed.Event(f"lyap-optuna-stop-{spec.run}", client=self._client)
        self._futures: dict[Any, tuple[Turn, int]] = {}
        self._threads = 0
        self._asked = 0.0

    @property
    def running(self) -> list[Turn]:
        """Turns that run."""
        return [turn for turn, _ in self._futures.values()]

    @property
    def idle(self) -> int:
        """Threads of the cluster that wait for a turn; clusters grow and shrink."""
        return max(self.alive - len(self._futures), 0)

    @property
    def alive(self) -> int:
        """Trials that the cluster can run at a time."""
        if time.monotonic() - self._asked > 2.0:
            self._threads = sum(self._client.nthreads().values())
            self._asked = time.monotonic()
        return min(self._threads, self._n_workers or self._threads)

    def submit(self, turn: Turn) -> None:
        """Give an idle worker a turn."""
        taken = {index for _, index in self._futures.values()}
        index = next(i for i in range(len(taken) + 1) if i not in taken)
        future = self._client.submit(
            dask_task, self._spec, turn, index, key=f"lyap-optuna-{turn.task}", pure=False
        )
        self._futures[future] = (turn, index)

    def events(self, timeout: float) -> list[Event]:
        """Wait until something happens, at most so many seconds."""
        done = [future for future in self._futures if future.done()]
        if not done:
            time.sleep(timeout)
        events = []
        for future in done:
            turn, index = self._futures.pop(future)
            try:
                result = future.result()
            except Exception as error:  # killed more often than Dask allows, or cancelled
                events.append(Event("died", index, turn, message=told(error)))
                continue
            if result.broken is not None:
                events.append(Event("broken", index, turn, message=result.broken))
            else:
                events.append(Event("result", index, turn, result=result))
        return events

    def stop(self) -> None:
        """Ask all workers to stop at their next report."""
        self._event.set()

    def finish(self, interrupted: bool) -> Iterator[list[Event]]:
        """Let workers end what rests in them; yield what happens."""
        answers = self._client.run(end_dask_workers, self._spec.run, interrupted, on_error="ignore")
        results = [result for answer in answers.values() for result in answer]
        yield [Event("result", result=result) for result in results]

    def close(self) -> None:
        """Give up what runs, tell workers to stop, and close what this pool opened.

        The processes belong to the cluster and see the event.
        """
        self._event.set()
        self._client.cancel(list(self._futures), force=True)
        self._futures = {}
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


def _start_cluster(dask: Dask) -> Any:
    component = Component(name=dask.cluster or "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        cluster = component.find("dask_jobqueue", "distributed")(**dask.options)
        if hasattr(cluster, "scale"):
            cluster.scale(jobs=dask.jobs) if _takes_jobs(cluster) else cluster.scale(dask.jobs)
    return cluster


def _takes_jobs(cluster: Any) -> bool:
    return type(cluster).__module__.startswith("dask_jobqueue")
