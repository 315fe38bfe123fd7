"""A trial step by step: what was reported, measured and decided, as a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from lyap_optuna import _numbers
from lyap_optuna.prediction.evidence import TrialView
from lyap_optuna.records import Decision, baseline_step, read_readouts
from lyap_optuna.records._decisions import chances_apart

_MOST_STEPS = 16
"""Rows of the table: those of the decisions, then the first and the last steps."""


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


def steps_of(
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


def row_of(step: ExplainedStep) -> dict[str, str]:
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
        row["chance"], row["needed"] = compared(decision)
        row["verdict"] = decision.verdict + _VERDICTS.get(decision.because, "")
    return row


_VERDICTS = {"leads": " (a)", "audit": " (b)", "end": " (c)", "unknown": " (d)"}
"""Footnotes of verdicts that the chance alone does not explain."""

FOOTNOTES = {
    "leads": "(a) Kept although its chance was below what was needed: hardly a COMPLETE trial was "
    "as good at this step.",
    "audit": "(b) It was to be pruned, and runs on so that prunings can be judged (audit=).",
    "end": "(c) It has come as far as every COMPLETE trial: nothing is left to save.",
    "unknown": "(d) Nothing could be predicted yet.",
}


_SPARE = ("moved", "max λ", "reported", "80 % interval", "needed")
"""Columns that a narrow terminal does without, the first of them first."""


def _number(value: float | None, *, sign: bool = False) -> str:
    return "" if value is None else _numbers.number(value, sign=sign)


def _span(decision: Decision) -> str:
    if decision.predicted_value is None or decision.lower is decision.upper is None:
        return ""
    lower, upper = _number(decision.lower), _number(decision.upper)
    if not lower or not upper:
        return f"{upper} or less" if upper else f"{lower} or more"
    return f"{lower} to {upper}"


def aligned(rows: list[dict[str, str]], width_limit: int | None = None) -> list[str]:
    """Return rows below their headings, words to the left, numbers to the right."""
    if not rows:
        return []
    whole = rows
    for key in {"reported", "max λ", "moved", "predicted"} & rows[0].keys():
        texts = _numbers.aligned([row[key] for row in rows])
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
                return aligned(fewer, width_limit)
    return [line({key: key for key in rows[0]}), rule, *map(line, rows)]


def compared(decision: Decision) -> tuple[str, str]:
    """Return the chance of a decision and the one needed, so that they compare as they did."""
    if decision.probability is None or decision.min_probability is None:
        return "" if decision.probability is None else f"{decision.probability:.2g}", ""
    chance, least = chances_apart(decision.probability, decision.min_probability)
    if chance == least and decision.verdict == "pruned":  # equal in what is stored of them
        chance = f"<{least}"
    return chance.replace("less than ", "<"), least
