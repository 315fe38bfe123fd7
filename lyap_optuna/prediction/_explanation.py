"""Why a trial was kept or pruned: a sentence, a table of steps, and what is known now."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._numbers import aligned, number
from lyap_optuna.prediction._audit import audited
from lyap_optuna.prediction._ranking import NO_READOUTS, TrialPrediction, ranked
from lyap_optuna.prediction._study import TOP_FRACTION, StudyModels, model_step
from lyap_optuna.prediction.evidence import EVIDENCE, TrialView, in_words
from lyap_optuna.records import (
    Decision,
    _keys,
    baseline_step,
    interval,
    read_decisions,
    read_readouts,
    read_stretches,
)
from lyap_optuna.records._decisions import apart

_MOST_STEPS = 16
"""Rows of the table: those of the decisions, then the first and the last steps."""

_MOST_RESTS = 8
"""Rests that a story tells one by one, the latest."""


@dataclass(frozen=True)
class ExplainedStep:
    """What happened to a trial at one step.

    Args:
        step: The step.
        before_training: Whether nothing had been trained yet.
        value: The reported value; None without a report.
        max: The maximum exponent measured there, nats/step; None without a readout.
        displacement: How far it had moved since before training; None without a baseline.
        decision: What the pruner recorded; None where nothing was recorded.
    """

    step: int
    before_training: bool
    value: float | None
    max: float | None
    displacement: float | None
    decision: Decision | None


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
        rows = [_row(step) for step in self.steps]
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
            _aligned(self.table(), width),
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
    for asked in trial_numbers:
        if asked not in by_number:
            held = f"it has trials 0 to {len(trials) - 1}" if trials else "it has none"
            raise ValueError(f"Study {study.study_name!r} has no trial {asked!r}; {held}.")
        chosen.append(by_number[asked])
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
        steps=_steps(trial, view, decisions),
        decisions=decisions,
        prediction=None if now is None or now.predicted_value is None else now,
        rank=place,
        notes=(
            *_grounds(decisions, models.sign),
            *_rests(trial),
            *_not_judged(trial, decisions, trials),
            _measured(view),
            _now(now, place, len(ranking), trial, models),
            *last,
        ),
    )


# One sentence ---------------------------------------------------------------------------------


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
    told, least = _compared(decision)
    best = f"the best {decision.top_fraction or TOP_FRACTION:.0%}".replace("%", " %")
    end = "" if decision.threshold is None else f" ({decision.threshold:.4g} or better)"
    needed = (
        f"just below the {least} needed to go on"
        if told == f"<{least}"
        else f"{told.replace('<', 'below ')}; to go on, {least} was needed"
    )
    return f"its chance of ending among {best} of trials{end} was {needed}"


def _compared(decision: Decision) -> tuple[str, str]:
    """Return the chance of a decision and the one needed, so that they compare as they did."""
    if decision.probability is None or decision.min_probability is None:
        return "" if decision.probability is None else f"{decision.probability:.2g}", ""
    chance, least = apart(decision.probability, decision.min_probability)
    if chance == least and decision.verdict == "pruned":  # equal in what is stored of them
        chance = f"<{least}"
    return chance.replace("less than ", "<"), least


# A table of steps -----------------------------------------------------------------------------


def _steps(
    trial: FrozenTrial, view: TrialView, decisions: Sequence[Decision]
) -> tuple[ExplainedStep, ...]:
    readouts = read_readouts(trial)
    before = baseline_step(trial, readouts)
    decided = {decision.step: decision for decision in decisions}
    order = list(view.reported)
    others = {*readouts, *decided} - set(order)
    steps = sorted({*others, *order}) if view.in_order else [*sorted(others), *order]
    if len(steps) > _MOST_STEPS:
        chosen = list(decided)[-_MOST_STEPS:]
        rest = [step for step in [*steps[-4:], *steps] if step not in decided]
        chosen += list(dict.fromkeys(rest))[: _MOST_STEPS - len(chosen)]
        steps = [step for step in steps if step in chosen]
    told = []
    for step in steps:
        readout = readouts.get(step)
        base = None if readout is None or step == before else view.baseline_of(readout)
        moved = None
        if readout is not None and base is not None and base.state == readout.state:
            moved = readout.max - base.max
        told.append(
            ExplainedStep(
                step=step,
                before_training=step == before or (not order or step < min(order)),
                value=trial.intermediate_values.get(step),
                max=None if readout is None else readout.max,
                displacement=moved,
                decision=decided.get(step),
            )
        )
    return tuple(told)


def _row(step: ExplainedStep) -> dict[str, str]:
    decision = step.decision
    row = {
        "step": "before" if step.before_training else str(step.step),
        "reported": _number(step.value),
        "max λ": _number(step.max),
        "moved": _number(step.displacement, sign=True),
        "predicted": "",
        "80 % interval": "",
        "chance": "",
        "needed": "",
        "verdict": "",
    }
    if decision is not None:
        row["predicted"] = _number(decision.predicted_value)
        row["80 % interval"] = _span(decision)
        row["chance"], row["needed"] = _compared(decision)
        row["verdict"] = decision.verdict + _VERDICTS.get(decision.because, "")
    return row


_VERDICTS = {"leads": " (a)", "audit": " (b)", "end": " (c)", "unknown": " (d)"}
"""Footnotes of verdicts that the chance alone does not explain."""

_FOOTNOTES = {
    "leads": "(a) Kept although its chance was below what was needed: hardly a COMPLETE trial was "
    "as good at this step.",
    "audit": "(b) It was to be pruned, and runs on so that prunings can be judged (audit=).",
    "end": "(c) It has come as far as every COMPLETE trial: nothing is left to save.",
    "unknown": "(d) Nothing could be predicted yet.",
}


_SPARE = ("moved", "max λ", "reported", "80 % interval", "needed")
"""Columns that a narrow terminal does without, the first of them first."""


def _number(value: float | None, *, sign: bool = False) -> str:
    return "" if value is None else number(value, sign=sign)


def _span(decision: Decision) -> str:
    if decision.predicted_value is None or decision.lower is decision.upper is None:
        return ""
    lower, upper = _number(decision.lower), _number(decision.upper)
    if not lower or not upper:
        return f"{upper} or less" if upper else f"{lower} or more"
    return f"{lower} to {upper}"


def _wrapped(sentences: Sequence[str], width: int | None) -> list[str]:
    if width is None:
        return list(sentences)
    return [line for text in sentences for line in textwrap.wrap(text, max(width, 20))]


def _aligned(rows: list[dict[str, str]], width_limit: int | None = None) -> list[str]:
    """Return rows below their headings, words to the left, numbers to the right."""
    if not rows:
        return []
    whole = rows
    for key in {"reported", "max λ", "moved", "predicted"} & rows[0].keys():
        texts = aligned([row[key] for row in rows])
        rows = [row | {key: text} for row, text in zip(rows, texts, strict=True)]
    left = {"80 % interval", "verdict"}
    width = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}

    def line(row: dict[str, str]) -> str:
        cells = (
            text.ljust(width[key]) if key in left else text.rjust(width[key])
            for key, text in row.items()
        )
        return "  ".join(cells).rstrip()

    rule = "─" * (sum(width.values()) + 2 * (len(width) - 1))
    if width_limit is not None and len(rule) > width_limit:
        for spare in _SPARE:
            if spare in rows[0]:
                fewer = [{k: text for k, text in row.items() if k != spare} for row in whole]
                return _aligned(fewer, width_limit)
    return [line({key: key for key in rows[0]}), rule, *map(line, rows)]


# What else is known ---------------------------------------------------------------------------


def _grounds(decisions: Sequence[Decision], sign: int) -> list[str]:
    """Say from what the last decision was made, and what the marks in the table mean."""
    lines = []
    if decisions:
        last = decisions[-1]
        when = f"at step {last.step}" if last.step >= 0 else "before training"
        where = "" if (n := last.copied_from) is None else f", as trial {n} of another study"
        if last.predicted_value is not None:
            shares = sorted(last.shares.items(), key=lambda item: -item[1])
            kinds = [f"{in_words([kind], sign)} {share:.0%}" for kind, share in shares]
            told = ", ".join(kinds).replace("%", " %") or in_words(last.evidence, sign)
            on = _count(last.n_trials, "COMPLETE trial")
            lines.append(
                f"Predicted then {when}{where}, on {on}, from {told or 'no evidence that varies'}"
                + (" (shares of the variance of final values)." if kinds else ".")
            )
        elif last.told and last.because == "chance":  # written by an earlier version
            lines.append(f"Recorded {when}{where}: {last.told}")
        if last.because == "infeasible":
            lines.append("No COMPLETE trial was feasible, so there were no best to compare with.")
    used = {decision.because for decision in decisions}
    return lines + [text for because, text in _FOOTNOTES.items() if because in used]


def _not_judged(
    trial: FrozenTrial, decisions: Sequence[Decision], trials: Sequence[FrozenTrial]
) -> list[str]:
    if decisions or trial.state in (TrialState.WAITING, TrialState.FAIL):
        return []
    if read_stretches(trial):
        return ["No LyapunovPruner judged it: freeze_thaw asks none."]
    if any(_keys.DECISION in t.user_attrs for t in trials):
        return [
            "The LyapunovPruner recorded no decision on it: no check was due, or too few trials "
            "had ended."
        ]
    return [
        "No LyapunovPruner judged it, nor any other trial of this study: another pruner did, or "
        "none."
    ]


def _measured(view: TrialView) -> str:
    step = view.measured_at
    if step is None:
        alone = ", only a baseline before training" if view.baseline is not None else ""
        return f"It has no Lyapunov readout in training{alone}."
    readout = view.readouts[step]
    sentence = (
        f"Its latest readout, at step {step}: maximum exponent {readout.max:.3g}, mean exponent "
        f"{'-' if readout.mean is None else format(readout.mean, '.3g')} nats/step"
    )
    before = view.baseline_of(readout)
    if before is None or before.state != readout.state:
        return f"{sentence}; without a baseline there is no displacement."
    moved = f"{readout.max - before.max:+.3g}"
    if readout.mean is not None and before.mean is not None:
        moved += f" and {readout.mean - before.mean:+.3g}"
    return f"{sentence}; displaced by {moved} since before training."


def _rests(trial: FrozenTrial) -> list[str]:
    """Say how often a trial rested and went on, what was thought of it, and whether it rests."""
    stretches = read_stretches(trial)
    if not stretches:
        return []
    rests = trial.state == TrialState.RUNNING and trial.user_attrs.get(_keys.RESTING) is True
    told = []
    reports = max(len(trial.intermediate_values) - sum(s.reports for s in stretches), 0)
    for stretch, then in zip(stretches, [*stretches[1:], None], strict=True):
        reports += stretch.reports
        so_far = f"{_chance(stretch.after)} after {_count(reports, 'report')}"
        if then is not None:
            seconds = then.start - stretch.start - stretch.seconds
            told.append(f"{so_far} ({_duration(seconds)} later {_chance(then.before)})")
        elif rests or stretch.after is not None:
            told.append(so_far)
    earlier = stretches[0].index + max(len(told) - _MOST_RESTS, 0)
    times = stretches[0].index + len(told)
    lines = [
        f"freeze_thaw let it rest {'once' if times == 1 else f'{times} times'}. Its chance of "
        "ending among the best then (and when it went on): "
        + ("..., " if earlier else "")
        + f"{', '.join(told[-_MOST_RESTS:])}."
    ]
    if rests:
        other = stretches[-1].instead
        lines.append(
            "It rests because none that rested promised more than a new trial, which began."
            if other is None
            else f"It rests because trial {other} promised more for its cost, or was drawn to "
            "explore, and went on."
        )
    return lines


def _chance(chance: float | None) -> str:
    return "unknown" if chance is None else f"{chance:.2g}"


def _duration(seconds: float) -> str:
    for unit, name in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(seconds, 0.0):.0f} s" if seconds >= 10 else f"{max(seconds, 0.0):.2g} s"


def _now(
    now: TrialPrediction | None,
    place: int | None,
    n_ranked: int,
    trial: FrozenTrial,
    models: StudyModels,
) -> str:
    """Say what the default predictor makes of the trial now, and where it is ranked."""
    if now is None or place is None:
        return f"Nothing is predicted for a trial that is {trial.state.name}."
    where = "before its first report" if now.step is None else f"at step {now.step}"
    on = _count(len(models.complete), "COMPLETE trial")
    if now.predicted_value is None:
        return f"The default predictor predicts nothing {where}, on {on}."
    told = f"predicted to end at {now.predicted_value:.4g} ({interval(now.lower, now.upper)})"
    view = models.view(trial)
    at = None if now.step is None else int(view.steps[list(view.reported).index(now.step)])
    skill = models.at(model_step(view.steps, at), refit=True).skill
    how = "" if skill is None else f" (rank correlation {skill:.2f}, out of sample)"
    of = f"from {in_words(now.evidence, models.sign) or 'no evidence that varies'}{how}"
    rank = f"rank {place} of {n_ranked}"
    if now.value is not None and math.isfinite(now.value):
        return (
            f"In hindsight, on {on}: {rank}. A model that has not seen its value predicts "
            f"{told.removeprefix('predicted to end at ')} {where}, {of}."
        )
    chance = ""
    if now.probability is not None:
        best = f"the best {TOP_FRACTION:.0%}".replace("%", " %")
        chance = f", chance {now.probability:.2g} of ending among {best}"
    when = "In hindsight" if trial.state.is_finished() else "Now"
    return f"{when}, on {on}: {told}{chance}, {rank}; {where}, {of}."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
