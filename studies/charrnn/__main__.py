"""Figures 3 and 4a-b of the paper: spectra over training, and against the loss.

    python -m studies.charrnn --scale small

Trials go to two Optuna studies in ``OUTPUT/charrnn.db``; the figures are ``OUTPUT/charrnn.html``
and ``OUTPUT/charrnn-evolution.html``. The same command goes on with what is missing.
"""

import itertools
import time
from functools import partial
from pathlib import Path

import click
import numpy as np
import optuna
import plotly.graph_objects as go
import torch
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

import lyap_optuna as lyap
from lyap_optuna.campaign import run_configurations
from lyap_optuna.data import CharacterText, load_text, load_war_and_peace, streams
from studies import options
from studies.charrnn.task import SCALES, CharRNN, Scale, objective, probed_inputs, train
from studies.spectrum_statistics.against_loss import COLOURS, correlations, draw, spectra_by_step

P, LR = 0.08, 2e-3
"""The initialization parameter of the random pairs; the learning rate where p varies."""
EARLY = 4
"""The epoch of the paper's Figure 3b."""


def random_pairs(scale: Scale) -> list[dict[str, float]]:
    """Draw learning rates uniformly and dropouts log-uniformly, as the paper does."""
    rng = np.random.default_rng(0)
    return [
        {
            "p": P,
            "dropout": float(np.exp(rng.uniform(np.log(0.001), np.log(0.2)))),
            "lr": float(rng.uniform(5e-4, 1e-2)),
        }
        for _ in range(scale.pairs)
    ]


def run(
    name: str,
    configurations: list[dict[str, float]],
    text: CharacterText,
    scale: Scale,
    storage: str,
    jobs: int,
) -> optuna.Study:
    """Train what the study does not hold yet."""
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        pruner=optuna.pruners.NopPruner(),  # every network is trained to the end
        load_if_exists=True,
    )
    run_configurations(study, partial(objective, text=text, scale=scale), configurations, jobs=jobs)
    return study


def exponents_by_epoch(study: optuna.Study) -> dict[int, dict[int, np.ndarray]]:
    """Return the exponents by trial number and epoch; epoch 0 is before training."""
    return {
        number: {epoch: np.array(record.exponents) for epoch, record in by_epoch.items()}
        for number, by_epoch in sorted(spectra_by_step(study).items())
        if study.trials[number].state == TrialState.COMPLETE
    }


# Figure 3: spectra over training ---------------------------------------------------------------


def successive_changes(by_epoch: dict[int, np.ndarray]) -> np.ndarray:
    """Return the mean squared change of the spectrum in each epoch, over its final variance."""
    epochs = sorted(by_epoch)
    changes = [np.mean((by_epoch[b] - by_epoch[a]) ** 2) for a, b in itertools.pairwise(epochs)]
    return np.array(changes / by_epoch[epochs[-1]].var())


def report_evolution(study: optuna.Study) -> None:
    """Print how fast spectra settle, and from which side their means do."""
    click.echo("\n   p  change ~ epoch^b   mean exponent: before, epoch 1, last   lowest loss")
    for number, by_epoch in exponents_by_epoch(study).items():
        trial = study.trials[number]
        changes = successive_changes(by_epoch)
        slope = np.polyfit(np.log(np.arange(1, len(changes) + 1)), np.log(changes), 1)[0]
        means = [by_epoch[epoch].mean() for epoch in (0, 1, max(by_epoch))]
        click.echo(
            f"{trial.params['p']:.2f}  b = {slope:+.2f}          "
            f"{means[0]:.3f}, {means[1]:.3f}, {means[2]:.3f}                {trial.value:.3f}"
        )


