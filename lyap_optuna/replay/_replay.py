"""One recorded study run again with a pruner, through Optuna's own ask, report and tell."""

import contextlib
import math
import time
from collections.abc import Generator, Iterable, Iterator

import optuna
from optuna.pruners import BasePruner
from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.replay._outcome import REGRET_AT, Log, Replay
from lyap_optuna.replay._recorded import RecordedTrials, reported
from lyap_optuna.replay._recording import RecordedTrial, Recording, direction_of
from lyap_optuna.replay._truth import Truth
from lyap_optuna.search import freeze_thaw


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
    trials, log = RecordedTrials(recording, order, choose), Log(Truth(recording))
    with _study_of(recording, order, trials, pruner) as study:
        for number in range(len(trials.trials)):
            _run_trial(study, trials.begun(study, number), recording.state, log)
    return log.judged(order, trials.trials), study


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
    trials = RecordedTrials(recording, order, choose)
    player = _Player(trials, recording.state, Log(Truth(recording)))
    with _study_of(recording, order, trials, None) as study:
        freeze_thaw(
            study,
            player.objective,
            n_steps=player.total + 1,  # after the last report, a trial has still to return
            max_paused=len(trials.trials),
            seed=order,
            callbacks=[player.ended],
            evidence=evidence,
            cost="steps",
        )
    return player.log.judged(order, trials.trials)


@contextlib.contextmanager
def _study_of(
    recording: Recording, order: int, trials: RecordedTrials, pruner: BasePruner | None
) -> Iterator[Study]:
    """Yield the study in which the trials run again; nothing of it is logged."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield optuna.create_study(
            study_name=f"{recording.name}-{order}",
            storage=InMemoryStorage(),
            sampler=trials,
            pruner=pruner,
            direction=direction_of(recording),
        )
    finally:
        optuna.logging.set_verbosity(verbosity)


class _Player:
    """What ``freeze_thaw`` is given of a recording: an objective, and a callback.

    Args:
        trials: The recorded trials.
        state: Whose readouts are stored.
        log: Where it is written down what became of them.
    """

    def __init__(self, trials: RecordedTrials, state: str | None, log: Log) -> None:
        self._trials, self._state, self.log = trials, state, log
        self.total = sum(len(trial.values) for trial in trials.trials)
        self._since = time.perf_counter()

    def objective(self, trial: optuna.Trial) -> Generator[None, None, float]:
        """Run a recorded trial, which may rest after each recorded value."""
        self._went_on()
        recorded = self._trials.begun(trial.study, trial.number)
        for name, distribution in recorded.distributions.items():
            trial._suggest(name, distribution)
        for step in reported(trial, recorded, self._state, self.log):
            if step is None:
                continue
            self._since = time.perf_counter()
            yield
            self._went_on()
        return recorded.final

    def _went_on(self) -> None:
        self.log.seconds.append(time.perf_counter() - self._since)

    def ended(self, study: Study, trial: FrozenTrial) -> None:
        """Write down how a trial ended; stop when half is spent and a winner is found."""
        recorded, log = self._trials.begun(study, trial.number), self.log
        if trial.state == TrialState.COMPLETE:
            log.ends(recorded)
            found = any(log.truth.wins(ended.value) for ended in log.complete)
            if found and log.spent >= REGRET_AT[-1] * self.total:
                study.stop()
        elif trial.state == TrialState.PRUNED:
            log.prunes(trial, recorded.final)


def _run_trial(study: Study, recorded: RecordedTrial, state: str | None, log: Log) -> None:
    trial = study.ask(dict(recorded.distributions))
    pruned, hits = False, list[bool]()
    for step in reported(trial, recorded, state, log):
        pruned = log.asks(trial, step, recorded.final, hits)
        if pruned:
            break
    if hits:
        log.inside.append(sum(hits) / len(hits))
    if pruned:
        log.prunes(study._storage.get_trial(trial._trial_id), recorded.final)
        study.tell(trial, state=TrialState.PRUNED)
    elif math.isnan(recorded.final):
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, recorded.final)
        log.ends(recorded)
