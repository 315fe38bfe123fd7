"""Skill and ranking as rows of text, the same on the page and on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from lyap_optuna._numbers import number
from lyap_optuna.prediction import AddedSkill, EvidenceSkill
from lyap_optuna.prediction.evidence import in_words
from lyap_optuna.report._summary import StudySummary

SKILL_COLUMNS = {
    "step": "step",
    "evidence": "evidence",
    "correlation": "rank\ncorrelation",
    "interval": "80 % interval",
    "share": "share",
    "share_interval": "80 % interval\nof the share",
    "n_trials": "trials",
}

SKILL_LEGEND = (
    "Rank correlation of predicted and actual final value, out of sample, on trials that ran to "
    "the end. Share: of the differences between final values, in the prediction from all evidence "
    "(median)."
)


TOO_FEW = "Too few trials ran to their end to say what predicts the final value."
"""Said in place of a table of skill without rows."""


def skill_rows(
    skills: Sequence[EvidenceSkill],
    added: Sequence[AddedSkill],
    sign: int,
    steps: Sequence[int],
) -> list[dict[str, Any]]:
    """Return, step by step, one row per kind of evidence, for all and for all but the exponents."""
    rows: list[dict[str, Any]] = []
    without = {a.step: a for a in added}
    for step in steps:
        of_step = [s for s in skills if s.step == step]
        for i, skill in enumerate(of_step):
            together = " + " in skill.evidence
            name = "all together" if together else in_words([skill.evidence], sign)
            rows.append(
                {
                    "step": step if i == 0 else "",
                    "evidence": name,
                    "correlation": _two(skill.rank_correlation),
                    "interval": _span(skill.interval),
                    "share": None if skill.share is None else f"{100 * skill.share:.0f} %",
                    "share_interval": _percent(skill.share_lower, skill.share_upper),
                    "n_trials": skill.n_trials,
                }
            )
        if step in without:
            a = without[step]
            rows.append(
                {
                    "step": "",
                    "evidence": "all but the exponents",
                    "correlation": _two(a.without),
                    "n_trials": a.n_trials,
                }
            )
    return rows


def skill_table(
    summary: StudySummary,
) -> tuple[dict[str, str], list[dict[str, Any]], str]:
    """Return columns, rows and legend of the table of skill; no rows where nothing predicts."""
    if summary.sign is None:
        return SKILL_COLUMNS, [], SKILL_LEGEND
    rows = skill_rows(summary.skills, summary.added, summary.sign, summary.shown_steps)
    return SKILL_COLUMNS, rows, SKILL_LEGEND


def _two(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _span(ends: tuple[float, float] | None) -> str | None:
    return None if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"


def _percent(lower: float | None, upper: float | None) -> str | None:
    return None if lower is None or upper is None else f"{100 * lower:.0f} to {100 * upper:.0f} %"


def in_a_cell(params: Mapping[str, Any], most: int | None = None) -> str:
    """Return hyperparameters as one cell, of at most so many characters."""
    text = ", ".join(
        f"{name}={format(value, '.4g') if isinstance(value, float) else value}"
        for name, value in params.items()
    )
    if most is not None and len(text) > most:
        return f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
    return text


def interval(lower: float | None, upper: float | None) -> str | None:
    """Write an interval that may be open at an end; None where it is at both."""
    if lower is None:
        return None if upper is None else f"to {number(upper)}"
    return f"from {number(lower)}" if upper is None else f"{number(lower)} to {number(upper)}"


def short(value: Any) -> Any:
    """Return a number as tables have it, anything else as it is."""
    return number(value) if isinstance(value, float) else value
