"""Colours, axes and small computations that the figures share.

Colours are those of Okabe and Ito, which people with colour-blindness tell apart, and plotly's
sequential Cividis and Viridis. Nothing sets a background or a text colour, so that light and dark
templates both work; lines that are neither data nor axis are mid-grey, visible on both.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
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

LINE = 100
"""Characters of small text in a line, in the dashboard in a window of 1,366 pixels."""

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

    return str(sample_colorscale("Viridis", [0.35 + 0.5 * place])[0])


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
    return {"text": below(text, textwrap.wrap("; ".join(remarks), LINE))}


def below(text: str, lines: Sequence[str]) -> str:
    """Return a title with small lines below it."""
    return "<br>".join([text, *(f'<span style="font-size:12px">{line}</span>' for line in lines)])


def direction_word(study: "Study") -> str:
    """Return in which direction of the axis the better values of the first objective lie."""
    return "lower" if study.directions[0] == StudyDirection.MINIMIZE else "higher"


def value_axis_type(values: Sequence[float]) -> str:
    """Return ``"log"`` where all values are positive and span more than a decade."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or min(finite) <= 0:
        return "linear"
    return "log" if max(finite) / min(finite) > 10 else "linear"


def value_axis(values: Sequence[float]) -> dict[str, Any]:
    """Return type and ticks of an axis of values: whole numbers, where plotly writes digits."""
    axis: dict[str, Any] = {"type": value_axis_type(values), "zeroline": False}
    if axis["type"] == "log":
        finite = [value for value in values if math.isfinite(value)]
        decades = range(math.floor(math.log10(min(finite))), math.ceil(math.log10(max(finite))))
        if len(decades) <= _MOST_DECADES:
            ticks = [float(f"{d}e{k}") for k in [*decades, decades.stop] for d in (1, 2, 5)]
            axis |= {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return axis


_MOST_DECADES = 3
"""Of an axis with ticks at 1, 2 and 5 of each; of more, the powers of ten are enough."""


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
    """Return a finite final value. Only COMPLETE trials have one: a last report is none."""
    if trial.state != TrialState.COMPLETE or not trial.values:
        return None
    value: float = trial.values[0]
    return value if math.isfinite(value) else None


_STRIP_ROW = 0.09
"""Height of a row of the strip, as a share of the figure's."""


def add_strip(figure: "go.Figure", ticks: Mapping[TrialState, Sequence[tuple[float, str]]]) -> None:
    """Draw trials that have no final value in a strip below a figure of final values.

    Args:
        figure: A figure of one pair of axes.
        ticks: By state, for each trial its place on the horizontal axis and its hover text.
    """
    rows = {state: found for state, found in ticks.items() if found}
    if not rows:
        return
    height = _STRIP_ROW * len(rows)
    for state, found in rows.items():
        figure.add_scatter(
            x=[x for x, _ in found],
            y=[state.name] * len(found),
            yaxis="y2",
            mode="markers",
            marker={
                "symbol": "line-ns",
                "size": 12,
                "line": {"width": 1.5, "color": STATE_COLORS[state]},
            },
            opacity=0.8 if len(found) <= 150 else 0.4,
            text=[told for _, told in found],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    figure.update_layout(
        xaxis={"anchor": "y2"},
        yaxis={"domain": [height + 0.04, 1]},
        yaxis2={
            "domain": [0, height],
            "type": "category",
            "range": [-0.5, len(rows) - 0.5],
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
    )
