"""Which trials were pruned when, and what that saved."""

from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna.records import read_decisions
from lyap_optuna.visualization import _style

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.study import Study

_logger = get_logger(__name__)


class _Bar(NamedTuple):
    number: int
    state: TrialState
    n_reports: int
    saved: int
    reason: str


class _TimelineInfo(NamedTuple):
    bars: list[_Bar]
    n_spent: int
    n_saved: int


def plot_pruning_timeline(study: "Study") -> "go.Figure":
    """Plot, for each trial, how many steps it reported and how many its pruning saved.

    A full trial is taken to be as long as the longest COMPLETE one. The hover text of a pruned
    trial gives the reason that the pruner recorded.

    Args:
        study: A study of any storage.

    Returns:
        The figure; an empty one, with a warning logged, where no trial has reported anything.

    Example:
        >>> import optuna
        >>> from lyap_optuna.visualization import plot_pruning_timeline
        >>> study = optuna.create_study()
        >>> study.add_trial(
        ...     optuna.create_trial(value=1.0, intermediate_values={0: 2.0, 1: 1.5, 2: 1.0})
        ... )
        >>> study.add_trial(
        ...     optuna.create_trial(
        ...         state=optuna.trial.TrialState.PRUNED, intermediate_values={0: 5.0}
        ...     )
        ... )
        >>> plot_pruning_timeline(study).layout.title.text
        'Pruning: 2 of 6 steps saved (33 %)'
    """
    return _draw(_get_info(study))


def _get_info(study: "Study") -> _TimelineInfo:
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.FAIL)
    trials = [
        trial
        for trial in study.get_trials(deepcopy=False, states=states)
        if trial.intermediate_values
    ]
    if not trials:
        _logger.warning("No trial has reported an intermediate value.")
    full = max(
        (len(t.intermediate_values) for t in trials if t.state == TrialState.COMPLETE), default=0
    )
    bars = []
    for trial in trials:
        n_reports = len(trial.intermediate_values)
        pruned = trial.state == TrialState.PRUNED
        decisions = read_decisions(trial) if pruned else []
        bars.append(
            _Bar(
                trial.number,
                trial.state,
                n_reports,
                max(full - n_reports, 0) if pruned else 0,
                decisions[-1].reason if decisions and decisions[-1].verdict == "pruned" else "",
            )
        )
    return _TimelineInfo(bars, sum(bar.n_reports for bar in bars), sum(bar.saved for bar in bars))


def _draw(info: _TimelineInfo) -> "go.Figure":
    import plotly.graph_objects as go

    total = info.n_spent + info.n_saved
    saved = f"Pruning: {info.n_saved} of {total} steps saved ({info.n_saved / max(total, 1):.0%}"
    figure = go.Figure(
        layout={
            "title": {"text": saved.replace("%", " %)") if info.bars else "Pruning"},
            "xaxis": {"title": {"text": "reported steps"}, "zeroline": False},
            "yaxis": {"title": {"text": "trial"}, "autorange": "reversed", "zeroline": False},
            "barmode": "stack",
            "bargap": 0.15,
            "showlegend": True,
        }
    )
    for state, color in _style.STATE_COLORS.items():
        bars = [bar for bar in info.bars if bar.state == state]
        if bars:
            figure.add_bar(
                x=[bar.n_reports for bar in bars],
                y=[bar.number for bar in bars],
                orientation="h",
                marker={"color": color, "line": {"width": 0}},
                name=state.name,
                text=[_hover(bar) for bar in bars],
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
            )
    bars = [bar for bar in info.bars if bar.saved]
    if bars:
        figure.add_bar(
            x=[bar.saved for bar in bars],
            y=[bar.number for bar in bars],
            orientation="h",
            marker={"color": "rgba(230, 159, 0, 0.4)", "line": {"width": 0}},
            name="saved",
            text=[_hover(bar) for bar in bars],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
    return figure


def _hover(bar: _Bar) -> str:
    lines = [f"trial {bar.number}, {bar.state.name} after {bar.n_reports} reports"]
    if bar.reason:
        words = _style.text(bar.reason).split(" ")
        line = ""
        for word in words:
            if len(line) + len(word) > 60:
                lines.append(line)
                line = ""
            line = f"{line} {word}".strip()
        lines.append(line)
    return "<br>".join(lines)
