"""What became of a recorded study under a pruner, and the log that it is told from."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial

from lyap_optuna.records import read_decisions
from lyap_optuna.replay._recording import RecordedTrial
from lyap_optuna.replay._truth import Calibration, Truth

REGRET_AT = (0.1, 0.25, 0.5)
"""Shares of all epochs after which the regret is told: early, soon, and when half is spent."""


@dataclass(frozen=True)
class Replay:
    """What became of a recorded study under one pruner in one order.

    Args:
        order: Number of the order: the same number, the same order of trials.
        epochs_spent: Reports made, over those of all trials trained to their end.
        found_by: Reports made when the first winner ended (:func:`winners`: COMPLETE, hardly any
            trial better, and not by much), over those of all trials; infinite where none did.
        regret: Best COMPLETE value less the true best, over the spread between the median and
            the true best; infinite where no trial was COMPLETE.
        regret_at: The same of the trials that had ended when 10, 25 and 50 % of all epochs were
            spent; a study that spends less keeps its last.
        succeeded: Whether a winner was found: the best COMPLETE trial is in the true top 5 % and
            the regret at most 0.05.
        wrongly_pruned: Trials of the true top 5 % that were pruned; of equal ones all count.
        n_pruned: Pruned trials.
        seconds: Spent in ``should_prune``.
        slowest_decision: Longest single ``should_prune``, seconds. (:func:`replay_freeze_thaw` says
            what both are there.)
        covered: Share of a trial's decisions whose 80 % interval held its final value, summed over
            trials.
        predictions: Trials behind ``covered``: those for which an interval was recorded.
        calibration: What the intervals of the decisions that pruned were worth.
        found_by_seconds: Like ``found_by``, in seconds of training: those spent when the first
            winner ended, over those of all trials. A step is taken to cost the mean of its trial's.
            None where the recording does not say how long each trial ran.
        fell: After which shares of all epochs the regret fell, and to what.
    """

    order: int
    epochs_spent: float
    found_by: float
    regret: float
    regret_at: tuple[float, ...]
    succeeded: bool
    wrongly_pruned: int
    n_pruned: int
    seconds: float
    slowest_decision: float
    covered: float
    predictions: int
    calibration: Calibration
    found_by_seconds: float | None = None
    fell: tuple[tuple[float, float], ...] = ()

    def regret_after(self, share: float) -> float:
        """Return the regret of the trials that had ended when that share of epochs was spent."""
        # A replay that was stored before the falls were knows the regret at some shares.
        known = self.fell or (
            *zip(REGRET_AT, self.regret_at, strict=True),
            (self.epochs_spent, self.regret),
        )
        return min((regret for at, regret in known if at <= share + 1e-9), default=math.inf)


class Ended(NamedTuple):
    """A COMPLETE trial: reports and seconds spent by its end, and its oriented final value."""

    spent: int
    seconds: float
    value: float


@dataclass
class Log:
    """What is written down while a study is replayed.

    Args:
        truth: How every trial truly ended.
        spent: Reports made so far.
        trained: Seconds of training so far; NaN where a trial's are not known.
        seconds: What each ``should_prune`` took.
        inside: For each trial with intervals, the share that held its final value.
        complete: The COMPLETE trials, in the order in which they ended.
        pruned: Oriented final values that pruned trials would have had.
        calibration: Of the decisions that pruned.
    """

    truth: Truth
    spent: int = 0
    trained: float = 0.0
    seconds: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    complete: list[Ended] = field(default_factory=list)
    pruned: list[float] = field(default_factory=list)
    calibration: Calibration = field(default_factory=Calibration)

    def reported(self, recorded: RecordedTrial) -> None:
        """Count a report of a trial, and what it took."""
        self.spent += 1
        took = math.nan if recorded.seconds is None else recorded.seconds
        self.trained += took / len(recorded.values)

    def ends(self, recorded: RecordedTrial) -> None:
        """Write down a trial that is COMPLETE now."""
        value = self.truth.oriented(recorded.final)
        self.complete.append(Ended(self.spent, self.trained, value))

    def asks(self, trial: optuna.Trial, step: int | None, final: float, hits: list[bool]) -> bool:
        """Ask ``should_prune``; add to ``hits`` whether the interval of the decision held."""
        begin = time.perf_counter()
        pruned = trial.should_prune()
        self.seconds.append(time.perf_counter() - begin)
        said = read_decisions(trial.study._storage.get_trial(trial._trial_id))
        if said and (step is None or said[-1].step == step):
            judged = self.truth.judge(said[-1], final)
            hits += [bool(judged.held)] * judged.n
        return pruned

    def prunes(self, trial: FrozenTrial, final: float) -> None:
        """Write down a trial that is pruned now."""
        self.pruned.append(self.truth.oriented(final))
        said = read_decisions(trial)
        if said and said[-1].verdict == "pruned":
            self.calibration += self.truth.judge(said[-1], final)

    def judged(self, order: int, trials: Sequence[RecordedTrial]) -> Replay:
        """Return what became of the study of these trials."""
        total = sum(len(t.values) for t in trials)
        seconds = [t.seconds for t in trials if t.seconds is not None]
        best, fell = math.inf, list[tuple[float, float]]()
        for ended in self.complete:
            if ended.value < best:
                best = ended.value
                fell.append((ended.spent / total, self.truth.regret(best)))
        won = next((ended for ended in self.complete if self.truth.wins(ended.value)), None)
        in_seconds = None
        if len(seconds) == len(trials):
            in_seconds = math.inf if won is None else won.seconds / sum(seconds)
        return Replay(
            order=order,
            epochs_spent=self.spent / total,
            found_by=math.inf if won is None else won.spent / total,
            regret=self.truth.regret(best),
            regret_at=tuple(self._regret_at(share, total) for share in REGRET_AT),
            succeeded=self.truth.wins(best),
            wrongly_pruned=sum(value <= self.truth.top for value in self.pruned),
            n_pruned=len(self.pruned),
            seconds=float(sum(self.seconds)),
            slowest_decision=max(self.seconds, default=0.0),
            covered=sum(self.inside),
            predictions=len(self.inside),
            calibration=self.calibration,
            found_by_seconds=in_seconds,
            fell=tuple(fell),
        )

    def _regret_at(self, share: float, total: int) -> float:
        values = [ended.value for ended in self.complete if ended.spent / total <= share]
        return self.truth.regret(min(values, default=math.inf))
