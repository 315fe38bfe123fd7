"""Colours, axes and small computations that the figures share.

Colours are those of Okabe and Ito, which people with colour-blindness tell apart, and plotly's
sequential Cividis and Viridis. Nothing sets a background or a text colour, so that light and dark
templates both work; lines that are neither data nor axis are mid-grey, visible on both.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

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

REFERENCE = {"color": GREY, "width": 1.5, "dash": "dash"}

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
    reference_line(figure, [min(x), max(x)], [0, 0], **where)


def reference_line(
    figure: "go.Figure",
    x: Sequence[float],
    y: Sequence[float],
    name: str | None = None,
    **where: Any,
) -> None:
    """Draw what is neither data nor axis; in the legend, where it has a name."""
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line=REFERENCE,
        hoverinfo="skip",
        name=name,
        showlegend=bool(name),
        **where,
    )


def add_band(
    figure: "go.Figure",
    x: Sequence[float],
    lower: Sequence[float],
    upper: Sequence[float],
    color: str,
    name: str | None = None,
) -> None:
    """Draw the band between two lines; in the legend, where it has a name."""
    figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*upper, *reversed(lower)],
        fill="toself",
        fillcolor=color,
        opacity=0.25,
        mode="none",
        hoverinfo="skip",
        name=name,
        showlegend=bool(name),
    )


def interval(
    values: Sequence[float],
    lower: Sequence[float | None],
    upper: Sequence[float | None],
    **looks: Any,
) -> dict[str, Any]:
    """Return the error bars of an interval around each value; none at an open end."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [_length(v, u) for v, u in zip(values, upper, strict=True)],
        "arrayminus": [_length(b, v) for b, v in zip(lower, values, strict=True)],
        **looks,
    }


def _length(start: float | None, end: float | None) -> float:
    return 0.0 if start is None or end is None else max(end - start, 0.0)


def shade(place: float) -> str:
    """Return a colour between dark (0) and bright (1) that both backgrounds carry."""
    from plotly.colors import sample_colorscale

    return str(sample_colorscale("Viridis", [0.35 + 0.5 * place])[0])


def spread(n: int, most: int) -> list[int]:
    """Return at most ``most`` of the indices 0 to n - 1, evenly spaced, both ends among them."""
    if n <= most:
        return list(range(n))
    return sorted({round(i * (n - 1) / max(most - 1, 1)) for i in range(most)})


Item = TypeVar("Item")


def thinned(
    items: Sequence[Item], most: int | None, how: str = "drawn"
) -> tuple[list[Item], list[str]]:
    """Return at most so many items, evenly spaced, and the remark that some were left out."""
    kept = [items[i] for i in spread(len(items), most or len(items))]
    return kept, [f"{len(kept)} of {len(items)} {how}"] if len(kept) < len(items) else []


def layout(heading: str, x: str, y: str, remarks: Sequence[str] = ()) -> dict[str, Any]:
    """Return the layout of a figure of one pair of axes, with the names of both."""
    return {
        "title": title(heading, remarks),
        "xaxis": {"title": {"text": x}, "zeroline": False},
        "yaxis": {"title": {"text": y}, "zeroline": False},
        "showlegend": True,
        "legend": LEGEND,
    }


def name_steps(figure: "go.Figure", steps: Sequence[int]) -> None:
    """Put a tick at each of a few steps. Before step 0 lies only what was before training."""
    if len(steps) <= _MOST_TICKS:
        names = [str(step) if step >= 0 else "before training" for step in steps]
        figure.update_xaxes(tickvals=steps, ticktext=names)


_MOST_TICKS = 16


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


class TrialPoint(NamedTuple):
    """A trial in a figure whose vertical axis is the final value.

    Args:
        number: Of the trial.
        state: Its state.
        x: Its place on the horizontal axis.
        value: Its final value; None where it has none.
        lower: Where the interval around ``x`` begins.
        upper: Where it ends.
    """

    number: int
    state: TrialState
    x: float
    value: float | None
    lower: float | None = None
    upper: float | None = None


def rank_correlation(points: Sequence[TrialPoint]) -> tuple[float | None, int]:
    """Return Spearman's rank correlation, and over how many trials; None where one is constant."""
    known = [(point.x, point.value) for point in points if point.value is not None]
    if len({x for x, _ in known}) < 2 or len({value for _, value in known}) < 2:
        return None, len(known)
    from scipy import stats

    rho = float(stats.spearmanr(known).statistic)
    return (rho if math.isfinite(rho) else None), len(known)


def told_correlation(rho: float, n_complete: int) -> str:
    """Return a rank correlation in words."""
    return f"rank correlation {rho:.2f} over {n_complete} COMPLETE trials"


def add_trials(
    figure: "go.Figure",
    points: Sequence[TrialPoint],
    *,
    name: str,
    hover: str,
    told: Callable[[TrialPoint], str],
) -> None:
    """Draw trials at their final values, and those that have none in a strip below.

    Args:
        figure: A figure of one pair of axes.
        points: The trials.
        name: Of those with a final value, in the legend.
        hover: What is told of each of them, as a template of plotly's.
        told: What is told of one that has none.
    """
    known = [point for point in points if point.value is not None]
    few, color = len(points) <= _MOST_AT_EASE, STATE_COLORS[TrialState.COMPLETE]
    x, lower, upper = ([getattr(p, part) for p in known] for part in ("x", "lower", "upper"))
    bars = interval(x, lower, upper, thickness=1 if few else 0.4, width=0, color=color)
    figure.add_scatter(
        x=x,
        y=[point.value for point in known],
        error_x=bars if any(bars["array"]) or any(bars["arrayminus"]) else None,
        mode="markers",
        marker={"color": color, "size": 9 if few else 6},
        name=name,
        customdata=[point.number for point in known],
        hovertemplate=f"trial %{{customdata}}<br>{hover}<extra></extra>",
    )
    rows = {
        state: found
        for state in (TrialState.RUNNING, TrialState.PRUNED)
        if (found := [p for p in points if p.value is None and p.state == state])
    }
    for state, found in rows.items():
        figure.add_scatter(
            x=[point.x for point in found],
            y=[state.name] * len(found),
            yaxis="y2",
            mode="markers",
            marker={
                "symbol": "line-ns",
                "size": 12,
                "line": {"width": 1.5, "color": STATE_COLORS[state]},
            },
            opacity=0.8 if len(found) <= _MOST_AT_EASE else 0.4,
            text=[f"trial {point.number}, {state.name}<br>{told(point)}" for point in found],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    if rows:
        _make_strip(figure, len(rows))


_MOST_AT_EASE = 150
"""Trials that are drawn large; more would become one blot."""

_STRIP_ROW = 0.09
"""Height of a row of the strip, as a share of the figure's."""


def _make_strip(figure: "go.Figure", n_rows: int) -> None:
    height = _STRIP_ROW * n_rows
    figure.update_layout(
        xaxis={"anchor": "y2"},
        yaxis={"domain": [height + 0.04, 1]},
        yaxis2={
            "domain": [0, height],
            "type": "category",
            "range": [-0.5, n_rows - 0.5],
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
    )
