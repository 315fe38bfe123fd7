"""How well each kind of evidence predicts the final value, out of sample."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.study import Study

from lyap_optuna.prediction._study import StudyModels, describe
from lyap_optuna.prediction.evidence import EVIDENCE, check_evidence
from lyap_optuna.prediction.evidence.base import FloatArray

OURS = ("exponents", "displacement")
"""The kinds of evidence that the probe measures."""

_QUANTILE = 1.2815515655446004  # the normal quantile of 0.9: 80 % intervals, as everywhere

_RESAMPLES = 2000


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
            the posterior's median; None where it does not vary, and for all together.
        share_lower: Lower end of the share's 80 % interval: the posterior's first decile.
        share_upper: Upper end of it: the ninth.
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

    @property
    def interval(self) -> tuple[float, float] | None:
        """80 % interval of the rank correlation; None where it is unknown, or of 3 trials."""
        if self.rank_correlation is None:
            return None
        return correlation_interval(self.rank_correlation, self.n_trials)


def correlation_interval(correlation: float, n: int) -> tuple[float, float] | None:
    """Return the 80 % interval of a rank correlation over n pairs; None for fewer than 4.

    Fisher's z of it has a variance of about 1.06 / (n - 3) (Fieller, Hartley and Pearson, 1957).

    Example:
        >>> from lyap_optuna.prediction._skill import correlation_interval
        >>> [round(end, 2) for end in correlation_interval(0.5, 30)]
        [0.29, 0.67]
    """
    if n < 4:
        return None
    z = math.atanh(max(min(correlation, 1 - 1e-9), -1 + 1e-9))
    reach = _QUANTILE * math.sqrt(1.06 / (n - 3))
    return math.tanh(z - reach), math.tanh(z + reach)


@dataclass(frozen=True)
class AddedSkill:
    """What some kinds of evidence added to all others at one step; ``str()`` says it.

    Args:
        step: The step.
        added: The kinds.
        skill: Rank correlation of out-of-sample predictions from all evidence with final values.
        without: That of predictions from all evidence but theirs, on the same trials.
        lower: Lower end of the 80 % interval of the difference, by resampling trials.
        upper: Its upper end.
        n_trials: COMPLETE trials behind it.
    """

    step: int
    added: tuple[str, ...]
    skill: float
    without: float
    lower: float
    upper: float
    n_trials: int

    @property
    def difference(self) -> float:
        """What was added: ``skill - without``."""
        return self.skill - self.without

    @property
    def shown(self) -> str:
        """The difference, with its sign, of what is shown of ``skill`` and ``without``."""
        return f"{round(self.skill, 2) - round(self.without, 2):+.2f}"

    @property
    def beyond(self) -> str:
        """What the difference is, where chance does not explain it; else empty."""
        if round(self.lower, 2) > 0:
            return "more than chance explains"
        return "worse than chance explains" if round(self.upper, 2) < 0 else ""

    @property
    def measured(self) -> str:
        """The difference, its 80 % interval and whether it is beyond chance, in short."""
        interval = f"{self.lower:+.2f} to {self.upper:+.2f}"
        return f"{self.shown} ({interval}{f', {self.beyond}' if self.beyond else ''})"

    def __str__(self) -> str:
        beyond = (
            f"which is {self.beyond}"
            if self.beyond
            else "which chance explains too: this study alone does not settle it"
        )
        return (
            f"At step {self.step} the {' and '.join(self.added)} added {self.shown} to "
            f"the rank correlation of predicted and actual final values ({self.skill:.2f} with "
            f"them, {self.without:.2f} without, on {self.n_trials} COMPLETE trials; 80 % interval "
            f"of the difference {self.lower:+.2f} to {self.upper:+.2f}), {beyond}."
        )


def prediction_skill(
    study: Study,
    *,
    steps: Sequence[int] | None = None,
    evidence: Iterable[str] | None = None,
) -> list[EvidenceSkill]:
    """Measure, out of sample, how well each kind of evidence predicts the final value.

    Skill of a worthless kind is around zero or below it: with n trials, a correlation below
    about 2 / sqrt(n - 1) is no sign of skill. Beside it stands the share that the predictor gives
    the kind when it weighs all of them together.

    Args:
        study: A study with one objective.
        steps: The steps to evaluate. By default the first eight reported ones, then the 16th,
            32nd and so on, and each at which a readout was taken (at most 32 steps). Where steps
            do not ascend, they are the numbers of the reports, from 0.
        evidence: Kinds of evidence to evaluate; all by default.

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
    models = StudyModels.of_study(study, check_evidence(evidence))
    models.update(study.get_trials(deepcopy=False))
    chosen = early_steps(models) if steps is None else steps
    return [skill for step in chosen for skill in skills_at(models, step)]


