"""What the notes say: of a study what its exponents show, of a trial why it ended as it did.

Our text stands between two markers, which the dashboard does not show; what is around it is the
users' own.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.prediction import Explanation, audited
from lyap_optuna.prediction._study import single_direction
from lyap_optuna.prediction.evidence import in_words
from lyap_optuna.records import _keys, read_stretches
from lyap_optuna.visualization import (
    _exponent_value,
    _prediction_skill,
    _pruning_timeline,
    _spectrum_evolution,
    _style,
)
from lyap_optuna.visualization._figures import Numbers

# Link definitions, which Markdown reads and does not show.
BEGIN = "[//]: # (lyap-optuna: this note, down to its end, is written anew; yours goes around it)"
END = "[//]: # (lyap-optuna: end of the note)"


def with_note(text: str, note: str) -> str:
    """Return ``text`` with ``note`` in place of the one between the markers, or appended."""
    block = f"{BEGIN}\n\n{note}\n\n{END}"
    begin, end = re.escape(BEGIN), re.escape(END)
    # From a begin to an end with no other begin between: what a lost marker leaves is not ours.
    found = re.search(f"{begin}(?:(?!{begin}).)*?{end}", text, re.DOTALL)
    if found:
        return text[: found.start()] + block + text[found.end() :]
    return f"{text}\n\n{block}" if text else block


def note_text(numbers: Numbers) -> str:
    """Return in words, as Markdown, what the exponents of a study show.

    No text from the study is in it, only numbers, this package's own words and such names of layers
    as cannot be markup.
    """
    study = numbers.study
    trials = study.get_trials(deepcopy=False)
    measured = [trial for trial in trials if _keys.READOUTS in trial.user_attrs]
    states = Counter(trial.state.name for trial in measured)
    counts = ", ".join(f"{n} {name}" for name, n in sorted(states.items()))
    parts = [
        f"### Lyapunov exponents\n\n{len(measured)} of {len(trials)} trials have readouts: "
        f"{counts}. Exponents are rates per time step, in natural logarithms (nats/step): at 0 a "
        "small change of the state survives, below 0 it fades, above 0 it grows.",
        *_best_words(numbers),
        *_exponent_words(numbers),
        *_skill_words(numbers),
        *_pruning_words(numbers),
        *_resting_words(trials),
    ]
    return "\n\n".join(parts)


def _best_words(numbers: Numbers) -> list[str]:
    best = numbers.of(_spectrum_evolution.FIGURE)
    if best is None:
        return []
    step = max(best.readouts)
    readout = best.readouts[step]
    words = (
        f"**The best trial** is {best.number}, with value {numbers.study.best_value:.4g}. Its "
        f"maximum exponent at step {step} is {readout.max:.3g} nats/step: a small change of the "
        f"state {_pace(readout.max)}."
    )
    if best.baseline is not None and best.baseline != step:
        before = best.readouts[best.baseline].max
        words += f" Before training it was {before:.3g}."
    if readout.layers:
        each = ", ".join(f"{_layer(name)} {r.max:.3g}" for name, r in readout.layers.items())
        words += f" It is the largest of its layers: {each}."
    return [words]


def _layer(name: str) -> str:
    # A name comes from a shared database: only what cannot be markup is shown.
    return f"`{name}`" if re.fullmatch(r"[A-Za-z0-9_.]{1,60}", name) else "(a layer)"


def _pace(exponent: float) -> str:
    """Say how fast a perturbation changes: the time steps in which it doubles or halves."""
    time = math.log(2) / abs(exponent) if exponent else math.inf
    if time > 1000:
        return "neither doubles nor halves within 1,000 time steps"
    verb = "doubles" if exponent > 0 else "halves"
    if time < 1.05:
        times = "once" if time > 0.95 else f"{float(f'{1 / time:.2g}'):g} times"
        return f"{verb} {times} in a time step"
    return f"{verb} every {float(f'{time:.2g}'):g} time steps"


def _exponent_words(numbers: Numbers) -> list[str]:
    found = numbers.of(_exponent_value.FIGURE)
    if found is None or found.correlation is None or found.n_complete < 5:
        return []
    at = f"at step {found.step}"
    chance = 2 / math.sqrt(found.n_complete - 1)
    told = _style.told_correlation(found.correlation, found.n_complete)
    moved = found.exponent.endswith("displacement")
    what = f"how far the maximum exponent has moved {at}" if moved else f"the maximum exponent {at}"
    if abs(found.correlation) < chance:
        return [
            f"**{what[0].upper()}{what[1:]}** does not go with the final value, beyond chance "
            f"({told}; chance alone reaches {chance:.2f})."
        ]
    lower = found.correlation < 0
    better = lower == (numbers.study.direction == StudyDirection.MINIMIZE)
    more = "The further up it has moved" if moved else "The higher it is"
    return [
        f"**{what[0].upper()}{what[1:]}** goes with the final value. {more}, the "
        f"{'lower' if lower else 'higher'}, and so {'better' if better else 'worse'}, the value "
        f"({told})."
    ]


def _skill_words(numbers: Numbers) -> list[str]:
    skill = numbers.of(_prediction_skill.FIGURE) or []
    first = min((line.steps[0] for line in skill), default=None)
    lines = [line for line in skill if line.steps[0] == first]
    if not lines:
        return []
    lines.sort(key=lambda line: -line.correlations[0])
    sign = single_direction(numbers.study)

    def told(line: _prediction_skill._SkillLine) -> str:
        kinds = line.evidence.split(" + ")
        return in_words(kinds, sign) if len(kinds) == 1 else "all together"

    ranked = ", ".join(f"{told(line)} {line.correlations[0]:.2f}" for line in lines)
    n_trials = max(line.n_trials[0] for line in lines)
    used = [in_words(line.evidence.split(" + "), sign) for line in lines if line.chosen[0]]
    return [
        f"**What predicts the final value** at step {first}: {ranked} (rank correlation of "
        f"predicted and actual value, out of sample, on {n_trials} COMPLETE trials; chance reaches "
        f"{2 / math.sqrt(max(n_trials - 1, 1)):.2f}). "
        + (f"The predictor weighs {used[0]}." if used else "Nothing is predicted there.")
    ]


def _pruning_words(numbers: Numbers) -> list[str]:
    study = numbers.study
    pruning = numbers.of(_pruning_timeline.FIGURE)
    words = []
    if pruning is not None and pruning.n_saved:
        total = pruning.n_saved + pruning.n_spent
        share = f"{pruning.n_saved / total:.0%}".replace("%", " %")
        words.append(f"**Pruning** saved {pruning.n_saved} of {total} steps ({share}).")
    if len(study.directions) == 1 and (audit := audited(study)).condemned:
        words.append(str(audit).replace("%", " %"))
    return [" ".join(words)] if words else []


_MOST_NAMED = 5
"""Resting trials that the note names: those with the largest chance."""


def _resting_words(trials: Sequence[FrozenTrial]) -> list[str]:
    """Say which trials rest, and why."""
    resting = [
        (stretches[-1].after if (stretches := read_stretches(t)) else None, t)
        for t in trials
        if t.state == TrialState.RUNNING and t.user_attrs.get(_keys.RESTING) is True
    ]
    if not resting:
        return []
    resting.sort(key=lambda pair: (pair[0] is None, -(pair[0] or 0.0), pair[1].number))
    named = "; ".join(
        f"trial {trial.number}, {'unknown' if chance is None else format(chance, '.2g')} after "
        f"{len(trial.intermediate_values)} report"
        f"{'' if len(trial.intermediate_values) == 1 else 's'}"
        for chance, trial in resting[:_MOST_NAMED]
    )
    rest = "1 trial rests" if len(resting) == 1 else f"{len(resting)} trials rest"
    return [
        f"**Resting**: {rest}, because freeze_thaw found more promise for the cost in others. "
        f"Chance of ending among the best when it paused, the largest first: {named}."
    ]


def trial_note_text(explanation: Explanation) -> str:
    """Return the story of a trial as Markdown: a sentence, the table of its steps, what is known.

    What was recorded of the trial may be anybody's text: none of it is read as markup.
    """
    # The dashboard puts a button over the end of the first line: that of a heading is free.
    parts = ["### Explanation", f"**{literal(explanation.sentence)}**"]
    if rows := explanation.table():
        heads = list(rows[0])
        # It leaves no room between columns either; an em space is not trimmed.
        lines = [[f"\u2003{literal(head)}" for head in heads], ["---:"] * len(heads)]
        lines += [[f"\u2003{literal(row[head])}" for head in heads] for row in rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts += [literal(note) for note in explanation.notes]
    return "\n\n".join(parts)


def literal(text: str) -> str:
    """Return Markdown that shows ``text`` as it is, on one line."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~&$!:@])", r"\\\1", " ".join(text.split()))
    # At the beginning of a line, what would make it an item or a heading.
    escaped = re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", escaped)
    return re.sub(r"(?i)(www)\.", r"\1\\.", escaped)
