"""Figure 4c-d of the paper: spectra of motion networks against the loss.

    python -m studies.mocap --scale small

Trials go to an Optuna study in ``OUTPUT/mocap.db``; the figure is ``OUTPUT/mocap.html``. The same
command goes on with what is missing.
"""

import time
from functools import partial
from pathlib import Path

import click
import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial

import lyap_optuna as lyap
from lyap_optuna.campaign import run_configurations
from lyap_optuna.data import load_mocap
from studies import options
from studies.mocap.task import LR, REPORT_EVERY, SCALES, Predictor, Scale, Windows, objective, train
from studies.spectrum_statistics.against_loss import correlations, draw


def describe(trial: FrozenTrial) -> str:
    """Return what tells a network from the others."""
    return f"p = {trial.params['p']:.3f}"


def estimate(data: Windows, scale: Scale, jobs: int) -> str:
    """Time a few iterations and one spectrum; return what the whole will take, in words."""
    generator = torch.Generator().manual_seed(0)
    model = Predictor(data.train.shape[2], scale.units, 0.1, generator)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, data.train, scale.batch, 1, generator)
    start = time.perf_counter()
    train(model, optimizer, data.train, scale.batch, 5, generator)
    iteration = (time.perf_counter() - start) / 5
    start = time.perf_counter()
    lyap.lyapunov_spectrum(model, data.probed, state="hidden")
    spectrum = time.perf_counter() - start
    each = scale.iterations * (iteration + spectrum / REPORT_EVERY)
    return (
        f"An iteration takes {1e3 * iteration:.3g} ms here, a spectrum {spectrum:.3g} s: "
        f"{scale.networks} networks of {scale.iterations} iterations, {jobs} at a time, about "
        f"{scale.networks * each / jobs / 60:.2g} minutes."
    )


@click.command()
@options.scale
@options.data
@options.output
@click.option("--lr", default=LR, show_default=True, help="Learning rate.")
@options.jobs
@click.option("--estimate", "only_estimate", is_flag=True, help="Only say what it would take.")
def main(
    scale: str, data: Path | None, output: Path, lr: float, jobs: int, only_estimate: bool
) -> None:
    """Reproduce Figure 4c-d of the paper."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)  # trials run side by side instead
    sizes = SCALES[scale]
    try:
        sequences = Windows.of(load_mocap(data))
    except (FileNotFoundError, ImportError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(estimate(sequences, sizes, jobs))
    if only_estimate:
        return
    output.mkdir(parents=True, exist_ok=True)

    name = f"mocap-{scale}" + (f"-{lr:g}" if lr != LR else "")
    study = optuna.create_study(
        study_name=name,
        storage=f"sqlite:///{(output / 'mocap.db').as_posix()}",
        pruner=optuna.pruners.NopPruner(),  # every network is trained to the end
        load_if_exists=True,
    )
    p_values = np.linspace(0.05, 0.5, sizes.networks).tolist()
    run_configurations(
        study,
        partial(objective, data=sequences, scale=sizes, lr=lr),
        [{"p": p} for p in p_values],
        jobs=jobs,
    )
    reports = sizes.iterations // REPORT_EVERY
    click.echo(f"\nA step is {REPORT_EVERY} iterations.")
    click.echo(correlations(study, (1, min(4, reports), reports)))
    page = output / f"{name.replace(f'-{scale}', '')}.html"
    draw(study, describe).write_html(page)
    click.echo(f"Figure: {page}")


if __name__ == "__main__":
    main()