def skills_at(models: StudyModels, step: int) -> list[EvidenceSkill]:
    """Measure each kind of evidence of the models at one step, and all of them together."""
    together = models.at(step, refit=True)
    shares = together.share_quantiles(0.1, 0.5, 0.9)
    skills: list[EvidenceSkill] = []
    for kind in models.kinds:
        alone = together if models.kinds == (kind,) else models.of((kind,)).at(step, refit=True)
        lower, share, upper = shares.get(kind, (None, None, None))
        used = together.kinds == (kind,)
        skills.append(
            EvidenceSkill(step, kind, alone.skill, alone.n_trials, share, lower, upper, chosen=used)
        )
    if len(together.kinds) > 1:
        name = describe(together.kinds)
        skills.append(EvidenceSkill(step, name, together.skill, together.n_trials, chosen=True))
    return skills


def added_skill(
    study: Study, added: Iterable[str] = OURS, *, steps: Sequence[int] | None = None
) -> list[AddedSkill]:
    """Measure what some kinds of evidence add to all others, out of sample, on the same trials.

    Args:
        study: A study with one objective.
        added: The kinds; by default what the probe measures.
        steps: The steps to evaluate; by default those of :func:`prediction_skill`.

    Returns:
        One :class:`AddedSkill` for each step at which both can be had; empty where the kinds are
        all there is, or nothing is predicted.

    Raises:
        ValueError: The study has several objectives, or a kind of evidence is unknown.

    Example:
        >>> import optuna
        >>> from lyap_optuna.prediction import added_skill
        >>> added_skill(optuna.create_study())
        []
    """
    added = check_evidence(added)
    models = StudyModels.of_study(study, tuple(EVIDENCE))
    models.update(study.get_trials(deepcopy=False))
    chosen = early_steps(models) if steps is None else steps
    return [found for step in chosen if (found := added_at(models, step, added)) is not None]


def added_at(models: StudyModels, step: int, added: Sequence[str] = OURS) -> AddedSkill | None:
    """Measure what some kinds add to all others of the models at one step; None if unknown."""
    others = tuple(kind for kind in models.kinds if kind not in added)
    if not others:
        return None
    together = models.at(step, refit=True)
    used = tuple(kind for kind in added if kind in together.kinds)
    both = together.unseen, models.of(others).at(step, refit=True).unseen if used else None
    if both[0] is None or both[1] is None:
        return None
    counts = np.isfinite(both[0][0]) & np.isfinite(both[1][0])
    if (n := int(counts.sum())) < 4:
        return None
    a, b, actual = both[0][0][counts], both[1][0][counts], both[0][1][counts]
    drawn = np.random.default_rng(0).integers(0, n, (_RESAMPLES, n))
    rows = np.vstack([np.arange(n), drawn])
    skill, without = (_rank_correlations(x[rows], actual[rows]) for x in (a, b))
    lower, upper = np.nanquantile(skill[1:] - without[1:], [0.1, 0.9])
    return AddedSkill(step, used, float(skill[0]), float(without[0]), float(lower), float(upper), n)


def _rank_correlations(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return Spearman's rank correlation of each row, 0 where one is constant; shape (rows,)."""
    from scipy.stats import rankdata

    x, y = (rankdata(v, axis=1) for v in (a, b))
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
    size = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    shared = (x * y).sum(axis=1)
    found: FloatArray = np.divide(shared, size, out=np.zeros(len(size)), where=size > 0)
    return found


def early_steps(models: StudyModels) -> list[int]:
    """Return the steps at which skill is measured where none are asked for."""
    complete = models.complete
    reported = sorted({int(s) for view in complete for s in view.steps})
    early = set(reported[:8])
    position = 15
    while position < len(reported):
        early.add(reported[position])
        position = 2 * position + 1
    measured = {s for view in complete for s in view.readouts if view.reached(s)}
    return sorted(early | set(sorted(measured)[:24]))[:32]
