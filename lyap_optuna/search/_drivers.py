"""Two ways to run an objective up to its next pause: as a generator, and in a thread that waits."""

import contextvars
import ctypes
import inspect
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
from optuna.trial import Trial

from lyap_optuna.search._worlds import World

Objective = Callable[[Trial], Any]


@dataclass(frozen=True)
class Paused:
    """The trial stands at a place where it may rest."""


@dataclass(frozen=True)
class Returned:
    """The objective has returned."""

    value: Any


@dataclass(frozen=True)
class Raised:
    """The objective has raised."""

    error: BaseException


Outcome = Paused | Returned | Raised


class Driver(Protocol):
    """One running objective."""

    paused: bool
    """Whether it has ever paused."""

    def advance(self) -> Outcome:
        """Run the objective to its next pause, or its end."""

    def end(self) -> Outcome:
        """End a paused objective: :class:`optuna.TrialPruned` is raised at its pause.

        How one that is over has ended is told again.
        """


def _never() -> bool:
    return False


class _Asked:
    """Stands for ``trial.should_prune`` where that waits; of copies of the trial too.

    In another process, such as a worker that loads data, nothing can wait: there it is False.
    """

    def __init__(self, pause: Callable[[], bool]) -> None:
        self._pause = pause

    def __call__(self) -> bool:
        return self._pause()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Asked":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Asked, (_never,)


def drive(objective: Objective, trial: Trial, world: World) -> Driver:
    """Return the driver for an objective: its own thread, unless it is a generator function."""
    called = getattr(type(objective), "__call__", None)  # noqa: B004 (its code is asked for)
    if inspect.isgeneratorfunction(objective) or inspect.isgeneratorfunction(called):
        return _GeneratorDriver(objective, trial, world)
    return _ThreadDriver(objective, trial, world)


class _GeneratorDriver:
    """Runs in the caller's thread, from one ``yield`` to the next."""

    def __init__(self, objective: Objective, trial: Trial, world: World) -> None:
        self.paused = False
        self._objective, self._trial, self._world = objective, trial, world
        # A library within may ask; the trial rests at its `yield` alone, and asks no pruner.
        setattr(trial, "should_prune", _never)  # noqa: B010
        self._context = contextvars.copy_context()  # of its own, as in a thread
        self._generator: Generator[Any, None, Any] | None = None
        self._over: Outcome | None = None

    def advance(self) -> Outcome:
        return self._run(self._next)

    def _next(self) -> None:
        if self._generator is None:
            self._generator = self._objective(self._trial)
        next(self._generator)

    def end(self) -> Outcome:
        generator = self._generator
        if self._over is not None:
            return self._over
        if generator is None:
            return Raised(optuna.TrialPruned())
        outcome = self._run(lambda: generator.throw(optuna.TrialPruned()))
        if isinstance(outcome, Paused):  # it caught the exception and went on: no more than that
            closed = self._run(generator.close)
            return closed if isinstance(closed, Raised) else Raised(optuna.TrialPruned())
        return outcome

    def _run(self, step: Callable[[], Any]) -> Outcome:
        outcome: Outcome
        self._world.enter()
        try:
            self._context.run(step)
            self.paused = True
            outcome = Paused()
        except StopIteration as stop:
            outcome = Returned(stop.value)
        except BaseException as error:
            outcome = Raised(error)
        finally:
            self._world.leave()
        self._over = None if isinstance(outcome, Paused) else outcome
        return outcome


class _ThreadDriver:
    """Runs in a thread of its own, which waits in ``trial.should_prune()``.

    No two threads of a search ever run at the same time: either the search waits for the trial or
    the trial for the search.
    """

    def __init__(self, objective: Objective, trial: Trial, world: World) -> None:
        self.paused = False
        self._objective, self._trial, self._world = objective, trial, world
        setattr(trial, "should_prune", _Asked(self._pause))  # noqa: B010
        self._ending = False
        self._told_after: int | None = None  # reports when the objective was told to end
        # An objective may ask from several threads of its own: one at a time.
        self._asking = threading.Lock()
        self._outcome: Outcome | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        # Context variables are the caller's, as if the objective had been called by it.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(
            target=run, args=(self._main,), name=f"lyap-optuna-trial-{trial.number}", daemon=True
        )

    def advance(self) -> Outcome:
        if self._outcome is None:
            self._thread.start()
        self._go.release()
        interrupt: BaseException | None = None
        while True:
            try:
                # In slices, because Windows does not interrupt a lock that is waited for.
                if self._back.acquire(timeout=0.5):
                    break
            except BaseException as error:  # KeyboardInterrupt, which reaches the main thread only
                interrupt = error
                self._raise_within(type(error))
        outcome = self._outcome
        assert outcome is not None
        if not isinstance(outcome, Paused):
            self._thread.join()
        if interrupt is not None and not _is(outcome, type(interrupt)):
            raise interrupt  # it came too late, or the objective caught it: the search ends
        return outcome

    def end(self) -> Outcome:
        if self._outcome is None:
            return Raised(optuna.TrialPruned())
        if isinstance(self._outcome, Paused):
            self._ending = True
            return self.advance()
        return self._outcome

    def _raise_within(self, kind: type[BaseException]) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(kind)
        )

    def _main(self) -> None:
        self._go.acquire()
        self._trial.study._thread_local.in_optimize_loop = True  # `study.stop` asks
        outcome: Outcome
        try:
            self._world.enter()
            try:
                value = self._objective(self._trial)
                if isinstance(value, Generator):  # a lambda or a wrapper around one
                    value = self._exhaust(value)
                outcome = Returned(value)
            except BaseException as error:
                outcome = Raised(error)
        except BaseException as error:
            outcome = Raised(error)
        with self._asking:
            self._world.leave()
            self._ending = True  # a thread of the objective that is left over may still ask
            self._outcome = outcome
            self._back.release()

    def _exhaust(self, generator: Generator[Any, None, Any]) -> Any:
        try:
            next(generator)
            while True:
                if self._pause():
                    generator.throw(optuna.TrialPruned())
                    generator.close()
                    raise optuna.TrialPruned
                next(generator)
        except StopIteration as stop:
            return stop.value

    def _pause(self) -> bool:
        """Wait until the search goes on with the trial; return whether it is to end.

        Raises:
            optuna.TrialPruned: The objective was told to end, and has reported since.
        """
        with self._asking:
            if not self._ending:
                self._world.leave()
                self.paused = True
                self._outcome = Paused()
                self._back.release()
                self._go.acquire()
                self._world.enter()
            if not self._ending:
                return False
            n_reports = len(self._trial._cached_frozen_trial.intermediate_values)
            if self._told_after is None:
                self._told_after = n_reports
            if n_reports > self._told_after:
                raise optuna.TrialPruned
            return True


def _is(outcome: Outcome, kind: type[BaseException]) -> bool:
    return isinstance(outcome, Raised) and isinstance(outcome.error, kind)
