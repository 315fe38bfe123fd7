"""Why a trial was kept or pruned: a sentence, a table of steps, and what is known now."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.prediction._audit import audited
from lyap_optuna.prediction._explained_notes import (
    grounds_of,
    rests_of,
    what_is_said_now,
    what_was_measured,
    why_not_judged,
)
from lyap_optuna.prediction._explained_steps import (
    ExplainedStep,
    aligned,
    compared,
    row_of,
    steps_of,
)
from lyap_optuna.prediction._ranking import NO_READOUTS, TrialPrediction, ranked
from lyap_optuna.prediction._step_model import TOP_FRACTION
from lyap_optuna.prediction._study import StudyModels
from lyap_optuna.prediction.evidence import EVIDENCE, TrialView
from lyap_optuna.records import (
    Decision,
    _keys,
    read_decisions,
)


@dataclass(frozen=True)
class Explanation:
    """The story of a trial; ``str()`` tells it.

    Args:
        number: Trial number.
        state: Trial state.
        sentence: The whole story in one sentence.
        steps: The steps of the table, those with a decision first of all, 16 at most.
        decisions: Recorded decisions, oldest first: the latest one, and earlier ones where
            verdict or evidence changed.
        prediction: What the default predictor says now, on all COMPLETE trials; None where
            nothing can be said.
        rank: The trial's place among those that are ranked now, from 1; None where it is not.
        notes: What else is known, one sentence or two each.
    """

    number: int
    state: TrialState
    sentence: str
    steps: tuple[ExplainedStep, ...]
    decisions: tuple[Decision, ...]
    prediction: TrialPrediction | None
    rank: int | None
    notes: tuple[str, ...]

    def table(self) -> list[dict[str, str]]:
        """Return the steps as rows of text, columns that are empty throughout left out."""
        rows = [row_of(step) for step in self.steps]
        used = [key for key in (rows[0] if rows else {}) if any(row[key] for row in rows)]
        return [{key: row[key] for key in used} for row in rows]

    def text(self, width: int | None = None) -> str:
        """Return the story as plain text.

        Args:
            width: Where sentences are wrapped, and what the table may take: without what fits
                least, the exponents. None leaves each sentence on a line of its own.
        """
        parts = [
            _wrapped([self.sentence], width),
            aligned(self.table(), width),
            _wrapped(self.notes, width),
        ]
        return "\n\n".join("\n".join(part) for part in parts if part)

    def __str__(self) -> str:
        return self.text()


def explain(study: Study, trial_number: int) -> Explanation:
    """Explain why a trial was kept or pruned, or why it rests.

    First comes one sentence; then a table of what was reported, measured and decided at each step,
    as the pruner recorded it while the trial ran; then what is known now: the default predictor's
    word on all COMPLETE trials of the study, and the trial's rank.

    Args:
        study: A study with one objective.
        trial_number: Number of the trial.

    Returns:
        An :class:`Explanation`; its ``str()`` is the story.

    Raises:
        ValueError: The study has several objectives, or no trial has this number.

    Example:
        >>> import optuna
        >>> from lyap_optuna.prediction import explain
        >>> study = optuna.create_study()
        >>> study.add_trial(optuna.create_trial(value=0.5, intermediate_values={0: 0.9, 1: 0.5}))
        >>> print(explain(study, 0).sentence)
        Trial 0 ran to its end, step 1, with value 0.5.
    """
    return explained(study, [trial_number])[0]


def explained(study: Study, trial_numbers: Iterable[int]) -> list[Explanation]:
    """Explain several trials, for hardly more than the work of one.

    Raises:
        ValueError: The study has several objectives, or no trial has one of the numbers.
    """
    models = StudyModels.of_study(study, tuple(EVIDENCE))
    trials = study.get_trials(deepcopy=False)
    chosen = []
    by_number = {trial.number: trial for trial in trials}
    for number in trial_numbers:
        if number not in by_number:
            held = f"it has trials 0 to {len(trials) - 1}" if trials else "it has none"
            raise ValueError(f"Study {study.study_name!r} has no trial {number!r}; {held}.")
        chosen.append(by_number[number])
    # Before the ranking updates the models: a view of the trial alone does not need them.
    views = [models.seen(trial) for trial in chosen]
    ranking = ranked(models, study)
    places = {prediction.number: place for place, prediction in enumerate(ranking)}
    audit = audited(study)
    last = [str(audit)] if audit.condemned else []
    if not any(_keys.READOUTS in t.user_attrs for t in trials):
        last.append(NO_READOUTS)
    return [
        _story(trial, view, models, trials, ranking, places.get(trial.number), last)
        for trial, view in zip(chosen, views, strict=True)
    ]


def _story(
    trial: FrozenTrial,
    view: TrialView,
    models: StudyModels,
    trials: Sequence[FrozenTrial],
    ranking: Sequence[TrialPrediction],
    index: int | None,
    last: Sequence[str],
) -> Explanation:
    decisions = tuple(read_decisions(trial))
    now = None if index is None else ranking[index]
    place = None if index is None else index + 1
    return Explanation(
        number=trial.number,
        state=trial.state,
        sentence=_sentence(trial, view, decisions, models.length),
        steps=steps_of(trial, view, decisions),
        decisions=decisions,
        prediction=None if now is None or now.predicted_value is None else now,
        rank=place,
        notes=(
            *grounds_of(decisions, models.sign),
            *rests_of(trial),
            *why_not_judged(trial, decisions, trials),
            what_was_measured(view),
            what_is_said_now(now, place, len(ranking), trial, models),
            *last,
        ),
    )


def _sentence(
    trial: FrozenTrial, view: TrialView, decisions: Sequence[Decision], length: int
) -> str:
    name = f"Trial {trial.number}"
    where = _where(view, length)
    broken = " It does not meet its constraints." if view.feasible is False else ""
    if view.cut_at is not None:
        return (
            f"{name} is COMPLETE, but was pruned at step {view.cut_at}: the exception did not "
            "reach Optuna, so it was cut short, and the predictor leaves it out."
        )
    if trial.state == TrialState.COMPLETE:
        end = f", step {view.reported[-1]}," if view.steps.size else ""
        return f"{name} ran to its end{end} with value {trial.value:.4g}.{broken}"
    if trial.state == TrialState.PRUNED:
        last = decisions[-1] if decisions and decisions[-1].verdict == "pruned" else None
        if last is None:
            kept = ", although the LyapunovPruner had kept it" if decisions else ""
            return f"{name} was pruned {where}{kept}.{broken}"
        if not view.steps.size or last.step < view.steps[0]:
            where = "before training"
        return f"{name} was pruned {where}: {_why(last)}.{broken}"
    if trial.state == TrialState.RUNNING:
        does = "rests" if trial.user_attrs.get(_keys.RESTING) is True else "is running"
        return f"{name} {does} {where}.{broken}"
    what = "is waiting to be run" if trial.state == TrialState.WAITING else f"failed {where}"
    return f"{name} {what}.{broken}"


def _where(view: TrialView, length: int) -> str:
    n = len(view.steps)
    if not n:
        return "before its first report"
    of = f" of {length}" if length > n else ""
    return f"at step {view.reported[-1]}, after {n}{of} report{'' if n == 1 and not of else 's'}"


def _why(decision: Decision) -> str:
    """Say in part of a sentence why a trial was pruned."""
    if decision.because == "nan":
        return "it had reported nothing but NaN"
    chance = decision.probability
    if decision.because == "rested":
        told = "" if chance is None else f" than its chance of {chance:.2g} to end among the best"
        return f"it rested, and others promised more{told}"
    if chance is None or decision.min_probability is None:
        return decision.reason.rstrip(".") or "no reason was recorded"
    told, least = compared(decision)
    best = f"the best {decision.top_fraction or TOP_FRACTION:.0%}".replace("%", " %")
    end = "" if decision.threshold is None else f" ({decision.threshold:.4g} or better)"
    needed = (
        f"just below the {least} needed to go on"
        if told == f"<{least}"
        else f"{told.replace('<', 'below ')}; to go on, {least} was needed"
    )
    return f"its chance of ending among {best} of trials{end} was {needed}"


def _wrapped(sentences: Sequence[str], width: int | None) -> list[str]:
    if width is None:
        return list(sentences)
    return [line for text in sentences for line in textwrap.wrap(text, max(width, 20))]
