"""The search: run a trial to a pause, choose, go on; and leave nothing running at the end."""

import contextlib
import copy
import gc
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import optuna
import torch
from optuna.exceptions import ExperimentalWarning
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.records import _keys, repeat, watch_order, write_decision
from lyap_optuna.search._budget import Budget, Progress
from lyap_optuna.search._choice import Begun, Choice
from lyap_optuna.search._drivers import Objective, Outcome, Paused, Raised, Returned, drive
from lyap_optuna.search._ending import ending_of, is_out_of_memory, log, release
from lyap_optuna.search._heartbeat import Heartbeat
from lyap_optuna.search._rests import Rests
from lyap_optuna.search._sampling import SeesRestingAsPruned
from lyap_optuna.search._worlds import Surroundings, World

_logger = get_logger(__name__)

Callback = Callable[[Study, FrozenTrial], None]


class Search:
    """One call of :func:`freeze_thaw`, or the share of one worker in a campaign.

    Args:
        study: The study.
        objective: What each trial runs.
        choice: Who is to go on.
        budget: What it may spend.
        max_paused: Trials that rest at a time.
        seed: Seeds each trial's generators.
        catch: Exceptions that fail a trial and do not end the search.
        callbacks: Called when a trial has ended.
        show_progress_bar: Whether to show what is spent.
    """

    def __init__(
        self,
        study: Study,
        objective: Objective,
        *,
        choice: Choice,
        budget: Budget,
        max_paused: int,
        seed: int,
        catch: tuple[type[BaseException], ...],
        callbacks: tuple[Callback, ...],
        show_progress_bar: bool = False,
    ) -> None:
        self._study, self._objective, self._choice = study, objective, choice
        self._budget = budget
        self._max_paused, self._seed = max_paused, seed
        self._catch, self._callbacks = catch, callbacks
        self._progress = Progress(budget, show_progress_bar)
        self._heartbeat = Heartbeat(study._storage)
        self._start = Surroundings.here()
        self._live: dict[int, Begun] = {}  # begun and not ended, by trial id
        self._rests = Rests(self._live)
        self.sampler = SeesRestingAsPruned(study.sampler, study, self._rests.ids)
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
        return self._study._stop_flag or self._budget.is_spent()

    def _next(self) -> Begun | None:
        """Return the trial to go on with, a new one or one that rests; None: the search ends."""
        resting = list(self._live.values())
        chosen = self._choice.choose(resting)
        if chosen is not None:
            return chosen
        if not self._budget.may_begin():
            return None
        if not self.sampler.is_out([begun.frozen for begun in resting]):
            return self._begin()
        return self._choice.best(resting) if resting and self._budget.ends() else None

    def _begin(self, again: bool = False) -> Begun:
        self._rests.another_runs()
        trial = self.ask()
        try:
            self._budget.begun += 1
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
        self._budget.allow(begin, n_steps)
        self._update()  # others have searched since
        begun = None if self._study._stop_flag else self._next()
        if begun is None:
            return False
        self._go_on(begun)
        self._rests.none_runs()
        return True

    def goes_on(self, trial: Trial) -> None:
        """Do what is to be done when a trial begins or goes on."""

    def raised(self, trial: Trial, error: BaseException) -> None:
        """Take note of why a trial fails, before it does: what its objective raised."""

    def goes_elsewhere(self, trial: Trial) -> bool:
        """Return whether a trial that ends at rest is to be begun again: it fails, then."""
        return False

    def _go_on(self, begun: Begun) -> None:
        """Run a trial until it rests or ends."""
        self._rests.goes_on(begun)
        self.goes_on(begun.trial)
        goal = self._choice.goal(begun)
        let_return = False
        while True:
            outcome = self._advance(begun)
            if is_out_of_memory(outcome) and (len(self._live) > 1 or begun.again):
                if self._make_room(begun, outcome):
                    self._go_on(self._begin(again=True))
                return
            if not isinstance(outcome, Paused):
                self._finish(begun, outcome, self._callbacks)
                return
            if self._study._stop_flag:  # the trial that runs then finishes, as in `optimize`
                continue
            spent = self._budget.is_spent()
            if self._choice.is_whole(begun) and not (spent and let_return):
                let_return = spent  # as long as the longest: it has only to return
                continue
            if spent or begun.steps >= goal:
                break
        self._rests.ids.add(begun.trial_id)
        while len(self._live) > self._max_paused:
            self._end(self._choice.least_promising(list(self._live.values())), self._callbacks)

    def _make_room(self, begun: Begun, outcome: Outcome) -> bool:
        """Fail a trial that ran out of memory; whether it is queued anew, and room made for it.

        That happens once, at the cost of the least promising trial, unless it is that itself: what
        is too large even so must not end one resting trial after the other.
        """
        release(outcome)
        others = [other for other in self._live.values() if other is not begun]
        least = begun if begun.again else self._choice.least_promising([begun, *others])
        again = least is not begun
        if isinstance(outcome, Raised) and not again:
            self.raised(begun.trial, outcome.error)
        self._finish(begun, outcome, self._callbacks, forgiven=True)
        if again:
            self._end(least, self._callbacks)
            self._budget.begun -= 1  # its repetition counts in its place
            self._budget.steps -= int(begun.steps == 0)
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
        begun.frozen = storage.get_trial(begun.trial_id)
        if watch_order(storage, begun.frozen):
            begun.frozen = storage.get_trial(begun.trial_id)
        new = len(begun.frozen.intermediate_values) - before
        if not begun.frozen.intermediate_values and not first and isinstance(outcome, Paused):
            new = 1  # an objective that never reports: its pauses are counted
        begun.steps += new
        self._budget.steps += new
        self._rests.ran(begun, new)
        self._choice.paused(begun)
        self._progress.update(new, begun.trial.number, len(self._live) - 1)
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
        self._budget.steps += new
        self._rests.ids.discard(begun.trial_id)
        self._heartbeat.remove(begun.trial_id)
        if begun.frozen.state.is_finished():  # by another process, which held this one for dead
            _logger.warning(f"Trial {trial.number} was ended by another process.")
            del self._live[trial._trial_id]
            if isinstance(outcome, Raised) and not isinstance(
                outcome.error, (Exception, *self._catch)
            ):
                raise outcome.error
            return
        if isinstance(outcome, Returned):
            self._warn_unpaused(begun)
        ending = ending_of(outcome, begun, ended, self.goes_elsewhere)
        if ending.failure is not None and not forgiven:
            self.raised(trial, ending.failure)
        if ended and ending.is_for_good:
            write_decision(self._study, begun.frozen, self._choice.decision(begun))
        self._rests.ends(begun)
        self._study.tell(trial, ending.values, ending.state, skip_if_finished=True)
        del self._live[begun.trial_id]  # not before: what fails until here is tried again
        self._progress.ended(self._study)
        self._progress.update(new, None, len(self._live))
        log(begun, ending)
        self._update()
        if ending.error is not None and not forgiven and not isinstance(ending.error, self._catch):
            raise ending.error
        release(outcome)
        for callback in callbacks:
            frozen = self._study._storage.get_trial(trial._trial_id)
            callback(self._study, copy.deepcopy(frozen))

    def _end(self, begun: Begun, callbacks: Sequence[Callback]) -> None:
        """End a trial that rests."""
        begun.frozen = self._study._storage.get_trial(begun.trial_id)
        outcome = begun.driver.end()
        before = begun.frozen
        begun.frozen = self._study._storage.get_trial(begun.trial_id)
        late = len(begun.frozen.intermediate_values) - len(before.intermediate_values)
        self._budget.steps += late
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
        if self._live.pop(begun.trial_id, None) is not None:
            self._heartbeat.remove(begun.trial_id)
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
