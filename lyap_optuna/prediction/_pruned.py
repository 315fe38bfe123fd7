"""What pruning cost, as far as that can be known."""

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.study import Study
from optuna.trial import TrialState

from lyap_optuna.prediction._audit import Audit, audited, ended_among_best
from lyap_optuna.prediction._ranking import TrialPrediction, rank_trials
from lyap_optuna.prediction._step_model import TOP_FRACTION
from lyap_optuna.prediction._study import single_direction
from lyap_optuna.records import _keys, keeps_order, number_in, pruned_at

_BEST = f"the best {TOP_FRACTION:.0%}".replace("%", " %")


@dataclass(frozen=True)
class PruningLoss:
    """What became, or would have become, of pruned trials; ``str()`` says it.

    Args:
        pruned: PRUNED trials.
        judged: Those of them of which something is predicted now.
        expected: How many of these would have ended among the best tenth: the sum of their chances.
        likeliest: The one with the largest chance; None where nothing is predicted.
        continued: By number of each pruned trial that was queued again and ran to its end, whether
            it ended among the best tenth.
        audit: What became of trials that were to be pruned and ran on all the same.
    """

    pruned: int
    judged: int
    expected: float
    likeliest: TrialPrediction | None
    continued: dict[int, bool]
    audit: Audit

    def __str__(self) -> str:
        if not self.pruned:
            return "No trial was pruned."
        lines = []
        if self.audit.condemned:
            lines.append(str(self.audit))
        if self.continued:
            wrong = sum(self.continued.values())
            n = len(self.continued)
            lines.append(
                f"Of {n} pruned trial{'s' * (n > 1)} that got a second chance and ran to the end, "
                f"{wrong} ended among {_BEST}."
            )
        if not lines:
            lines.append(
                "What pruning lost is not known: no pruned trial of this study was run to its end."
            )
        if self.likeliest is not None and self.likeliest.probability is not None:
            best = self.likeliest
            lines.append(
                f"The predictor's own estimate, now: of {self.judged} pruned "
                f"trial{'s' * (self.judged > 1)}, {self.expected:.1f} would have ended among "
                f"{_BEST}; the likeliest is trial {best.number}, with a chance of "
                f"{best.probability:.2g}."
            )
        return " ".join(lines)


def pruning_loss(study: Study, *, ranking: Sequence[TrialPrediction] | None = None) -> PruningLoss:
    """Say what pruning lost: as known of trials that ran on, and as predicted of the others.

    Args:
        study: A study with one objective.
        ranking: What :func:`rank_trials` says of the study, where it is at hand.

    Returns:
        A :class:`PruningLoss`; its ``str()`` says it.

    Raises:
        ValueError: The study has several objectives.

    Example:
        >>> import optuna
        >>> from lyap_optuna.prediction import pruning_loss
        >>> print(pruning_loss(optuna.create_study()))
        No trial was pruned.
    """
    sign = single_direction(study)
    trials = study.get_trials(deepcopy=False)
    pruned = {t.number for t in trials if t.state == TrialState.PRUNED}
    ranking = rank_trials(study) if ranking is None else ranking
    judged = [p for p in ranking if p.number in pruned and p.probability is not None]
    chances = [p.probability for p in judged if p.probability is not None]
    ordered = keeps_order(study._storage)
    complete = [
        t for t in trials if t.state == TrialState.COMPLETE and pruned_at(t, ordered) is None
    ]
    again = {
        i: number
        for i, t in enumerate(complete)
        if (number := number_in(t, _keys.CONTINUES)) in pruned and number is not None
    }
    ended = ended_among_best(complete, dict.fromkeys(again, TOP_FRACTION), sign)
    return PruningLoss(
        pruned=len(pruned),
        judged=len(judged),
        expected=sum(chances),
        likeliest=max(judged, key=lambda p: p.probability or 0.0, default=None),
        continued={again[i]: best for i, best in ended.items()},
        audit=audited(study),
    )
