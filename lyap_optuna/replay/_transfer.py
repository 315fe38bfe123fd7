"""Evidence that travels: a predictor fitted on one recorded study, applied to another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lyap_optuna.prediction._prior import EarlierStudy
from lyap_optuna.prediction._scores import rank_correlation
from lyap_optuna.prediction._study import StudyModels
from lyap_optuna.prediction.evidence import EVIDENCE, TrialView
from lyap_optuna.replay._recording import Recording


@dataclass(frozen=True)
class TransferSkill:
    """How well one kind of evidence, learned on one study, ranks the trials of another.

    Args:
        fitted_on: Name of the recording whose trials were learned from.
        applied_to: Name of the one whose trials were ranked, without their values.
        evidence: Kind of evidence.
        step: The step.
        rank_correlation: Spearman correlation of prediction and final value; on the diagonal that
            of leave-one-out predictions. None where the kind has no skill where it was learned.
    """

    fitted_on: str
    applied_to: str
    evidence: str
    step: int
    rank_correlation: float | None


def transfer_skill(
    recordings: Sequence[Recording], *, steps: Sequence[int] = (1, 2, 4)
) -> list[TransferSkill]:
    """Fit each kind of evidence on each recording, and apply it to each other.

    Ranks within a study stand for the numbers, as ``prior_studies`` of
    :class:`~lyap_optuna.LyapunovPruner` uses them.

    Args:
        recordings: The recordings, each with the state whose exponents are to be compared.
        steps: The steps.

    Returns:
        One :class:`TransferSkill` per pair, kind and step.

    Raises:
        ValueError: Two recordings have the same name.

    Example:
        >>> import optuna
        >>> from lyap_optuna.replay import Recording, transfer_skill
        >>> recordings = []
        >>> for name, sign in (("a", 1.0), ("b", 2.0)):
        ...     study = optuna.create_study(study_name=name)
        ...     for i in range(20):
        ...         study.add_trial(
        ...             optuna.create_trial(intermediate_values={1: i * sign, 2: i}, value=i)
        ...         )
        ...     recordings.append(Recording.from_study(study))
        >>> [s.rank_correlation for s in transfer_skill(recordings, steps=[1])
        ...  if s.evidence == "loss" and s.fitted_on == "a" and s.applied_to == "b"]
        [1.0]
    """
    names = [recording.name for recording in recordings]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Recordings must have different names, but several are called {twice}.")
    views = {recording.name: _views(recording) for recording in recordings}
    earlier = {name: EarlierStudy(found, tuple(EVIDENCE)) for name, found in views.items()}
    skills = []
    for source, study in earlier.items():
        for step in steps:
            experts = {expert.kind: expert for expert in study.experts(step)}
            for target, found in views.items():
                reached = [view for view in found if view.reached(step)]
                values = np.array([np.inf if v.value is None else v.value for v in reached])
                for kind in EVIDENCE:
                    expert = experts.get(kind)
                    skill: float | None = None
                    if expert is not None and source == target:
                        skill = expert.skill
                    elif expert is not None:
                        scores = expert.scores(reached, reached)
                        skill = rank_correlation(scores, values) if np.ptp(scores) else None
                    skills.append(TransferSkill(source, target, kind, step, skill))
    return skills


def _views(recording: Recording) -> list[TrialView]:
    models = StudyModels(1 if recording.direction == "minimize" else -1, ())
    models.update(recording.to_study().get_trials(deepcopy=False))
    return models.finished
