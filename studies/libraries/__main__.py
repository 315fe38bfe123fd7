"""A search in each library: ``make study-libraries``, or ``python -m studies.libraries``.

Each is a study of ``LyapunovPruner`` whose outcome becomes a line of ``docs/libraries.md``, beside
what a readout costs there. Libraries that are not run keep their lines.
"""

import contextlib
import importlib.metadata
import logging
import os
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import click
import optuna
import torch
from optuna.trial import Trial, TrialState

import lyap_optuna as lyap
from lyap_optuna.probe import LyapunovProbe
from studies.libraries.tasks import TASKS, Task
from studies.pages import read_block, write_block

BLOCK = "make study-libraries"
OUTCOMES = "make study-libraries: outcomes"
HEADS = {
    BLOCK: "| library | version tested | lines | what you write | a readout | of an epoch |\n"
    "| --- | --- | --: | --- | --: | --: |",
    OUTCOMES: "| library | model | trials of each state | epochs spent | best | seconds |\n"
    "| --- | --- | --- | --: | --: | --: |",
}


@dataclass
class Clock:
    """How long readouts and epochs take, in seconds of the processor.

    An epoch lies between two reports of a trial, validation included; readouts and decisions of
    the pruner do not count.
    """

    readouts: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    _apart: float = 0.0
    _last: tuple[int, float] = (-1, 0.0)

    @contextlib.contextmanager
    def running(self) -> Iterator["Clock"]:
        """Time everything within."""
        with contextlib.ExitStack() as stack:
            for owner, name, own in (
                (LyapunovProbe, "measure", self.readouts),
                (Trial, "should_prune", []),
            ):
                timed = self._timed(getattr(owner, name), own)
                stack.enter_context(mock.patch.object(owner, name, timed))
            stack.enter_context(mock.patch.object(Trial, "report", self._reported(Trial.report)))
            yield self

    def _timed(self, call: Callable[..., Any], own: list[float]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                own.append(time.process_time() - begun)
                self._apart += own[-1]

        return timed

    def _reported(self, report: Callable[..., None]) -> Callable[..., None]:
        def reported(trial: Trial, value: float, step: int) -> None:
            now = time.process_time() - self._apart
            number, before = self._last
            if number == trial.number:
                self.epochs.append(now - before)
            self._last = trial.number, now
            report(trial, value, step)

        return reported


def of_library(task: Task, clock: Clock | None = None) -> str:
    """Return a line about a library: its version, what one writes, what a readout costs."""
    cost = "|"
    if clock is not None:
        readout, epoch = statistics.median(clock.readouts), statistics.median(clock.epochs)
        share = float(f"{100 * readout / epoch:.2g}")
        cost = f"{1000 * readout:.0f} ms | {share:g} %"
    written = ", ".join(f"`{line}`" for line in task.lines)
    version = importlib.metadata.version(task.package)
    return f"| {task.package} | {version} | {len(task.lines)} | {written} | {cost} |"


def of_study(task: Task, study: optuna.Study, seconds: float) -> str:
    """Return a line about a study."""
    states = {
        state.name: len(study.get_trials(deepcopy=False, states=(state,))) for state in TrialState
    }
    told = ", ".join(f"{n} {name}" for name, n in states.items() if n)
    spent = sum(len(trial.intermediate_values) for trial in study.trials)
    whole = len(study.trials) * task.size.epochs
    return (
        f"| {task.package} | {task.model} | {told} | {100 * spent / whole:.0f} % | "
        f"{study.best_value:.3g} | {seconds:.0f} |"
    )


def search(task: Task, trials: int) -> dict[str, str]:
    """Run a study and return its lines, by the blocks that they belong to."""
    study = optuna.create_study(
        direction=task.direction,
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=lyap.LyapunovPruner(),
    )
    # What a library loads on first use is no part of an epoch.
    optuna.create_study(direction=task.direction).optimize(task.tuned(), n_trials=1)
    begun = time.process_time()
    with Clock().running() as clock:
        study.optimize(task.tuned(), n_trials=trials)
    seconds = time.process_time() - begun
    return {BLOCK: of_library(task, clock), OUTCOMES: of_study(task, study, seconds)}


def rows_of(page: str, block: str) -> dict[str, str]:
    """Return the lines of a table by library."""
    found = re.findall(r"^\| ([\w-]+) \|.*$", read_block(page, block), re.MULTILINE)
    lines = re.findall(r"^\| [\w-]+ \|.*$", read_block(page, block), re.MULTILINE)
    return dict(zip(found, lines, strict=True))


def write(page: Path, new: dict[str, str]) -> None:
    """Put the lines of one library into the tables of a page."""
    for block, line in new.items():
        rows = {task.package: of_library(task) for task in TASKS} if block == BLOCK else {}
        rows |= rows_of(page.read_text(encoding="utf-8"), block) | {line.split()[1]: line}
        ordered = [rows[task.package] for task in TASKS if task.package in rows]
        write_block(page, block, "\n".join([HEADS[block], *ordered]))


def hush() -> None:
    """Let the libraries be silent; our own warnings are not."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", category=lyap.LyapunovWarning)
    logging.disable(logging.INFO)


@click.command()
@click.option("--library", "names", multiple=True, type=click.Choice([t.package for t in TASKS]))
@click.option("--trials", default=25, show_default=True)
@click.option("--write", "page", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(names: tuple[str, ...], trials: int, page: Path | None) -> None:
    """Search in every library, or in those that are named."""
    hush()
    page = page and page.absolute()
    click.echo(f"{trials} trials in each, {torch.get_num_threads()} thread(s)")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for task in TASKS:
            if names and task.package not in names:
                continue
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                lines = search(task, trials)
            for line in lines.values():
                click.echo(line, file=sys.stdout)
            if page is not None:
                write(page, lines)


if __name__ == "__main__":
    main()
