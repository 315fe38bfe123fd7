"""``lyap-optuna demo``: two searches with the same budget, and what was measured in them."""

import importlib.util
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lyap_optuna._files import write_whole
from lyap_optuna.cli import _format, _storage
from lyap_optuna.cli._rank import LEGEND, ranking_rows, ranking_table
from lyap_optuna.cli._skill import skill_rows, skill_verdict

if TYPE_CHECKING:
    import optuna
    from rich.console import Console

_SETTINGS = "lyapunov-demo:settings"
_SEARCHES = {"MedianPruner": "lyap-optuna-demo-median", "freeze_thaw": "lyap-optuna-demo"}
"""By the name of the search, that of its study."""

_FOUND_AFTER = "lyapunov-demo:found_after"
"""Epochs that the study had spent when its best trial ended."""

_TOLD_EVERY = 50


@click.command()
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
                f"{_storage.shown_url(url)}.\nTo go on with it: {_command(ctx)}",
            )
            ctx.exit(130)
        _report(console, studies, epochs, url, output)


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

    shown = _storage.shown_url(url)
    try:
        study = create_study(url, seed, name)
        stored = study.user_attrs.get(_SETTINGS)
        has_trials = bool(study.get_trials(deepcopy=False))
    except Exception as error:
        reason = _storage.scrub(str(getattr(error, "orig", None) or error)).strip()
        raise click.ClickException(
            f"The storage {shown} does not open: {type(error).__name__}: {reason}"
        ) from None
    if stored is None and not has_trials:
        study.set_user_attr(_SETTINGS, {"epochs": epochs})
    elif not isinstance(stored, dict) or stored.get("epochs") != epochs:
        made_with = stored.get("epochs") if isinstance(stored, dict) else "?"
        raise click.ClickException(
            f"The study in {shown} was made with --epochs {made_with}, and values after different "
            f"numbers of epochs do not compare. Use --epochs {made_with}, or another --output "
            f"for --epochs {epochs}."
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
    try:
        return f"{study.best_value:.3f}"
    except ValueError:
        return "-"


def _report(
    console: "Console",
    studies: Mapping[str, "optuna.Study"],
    epochs: int,
    url: str,
    output: Path,
) -> None:
    import lyap_optuna

    study = studies["freeze_thaw"]
    ranking = lyap_optuna.rank_trials(study)
    skills = lyap_optuna.prediction_skill(study)

    found = comparison(studies)
    print_line(console, "\nWhat each found")
    console.print(_format.table(found, _FOUND))
    better = comparison_verdict(found)
    print_line(console, f"{better}\n\nThe best trials of freeze_thaw")
    console.print(ranking_table(ranking_rows(ranking)[:10]))
    print_line(console, f"{LEGEND}\n")
    rows, columns = skill_rows(skills)
    if rows:
        print_line(
            console,
            "Rank correlation of predicted and actual final loss, out of sample, on "
            f"{max(skill.n_trials for skill in skills)} COMPLETE trials:",
        )
        console.print(_format.table(rows, columns))
        print_line(
            console, "share: of the differences between final losses, in the prediction from all\n"
        )
    verdict = skill_verdict(skills)
    print_line(console, verdict)

    report = output / "report.html"
    _write_page(studies, [better, verdict], report)
    print_line(console, f"\nInteractive plots: {_format.printable(report)}")
    shown = shlex.quote(_storage.shown_url(url))
    ours = _program("lyap-optuna")
    installed = importlib.util.find_spec("optuna_dashboard") is not None
    print_line(
        console,
        f"In optuna-dashboard: {ours} dashboard --storage {shown}"
        + ("" if installed else "  (after pip install 'lyap-optuna[dashboard]')"),
    )
    pruned = next((p.number for p in ranking if p.state.name == "PRUNED"), None)
    if pruned is not None:
        of = f"--storage {shown} --study-name {study.study_name}"
        print_line(console, f"Why a trial rested: {ours} explain {of} --trial-number {pruned}")


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


def comparison_verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say which search found the better network; no more than was measured."""
    known = sorted((row for row in rows if "best" in row), key=lambda row: row["best"])
    if len(known) < 2:
        return "Too few trials ran to the end to compare the two searches."
    first, second = known
    if first["best"] == second["best"]:
        return (
            f"Both found a network of the same loss, {first['search']} after {first['after']} and "
            f"{second['search']} after {second['after']}."
        )
    return (
        f"{first['search']} found the better network: loss {first['best']:.3f} against "
        f"{second['best']:.3f}. One seed does not settle which search is better; `lyap-optuna "
        "replay` compares them in many orders."
    )


def _write_page(studies: Mapping[str, "optuna.Study"], texts: Sequence[str], path: Path) -> None:
    from lyap_optuna import visualization
    from lyap_optuna.cli._page import page

    study = studies["freeze_thaw"]
    figures = [
        (
            "MedianPruner: each bar is a trial, its light part the epochs saved.",
            visualization.plot_pruning_timeline(studies["MedianPruner"]),
        ),
        (
            "freeze_thaw: when each trial ran, and, thin, when it rested. All that follows is of "
            "this search.",
            visualization.plot_pruning_timeline(study),
        ),
        (
            "Spectra by trial. Near 0 a signal survives through time; far below it is forgotten.",
            visualization.plot_spectrum(study),
        ),
        (
            "How far the maximum exponent moved in the first epoch, against the final loss.",
            visualization.plot_exponent_value(study, exponent="max_displacement"),
        ),
        (
            "The maximum exponent after the first epoch, against the final loss.",
            visualization.plot_exponent_value(study, exponent="max"),
        ),
        (
            "Predicted against actual. Predictions of COMPLETE trials come from models that had "
            "not seen them; a pruned trial has no actual value and stands at its last report.",
            visualization.plot_predictions(study),
        ),
        (
            "Which evidence predicts the final loss, and how early.",
            visualization.plot_prediction_skill(study),
        ),
    ]
    write_whole(path, page("lyap-optuna demo", texts, figures))


def _program(name: str) -> str:
    """Return how to call an installed command from here."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    if beside.exists() and (found is None or not os.path.samefile(found, beside)):
        relative = os.path.relpath(beside)
        return shlex.quote(str(beside) if relative.startswith("..") else relative)
    return name


def _command(ctx: click.Context) -> str:
    """Return the command that goes on with this one."""
    parts = ["demo"]
    for option in ctx.command.params:
        name = option.name or ""
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            value = str(ctx.params[name])
            parts += [option.opts[-1], _storage.shown_url(value) if name == "storage" else value]
    return f"{_program('lyap-optuna')} {shlex.join(parts)}"
