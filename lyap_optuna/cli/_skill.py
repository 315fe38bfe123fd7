"""What each kind of evidence was worth, as rows of a table and in words."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lyap_optuna import EvidenceSkill

_FIRST_STEPS = 3
_OURS = ("exponents", "displacement")


def skill_rows(
    skills: Sequence["EvidenceSkill"], n_steps: int = _FIRST_STEPS
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return one row per kind of evidence and one column per early step, and the headings."""
    steps = sorted({skill.step for skill in skills})[:n_steps]
    columns = {"evidence": "evidence"}
    for step in steps:
        columns[f"step{step}"] = f"step {step}"
        columns[f"share{step}"] = "share"
    rows: dict[str, dict[str, Any]] = {}
    for skill in skills:
        if skill.step in steps:
            name = "all together" if " + " in skill.evidence else skill.evidence
            row = rows.setdefault(name, {"evidence": name})
            correlation, share = skill.rank_correlation, skill.share
            row[f"step{skill.step}"] = None if correlation is None else f"{correlation:.2f}"
            row[f"share{skill.step}"] = None if share is None else f"{share:.0%}"
    return list(rows.values()), columns


def skill_verdict(skills: Sequence["EvidenceSkill"]) -> str:
    """Say whether exponents predicted better than the loss at one of the first two steps.

    Only what was measured is said; without enough COMPLETE trials, that.
    """
    by_step: dict[int, dict[str, EvidenceSkill]] = {}
    for skill in skills:
        if skill.rank_correlation is not None:
            by_step.setdefault(skill.step, {})[skill.evidence] = skill
    compared = []
    for _step, kinds in sorted(by_step.items()):
        ours = max((kinds[name] for name in _OURS if name in kinds), key=_skill_of, default=None)
        if ours is not None and "loss" in kinds:
            compared.append((ours, kinds["loss"]))
    compared = compared[:2]
    if not compared:
        return "Too few trials ran to the end to compare the kinds of evidence."
    ours, loss = max(compared, key=lambda pair: _skill_of(pair[0]) - _skill_of(pair[1]))
    error = 1 / math.sqrt(max(ours.n_trials - 1, 1))
    gain = round(_skill_of(ours), 2) - round(_skill_of(loss), 2)  # what is told, and no less
    measured = (
        f"rank correlation {_skill_of(ours):.2f} against {_skill_of(loss):.2f} on {ours.n_trials} "
        "trials"
    )
    if gain <= 0:
        return (
            "At the first two epochs the Lyapunov exponents predicted the final loss no better "
            f"than the loss itself did (at best {measured})."
        )
    others = [
        kind
        for kind in by_step[ours.step].values()
        if kind.evidence == "hyperparameters" and _skill_of(kind) > _skill_of(ours)
    ]
    name = "displacement of the exponents" if ours.evidence == "displacement" else "exponents"
    return (
        f"After epoch {ours.step} the {name} predicted the final loss better than the loss itself "
        f"did: {measured}."
        + (
            f" So few trials leave each of the two uncertain by about {error:.2f}, so this study "
            "alone does not settle it."
            if gain < error
            else f" Each of the two is uncertain by about {error:.2f}."
        )
        + "".join(f" The {o.evidence} predicted better still: {_skill_of(o):.2f}." for o in others)
    )


def _skill_of(skill: "EvidenceSkill") -> float:
    return -1.0 if skill.rank_correlation is None else skill.rank_correlation
