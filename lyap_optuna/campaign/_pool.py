"""The contract of whatever runs the trials of a campaign: submit a turn, wait, stop, kill."""

import abc
from collections.abc import Iterator
from dataclasses import dataclass

from lyap_optuna.campaign._strategies import Turn
from lyap_optuna.campaign._worker import Result, WorkerSpec

EXIT_SECONDS = 30.0
"""How long a worker that has nothing more to do may take to be gone: what it imported may tidy up,
but threads and children of an objective can keep a process for ever."""


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
    """Workers that each run one trial at a time, wherever they are.

    A campaign's parent owns one pool. It asks how many workers are :attr:`idle`, gives each a
    :class:`Turn` by :meth:`submit`, and hears by :meth:`events` what became of it. The pool knows
    neither samplers nor strategies nor what a turn is for: it carries turns to workers and events
    back. What a worker does with a turn is :meth:`Worker.run`, the same everywhere.

    Whatever the kind of pool, and whatever is killed:

    * A turn that was submitted comes back once, as a ``result`` or with the ``died`` of its worker,
      and is in :attr:`running` until then.
    * A worker that dies is replaced, by the pool or by what it runs on, and the others do not
      notice. (After one ``kill -9``, a ``ProcessPoolExecutor`` fails healthy tasks too.)
    * :meth:`stop` reaches every worker: what runs ends at its next report, what is submitted
      afterwards comes back with nothing done.
    * A parent that is gone stops its workers too, however it went.
    * No wait is for ever: :meth:`events` returns in time, :meth:`finish` has an end, and
      :meth:`close`, which is called once and at any moment, waits for nobody's report.

    ``tests/test_pools.py`` holds every pool of ``_runner.POOLS`` to this.

    Args:
        spec: The campaign, and what of its file is about this kind of pool.
    """

    @abc.abstractmethod
    def __init__(self, spec: WorkerSpec) -> None: ...

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
        """Workers that there are; their number may change."""

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
        """Kill what still runs, and release everything."""
