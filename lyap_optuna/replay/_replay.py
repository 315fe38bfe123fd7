"""One recorded study run again with a pruner, through Optuna's own ask, report and tell."""

import math
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.prediction._study import StudyModels
from lyap_optuna.prediction.evidence import EVIDENCE
from lyap_optuna.probe import UNTRAINED_STEP
from lyap_optuna.records import Decision, _keys, read_decisions
from lyap_optuna.replay._recording import (
    RecordedTrial,
    Recording,
    direction_of,
    stored_readouts,
)
from lyap_optuna.replay._truth import Calibration, Truth
from lyap_optuna.search import freeze_thaw

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


def order_of(recording: Recording, order: int) -> list[int]:
    """Return the trials' indices in the random order of that number."""
    return [int(i) for i in np.random.default_rng(order).permutation(len(recording.trials))]


class _Recorded(BaseSampler):
    """Suggests what was recorded.

    Args:
        recording: The study.
        order: Number of the order of trials.
        choose: Whether the next trial is the one of all that have not begun, whose chance of
            ending among the best is largest by its hyperparameters and its readout before
            training. In order where nothing can be told yet, and among equal ones.
    """

    def __init__(self, recording: Recording, order: int, choose: bool = False) -> None:
        self.trials = [recording.trials[i] for i in order_of(recording, order)]
        self._left = list(range(len(self.trials)))
        self._begun: list[int] = []
        self._state = recording.state
        self._models: StudyModels | None = None
        self._choose = choose

    def begun(self, study: Study, number: int) -> RecordedTrial:
        """Return what the trial of that number is a replay of."""
        while len(self._begun) <= number:
            next_one = self._next(study) if self._choose else 0
            self._begun.append(self._left.pop(next_one))
        return self.trials[self._begun[number]]

    def _next(self, study: Study) -> int:
        if self._models is None:
            self._models = StudyModels.of_study(study, tuple(EVIDENCE))
        self._models.update(study.get_trials(deepcopy=False))
        model = self._models.at(None)
        if not model.kinds:
            return 0
        views = [self._models.view(self._untrained(index)) for index in self._left]
        predicted = model.predict(views)
        return int(np.argmax([0.0 if p is None else p.probability or 0.0 for p in predicted]))

    def _untrained(self, index: int) -> FrozenTrial:
        recorded = self.trials[index]
        before = _baseline(recorded, self._state)
        return FrozenTrial(
            number=-1,
            trial_id=-1 - index,  # no trial of the study
            state=TrialState.RUNNING,
            value=None,
            datetime_start=None,
            datetime_complete=None,
            params=dict(recorded.params),
            distributions=dict(recorded.distributions),
            user_attrs={} if before is None else {_keys.READOUTS: {str(UNTRAINED_STEP): before}},
            system_attrs={},
            intermediate_values={},
        )

    def is_exhausted(self, study: Study) -> bool:
        """Return whether all trials have begun; ``freeze_thaw`` asks."""
        return len(study.get_trials(deepcopy=False)) >= len(self.trials)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self.begun(study, trial.number).params[param_name]


def replay(
    recording: Recording, pruner: BasePruner, order: int = 0, *, choose: bool = False
) -> Replay:
    """Run a recorded study again, its trials in a random order, with ``pruner``.

    The loop is the one of Optuna's documentation: each recorded value is reported, then
    ``should_prune`` is asked, after the last report too. Where a readout before training was
    recorded, it is stored with the trial and ``should_prune`` is asked before the first report
    too: a trial that is pruned then spends no epochs and has no value.

    Args:
        recording: The study.
        pruner: Any pruner, fresh.
        order: Number of the order of trials. It also names the study: Hyperband hashes names.
        choose: Whether the order only begins the study, and the next trial is then the one of all
            that have not begun that our predictor thinks best before training. (A sampler sees
            one configuration at a time; this is a study with a list of configurations to try.)

    Returns:
        A :class:`Replay`.

    Example:
        >>> import optuna
        >>> from lyap_optuna.replay import Recording, replay
        >>> study = optuna.create_study(study_name="curves")
        >>> for i in range(20):
        ...     study.add_trial(
        ...         optuna.create_trial(
        ...             intermediate_values={1: i + 1.0, 2: i / 2}, value=float(i)
        ...         )
        ...     )
        >>> result = replay(Recording.from_study(study), optuna.pruners.MedianPruner())
        >>> result.succeeded, result.epochs_spent < 1.0
        (True, True)
    """
    return run(recording, pruner, order, choose=choose)[0]


