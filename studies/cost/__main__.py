"""Table 1 of the paper: the time of one spectrum in units of training.

    python -m studies.cost --scale small

Networks and batches have the paper's sizes at either scale; ``small`` times a few batches where
``paper`` trains a whole epoch of the character task. Data are random numbers: time does not depend
on them. Every timing is a trial of an Optuna study in ``OUTPUT/cost.db``, the figure is
``OUTPUT/cost.html``. The same command goes on with what is missing.
"""

import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import optuna
import plotly.graph_objects as go
import torch
from optuna.trial import TrialState
from torch import Tensor, nn
from torch.nn import functional as F

import lyap_optuna as lyap
from lyap_optuna.campaign import run_configurations
from studies import options

SEQUENCES, STEPS = 10, 100
"""What a spectrum is measured on."""


@dataclass(frozen=True)
class Task:
    """One of the paper's tasks.

    Args:
        features: Numbers that go in and come out at a step.
        units: Units of the LSTM.
        bias: Whether it has one.
        batch: Sequences of a batch.
        steps: Steps of a sequence.
        unit: What the paper counts training in.
        batches: Batches of that unit.
        needed: How many of them the paper's networks needed to their lowest loss.
        paper: What a spectrum took in the paper, in that unit.
    """

    features: int
    units: int
    bias: bool
    batch: int
    steps: int
    unit: str
    batches: int
    needed: float
    paper: float


CHARRNN = Task(82, 512, False, 100, 100, "epochs", 256, 26, 1.04)
MOCAP = Task(20, 256, True, 250, 25, "iterations", 1, 2_400, 104)
TINY = Task(5, 12, False, 4, 10, "epochs", 8, 26, 1.04)

WORK = {
    "training": "one unit of training",
    "textbook": "spectrum, Algorithm 1 as written",
    "spectrum": "spectrum",
    "leading": "leading half, every 5 steps",
    "readout": "maximum and mean",
}


@dataclass(frozen=True)
class Scale:
    """Sizes of the study: its tasks, batches timed, and how often all is timed."""

    tasks: dict[str, Task]
    timed_batches: int
    repeats: int


SCALES = {
    "tiny": Scale({"charrnn": TINY, "mocap": TINY}, 2, 1),
    "small": Scale({"charrnn": CHARRNN, "mocap": MOCAP}, 8, 3),
    "paper": Scale({"charrnn": CHARRNN, "mocap": MOCAP}, 256, 5),
}


