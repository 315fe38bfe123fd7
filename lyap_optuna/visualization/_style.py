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

LEGEND = {
    "orientation": "h",
    "xref": "container",
    "x": 0.02,
    "yref": "container",
    "y": 0,
    "yanchor": "bottom",
}
"""Below the figure: beside it, it takes half of a narrow one."""


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


def shade(place: float) -> str:
    """Return a colour between dark (0) and bright (1) that both backgrounds carry."""
    from plotly.colors import sample_colorscale

    return str(sample_colorscale("Viridis", [0.25 + 0.65 * place])[0])


def marker_size(n_points: int) -> int:
    """Return a size at which so many points do not become one blot."""
    return 9 if n_points <= 150 else 6


def spread(n: int, most: int) -> list[int]:
    """Return at most ``most`` of the indices 0 to n - 1, evenly spaced, both ends among them."""
    if n <= most:
        return list(range(n))
    return sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; None where one of the two does not vary."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    from scipy import stats

    rho = float(stats.spearmanr(x, y).statistic)
    return rho if math.isfinite(rho) else None


def title(text: str, remarks: Sequence[str] = ()) -> dict[str, str]:
    """Return a title with smaller remarks below it, which a narrow figure still shows whole."""
    return {"text": f"{text}<br><sub>{'; '.join(remarks)}</sub>" if remarks else text}


def direction_word(study: "Study") -> str:
    """Return in which direction of the axis the better values of the first objective lie."""
    return "lower" if study.directions[0] == StudyDirection.MINIMIZE else "higher"


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
