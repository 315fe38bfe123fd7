"""Figures as optuna-dashboard keeps them: small, and readable on light and dark pages.

The dashboard stores a figure as attributes of its study, 2,045 characters each, reads all of them
with every page, and draws them without a theme of its own.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lyap_optuna.visualization._figures import FIGURES, Numbers

if TYPE_CHECKING:
    import plotly.graph_objects as go

PREFIX = "lyapunov-"
"""Of the ids under which the dashboard keeps our figures."""

MAX_BYTES = 100_000
"""What one figure may take as JSON; six of them stay below 600,000 bytes."""

_MOST_TRIALS = 1_000
_DIGITS = 4
_TEXT, _GRID = "#808080", "rgba(128, 128, 128, 0.25)"


def published_figures(numbers: Numbers) -> dict[str, "go.Figure"]:
    """Return the figures that have data, by the id under which they are published.

    At most 1,000 trials are drawn, and fewer where the figure would be over :data:`MAX_BYTES`; its
    title says so. Numbers are rounded to 4 digits.
    """
    figures = {}
    for spec in FIGURES:
        info = numbers.of(spec)
        if info is not None:
            name = f"{PREFIX}{spec.id}"
            draw = partial(spec.draw, info, numbers.study)
            figures[name] = _fitted(name, draw)
    return figures


def _fitted(name: str, draw: "Callable[[int], go.Figure]") -> "go.Figure":
    most = _MOST_TRIALS
    while True:
        figure = _small(draw(most), name)
        if len(figure.to_json()) <= MAX_BYTES or most < 10:
            return figure
        most //= 2


def _small(figure: "go.Figure", name: str) -> "go.Figure":
    import plotly.graph_objects as go

    axis = {"gridcolor": _GRID, "linecolor": _GRID, "automargin": True}
    figure.update_layout(
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"color": _TEXT},
        title={"x": 0.02, "font": {"size": 16}},
        margin={"l": 60, "r": 20, "t": 80, "b": 60},
        modebar={"bgcolor": "rgba(0, 0, 0, 0)", "color": _TEXT},
        uirevision=name,  # a zoom outlives the next refresh of the page
    )
    figure.update_xaxes(axis)
    figure.update_yaxes(axis)
    drawn = _rounded(figure.to_plotly_json())
    drawn["layout"]["template"] = {}  # without the key, plotly puts its default there
    return go.Figure(drawn)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # a numpy array
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
