"""Figure 4 of the paper, for either task: spectra, and their maximum and mean against the loss."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

import lyap_optuna as lyap
from studies.spectrum_statistics.statistics import partial_rank_correlation, rank_correlation

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8C564B")


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the COMPLETE trials, the lowest loss first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda trial: trial.values[0])


def best_step(trial: FrozenTrial) -> int:
    """Return the step with the lowest validation loss, which the paper selects."""
    return min(trial.intermediate_values, key=trial.intermediate_values.__getitem__)


def spectra_by_step(study: optuna.Study) -> dict[int, dict[int, lyap.SpectrumRecord]]:
    """Return the stored spectra by trial number and step; the first step is the baseline."""
    spectra: dict[int, dict[int, lyap.SpectrumRecord]] = {}
    for record in lyap.load_spectra(study):
        spectra.setdefault(record.trial_number, {})[record.step] = record
    return spectra


def correlations(study: optuna.Study, steps: Sequence[int]) -> str:
    """Return a table: how exponents and losses at ``steps`` go with the lowest loss in the end."""
    trials = complete_trials(study)
    values = [trial.values[0] for trial in trials]
    spectra = spectra_by_step(study)
    rows = [
        f"Rank correlation with the lowest loss, {len(trials)} networks (95 % interval):",
        f"{'step':>5}  {'maximum exponent':<24}{'mean exponent':<24}"
        f"{'displacement of the mean':<26}loss so far",
    ]
    best = [best_step(trial) for trial in trials]
    chosen = [(str(step), [step] * len(trials)) for step in dict.fromkeys(steps)]
    for name, step_of in [*chosen, ("best", best)]:
        at = [spectra[t.number][step] for t, step in zip(trials, step_of, strict=True)]
        before = [spectra[trial.number][min(spectra[trial.number])] for trial in trials]
        columns = (
            [record.max for record in at],
            [record.mean for record in at],
            [record.mean - base.mean for record, base in zip(at, before, strict=True)],
            [t.intermediate_values[step] for t, step in zip(trials, step_of, strict=True)],
        )
        cells = [str(rank_correlation(column, values)) for column in columns]
        rows.append(f"{name:>5}  {cells[0]:<24}{cells[1]:<24}{cells[2]:<26}{cells[3]}".rstrip())
    varied = [name for name in trials[0].params if len({t.params[name] for t in trials}) > 1]
    for name in varied:
        numbers = [trial.params[name] for trial in trials]
        rest = partial_rank_correlation(
            [spectra[t.number][step].max for t, step in zip(trials, best, strict=True)],
            values,
            numbers,
        )
        rows.append(
            f"{name} itself: {rank_correlation(numbers, values)}; what it leaves to the maximum "
            f"exponent at the best step: {rest:+.2f}"
        )
    clipped = [spectra[t.number][best_step(t)].clipped_fraction for t in trials]
    if any(clipped):
        rows.append(
            f"Exponents below -16 nats/step are stored as -16: {100 * np.mean(clipped):.0f} % of "
            "all at the best step."
        )
    return "\n".join(rows)


def draw(study: optuna.Study, label: Callable[[FrozenTrial], str]) -> go.Figure:
    """Draw spectra at the step of the lowest loss, and their maximum and mean against that loss.

    Args:
        study: A study whose probes measured whole spectra.
        label: What is said about each of the six trials that are coloured.
    """
    trials = complete_trials(study)
    spectra = spectra_by_step(study)
    chosen = [spectra[trial.number][best_step(trial)] for trial in trials]
    values = [trial.values[0] for trial in trials]
    statistics = ([s.max for s in chosen], [s.mean for s in chosen])
    rho = [rank_correlation(column, values).rho for column in statistics]
    figure = make_subplots(
        1,
        3,
        column_widths=[0.4, 0.3, 0.3],
        subplot_titles=(
            "spectra at the lowest validation loss",
            f"maximum exponent, rank correlation {rho[0]:+.2f}",
            f"mean exponent, rank correlation {rho[1]:+.2f}",
        ),
        horizontal_spacing=0.07,
    )
    picked = np.linspace(0, len(trials) - 1, min(len(COLOURS), len(trials))).round().astype(int)
    colours = dict(zip(picked.tolist(), COLOURS, strict=False))
    for i in sorted(range(len(trials)), key=lambda i: i in colours):  # coloured ones on top
        colour = colours.get(i, "#BBBBBB")
        name = f"{values[i]:.3g}: {label(trials[i])}"
        figure.add_scatter(
            x=np.linspace(0, 1, len(chosen[i].exponents)),
            y=chosen[i].exponents,
            mode="lines",
            line={"color": colour, "width": 2 if i in colours else 1},
            legendgroup=name,
            name=name,
            showlegend=i in colours,
            row=1,
            col=1,
        )
        for column, statistic in enumerate(statistics, start=2):
            figure.add_scatter(
                x=[statistic[i]],
                y=[values[i]],
                mode="markers",
                marker={"color": colour, "size": 9},
                legendgroup=name,
                name=name,
                showlegend=False,
                row=1,
                col=column,
            )
    figure.add_hline(y=0, line={"color": "#888888", "width": 1}, row=1, col=1)
    figure.update_xaxes(title_text="index / number of exponents", row=1, col=1)
    figure.update_yaxes(title_text="exponent (nats/step)", row=1, col=1)
    finite = [value for value in values if math.isfinite(value)]
    for column in (2, 3):
        figure.update_xaxes(title_text="nats/step", row=1, col=column)
        if max(finite) > 5 * min(finite) > 0:
            figure.update_yaxes(type="log", row=1, col=column)
    figure.update_yaxes(title_text="lowest validation loss", row=1, col=2)
    figure.update_layout(
        template="plotly_white",
        width=1200,
        height=470,
        margin={"t": 40, "b": 120, "l": 60, "r": 20},
        legend={"orientation": "h", "y": -0.2, "title": {"text": "loss:"}},
    )
    return figure
