"""Why one trial was kept or pruned: what was predicted, from what, against which threshold."""

import math
from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna.prediction import explain
from lyap_optuna.prediction._study import single_direction
from lyap_optuna.prediction.evidence import in_words
from lyap_optuna.visualization import _style

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.study import Study

_logger = get_logger(__name__)


class _Judgement(NamedTuple):
    step: int
    pruned: bool
    value: float
    lower: float | None
    upper: float | None
    threshold: float | None
    told: str


class _Info(NamedTuple):
    number: int
    state: TrialState
    steps: list[int]
    reported: list[float]
    final: float | None
    judgements: list[_Judgement]


def plot_explanation(study: "Study", trial_number: int) -> "go.Figure":
    """Plot what was predicted of a trial, from which evidence, against which threshold.

    The curve is what the trial reported. At each recorded decision (the latest one, and earlier
    ones where verdict or evidence changed) stand the predicted final value, its 80 % interval, and
    the threshold of the best trials at that moment. For a trial without a recorded decision the
    default predictor says what it makes of it now.

    Args:
        study: A single-objective study.
        trial_number: Number of the trial.

    Returns:
        The figure.

    Raises:
        ValueError: The study has several objectives, or no trial has this number.

    Example:
        >>> import optuna
        >>> from lyap_optuna.visualization import plot_explanation
        >>> study = optuna.create_study()
        >>> study.add_trial(optuna.create_trial(value=0.5, intermediate_values={0: 0.9, 1: 0.5}))
        >>> plot_explanation(study, 0).layout.yaxis.title.text
        'objective value'
    """
    _style.single_objective(study)
    info = _get_info(study, trial_number)
    if not info.steps and not info.judgements:
        _logger.warning(f"Trial {trial_number} has reported nothing.")
    return _draw(info, _style.direction_word(study))


def _get_info(study: "Study", trial_number: int) -> _Info:
    explanation = explain(study, trial_number)
    sign = single_direction(study)
    trial = next(t for t in study.get_trials(deepcopy=False) if t.number == trial_number)
    finite = {s: v for s, v in sorted(trial.intermediate_values.items()) if math.isfinite(v)}
    judgements = [
        _Judgement(
            step=d.step,
            pruned=d.verdict == "pruned",
            value=d.predicted_value,
            lower=d.lower,
            upper=d.upper,
            threshold=d.threshold,
            told=_told(in_words(d.evidence, sign), d.skill, d.probability),
        )
        for d in explanation.decisions
        if d.predicted_value is not None
    ]
    now = None if explanation.decisions else explanation.prediction
    if now is not None and now.step is not None and now.predicted_value is not None:
        judgements.append(
            _Judgement(
                step=now.step,
                pruned=False,
                value=now.predicted_value,
                lower=now.lower,
                upper=now.upper,
                threshold=None,
                told=f"from {in_words(now.evidence, sign)}, by the default predictor, now",
            )
        )
    final = None
    if trial.state == TrialState.COMPLETE and math.isfinite(trial.values[0]):
        final = trial.values[0]
    return _Info(trial.number, trial.state, list(finite), list(finite.values()), final, judgements)


def _told(evidence: str, skill: float | None, probability: float | None) -> str:
    told = f"from {evidence}"
    if skill is not None:
        told += f" (rank correlation {skill:.2f})"
    if probability is not None:
        told += f"; chance of being among the best {probability:.2g}"
    return told


def _draw(info: _Info, better: str) -> "go.Figure":
    import plotly.graph_objects as go

    told = [info.judgements[-1].told, f"{better} is better"] if info.judgements else []
    heading = f"Trial {info.number}, {info.state.name}"
    figure = go.Figure(layout=_style.layout(heading, "step", "objective value", told))
    predicted = [v for j in info.judgements for v in (j.lower, j.value, j.upper) if v is not None]
    figure.update_yaxes(_style.value_axis([*info.reported, *predicted]))
    figure.add_scatter(
        x=info.steps,
        y=info.reported,
        mode="lines+markers",
        line={"color": _style.GREY},
        name="reported",
        hovertemplate="step %{x}: %{y:.4g}",
    )
    steps = sorted({*info.steps, *(j.step for j in info.judgements)})
    last = max(steps, default=0)
    _add_predictions(figure, info.judgements)
    _add_thresholds(figure, info.judgements, last)
    if info.final is not None:
        figure.add_scatter(
            x=[last],
            y=[info.final],
            mode="markers",
            marker={"color": _style.GREY, "size": 14, "symbol": "circle-open"},
            name="final value",
        )
    _style.name_steps(figure, steps)
    return figure


def _add_predictions(figure: "go.Figure", judgements: list[_Judgement]) -> None:
    for pruned in (False, True):
        found = [j for j in judgements if j.pruned == pruned]
        if not found:
            continue
        color = _style.VERMILLION if pruned else _style.BLUE
        values = [j.value for j in found]
        ends = [j.lower for j in found], [j.upper for j in found]
        figure.add_scatter(
            x=[j.step for j in found],
            y=values,
            error_y=_style.interval(values, *ends, color=color),
            mode="markers",
            marker={"color": color, "size": 11, "symbol": "x" if pruned else "diamond"},
            name=f"predicted final value, 80 % interval: {'pruned' if pruned else 'kept'}",
            text=[_style.text(j.told) for j in found],
            hovertemplate="step %{x}: %{y:.4g}<br>%{text}",
        )


def _add_thresholds(figure: "go.Figure", judgements: list[_Judgement], last: int) -> None:
    """Draw each threshold as a short level line at the step at which it held."""
    known = [(j.step, j.threshold) for j in judgements if j.threshold is not None]
    if not known:
        return
    reach = max(last - min(step for step, _ in known), 1) * 0.04 + 0.15
    figure.add_scatter(
        x=[x for step, _ in known for x in (step - reach, step + reach, None)],
        y=[y for _, threshold in known for y in (threshold, threshold, None)],
        mode="lines",
        line={"color": _style.GREEN, "width": 3},
        name="threshold of the best then",
        hovertemplate="%{y:.4g}",
    )