def train(lstm: nn.LSTM, task: Task, batches: int) -> None:
    """Train a network that predicts the next step."""
    output = nn.Linear(task.units, task.features)
    optimizer = torch.optim.Adam([*lstm.parameters(), *output.parameters()])
    x = inputs(task, task.batch, task.steps + 1)
    for _ in range(batches):
        predicted = output(lstm(x[:, :-1])[0])
        if task.unit == "epochs":  # of the character task
            loss = F.cross_entropy(predicted.flatten(0, 1), x[:, 1:].argmax(2).flatten())
        else:
            loss = F.mse_loss(predicted, x[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def inputs(task: Task, sequences: int, steps: int) -> Tensor:
    """Return random one-hot characters or random numbers, ``(sequences, steps, features)``."""
    if task.unit == "epochs":
        codes = torch.randint(task.features, (sequences, steps))
        return F.one_hot(codes, task.features).float()
    return torch.randn(sequences, steps, task.features)


def objective(trial: optuna.Trial, scale: Scale) -> float:
    """Return the seconds that one kind of work takes."""
    task = scale.tasks[trial.suggest_categorical("task", [*scale.tasks])]
    work = trial.suggest_categorical("work", [*WORK])
    torch.manual_seed(trial.number)
    lstm = nn.LSTM(task.features, task.units, bias=task.bias, batch_first=True)
    x = inputs(task, SEQUENCES, STEPS)
    factor = 1.0
    start = time.perf_counter()
    if work == "training":
        train(lstm, task, 1)  # the first batch allocates
        start = time.perf_counter()
        train(lstm, task, scale.timed_batches)
        factor = task.batches / scale.timed_batches
    elif work == "textbook":
        lyap.lyapunov_spectrum(lstm, x, state="hidden", warmup=0, method="textbook")
    elif work == "spectrum":
        lyap.lyapunov_spectrum(lstm, x, state="hidden", warmup=0)
    elif work == "leading":
        lyap.lyapunov_spectrum(lstm, x, state="hidden", warmup=0, k=task.units // 2, qr_every=5)
    else:
        lyap.lyapunov_readout(lstm, x, state="hidden", warmup=0)
    return factor * (time.perf_counter() - start)


def seconds(study: optuna.Study) -> dict[tuple[str, str], float]:
    """Return the median seconds by task and work."""
    times: dict[tuple[str, str], list[float]] = {}
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        times.setdefault((trial.params["task"], trial.params["work"]), []).append(trial.values[0])
    return {key: statistics.median(values) for key, values in times.items()}


def table(scale: Scale, medians: dict[tuple[str, str], float]) -> str:
    """Return the paper's Table 1, and ours beside it, in Markdown."""
    lines = [
        "| task | work | seconds | training units | share of the training needed |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, task in scale.tasks.items():
        unit = medians[name, "training"]
        lines.append(
            f"| {name} | the paper's spectrum | | {task.paper:.4g} {task.unit} | "
            f"{100 * task.paper / task.needed:.1f} % of {task.needed:.4g} |"
        )
        for work, words in WORK.items():
            cost = medians[name, work] / unit
            share = "" if work == "training" else f"{100 * cost / task.needed:.2g} %"
            lines.append(
                f"| {name} | {words} | {medians[name, work]:.3g} | {cost:.3g} {task.unit} | "
                f"{share} |"
            )
    return "\n".join(lines)


def draw(scale: Scale, medians: dict[tuple[str, str], float]) -> go.Figure:
    """Draw the cost of each kind of work, as a share of the training that the task needs."""
    figure = go.Figure()
    names = {"the paper's spectrum": "paper"} | {v: k for k, v in WORK.items() if k != "training"}
    for (name, task), colour in zip(scale.tasks.items(), ("#0072B2", "#E69F00"), strict=True):
        unit = medians[name, "training"]
        costs = [task.paper if k == "paper" else medians[name, k] / unit for k in names.values()]
        figure.add_bar(
            y=[*names],
            x=[100 * cost / task.needed for cost in costs],
            text=[f"{cost:.3g} {task.unit}" for cost in costs],
            textposition="outside",
            orientation="h",
            marker={"color": colour},
            name=f"{name}, {task.units} units",
        )
    figure.update_xaxes(
        type="log",
        title_text="% of the training time that the task needs",
        range=[-3, 1.9],
        dtick=1,
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(
        template="plotly_white",
        width=1000,
        height=420,
        margin={"t": 30, "b": 60, "l": 220, "r": 20},
        legend={"orientation": "h", "y": 1.08},
    )
    return figure


@click.command()
@options.scale
@options.output
def main(scale: str, output: Path) -> None:
    """Reproduce Table 1 of the paper on this machine."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    output.mkdir(parents=True, exist_ok=True)
    sizes = SCALES[scale]
    study = optuna.create_study(
        study_name=f"cost-{scale}",
        storage=f"sqlite:///{(output / 'cost.db').as_posix()}",
        load_if_exists=True,
    )
    # Repeats take turns, so that a disturbance of the machine does not fall on one kind of work.
    turns = [{"task": task, "work": work} for task in sizes.tasks for work in WORK]
    run_configurations(study, partial(objective, scale=sizes), turns * sizes.repeats)
    medians = seconds(study)
    click.echo(f"Medians of {sizes.repeats}, {torch.get_num_threads()} threads:\n")
    click.echo(table(sizes, medians))
    draw(sizes, medians).write_html(output / "cost.html")
    click.echo(f"\nFigure: {output / 'cost.html'}")


if __name__ == "__main__":
    main()
