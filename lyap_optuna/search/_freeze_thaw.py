"""The search: run a trial to a pause, choose, go on; and leave nothing running at the end."""

import contextlib
import copy
import gc
import math
import reprlib
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
import optuna
import torch
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.prediction._study import TOP_FRACTION, StudyModels
from lyap_optuna.prediction.evidence import check_evidence
from lyap_optuna.records import (
    Stretch,
    _keys,
    repeat,
    watch_order,
    write_decision,
    write_stretches,
)
from lyap_optuna.search._choice import Begun, Choice
from lyap_optuna.search._drivers import (
    Objective,
    Outcome,
    Paused,
    Raised,
    Returned,
    drive,
)
from lyap_optuna.search._heartbeat import Heartbeat
from lyap_optuna.search._sampling import SeesRestingAsPruned
from lyap_optuna.search._worlds import Surroundings, World

_logger = get_logger(__name__)

N_STARTUP_TRIALS = 4
"""COMPLETE trials before the first choice; until then trials run to their end."""

_UNTRAINED = "it rested without a report"
_ELSEWHERE = "it rested, and is to go on from its checkpoint"
_ALLOCATORS = ("DefaultCPUAllocator", "MPS backend out of memory")  # in plain RuntimeErrors

Callback = Callable[[Study, FrozenTrial], None]


