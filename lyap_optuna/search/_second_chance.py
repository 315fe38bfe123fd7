"""A second chance for pruned trials: those that the study, grown since, would go on with."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.prediction._ranking import TrialPrediction, predict_trials
from lyap_optuna.prediction._step_model import TOP_FRACTION
from lyap_optuna.prediction._study import StudyModels
from lyap_optuna.prediction.evidence import check_evidence
from lyap_optuna.records import _keys, number_in, read_decisions, repeat

_TAKEN_UP = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)


@dataclass(frozen=True)
class SecondChance:
    """Which pruned trials were queued again and which were not; ``str()`` says it.

    Args:
        queued: What is thought of those that were queued, the largest chance first.
        left_out: By number of each other pruned trial, why it was not.
    """

    queued: tuple[TrialPrediction, ...]
    left_out: Mapping[int, str]

    def __str__(self) -> str:
        if not self.queued and not self.left_out:
            return "Nothing was queued: no trial of the study was pruned."
        told = ", ".join(f"{p.number} ({p.probability:.2g})" for p in self.queued)
        lines = [
            f"Queued, with the chance of ending among the best (a new trial has {TOP_FRACTION:g}): "
            f"{told}."
            if self.queued
            else "Nothing was queued."
        ]
        if self.left_out:
            counts = Counter(self.left_out.values()).most_common()
            reasons = ", ".join(f"{n} ({reason})" for reason, n in counts)
            lines.append(f"Pruned and not queued: {reasons}.")
        return " ".join(lines)


def second_chance(
    study: Study, n_trials: int, *, evidence: Iterable[str] | None = None
) -> SecondChance:
    """Queue pruned trials that the study, as it is now, would go on with.

    A pruner decides on the few trials that have ended by then. With all COMPLETE trials, the
    default predictor judges each pruned trial again, at its last report. One whose chance of
    ending among the best tenth is above one tenth, which is what a new trial promises, is queued
    by :meth:`optuna.study.Study.enqueue_trial`, with its parameters and the attribute
    ``lyapunov:continues``, its number: :func:`~lyap_optuna.campaign.previous_attempt` tells the
    objective whose checkpoint to look for. Without a checkpoint it begins from the start.
    ``study.optimize``, :func:`freeze_thaw` and campaigns run what is queued first.

    Trials that :func:`freeze_thaw` ended while they rested count as pruned, also untrained ones.
    None is queued twice, nor where a trial of the same parameters is COMPLETE, runs or waits; but
    two calls at the very same moment do not know of each other.

    Args:
        study: A study of one objective, in any storage.
        n_trials: Queue at most so many, those with the largest chance.
        evidence: Kinds of evidence that may count; all of them for None, as in
            :class:`~lyap_optuna.LyapunovPruner`.

    Returns:
        What was queued, what was not, and why; ``str()`` says it.

    Raises:
        ValueError: ``n_trials`` is below 1, a kind of evidence is unknown, or the study has
            several objectives.

    Example:
        >>> import lyap_optuna as lyap, optuna
        >>> study = optuna.create_study()
        >>> for i in range(30):
        ...     study.add_trial(
        ...         optuna.create_trial(value=float(i), intermediate_values={0: i + 0.5})
        ...     )
        >>> study.add_trial(
        ...     optuna.create_trial(
        ...         state=optuna.trial.TrialState.PRUNED,
        ...         intermediate_values={0: 0.1},
        ...         params={"x": 0.5},
        ...         distributions={"x": optuna.distributions.FloatDistribution(0, 1)},
        ...     )
        ... )
        >>> [p.number for p in lyap.second_chance(study, 5).queued]
        [30]
        >>> study.ask().user_attrs["lyapunov:continues"]
        30
    """
    if n_trials < 1:
        raise ValueError(f"At least one trial must be allowed, but got {n_trials=}.")
    models = StudyModels.of_study(study, check_evidence(evidence), TOP_FRACTION)
    trials = study.get_trials(deepcopy=False)
    models.update(trials)
    continued = {number_in(trial, _keys.CONTINUES) for trial in trials}
    taken_up = {_parameters(trial) for trial in trials if trial.state in _TAKEN_UP}
    pruned = [trial for trial in trials if _was_pruned(trial)]
    judged = predict_trials(models, pruned)
    by_chance = sorted(zip(pruned, judged, strict=True), key=lambda pair: -_chance(pair[1][1]))

    queued: list[TrialPrediction] = []
    left_out: dict[int, str] = {}
    for trial, (_, entry, _) in by_chance:
        if trial.number in continued:
            reason = "continued already"
        elif _parameters(trial) in taken_up:
            reason = "a trial of the same parameters is COMPLETE, runs or waits"
        elif entry.feasible is False:
            reason = "constraints not met"
        elif entry.probability is None:
            reason = "nothing can be predicted"
        elif entry.probability <= TOP_FRACTION:
            reason = "no more promising than a new trial"
        elif len(queued) == n_trials:
            reason = f"beyond the {n_trials} asked for"
        else:
            repeat(study, trial, mark=_keys.CONTINUES)
            taken_up.add(_parameters(trial))
            queued.append(entry)
            continue
        left_out[trial.number] = reason
    return SecondChance(tuple(queued), left_out)


def _was_pruned(trial: FrozenTrial) -> bool:
    """Whether it was pruned, or ended by a search while it rested untrained."""
    if trial.state == TrialState.FAIL:
        return any(decision.because == "rested" for decision in read_decisions(trial)[-1:])
    return trial.state == TrialState.PRUNED


def _parameters(trial: FrozenTrial) -> str:
    """Return the parameters of a trial, of a queued one those that are fixed."""
    fixed: Any = trial.system_attrs.get("fixed_params")
    params = {**(fixed if isinstance(fixed, Mapping) else {}), **trial.params}
    return json.dumps(params, sort_keys=True, default=repr)


def _chance(entry: TrialPrediction) -> float:
    return -1.0 if entry.probability is None else entry.probability
