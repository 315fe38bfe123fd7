"""How many prunings were wrong, as far as the trials that were let run on can tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.prediction._scores import Scale
from lyap_optuna.prediction._step_model import TOP_FRACTION
from lyap_optuna.prediction._study import single_direction
from lyap_optuna.prediction.evidence.base import is_feasible, oriented
from lyap_optuna.records import keeps_order, pruned_at, read_decisions


@dataclass(frozen=True)
class Audit:
    """What became of condemned trials that ran on all the same; ``str()`` says it.

    Args:
        condemned: COMPLETE trials that the pruner would have pruned, had ``audit=`` not kept them.
        wrong: Those of them that ended among the best of the feasible COMPLETE trials, by the
            ``top_fraction`` of the pruner.
    """

    condemned: int
    wrong: int

    def __str__(self) -> str:
        if not self.condemned:
            return "No condemned trial has run to its end."
        return (
            f"Of {self.condemned} condemned trial{'' if self.condemned == 1 else 's'} that ran on "
            f"to the end (audit), {self.wrong} ended among the best: "
            f"{self.wrong / self.condemned:.0%} of prunings were wrong."
        )


def audited(study: Study) -> Audit:
    """Count the condemned trials that ran on, and those of them that ended among the best.

    Args:
        study: A study with one objective, run with ``LyapunovPruner(audit=...)``.

    Returns:
        An :class:`Audit`; its ``str()`` is a sentence.

    Raises:
        ValueError: The study has several objectives.

    Example:
        >>> import optuna
        >>> from lyap_optuna.prediction import audited
        >>> audited(optuna.create_study())
        Audit(condemned=0, wrong=0)
    """
    sign = single_direction(study)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ordered = keeps_order(study._storage)
    trials = [trial for trial in complete if pruned_at(trial, ordered) is None]
    condemned = {
        i: decision.top_fraction or TOP_FRACTION
        for i, trial in enumerate(trials)
        for decision in read_decisions(trial)
        if decision.because == "audit"
    }
    if not condemned:
        return Audit(0, 0)
    return Audit(len(condemned), sum(ended_among_best(trials, condemned, sign).values()))


def ended_among_best(
    complete: Sequence[FrozenTrial], asked: Mapping[int, float], sign: int
) -> dict[int, bool]:
    """Return which COMPLETE trials ended among the best of those that are feasible.

    Args:
        complete: All COMPLETE trials.
        asked: By place in ``complete`` of a trial, the fraction of trials that are the best.
        sign: 1 where the study minimises and -1 where it maximises.
    """
    if not asked:
        return {}
    values = np.array([oriented(t.values[0], sign) for t in complete])
    feasible = np.array([is_feasible(t) is not False for t in complete], dtype=np.bool_)
    scale = Scale.of(values, feasible)
    scores = scale.score_of(values)
    ends = {fraction: scale.threshold(fraction) for fraction in set(asked.values())}
    return {
        i: bool(feasible[i] and (end := ends[fraction]) is not None and scores[i] <= end)
        for i, fraction in asked.items()
    }
