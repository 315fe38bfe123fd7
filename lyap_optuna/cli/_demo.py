"""``lyap-optuna demo``: a real study from beginning to end, and what was measured in it."""

import importlib.util
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lyap_optuna.cli import _format, _storage
from lyap_optuna.cli._rank import LEGEND, ranking_rows, ranking_table

if TYPE_CHECKING:
    import optuna
    from rich.console import Console

    from lyap_optuna import EvidenceSkill

_SETTINGS = "lyapunov-demo:settings"
_FIRST_STEPS = 3
_OURS = ("exponents", "displacement")


@click.command()
@click.option("--trials", type=click.IntRange(min=1), default=60, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), default=15, show_default=True)
@click.option("--seed", type=click.IntRange(0, 1_000_000), default=0, show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("lyap-optuna-demo"),
    show_default=True,
    help="Folder of the study's SQLite file and of the HTML page.",
)
@click.option("--storage", metavar="URL", help="DB URL, instead of study.db in the folder.")
@click.pass_context
def demo(
    ctx: click.Context, trials: int, epochs: int, seed: int, output: Path, storage: str | None
) -> None:
    """Tune recurrent networks on handwritten digits, pruned by their Lyapunov exponents.

    Sixty configurations of a GRU or LSTM learn to recognise a digit that they saw 56 steps ago: a
    memory task, on which about half of all configurations never leave chance level. It uses the
    1,797 real images that scikit-learn ships, one process and one thread. Ctrl-C stops it; the
    same command goes on with the same file.
    """
    console = _format.console()
    command = _command(trials, epochs, seed, output, storage)
    output.mkdir(parents=True, exist_ok=True)
    url = storage or f"sqlite:///{(output / 'study.db').as_posix()}"
    with _quiet_and_single_threaded():
        study = _open(url, epochs, seed)
        left = trials - _n_done(study)
        if left > 0:
            print_line(console, _opening(study, trials, left, epochs))
            try:
                seconds = _run(console, study, left, epochs, seed)
            except KeyboardInterrupt:
                print_line(
                    console,
                    f"\nStopped after {_n_done(study)} of {trials} trials; everything so far is in "
                    f"{_storage.shown_url(url)}.\nTo go on with it: {command}",
                )
                ctx.exit(130)
            print_line(console, f"{left} trials in {seconds / 60:.1f} minutes.")
        else:
            print_line(console, f"The study already has its {trials} trials; nothing to train.")
        _report(console, study, epochs, url, output)


def print_line(console: "Console", text: str) -> None:
    """Print literally, without wrapping: commands and paths stay whole."""
    console.print(text, soft_wrap=True)


@contextmanager
def _quiet_and_single_threaded() -> Iterator[None]:
    import optuna
    import torch

    verbosity, threads = optuna.logging.get_verbosity(), torch.get_num_threads()
    # The progress bar tells what Optuna would log; a Ctrl-C would be logged with its traceback.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
        torch.set_num_threads(threads)


def _open(url: str, epochs: int, seed: int) -> "optuna.Study":
    from lyap_optuna.demo import create_study

    shown = _storage.shown_url(url)
    try:
        study = create_study(url, seed)
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


def _n_done(study: "optuna.Study") -> int:
    from optuna.trial import TrialState

    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return len(study.get_trials(deepcopy=False, states=states))


def _opening(study: "optuna.Study", trials: int, left: int, epochs: int) -> str:
    if left == trials:
        return f"{trials} trials of at most {epochs} epochs each."
    return f"{trials - left} of {trials} trials are there already; {left} more."


