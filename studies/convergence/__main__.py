"""Figures 2, 5 and 6 of the paper: steps, warm-up and orthonormalisation interval.

    python -m studies.convergence --scale small

Every spectrum is a trial of an Optuna study in ``OUTPUT/convergence.db``, the trained network is
kept beside it, and the figure is ``OUTPUT/convergence.html``. The same command goes on with what is
missing.
"""

import copy
import itertools
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import optuna
import plotly.graph_objects as go
import torch
from optuna.trial import TrialState
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from torch import Tensor

import lyap_optuna as lyap
from lyap_optuna.campaign import run_configurations
from lyap_optuna.data import CharacterText, load_text, load_war_and_peace, streams
from studies import options
from studies.charrnn.task import CharRNN, train

WARMUPS = (0, 100, 250)
INTERVALS = (1, 2, 3, 5, 7, 10, 15, 20)
AVERAGED = 250
SEQUENCES = 10
EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Scale:
    """Sizes of the study: units, sequences of a training batch, and batches."""

    units: int
    batch: int
    batches: int


SCALES = {"tiny": Scale(16, 2, 4), "small": Scale(128, 32, 300), "paper": Scale(512, 100, 256)}


def trained_network(text: CharacterText, scale: Scale, file: Path) -> CharRNN:
    """Train a network of the character task, or load the one that an earlier run trained."""
    model = CharRNN(len(text.alphabet), scale.units, p=0.08, dropout=0.0, seed=0)
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        batches = itertools.islice(streams(text.train, scale.batch, 100), scale.batches)
        with click.progressbar(batches, length=scale.batches, label="Training") as shown:
            train(model, optimizer, shown)
        torch.save(model.state_dict(), file)
    return model.eval()


def objective(
    trial: optuna.Trial, model: CharRNN, inputs: Tensor, reference: lyap.LyapunovSpectrum
) -> float:
    """Measure one spectrum; return the largest error of its upper half, nats/step."""
    warmup = trial.suggest_int("warmup", 0, max(WARMUPS))
    interval = trial.suggest_int("qr_every", 1, max(INTERVALS))
    probe = lyap.LyapunovProbe(
        model,
        inputs[:, : warmup + AVERAGED],
        baseline=False,
        full_spectrum=True,
        state="hidden",  # the paper's
        warmup=warmup,
        qr_every=interval,
    )
    probe.record(trial, step=0)
    (measured,) = lyap.load_spectra(trial.study, trial_number=trial.number)
    half = len(measured.exponents) // 2
    error = torch.tensor(measured.exponents[:half]) - reference.exponents[:half]
    return float(error.abs().max())


def running_estimates(model: CharRNN, inputs: Tensor, warmup: int) -> np.ndarray:
    """Return the running estimates after each averaged step, ``(steps, exponents)``."""
    spectrum = lyap.lyapunov_spectrum(
        model, inputs[:, : warmup + AVERAGED], state="hidden", warmup=warmup, keep_history=True
    )
    assert spectrum.history is not None
    return spectrum.history.numpy()


def reach(exponents: np.ndarray, interval: int) -> int:
    """Return how many exponents float32 can resolve over an interval.

    Within one, vectors of exponents that differ by more than log(1/eps) / interval become parallel
    to rounding.
    """
    return int((exponents > exponents[0] + math.log(EPSILON) / interval).sum())


def report(
    histories: dict[int, np.ndarray],
    spectra: dict[tuple[int, int], lyap.SpectrumRecord],
    reference: np.ndarray,
) -> None:
    """Print the figure's numbers."""
    click.echo(
        f"\nRoot-mean-square distance of the running estimate from that after {AVERAGED} steps, "
        "over all exponents (nats/step):"
    )
    for warmup, history in histories.items():
        distance = np.sqrt(((history - history[-1]) ** 2).mean(1))
        shown = ", ".join(f"{t} steps {distance[t - 1]:.3f}" for t in (5, 25, 50, 100, 150))
        click.echo(f"  warm-up {warmup:3}: {shown}")
    spread = np.array(spectra[max(WARMUPS), 1].std, dtype=float)
    click.echo(
        f"Standard deviation over {SEQUENCES} inputs: {np.median(spread):.3f} in the median, "
        f"{spread.max():.3f} at most."
    )
    click.echo(
        "\n  T_ON  largest error of the upper half, of all  exponents within 0.01  resolved by "
        "float32"
    )
    for interval in INTERVALS:
        error = np.abs(np.array(spectra[max(WARMUPS), interval].exponents) - reference)
        good = error <= 0.01
        first = len(good) if good.all() else int(good.argmin())
        click.echo(
            f"  {interval:4}  {error[: len(error) // 2].max():26.4f}  {error.max():6.3f}  "
            f"{first:15} of {len(error)}  {reach(reference, interval):19}"
        )


def shade(position: float) -> str:
    """Return a colour of the scale that runs over an axis, 0 to 1."""
    return str(sample_colorscale("Viridis", [0.92 * position])[0])


