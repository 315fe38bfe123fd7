"""An exponent, or how far it moved, against the final value."""

import math
from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna.records import baseline_step, read_readouts
from lyap_optuna.visualization import _style

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.study import Study

_logger = get_logger(__name__)

_NAMES = {
    "max": "maximum exponent",
    "mean": "mean exponent",
    "max_displacement": "displacement of the maximum exponent",
    "mean_displacement": "displacement of the mean exponent",
}


class _Point(NamedTuple):
    number: int
    state: TrialState
    x: float
    value: float


class _ExponentValueInfo(NamedTuple):
    exponent: str
    step: int | None
    points: list[_Point]
    correlation: float | None
    n_complete: int


def plot_exponent_value(
    study: "Study", *, exponent: str = "max_displacement", step: int | None = None
) -> "go.Figure":
    """Plot an exponent at an early step against the final value, one point per trial.

    The title gives Spearman's rank correlation over the COMPLETE trials. A pruned trial stands at
    its last reported value.

    Args:
        study: A single-objective study.
        exponent: ``"max"``, ``"mean"``, ``"max_displacement"`` or ``"mean_displacement"``, the
            displacement being counted from the baseline.
        step: The step of the readout; by default the first reported step with readouts.

    Returns:
        The figure; an empty one, with a warning logged, where the study has no such readouts.

    Raises:
        ValueError: ``exponent`` is none of these, or the study has several objectives.

    Example:
        >>> import optuna
        >>> from lyap_optuna.visualization import plot_exponent_value
        >>> study = optuna.create_study()
        >>> for value in (1.0, 2.0, 3.0):
        ...     series = {"1": {"max": -value, "mean": -4.0}}
        ...     study.add_trial(
        ...         optuna.create_trial(value=value, user_attrs={"lyapunov:readouts": series})
        ...     )
        >>> figure = plot_exponent_value(study, exponent="max")
        >>> "-1.00" in figure.layout.title.text
        True
    """
    return _draw(_get_info(study, exponent, step), study)


def _get_info(study: "Study", exponent: str, step: int | None) -> _ExponentValueInfo:
    if exponent not in _NAMES:
        raise ValueError(
            f"exponent must be one of {', '.join(map(repr, _NAMES))}, not {exponent!r}."
        )
    _style.single_objective(study)
    series = []
    for trial in study.get_trials(deepcopy=False):
        value = _style.final_value(trial)
        readouts = read_readouts(trial) if value is not None else {}
        if value is not None and readouts:
            series.append((trial, value, readouts, baseline_step(trial, readouts)))
    if step is None:
        after = [s for _, _, readouts, base in series for s in readouts if base is None or s > base]
        step = min(after, default=None)
    points = []
    for trial, value, readouts, base in series:
        if step is None or step not in readouts:
            continue
        name, _, displacement = exponent.partition("_")
        x = getattr(readouts[step], name)
        if displacement:
            if base is None or base == step:
                continue
            x -= getattr(readouts[base], name)
        points.append(_Point(trial.number, trial.state, x, value))
    if not points:
        _logger.warning(
            f"No finished trial has a {_NAMES[exponent]}"
            + ("" if step is None else f" at step {step}")
            + "."
        )
    complete = [point for point in points if point.state == TrialState.COMPLETE]
    return _ExponentValueInfo(exponent, step, points, _correlation(complete), len(complete))


def _correlation(points: list[_Point]) -> float | None:
    if len({point.x for point in points}) < 2 or len({point.value for point in points}) < 2:
        return None
    from scipy import stats

    rho = float(stats.spearmanr([p.x for p in points], [p.value for p in points]).statistic)
    return rho if math.isfinite(rho) else None


def _axis_range(x: list[float]) -> tuple[list[float] | None, int]:
    """Return a range without the far outliers, and their number; None where there are none."""
    if len(x) < 10:
        return None, 0
    ordered = sorted(x)
    cut = max(len(x) // 20, 1)
    lower, upper = min(ordered[cut], 0.0), max(ordered[-1 - cut], 0.0)
    margin = 0.25 * (upper - lower)
    if margin == 0 or ordered[-1] - ordered[0] < 4 * (upper - lower):
        return None, 0
    seen = [lower - margin, upper + margin]
    return seen, sum(not seen[0] <= value <= seen[1] for value in x)


def _draw(info: _ExponentValueInfo, study: "Study") -> "go.Figure":
    import plotly.graph_objects as go

    name = _NAMES[info.exponent]
    title = name[0].upper() + name[1:]
    if info.step is not None:
        title += f" at step {info.step}"
    title += " against the final value"
    remarks = []
    if info.correlation is not None:
        remarks.append(
            f"rank correlation {info.correlation:.2f} over {info.n_complete} COMPLETE trials"
        )
    seen, n_outside = _axis_range([point.x for point in info.points])
    if n_outside:
        remarks.append(f"{n_outside} far outside: double-click to see")
    if remarks:
        title += f"<br><sub>{'; '.join(remarks)}</sub>"
    figure = go.Figure(
        layout={
            "title": {"text": title},
            "xaxis": {"title": {"text": f"{name} (nats/step)"}, "zeroline": False},
            "yaxis": {
                "title": {"text": f"final value ({_style.direction_word(study)} is better)"},
                "type": _style.value_axis_type([point.value for point in info.points]),
                "zeroline": False,
            },
            "showlegend": True,
        }
    )
    if not info.points:
        return figure
    for state in (TrialState.COMPLETE, TrialState.PRUNED):
        points = [point for point in info.points if point.state == state]
        if not points:
            continue
        pruned = state == TrialState.PRUNED
        figure.add_scatter(
            x=[point.x for point in points],
            y=[point.value for point in points],
            mode="markers",
            marker={
                "color": _style.STATE_COLORS[state],
                "symbol": _style.STATE_SYMBOLS[state],
                "size": 9,
            },
            name="PRUNED (at its last report)" if pruned else state.name,
            text=[f"trial {point.number}" for point in points],
            hovertemplate="%{text}<br>%{x:.4g} nats/step<br>value %{y:.4g}<extra></extra>",
        )
    if seen is not None:
        figure.update_xaxes(range=seen)
    figure.add_vline(x=0, line={"color": _style.GREY, "width": 1.5, "dash": "dash"})
    return figure
