"""Figure 1 of the paper: stable, marginal and chaotic dynamics of a driven tanh network.

    python -m studies.regimes --scale small

Every measurement is a trial of an Optuna study in ``OUTPUT/regimes.db``; ``OUTPUT/regimes.html`` is
the figure. The same command goes on with what an interrupted run left.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import optuna
import plotly.graph_objects as go
import torch
from optuna.trial import TrialState
from plotly.subplots import make_subplots
from torch import Tensor, nn

import lyap_optuna as lyap
from lyap_optuna.campaign import run_configurations
from studies import options

INPUT_VARIANCE = 0.6
INITIAL_CONDITIONS, SEQUENCES = 10, 2
STABLE_GAIN, CHAOTIC_GAIN = 1.2, 3.0
MARGINAL = (-0.02, -0.005)
"""The maximum exponent of the marginal case, nats/step: the spread must die out, but slowly."""
PRINTED_VARIANCES = (1 / 500, 100.0, 500.0)
COLOURS = {"stable": "#0072B2", "marginal": "#666666", "chaotic": "#009E73"}


@dataclass(frozen=True)
class Scale:
    """Sizes of the study."""

    units: int
    steps: int


SCALES = {"tiny": Scale(24, 200), "small": Scale(200, 1_500), "paper": Scale(500, 1_500)}


def make_network(gain: float, units: int) -> nn.RNN:
    """Return h' = tanh(gain Q h + x): Q orthogonal and the same for every gain."""
    torch.manual_seed(0)
    rnn = nn.RNN(units, units, bias=False, batch_first=True)
    weights = dict(rnn.named_parameters())
    nn.init.orthogonal_(weights["weight_hh_l0"], gain)
    nn.init.eye_(weights["weight_ih_l0"])
    return rnn


def make_inputs(scale: Scale) -> tuple[Tensor, Tensor]:
    """Return two input sequences, each once per initial condition, and the initial states."""
    torch.manual_seed(1)
    x = math.sqrt(INPUT_VARIANCE) * torch.randn(SEQUENCES, scale.steps, scale.units)
    h0 = torch.randn(INITIAL_CONDITIONS, scale.units)
    return x.repeat_interleave(INITIAL_CONDITIONS, 0), h0.repeat(SEQUENCES, 1).unsqueeze(0)


def objective(trial: optuna.Trial, scale: Scale, full_spectrum: bool) -> float:
    """Measure the exponents of one network; return the maximum."""
    rnn = make_network(trial.suggest_float("gain", 0.01, 1_000.0, log=True), scale.units)
    inputs, initial_state = make_inputs(scale)
    probe = lyap.LyapunovProbe(
        rnn, inputs, baseline=False, full_spectrum=full_spectrum, initial_state=initial_state
    )
    probe.record(trial, step=0)
    return float(trial.user_attrs["lyapunov:max"])


def maximum_exponent(study: optuna.Study, scale: Scale, gain: float) -> float:
    """Return the maximum exponent at a gain, measured unless the study holds it already."""
    measure = partial(objective, scale=scale, full_spectrum=False)
    run_configurations(study, measure, [{"gain": gain}])
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    values: list[float] = [trial.values[0] for trial in complete if trial.params["gain"] == gain]
    return values[0]


def find_marginal_gain(study: optuna.Study, scale: Scale) -> float:
    """Bisect for a gain whose maximum exponent lies in ``MARGINAL``."""
    low, high = STABLE_GAIN, CHAOTIC_GAIN
    for _ in range(20):
        gain = round((low + high) / 2, 6)
        exponent = maximum_exponent(study, scale, gain)
        click.echo(f"  gain {gain:.6g}: maximum exponent {exponent:+.4f} nats/step")
        if MARGINAL[0] < exponent < MARGINAL[1]:
            return gain
        if exponent < MARGINAL[0]:
            low = gain
        else:
            high = gain
    raise RuntimeError(f"No gain between {low} and {high} has a maximum exponent in {MARGINAL}.")


def spread(states: Tensor) -> Tensor:
    """Return the standard deviation over initial conditions at each step, a mean over units.

    Args:
        states: ``(sequences * initial conditions, steps, units)``.

    Returns:
        ``(sequences, steps)``.
    """
    grouped = states.double().view(SEQUENCES, INITIAL_CONDITIONS, *states.shape[1:])
    return grouped.std(1, correction=0).mean(2)


def draw(
    spectra: dict[str, lyap.SpectrumRecord], gains: dict[str, float], scale: Scale
) -> go.Figure:
    """Draw activity, spread over initial conditions, and spectra."""
    titles = [
        f"{regime}: gain {gains[regime]:.3g}, λ<sub>max</sub> {spectra[regime].max:+.3f}"
        for regime in COLOURS
    ]
    figure = make_subplots(
        3,
        6,
        specs=[
            [{"colspan": 2}, None] * 3,
            [{"colspan": 2}, None] * 3,
            [{"colspan": 3}, None, None] * 2,
        ],
        subplot_titles=[*titles, *[""] * 3, "Lyapunov spectra", "Their first 20 exponents"],
        vertical_spacing=0.09,
        horizontal_spacing=0.075,
    )
    _draw_activity(figure, gains, scale)
    _draw_spectra(figure, spectra)
    figure.update_layout(
        template="plotly_white",
        legend={"orientation": "h", "x": 0.02, "y": 0.06},
        height=850,
        width=1150,
        margin={"t": 40, "b": 40, "l": 60, "r": 20},
    )
    return figure


