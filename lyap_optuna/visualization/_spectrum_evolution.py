"""One trial over its steps."""

from typing import TYPE_CHECKING, NamedTuple

from lyap_optuna._logging import get_logger
from lyap_optuna.records import ReadoutRecord, baseline_step, read_readouts
from lyap_optuna.visualization import _style
from lyap_optuna.visualization._spec import FigureSpec

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.study import Study

_logger = get_logger(__name__)

_MAX_SPECTRA = 24
"""Of more steps with whole spectra, this many are drawn, evenly spaced."""


class _EvolutionInfo(NamedTuple):
    number: int
    readouts: dict[int, ReadoutRecord]
    baseline: int | None


def plot_spectrum_evolution(study: "Study", trial_number: int) -> "go.Figure":
    """Plot how the exponents of one trial moved while it trained.

    On the left the maximum and the mean exponent over steps, with bars of one standard error; on
    the right, where the probe measured whole spectra, the spectrum at each step (of several layers
    that with the largest exponent).

    Args:
        study: A study of any storage.
        trial_number: The number of the trial.

    Returns:
        The figure; an empty one, with a warning logged, where the trial has no readouts.

    Raises:
        ValueError: The study has no such trial.

    Example:
        >>> import optuna
        >>> from lyap_optuna.visualization import plot_spectrum_evolution
        >>> study = optuna.create_study()
        >>> series = {"0": {"max": -0.4, "mean": -1.0}, "1": {"max": -0.1, "mean": -0.8}}
        >>> study.add_trial(
        ...     optuna.create_trial(value=1.0, user_attrs={"lyapunov:readouts": series})
        ... )
        >>> [float(y) for y in plot_spectrum_evolution(study, 0).data[0].y]
        [-0.4, -0.1]
    """
    info = _get_info(study, trial_number)
    if not info.readouts:
        _logger.warning(f"Trial {trial_number} has no Lyapunov readouts.")
    return _draw(info)


def _get_info(study: "Study", trial_number: int) -> _EvolutionInfo:
    trials = study.get_trials(deepcopy=False)
    if not 0 <= trial_number < len(trials):
        raise ValueError(
            f"trial_number must be one of the study's {len(trials)} trials, not {trial_number!r}."
        )
    trial = trials[trial_number]
    readouts = read_readouts(trial)
    return _EvolutionInfo(trial_number, readouts, baseline_step(trial, readouts))


def _draw(info: _EvolutionInfo) -> "go.Figure":
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    title = _style.title(f"Lyapunov exponents of trial {info.number} over training")
    if not info.readouts:
        return go.Figure(layout={"title": title})
    # Of several layers the one with the largest exponent, which is the model's.
    measured = [
        (step, max(spectra, key=lambda quantiles: quantiles[-1]))
        for step, r in info.readouts.items()
        if (spectra := r.spectra().values())
    ]
    whole = dict(measured[i] for i in _style.spread(len(measured), _MAX_SPECTRA))
    figure = make_subplots(rows=1, cols=2 if whole else 1, horizontal_spacing=0.12)
    _add_readouts(figure, info)
    if whole:
        _add_spectra(figure, whole, info.baseline)
    figure.update_yaxes(zeroline=False)
    figure.update_layout(title=title, legend=_style.LEGEND)
    return figure


def _add_readouts(figure: "go.Figure", info: _EvolutionInfo) -> None:
    steps, where = list(info.readouts), {"row": 1, "col": 1}
    for name, field, color, symbol in (
        ("maximum", "max", _style.VERMILLION, "circle"),
        ("mean", "mean", _style.BLUE, "square"),
    ):
        values = [getattr(r, field) for r in info.readouts.values()]
        if all(value is None for value in values):
            continue
        errors = [getattr(r, f"{field}_stderr") or 0.0 for r in info.readouts.values()]
        figure.add_scatter(
            x=steps,
            y=values,
            error_y={"type": "data", "array": errors, "thickness": 1},
            mode="lines+markers",
            marker={"symbol": symbol, "size": 8},
            line={"color": color},
            name=name,
            hovertemplate="step %{x}: %{y:.4g}<extra></extra>",
            **where,
        )
    _style.zero_line(figure, steps, **where)
    baseline = "" if info.baseline is None else f" ({info.baseline}: baseline)"
    figure.update_xaxes(
        title_text=f"step{baseline}",
        zeroline=False,
        tickformat="d",
        nticks=min(len(steps) + 1, 8),
        **where,
    )
    figure.update_yaxes(title_text=_style.EXPONENT_AXIS, **where)


def _add_spectra(
    figure: "go.Figure", spectra: dict[int, tuple[float, ...]], baseline: int | None
) -> None:
    named, where = _style.spread(len(spectra), 6), {"row": 1, "col": 2}
    for i, (step, quantiles) in enumerate(spectra.items()):
        size = max(len(quantiles) - 1, 1)
        figure.add_scatter(
            x=[j / size for j in range(len(quantiles))],
            y=tuple(reversed(quantiles)),
            mode="lines",
            line={
                "color": _style.shade(i / max(len(spectra) - 1, 1)),
                "dash": "dot" if step == baseline else "solid",
            },
            name=f"step {step}" + (" (baseline)" if step == baseline else ""),
            showlegend=i in named,
            hovertemplate=f"step {step}, exponent %{{y:.4g}}<extra></extra>",
            **where,
        )
    _style.zero_line(figure, [0, 1], **where)
    figure.update_xaxes(title_text=_style.INDEX_AXIS, zeroline=False, **where)


def _of_best_trial(study: "Study") -> _EvolutionInfo | None:
    try:
        number = study.best_trial.number
    except ValueError:  # nothing is COMPLETE, or nothing feasible
        return None
    info = _get_info(study, number)
    return info if info.readouts else None


FIGURE = FigureSpec(
    id="best-trial",
    name="Exponents of the best trial",
    call="plot_spectrum_evolution(study, study.best_trial.number)",
    caption="Where the best network's exponents began, and where training has taken them.",
    info=_of_best_trial,
    draw=lambda info, _study, _most: _draw(info),
)
