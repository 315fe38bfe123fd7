"""Spectra: of one network with its band over inputs, or of the trials of a study."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from optuna.study import Study
from optuna.trial import FrozenTrial

from lyap_optuna._logging import get_logger
from lyap_optuna.records import load_spectra, read_readouts
from lyap_optuna.visualization import _style
from lyap_optuna.visualization._spec import FigureSpec

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from lyap_optuna.spectrum import LyapunovSpectrum

_logger = get_logger(__name__)

_MAX_NAMED = 8
"""Up to this many trials have a name in the legend; more share a colour bar."""

_MAX_LINES = 24
"""Above this, trials share traces by colour, so that a figure of 1,000 trials stays small."""

_MOST_SPECTRA = 100
"""Of more trials, a published figure has this many: lines on top of lines show no more."""


class _TrialSpectrum(NamedTuple):
    number: int
    state: str
    step: int
    value: float | None
    position: tuple[float, ...]
    exponents: tuple[float, ...]
    std: tuple[float | None, ...] = ()
    layer: str = ""


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
    so that networks of different sizes compare. COMPLETE trials are coloured by the rank of their
    value, the best drawn last; those without a final value are grey, below all others.

    Args:
        target: A :class:`~lyap_optuna.LyapunovSpectrum`, drawn with a band of one standard
            deviation over its inputs; or a study whose probe measured whole spectra
            (``full_spectrum=True``).
        trial_numbers: Of a study, only these trials. They are drawn whole and with their bands
            where the study's database holds their spectra; else, as all trials are without this
            argument, from the quantiles stored with each trial.
        step: Of a study, the readouts at this step; the latest of each trial by default.

    Returns:
        The figure; an empty one, with a warning logged, where the study holds no spectra.

    Raises:
        ValueError: ``trial_numbers`` or ``step`` is given with a spectrum.
        RuntimeError: The database's table has another schema version; the message says what to do.

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
        infos = _get_study_info(target, trial_numbers, step)
        if not infos:
            _logger.warning(
                "No trial has a whole spectrum here. Use `LyapunovProbe(..., full_spectrum=True)`."
            )
        return _draw_study(infos, target)
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
    infos: list[_TrialSpectrum] = []
    for trial in study.get_trials(deepcopy=False):
        if trial_numbers is None:
            infos += _from_quantiles(study, trial, step)
        elif trial.number in trial_numbers:
            infos += _from_database(study, trial, step) or _from_quantiles(study, trial, step)
    return infos


def _from_quantiles(study: Study, trial: FrozenTrial, step: int | None) -> list[_TrialSpectrum]:
    readouts = {s: r for s, r in read_readouts(trial).items() if r.spectra()}
    at = step if step is not None else max(readouts, default=None)
    if at is None or at not in readouts:
        return []
    state = readouts[at].state
    return [
        _of(study, trial, at, tuple(reversed(q)), layer=_layer(layer, state) if layer else "")
        for layer, q in readouts[at].spectra().items()
    ]


def _from_database(study: Study, trial: FrozenTrial, step: int | None) -> list[_TrialSpectrum]:
    try:
        records = load_spectra(study, trial_number=trial.number, step=step)
    except ValueError:  # kept where there are no tables
        return []
    latest = max((record.step for record in records), default=None)
    shown = [record for record in records if record.step == latest]
    return [
        _of(
            study,
            trial,
            r.step,
            r.exponents,
            r.std,
            _layer(r.layer or "model", r.state) if len(shown) > 1 else "",
        )
        for r in shown
    ]


def _layer(name: str, state: str) -> str:
    return f"{name}, {state} state"


def _of(
    study: Study,
    trial: FrozenTrial,
    step: int,
    exponents: tuple[float, ...],
    std: tuple[float | None, ...] = (),
    layer: str = "",
) -> _TrialSpectrum:
    size = max(len(exponents) - 1, 1)
    return _TrialSpectrum(
        number=trial.number,
        state=trial.state.name,
        step=step,
        value=_style.final_value(trial) if len(study.directions) == 1 else None,
        position=tuple(i / size for i in range(len(exponents))),
        exponents=exponents,
        std=std,
        layer=layer,
    )


def _draw_spectrum(info: _SpectrumInfo) -> "go.Figure":
    figure = _figure("Lyapunov spectrum")
    if not info.exponents:
        return figure
    if info.n_inputs > 1:
        name = f"one standard deviation over {info.n_inputs} inputs"
        _style.add_band(figure, info.position, info.lower, info.upper, _style.BLUE, name)
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


def _draw_study(infos: list[_TrialSpectrum], study: Study, most: int | None = None) -> "go.Figure":
    """Draw at most ``most`` trials, evenly spaced by the rank of their value."""
    known = sorted({info.value for info in infos if info.value is not None})
    # Trials of no value first, then from the worst to the best, which lies on top.
    worst = -1.0 if _style.direction_word(study) == "lower" else 1.0
    ordered = sorted(infos, key=lambda i: (i.value is not None, worst * (i.value or 0.0)))
    drawn, remarks = _style.thinned(ordered, most, "drawn, evenly by rank")
    if any(info.std for info in drawn):
        remarks.append("bands: one standard deviation over the inputs")
    if known and any(info.value is None for info in drawn):
        remarks.append("grey: no final value")
    figure = _figure("Lyapunov spectra by trial", remarks)
    if not infos:
        return figure
    shades = _shades([info.value for info in drawn], known)
    if len(drawn) <= _MAX_LINES:
        groups = [[i] for i in range(len(drawn))]
    else:
        bins: dict[float, list[int]] = {}
        for i, shade in enumerate(shades):
            bins.setdefault(-1 if shade is None else int(shade * 9.99), []).append(i)
        groups = list(bins.values())
    for group in groups:
        _add_group(figure, [drawn[i] for i in group], _color(shades[group[0]]), len(drawn))
    if len(drawn) > _MAX_NAMED:
        figure.update_layout(showlegend=False)
        _add_colorbar(figure, known, _style.direction_word(study) if known else "")
    _style.zero_line(figure, [0, 1])
    return figure


def _add_group(figure: "go.Figure", infos: list[_TrialSpectrum], color: str, n_drawn: int) -> None:
    x: list[float | None] = []
    y: list[float | None] = []
    numbers: list[int] = []
    for info in infos:
        if any(s is not None for s in info.std):
            ends = [
                (e - (s or 0.0), e + (s or 0.0))
                for e, s in zip(info.exponents, info.std, strict=True)
            ]
            lower, upper = zip(*ends, strict=True)
            _style.add_band(figure, info.position, lower, upper, color)
        x += [*(round(p, 4) for p in info.position), None]
        y += [*(float(f"{e:.4g}") for e in info.exponents), None]
        numbers += [info.number] * (len(info.exponents) + 1)
    label, name = "trial %{customdata}", None
    if len(infos) == 1:
        info = infos[0]
        value = _style.number(info.value)
        layer = f", {_style.text(info.layer)}" if info.layer else ""
        label += f"{layer}, {info.state}, step {info.step}<br>value {value}"
        name = f"trial {info.number}{layer}: {value}"
    figure.add_scatter(
        x=x[:-1],
        y=y[:-1],
        mode="lines",
        line={"color": color, "width": 1.5},
        opacity=0.8 if n_drawn <= _MAX_LINES else 0.6 if n_drawn <= 150 else 0.35,
        name=name,
        customdata=numbers[:-1],
        hovertemplate=f"{label}<br>exponent %{{y:.4g}}<extra></extra>",
    )


def _shades(values: Sequence[float | None], known: Sequence[float]) -> list[float | None]:
    # By rank, not by value: one diverged trial must not make all others one colour.
    size = max(len(known) - 1, 1)
    place = {value: i / size for i, value in enumerate(known)}
    return [None if value is None else place[value] for value in values]


def _color(shade: float | None) -> str:
    return _style.GREY if shade is None else _style.shade(shade)


_END = 0.05
"""Of the colour bar beyond either end, as a share of the range."""


def _add_colorbar(figure: "go.Figure", known: Sequence[float], better: str) -> None:
    if len(known) < 2:
        return
    places = sorted({0, len(known) // 4, len(known) // 2, (3 * len(known)) // 4, len(known) - 1})
    size = len(known) - 1
    shades = [[(i / 10 + _END) / (1 + 2 * _END), _color(i / 10)] for i in range(11)]
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={
            "color": [0],
            # A little more at both ends, so that the last label is clear of the title.
            "cmin": -_END,
            "cmax": 1 + _END,
            "colorscale": [[0, _color(0)], *shades, [1, _color(1)]],
            "showscale": True,
            "colorbar": {
                "title": {"text": f"value, by rank<br>({better} is better)"},
                "tickvals": [i / size for i in places],
                "ticktext": [_style.number(known[i]) for i in places],
            },
        },
        hoverinfo="skip",
        showlegend=False,
    )


def _figure(heading: str, remarks: Sequence[str] = ()) -> "go.Figure":
    import plotly.graph_objects as go

    axes = _style.INDEX_AXIS, _style.EXPONENT_AXIS
    return go.Figure(layout=_style.layout(heading, *axes, remarks))


FIGURE = FigureSpec(
    id="spectra",
    name="Spectra by trial",
    call="plot_spectrum(study)",
    caption="All exponents of each network, coloured by the rank of the trial's value. Near 0 a "
    "signal survives through time; far below it is forgotten.",
    info=lambda study: _get_study_info(study, None, None) or None,
    draw=lambda infos, study, most: _draw_study(
        infos, study, None if most is None else min(most, _MOST_SPECTRA)
    ),
    several_objectives=True,
)