def freeze_thaw(
    study: Study,
    objective: Objective,
    *,
    n_trials: int | None = None,
    n_steps: int | None = None,
    timeout: float | None = None,
    max_paused: int = 100,
    seed: int | None = None,
    catch: Iterable[type[Exception]] | type[Exception] = (),
    callbacks: Iterable[Callback] | None = None,
    evidence: Iterable[str] | None = None,
    cost: Literal["seconds", "steps"] = "seconds",
    show_progress_bar: bool = False,
) -> None:
    """Optimise ``objective`` by pausing trials and going on with the most promising.

    In place of ``study.optimize`` and a pruner. A pruner stops a trial for good when little is
    known of it; here it rests, with its model in memory, and goes on if the trials that have ended
    since show it in a better light. The idea is that of Swersky, Snoek and Adams, *Freeze-Thaw
    Bayesian Optimization*, arXiv:1406.3896.

    Once four trials of the study are COMPLETE, each choice is by the posterior of
    :class:`~lyap_optuna.LyapunovPruner`: how likely is each resting trial to end among the best
    tenth, from its losses, exponents, their displacement and the hyperparameters? The trial with
    the largest chance for the cost of what is left of it goes on, for half as many reports again as
    it has made and at least one; a new one begins where none that rests promises more than a trial
    of which nothing is known. One choice in ten is drawn in proportion to what the trials promise,
    so that a wrong judgement is noticed.

    **The objective** may be

    * a generator function with ``yield`` where others write
      ``if trial.should_prune(): raise optuna.TrialPruned``; its ``return`` is the final value. A
      ``yield`` before the first epoch lets a trial rest untrained;
    * an unchanged objective, also one in which a framework's callback asks. Each runs in a thread
      of its own, one at a time, and waits in ``trial.should_prune()``. No pruner is asked: it
      returns True when the trial is to end;
    * any other function. It runs through, with one :class:`~lyap_optuna.LyapunovWarning`.

    **Each trial is a world of its own.** It starts from generators (PyTorch's, Python's, NumPy's)
    seeded by ``seed`` and its number, and neither they, nor grad mode, autocast, inference mode,
    default dtype or default device are touched by what others do while it rests. On the CPU it
    ends bit for bit as it would alone. (On CUDA the generators are kept too; kernels that are not
    deterministic stay so.)

    **What the study shows.** A trial that rests is RUNNING and has the attribute
    ``lyapunov:resting``; samplers see it as PRUNED with its last report. When the search ends
    every resting trial is ended: :class:`optuna.TrialPruned` is raised at its pause, so that its
    ``finally`` blocks run, and it becomes PRUNED with its last report and a recorded decision (FAIL
    where it has reported nothing). The same happens to the least promising of more than
    ``max_paused``. An objective that raises fails its trial alone; where the exception is not
    in ``catch`` the search ends, as in :meth:`optuna.study.Study.optimize`.

    **Out of memory.** Where an objective raises ``MemoryError`` or ``torch.OutOfMemoryError`` while
    others rest, the least promising of them all ends. If that is one that rests, the trial that
    failed is begun again, once, as a new one with its parameters (``lyapunov:repeats``), because
    its state is gone. The search goes on in either case.

    **Heartbeats.** On a storage with ``heartbeat_interval`` one thread records those of all trials
    of the search, also of those that rest, and stale trials of others are failed before a new one
    begins, with the storage's callback, as in :meth:`optuna.study.Study.optimize`.

    Example:
        >>> import lyap_optuna as lyap, optuna
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> def objective(trial):
        ...     x = trial.suggest_float("x", -1.0, 1.0)
        ...     for epoch in range(10):
        ...         trial.report(x**2 + 1 / (1 + epoch), epoch)
        ...         yield
        ...     return x**2
        >>> study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        >>> lyap.freeze_thaw(study, objective, n_steps=100, seed=0)
        >>> sum(len(trial.intermediate_values) for trial in study.trials)
        100
        >>> len(study.trials) > 20, study.best_value < 0.01
        (True, True)

    Args:
        study: A study of one objective, in any storage.
        objective: What each trial runs; see **The objective**.
        n_trials: The search ends when it would begin one trial more.
        n_steps: Steps of all trials together, after which it ends. A step is a report; a trial
            that returns or fails without one counts as one step. (A trial as long as the longest
            COMPLETE one is then let go on once more: it has only to return.)
        timeout: Seconds after which it ends, at the next pause.
        max_paused: Trials that rest at a time; their models stay in memory.
        seed: Seeds each trial's generators and the exploration; None: at random. The sampler has
            a seed of its own.
        catch: Exceptions that fail a trial and do not end the search.
        callbacks: Called as ``callback(study, trial)`` when a trial has ended.
        evidence: Kinds of evidence that may count; all of them for None, as in
            :class:`~lyap_optuna.LyapunovPruner`.
        cost: What a step costs: its measured ``"seconds"`` (trials of one study may differ
            sixty-fold), or the same for all (``"steps"``): then the same seeds make the same
            choices.
        show_progress_bar: Show steps spent of ``n_steps``, the time left, the best value, which
            trial runs and how many rest.

    Raises:
        ValueError: An argument is out of its range, or the study has several objectives.
        RuntimeError: It is called within a search.
    """
    for name, number in (("n_trials", n_trials), ("n_steps", n_steps), ("timeout", timeout)):
        if number is not None and number < 0:
            raise ValueError(f"{name} cannot be negative, but got {name}={number!r}.")
    if max_paused < 1:
        raise ValueError(f"At least one trial must be able to pause, but got {max_paused=}.")
    if cost not in ("seconds", "steps"):
        raise ValueError(f"Cost must be 'seconds' or 'steps', but got {cost=}.")
    if seed is not None and seed < 0:
        raise ValueError(f"The seed cannot be negative, but got {seed=}.")
    caught = tuple(catch) if isinstance(catch, Iterable) else (catch,)
    entropy = int(np.random.SeedSequence(seed).generate_state(1)[0]) if seed is None else seed
    choice = choice_of(study, evidence, cost, entropy)
    # Its sampler tells of a search in another thread, too.
    if study._thread_local.in_optimize_loop or isinstance(study.sampler, SeesRestingAsPruned):
        raise RuntimeError(
            "freeze_thaw cannot be called within a search, nor while another thread searches the "
            "same study."
        )
    deadline = math.inf if timeout is None else time.perf_counter() + timeout
    search = Search(
        study,
        objective,
        choice=choice,
        n_trials=n_trials,
        n_steps=n_steps,
        deadline=deadline,
        max_paused=max_paused,
        seed=entropy,
        catch=caught,
        callbacks=tuple(callbacks or ()),
        progress=_Progress(show_progress_bar, n_trials, n_steps, deadline),
    )
    with search.in_study():
        search.run()


def choice_of(study: Study, evidence: Iterable[str] | None, cost: str, entropy: int) -> Choice:
    """Return what chooses among the trials of ``study``.

    Raises:
        ValueError: The study has several objectives, or there is no such evidence.
    """
    models = StudyModels.of_study(study, check_evidence(evidence), TOP_FRACTION)
    rng = np.random.default_rng([entropy, 0x66741])  # apart from the trials' generators
    return Choice(models, TOP_FRACTION, cost == "seconds", rng)


