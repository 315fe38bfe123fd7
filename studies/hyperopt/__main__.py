"""The claim of sections 5.4 and 6: exponents find good hyperparameters early.

    python -m studies.hyperopt --scale small

At ``small``, 40 configurations of each task are trained to their end, once, and every pruner is
judged on them in many random orders (:mod:`lyap_optuna.replay`). At ``paper`` each pruner runs a
study of its own, live, for ``--hours``. Trials go to ``OUTPUT/hyperopt.db``, replays to
``OUTPUT/hyperopt.jsonl``, figures to ``OUTPUT/hyperopt-TASK.html``. The same command goes on with
what is missing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import optuna
import plotly.graph_objects as go
import torch
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState
from tqdm import tqdm

import lyap_optuna as lyap
from lyap_optuna.campaign import run_configurations
from lyap_optuna.data import load_mocap, load_text, load_war_and_peace
from lyap_optuna.replay import Recording, Replay, compare_pruners, summarize
from studies import options
from studies.charrnn import task as charrnn
from studies.mocap import task as mocap

CONFIGURATIONS = 40
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "none": NopPruner,
    "MedianPruner": MedianPruner,
    "SuccessiveHalvingPruner": SuccessiveHalvingPruner,
    "HyperbandPruner": HyperbandPruner,
    "LyapunovPruner": lyap.LyapunovPruner,
}
COLOURS = ("#888888", "#E69F00", "#009E73", "#CC79A7", "#D55E00")


@dataclass(frozen=True)
class Scale:
    """Sizes of the study.

    Args:
        charrnn: Sizes of the character task.
        mocap: Sizes of the motion task.
        configurations: Configurations of each task.
        orders: Random orders in which they are replayed.
    """

    charrnn: charrnn.Scale
    mocap: mocap.Scale
    configurations: int
    orders: int


SCALES = {
    "tiny": Scale(charrnn.SCALES["tiny"], mocap.SCALES["tiny"], 12, 2),
    "small": Scale(
        charrnn.Scale(48, 16, 64, 50, 10, 8, 0, ()), mocap.Scale(48, 50, 1_000, 0), 40, 20
    ),
    "paper": Scale(charrnn.SCALES["paper"], mocap.SCALES["paper"], 40, 0),
}


def motion_objective(trial: optuna.Trial, data: mocap.Windows, scale: mocap.Scale) -> float:
    """Suggest the learning rate, beside what the motion study suggests; return the lowest error."""
    return mocap.objective(trial, data, scale, lr=trial.suggest_float("lr", 3e-4, 3e-1, log=True))


def draw_configurations(names: dict[str, tuple[float, float]], n: int) -> list[dict[str, float]]:
    """Draw ``n`` configurations, log-uniformly."""
    rng = np.random.default_rng(0)
    return [
        {name: float(np.exp(rng.uniform(*np.log(bounds)))) for name, bounds in names.items()}
        for _ in range(n)
    ]


def best_losses(recording: Recording, replays: Sequence[Replay]) -> np.ndarray:
    """Return the best loss that each order reached."""
    finals = np.array([t.final for t in recording.trials])
    best, median = np.nanmin(finals), np.nanmedian(finals)
    return np.array([best + r.regret * (median - best) for r in replays])


def draw(recording: Recording, replays: dict[str, list[Replay]]) -> go.Figure:
    """Draw the best loss reached against the epochs spent, a point per order."""
    figure = go.Figure()
    for colour, (name, found) in zip(COLOURS, replays.items(), strict=False):
        spent = np.array([r.epochs_spent for r in found])
        losses = best_losses(recording, found)
        figure.add_scatter(
            x=spent,
            y=losses,
            mode="markers",
            marker={"color": colour, "size": 6, "opacity": 0.5},
            name=name,
            legendgroup=name,
            showlegend=False,
        )
        figure.add_scatter(
            x=[np.median(spent)],
            y=[np.median(losses)],
            mode="markers",
            marker={"color": colour, "size": 16, "symbol": "star", "line": {"width": 1}},
            name=name,
            legendgroup=name,
        )
    figure.add_hline(
        y=min(t.final for t in recording.trials if np.isfinite(t.final)),
        line={"color": "#888888", "dash": "dash"},
        annotation_text="best of all configurations",
        annotation_position="bottom right",
    )
    figure.update_xaxes(title_text="share of epochs spent", tickformat=".0%", range=[0, 1.05])
    figure.update_yaxes(title_text="best validation loss reached")
    figure.update_layout(
        template="plotly_white",
        width=760,
        height=420,
        title=f"{recording.name}: a dot per order, a star at the medians",
        margin={"t": 50, "b": 110, "l": 70, "r": 20},
        legend={"orientation": "h", "y": -0.22},
    )
    return figure


def table(recording: Recording, replays: dict[str, list[Replay]]) -> str:
    """Return what each pruner spent and found."""
    lines = [
        f"{recording.summary()}",
        f"{'pruner':26s} {'epochs spent':>20s} {'orders that succeed':>22s} {'best loss':>10s}",
    ]
    for s in summarize(recording, replays):
        spent, success = s.epochs_spent, s.success
        loss = float(np.median(best_losses(recording, replays[s.pruner])))
        lines.append(
            f"{s.pruner:26s} {spent.value:6.0%} ({spent.lower:.0%} to {spent.upper:.0%})".ljust(48)
            + f"{success.value:6.0%} ({success.lower:.0%} to {success.upper:.0%})".rjust(22)
            + f"{loss:11.4f}"
        )
    return "\n".join(lines)


def live(
    name: str,
    objective: Callable[[optuna.Trial], float],
    storage: str,
    configurations: Sequence[dict[str, float]],
    hours: float,
) -> None:
    """Run the same configurations with each pruner, in studies of their own."""
    for pruner, make in PRUNERS.items():
        study = optuna.create_study(
            study_name=f"{name}-{pruner}",
            storage=storage,
            pruner=make(),
            load_if_exists=True,
        )
        for configuration in configurations:
            study.enqueue_trial(configuration, skip_if_exists=True)
        waiting = study.get_trials(deepcopy=False, states=[TrialState.WAITING])
        if waiting:
            study.optimize(
                objective, n_trials=len(waiting), timeout=3600 * hours, show_progress_bar=True
            )
        spent = sum(len(t.intermediate_values) for t in study.get_trials(deepcopy=False))
        complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        best = f"best loss {study.best_value:.4g}" if complete else "no trial COMPLETE"
        click.echo(f"{study.study_name}: {spent} reports, {best}")


@click.command()
@options.scale
@options.data
@options.text
@options.output
@options.jobs
@click.option("--hours", default=24.0, show_default=True, help="At paper: limit of each study.")
def main(
    scale: str, data: Path | None, file: Path | None, output: Path, jobs: int, hours: float
) -> None:
    """Compare pruners on both tasks of the paper."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)  # trials run side by side instead
    sizes = SCALES[scale]
    try:
        text = load_text(file) if file is not None else load_war_and_peace(data)
        motion = mocap.Windows.of(load_mocap(data))
    except (FileNotFoundError, ImportError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    output.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{(output / 'hyperopt.db').as_posix()}"
    p = {"p": (0.02, 0.5)}
    tasks: list[tuple[str, Callable[[optuna.Trial], float], dict[str, tuple[float, float]]]] = [
        (
            "charrnn",
            partial(charrnn.objective, text=text, scale=sizes.charrnn),
            p | {"dropout": (0.001, 0.5), "lr": (3e-4, 3e-2)},
        ),
        (
            "mocap",
            partial(motion_objective, data=motion, scale=sizes.mocap),
            p | {"lr": (3e-4, 3e-1)},
        ),
    ]
    for task, objective, bounds in tasks:
        name = f"hyperopt-{task}-{scale}"
        drawn = draw_configurations(bounds, sizes.configurations)
        if scale == "paper":
            live(name, objective, storage, drawn, hours)
            continue
        study = optuna.create_study(
            study_name=name, storage=storage, pruner=NopPruner(), load_if_exists=True
        )
        run_configurations(study, objective, drawn, jobs=jobs)
        recording = Recording.from_study(study)
        with tqdm(total=len(PRUNERS) * sizes.orders, desc="replay", disable=None) as bar:
            replays = compare_pruners(
                recording,
                PRUNERS,
                orders=sizes.orders,
                jobs=jobs,
                results=output / "hyperopt.jsonl",
                progress=lambda done, _, bar=bar: bar.update(done - bar.n),  # type: ignore[misc]
            )
        click.echo("\n" + table(recording, replays))
        page = output / f"hyperopt-{task}.html"
        draw(recording, replays).write_html(page)
        click.echo(f"Figure: {page}\n")


if __name__ == "__main__":
    main()