def _run(console: "Console", study: "optuna.Study", left: int, epochs: int, seed: int) -> float:
    import optuna
    from optuna.trial import TrialState
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from lyap_optuna.demo import load_digits, objective

    digits = load_digits()
    started: list[int] = []
    n_pruned = 0

    def remembered(trial: optuna.Trial) -> float:
        started.append(trial.number)
        return objective(trial, digits, epochs, seed)

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[news]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )

    def advance(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        nonlocal n_pruned
        n_pruned += trial.state == TrialState.PRUNED
        news = f"{n_pruned} pruned, best loss {_best(study)}"
        progress.update(task, advance=1, news=news)
        if not console.is_terminal and (len(started) % 10 == 0 or len(started) == left):
            print_line(console, f"{len(started)}/{left} trials, {news}")

    begin = time.perf_counter()
    try:
        with progress:
            task = progress.add_task("trials", total=left, news="")
            study.optimize(remembered, n_trials=left, callbacks=[advance])
    except KeyboardInterrupt:
        _fail_running(study, started)
        raise
    return time.perf_counter() - begin


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


def _report(console: "Console", study: "optuna.Study", epochs: int, url: str, output: Path) -> None:
    import lyap_optuna

    ranking = lyap_optuna.rank_trials(study)
    skills = lyap_optuna.prediction_skill(study)

    print_line(console, "\nThe best trials")
    console.print(ranking_table(ranking_rows(ranking)[:10]))
    print_line(console, f"{LEGEND}\n")
    spent = epochs_spent(study, epochs)
    print_line(console, spent)
    best = _best_accuracy(study)
    if best is not None:
        print_line(console, best)
    print_line(console, "")
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
    _write_page(study, [spent, *([best] if best else []), verdict], report)
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
        print_line(
            console,
            f"Why a trial was pruned: {ours} explain --storage {shown} --trial-number {pruned}",
        )


def epochs_spent(study: "optuna.Study", epochs: int) -> str:
    """Tell how many epochs were trained, of how many without pruning."""
    from optuna.trial import TrialState

    complete, pruned, failed = (
        study.get_trials(deepcopy=False, states=(state,))
        for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    )
    spent = sum(len(trial.intermediate_values) for trial in complete + pruned)
    total = epochs * len(complete + pruned)
    return (
        f"{spent} of {total} epochs spent ({spent / max(total, 1):.0%}): {len(complete)} trials "
        f"ran to the end, {len(pruned)} were pruned."
        + (f" {len(failed)} more failed or were interrupted." if failed else "")
    )


def skill_rows(
    skills: Sequence["EvidenceSkill"], n_steps: int = _FIRST_STEPS
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return one row per kind of evidence and one column per early step, and the headings."""
    steps = sorted({skill.step for skill in skills})[:n_steps]
    columns = {"evidence": "evidence"}
    for step in steps:
        columns[f"step{step}"] = f"step {step}"
        columns[f"share{step}"] = "share"
    rows: dict[str, dict[str, Any]] = {}
    for skill in skills:
        if skill.step in steps:
            name = "all together" if " + " in skill.evidence else skill.evidence
            row = rows.setdefault(name, {"evidence": name})
            correlation, share = skill.rank_correlation, skill.share
            row[f"step{skill.step}"] = None if correlation is None else f"{correlation:.2f}"
            row[f"share{skill.step}"] = None if share is None else f"{share:.0%}"
    return list(rows.values()), columns


def skill_verdict(skills: Sequence["EvidenceSkill"]) -> str:
    """Say whether exponents predicted better than the loss at one of the first two steps.

    Only what was measured is said; without enough COMPLETE trials, that.
    """
    by_step: dict[int, dict[str, EvidenceSkill]] = {}
    for skill in skills:
        if skill.rank_correlation is not None:
            by_step.setdefault(skill.step, {})[skill.evidence] = skill
    compared = []
    for _step, kinds in sorted(by_step.items()):
        ours = max((kinds[name] for name in _OURS if name in kinds), key=_skill_of, default=None)
        if ours is not None and "loss" in kinds:
            compared.append((ours, kinds["loss"]))
    compared = compared[:2]
    if not compared:
        return "Too few trials ran to the end to compare the kinds of evidence."
    ours, loss = max(compared, key=lambda pair: _skill_of(pair[0]) - _skill_of(pair[1]))
    error = 1 / math.sqrt(max(ours.n_trials - 1, 1))
    gain = _skill_of(ours) - _skill_of(loss)
    measured = (
        f"rank correlation {_skill_of(ours):.2f} against {_skill_of(loss):.2f} on {ours.n_trials} "
        "trials"
    )
    if gain <= 0:
        return (
            "At the first two epochs the Lyapunov exponents predicted the final loss no better "
            f"than the loss itself did (at best {measured})."
        )
    others = [
        kind
        for kind in by_step[ours.step].values()
        if kind.evidence == "hyperparameters" and _skill_of(kind) > _skill_of(ours)
    ]
    name = "displacement of the exponents" if ours.evidence == "displacement" else "exponents"
    return (
        f"After epoch {ours.step} the {name} predicted the final loss better than the loss itself "
        f"did: {measured}."
        + (
            f" So few trials leave each of the two uncertain by about {error:.2f}, so this study "
            "alone does not settle it."
            if gain < error
            else f" Each of the two is uncertain by about {error:.2f}."
        )
        + "".join(f" The {o.evidence} predicted better still: {_skill_of(o):.2f}." for o in others)
    )


def _skill_of(skill: "EvidenceSkill") -> float:
    return -1.0 if skill.rank_correlation is None else skill.rank_correlation


def _best_accuracy(study: "optuna.Study") -> str | None:
    try:
        best = study.best_trial
    except ValueError:
        return None
    accuracy = best.user_attrs.get("accuracy")
    if not isinstance(accuracy, float):
        return None
    return f"The best network, trial {best.number}, reads {accuracy:.1%} of the validation images."


def _write_page(study: "optuna.Study", texts: Sequence[str], path: Path) -> None:
    from lyap_optuna import visualization
    from lyap_optuna.cli._page import page

    figures = [
        (
            "What was pruned when: each bar is a trial, its light part the epochs saved.",
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
    _format.write_whole(path, page(f"lyap-optuna demo: {study.study_name}", texts, figures))


def _program(name: str) -> str:
    """Return how to call an installed command from here."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    if beside.exists() and (found is None or not os.path.samefile(found, beside)):
        relative = os.path.relpath(beside)
        return shlex.quote(str(beside) if relative.startswith("..") else relative)
    return name


def _command(trials: int, epochs: int, seed: int, output: Path, storage: str | None) -> str:
    parts = ["demo"]
    if trials != 60:
        parts += ["--trials", str(trials)]
    if epochs != 15:
        parts += ["--epochs", str(epochs)]
    if seed != 0:
        parts += ["--seed", str(seed)]
    if output != Path("lyap-optuna-demo"):
        parts += ["--output", str(output)]
    if storage is not None:
        parts += ["--storage", _storage.shown_url(storage)]
    return f"{_program('lyap-optuna')} {shlex.join(parts)}"
