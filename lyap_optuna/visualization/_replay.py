"""Which pruner would have served: epochs spent against success, and regret against epochs."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lyap_optuna._logging import get_logger
from lyap_optuna.visualization import _style

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from lyap_optuna.replay import PrunerSummary, Replay

_logger = get_logger(__name__)

_COLORS = (
    _style.GREY,
    _style.SKY,
    _style.ORANGE,
    _style.GREEN,
    _style.PURPLE,
)
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star")
_OURS = "LyapunovPruner"
_SEARCH = "freeze_thaw"
_LEAST_REGRET = 1e-3
"""What is less is drawn as this: a regret of 0 has no logarithm."""


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
    named: set[str] = set()
    for summary in summaries:
        i = names.index(summary.recording)
        figure.add_scatter(
            row=i // columns + 1,
            col=i % columns + 1,
            showlegend=summary.pruner not in named,
            **_point(summary, pruners.index(summary.pruner)),
        )
        named.add(summary.pruner)
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


def _point(summary: "PrunerSummary", position: int) -> dict[str, Any]:
    color = _color(summary.pruner, position)
    symbol = _SYMBOLS[position % 6] + ("-open" if summary.pruner.startswith(_OURS) else "")
    spent, success = summary.epochs_spent, summary.success
    x, y = (
        _style.interval(
            [share.value], [share.lower], [share.upper], color=color, thickness=1, width=3
        )
        for share in (spent, success)
    )
    return {
        "x": [spent.value],
        "y": [success.value],
        "error_x": x,
        "error_y": y,
        "mode": "markers",
        "marker": {
            "color": color,
            "size": 14 if summary.pruner == _OURS else 9,
            "symbol": "star" if summary.pruner == _OURS else symbol,
        },
        "name": _style.text(summary.pruner),
        "legendgroup": summary.pruner,
        "hovertemplate": (
            f"{summary.n_orders} orders<br>%{{x:.0%}} of epochs spent<br>%{{y:.0%}} succeed<br>"
            f"first winner: {_share(summary.found_by.value)} of epochs; "
            f"in 9 of 10 orders: {_share(summary.found_by_late.value)}"
        ),
    }


def plot_regret(replays: "Mapping[str, Sequence[Replay]]") -> "go.Figure":
    """Plot, for each pruner, how the regret falls as epochs are spent.

    The regret is that of the best trial that has ended by then: 0 for the true best, 1 for the
    median trial. On the left the median over orders, on the right the ninth decile: what nine of
    ten orders do at least as well as. A line begins where so many orders have a COMPLETE trial,
    and goes on level where they have ended.

    Args:
        replays: What :func:`~lyap_optuna.replay.compare_pruners` returns, pruners and
            :func:`~lyap_optuna.replay.replay_freeze_thaw` side by side.

    Returns:
        The figure; an empty one, with a warning logged, where nothing was replayed.

    Example:
        >>> from lyap_optuna.visualization import plot_regret
        >>> len(plot_regret({}).data)
        0
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    from lyap_optuna.replay import MAX_REGRET, REGRET_AT

    replays = {name: found for name, found in replays.items() if found}
    if not replays:
        _logger.warning("Nothing was replayed: there is no figure to draw.")
        return go.Figure()
    figure = make_subplots(
        1, 2, subplot_titles=["half of the orders", "nine of ten orders"], shared_yaxes="all"
    )
    worst = 0.0
    for p, (name, found) in enumerate(replays.items()):
        for column, part in enumerate((0.5, 0.9), start=1):
            shares, regrets = _regret_curve(found, part, REGRET_AT)
            worst = max([worst, *regrets])
            figure.add_scatter(
                row=1,
                col=column,
                x=shares,
                y=[max(regret, _LEAST_REGRET) for regret in regrets],
                mode="lines",
                line={
                    "color": _color(name, p),
                    "shape": "hv",
                    "width": 3 if name in (_OURS, _SEARCH) else 1.5,
                    "dash": "solid" if name in (_OURS, _SEARCH) else _DASHES[p % len(_DASHES)],
                },
                name=_style.text(name),
                legendgroup=name,
                showlegend=column == 1,
                hovertemplate=f"{_style.text(name)}<br>%{{x:.0%}} of epochs: regret %{{y:.3g}}"
                "<extra></extra>",
            )
    n_orders = ", ".join(str(n) for n in sorted({len(found) for found in replays.values()}))
    figure.update_xaxes(range=[0, 1], tickformat=".0%", zeroline=False, title="epochs spent")
    figure.add_hline(MAX_REGRET, line={"color": _style.GREY, "width": 1, "dash": "dot"})
    ends = math.log10(_LEAST_REGRET) - 0.05, math.log10(min(max(worst, 0.1), 2.0)) + 0.05
    figure.update_yaxes(type="log", range=ends, dtick=1, zeroline=False)
    figure.update_yaxes(title=f"regret ({_LEAST_REGRET:g} or less at the foot)", row=1, col=1)
    figure.update_layout(
        title=_style.title(
            "How soon a good trial has ended",
            [
                f"{n_orders} orders; regret 0 is the true best, 1 the median trial",
                "below the dotted line a trial is as good as a winner",
            ],
        ),
        legend=_style.LEGEND,
        height=500,
        margin={"b": 150},
    )
    return figure


def _regret_curve(
    found: "Sequence[Replay]", part: float, at: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Return shares of epochs, and the regret that a part of the orders has fallen to by then."""
    falls = {share for replay in found for share, _ in replay.fell}
    shares = sorted(falls | {*at, 1.0})
    place = math.ceil(round(part * len(found), 9)) - 1
    curve = [(s, sorted(replay.regret_after(s) for replay in found)[place]) for s in shares]
    known = [(share, regret) for share, regret in curve if math.isfinite(regret)]
    return [share for share, _ in known], [regret for _, regret in known]


def _color(name: str, position: int) -> str:
    if name == _SEARCH:
        return _style.BLUE
    return _style.VERMILLION if name.startswith(_OURS) else _COLORS[position % len(_COLORS)]


def _share(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.0%}"
