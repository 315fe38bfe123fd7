"""Which pruner would have served: epochs spent against share of orders that succeed."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lyap_optuna._logging import get_logger
from lyap_optuna.visualization import _style

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from lyap_optuna.replay import PrunerSummary

_logger = get_logger(__name__)

_COLORS = (
    _style.GREY,
    _style.SKY,
    _style.ORANGE,
    _style.GREEN,
    _style.PURPLE,
    _style.BLUE,
)
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star")
_OURS = "LyapunovPruner"


def plot_replay(summaries: "Sequence[PrunerSummary]") -> "go.Figure":
    """Plot, for each pruner, the epochs it spent against how often it found a best trial.

    Up and to the left is better. Bars are the intervals of the summaries: the middle 95 % of
    orders across, Wilson's 95 % interval upright.

    Args:
        summaries: What :func:`~lyap_optuna.replay.summarize` returns, of one recording or several
            (one panel each).

    Returns:
        The figure; an empty one, with a warning logged, where nothing was replayed.

    Example:
        >>> from lyap_optuna.visualization import plot_replay
        >>> len(plot_replay([]).data)
        0
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    if not summaries:
        _logger.warning("Nothing was replayed: there is no figure to draw.")
        return go.Figure()
    names = list(dict.fromkeys(s.recording for s in summaries))
    pruners = list(dict.fromkeys(s.pruner for s in summaries))
    columns = min(len(names), 2)
    rows = -(-len(names) // columns)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[_style.text(name) for name in names],
        shared_xaxes="all",
        shared_yaxes="all",
        horizontal_spacing=0.06,
        vertical_spacing=0.3 / max(rows, 2) ** 1.2,
    )
    for summary in summaries:
        i, p = names.index(summary.recording), pruners.index(summary.pruner)
        ours = summary.pruner.startswith(_OURS)
        color = _style.VERMILLION if ours else _COLORS[p % len(_COLORS)]
        spent, success = summary.epochs_spent, summary.success
        figure.add_scatter(
            row=i // columns + 1,
            col=i % columns + 1,
            x=[spent.value],
            y=[success.value],
            error_x=_bar(spent.value, spent.lower, spent.upper, color),
            error_y=_bar(success.value, success.lower, success.upper, color),
            mode="markers",
            marker={
                "color": color,
                "size": 14 if summary.pruner == _OURS else 9,
                "symbol": "star"
                if summary.pruner == _OURS
                else f"{_SYMBOLS[p % 6]}{'-open' if ours else ''}",
            },
            name=_style.text(summary.pruner),
            legendgroup=summary.pruner,
            showlegend=summary == next(s for s in summaries if s.pruner == summary.pruner),
            hovertemplate=(
                f"{summary.n_orders} orders<br>%{{x:.0%}} of epochs spent<br>%{{y:.0%}} succeed<br>"
                f"first winner: {_share(summary.found_by.value)} of epochs; "
                f"in 9 of 10 orders: {_share(summary.found_by_late.value)}"
            ),
        )
    figure.update_xaxes(range=[0, 1.05], tickformat=".0%", zeroline=False)
    figure.update_yaxes(range=[-0.03, 1.06], tickformat=".0%", zeroline=False)
    for column in range(1, columns + 1):
        figure.update_xaxes(title_text="epochs spent", row=rows, col=column)
    for row in range(1, rows + 1):
        figure.update_yaxes(title_text="orders that succeed", row=row, col=1)
    figure.update_layout(
        title=_style.title(
            "Which pruner would have served",
            ["up and to the left is better; bars: 95 % intervals"],
        ),
        height=200 + 260 * rows,
        legend=_style.LEGEND,
        margin={"b": 150},
    )
    return figure


def _share(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.0%}"


def _bar(value: float, lower: float, upper: float, color: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [upper - value],
        "arrayminus": [value - lower],
        "color": color,
        "thickness": 1,
        "width": 3,
    }
