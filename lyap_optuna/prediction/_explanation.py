"""Why a trial was kept or pruned, in words."""

from dataclasses import dataclass

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.prediction._audit import audited
from lyap_optuna.prediction._ranking import NO_READOUTS, TrialPrediction, predict_trials
from lyap_optuna.prediction._study import StudyModels, describe
from lyap_optuna.prediction.evidence import EVIDENCE, TrialView
from lyap_optuna.records import Decision, _keys, interval, read_decisions, read_stretches


@dataclass(frozen=True)
class Explanation:
    """The story of a trial; ``str()`` tells it.

    Args:
        number: Trial number.
        state: Trial state.
        decisions: Recorded decisions, oldest first: the latest one, and earlier ones where
            verdict or evidence changed.
        prediction: What the default predictor says now, where no decision is recorded;
            None otherwise, and where nothing can be said.
        lines: The story, one sentence or two each.
    """

    number: int
    state: TrialState
    decisions: tuple[Decision, ...]
    prediction: TrialPrediction | None
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def explain(study: Study, trial_number: int) -> Explanation:
    """Explain why a trial was kept or pruned, or why it rests.

    What the pruner recorded while the trial ran is told as it was, and so is when
    :func:`~lyap_optuna.freeze_thaw` let it rest and went on with it, and what was thought of it
    then. For a trial without a
    recorded decision, the default predictor says what it makes of it now, and the story says so.

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
        >>> print(explain(study, 0).lines[0])
        Trial 0 is COMPLETE with value 0.5, after 2 reports, the last at step 1.
    """
    models = StudyModels.of_study(study, tuple(EVIDENCE))
    trials = study.get_trials(deepcopy=False)
    found = [t for t in trials if t.number == trial_number]
    if not found:
        held = f"it has trials 0 to {len(trials) - 1}" if trials else "it has none"
        raise ValueError(f"Study {study.study_name!r} has no trial {trial_number!r}; {held}.")
    trial = found[0]
    view = models.seen(trial)
    decisions = tuple(read_decisions(trial))
    lines = [_opening(trial, view), _measured(view)]
    rests = _rests(trial)
    lines += rests
    prediction: TrialPrediction | None = None
    if decisions:
        if len(decisions) > 1:
            lines.append("Decisions recorded while it ran, where verdict or evidence changed:")
        lines += [_told(decision) for decision in decisions]
        if trial.state == TrialState.PRUNED and decisions[-1].verdict != "pruned":
            lines.append("The objective itself ended it: the pruner had kept it.")
    else:
        lines.append(
            "No decision is recorded: it has only paused, and no pruner was asked."
            if rests
            else "No decision is recorded: no check was due, or another pruner judged it."
        )
        models.update(trials)
        prediction, sentence = _now(trial, models)
        lines.append(sentence)
    audit = audited(study)
    if audit.condemned:
        lines.append(str(audit))
    if not any("lyapunov:readouts" in t.user_attrs for t in trials):
        lines.append(NO_READOUTS)
    return Explanation(trial.number, trial.state, decisions, prediction, tuple(lines))


def _opening(trial: FrozenTrial, view: TrialView) -> str:
    value = f" with value {trial.value:.4g}" if trial.state == TrialState.COMPLETE else ""
    reports = (
        f", after {_count(len(view.steps), 'report')}, the last at step {view.reported[-1]}"
        if view.steps.size
        else "; it has reported nothing"
    )
    broken = "; it does not meet its constraints" if view.feasible is False else ""
    cut = (
        ""
        if view.cut_at is None
        else f" It was pruned at step {view.cut_at}, but the exception did not reach Optuna: it "
        "was cut short, and the predictor leaves it out."
    )
    return f"Trial {trial.number} is {trial.state.name}{value}{reports}{broken}.{cut}"


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


_MOST_RESTS = 8
"""Rests that a story tells one by one, the latest."""


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
    return f"{max(seconds, 0.0):.2g} s"


def _told(decision: Decision) -> str:
    verdict = "Pruned" if decision.verdict == "pruned" else "Kept"
    where = "" if (n := decision.copied_from) is None else f", as trial {n} of another study"
    when = f"at step {decision.step}" if decision.step >= 0 else "before training"
    return f"{verdict} {when}{where}. {decision.reason}"


def _now(trial: FrozenTrial, models: StudyModels) -> tuple[TrialPrediction | None, str]:
    if trial.state in (TrialState.WAITING, TrialState.FAIL):
        return None, f"Nothing is predicted for a trial that is {trial.state.name}."
    ((view, entry, predicted),) = predict_trials(models, [trial])
    where = "before its first report" if entry.step is None else f"at step {entry.step}"
    on = _count(len(models.complete), "COMPLETE trial")
    if predicted is None:
        return None, f"The default predictor predicts nothing {where}, on {on}."
    unseen = ", by a model that has not seen its value" if view.value is not None else ""
    skill = models.at(predicted.step, refit=True).skill
    how = "" if skill is None else f"rank correlation {skill:.2f} on "
    return entry, (
        f"The default predictor, fitted now on all COMPLETE trials, expects {predicted.value:.4g} "
        f"({interval(predicted.lower, predicted.upper)}) {where} from "
        f"{describe(entry.evidence) or 'no evidence that varies'}{unseen} ({how}{on})."
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
