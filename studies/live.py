"""Pruners and ``freeze_thaw`` live: equal budgets of epochs, and the best value found in them.

    python -m studies.live demo --jobs 2
    python -m studies.live copying --trials 30 --seeds 5

For every pruner and seed a study of its own, with ``TPESampler``, trains networks until the budget
is spent: as many epochs as ``--trials`` whole trials take. The trial that the end of the budget
interrupts is dropped. Runs go to ``OUTPUT/live.jsonl`` as they end; the same command goes on with
what is missing (delete the file after a change of a pruner), and then prints the best COMPLETE
value at a quarter, a half and the whole of the budget, seed by seed.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import optuna
import torch
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.trial import TrialState
from tqdm import tqdm

import lyap_optuna as lyap
from lyap_optuna import demo
from lyap_optuna.replay._lines import append_line, read_lines
from studies.pruning.__main__ import markdown
from studies.recordings.tasks import TASKS as RECORDED
from studies.recordings.tasks import Run, Task

PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "none": NopPruner,
    "MedianPruner": MedianPruner,
    "HyperbandPruner": HyperbandPruner,
    "LyapunovPruner": lyap.LyapunovPruner,
}

FREEZE_THAW = "freeze_thaw"

TOLD_AT = (0.25, 0.5, 1.0)
"""Shares of the budget at which the best value is told."""


@cache
def digits() -> demo.Digits:
    """Return the demo's images."""
    return demo.load_digits()


def start_demo(trial: optuna.trial.BaseTrial, data: Path | None) -> Run:
    """Suggest what the demo suggests, and return its network."""
    model = demo.Classifier(
        cell=trial.suggest_categorical("cell", ["GRU", "LSTM"]),
        units=trial.suggest_int("units", 16, 48),
        weight_scale=trial.suggest_float("weight_scale", 0.01, 0.6, log=True),
        gate_bias=trial.suggest_float("gate_bias", 0.0, 4.0),
        dropout=trial.suggest_float("dropout", 0.0, 0.5),
    )
    optimizer = torch.optim.Adam(
        model.parameters(), lr=trial.suggest_float("lr", 1e-3, 3e-2, log=True)
    )
    return Run(
        model,
        digits().train_x[: demo.N_PROBED],
        lambda: demo.train_one_epoch(model, optimizer, digits()),
        lambda: demo.validate(model, digits())[0],
    )


TASKS: dict[str, Task] = {
    "demo": Task(
        name="demo",
        kind="memory",
        description="the demo's task",
        epochs=15,
        states=("full",),
        start=start_demo,
    ),
    **RECORDED,
}


@dataclass(frozen=True)
class Setting:
    """One study to run.

    Args:
        task: Name of the task.
        pruner: Name of the pruner, or :data:`FREEZE_THAW`.
        seed: Of the sampler and of the networks.
        budget: Epochs in all.
        epochs: Epochs of a whole trial.
    """

    task: str
    pruner: str
    seed: int
    budget: int
    epochs: int


@dataclass(frozen=True)
class Live:
    """What came of it.

    Args:
        complete: For every COMPLETE trial, the epochs spent when it ended, and its value.
        n_pruned: Pruned trials; of ``freeze_thaw`` those that rested when the budget was spent.
        n_failed: Trials that ended without a number, or rested untrained.
        seconds: What the study took.
    """

    complete: tuple[tuple[int, float], ...]
    n_pruned: int
    n_failed: int
    seconds: float

    def best_at(self, epochs: float) -> float:
        """Return the best value of the trials that had ended then; infinity where none had."""
        return min((value for spent, value in self.complete if spent <= epochs), default=math.inf)


def create_study(setting: Setting, pruner: BasePruner) -> optuna.Study:
    """Return a study in memory."""
    # Hyperband draws brackets from the name, so that it must not be a random one.
    return optuna.create_study(
        study_name=f"{setting.task}-{setting.seed}",
        sampler=optuna.samplers.TPESampler(seed=setting.seed),
        pruner=pruner,
    )