def _draw_activity(figure: go.Figure, gains: dict[str, float], scale: Scale) -> None:
    """Draw one unit in the first row, the spread over initial conditions in the second."""
    inputs, initial_state = make_inputs(scale)
    shown = min(60, scale.steps)
    for column, (regime, colour) in zip((1, 3, 5), COLOURS.items(), strict=True):
        with torch.no_grad():
            states = make_network(gains[regime], scale.units)(inputs, initial_state)[0]
        for i, unit in enumerate(states[:, :shown, 0]):
            _add_line(figure, unit, colour, 1, i < INITIAL_CONDITIONS, row=1, col=column)
        for i, series in enumerate(spread(states)):
            _add_line(figure, series.clamp(min=1e-9), colour, 1.5, i == 0, row=2, col=column)
    for row in (1, 2):
        figure.update_xaxes(title_text="step", title_standoff=4, row=row)
    figure.update_yaxes(title_text="one unit", row=1, col=1)
    figure.update_yaxes(type="log", exponentformat="power", range=[-9.2, 0.3], row=2)
    figure.update_yaxes(title_text="spread over<br>initial conditions", row=2, col=1)


def _add_line(
    figure: go.Figure, values: Tensor, colour: str, width: float, strong: bool, **place: int
) -> None:
    figure.add_scatter(
        y=values.tolist(),
        line={"color": colour, "width": width},
        opacity=1 if strong else 0.35,
        showlegend=False,
        **place,
    )


def _draw_spectra(figure: go.Figure, spectra: dict[str, lyap.SpectrumRecord]) -> None:
    """Draw whole spectra and their first 20 exponents, in the last row."""
    for regime, colour in COLOURS.items():
        exponents = spectra[regime].exponents
        for place, count in ((1, len(exponents)), (4, 20)):
            figure.add_scatter(
                x=list(range(1, count + 1)),
                y=exponents[:count],
                mode="lines" if place == 1 else "lines+markers",
                line={"color": colour},
                name=regime,
                showlegend=place == 1,
                row=3,
                col=place,
            )
    zero = {"color": "#888888", "dash": "dash", "width": 1}
    for place in (1, 4):
        figure.add_hline(y=0, line=zero, row=3, col=place)
    figure.update_xaxes(title_text="index of the exponent", row=3)
    figure.update_yaxes(title_text="exponent (nats/step)", row=3, col=1)


@click.command()
@options.scale
@options.output
def main(scale: str, output: Path) -> None:
    """Reproduce Figure 1 of the paper."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    output.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{(output / 'regimes.db').as_posix()}"
    sizes = SCALES[scale]

    click.echo(f"Looking for the marginal gain, {sizes.units} units, {sizes.steps} steps:")
    search = optuna.create_study(
        study_name=f"regimes-{scale}-bisection", storage=storage, load_if_exists=True
    )
    gains = {
        "stable": STABLE_GAIN,
        "marginal": find_marginal_gain(search, sizes),
        "chaotic": CHAOTIC_GAIN,
    }

    click.echo("Whole spectra of the three regimes:")
    study = optuna.create_study(study_name=f"regimes-{scale}", storage=storage, load_if_exists=True)
    run_configurations(
        study,
        partial(objective, scale=sizes, full_spectrum=True),
        [{"gain": gain} for gain in gains.values()],
    )
    by_gain = {study.trials[s.trial_number].params["gain"]: s for s in lyap.load_spectra(study)}
    spectra = {regime: by_gain[gain] for regime, gain in gains.items()}
    inputs, initial_state = make_inputs(sizes)
    for regime, spectrum in spectra.items():
        with torch.no_grad():
            states = make_network(gains[regime], sizes.units)(inputs, initial_state)[0]
        click.echo(
            f"  {regime:8} gain {gains[regime]:.4g}: maximum {spectrum.max:+.4f}, mean "
            f"{spectrum.mean:+.3f} nats/step; spread over initial conditions in the last 100 steps "
            f"{float(spread(states)[:, -100:].mean()):.1e}"
        )

    click.echo("The paper's variances, read as that of V's entries and as that of V's gain:")
    for variance in PRINTED_VARIANCES:
        for reading, gain in (
            ("entries", math.sqrt(variance * sizes.units)),
            ("gain", math.sqrt(variance)),
        ):
            exponent = maximum_exponent(search, sizes, round(gain, 6))
            click.echo(
                f"  variance {variance:.4g} ({reading}): gain {gain:.4g}, maximum exponent "
                f"{exponent:+.4f}"
            )

    page = output / "regimes.html"
    draw(spectra, gains, sizes).write_html(page)
    click.echo(f"Figure: {page}")


if __name__ == "__main__":
    main()
