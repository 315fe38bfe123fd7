"""Spectra: of one network with its band over inputs, or of the trials of a study."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from optuna.study import Study

from lyap_optuna._logging import get_logger
from lyap_optuna.records import read_readouts
from lyap_optuna.visualization import _style

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from lyap_optuna.spectrum import LyapunovSpectrum

_logger = get_logger(__name__)

_MAX_LINES = 24
"""Above this, trials share traces by colour, so that a figure of 1,000 trials stays small."""


class _TrialSpectrum(NamedTuple):
    number: int
    state: str
    step: int
    value: float | None
    position: tuple[float, ...]
    exponents: tuple[float, ...]


class _SpectrumInfo(NamedTuple):
    position: tuple[float, ...]
    exponents: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    n_inputs: int


def plot_spectrum(
    target: "LyapunovSpectrum | Study",
    trial_numbers: Sequence[int] | None = None,
    *,
    step: int | None = None,
) -> "go.Figure":
    """Plot the spectrum of a network, or the spectra of trials of a study.

    Exponents are drawn from the largest to the smallest over their index divided by their number,
    so that networks of different sizes compare.

    Args:
        target: A :class:`~lyap_optuna.LyapunovSpectrum`, drawn with a band of one standard
            deviation over its inputs; or a study whose probe measured whole spectra
            (``full_spectrum=True``), drawn from the stored quantiles.
        trial_numbers: Of a study, only these trials.
        step: Of a study, the readouts at this step; the latest of each trial by default.

    Returns:
        The figure; an empty one, with a warning logged, where the study holds no spectra.

    Example:
        >>> import optuna
        >>> from lyap_optuna.visualization import plot_spectrum
        >>> study = optuna.create_study()
        >>> readout = {"max": 0.0, "mean": -1.0, "quantiles": [-2.0, -1.0, 0.0]}
        >>> study.add_trial(
        ...     optuna.create_trial(value=1.0, user_attrs={"lyapunov:readouts": {"1": readout}})
        ... )
        >>> [float(y) for y in plot_spectrum(study).data[0].y]
        [0.0, -1.0, -2.0]
    """
    if isinstance(target, Study):
        return _draw_study(_get_study_info(target, trial_numbers, step))
    if trial_numbers is not None or step is not None:
        raise ValueError("trial_numbers and step belong to a study, not to a spectrum.")
    return _draw_spectrum(_get_spectrum_info(target))


def _get_spectrum_info(spectrum: "LyapunovSpectrum") -> _SpectrumInfo:
    exponents = [float(value) for value in spectrum.exponents]
    std = [float(value) for value in spectrum.std]
    keep = [i for i, value in enumerate(exponents) if math.isfinite(value)]
    size = max(len(exponents) - 1, 1)
    band = [std[i] if math.isfinite(std[i]) else 0.0 for i in keep]
    return _SpectrumInfo(
        position=tuple(i / size for i in keep),
        exponents=tuple(exponents[i] for i in keep),
        lower=tuple(exponents[i] - s for i, s in zip(keep, band, strict=True)),
        upper=tuple(exponents[i] + s for i, s in zip(keep, band, strict=True)),
        n_inputs=len(spectrum.per_input),
    )


def _get_study_info(
    study: Study, trial_numbers: Sequence[int] | None, step: int | None
) -> list[_TrialSpectrum]:
    infos = []
    single = len(study.directions) == 1
    for trial in study.get_trials(deepcopy=False):
        if trial_numbers is not None and trial.number not in trial_numbers:
            continue
        readouts = {s: r for s, r in read_readouts(trial).items() if r.quantiles}
        at = step if step is not None else max(readouts, default=None)
        if at is None or at not in readouts:
            continue
        exponents = tuple(reversed(readouts[at].quantiles or ()))
        size = max(len(exponents) - 1, 1)
        infos.append(
            _TrialSpectrum(
                number=trial.number,
                state=trial.state.name,
                step=at,
                value=_style.final_value(trial) if single else None,
                position=tuple(i / size for i in range(len(exponents))),
                exponents=exponents,
            )
        )
    if not infos:
        _logger.warning(
            "No trial has a whole spectrum here. Use `LyapunovProbe(..., full_spectrum=True)`."
        )
    return infos


def _draw_spectrum(info: _SpectrumInfo) -> "go.Figure":
    import plotly.graph_objects as go

    figure = go.Figure(layout=_layout("Lyapunov spectrum"))
    if not info.exponents:
        return figure
    if info.n_inputs > 1:
        figure.add_scatter(
            x=info.position + info.position[::-1],
            y=info.upper + info.lower[::-1],
            fill="toself",
            fillcolor="rgba(0, 114, 178, 0.25)",
            line={"width": 0},
            hoverinfo="skip",
            name=f"one standard deviation over {info.n_inputs} inputs",
        )
    figure.add_scatter(
        x=info.position,
        y=info.exponents,
        mode="lines" if len(info.exponents) > 64 else "lines+markers",
        line={"color": _style.BLUE},
        name="mean over inputs",
        hovertemplate="exponent %{y:.4g} at %{x:.3f}<extra></extra>",
    )
    _style.zero_line(figure, [0, 1])
    return figure


def _draw_study(infos: list[_TrialSpectrum]) -> "go.Figure":
    import plotly.graph_objects as go

    figure = go.Figure(layout=_layout("Lyapunov spectra by trial"))
    if not infos:
        return figure
    shades = _shades([info.value for info in infos])
    if len(infos) <= _MAX_LINES:
        groups = [[i] for i in range(len(infos))]
    else:
        bins: dict[int, list[int]] = {}
        for i, shade in enumerate(shades):
            bins.setdefault(-1 if shade is None else int(shade * 9.99), []).append(i)
        groups = [bins[key] for key in sorted(bins)]
    for group in groups:
        _add_group(figure, [infos[i] for i in group], _color(shades[group[0]]))
    _style.zero_line(figure, [0, 1])
    _add_colorbar(figure, [info.value for info in infos if info.value is not None])
    figure.update_layout(showlegend=False)
    return figure


def _add_group(figure: "go.Figure", infos: list[_TrialSpectrum], color: str) -> None:
    x: list[float | None] = []
    y: list[float | None] = []
    numbers: list[int] = []
    for info in infos:
        x += [*(round(p, 4) for p in info.position), None]
        y += [*(float(f"{e:.4g}") for e in info.exponents), None]
        numbers += [info.number] * (len(info.exponents) + 1)
    label = "trial %{customdata}"
    if len(infos) == 1:
        label += (
            f", {infos[0].state}, step {infos[0].step}<br>value {_style.number(infos[0].value)}"
        )
    figure.add_scatter(
        x=x[:-1],
        y=y[:-1],
        mode="lines",
        line={"color": color, "width": 1.5},
        opacity=0.8,
        customdata=numbers[:-1],
        hovertemplate=f"{label}<br>exponent %{{y:.4g}}<extra></extra>",
    )


def _shades(values: list[float | None]) -> list[float | None]:
    # By rank, not by value: one diverged trial must not make all others one colour.
    known = sorted({value for value in values if value is not None})
    size = max(len(known) - 1, 1)
    place = {value: i / size for i, value in enumerate(known)}
    return [None if value is None else place[value] for value in values]


def _color(shade: float | None) -> str:
    from plotly.colors import sample_colorscale

    if shade is None:
        return _style.GREY
    return str(sample_colorscale("Viridis", [0.18 + 0.74 * shade])[0])


def _add_colorbar(figure: "go.Figure", values: list[float]) -> None:
    known = sorted(set(values))
    if len(known) < 2:
        return
    places = sorted({0, len(known) // 4, len(known) // 2, (3 * len(known)) // 4, len(known) - 1})
    size = len(known) - 1
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={
            "color": [0],
            "cmin": 0,
            "cmax": 1,
            "colorscale": [[i / 10, _color(i / 10)] for i in range(11)],
            "showscale": True,
            "colorbar": {
                "title": {"text": "final value<br>(by rank)"},
                "tickvals": [i / size for i in places],
                "ticktext": [_style.number(known[i]) for i in places],
            },
        },
        hoverinfo="skip",
        showlegend=False,
    )


def _layout(title: str) -> dict[str, object]:
    return {
        "title": {"text": title},
        "xaxis": {"title": {"text": _style.INDEX_AXIS}, "zeroline": False},
        "yaxis": {"title": {"text": _style.EXPONENT_AXIS}, "zeroline": False},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
    }