def draw(
    histories: dict[int, np.ndarray],
    spectra: dict[tuple[int, int], lyap.SpectrumRecord],
) -> go.Figure:
    """Draw Figures 2, 5 and 6."""
    figure = make_subplots(
        2,
        6,
        specs=[[{"colspan": 2}, None] * 3, [{"colspan": 2}, None] * 3],
        subplot_titles=(
            *(f"running estimates, warm-up {warmup}" for warmup in WARMUPS),
            f"spectrum and deviation over {SEQUENCES} inputs",
            "orthonormalisation interval",
            "the same, first half",
        ),
        horizontal_spacing=0.07,
        vertical_spacing=0.14,
    )
    _draw_estimates(figure, histories)
    _draw_spectra(figure, spectra)
    figure.update_yaxes(title_text="exponent (nats/step)", col=1)
    figure.update_layout(
        template="plotly_white",
        width=1200,
        height=760,
        margin={"t": 40, "b": 70, "l": 60, "r": 20},
        legend={"orientation": "h", "x": 0.3, "y": -0.07},
    )
    return figure


def _draw_estimates(figure: go.Figure, histories: dict[int, np.ndarray]) -> None:
    """Draw the running estimates, in the first row."""
    lowest = min(float(history[-1, -1]) for history in histories.values())
    for column, warmup in zip((1, 3, 5), WARMUPS, strict=True):
        history = histories[warmup]
        size = history.shape[1]
        for i in np.linspace(0, size - 1, min(16, size)).round().astype(int):
            figure.add_scatter(
                x=np.arange(1, len(history) + 1),
                y=history[:, i],
                mode="lines",
                line={"color": shade(i / size), "width": 1.3},
                name=f"exponent {i + 1}",
                showlegend=False,
                row=1,
                col=column,
            )
        figure.update_xaxes(title_text="averaged steps", title_standoff=4, row=1, col=column)
        figure.update_yaxes(range=[1.25 * lowest, 0.3], row=1, col=column)


def _draw_spectra(figure: go.Figure, spectra: dict[tuple[int, int], lyap.SpectrumRecord]) -> None:
    """Draw the spectrum with its deviation, and those of longer intervals, in the second row."""
    longest = max(WARMUPS)
    exact = spectra[longest, 1]
    size = len(exact.exponents)
    index = np.arange(1, size + 1)
    figure.add_scatter(
        x=index,
        y=exact.exponents,
        error_y={"array": exact.std, "color": "#D55E00", "thickness": 0.8, "width": 0},
        mode="lines",
        line={"color": "#0072B2"},
        showlegend=False,
        row=2,
        col=1,
    )
    for place, interval in enumerate(INTERVALS):
        for column, count in ((3, size), (5, size // 2)):
            figure.add_scatter(
                x=index[:count],
                y=spectra[longest, interval].exponents[:count],
                mode="lines",
                line={"color": shade(place / (len(INTERVALS) - 1))},
                name=f"T<sub>ON</sub> = {interval}",
                showlegend=column == 3,
                row=2,
                col=column,
            )
    for column in (1, 3, 5):
        figure.update_xaxes(title_text="index of the exponent", title_standoff=4, row=2, col=column)


@click.command()
@options.scale
@options.data
@options.text
@options.output
def main(scale: str, data: Path | None, file: Path | None, output: Path) -> None:
    """Reproduce Figures 2, 5 and 6 of the paper."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        text = load_text(file) if file is not None else load_war_and_peace(data)
    except (FileNotFoundError, ImportError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    output.mkdir(parents=True, exist_ok=True)
    name = f"convergence-{scale}" + (f"-{file.stem}" if file is not None else "")

    model = trained_network(text, SCALES[scale], output / f"{name}.pt")
    inputs = next(streams(text.test, SEQUENCES, max(WARMUPS) + AVERAGED))[0]
    click.echo("The reference: QR at every step in float64.")
    reference = lyap.lyapunov_spectrum(
        copy.deepcopy(model).double(), inputs, state="hidden", warmup=max(WARMUPS), method="qr"
    )

    study = optuna.create_study(
        study_name=name,
        storage=f"sqlite:///{(output / 'convergence.db').as_posix()}",
        load_if_exists=True,
    )
    configurations = [{"warmup": warmup, "qr_every": 1} for warmup in WARMUPS]
    configurations += [{"warmup": max(WARMUPS), "qr_every": every} for every in INTERVALS[1:]]
    measure = partial(objective, model=model, inputs=inputs, reference=reference)
    run_configurations(study, measure, configurations)
    spectra = {}
    for record in lyap.load_spectra(study):
        trial = study.trials[record.trial_number]
        if trial.state == TrialState.COMPLETE:
            spectra[trial.params["warmup"], trial.params["qr_every"]] = record
    histories = {warmup: running_estimates(model, inputs, warmup) for warmup in WARMUPS}
    report(histories, spectra, reference.exponents.numpy())
    draw(histories, spectra).write_html(output / "convergence.html")
    click.echo(f"Figure: {output / 'convergence.html'}")


if __name__ == "__main__":
    main()
