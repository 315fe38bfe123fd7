"""Predicted against actual final values."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna.prediction import TrialPrediction, rank_trials
from lyap_optuna.visualization import _style
from lyap_optuna.visualization._spec import FigureSpec
from lyap_optuna.visualization._style import TrialPoint

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.study import Study

_logger = get_logger(__name__)


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
    points = predictions_in(study, rank_trials(study, step=step))
    if not points:
        _logger.warning("Nothing is predicted yet: too few COMPLETE trials.")
    return _draw(points, study)


def predictions_in(study: "Study", ranking: Iterable[TrialPrediction]) -> list[TrialPoint]:
    """Return what a ranking predicts of each trial, where it predicts something."""
    trials = study.get_trials(deepcopy=False)
    points = []
    for ranked in ranking:
        predicted = _finite(ranked.predicted_value)
        value = _style.final_value(trials[ranked.number])
        if predicted is None or (value is None and ranked.state == TrialState.COMPLETE):
            continue
        ends = _finite(ranked.lower), _finite(ranked.upper)
        points.append(TrialPoint(ranked.number, ranked.state, predicted, value, *ends))
    return points


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _draw(points: list[TrialPoint], study: "Study", most: int | None = None) -> "go.Figure":
    """Draw at most ``most`` trials, evenly spaced in the ranking."""
    import plotly.graph_objects as go

    drawn, left_out = _style.thinned(points, most)
    rho, n_complete = _style.rank_correlation(points)
    told = [] if rho is None else [f"out of sample; {_style.told_correlation(rho, n_complete)}"]
    layout = _style.layout(
        "Predicted and actual final value",
        "predicted final value",
        f"final value ({_style.direction_word(study)} is better)",
        told + left_out,
    )
    values = [point.value for point in points if point.value is not None]
    values += [point.x for point in points]
    axis = _style.value_axis(values)
    figure = go.Figure(layout=layout).update_xaxes(axis).update_yaxes(axis)
    if not points:
        return figure
    ends = [min(values), max(values)]
    _style.reference_line(figure, ends, ends, "predicted = actual")
    _style.add_trials(
        figure,
        drawn,
        name="COMPLETE, with 80 % interval",
        hover="predicted %{x:.4g}<br>actual %{y:.4g}",
        told=_told,
    )
    return figure


def _told(point: TrialPoint) -> str:
    ends = f"{_style.number(point.lower)} to {_style.number(point.upper)}"
    return f"predicted {_style.number(point.x)} (80 % interval {ends})"


FIGURE = FigureSpec(
    id="predictions",
    name="Predicted and actual final value",
    call="plot_predictions(study)",
    caption="Closer to the dashed line is better. Each prediction is by a model that had not seen "
    "the trial, from what was known at its last readout.",
    info=lambda study: predictions_in(study, rank_trials(study)) or None,
    draw=_draw,
)
