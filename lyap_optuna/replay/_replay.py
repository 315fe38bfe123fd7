"""One recorded study run again with a pruner, through Optuna's own ask, report and tell."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.prediction.evidence.base import FloatArray, oriented
from lyap_optuna.records import _keys, read_decisions
from lyap_optuna.replay._recording import (
    RecordedTrial,
    Recording,
    direction_of,
    stored_readouts,
)

TOP = 0.05
"""The true best: this fraction of the recorded trials."""

MAX_REGRET = 0.05
"""Normalised regret at which an order still succeeds."""


@dataclass(frozen=True)
class Replay:
    """What became of a recorded study under one pruner in one order.

    Args:
        order: Number of the order: the same number, the same order of trials.
        epochs_spent: Reports made, over those of all trials trained to their end.
        regret: Best COMPLETE value less the true best, over the spread between the median and
            the true best; infinite where no trial was COMPLETE.
        succeeded: Whether the best COMPLETE trial is in the true top 5 % and the regret at most
            0.05.
        wrongly_pruned: Trials of the true top 5 % that were pruned; of equal ones all count.
        n_pruned: Pruned trials.
        seconds: Spent in ``should_prune``.
        slowest_decision: Longest single ``should_prune``, seconds.
        covered: Share of a trial's decisions whose 80 % interval held its final value, summed over
            trials.
        predictions: Trials behind ``covered``: those for which an interval was recorded.
    """

    order: int
    epochs_spent: float
    regret: float
    succeeded: bool
    wrongly_pruned: int
    n_pruned: int
    seconds: float
    slowest_decision: float
    covered: float = 0.0
    predictions: int = 0


def order_of(recording: Recording, order: int) -> list[int]:
    """Return the trials' indices in the random order of that number."""
    return [int(i) for i in np.random.default_rng(order).permutation(len(recording.trials))]


class _Recorded(BaseSampler):
    """Suggests what was recorded."""

    def __init__(self, trials: Sequence[RecordedTrial]) -> None:
        self._trials = trials

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
        return self._trials[trial.number].params[param_name]


def replay(recording: Recording, pruner: BasePruner, order: int = 0) -> Replay:
    """Run a recorded study again, its trials in a random order, with ``pruner``.

    The loop is the one of Optuna's documentation: each recorded value is reported, then
    ``should_prune`` is asked, after the last report too.

    Args:
        recording: The study.
        pruner: Any pruner, fresh.
        order: Number of the order of trials. It also names the study: Hyperband hashes names.

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
    return run(recording, pruner, order)[0]


def run(recording: Recording, pruner: BasePruner, order: int) -> tuple[Replay, Study]:
    """Replay, and return the study too."""
    trials = [recording.trials[i] for i in order_of(recording, order)]
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(
            study_name=f"{recording.name}-{order}",
            storage=InMemoryStorage(),
            sampler=_Recorded(trials),
            pruner=pruner,
            direction=direction_of(recording),
        )
        seconds: list[float] = []
        inside: list[float] = []
        for recorded in trials:
            trial = study.ask(dict(recorded.distributions))
            series = _series(recorded, recording.state)
            pruned, hits = False, list[bool]()
            for step, value in recorded.values.items():
                trial.report(value, step)
                if step in series:
                    trial.set_user_attr(_keys.READOUTS, series[step])
                begin = time.perf_counter()
                pruned = trial.should_prune()
                seconds.append(time.perf_counter() - begin)
                said = read_decisions(study._storage.get_trial(trial._trial_id))
                if said and said[-1].step == step and said[-1].lower is not None:
                    hits.append(_within(recorded.final, said[-1].lower, said[-1].upper))
                if pruned:
                    break
            if hits:
                inside.append(sum(hits) / len(hits))
            if pruned:
                study.tell(trial, state=TrialState.PRUNED)
            elif math.isnan(recorded.final):
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, recorded.final)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return _judged(recording, trials, study, order, seconds, inside), study


def _series(trial: RecordedTrial, state: str | None) -> dict[int, dict[str, Any]]:
    """Return the readouts known after each reported step at which one was taken."""
    measured = stored_readouts(trial, state)
    known: dict[int, dict[str, Any]] = {}
    for step in measured:
        # Taken between two reports, it is known at the second; after the last, nobody asks.
        at = next((reported for reported in trial.values if reported >= step), None)
        if at is not None:
            known[at] = {str(s): r for s, r in measured.items() if s <= at}
    return known


def _within(value: float, lower: float | None, upper: float | None) -> bool:
    return lower is not None and upper is not None and lower <= value <= upper


def oriented_finals(recording: Recording) -> FloatArray:
    """Return the final values, smaller is better, what is not finite as infinity: (n_trials,)."""
    sign = 1.0 if recording.direction == "minimize" else -1.0
    return np.array([oriented(t.final, int(sign)) for t in recording.trials])


def _judged(
    recording: Recording,
    trials: Sequence[RecordedTrial],
    study: Study,
    order: int,
    seconds: Sequence[float],
    inside: Sequence[float],
) -> Replay:
    finals = oriented_finals(recording)[order_of(recording, order)]
    ranked = np.sort(finals)
    best, median = float(ranked[0]), float(np.median(ranked))
    top = float(ranked[max(round(TOP * len(ranked)), 1) - 1])
    ended = study.get_trials(deepcopy=False)
    complete = [finals[t.number] for t in ended if t.state == TrialState.COMPLETE]
    found = min(complete, default=math.inf)
    if found == best:
        regret = 0.0
    elif math.isfinite(median) and math.isfinite(found):
        regret = float((found - best) / max(median - best, 1e-300))
    else:  # more than half diverged: any finite end is far better than the median
        regret = 0.0 if math.isfinite(found) else math.inf
    pruned = [finals[t.number] for t in ended if t.state == TrialState.PRUNED]
    return Replay(
        order=order,
        epochs_spent=len(seconds) / sum(len(t.values) for t in trials),
        regret=regret,
        succeeded=bool(math.isfinite(found) and found <= top and regret <= MAX_REGRET),
        wrongly_pruned=int(sum(value <= top for value in pruned)),
        n_pruned=len(pruned),
        seconds=float(sum(seconds)),
        slowest_decision=max(seconds, default=0.0),
        covered=sum(inside),
        predictions=len(inside),
    )