def run(
    recording: Recording, pruner: BasePruner, order: int, *, choose: bool = False
) -> tuple[Replay, Study]:
    """Replay, and return the study too."""
    recorded = _Recorded(recording, order, choose)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(
            study_name=f"{recording.name}-{order}",
            storage=InMemoryStorage(),
            sampler=recorded,
            pruner=pruner,
            direction=direction_of(recording),
        )
        log = _Log(Truth(recording))
        for number in range(len(recorded.trials)):
            _run_trial(study, recorded.begun(study, number), recording.state, log)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return log.judged(order, recorded.trials), study


def replay_freeze_thaw(
    recording: Recording,
    order: int = 0,
    *,
    evidence: Iterable[str] | None = None,
    choose: bool = False,
) -> Replay:
    """Run a recorded study again, its trials in a random order, by ``freeze_thaw``.

    The real :func:`~lyap_optuna.freeze_thaw` on a study in memory, whose sampler suggests the
    configurations of the order one by one: only the next may be begun, and nothing is known of
    those that have not been. Each trial may rest after each recorded value. A step costs one
    epoch, and exploration is seeded by the number of the order.

    Readouts before training are stored with each trial when it begins, but it does not rest
    before its first epoch: a search could otherwise evaluate every configuration at no cost.

    The replay ends once half of all epochs are spent and a winner has been found: ``found_by`` and
    ``regret_at`` are known then. What rests at that moment counts as pruned.

    Args:
        recording: The study.
        order: Number of the order of trials.
        evidence: Kinds of evidence of :func:`~lyap_optuna.freeze_thaw`; None for its default.
        choose: As of :func:`replay`.

    Returns:
        A :class:`Replay`. ``seconds`` is all that is not the objective: choosing, refits, Optuna's
        own work; ``slowest_decision`` the longest time between two pauses.

    Example:
        >>> import optuna
        >>> from lyap_optuna.replay import Recording, replay_freeze_thaw
        >>> study = optuna.create_study(study_name="curves")
        >>> for i in range(20):
        ...     study.add_trial(
        ...         optuna.create_trial(
        ...             intermediate_values={1: i + 1.0, 2: i / 2}, value=float(i)
        ...         )
        ...     )
        >>> result = replay_freeze_thaw(Recording.from_study(study))
        >>> result.succeeded, result.epochs_spent < 1.0
        (True, True)
    """
    return run_freeze_thaw(recording, order, evidence=evidence, choose=choose)[0]


def run_freeze_thaw(
    recording: Recording,
    order: int,
    *,
    evidence: Iterable[str] | None = None,
    choose: bool = False,
) -> tuple[Replay, Study]:
    """Replay, and return the study too."""
    trials = _Recorded(recording, order, choose)
    total = sum(len(t.values) for t in trials.trials)
    log = _Log(Truth(recording))
    since = time.perf_counter()

    def paused() -> None:
        nonlocal since
        log.seconds.append(time.perf_counter() - since)

    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        nonlocal since
        paused()
        recorded = trials.begun(trial.study, trial.number)
        for name, distribution in recorded.distributions.items():
            trial._suggest(name, distribution)
        before = _baseline(recorded, recording.state)
        if before is not None:
            trial.set_user_attr(_keys.READOUTS, {str(UNTRAINED_STEP): before})
        series = _series(recorded, recording.state)
        for step, value in recorded.values.items():
            trial.report(value, step)
            log.reported(recorded)
            if step in series:
                trial.set_user_attr(_keys.READOUTS, series[step])
            since = time.perf_counter()
            yield
            paused()
        return recorded.final

    def ended(study: Study, trial: FrozenTrial) -> None:
        recorded = trials.begun(study, trial.number)
        if trial.state == TrialState.COMPLETE:
            log.ends(recorded)
            found = any(log.truth.wins(ended.value) for ended in log.complete)
            if found and log.spent >= REGRET_AT[-1] * total:
                study.stop()
        elif trial.state == TrialState.PRUNED:
            log.pruned.append(log.truth.oriented(recorded.final))
            said = read_decisions(trial)
            if said:
                log.calibration += log.truth.judge(said[-1], recorded.final)

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        study = optuna.create_study(
            study_name=f"{recording.name}-{order}",
            storage=InMemoryStorage(),
            sampler=trials,
            direction=direction_of(recording),
        )
        freeze_thaw(
            study,
            objective,
            n_steps=total + 1,  # after the last report, a trial has still to return
            max_paused=len(trials.trials),
            seed=order,
            callbacks=[ended],
            evidence=evidence,
            cost="steps",
        )
    finally:
        optuna.logging.set_verbosity(verbosity)
    return log.judged(order, trials.trials), study