def draw_evolution(study: optuna.Study) -> go.Figure:
    """Draw Figure 3: spectra before, early in and after training; changes; means."""
    spectra = exponents_by_epoch(study)
    last = max(max(by_epoch) for by_epoch in spectra.values())
    early = min(EARLY, last)
    figure = make_subplots(
        1,
        5,
        subplot_titles=(
            "(a) before training",
            f"(b) after {early} epochs",
            f"(c) after {last} epochs",
            "(d) change in an epoch",
            "(e) mean, less the last",
        ),
        horizontal_spacing=0.055,
    )
    for colour, (number, by_epoch) in zip(COLOURS, spectra.items(), strict=False):
        name = f"p = {study.trials[number].params['p']:g}"
        look = {"legendgroup": name, "name": name, "mode": "lines", "line": {"color": colour}}
        for column, epoch in ((1, 0), (2, early), (3, last)):
            exponents = by_epoch[epoch]
            index = np.linspace(0, 1, len(exponents))
            figure.add_scatter(
                x=index, y=exponents, showlegend=column == 1, row=1, col=column, **look
            )
        changes = successive_changes(by_epoch)
        epochs = np.arange(1, last + 1)
        figure.add_scatter(x=epochs, y=changes, showlegend=False, row=1, col=4, **look)
        means = np.array([by_epoch[epoch].mean() for epoch in range(last + 1)])
        figure.add_scatter(
            x=np.arange(last + 1), y=means - means[-1], showlegend=False, row=1, col=5, **look
        )
    dashed = {"color": "#555555", "dash": "dash"}
    figure.add_scatter(
        x=epochs, y=0.3 / epochs, line=dashed, name="1 / epoch", mode="lines", row=1, col=4
    )
    lowest = min(exponents[-1] for by_epoch in spectra.values() for exponents in by_epoch.values())
    for column in (1, 2, 3):
        figure.update_yaxes(range=[max(lowest, -10), 0.3], row=1, col=column)
        figure.update_xaxes(title_text="index / units", row=1, col=column)
        figure.add_hline(y=0, line={"color": "#888888", "width": 1}, row=1, col=column)
    figure.update_yaxes(title_text="exponent (nats/step)", row=1, col=1)
    figure.update_xaxes(
        type="log", tickvals=[1, 2, 5, 10, 20, 40], title_text="epoch", row=1, col=4
    )
    figure.update_yaxes(type="log", dtick=1, exponentformat="power", row=1, col=4)
    figure.update_xaxes(title_text="epoch", row=1, col=5)
    figure.update_layout(
        template="plotly_white",
        width=1250,
        height=380,
        margin={"t": 40, "b": 90, "l": 60, "r": 20},
        legend={"orientation": "h", "y": -0.22},
    )
    return figure


def describe(trial: FrozenTrial) -> str:
    """Return what tells a pair from the others."""
    return f"dropout {trial.params['dropout']:.3f}, lr {trial.params['lr']:.4f}"


def estimate(text: CharacterText, scale: Scale, jobs: int) -> str:
    """Time a few batches and one spectrum; return what the whole will take, in words."""
    model = CharRNN(len(text.alphabet), scale.units, P, 0.0, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    batches = streams(text.train, scale.batch, scale.steps)
    train(model, optimizer, itertools.islice(batches, 1))
    start = time.perf_counter()
    train(model, optimizer, itertools.islice(batches, 3))
    epoch = (time.perf_counter() - start) / 3 * scale.batches
    start = time.perf_counter()
    lyap.lyapunov_spectrum(model, probed_inputs(text), state="hidden")
    spectrum = time.perf_counter() - start
    networks = scale.pairs + len(scale.p_values)
    hours = networks * scale.epochs * (epoch + spectrum) / jobs / 3600
    return (
        f"An epoch takes {epoch:.3g} s here, a spectrum {spectrum:.3g} s: {networks} networks of "
        f"{scale.epochs} epochs, {jobs} at a time, about {hours:.2g} hours."
    )


@click.command()
@options.scale
@options.data
@options.text
@options.output
@options.jobs
@click.option("--estimate", "only_estimate", is_flag=True, help="Only say what it would take.")
def main(
    scale: str, data: Path | None, file: Path | None, output: Path, jobs: int, only_estimate: bool
) -> None:
    """Reproduce Figures 3 and 4a-b of the paper."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)  # trials run side by side instead
    sizes = SCALES[scale]
    try:
        text = load_text(file) if file is not None else load_war_and_peace(data)
    except (FileNotFoundError, ImportError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(estimate(text, sizes, jobs))
    if only_estimate:
        return
    output.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{(output / 'charrnn.db').as_posix()}"
    name = f"charrnn-{scale}" + (f"-{file.stem}" if file is not None else "")

    varied = [{"p": p, "dropout": 0.0, "lr": LR} for p in sizes.p_values]
    evolution = run(f"{name}-evolution", varied, text, sizes, storage, jobs)
    report_evolution(evolution)
    draw_evolution(evolution).write_html(output / "charrnn-evolution.html")

    pairs = run(name, random_pairs(sizes), text, sizes, storage, jobs)
    click.echo("\n" + correlations(pairs, (1, min(EARLY, sizes.epochs), sizes.epochs)))
    draw(pairs, describe).write_html(output / "charrnn.html")
    click.echo(f"Figures: {output / 'charrnn-evolution.html'}, {output / 'charrnn.html'}")


if __name__ == "__main__":
    main()