def run_freeze_thaw(setting: Setting, task: Task, data: Path | None = None) -> Live:
    """Train trials, which may rest after each epoch and before the first, until it is spent."""
    begin = time.perf_counter()
    study = create_study(setting, NopPruner())
    spent, complete = 0, list[tuple[int, float]]()

    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        nonlocal spent
        torch.manual_seed(1_000 * setting.seed + trial.number)  # as for every pruner
        run = task.start(trial, data)
        probe = lyap.LyapunovProbe(run.model, run.probe_inputs, trial=trial, full_spectrum=True)
        loss = math.nan
        yield
        for epoch in range(1, setting.epochs + 1):
            run.train_epoch()
            spent += 1
            loss = run.validate()
            probe.report(trial, loss, epoch)
            if epoch < setting.epochs:
                yield
        return loss

    def note(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            complete.append((spent, trial.value))

    lyap.freeze_thaw(study, objective, n_steps=setting.budget, seed=setting.seed, callbacks=[note])
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    return Live(
        complete=tuple(complete),
        n_pruned=states.count(TrialState.PRUNED),
        n_failed=states.count(TrialState.FAIL),
        seconds=round(time.perf_counter() - begin, 1),
    )


def run_study(setting: Setting, task: Task, pruner: BasePruner, data: Path | None = None) -> Live:
    """Train trials until the budget is spent."""
    begin = time.perf_counter()
    study = create_study(setting, pruner)
    spent, complete = 0, list[tuple[int, float]]()
    states = dict.fromkeys((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL), 0)
    # A trial that is pruned before training spends nothing: more trials than epochs are too many.
    while spent < setting.budget and sum(states.values()) < setting.budget:
        epochs, ended = run_trial(study, setting, task, setting.budget - spent, data)
        spent += epochs
        if ended is None:
            break
        states[ended.state] += 1
        if ended.state == TrialState.COMPLETE and ended.value is not None:
            complete.append((spent, ended.value))
    return Live(
        complete=tuple(complete),
        n_pruned=states[TrialState.PRUNED],
        n_failed=states[TrialState.FAIL],
        seconds=round(time.perf_counter() - begin, 1),
    )


def run_trial(
    study: optuna.Study, setting: Setting, task: Task, left: int, data: Path | None
) -> tuple[int, optuna.trial.FrozenTrial | None]:
    """Train one trial; return its epochs, and how it ended, None where no more were left."""
    trial = study.ask()
    torch.manual_seed(1_000 * setting.seed + trial.number)
    run = task.start(trial, data)
    # Training with a probe is bit-identical: without a reader it is left out.
    probe = (
        lyap.LyapunovProbe(run.model, run.probe_inputs, trial=trial, full_spectrum=True)
        if isinstance(study.pruner, lyap.LyapunovPruner)
        else None
    )
    loss, epoch = math.nan, 0
    pruned = trial.should_prune()
    while not pruned and epoch < setting.epochs:
        if epoch == left:
            study.tell(trial, state=TrialState.FAIL)
            return epoch, None
        epoch += 1
        run.train_epoch()
        loss = run.validate()
        if probe is None:
            trial.report(loss, epoch)
        else:
            probe.report(trial, loss, epoch)
        # After the last epoch it would save nothing.
        pruned = epoch < setting.epochs and trial.should_prune()
    if pruned:
        return epoch, study.tell(trial, state=TrialState.PRUNED)
    if math.isnan(loss):
        return epoch, study.tell(trial, state=TrialState.FAIL)
    return epoch, study.tell(trial, loss)


def run_setting(setting: Setting, data: Path | None) -> Live:
    """Run a study in whatever process it is called."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    task = TASKS[setting.task]
    if setting.pruner == FREEZE_THAW:
        return run_freeze_thaw(setting, task, data)
    return run_study(setting, task, PRUNERS[setting.pruner](), data)


def run_all(
    settings: Sequence[Setting], jobs: int, data: Path | None
) -> Iterator[tuple[Setting, Live]]:
    """Run studies, so many at a time, and yield each as it ends."""
    if jobs == 1:
        yield from ((setting, run_setting(setting, data)) for setting in settings)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run_setting, setting, data): setting for setting in settings}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def read(path: Path) -> dict[Setting, Live]:
    """Return the studies that have been run."""
    done: dict[Setting, Live] = {}
    for stored in read_lines(path):
        try:
            complete = tuple((int(spent), float(value)) for spent, value in stored.pop("complete"))
            setting = Setting(**stored.pop("setting"))
            done[setting] = Live(complete=complete, **stored)
        except (KeyError, TypeError, ValueError):
            continue  # of another version: it is run again
    return done


def table(found: dict[Setting, Live]) -> str:
    """Return the best value of every seed at the shares of the budget, and their medians."""
    pruners = list(dict.fromkeys(setting.pruner for setting in found))
    seeds = sorted({setting.seed for setting in found})
    best = {
        (setting.pruner, setting.seed): [live.best_at(s * setting.budget) for s in TOLD_AT]
        for setting, live in found.items()
    }

    def cell(values: Sequence[float]) -> str:
        return " / ".join(f"{value:.3g}" if math.isfinite(value) else "none" for value in values)

    rows = [(f"seed {seed}", *(cell(best[p, seed]) for p in pruners)) for seed in seeds]
    medians = [np.median([best[p, seed] for seed in seeds], axis=0).tolist() for p in pruners]
    rows.append(("**median**", *(cell(values) for values in medians)))
    for name in ("complete", "pruned", "failed"):
        rows.append((f"trials {name}", *(str(_trials(found, p, name)) for p in pruners)))
    return markdown(rows, ("", *pruners))


def _trials(found: dict[Setting, Live], pruner: str, ended: str) -> int:
    """Return how many trials ended so, over all seeds."""
    lives = [live for setting, live in found.items() if setting.pruner == pruner]
    if ended == "complete":
        return sum(len(live.complete) for live in lives)
    return sum(live.n_pruned if ended == "pruned" else live.n_failed for live in lives)


@click.command()
@click.argument("name", metavar="TASK", type=click.Choice([*TASKS]))
@click.option("--seeds", default=10, show_default=True, type=click.IntRange(min=1), help="0, 1...")
@click.option(
    "--trials",
    default=40,
    show_default=True,
    type=click.IntRange(min=1),
    help="Budget, in whole trials.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Of a whole trial; else the task's.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Processes.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with the data of tasks that need some; else they are downloaded.",
)
@click.option(
    "--output",
    default=Path("live"),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
)
def main(
    name: str,
    seeds: int,
    trials: int,
    epochs: int | None,
    jobs: int,
    data: Path | None,
    output: Path,
) -> None:
    """Compare pruners live on TASK: demo, or one that is recorded."""
    epochs = TASKS[name].epochs if epochs is None else epochs
    budget = trials * epochs
    settings = [
        Setting(name, searched, seed, budget, epochs)
        for seed in range(seeds)
        for searched in (*PRUNERS, FREEZE_THAW)
    ]
    done = read(output / "live.jsonl")
    missing = [setting for setting in settings if setting not in done]
    with tqdm(total=len(settings), initial=len(settings) - len(missing), unit="study") as bar:
        for setting, live in run_all(missing, jobs, data):
            stored = {"setting": asdict(setting), **asdict(live)}
            append_line(output / "live.jsonl", stored)
            done[setting] = live
            bar.update()
    at = " / ".join(f"{share:.0%}" for share in TOLD_AT)
    click.echo(f"{name}: best COMPLETE value after {at} of {budget} epochs\n")
    click.echo(table({setting: done[setting] for setting in settings}))


if __name__ == "__main__":
    main()
