"""How well each kind of evidence foretells the final value, out of sample."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optuna.study import Study

from lyap_optuna.prediction._study import StudyModels, describe
from lyap_optuna.prediction.evidence import TrialView, check_evidence


@dataclass(frozen=True)
class EvidenceSkill:
    """What one kind of evidence is worth at one step.

    Args:
        step: The step.
        evidence: Name of the kind, or the names of all that vary joined by ``" + "``.
        rank_correlation: Spearman correlation of leave-one-out predictions from it alone with
            the final values, over the trials counted in ``n_trials``; None where the kind does not
            vary, or trials are too few.
        n_trials: Fitted COMPLETE trials that have this evidence at the step, 256 at most.
        share: The share of the variance of final values that the kind explains, beside the others:
            the posterior's mean; None where it does not vary, and for all together.
        share_lower: Lower end of the share's 80 % interval.
        share_upper: Upper end of it.
        chosen: Whether the predictor uses exactly this: all kinds that vary.
    """

    step: int
    evidence: str
    rank_correlation: float | None
    n_trials: int
    share: float | None = None
    share_lower: float | None = None
    share_upper: float | None = None
    chosen: bool = False


def prediction_skill(
    study: Study,
    *,
    steps: Sequence[int] | None = None,
    evidence: Iterable[str] | None = None,
) -> list[EvidenceSkill]:
    """Measure, out of sample, how well each kind of evidence foretells the final value.

    Skill of a worthless kind is around zero or below it: with n trials, a correlation below
    about 2 / sqrt(n - 1) is no sign of skill. Beside it stands the share that the predictor gives
    the kind when it weighs all of them together.

    Args:
        study: A study with one objective.
        steps: The steps to look at. By default the first eight reported ones, then the 16th,
            32nd and so on, and each at which a readout was taken (at most 32 steps). Where steps
            do not ascend, they are the numbers of the reports, from 0.
        evidence: Kinds of evidence to look at; all by default.

    Returns:
        By step, one :class:`EvidenceSkill` for each kind and, where several vary, one for all of
        them together. Empty where no COMPLETE trial reported a value.

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
    together = StudyModels.of_study(study, kinds := check_evidence(evidence))
    together.update(study.get_trials(deepcopy=False))
    skills: list[EvidenceSkill] = []
    for step in _early_steps(together.complete) if steps is None else steps:
        model = together.at(step, refit=True)
        for kind in kinds:
            single = together.of((kind,)).at(step, refit=True) if len(kinds) > 1 else model
            share, lower, upper = model.shares.get(kind, (None, None, None))
            used = model.kinds == (kind,)
            skills.append(
                EvidenceSkill(
                    step, kind, single.skill, single.n_trials, share, lower, upper, chosen=used
                )
            )
        if len(model.kinds) > 1:
            name = describe(model.kinds)
            skills.append(EvidenceSkill(step, name, model.skill, model.n_trials, chosen=True))
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
