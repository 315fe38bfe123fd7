"""Processes of this machine."""

import contextlib
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from lyap_optuna.campaign._pool import EXIT_SECONDS, Event, Pool
from lyap_optuna.campaign._strategies import Turn
from lyap_optuna.campaign._worker import End, WorkerSpec, process_main


@dataclass
class _Process:
    index: int
    process: BaseProcess
    connection: Connection
    ready: bool = False
    stopped: bool = False
    turn: Turn | None = None
    limit: float = math.inf  # when it is killed, if it has not gone by then


class LocalPool(Pool):
    """Processes of this machine, started by ``spawn``; one that dies is replaced.

    Each has a pipe. It is the process that tells who is gone, on either side: what it has forked
    may hold its end of the pipe. A worker whose parent is gone stops at its next report.

    Args:
        spec: The campaign; ``workers`` of its file says how many processes.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._stopping = False
        self._workers = [self._start(index) for index in range(spec.config.workers or 1)]

    def _start(self, index: int) -> _Process:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=process_main, args=(theirs, self._spec, index), name=f"worker {index}"
        )
        with _threads_in_environment(self._spec.threads), _no_interrupts():
            process.start()
        theirs.close()
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
        with contextlib.suppress(OSError):  # it died, as we shall notice
            worker.connection.send(turn)

    def events(self, timeout: float) -> list[Event]:
        """Wait until something happens, at most so many seconds."""
        if not self._workers:
            time.sleep(timeout)
        events: list[Event] = []
        wait([w.connection for w in self._workers if not w.connection.closed], timeout)
        for worker in list(self._workers):
            alive = worker.process.is_alive()
            heard = [self._event(worker, *message) for message in _received(worker.connection)]
            events += [event for event in heard if event is not None]
            if not alive:
                events.append(self._gone(worker))
                continue
            if worker.stopped or worker.connection.closed:
                worker.limit = min(worker.limit, time.monotonic() + EXIT_SECONDS)
            if time.monotonic() > worker.limit:
                worker.process.kill()
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
        return None

    def _gone(self, worker: _Process) -> Event:
        worker.connection.close()
        self._workers.remove(worker)
        if worker.stopped:
            return Event("stopped", worker.index)
        if not self._stopping:
            self._workers.append(self._start(worker.index))
        code = worker.process.exitcode
        return Event("died", worker.index, worker.turn, message=f"exit code {code}")

    def stop(self) -> None:
        """Ask all workers to stop at their next report."""
        self._stopping = True
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.connection.send(None)

    def finish(self, interrupted: bool) -> Iterator[list[Event]]:
        """Let workers end what rests in them; yield what happens until all have gone."""
        self._stopping = True
        limit = time.monotonic() + self._spec.config.retry_seconds + EXIT_SECONDS
        for worker in self._workers:
            worker.limit = limit
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


def _received(connection: Connection) -> Iterator[Any]:
    try:
        while not connection.closed and connection.poll():
            yield connection.recv()
    except (EOFError, OSError):
        connection.close()


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
