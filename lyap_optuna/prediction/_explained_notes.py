"""What else is known of a trial: from what it was judged, when it rested, what is said now."""

import math
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._numbers import number
from lyap_optuna.prediction._explained_steps import FOOTNOTES
from lyap_optuna.prediction._ranking import TrialPrediction
from lyap_optuna.prediction._step_model import TOP_FRACTION
from lyap_optuna.prediction._study import StudyModels, model_step
from lyap_optuna.prediction.evidence import TrialView, in_words
from lyap_optuna.records import Decision, _keys, interval, read_stretches

_MOST_RESTS = 8
"""Rests that a story tells one by one, the latest."""


def grounds_of(decisions: Sequence[Decision], sign: int) -> list[str]:
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
    return lines + [text for because, text in FOOTNOTES.items() if because in used]


def why_not_judged(
    trial: FrozenTrial, decisions: Sequence[Decision], trials: Sequence[FrozenTrial]
) -> list[str]:
    if decisions or trial.state in (TrialState.WAITING, TrialState.FAIL):
        return []
    if any(read_stretches(t) for t in (trial, *trials)):
        return ["No pruner judged it: freeze_thaw searched this study, and asks none."]
    if any(_keys.DECISION in t.user_attrs for t in trials):
        return [
            "The LyapunovPruner recorded no decision on it: no check was due, or too few trials "
            "had ended."
        ]
    return [
        "No LyapunovPruner judged it, nor any other trial of this study: another pruner did, or "
        "none."
    ]


def what_was_measured(view: TrialView) -> str:
    step = view.measured_at
    if step is None:
        alone = ", only a baseline before training" if view.baseline is not None else ""
        return f"It has no Lyapunov readout in training{alone}."
    readout = view.readouts[step]
    sentence = (
        f"Its latest readout, at step {step}: maximum exponent {number(readout.max)}, mean "
        f"exponent {'-' if readout.mean is None else number(readout.mean)} nats/step"
    )
    before = view.baseline_of(readout)
    if before is None or before.state != readout.state:
        return f"{sentence}; without a baseline there is no displacement."
    moved = number(readout.max - before.max, sign=True)
    if readout.mean is not None and before.mean is not None:
        moved += f" and {number(readout.mean - before.mean, sign=True)}"
    return f"{sentence}; displaced by {moved} since before training."


def rests_of(trial: FrozenTrial) -> list[str]:
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


def what_is_said_now(
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
