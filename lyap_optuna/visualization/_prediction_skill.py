"""How well each kind of evidence predicts, step by step."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from lyap_optuna._logging import get_logger
from lyap_optuna.prediction import EvidenceSkill, prediction_skill
from lyap_optuna.prediction._study import single_direction
from lyap_optuna.prediction.evidence import in_words
from lyap_optuna.visualization import _style
from lyap_optuna.visualization._spec import FigureSpec

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.study import Study

_logger = get_logger(__name__)

_LOOKS = {
    "loss": (_style.GREY, "square"),
    "exponents": (_style.BLUE, "circle"),
    "displacement": (_style.VERMILLION, "diamond"),
    "hyperparameters": (_style.GREEN, "triangle-up"),
}
_OTHER_LOOKS = ((_style.SKY, "star"), (_style.ORANGE, "hexagon"))
_JOINT = " + "
_HOVER = "step %{x}: %{y:.2f}<br>%{text}"


class _SkillLine(NamedTuple):
    evidence: str
    steps: list[int]
    correlations: list[float]
    n_trials: list[int]
    chosen: list[bool]


def plot_prediction_skill(study: "Study") -> "go.Figure":
    """Plot the out-of-sample rank correlation of predicted and actual value over steps.

    One line per kind of evidence, crosses for all together, and a ring at what the predictor
    uses. The grey band is two standard errors of what chance alone gives on so many trials.

    Args:
        study: A single-objective study.

    Returns:
        The figure; an empty one, with a warning logged, where too few trials are COMPLETE.

    Example:
        >>> import optuna
        >>> from lyap_optuna.visualization import plot_prediction_skill
        >>> len(plot_prediction_skill(optuna.create_study()).data)
        0
    """
    _style.single_objective(study)
    lines = skill_lines(prediction_skill(study))
    if not lines:
        _logger.warning("Too few COMPLETE trials to measure how well anything predicts.")
    return _draw(lines, single_direction(study))


def skill_lines(skills: Iterable[EvidenceSkill]) -> list[_SkillLine]:
    """Return one line per kind of evidence, step after step."""
    lines: dict[str, _SkillLine] = {}
    for skill in sorted(skills, key=lambda skill: skill.step):
        if skill.rank_correlation is None:
            continue
        line = lines.setdefault(skill.evidence, _SkillLine(skill.evidence, [], [], [], []))
        line.steps.append(skill.step)
        line.correlations.append(skill.rank_correlation)
        line.n_trials.append(skill.n_trials)
        line.chosen.append(skill.chosen)
    return list(lines.values())


def _draw(lines: list[_SkillLine], sign: int = 1) -> "go.Figure":
    import plotly.graph_objects as go

    trials = max((n for line in lines for n in line.n_trials), default=0)
    figure = go.Figure(
        layout=_style.layout(
            "What predicts the final value, and how early",
            "step",
            "rank correlation, out of sample",
            [f"on up to {trials} COMPLETE trials"] if lines else [],
        )
    )
    lowest = min((c for line in lines for c in line.correlations), default=0.0)
    figure.update_yaxes(range=[max(min(-0.3, lowest - 0.1), -1.1), 1.1])
    if not lines:
        return figure
    _add_chance(figure, lines)
    _add_kinds(figure, [line for line in lines if _JOINT not in line.evidence], sign)
    _add_joint(figure, [line for line in lines if _JOINT in line.evidence], sign)
    _add_used(figure, lines)
    steps = sorted({step for line in lines for step in line.steps})
    _style.name_steps(figure, steps)
    _style.zero_line(figure, steps)
    return figure


def _add_kinds(figure: "go.Figure", lines: list[_SkillLine], sign: int) -> None:
    others = iter(_OTHER_LOOKS * len(lines))
    for line in lines:
        color, symbol = _LOOKS.get(line.evidence) or next(others)
        figure.add_scatter(
            x=line.steps,
            y=line.correlations,
            mode="lines+markers",
            line={"color": color},
            marker={"symbol": symbol, "size": 8},
            name=_style.text(in_words([line.evidence], sign)),
            text=_sizes(line),
            hovertemplate=_HOVER,
        )


def _add_joint(figure: "go.Figure", lines: list[_SkillLine], sign: int) -> None:
    """Draw all combinations under one name: each may stand at one step only."""
    if not lines:
        return
    figure.add_scatter(
        x=[step for line in lines for step in line.steps],
        y=[c for line in lines for c in line.correlations],
        mode="markers",
        marker={"symbol": "cross", "size": 9, "color": _style.PURPLE},
        name="all together",
        text=[
            f"{_style.text(in_words(line.evidence.split(_JOINT), sign))}<br>{size}"
            for line in lines
            for size in _sizes(line)
        ],
        hovertemplate=_HOVER,
    )


def _add_used(figure: "go.Figure", lines: list[_SkillLine]) -> None:
    used = [
        (step, c)
        for line in lines
        for step, c, chosen in zip(line.steps, line.correlations, line.chosen, strict=True)
        if chosen
    ]
    if used:
        figure.add_scatter(
            x=[step for step, _ in used],
            y=[c for _, c in used],
            mode="markers",
            marker={
                "symbol": "circle-open",
                "size": 16,
                "color": _style.GREY,
                "line": {"width": 2},
            },
            name="used",
            hoverinfo="skip",
        )


def _sizes(line: _SkillLine) -> list[str]:
    return [f"{n} trials, ± {_error(n):.2f}" for n in line.n_trials]


def _error(n_trials: int) -> float:
    return 1 / math.sqrt(max(n_trials - 1, 1))


def _add_chance(figure: "go.Figure", lines: list[_SkillLine]) -> None:
    fewest: dict[int, int] = {}
    for line in lines:
        for step, n in zip(line.steps, line.n_trials, strict=True):
            fewest[step] = min(fewest.get(step, n), n)
    steps: list[float] = sorted(fewest)
    reach = [min(2 * _error(fewest[step]), 1.0) for step in sorted(fewest)]
    if len(steps) == 1:  # a band needs a width
        steps, reach = [steps[0] - 0.4, steps[0] + 0.4], reach * 2
    _style.add_band(figure, steps, [-r for r in reach], reach, _style.GREY, "chance alone")


FIGURE = FigureSpec(
    id="skill",
    name="What predicts the final value, and how early",
    call="plot_prediction_skill(study)",
    caption="How well each kind of evidence ranks the trials that ran to their end. In the grey "
    "band is what chance alone gives.",
    info=lambda study: skill_lines(prediction_skill(study)) or None,
    draw=lambda lines, study, _most: _draw(lines, single_direction(study)),
)
