"""An exponent, or how far it moved, against the final value."""

from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna.records import baseline_step, prevailing_state, read_readouts
from lyap_optuna.visualization import _style
from lyap_optuna.visualization._spec import FigureSpec
from lyap_optuna.visualization._style import TrialPoint

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


class _ExponentValueInfo(NamedTuple):
    exponent: str
    step: int | None
    points: list[TrialPoint]
    correlation: float | None
    n_complete: int


def plot_exponent_value(
    study: "Study", *, exponent: str = "max_displacement", step: int | None = None
) -> "go.Figure":
    """Plot an exponent at an early step against the final value, one point per trial.

    The title gives Spearman's rank correlation over the COMPLETE trials. Pruned and running trials
    have no final value: their exponents stand in a strip below.

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
    info = _get_info(study, exponent, step)
    if not info.n_complete:
        at = "" if info.step is None else f" at step {info.step}"
        _logger.warning(f"No COMPLETE trial has a {_NAMES[exponent]}{at}.")
    return _draw(info, study)


def _get_info(study: "Study", exponent: str, step: int | None) -> _ExponentValueInfo:
    if exponent not in _NAMES:
        raise ValueError(
            f"exponent must be one of {', '.join(map(repr, _NAMES))}, not {exponent!r}."
        )
    _style.single_objective(study)
    series = []
    for trial in study.get_trials(deepcopy=False):
        value = _style.final_value(trial)
        known = value is not None or trial.state in (TrialState.PRUNED, TrialState.RUNNING)
        readouts = read_readouts(trial) if known else {}
        if readouts:
            series.append((trial, value, readouts, baseline_step(trial, readouts)))
    if step is None:
        after = [s for _, _, readouts, base in series for s in readouts if base is None or s > base]
        step = min(after, default=None)
    states = [r[max(r)].state for trial, _, r, _ in series if trial.state == TrialState.COMPLETE]
    state = prevailing_state(states)  # those of different states do not compare
    points = []
    for trial, value, readouts, base in series:
        if step is None or step not in readouts or state not in (None, readouts[step].state):
            continue
        name, _, displacement = exponent.partition("_")
        x = getattr(readouts[step], name)
        if displacement:
            if base is None or base == step or readouts[base].state != readouts[step].state:
                continue
            before = getattr(readouts[base], name)
            x = None if x is None or before is None else x - before
        if x is None:  # a mean that could not be had
            continue
        points.append(TrialPoint(trial.number, trial.state, x, value))
    return _ExponentValueInfo(exponent, step, points, *_style.rank_correlation(points))


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


def _draw(info: _ExponentValueInfo, study: "Study", most: int | None = None) -> "go.Figure":
    """Draw at most ``most`` trials, evenly spaced over the study."""
    import plotly.graph_objects as go

    name = _NAMES[info.exponent]
    told = []
    if info.correlation is not None:
        told.append(_style.told_correlation(info.correlation, info.n_complete))
    drawn, left_out = _style.thinned(info.points, most)
    seen, n_outside = _axis_range([point.x for point in info.points])
    unit = "nats/step" + (f"; {n_outside} outside: double-click" if n_outside else "")
    step = "" if info.step is None else f" at step {info.step}"
    layout = _style.layout(
        f"{name[0].upper()}{name[1:]}{step}",
        f"{name} ({unit})",
        f"final value ({_style.direction_word(study)} is better)",
        told + left_out,
    )
    values = [point.value for point in info.points if point.value is not None]
    figure = go.Figure(layout={**layout, "showlegend": False})
    figure.update_yaxes(_style.value_axis(values))
    if not info.points:
        return figure
    _style.add_trials(
        figure,
        drawn,
        name="COMPLETE",
        hover="%{x:.4g} nats/step<br>value %{y:.4g}",
        told=lambda point: f"{_style.number(point.x)} nats/step",
    )
    if seen is not None:
        figure.update_xaxes(range=seen)
    figure.add_vline(x=0, line=_style.REFERENCE)
    return figure


def _of_study(study: "Study") -> _ExponentValueInfo | None:
    """Return the displacement of the maximum; without baselines, the maximum itself."""
    for exponent in ("max_displacement", "max"):
        info = _get_info(study, exponent, None)
        if info.n_complete:
            return info
    return None


FIGURE = FigureSpec(
    id="exponents",
    name="Exponent and final value",
    call="plot_exponent_value(study)",
    caption="How far the maximum exponent had moved at the first step, against the final value. A "
    "cloud that slopes tells the end early.",
    info=_of_study,
    draw=_draw,
)
