"""What ``docs/tutorial.md`` prints: ``python -m studies.tutorial --write docs/tutorial.md``.

The programs stand in the page alone and are taken from there. Its ``text`` blocks become what the
block before each of them prints, and two tables are written: how the first trials go on when
nothing prunes them, and what several seeds of the sampler find (40 studies of at most half a
minute on one core). The seeds only report: nothing in the package was chosen by them.
"""

import contextlib
import importlib.metadata
import io
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import optuna
import torch

import lyap_optuna as lyap
from studies.pages import FENCE, Block, block_of, write_block

ROOT = Path(__file__).parents[1]
FIRST, SEEDS = "python -m studies.tutorial: first trials", "python -m studies.tutorial: seeds"
RECALLS = 0.1
"""A loss below this is one of a network that recalls: one that does not is at 0.75."""

Program = dict[str, Any]
"""The names of a program of the page."""


def optimized(file: str, pruner: Callable[[], Any], programs: dict[str, Program], seed: int) -> Any:
    """Return the study of one program with another pruner and seed."""
    study = new_study(seed, pruner())
    study.optimize(programs[file]["objective"], n_trials=programs["plain.py"]["TRIALS"])
    return study


def frozen(programs: dict[str, Program], seed: int) -> optuna.Study:
    """Return the study of ``freeze_thaw``, for half the epochs of all trials."""
    study, plain = new_study(seed), programs["plain.py"]
    budget = plain["TRIALS"] * plain["EPOCHS"] // 2
    lyap.freeze_thaw(study, programs["tune.py"]["objective"], n_steps=budget, seed=seed)
    return study


def new_study(seed: int, pruner: optuna.pruners.BasePruner | None = None) -> optuna.Study:
    """Return a study in memory, with the sampler of the page."""
    return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner)


NEVER = "no pruning"
SEARCHES: dict[str, Callable[[dict[str, Program], int], optuna.Study]] = {
    NEVER: partial(optimized, "plain.py", optuna.pruners.NopPruner),
    "`MedianPruner()`": partial(optimized, "plain.py", optuna.pruners.MedianPruner),
    "`LyapunovPruner()`": partial(optimized, "tune.py", lyap.LyapunovPruner),
    "`LyapunovPruner(n_startup_trials=20)`": partial(
        optimized, "tune.py", partial(lyap.LyapunovPruner, n_startup_trials=20)
    ),
    "`freeze_thaw`, half the epochs": frozen,
}


def epochs_of(study: optuna.Study) -> int:
    """Return how many epochs all trials of a study were trained."""
    return sum(len(trial.intermediate_values) for trial in study.get_trials(deepcopy=False))


def table_of_seeds(found: dict[str, list[optuna.Study]]) -> str:
    """Return what each search found with each seed."""
    lines = [
        "| | studies that found a network that recalls | seeds that missed it | epochs, mean | "
        "best loss, median |",
        "| --- | --: | --- | --: | --: |",
    ]
    for name, studies in found.items():
        best = [study.best_value for study in studies]
        missed = [str(seed) for seed, value in enumerate(best) if not value < RECALLS]
        epochs = statistics.mean(epochs_of(study) for study in studies)
        lines.append(
            f"| {name} | {len(best) - len(missed)} of {len(best)} | {', '.join(missed)} | "
            f"{epochs:.0f} | {statistics.median(best):.2g} |"
        )
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name).partition('+')[0]}"
        for name in ("torch", "optuna")
    )
    return "\n".join([*lines, "", f"Measured with {versions}, one thread."])


def table_of_first_trials(plain: optuna.Study, pruned: optuna.Study) -> str:
    """Return the losses of the ten trials that the sampler draws at random, and their fate.

    Args:
        plain: Without pruning.
        pruned: With the page's pruner and the same seed: these trials begin alike.
    """
    n = max(len(trial.intermediate_values) for trial in plain.trials)
    lines = [
        f"| trial | epoch 0 | {' | '.join(str(step) for step in range(1, n))} | `MedianPruner` |",
        f"| --- | {'--- | ' * n}--- |",
    ]
    for trial, other in zip(plain.trials[:10], pruned.trials, strict=False):
        losses = [f"{loss:.3f}" for _, loss in sorted(trial.intermediate_values.items())]
        was_pruned = other.state == optuna.trial.TrialState.PRUNED
        fate = f"pruned it at epoch {other.last_step}" if was_pruned else "kept it"
        lines.append(f"| {trial.number} | {' | '.join(losses)} | {fate} |")
    return "\n".join(lines)


