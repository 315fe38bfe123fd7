"""The workers of a Dask cluster: the pool in the parent, and what runs in the cluster."""

import asyncio
import contextlib
import gc
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lyap_optuna.campaign._config import Component, Dask
from lyap_optuna.campaign._pool import EXIT_SECONDS, Event, Pool
from lyap_optuna.campaign._recovery import marked, same_process, settle
from lyap_optuna.campaign._strategies import Turn
from lyap_optuna.campaign._worker import (
    Ended,
    Result,
    Worker,
    WorkerSpec,
    told,
)

_ASK_SECONDS = 2.0
"""How often each side asks the scheduler: a thousand processes make 500 short requests a second."""


def _keys(run: str) -> list[str]:
    """Return the keys of two futures: the parent lives, and the run is to go on."""
    return [f"lyap-optuna-lives-{run}", f"lyap-optuna-goes-{run}"]


class DaskPool(Pool):
    """The workers of a Dask cluster; one task is one trial.

    The parent keeps two futures, which the scheduler forgets when the parent lets go of them or is
    gone. The processes of the cluster ask for them, and stop when they are no longer there.

    Args:
        spec: The campaign; ``dask`` of its file is an address or the cluster to start, and
            ``workers`` how many trials run at a time, by default as many as it has threads.

    Raises:
        OSError: No scheduler answers.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        import distributed

        dask = spec.config.dask
        assert dask is not None
        self._spec = spec
        self._cluster = _start_cluster(dask) if dask.cluster is not None else None
        try:
            self._client = distributed.Client(
                self._cluster or dask.address, timeout=30, set_as_default=False
            )
        except BaseException:
            if self._cluster is not None:
                self._cluster.close()
            raise
        self._lives, self._goes = (self._client.submit(bool, key=key) for key in _keys(spec.run))
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
        if time.monotonic() - self._asked > _ASK_SECONDS:
            self._threads = sum(self._client.nthreads().values())
            self._asked = time.monotonic()
        return min(self._threads, self._spec.config.workers or self._threads)

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
        self._goes.release()

    def finish(self, interrupted: bool) -> Iterator[list[Event]]:
        """Let workers end what rests in them, within a limit: one may hang."""
        answers: dict[str, list[Result]] = {}

        def ask() -> None:
            with contextlib.suppress(Exception):  # the cluster is gone
                run = self._client.run
                answers.update(run(end_rest, self._spec.run, interrupted, on_error="ignore"))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        limit = time.monotonic() + self._spec.config.retry_seconds + EXIT_SECONDS
        while asking.is_alive() and time.monotonic() < limit:
            asking.join(0.2)
            yield []
        yield [Event("result", result=result) for answer in answers.values() for result in answer]

    def close(self) -> None:
        """Give up what runs, which stops at its next report; close what this pool opened."""
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


# In the processes of the cluster


class _RunHere:
    """What one process of the cluster holds of a run: a worker in each thread."""

    def __init__(self, run: str) -> None:
        from distributed import get_client

        self.workers: dict[int, Worker] = {}  # by thread
        self.stop, self.over = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, args=(run, get_client()), daemon=True).start()

    def _watch(self, run: str, client: Any) -> None:
        lives, goes = _keys(run)
        alive = True
        while alive and not self.over.wait(_ASK_SECONDS):
            states: dict[str, str | None] = {}
            with contextlib.suppress(Exception):  # no scheduler: nobody would take a result
                states = client.sync(client.scheduler.get_task_status, keys=[lives, goes])
            alive = states.get(lives) is not None
            if states.get(goes) is None:
                self.stop.set()
        _end(run, interrupted=True)


_runs: dict[str, _RunHere] = {}
"""What this process holds of each run; nothing is left when the run has ended."""

_lock = threading.Lock()


def dask_task(spec: WorkerSpec, turn: Turn, index: int) -> Result:
    """Run one turn as a task of Dask.

    The worker, with its study and sampler, stays in the thread that it was made in. Dask runs a
    task again when the process that ran it is gone: the trials it left are then settled.
    """
    ended: tuple[Ended, ...] = ()
    try:
        with _lock:
            keep_collector_out_of_frames()
            here = _runs[spec.run] = _runs.get(spec.run) or _RunHere(spec.run)
        worker = here.workers.get(threading.get_ident())
        if worker is None:
            worker = Worker(spec, index, here.stop, lambda number, epochs: None)
            here.workers[threading.get_ident()] = worker
        left = marked(worker.study, lambda mark: mark.get("task") == turn.task)
        if left:
            left = marked(worker.study, same_process(left))
            settled = settle(worker.study, left, worker.strategy.has_checkpoint)
            ended = tuple(Ended(number, "FAIL", interrupted=True) for number in settled.failed)
    except Exception as error:
        return Result(broken=told(error))
    result = Result() if here.stop.is_set() else worker.run(turn)
    if here.stop.is_set():
        ended += worker.close(interrupted=True).ended
    return replace(result, ended=ended + result.ended)


async def end_rest(run: str, interrupted: bool) -> list[Result]:
    """End what rests of a run in this process of Dask; what runs stops at its next report."""
    return await asyncio.to_thread(_end, run, interrupted)  # Dask goes on meanwhile


def _end(run: str, interrupted: bool) -> list[Result]:
    with _lock:
        here = _runs.pop(run, None)
    if here is None:
        return []
    here.stop.set()
    here.over.set()
    return [worker.close(interrupted) for worker in list(here.workers.values())]


def keep_collector_out_of_frames() -> None:
    """Keep Dask's profiler from hanging a process for ever, as it may before Python 3.12.

    ``sys._current_frames`` holds a lock of the interpreter that every thread needs which begins or
    ends. Where the garbage collector runs within it, and what it collects gives up the GIL, as
    tensors and connections do, neither comes back (gh-106883; dask/distributed#8616).
    """
    plain = sys._current_frames
    if sys.version_info >= (3, 12) or getattr(plain, "_without_collector", False):
        return
    lock = threading.Lock()

    def frames() -> dict[int, Any]:
        with lock:
            collects = gc.isenabled()
            gc.disable()
            try:
                return plain()
            finally:
                if collects:
                    gc.enable()

    frames._without_collector = True  # type: ignore[attr-defined]
    sys._current_frames = frames
