"""How well each kind of evidence predicts, step by step."""

import math
from typing import TYPE_CHECKING, NamedTuple

from lyap_optuna._logging import get_logger
from lyap_optuna.visualization import _style

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
_OTHER_LOOKS = ((_style.PURPLE, "cross"), (_style.SKY, "star"), (_style.ORANGE, "hexagon"))


class _SkillLine(NamedTuple):
    evidence: str
    steps: list[int]
    correlations: list[float]
    n_trials: list[int]


def plot_prediction_skill(study: "Study") -> "go.Figure":
    """Plot the out-of-sample rank correlation of predicted and actual value over steps.

    One line per kind of evidence. A line at 0 or below predicts nothing; the hover text gives the
    number of COMPLETE trials behind each point and the standard error that chance alone gives.

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
    return _draw(_get_info(study))


def _get_info(study: "Study") -> list[_SkillLine]:
    import lyap_optuna

    lines: dict[str, _SkillLine] = {}
    for skill in sorted(lyap_optuna.prediction_skill(study), key=lambda skill: skill.step):
        if skill.rank_correlation is None:
            continue
        line = lines.setdefault(skill.evidence, _SkillLine(skill.evidence, [], [], []))
        line.steps.append(skill.step)
        line.correlations.append(skill.rank_correlation)
        line.n_trials.append(skill.n_trials)
    if not lines:
        _logger.warning("Too few COMPLETE trials to measure how well anything predicts.")
    return list(lines.values())


def _draw(lines: list[_SkillLine]) -> "go.Figure":
    import plotly.graph_objects as go

    figure = go.Figure(
        layout={
            "title": {"text": "What predicts the final value, and how early"},
            "xaxis": {"title": {"text": "step"}, "zeroline": False},
            "yaxis": {
                "title": {"text": "rank correlation, out of sample"},
                "range": [
                    min([-0.3, *(c - 0.1 for line in lines for c in line.correlations)]),
                    1.05,
                ],
                "zeroline": False,
            },
            "showlegend": True,
        }
    )
    others = iter(_OTHER_LOOKS * len(lines))
    for line in lines:
        color, symbol = _LOOKS.get(line.evidence) or next(others)
        figure.add_scatter(
            x=line.steps,
            y=line.correlations,
            mode="lines+markers",
            line={"color": color},
            marker={"symbol": symbol, "size": 8},
            name=_style.text(line.evidence),
            text=[f"{n} trials, ± {1 / math.sqrt(max(n - 1, 1)):.2f}" for n in line.n_trials],
            hovertemplate="step %{x}: %{y:.2f}<br>%{text}",
        )
    steps = sorted({step for line in lines for step in line.steps})
    if 0 < len(steps) <= 16:
        figure.update_xaxes(tickvals=steps)
    if lines:
        _style.zero_line(figure, [step for line in lines for step in line.steps])
    return figure