class Search:
    """One call of :func:`freeze_thaw`, or the share of one worker in a campaign.

    Args:
        study: The study.
        objective: What each trial runs.
        choice: Who is to go on.
        n_trials: Trials after which no new one begins.
        n_steps: Steps after which trials rest.
        deadline: When they do, by :func:`time.perf_counter`.
        max_paused: Trials that rest at a time.
        seed: Seeds each trial's generators.
        catch: Exceptions that fail a trial and do not end the search.
        callbacks: Called when a trial has ended.
        progress: Is told of each step.
    """

    def __init__(
        self,
        study: Study,
        objective: Objective,
        *,
        choice: Choice,
        n_trials: int | None = None,
        n_steps: int | None = None,
        deadline: float = math.inf,
        max_paused: int,
        seed: int,
        catch: tuple[type[BaseException], ...],
        callbacks: tuple[Callback, ...],
        progress: "_Progress | None" = None,
    ) -> None:
        self._study, self._objective, self._choice = study, objective, choice
        self._n_trials, self._n_steps = n_trials, n_steps
        self._deadline = deadline
        self._max_paused, self._seed = max_paused, seed
        self._catch, self._callbacks = catch, callbacks
        self._progress = progress or _Progress(False, n_trials, n_steps, deadline)
        self._heartbeat = Heartbeat(study._storage)
        self._start = Surroundings.here()
        self._live: dict[int, Begun] = {}  # begun and not ended, by trial id
        self._resting: set[int] = set()  # trial ids
        self._stretches: dict[int, list[Stretch]] = {}  # by trial id
        self._last: Begun | None = None
        self.sampler = SeesRestingAsPruned(study.sampler, study, self._resting)
        self._begun = self._steps = 0
        self._warned = False

    @contextlib.contextmanager
    def in_study(self) -> Iterator[None]:
        """Stand in the place of ``study.optimize``; nothing of it is left in the study after."""
        study = self._study
        sampler, study.sampler = study.sampler, self.sampler
        study._stop_flag = False
        study._thread_local.in_optimize_loop = True
        try:
            yield
        finally:
            study._thread_local.in_optimize_loop = False
            if study.sampler is self.sampler:  # a callback may have put another in its place
                study.sampler = sampler
            self._heartbeat.close()
            self._progress.close()
            study._storage.remove_session()

    def run(self) -> None:
        """Search, and end what rests, whatever happens."""
        try:
            self._update()
            while not self._is_over() and (begun := self._next()) is not None:
                self._go_on(begun)
        except BaseException:
            self.end_all(callbacks=())
            self._start.restore()  # an interrupt may have come between two worlds
            raise
        error = self.end_all(self._callbacks)
        if error is not None:
            raise error

    def ask(self) -> Trial:
        """Return a new trial."""
        if not is_heartbeat_enabled(self._study._storage):
            return self._study.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)  # it is used
            self.fail_stale()
            return self._study.ask()

    def fail_stale(self) -> None:
        """See to the trials of others that give no sign of life."""
        optuna.storages.fail_stale_trials(self._study)

    def _update(self) -> None:
        self._choice.update(self._study.get_trials(deepcopy=False))

    def _is_over(self) -> bool:
        return self._study._stop_flag or self._is_spent()

    def _is_spent(self) -> bool:
        spent = self._n_steps is not None and self._steps >= self._n_steps
        return spent or time.perf_counter() >= self._deadline

    def _next(self) -> Begun | None:
        """Return the trial to go on with, a new one or one that rests; None: the search ends."""
        resting = list(self._live.values())
        startup = self._choice.n_complete < N_STARTUP_TRIALS
        if startup and resting:  # it was to run to its end
            return resting[0]
        chosen = None if startup else self._choice.choose(resting)
        if chosen is not None:
            return chosen
        if self._n_trials is not None and self._begun >= self._n_trials:
            return None
        if not self.sampler.is_out([begun.frozen for begun in resting]):
            return self._begin()
        budget = self._n_steps is not None or math.isfinite(self._deadline)
        return self._choice.best(resting) if budget and resting else None

    def _begin(self, again: bool = False) -> Begun:
        self._mark_last()
        trial = self.ask()
        try:
            self._begun += 1
            if _keys.RESTING in trial.user_attrs:  # a repeated trial, copied with its attributes
                trial.set_user_attr(_keys.RESTING, False)
            world = World(self._start, (self._seed, trial.number))
            frozen = self._study._storage.get_trial(trial._trial_id)
            begun = Begun(trial, drive(self._objective, trial, world), frozen, again=again)
            self._live[trial._trial_id] = begun
        except BaseException:
            self._study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise
        self._heartbeat.add(trial._trial_id)
        return begun

    def turn(self, *, begin: bool, n_steps: int | None) -> bool:
        """Let one trial run until it rests or ends, or a new one where ``begin``.

        Args:
            begin: Whether a new trial may begin.
            n_steps: Steps after which it rests at the latest.

        Returns:
            Whether there was one.
        """
        self._n_trials = None if begin else self._begun
        self._n_steps = None if n_steps is None else self._steps + n_steps
        self._update()  # others have searched since
        begun = None if self._study._stop_flag else self._next()
        if begun is None:
            return False
        self._go_on(begun)
        if self._last is not None and self._last.trial._trial_id in self._live:
            self._mark(self._last, True)
        return True

    def goes_on(self, trial: Trial) -> None:
        """Do what is to be done when a trial begins or goes on."""

    def raised(self, trial: Trial, error: BaseException) -> None:
        """Take note of why a trial fails, before it does: what its objective raised."""

    def goes_elsewhere(self, trial: Trial) -> bool:
        """Return whether a trial that ends at rest is to be begun again: it fails, then."""
        return False

    def _mark_last(self, chosen: Begun | None = None) -> None:
        """Say of the trial that ran last that it rests, where another runs now."""
        last, self._last = self._last, chosen
        if last is not None and last is not chosen and last.trial._trial_id in self._live:
            with contextlib.suppress(UpdateFinishedTrialError):  # `_finish` sees to it
                stretches = self._stretches[last.trial._trial_id]
                instead = None if chosen is None else chosen.trial.number
                stretches[-1] = replace(stretches[-1], after=_chance(last), instead=instead)
                write_stretches(last.trial, stretches)
            self._mark(last, True)

    def _mark(self, begun: Begun, rests: bool) -> None:
        if begun.marked != rests:
            begun.marked = rests
            with contextlib.suppress(UpdateFinishedTrialError):
                begun.trial.set_user_attr(_keys.RESTING, rests)

    def _go_on(self, begun: Begun) -> None:
        """Run a trial until it rests or ends."""
        trial_id = begun.trial._trial_id
        stretches = self._stretches.setdefault(trial_id, [])
        if begun is not self._last or not stretches:
            stretches.append(Stretch(_age(begun), 0.0, 0, _chance(begun), index=len(stretches)))
        self._mark_last(begun)
        self._resting.discard(trial_id)
        self._mark(begun, False)
        self.goes_on(begun.trial)
        startup = self._choice.n_complete < N_STARTUP_TRIALS
        goal = math.inf if startup else begun.goal() if begun.driver.paused else 0
        let_return = False
        while True:
            outcome = self._advance(begun)
            full = isinstance(outcome, Raised) and is_out_of_memory(outcome.error)
            if full and (len(self._live) > 1 or begun.again):
                if self._make_room(begun, outcome):
                    self._go_on(self._begin(again=True))
                return
            if not isinstance(outcome, Paused):
                self._finish(begun, outcome, self._callbacks)
                return
            if self._study._stop_flag:  # the trial that runs then finishes, as in `optimize`
                continue
            spent = self._is_spent()
            if self._choice.is_whole(begun) and not (spent and let_return):
                let_return = spent  # as long as the longest: it has only to return
                continue
            if spent or begun.steps >= goal:
                break
        self._resting.add(trial_id)
        while len(self._live) > self._max_paused:
            self._end(self._choice.least_promising(list(self._live.values())), self._callbacks)

    def _make_room(self, begun: Begun, outcome: Outcome) -> bool:
        """Fail a trial that ran out of memory; whether it is queued anew, and room made for it.

        That happens once, at the cost of the least promising trial, unless it is that itself: what
        is too large even so must not end one resting trial after the other.
        """
        if isinstance(outcome, Raised):
            _release(outcome.error)
        others = [other for other in self._live.values() if other is not begun]
        least = begun if begun.again else self._choice.least_promising([begun, *others])
        again = least is not begun
        if isinstance(outcome, Raised) and not again:
            self.raised(begun.trial, outcome.error)
        self._finish(begun, outcome, self._callbacks, forgiven=True)
        if again:
            self._end(least, self._callbacks)
            self._begun -= 1  # its repetition counts in its place
            self._steps -= int(begun.steps == 0)
            repeat(self._study, begun.frozen)
        del others, least
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return again

    def _advance(self, begun: Begun) -> Outcome:
        """Run a trial to its next pause or its end, and count what it has done."""
        first = not begun.driver.paused
        before = len(begun.frozen.intermediate_values)
        since = time.perf_counter()
        outcome = begun.driver.advance()
        begun.seconds += time.perf_counter() - since
        storage = self._study._storage
        begun.frozen = storage.get_trial(begun.trial._trial_id)
        if watch_order(storage, begun.frozen):
            begun.frozen = storage.get_trial(begun.trial._trial_id)
        new = len(begun.frozen.intermediate_values) - before
        if not begun.frozen.intermediate_values and not first and isinstance(outcome, Paused):
            new = 1  # an objective that never reports: its pauses are counted
        begun.steps += new
        self._steps += new
        stretches = self._stretches[begun.trial._trial_id]
        ran = stretches[-1]
        stretches[-1] = replace(ran, seconds=_age(begun) - ran.start, reports=ran.reports + new)
        self._choice.paused(begun)
        self._progress.update(new, self._begun, begun.trial.number, len(self._live) - 1)
        return outcome

    def _finish(
        self,
        begun: Begun,
        outcome: Outcome,
        callbacks: Sequence[Callback],
        *,
        ended: bool = False,
        forgiven: bool = False,
    ) -> None:
        """Tell the study how a trial ended; raise what its objective raised, unless caught."""
        trial = begun.trial
        new = int(begun.steps == 0 and not ended)  # nothing but such trials end a search, too
        self._steps += new
        self._resting.discard(trial._trial_id)
        self._heartbeat.remove(trial._trial_id)
        if begun.frozen.state.is_finished():  # by another process, which held this one for dead
            _logger.warning(f"Trial {trial.number} was ended by another process.")
            del self._live[trial._trial_id]
            if isinstance(outcome, Raised) and not isinstance(
                outcome.error, (Exception, *self._catch)
            ):
                raise outcome.error
            return
        error, message = None, ""
        state, values = TrialState.FAIL, None
        if isinstance(outcome, Returned) and not (ended and outcome.value is None):
            self._warn_unpaused(begun)
            values, message = _values_of(outcome.value)
            state = TrialState.FAIL if values is None else TrialState.COMPLETE
            if values is None:
                self.raised(trial, ValueError(message))
        elif isinstance(outcome, Raised) and not isinstance(outcome.error, optuna.TrialPruned):
            error, message = outcome.error, repr(outcome.error)
            if not forgiven:
                self.raised(trial, error)
        elif ended and self.goes_elsewhere(trial):
            message = _ELSEWHERE
        elif not ended or begun.frozen.intermediate_values:
            state = TrialState.PRUNED
        else:
            message = _UNTRAINED
        if ended and error is None and values is None and message != _ELSEWHERE:
            write_decision(self._study, begun.frozen, self._choice.decision(begun))
        with contextlib.suppress(UpdateFinishedTrialError):
            if len(stretches := self._stretches.pop(trial._trial_id, [])) > 1:
                write_stretches(trial, stretches)
        self._mark(begun, False)
        self._study.tell(trial, values, state, skip_if_finished=True)
        del self._live[trial._trial_id]  # not before: what fails until here is tried again
        self._progress.ended(self._study)
        self._progress.update(new, self._begun, None, len(self._live))
        _log(begun, state, values, message, error)
        self._update()
        if error is not None and not forgiven and not isinstance(error, self._catch):
            raise error
        if isinstance(outcome, Raised):
            _release(outcome.error)
        for callback in callbacks:
            frozen = self._study._storage.get_trial(trial._trial_id)
            callback(self._study, copy.deepcopy(frozen))

    def _end(self, begun: Begun, callbacks: Sequence[Callback]) -> None:
        """End a trial that rests."""
        begun.frozen = self._study._storage.get_trial(begun.trial._trial_id)
        outcome = begun.driver.end()
        before = begun.frozen
        begun.frozen = self._study._storage.get_trial(begun.trial._trial_id)
        self._steps += len(begun.frozen.intermediate_values) - len(before.intermediate_values)
        self._finish(begun, outcome, callbacks, ended=True)

    def end_all(self, callbacks: Sequence[Callback]) -> BaseException | None:
        """End all that rests, each even where another raises; return the first exception."""
        first: BaseException | None = None
        resting = list(self._live.values())
        try:
            self._choice.judge(resting)
        except Exception as error:  # a storage that fails must not keep objectives from ending
            first = error
        for begun in resting:
            try:
                self._end(begun, callbacks if first is None else ())
            except BaseException as error:
                first = first or error
                with contextlib.suppress(Exception):
                    self._abandon(begun)
        return first

    def _abandon(self, begun: Begun) -> None:
        """See to it that a trial that could not be told is not RUNNING for ever."""
        if self._live.pop(begun.trial._trial_id, None) is not None:
            self._heartbeat.remove(begun.trial._trial_id)
            self._study.tell(begun.trial, state=TrialState.FAIL, skip_if_finished=True)

    def _warn_unpaused(self, begun: Begun) -> None:
        if begun.driver.paused or self._warned:
            return
        self._warned = True
        warnings.warn(
            "The objective neither yields nor calls trial.should_prune(): its trials cannot pause "
            "and run through. Write `yield` after each report, or ask trial.should_prune() there.",
            LyapunovWarning,
            stacklevel=6,
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an objective failed for want of memory, of the machine or of a device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(name in str(error) for name in _ALLOCATORS)


def _release(error: BaseException | None) -> None:
    """Let go of what the frames of an exception hold: models, optimizers, batches."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _age(begun: Begun) -> float:
    """Return the seconds since a trial began, by the clock that Optuna stores."""
    began = begun.frozen.datetime_start
    return 0.0 if began is None else (datetime.now() - began).total_seconds()


def _chance(begun: Begun) -> float | None:
    """Return what was last thought of a trial; None where nothing could be predicted."""
    return None if begun.predicted is None else begun.predicted.probability


def _values_of(value: Any) -> tuple[list[float] | None, str]:
    """Return the final value that an objective returned as Optuna takes it, or what is wrong."""
    try:
        several = isinstance(value, Sequence) and not isinstance(value, str)
        numbers = [float(item) for item in (value if several else [value])]
    except Exception:  # whatever the objective has returned: an int may overflow
        return None, f"the value {_shown(value)} could not be cast to float"
    if len(numbers) != 1:
        return None, f"the study has one objective, but {len(numbers)} values were returned"
    if math.isnan(numbers[0]):
        return None, "the value nan is not acceptable"
    return numbers, ""


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except Exception:
        return f"of type {type(value).__name__}"


def _log(
    begun: Begun,
    state: TrialState,
    values: Sequence[float] | None,
    message: str,
    error: BaseException | None,
) -> None:
    number, params = begun.trial.number, begun.frozen.params
    if state == TrialState.COMPLETE and values is not None:
        _logger.info(f"Trial {number} finished with value: {values[0]} and parameters: {params}.")
    elif state == TrialState.PRUNED:
        _logger.info(f"Trial {number} pruned after {begun.steps} steps.")
    elif message in (_UNTRAINED, _ELSEWHERE):
        _logger.info(f"Trial {number} ended: {message}.")
    else:
        failed = f"Trial {number} failed with parameters: {params} because: {message}."
        _logger.warning(failed, exc_info=error)


class _Progress:
    """Steps done of the budget, time left, the best value, what runs and how many trials rest."""

    def __init__(
        self, show: bool, n_trials: int | None, n_steps: int | None, deadline: float
    ) -> None:
        self._bar: Any = None
        self._n_trials, self._deadline = n_trials, deadline
        self._best = ""
        if show:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=n_steps, unit="step")

    def update(self, new: int, begun: int, running: int | None, resting: int) -> None:
        """Show ``new`` steps more, and what runs: a trial number, None between two trials."""
        if self._bar is None:
            return
        parts = [self._best] if self._best else []
        if self._n_trials is not None:
            parts.append(f"{begun}/{self._n_trials} trials begun")
        if running is not None:
            parts.append(f"trial {running} runs")
        parts.append(f"{resting} rest")
        if math.isfinite(self._deadline):
            left = max(self._deadline - time.perf_counter(), 0.0)
            parts.append(f"{self._bar.format_interval(left)} left at most")
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.update(new)

    def ended(self, study: Study) -> None:
        """Look for the best value: a trial has ended."""
        if self._bar is not None:
            with contextlib.suppress(ValueError):  # no trial is COMPLETE
                self._best = f"best {study.best_value:.4g}"

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
