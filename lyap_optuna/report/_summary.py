"""What a study found: skill, pruning, ranking, and what to hold against these numbers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.prediction import AddedSkill, EvidenceSkill, PruningLoss, TrialPrediction
from lyap_optuna.prediction._pruned import pruning_loss
from lyap_optuna.prediction._ranking import ranked
from lyap_optuna.prediction._skill import added_at, correlation_interval, early_steps, skills_at
from lyap_optuna.prediction._study import StudyModels
from lyap_optuna.prediction.evidence import EVIDENCE, in_words
from lyap_optuna.records import _keys
from lyap_optuna.visualization import _pruning_timeline

N_STEPS = 3
"""Steps that a table of skill shows: what is known early is what counts."""

_FEW = 30
"""COMPLETE trials below which their number is a caveat: with 30, the 80 % interval of a rank
correlation of 0.5 is 0.4 wide."""


@dataclass(frozen=True)
class StudySummary:
    """What a study found.

    Args:
        name: The study's name.
        sign: 1 where it minimises its one objective, -1 where it maximises it; None where it has
            several, and then nothing is predicted.
        states: Trials by state.
        best: The best trial; None where none is COMPLETE or feasible, or of several objectives.
        ranking: Of :func:`~lyap_optuna.rank_trials`.
        skills: Of :func:`~lyap_optuna.prediction_skill`.
        added: What the exponents and their displacement added, by step.
        steps_spent: Steps that all trials reported.
        steps_saved: Steps that pruned trials were short of the longest COMPLETE one.
        paused: Whether trials have rested; what was saved is not known then.
        loss: What pruning lost; None of several objectives.
        caveats: What to hold against these numbers, a sentence or two each.
        steps: The steps that were asked for; empty for the usual ones.
    """

    name: str
    sign: int | None
    states: dict[str, int]
    best: FrozenTrial | None
    ranking: tuple[TrialPrediction, ...]
    skills: tuple[EvidenceSkill, ...]
    added: tuple[AddedSkill, ...]
    steps_spent: int
    steps_saved: int
    paused: bool
    loss: PruningLoss | None
    caveats: tuple[str, ...]
    steps: tuple[int, ...] = ()

    @property
    def overview(self) -> str:
        """How many trials in which state, and the best of them."""
        n = sum(self.states.values())
        counts = ", ".join(f"{count} {state}" for state, count in self.states.items())
        text = f"{_count(n, 'trial')}{f': {counts}' if n else ''}."
        if self.best is not None:
            text += f" The best is trial {self.best.number}, with value {self.best.value:.4g}."
        return text

    @property
    def added_in_words(self) -> str:
        """What the exponents themselves added, at the first step at which that is known."""
        if self.added:
            return str(self.added[0])
        return (
            "What the exponents themselves added is not known: it takes readouts, other evidence, "
            "and some trials that ran to their end."
        )

    @property
    def shown_steps(self) -> list[int]:
        """The steps that a table of skill shows: those asked for, or the first that predict."""
        return list(self.steps or predicting(self.skills)[:N_STEPS])

    @property
    def hindsight_in_words(self) -> str:
        """Why one kind can seem better than all together, where one does; else empty."""
        weaker: list[tuple[float, EvidenceSkill, EvidenceSkill]] = []
        for step in self.shown_steps:
            known = [s for s in self.skills if s.step == step and s.rank_correlation is not None]
            best = max(known, key=_correlation, default=None)
            for together in known:
                if (
                    together.chosen
                    and best is not None
                    and _correlation(best) > _correlation(together)
                ):
                    weaker.append((_correlation(best) - _correlation(together), best, together))
        if not weaker:
            return ""
        _, best, together = max(weaker, key=lambda found: found[0])
        name, n = in_words([best.evidence], self.sign or 1), together.n_trials
        few = f"{n} trials are too few to learn what each kind is worth, and " if n < _FEW else ""
        later = ", and look again when more trials have run to the end" if few else ""
        return (
            f"At step {best.step} {name} alone did better than all together "
            f"({_correlation(best):.2f} against {_correlation(together):.2f}): {few}which is the "
            "best is known only in hindsight, which flatters it. Go by all together" + later + "."
        )

    @property
    def pruning_in_words(self) -> str:
        """What pruning saved, and what it lost."""
        total = self.steps_spent + self.steps_saved
        if self.steps_saved:
            what = "Ending trials early" if self.paused else "Pruning"
            share = f"{self.steps_saved / total:.0%}".replace("%", " %")
            saved = (
                f"{what} saved {self.steps_saved} of the {total} steps that all trials would have "
                f"taken ({share})."
            )
        else:
            saved = f"Pruning saved nothing of {_count(self.steps_spent, 'step')}."
        return f"{saved} {self.loss}" if self.loss is not None and self.loss.pruned else saved


def summarize(
    study: Study, *, steps: Sequence[int] | None = None, most_steps: int | None = None
) -> StudySummary:
    """Gather what a study found, of any study and storage.

    Args:
        study: A study. Of one with several objectives only trials and steps are counted.
        steps: The steps at which skill is measured; by default those of
            :func:`~lyap_optuna.prediction_skill`.
        most_steps: Measure it no further than at the first so many steps at which something
            predicts: each takes its time.

    Returns:
        A :class:`StudySummary`.

    Example:
        >>> import optuna
        >>> from lyap_optuna.report import summarize
        >>> study = optuna.create_study()
        >>> study.add_trial(optuna.create_trial(value=0.5, intermediate_values={0: 0.9, 1: 0.5}))
        >>> print(summarize(study).overview)
        1 trial: 1 COMPLETE. The best is trial 0, with value 0.5.
    """
    trials = study.get_trials(deepcopy=False)
    single = len(study.directions) == 1
    timeline = _pruning_timeline._get_info(study)
    ranking: list[TrialPrediction] = []
    skills: list[EvidenceSkill] = []
    added: list[AddedSkill] = []
    if single:
        models = StudyModels.of_study(study, tuple(EVIDENCE))  # of which each is fitted once
        ranking = ranked(models, study)
        for step in early_steps(models) if steps is None else steps:
            skills += skills_at(models, step)
            if (found := added_at(models, step)) is not None:
                added.append(found)
            if len(predicting(skills)) == most_steps:
                break
    states = Counter(trial.state.name for trial in trials)
    return StudySummary(
        name=study.study_name,
        sign=(-1 if study.direction.name == "MAXIMIZE" else 1) if single else None,
        states={s.name: states[s.name] for s in TrialState if states[s.name]},
        best=_best(trials, ranking),
        ranking=tuple(ranking),
        skills=tuple(skills),
        added=tuple(added),
        steps_spent=timeline.n_spent,
        steps_saved=timeline.n_saved,
        paused=timeline.paused,
        loss=pruning_loss(study, ranking=ranking) if single else None,
        caveats=tuple(_caveats(trials, single)),
        steps=tuple(steps or ()),
    )


def predicting(skills: Iterable[EvidenceSkill]) -> list[int]:
    """Return the steps at which something predicts."""
    return sorted({s.step for s in skills if s.rank_correlation is not None})


def _correlation(skill: EvidenceSkill) -> float:
    """Return the rank correlation as it is shown."""
    return round(skill.rank_correlation or 0.0, 2)


def _best(trials: list[FrozenTrial], ranking: Sequence[TrialPrediction]) -> FrozenTrial | None:
    """Return the first COMPLETE trial of the ranking, where an infinite value is the worst."""
    ended = (p.number for p in ranking if p.value is not None and p.feasible is True)
    number = next(ended, None)
    return next((trial for trial in trials if trial.number == number), None)


def _caveats(trials: list[FrozenTrial], single: bool) -> list[str]:
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    told = []
    if not single:
        told.append("The study has several objectives: nothing is predicted, and nothing ranked.")
    if single and len(complete) < _FEW:
        ends = correlation_interval(0.5, len(complete))
        n = _count(len(complete), "trial")
        told.append(
            f"{f'Only {n}' if complete else 'No trial'} ran to the end: "
            + (
                f"{'too few' if complete else 'nothing'} to measure on."
                if ends is None
                else "what is measured on so few is uncertain (80 % interval of a rank correlation "
                f"of 0.50: {ends[0]:.2f} to {ends[1]:.2f})."
            )
        )
    if single and any(t.state == TrialState.PRUNED for t in trials):
        told.append(
            "Skill is measured on the trials that ran to the end, and pruning chose which these "
            "are: among all trials it may be larger or smaller."
        )
    measured = [t for t in complete if _keys.READOUTS in t.user_attrs]
    if not any(_keys.READOUTS in t.user_attrs for t in trials):
        told.append("No trial has Lyapunov readouts: all rests on the other evidence.")
    elif len(measured) < len(complete):
        missing = len(complete) - len(measured)
        told.append(f"{missing} of {_count(len(complete), 'COMPLETE trial')} have no readouts.")
    if not any(k in t.user_attrs for t in trials for k in (_keys.DECISION, _keys.STRETCHES)):
        told.append("No LyapunovPruner judged the trials of this study: another pruner, or none.")
    if running := sum(t.state == TrialState.RUNNING for t in trials):
        told.append(f"{_count(running, 'trial')} still RUNNING: these numbers will change.")
    if single:
        told.append(
            "Predictions are those of the default predictor on all COMPLETE trials, as Optuna does "
            "not store pruners. One study does not settle which search is better; `lyap-optuna "
            "replay` compares them in many orders."
        )
    return told


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