def _run_trial(study: Study, recorded: RecordedTrial, state: str | None, log: "_Log") -> None:
    trial = study.ask(dict(recorded.distributions))
    pruned, hits = False, list[bool]()
    before = _baseline(recorded, state)
    if before is not None:
        trial.set_user_attr(_keys.READOUTS, {str(UNTRAINED_STEP): before})
        pruned = log.asks(trial, None, recorded.final, hits)
    series = _series(recorded, state)
    for step, value in recorded.values.items():
        if pruned:
            break
        trial.report(value, step)
        log.reported(recorded)
        if step in series:
            trial.set_user_attr(_keys.READOUTS, series[step])
        pruned = log.asks(trial, step, recorded.final, hits)
    if hits:
        log.inside.append(sum(hits) / len(hits))
    if pruned:
        log.prunes(trial, recorded.final)
        study.tell(trial, state=TrialState.PRUNED)
    elif math.isnan(recorded.final):
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, recorded.final)
        log.ends(recorded)


def _baseline(trial: RecordedTrial, state: str | None) -> dict[str, Any] | None:
    """Return the readout before training; None where none was recorded."""
    measured = stored_readouts(trial, state)
    before = [s for s in measured if s < min(trial.values)]
    step = max([s for s in before if s < 0] or before, default=None)
    return None if step is None else measured[step]


def _series(trial: RecordedTrial, state: str | None) -> dict[int, dict[str, Any]]:
    """Return the readouts known after each reported step at which one was taken."""
    steps = list(trial.values)
    measured = stored_readouts(trial, state)
    places: dict[int, int] = {}
    for step in measured:
        # Taken between two steps, it is known at the second; after the last, it is of no use.
        at = min((reported for reported in steps if reported >= step), default=None)
        if at is not None:
            places[step] = 0 if step < min(steps) else steps.index(at)
    return {
        steps[place]: {str(s): measured[s] for s, before in places.items() if before <= place}
        for place in set(places.values())
    }


class _Ended(NamedTuple):
    """A COMPLETE trial: reports and seconds spent by its end, and its oriented final value."""

    spent: int
    seconds: float
    value: float


@dataclass
class _Log:
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
    complete: list[_Ended] = field(default_factory=list)
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
        self.complete.append(_Ended(self.spent, self.trained, value))

    def asks(self, trial: optuna.Trial, step: int | None, final: float, hits: list[bool]) -> bool:
        """Ask ``should_prune``; add to ``hits`` whether the interval of the decision held."""
        begin = time.perf_counter()
        pruned = trial.should_prune()
        self.seconds.append(time.perf_counter() - begin)
        said = _decisions(trial)
        if said and (step is None or said[-1].step == step):
            judged = self.truth.judge(said[-1], final)
            hits += [bool(judged.held)] * judged.n
        return pruned

    def prunes(self, trial: optuna.Trial, final: float) -> None:
        """Write down a trial that is pruned now."""
        self.pruned.append(self.truth.oriented(final))
        said = _decisions(trial)
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


def _decisions(trial: optuna.Trial) -> list[Decision]:
    return read_decisions(trial.study._storage.get_trial(trial._trial_id))