class Page:
    """A page whose blocks are run from top to bottom, in one folder.

    Args:
        text: Of the page.
        folder: Where its files are written and its commands run.
        trials: Of each study, in place of the page's; None: the page's.
    """

    def __init__(self, text: str, folder: Path, trials: int | None = None) -> None:
        self.text, self.folder, self.trials = text, folder, trials
        self.names: dict[str, Any] = {}

    def printed(self) -> Iterator[str]:
        """Run all blocks; yield what stands in the place of each that shows what was printed."""
        said = ""
        for block in map(block_of, FENCE.finditer(self.text)):
            if block.language == "text":
                yield said
            else:
                said = self._run(block)

    def programs(self) -> dict[str, Program]:
        """Return the names that each file of the page defines."""
        found = {}
        for block in map(block_of, FENCE.finditer(self.text)):
            if block.file is not None:
                found[block.file] = self._imported(block.file)
        return found

    def _imported(self, file: str) -> Program:
        sys.path.insert(0, str(self.folder))
        try:
            names: Program = {"__name__": file}
            exec(compile((self.folder / file).read_text(), file, "exec"), names)  # our own page
        finally:
            sys.path.remove(str(self.folder))
            sys.modules.pop("plain", None)  # as other folders have one too
        return names

    def _run(self, block: Block) -> str:
        if block.file is not None:
            code = block.code
            if self.trials is not None:
                code = re.sub(r"^TRIALS = \d+$", f"TRIALS = {self.trials}", code, flags=re.M)
            (self.folder / block.file).write_text(code)
        elif block.language == "shell":
            return "\n".join(
                self._command(shlex.split(line))
                for line in block.code.splitlines()
                if not line.startswith("lyap-optuna dashboard")  # serves until it is stopped
            )
        elif block.language == "python":
            with contextlib.chdir(self.folder), contextlib.redirect_stdout(io.StringIO()) as said:
                exec(compile(block.code, "tutorial.md", "exec"), self.names)  # our own page
            return said.getvalue()
        return ""

    def _command(self, words: list[str]) -> str:
        known = {
            "python": [sys.executable],
            "lyap-optuna": [sys.executable, "-c", "from lyap_optuna.cli import main; main()"],
        }
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        environment.pop("COLUMNS", None)
        done = subprocess.run(
            [*known[words[0]], *words[1:]],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            # Optuna's log is not shown in the page; what our commands say beside their tables is.
            stderr=subprocess.STDOUT if words[0] == "lyap-optuna" else None,
            text=True,
            check=True,
        )
        return done.stdout


def write_printed(page: Path, printed: list[str]) -> None:
    """Put what was printed into the ``text`` blocks of a page, in order."""
    said = iter(printed)

    def renewed(fence: re.Match[str]) -> str:
        if block_of(fence).language != "text":
            return fence[0]
        return f"```text\n{next(said).rstrip()}\n```"

    page.write_text(FENCE.sub(renewed, page.read_text(encoding="utf-8")), encoding="utf-8")


@click.command()
@click.option(
    "--seeds",
    default=8,
    show_default=True,
    help="How many seeds of the sampler: 0, 1, ...; with 0 the two tables stay as they are.",
)
@click.option("--trials", type=int, help="Trials of each study, in place of the page's.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Keep files here.")
@click.option(
    "--write",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Write into this page.",
)
def main(seeds: int, trials: int | None, output: Path | None, write: Path | None) -> None:
    """Run the tutorial's programs, then its searches with several seeds."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    source = write or ROOT / "docs" / "tutorial.md"
    with tempfile.TemporaryDirectory() as temporary:
        folder = output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        page = Page(source.read_text(encoding="utf-8"), folder, trials)
        printed = list(page.printed())
        for said in printed:
            click.echo(said)
        if write is not None:
            write_printed(write, printed)
        if not seeds:
            return
        programs = page.programs()
    found: dict[str, list[optuna.Study]] = {name: [] for name in SEARCHES}
    for seed in range(seeds):
        for name, search in SEARCHES.items():
            study = search(programs, seed)
            found[name].append(study)
            click.echo(f"seed {seed}, {name}: {study.best_value:.3f}, {epochs_of(study)} epochs")
    tables = {
        FIRST: table_of_first_trials(found[NEVER][0], found["`MedianPruner()`"][0]),
        SEEDS: table_of_seeds(found),
    }
    for block, table in tables.items():
        click.echo(table)
        if write is not None:
            write_block(write, block, table)


if __name__ == "__main__":
    main()
