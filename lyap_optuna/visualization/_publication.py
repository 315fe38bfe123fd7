"""Figures as optuna-dashboard keeps them: small, and readable on light and dark pages.

The dashboard stores a figure as attributes of its study, 2,045 characters each, reads all of them
with every page, and draws them without a theme of its own.
"""

import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lyap_optuna.visualization import _style
from lyap_optuna.visualization._figures import FIGURES, Numbers

if TYPE_CHECKING:
    import plotly.graph_objects as go

PREFIX = "lyapunov-"
"""Of the ids under which the dashboard keeps our figures."""

MAX_BYTES = 100_000
"""What one figure may take as JSON; six of them stay below 600,000 bytes."""

_MOST_TRIALS = 1_000
_DIGITS = 4
_TEXT, _GRID = "#7d7d7d", "rgba(128, 128, 128, 0.25)"
"""Grey that stands out from white and from the dashboard's dark cards alike: 4.1 to 1 from each."""


def published_figures(
    numbers: Numbers, *, captions: bool = True, max_bytes: int = MAX_BYTES
) -> dict[str, "go.Figure"]:
    """Return the figures that have data, by the id under which they are published.

    At most 1,000 trials are drawn, and fewer where the figure would be over ``max_bytes``; its
    title says so. Numbers are rounded to 4 digits.

    Args:
        numbers: Those of the study.
        captions: Whether each figure holds its caption.
        max_bytes: What one figure may take as JSON.
    """
    figures = {}
    for spec in FIGURES:
        info = numbers.of(spec)
        if info is not None:
            draw = partial(spec.draw, info, numbers.study)
            caption = spec.caption if captions else ""
            figures[f"{PREFIX}{spec.id}"] = _fitted(spec.id, caption, draw, max_bytes)
    return figures


def _fitted(
    name: str, caption: str, draw: "Callable[[int], go.Figure]", max_bytes: int
) -> "go.Figure":
    most = _MOST_TRIALS
    while True:
        figure = small(draw(most), name, caption)
        if len(figure.to_json()) <= max_bytes or most < 10:
            return figure
        most //= 2


def small(figure: "go.Figure", name: str, caption: str = "") -> "go.Figure":
    """Return a figure for light and dark pages, with 4 digits; ``name`` keeps a zoom alive."""
    import plotly.graph_objects as go

    # A title with a distance of its own stays clear of labels, however long these are.
    axis = {"gridcolor": _GRID, "linecolor": _GRID, "automargin": True, "title_standoff": 8}
    text = _style.below(figure.layout.title.text or "", textwrap.wrap(caption, _style.LINE))
    legend = figure.layout.showlegend is not False
    figure.update_layout(
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"color": _TEXT},
        title={"text": text, "x": 0, "font": {"size": 16}, "pad": {"t": 20, "l": 12}},
        title_yref="container",
        title_y=1,
        title_yanchor="top",
        margin={"l": 60, "r": 20, "t": 50 + 16 * text.count("<br>"), "b": 64 if legend else 44},
        modebar={"bgcolor": "rgba(0, 0, 0, 0)", "color": _TEXT, "orientation": "v"},
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
