"""``lyap-optuna demo``: two searches with the same budget, and what was measured in them."""

import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lyap_optuna._extras import how_to_install
from lyap_optuna.cli import _format, _storage
from lyap_optuna.cli._main import INTERRUPTED
from lyap_optuna.cli._rank import ranking_rows, ranking_table
from lyap_optuna.cli._skill import show_skill

if TYPE_CHECKING:
    import optuna
    from rich.console import Console

_SETTINGS = "lyapunov-demo:settings"
_SEARCHES = {"MedianPruner": "lyap-optuna-demo-median", "freeze_thaw": "lyap-optuna-demo"}
"""By the name of the search, that of its study."""

_FOUND_AFTER = "lyapunov-demo:found_after"
"""Epochs that the study had spent when its best trial ended."""

_TOLD_EVERY = 50  # epochs: five lines of the usual budget


@click.command(short_help="Two real searches on digits, side by side.")
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=250,
    show_default=True,
    help="Epochs that each of the two searches may spend.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=2),
    default=15,
    show_default=True,
    help="Epochs of a trial that runs to its end, at least 2.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 1_000_000),
    default=0,
    show_default=True,
    help="Of both searches: the same seed gives the same studies.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("lyap-optuna-demo"),
    show_default=True,
    help="Folder of the studies' SQLite file and of the HTML page.",
)
@click.option("--storage", metavar="URL", help="DB URL, instead of study.db in the folder.")
@click.pass_context
def demo(
    ctx: click.Context, budget: int, epochs: int, seed: int, output: Path, storage: str | None
) -> None:
    """Tune recurrent networks on handwritten digits, by MedianPruner and by freeze_thaw.

    GRUs and LSTMs learn to recognise a digit that they saw 56 steps ago: a memory task, on which
    about half of all configurations never leave chance level. Two searches with the same seed spend
    the same number of epochs on it, and what each found is told, whichever is better. It uses the
    1,797 real images that scikit-learn ships, one process and one thread. Ctrl-C stops it; the
    same command goes on with the same file.
    """
    console = _format.console()
    output.mkdir(parents=True, exist_ok=True)
    url = storage or f"sqlite:///{(output / 'study.db').as_posix()}"
    with _quiet_and_single_threaded():
        studies = {name: _open(url, study, epochs, seed) for name, study in _SEARCHES.items()}
        try:
            for name, study in studies.items():
                _search(console, name, study, budget, epochs, seed)
        except KeyboardInterrupt:
            spent = " and ".join(f"{_spent(study)}" for study in studies.values())
            print_line(
                console,
                f"\nStopped after {spent} of {budget} epochs; everything so far is in "
                f"{_storage.shown_url(url)}.\nTo go on with it, run the same command again.",
            )
            ctx.exit(INTERRUPTED)
        _report(ctx, console, studies, url, output)


def print_line(console: "Console", text: str) -> None:
    """Print literally, without wrapping: commands and paths stay whole."""
    console.print(text, soft_wrap=True)


@contextmanager
def _quiet_and_single_threaded() -> Iterator[None]:
    import optuna
    import torch

    verbosity, threads = optuna.logging.get_verbosity(), torch.get_num_threads()
    # The lines below tell what Optuna would log; a Ctrl-C would be logged with its traceback.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
        torch.set_num_threads(threads)


def _open(url: str, name: str, epochs: int, seed: int) -> "optuna.Study":
    from lyap_optuna.demo import create_study

    try:
        study = create_study(url, seed, name)
        stored = study.user_attrs.get(_SETTINGS)
        has_trials = bool(study.get_trials(deepcopy=False))
    except Exception as error:
        raise _storage.does_not_open(url, error) from None
    if stored is None and not has_trials:
        study.set_user_attr(_SETTINGS, {"epochs": epochs})
    elif not isinstance(stored, dict) or stored.get("epochs") != epochs:
        made_with = stored.get("epochs") if isinstance(stored, dict) else "?"
        raise click.ClickException(
            f"The study in {_storage.shown_url(url)} was made with --epochs {made_with}, and "
            f"values after different numbers of epochs do not compare. Use --epochs {made_with}, "
            f"or another --output for --epochs {epochs}."
        )
    return study


def _spent(study: "optuna.Study") -> int:
    """Return the epochs that all trials of a study have been trained for."""
    return sum(len(trial.intermediate_values) for trial in study.get_trials(deepcopy=False))


