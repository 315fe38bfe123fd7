"""Predicted against actual final values."""

import math
from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna.prediction import rank_trials
from lyap_optuna.visualization import _style
from lyap_optuna.visualization._spec import FigureSpec

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

    The title gives Spearman's rank correlation over the COMPLETE trials.

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
    infos = _get_info(study, step)
    if not infos:
        _logger.warning("Nothing is predicted yet: too few COMPLETE trials.")
    return _draw(infos, study)


def _get_info(study: "Study", step: int | None) -> list[_Prediction]:
    trials = study.get_trials(deepcopy=False)
    infos = []
    for ranked in rank_trials(study, step=step):
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
    return infos


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _draw(infos: list[_Prediction], study: "Study", most: int | None = None) -> "go.Figure":
    """Draw at most ``most`` trials, evenly spaced in the ranking."""
    import plotly.graph_objects as go

    values = [info.value for info in infos if info.value is not None]
    spread = values + [info.predicted for info in infos]
    axis = _style.value_axis_type(spread)
    complete = [
        (info.predicted, info.value)
        for info in infos
        if info.state == TrialState.COMPLETE and info.value is not None
    ]
    rho = _style.rank_correlation([p for p, _ in complete], [v for _, v in complete])
    remarks = []
    if rho is not None:
        remarks.append(
            f"out of sample; rank correlation {rho:.2f} over {len(complete)} COMPLETE trials"
        )
    chosen = [infos[i] for i in _style.spread(len(infos), most or len(infos))]
    if len(chosen) < len(infos):
        remarks.append(f"{len(chosen)} of {len(infos)} drawn")
    figure = go.Figure(
        layout={
            "title": _style.title("Predicted and actual final value", remarks),
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
            "legend": _style.LEGEND,
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
        TrialState.PRUNED: "PRUNED (at its last report)",
        TrialState.COMPLETE: "COMPLETE",
        TrialState.RUNNING: "RUNNING (at its last report)",
    }
    for state, name in names.items():
        drawn = [info for info in chosen if info.state == state and info.value is not None]
        if not drawn:
            continue
        intervals = {
            "type": "data",
            "symmetric": False,
            "array": [_reach(info.upper, info.predicted) for info in drawn],
            "arrayminus": [_reach(info.predicted, info.lower) for info in drawn],
            "thickness": 1 if len(chosen) <= 150 else 0.4,
            "width": 0,
            "color": _style.STATE_COLORS[state],
        }
        figure.add_scatter(
            x=[info.predicted for info in drawn],
            y=[info.value for info in drawn],
            error_x=None if state == TrialState.PRUNED else intervals,
            mode="markers",
            marker={
                "color": _style.STATE_COLORS[state],
                "symbol": _style.STATE_SYMBOLS[state],
                "size": _style.marker_size(len(chosen)),
            },
            name=name,
            customdata=[info.number for info in drawn],
            hovertemplate="trial %{customdata}<br>predicted %{x:.4g}<br>"
            + ("actual" if state == TrialState.COMPLETE else "last report")
            + " %{y:.4g}<extra></extra>",
        )
    return figure


def _reach(upper: float | None, lower: float | None) -> float:
    return max(upper - lower, 0.0) if upper is not None and lower is not None else 0.0


FIGURE = FigureSpec(
    id="predictions",
    name="Predicted and actual final value",
    caption="The closer to the dashed line, the better the predictions: each is made by a model "
    "that had not seen the trial.",
    info=lambda study: _get_info(study, None) or None,
    draw=_draw,
)
