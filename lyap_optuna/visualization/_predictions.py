"""Predicted against actual final values."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna.prediction import TrialPrediction, rank_trials
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
    trials have no final value, whatever they reported last: where they were predicted to end
    stands in a strip below.

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
    infos = predictions_in(study, rank_trials(study, step=step))
    if not infos:
        _logger.warning("Nothing is predicted yet: too few COMPLETE trials.")
    return _draw(infos, study)


def predictions_in(study: "Study", ranking: Iterable[TrialPrediction]) -> list[_Prediction]:
    """Return what a ranking predicts of each trial, where it predicts something."""
    trials = study.get_trials(deepcopy=False)
    infos = []
    for ranked in ranking:
        if ranked.predicted_value is None or not math.isfinite(ranked.predicted_value):
            continue
        value = _style.final_value(trials[ranked.number])
        if value is None and ranked.state == TrialState.COMPLETE:
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
    axis = _style.value_axis(spread)
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
                "title": {"text": "predicted final value"},
                **axis,
            },
            "yaxis": {
                "title": {"text": f"final value ({_style.direction_word(study)} is better)"},
                **axis,
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
    drawn = [info for info in chosen if info.value is not None]
    figure.add_scatter(
        x=[info.predicted for info in drawn],
        y=[info.value for info in drawn],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [_reach(info.upper, info.predicted) for info in drawn],
            "arrayminus": [_reach(info.predicted, info.lower) for info in drawn],
            "thickness": 1 if len(chosen) <= 150 else 0.4,
            "width": 0,
            "color": _style.STATE_COLORS[TrialState.COMPLETE],
        },
        mode="markers",
        marker={
            "color": _style.STATE_COLORS[TrialState.COMPLETE],
            "size": _style.marker_size(len(chosen)),
        },
        name="COMPLETE, with 80 % interval",
        customdata=[info.number for info in drawn],
        hovertemplate="trial %{customdata}<br>predicted %{x:.4g}<br>actual %{y:.4g}<extra></extra>",
    )
    unknown = [info for info in chosen if info.value is None]
    _style.add_strip(
        figure,
        {
            state: [(info.predicted, _hover(info)) for info in unknown if info.state == state]
            for state in (TrialState.RUNNING, TrialState.PRUNED)
        },
    )
    return figure


def _hover(info: _Prediction) -> str:
    interval = f"{_style.number(info.lower)} to {_style.number(info.upper)}"
    predicted = f"{_style.number(info.predicted)} (80 % interval {interval})"
    return f"trial {info.number}, {info.state.name}<br>predicted {predicted}"


def _reach(upper: float | None, lower: float | None) -> float:
    return max(upper - lower, 0.0) if upper is not None and lower is not None else 0.0


FIGURE = FigureSpec(
    id="predictions",
    name="Predicted and actual final value",
    call="plot_predictions(study)",
    caption="Closer to the dashed line is better. Each prediction is by a model that had not seen "
    "the trial.",
    info=lambda study: predictions_in(study, rank_trials(study)) or None,
    draw=_draw,
)