def _search(
    console: "Console", name: str, study: "optuna.Study", budget: int, epochs: int, seed: int
) -> None:
    import optuna

    import lyap_optuna
    from lyap_optuna.demo import load_digits, objective

    before = _spent(study)
    if before >= budget:
        print_line(console, f"{name}: the {budget} epochs are spent; nothing to train.")
        return
    there = f" ({before} of them are there already)" if before else ""
    print_line(console, f"{name}: {budget} epochs{there}, trials of at most {epochs}.")
    digits = load_digits()
    started: list[int] = []
    told = before // _TOLD_EVERY
    bar = console.is_terminal and name == "freeze_thaw"

    def remembered(trial: optuna.Trial) -> float:
        started.append(trial.number)
        return objective(trial, digits, epochs, seed)

    def tell(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        nonlocal told
        spent = _spent(study)
        if trial.state.name == "COMPLETE" and study.best_trial.number == trial.number:
            study.set_user_attr(_FOUND_AFTER, spent)
        if spent >= budget:
            study.stop()
        elif spent // _TOLD_EVERY > told and not bar:
            told = spent // _TOLD_EVERY
            print_line(console, f"  {spent}/{budget} epochs, best loss {_best(study)}")

    begin = time.perf_counter()
    try:
        if name == "freeze_thaw":
            lyap_optuna.freeze_thaw(
                study,
                remembered,
                n_steps=budget - before,
                seed=seed,
                cost="steps",  # so that the same seed gives the same study
                callbacks=[tell],
                show_progress_bar=bar,
            )
        else:
            study.pruner = _within(budget, optuna.pruners.MedianPruner())
            study.optimize(remembered, callbacks=[tell])
    except KeyboardInterrupt:
        _fail_running(study, started)
        raise
    seconds = time.perf_counter() - begin
    print_line(
        console, f"  {len(started)} trials in {seconds / 60:.1f} minutes, best loss {_best(study)}"
    )


def _within(budget: int, pruner: "optuna.pruners.BasePruner") -> "optuna.pruners.BasePruner":
    """Return a pruner that prunes as another does, and every trial once the epochs are spent."""
    from optuna.pruners import BasePruner

    class Within(BasePruner):
        def prune(self, study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> bool:
            return _spent(study) >= budget or pruner.prune(study, trial)

    return Within()


def _fail_running(study: "optuna.Study", numbers: Sequence[int]) -> None:
    # Optuna marks a trial interrupted in its objective; one interrupted while pruning or between
    # objective and storage would stay RUNNING for ever.
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.number in numbers:
            study.tell(trial.number, state=TrialState.FAIL)


def _best(study: "optuna.Study") -> str:
    value = _best_value(study)
    return "-" if value is None else f"{value:.3f}"


def _report(
    ctx: click.Context,
    console: "Console",
    studies: Mapping[str, "optuna.Study"],
    url: str,
    output: Path,
) -> None:
    from lyap_optuna.report import compare_searches, summarize, write_report

    study = studies["freeze_thaw"]
    summary = summarize(study)
    words = compare_searches(studies, target_name="loss")
    click.echo("\nWhat each found\n")
    _format.show(_format.table(comparison(studies), _FOUND, spare=("after",)))
    click.echo("\n" + "\n".join(map(_format.wrapped, words)))
    click.echo("\nThe best trials of freeze_thaw\n")
    _format.show(ranking_table(ranking_rows(summary.ranking)[:10]))
    click.echo("\nWhat predicts the final loss of freeze_thaw's trials\n")
    show_skill(summary)

    report = output / "report.html"
    write_report(study, report, notes=words, summary=summary)
    print_line(console, f"\nThe whole report: {_format.printable(report)}")
    of = f"--storage {shlex.quote(_storage.shown_url(url))}"
    ours = _program(ctx)
    installed = importlib.util.find_spec("optuna_dashboard") is not None
    extra = "" if installed else f"  (after {how_to_install('dashboard')})"
    print_line(console, f"In optuna-dashboard: {ours} dashboard {of}{extra}")
    pruned = next((p.number for p in summary.ranking if p.state.name == "PRUNED"), None)
    if pruned is not None:
        named = f"{of} --study-name {study.study_name}"
        why = f"{ours} explain {named} --trial-number {pruned}"
        print_line(console, f"Why a trial was not gone on with: {why}")


_FOUND = {
    "search": "search",
    "trials": "trials",
    "complete": "to the end",
    "epochs": "epochs",
    "best": "best loss",
    "accuracy": "images read",
    "after": "found after",
}


def comparison(studies: Mapping[str, "optuna.Study"]) -> list[dict[str, Any]]:
    """Return one row per search: what it spent and what it found."""
    rows = []
    for name, study in studies.items():
        trials = study.get_trials(deepcopy=False)
        row: dict[str, Any] = {"search": name, "trials": len(trials), "epochs": _spent(study)}
        row["complete"] = sum(trial.state.name == "COMPLETE" for trial in trials)
        if row["complete"]:
            accuracy = study.best_trial.user_attrs.get("accuracy")
            row["best"] = study.best_value
            row["accuracy"] = f"{accuracy:.1%}" if isinstance(accuracy, float) else None
            row["after"] = f"{study.user_attrs.get(_FOUND_AFTER, '?')} epochs"
        rows.append(row)
    return rows


def _best_value(study: "optuna.Study") -> float | None:
    try:
        return study.best_value
    except ValueError:
        return None


def _program(ctx: click.Context) -> str:
    """Return how to call this program from here: as it was called, where that was by a path."""
    typed = sys.argv[0]
    name = ctx.find_root().command.name or "lyap-optuna"
    by_path = os.sep in typed and not os.path.isabs(typed) and Path(typed).name == name
    return shlex.quote(typed) if by_path else name
