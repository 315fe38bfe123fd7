"""Figures as optuna-dashboard keeps them: small, and readable on light and dark pages.

The dashboard stores a figure as attributes of its study, 2,045 characters each, reads all of them
with every page, and draws them without a theme of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lyap_optuna.visualization import (
    _exponent_value,
    _prediction_skill,
    _predictions,
    _pruning_timeline,
    _spectrum,
    _spectrum_evolution,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.study import Study

MAX_BYTES = 100_000
"""What one figure may take as JSON; six of them stay below 600,000 bytes."""

_MOST_TRIALS = 1_000
_MOST_SPECTRA = 100
_DIGITS = 4
_TEXT, _GRID = "#808080", "rgba(128, 128, 128, 0.25)"


@dataclass(frozen=True)
class StudyInfo:
    """The numbers behind the figures of a study, gathered once; None and empty where none are.

    Those of studies with several objectives have only spectra and pruning.
    """

    spectra: list[_spectrum._TrialSpectrum]
    pruning: _pruning_timeline._TimelineInfo
    exponents: _exponent_value._ExponentValueInfo | None = None
    predictions: tuple[_predictions._Prediction, ...] = ()
    skill: tuple[_prediction_skill._SkillLine, ...] = ()
    best: _spectrum_evolution._EvolutionInfo | None = None


def gather(study: "Study") -> StudyInfo:
    """Return the numbers behind all figures of a study."""
    spectra = _spectrum._get_study_info(study, None, None)
    pruning = _pruning_timeline._get_info(study)
    if len(study.directions) > 1:
        return StudyInfo(spectra, pruning)
    exponents = _exponent_value._get_info(study, "max_displacement", None)
    if not exponents.points:
        exponents = _exponent_value._get_info(study, "max", None)
    return StudyInfo(
        spectra,
        pruning,
        exponents if exponents.points else None,
        tuple(_predictions._get_info(study, None)),
        tuple(_prediction_skill._get_info(study)),
        _best(study),
    )


def _best(study: "Study") -> _spectrum_evolution._EvolutionInfo | None:
    try:
        number = study.best_trial.number
    except ValueError:  # nothing is COMPLETE, or nothing feasible
        return None
    info = _spectrum_evolution._get_info(study, number)
    return info if info.readouts else None


def published_figures(study: "Study", info: StudyInfo) -> dict[str, "go.Figure"]:
    """Return the figures that have data, by the id under which they are published.

    At most 1,000 trials are drawn, of spectra 100, and fewer where the figure would be over
    :data:`MAX_BYTES`; its title says so. Numbers are rounded to 4 digits.
    """
    draw: dict[str, Callable[[int], go.Figure]] = {}
    if (exponents := info.exponents) is not None:
        draw["lyapunov-exponents"] = lambda most: _exponent_value._draw(exponents, study, most)
    if info.skill:
        draw["lyapunov-skill"] = lambda _: _prediction_skill._draw(list(info.skill))
    if info.predictions:
        draw["lyapunov-predictions"] = lambda most: _predictions._draw(
            list(info.predictions), study, most
        )
    if info.pruning.n_saved or info.pruning.paused:
        draw["lyapunov-pruning"] = lambda most: _pruning_timeline._draw(info.pruning, most)
    if info.spectra:
        draw["lyapunov-spectra"] = lambda most: _spectrum._draw_study(
            info.spectra, study, min(most, _MOST_SPECTRA)
        )
    if (best := info.best) is not None:
        draw["lyapunov-best-trial"] = lambda _: _spectrum_evolution._draw(best)
    return {name: _fitted(name, of) for name, of in draw.items()}


def _fitted(name: str, draw: "Callable[[int], go.Figure]") -> "go.Figure":
    most = _MOST_TRIALS
    while True:
        figure = _small(draw(most), name)
        if len(figure.to_json()) <= MAX_BYTES or most < 10:
            return figure
        most //= 2


def _small(figure: "go.Figure", name: str) -> "go.Figure":
    import plotly.graph_objects as go

    axis = {"gridcolor": _GRID, "linecolor": _GRID, "automargin": True}
    figure.update_layout(
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"color": _TEXT},
        title={"x": 0.02, "font": {"size": 16}},
        margin={"l": 60, "r": 20, "t": 80, "b": 60},
        modebar={"bgcolor": "rgba(0, 0, 0, 0)", "color": _TEXT},
        uirevision=name,  # a zoom outlives the next refresh of the page
    )
    figure.update_xaxes(axis)
    figure.update_yaxes(axis)
    drawn = _rounded(figure.to_plotly_json())
    drawn["layout"]["template"] = {}  # without the key, plotly puts its default there
    return go.Figure(drawn)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # a numpy array
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
