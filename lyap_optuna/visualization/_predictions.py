"""Predicted against actual final values."""

import math
from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna.visualization import _style

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.study import Study

_logger = get_logger(__name__)


class _Prediction(NamedTuple):
    number: int
    state: TrialState
    predicted: float
    lower: float | None
    upper: float | None
    value: float | None


def plot_predictions(study: "Study", step: int | None = None) -> "go.Figure":
    """Plot the predicted against the actual final value, one point per trial.

    The prediction of a COMPLETE trial comes from a model that had not seen it. Pruned and running
    trials have no actual value: they stand at their last reported one, pruned ones without
    their intervals.

    Args:
        study: A single-objective study.
        step: Predict from what was known at this step; as late as possible by default.

    Returns:
        The figure; an empty one, with a warning logged, where nothing is predicted yet.

    Example:
        >>> import optuna
        >>> from lyap_optuna.visualization import plot_predictions
        >>> len(plot_predictions(optuna.create_study()).data)
        0
    """
    _style.single_objective(study)
    return _draw(_get_info(study, step), study)


def _get_info(study: "Study", step: int | None) -> list[_Prediction]:
    import lyap_optuna

    trials = study.get_trials(deepcopy=False)
    infos = []
    for ranked in lyap_optuna.rank_trials(study, step=step):
        if ranked.predicted_value is None or not math.isfinite(ranked.predicted_value):
            continue
        value = ranked.value if ranked.state == TrialState.COMPLETE else None
        if ranked.state != TrialState.COMPLETE:
            reported = trials[ranked.number].intermediate_values
            value = reported[max(reported)] if reported else None
        if value is not None and not math.isfinite(value):
            continue
        infos.append(
            _Prediction(
                ranked.number,
                ranked.state,
                ranked.predicted_value,
                _finite(ranked.lower),
                _finite(ranked.upper),
                value,
            )
        )
    if not infos:
        _logger.warning("Nothing is predicted yet: too few COMPLETE trials, or no skill in them.")
    return infos


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _draw(infos: list[_Prediction], study: "Study") -> "go.Figure":
    import plotly.graph_objects as go

    values = [info.value for info in infos if info.value is not None]
    spread = values + [info.predicted for info in infos]
    axis = _style.value_axis_type(spread)
    figure = go.Figure(
        layout={
            "title": {"text": "Predicted against actual final value"},
            "xaxis": {
                "title": {"text": "predicted final value, with 80 % interval"},
                "type": axis,
                "zeroline": False,
            },
            "yaxis": {
                "title": {"text": f"final value ({_style.direction_word(study)} is better)"},
                "type": axis,
                "zeroline": False,
            },
            "showlegend": True,
        }
    )
    if not infos:
        return figure
    figure.add_scatter(
        x=[min(spread), max(spread)],
        y=[min(spread), max(spread)],
        mode="lines",
        line={"color": _style.GREY, "width": 1.5, "dash": "dash"},
        hoverinfo="skip",
        name="predicted = actual",
    )
    names = {
        TrialState.COMPLETE: "COMPLETE",
        TrialState.PRUNED: "PRUNED (at its last report)",
        TrialState.RUNNING: "RUNNING (at its last report)",
    }
    for state, name in names.items():
        drawn = [info for info in infos if info.state == state and info.value is not None]
        if not drawn:
            continue
        figure.add_scatter(
            x=[info.predicted for info in drawn],
            y=[info.value for info in drawn],
            error_x={
                "type": "data",
                "visible": state != TrialState.PRUNED,
                "symmetric": False,
                "array": [_reach(info.upper, info.predicted) for info in drawn],
                "arrayminus": [_reach(info.predicted, info.lower) for info in drawn],
                "thickness": 1,
                "width": 0,
                "color": _style.STATE_COLORS[state],
            },
            mode="markers",
            marker={
                "color": _style.STATE_COLORS[state],
                "symbol": _style.STATE_SYMBOLS[state],
                "size": 9,
            },
            name=name,
            text=[f"trial {info.number}" for info in drawn],
            hovertemplate="%{text}<br>predicted %{x:.4g}<br>"
            + ("actual" if state == TrialState.COMPLETE else "last report")
            + " %{y:.4g}<extra></extra>",
        )
    return figure


def _reach(upper: float | None, lower: float | None) -> float:
    return max(upper - lower, 0.0) if upper is not None and lower is not None else 0.0
