"""How well each kind of evidence foretells the final value, out of sample."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optuna.study import Study

from lyap_optuna.prediction._predictor import RankPredictor
from lyap_optuna.prediction._study import StudyModels, describe, single_direction
from lyap_optuna.prediction.evidence import TrialView, check_evidence


@dataclass(frozen=True)
class EvidenceSkill:
    """What one kind of evidence is worth at one step.

    Args:
        step: The step.
        evidence: Name of the kind, or names of the chosen combination joined by ``" + "``.
        rank_correlation: Spearman correlation of leave-one-out predictions with the final
            values, over the trials counted in ``n_trials``; None where the kind has no
            feature that varies, or trials are too few.
        n_trials: COMPLETE trials behind the correlation: those that have this evidence at the
            step, 200 at most (a fit uses no more, evenly spaced in the order of their values).
        chosen: Whether the predictor uses it at this step.
    """

    step: int
    evidence: str
    rank_correlation: float | None
    n_trials: int
    chosen: bool = False


def prediction_skill(
    study: Study,
    *,
    steps: Sequence[int] | None = None,
    evidence: Iterable[str] | None = None,
) -> list[EvidenceSkill]:
    """Measure, out of sample, how well each kind of evidence foretells the final value.

    Skill of a worthless kind is around zero or below it: with n trials, a correlation below
    about 2 / sqrt(n - 1) is no sign of skill, and then no row is marked as chosen.

    Args:
        study: A study with one objective.
        steps: The steps to look at. By default the first eight reported ones, then the 16th,
            32nd and so on, and each at which a readout was taken (at most 32 steps).
        evidence: Kinds of evidence to look at; all by default.

    Returns:
        By step, one :class:`EvidenceSkill` for each kind and, where a combination of several
        was chosen, one for that. Empty where no COMPLETE trial reported a value.

    Raises:
        ValueError: The study has several objectives, or a kind of evidence is unknown.

    Example:
        >>> import optuna
        >>> from lyap_optuna.prediction import prediction_skill
        >>> study = optuna.create_study()
        >>> for i in range(20):
        ...     value = i / 20
        ...     study.add_trial(
        ...         optuna.create_trial(value=value, intermediate_values={1: value + 0.1})
        ...     )
        >>> [(s.evidence, s.n_trials) for s in prediction_skill(study) if s.chosen]
        [('loss', 20)]
    """
    sign = single_direction(study)
    kinds = check_evidence(evidence)
    models = StudyModels(sign, kinds, RankPredictor)
    models.update(study.get_trials(deepcopy=False))
    skills: list[EvidenceSkill] = []
    for step in _early_steps(models.complete) if steps is None else steps:
        model = models.at(step, refit=True)
        predictor = model.predictor
        for combination in [(kind,) for kind in kinds] + (
            [model.chosen] if len(model.chosen) > 1 else []
        ):
            skills.append(
                EvidenceSkill(
                    step=step,
                    evidence=describe(combination),
                    rank_correlation=predictor.skills.get(combination),
                    n_trials=predictor.counts.get(combination, 0),
                    chosen=combination == model.chosen,
                )
            )
    return skills


def _early_steps(complete: Sequence[TrialView]) -> list[int]:
    reported = sorted({int(s) for view in complete for s in view.steps})
    early = set(reported[:8])
    position = 15
    while position < len(reported):
        early.add(reported[position])
        position = 2 * position + 1
    measured = {s for view in complete for s in view.readouts if view.reached(s)}
    return sorted(early | set(sorted(measured)[:24]))[:32]
