"""The table of ``docs/models.md``: ``python -m studies.models --libraries --write docs/models.md``.

Each row is a case of ``cases`` or ``libraries``: its exponents against its truth, and what a
readout costs beside training. Rows that are not measured in a run keep their last line, marked.
"""

import importlib.metadata
import importlib.util
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import lyap_optuna as lyap
from studies.models.cases import CASES, Case, Comparison, compare
from studies.models.libraries import LIBRARIES
from studies.pages import read_block, write_block

UNITS, STEPS = 64, 100
TRAINED, BATCHES = 32, 20
READ = 10

BLOCK = "python -m studies.models"
HEAD = (
    "| model | measured as | path | largest error | cost | you write |\n"
    "| --- | --- | --- | --: | --: | --- |"
)
KEPT = "†"


@dataclass(frozen=True)
class Row:
    """What a case came to.

    Args:
        case: The case.
        compared: Its exponents against the truth.
        cost: Of a readout, as a share of an epoch.
    """

    case: Case
    compared: Comparison
    cost: float

    def __str__(self) -> str:
        """Return the line of the table."""
        path = self.compared.path + ("" if self.case.whole else ", maximum only")
        entries = ", ".join(f"`{name}`" for name in self.compared.entries)
        return (
            f"| {self.case.name} | {entries} | {path} | {self.compared.error:.0e} | "
            f"{float(f'{100 * self.cost:.2g}'):g} % | `{self.case.line}` |"
        )


def cost(case: Case, repeats: int) -> float:
    """Return what a readout costs as a share of a training epoch, in processor time.

    A readout of 10 sequences of 100 steps and an epoch of 20 batches of 32 take turns; medians.
    """
    torch.manual_seed(0)
    model = case.make(UNITS).train()
    read = case.inputs(model, READ, STEPS)
    batch = _arguments(case.inputs(model, TRAINED, STEPS))
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def epoch() -> None:
        for _ in range(BATCHES):
            optimizer.zero_grad()
            _first(model(*batch)).square().mean().backward()
            optimizer.step()

    def readout() -> None:
        lyap.lyapunov_readout(model, read)

    first = _seconds(readout)
    epochs, readouts = [], []
    for _ in range(repeats):
        epochs.append(_seconds(epoch))
        readouts += [_seconds(readout) for _ in range(1 if first > 1 else 3)]
    return statistics.median(readouts) / statistics.median(epochs)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _arguments(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _first(result: Any) -> Tensor:
    while not isinstance(result, Tensor):
        result = result["logits"] if "logits" in result else result[0]
    return result


def installed(case: Case) -> bool:
    """Whether the library that a case needs is there."""
    return not case.module or importlib.util.find_spec(case.module) is not None


def rows_of(page: str) -> dict[str, str]:
    """Return the lines of a page's tables by the names of their models, marks left out."""
    rows = {}
    for line in read_block(page, BLOCK).splitlines():
        found = re.match(rf"\| (?!model \||---)(.+?)(?: {KEPT})? \|", line)
        if found:
            rows[found[1]] = line.replace(f" {KEPT} |", " |", 1)
    return rows


def table(measured: Iterable[Row], before: dict[str, str], versions: str) -> str:
    """Return the tables of all cases, and the line below that says how they were made.

    Args:
        measured: Rows of this run.
        before: Lines of an earlier one, by name.
        versions: Of the packages that were used.
    """
    new = {row.case.name: str(row) for row in measured}
    parts, marked = [], False
    for group, cases in {**CASES, **LIBRARIES}.items():
        parts.append(f"### {group}\n\n{HEAD}")
        for case in cases:
            line = new.get(case.name)
            if line is None:
                empty = f"| {case.name} | | | | | `{case.line}` |"
                line = before.get(case.name, empty).replace(
                    f"| {case.name} |", f"| {case.name} {KEPT} |", 1
                )
                marked = True
            parts[-1] += f"\n{line}"
    lines = [line.split(" | ") for part in parts for line in part.splitlines()]
    general = [float(cells[4][:-2]) for cells in lines if cells[2:][:1] and "general" in cells[2]]
    note = f"Measured with {versions}, on one core."
    if general:
        low, high = min(general), max(general)
        note += (
            f" The general path, at {low:g} to {high:g} % of {BATCHES} batches, is "
            f"{low * BATCHES / 1000:.0f} to {high * BATCHES / 1000:.0f} % of 1,000 batches."
        )
    if marked:
        note += f" {KEPT} Kept from an earlier run: not measured in this one."
    return "\n\n".join([*parts, note])


def _versions(cases: list[Case]) -> str:
    libraries = sorted({case.library for case in cases if case.library}, key=str.lower)
    names = ["torch", *libraries]
    found = {name: importlib.metadata.version(name).partition("+")[0] for name in names}
    return ", ".join(f"{name} {version}" for name, version in found.items())


@click.command()
@click.option("--libraries", is_flag=True, help="Layers of other libraries too.")
@click.option("--only", default="", help="Models whose name contains this.")
@click.option("--write", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Page.")
@click.option("--repeats", default=3, help="Epochs that are timed.")
def main(libraries: bool, only: str, write: Path | None, repeats: int) -> None:
    """Measure models against their truths, and write the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    groups = {**CASES, **(LIBRARIES if libraries else {})}
    cases = [case for group in groups.values() for case in group if only in case.name]
    missing = sorted({case.library for case in cases if not installed(case)})
    cases = [case for case in cases if installed(case)]
    measured = []
    for case in cases:
        measured.append(Row(case, compare(case), cost(case, repeats)))
        click.echo(measured[-1])
    if missing:
        click.echo(f"Not installed: {', '.join(missing)}.")
    if write is not None:
        block = table(measured, rows_of(write.read_text(encoding="utf-8")), _versions(cases))
        write_block(write, BLOCK, block)


if __name__ == "__main__":
    main()
