"""What the storage is told of trials that rest: that they do, and in which stretches they ran."""

import contextlib
from collections.abc import Container
from dataclasses import replace
from datetime import datetime

from optuna.exceptions import UpdateFinishedTrialError

from lyap_optuna.records import Stretch, _keys, write_stretches
from lyap_optuna.search._choice import Begun


class Rests:
    """Which trials of a search rest, and when each of them ran.

    A trial that pauses and is chosen again at once has not rested: it is told of the trial that ran
    last only when another one runs.

    Args:
        live: The ids of the trials that have begun and not ended, kept up to date by the search.
    """

    def __init__(self, live: Container[int]) -> None:
        self.ids: set[int] = set()
        """The trials that stand at a pause."""
        self._live = live
        self._stretches: dict[int, list[Stretch]] = {}  # by trial id
        self._last: Begun | None = None  # ran last

    def goes_on(self, begun: Begun) -> None:
        """A trial begins, or goes on."""
        stretches = self._stretches.setdefault(begun.trial_id, [])
        if begun is not self._last or not stretches:
            stretches.append(Stretch(_age(begun), 0.0, 0, _chance(begun), index=len(stretches)))
        self.another_runs(begun)
        self.ids.discard(begun.trial_id)
        self._mark(begun, False)

    def ran(self, begun: Begun, reports: int) -> None:
        """It has run to a pause or its end, and made so many reports."""
        stretches = self._stretches[begun.trial_id]
        ran = stretches[-1]
        seconds = _age(begun) - ran.start
        stretches[-1] = replace(ran, seconds=seconds, reports=ran.reports + reports)

    def another_runs(self, chosen: Begun | None = None) -> None:
        """Another trial runs now, a new one for None: the one that ran last rests."""
        last, self._last = self._last, chosen
        if last is not None and last is not chosen and last.trial_id in self._live:
            with contextlib.suppress(UpdateFinishedTrialError):  # `Search._finish` sees to it
                stretches = self._stretches[last.trial_id]
                instead = None if chosen is None else chosen.trial.number
                stretches[-1] = replace(stretches[-1], after=_chance(last), instead=instead)
                write_stretches(last.trial, stretches)
            self._mark(last, True)

    def none_runs(self) -> None:
        """None runs for now: the one that ran last rests."""
        if self._last is not None and self._last.trial_id in self._live:
            self._mark(self._last, True)

    def ends(self, begun: Begun) -> None:
        """A trial ends: its stretches are stored, where it has rested."""
        with contextlib.suppress(UpdateFinishedTrialError):
            if len(stretches := self._stretches.pop(begun.trial_id, [])) > 1:
                write_stretches(begun.trial, stretches)
        self._mark(begun, False)

    def _mark(self, begun: Begun, rests: bool) -> None:
        if begun.marked != rests:
            begun.marked = rests
            with contextlib.suppress(UpdateFinishedTrialError):
                begun.trial.set_user_attr(_keys.RESTING, rests)


def _age(begun: Begun) -> float:
    """Return the seconds since a trial began, by the clock that Optuna stores."""
    began = begun.frozen.datetime_start
    return 0.0 if began is None else (datetime.now() - began).total_seconds()


def _chance(begun: Begun) -> float | None:
    """Return what was last thought of a trial; None where nothing could be predicted."""
    return None if begun.predicted is None else begun.predicted.probability
