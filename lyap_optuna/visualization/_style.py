"""Colours, axes and small computations that the figures share.

Colours are those of Okabe and Ito, which people with colour-blindness tell apart, and plotly's
sequential Cividis and Viridis. Nothing sets a background or a text colour, so that light and dark
templates both work; lines that are neither data nor axis are mid-grey, visible on both.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.study import Study

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, GREY = "#56B4E9", "#CC79A7", "#888888"

STATE_COLORS = {
    TrialState.COMPLETE: BLUE,
    TrialState.PRUNED: ORANGE,
    TrialState.RUNNING: GREEN,
    TrialState.FAIL: GREY,
}
STATE_SYMBOLS = {
    TrialState.COMPLETE: "circle",
    TrialState.PRUNED: "x",
    TrialState.RUNNING: "triangle-up",
    TrialState.FAIL: "square",
}

EXPONENT_AXIS = "Lyapunov exponent (nats/step)"
INDEX_AXIS = "index / number of exponents"


def text(value: object) -> str:
    """Return ``value`` as literal text: plotly reads a subset of HTML in every label."""
    return escape(str(value))


def number(value: float | None) -> str:
    """Return four significant digits for a label."""
    return "-" if value is None else f"{value:.4g}"


def zero_line(figure: "go.Figure", x: Sequence[float], **where: Any) -> None:
    """Draw the exponent 0, where stability changes, as a trace: so the axis always reaches it."""
    figure.add_scatter(
        x=[min(x), max(x)],
        y=[0, 0],
        mode="lines",
        line={"color": GREY, "width": 1.5, "dash": "dash"},
        hoverinfo="skip",
        showlegend=False,
        **where,
    )


def direction_word(study: "Study") -> str:
    """Return in which direction of the axis the better values lie."""
    return "lower" if study.direction == StudyDirection.MINIMIZE else "higher"


def value_axis_type(values: Sequence[float]) -> str:
    """Return ``"log"`` where all values are positive and span more than a factor of 20."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or min(finite) <= 0:
        return "linear"
    return "log" if max(finite) / min(finite) > 20 else "linear"


def single_objective(study: "Study") -> None:
    """Refuse a study of several objectives.

    Raises:
        ValueError: It has several; the message names the directions.
    """
    if len(study.directions) > 1:
        names = ", ".join(direction.name.lower() for direction in study.directions)
        raise ValueError(
            f"The study has {len(study.directions)} objectives ({names}); this figure is of one."
        )


def final_value(trial: FrozenTrial) -> float | None:
    """Return a finite final value; of a PRUNED trial it is the last report."""
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return None
    value = trial.value
    if value is None and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    return value if value is not None and math.isfinite(value) else None
