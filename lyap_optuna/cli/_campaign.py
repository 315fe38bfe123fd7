"""``lyap-optuna campaign``: run and watch campaigns from a file."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lyap_optuna.cli import _format, _storage
from lyap_optuna.cli._main import INTERRUPTED

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from lyap_optuna.campaign import CampaignConfig, CampaignResult, CampaignStatus, View

_REFRESH_SECONDS = 2.0  # as often as a reader looks; a large study takes longer

_file = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


@click.group()
def campaign() -> None:
    """Run many trials on many workers, as a file says."""


@campaign.command()
@_file
@click.option("--dask", metavar="ADDRESS", help="Run on the Dask cluster of this scheduler.")
@click.pass_context
def run(ctx: click.Context, file: Path, dask: str | None) -> None:
    """Run the campaign of FILE, or go on with it, to its total.

    Ctrl-C stops each worker at its next report, a second one stops at once. The same command goes
    on with the campaign; docs/campaigns.md describes the file.
    """
    config = _load(file)
    from lyap_optuna.campaign import run_campaign

    console = _format.console(stderr=True)
    with _errors_in_a_line(), _progress(console, config) as view:
        result = run_campaign(config, dask=dask, view=view)
    _say_how_it_ended(result, file)
    if result.stopped == "interrupted":
        ctx.exit(INTERRUPTED)


@campaign.command()
@_file
@click.option("--once", is_flag=True, help="Print the table once, do not follow the campaign.")
@_format.option(_format.NESTED_FORMATS)
def status(file: Path, once: bool, output_format: str) -> None:
    """Show how the campaign of FILE stands; on a terminal, live until it is done or Ctrl-C."""
    from rich.live import Live

    config = _load(file)
    current = _status_reader(config)
    console = _format.console()
    if output_format != "table":
        click.echo(_format.dump(_as_record(config, current()), output_format), nl=False)
        return
    if once or not console.is_terminal:
        _format.show(_status_table(config, current()))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            began = time.monotonic()
            now = current()
            live.update(_status_table(config, now), refresh=True)
            if now.missing == 0:
                return
            # A large study takes a while to rank: spend most of the time waiting.
            time.sleep(max(_REFRESH_SECONDS, 5 * (time.monotonic() - began)))


def _load(file: Path) -> "CampaignConfig":
    import optuna

    before = optuna.logging.get_verbosity()
    click.get_current_context().call_on_close(lambda: optuna.logging.set_verbosity(before))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        from lyap_optuna.campaign import CampaignFileError, load_config
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    try:
        config = load_config(file)
    except CampaignFileError as error:
        raise click.ClickException(_printable(error)) from None
    if config.storage is not None:
        _storage.shown_url(config.storage.get_secret_value())  # remembers what to hide
    return config


@contextmanager
def _errors_in_a_line() -> Iterator[None]:
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    from lyap_optuna.campaign import CampaignError

    try:
        yield
    except CampaignError as error:
        raise click.ClickException(_printable(error)) from None
    except (ValueError, OSError) as error:
        raise click.ClickException(_printable(error)) from None
    except (OptunaError, SQLAlchemyError) as error:
        cause = error.__cause__ if isinstance(error, OptunaError) else error
        reason = getattr(cause, "orig", None) or cause or error
        raise click.ClickException(
            f"The storage failed: {type(reason).__name__}: {_printable(reason)}"
        ) from None


def _printable(text: object) -> str:
    lines = _storage.scrub(str(text)).strip().splitlines()
    return "\n".join(_format.printable(line) for line in lines)


def _bars(console: "Console") -> "Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[news]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )


@contextmanager
def _progress(console: "Console", config: "CampaignConfig") -> "Iterator[View]":
    """Show the campaign, and each worker's trial, as bars; above them, a line for what happens."""
    from lyap_optuna.campaign import View, epochs_saved

    progress = _bars(console)
    overall = progress.add_task("trials", total=config.trials, news="")
    bars: dict[int, Any] = {}
    longest = 0

    class Bars(View):
        best: float | None = None

        def started(self, study: Any, tried: int, total: int) -> None:
            trials = study.get_trials(deepcopy=False)
            self.progress(tried, total, trials)
            self.note(f"{tried} of {total} trials are done{_news(trials, self.best)}.")

        def progress(self, tried: int, total: int, trials: "Sequence[FrozenTrial]") -> None:
            self.best = _best_value(config.direction, trials)
            saved = epochs_saved(trials)
            news = _news(trials, self.best)
            news += f", {saved} epochs saved" if saved is not None and saved > 0 else ""
            progress.update(overall, completed=tried, total=total, news=news.removeprefix(", "))

        def reported(self, worker: int, number: int, epochs: int) -> None:
            nonlocal longest
            longest = max(longest, epochs)
            if worker not in bars:
                bars[worker] = progress.add_task("", total=None, news="")
            progress.update(
                bars[worker],
                description=f"trial {number}",
                completed=epochs,
                total=longest,
                news="epochs",
            )

        def ended(self, worker: int, trial: "FrozenTrial", interrupted: bool) -> None:
            better = _best_value(config.direction, [trial], self.best)
            self.note(_how_it_ended(trial, interrupted, better is not None and better != self.best))
            self.best = better

        def note(self, text: str) -> None:
            console.print(_printable(text), soft_wrap=True, highlight=False)

    with progress:
        yield Bars()


def _best_value(
    direction: str, trials: "Sequence[FrozenTrial]", so_far: float | None = None
) -> float | None:
    complete = [t.value for t in trials if t.state.name == "COMPLETE" and t.value is not None]
    known = complete if so_far is None else [*complete, so_far]
    best = min if direction == "minimize" else max
    return best(known) if known else None


def _news(trials: "Sequence[FrozenTrial]", best: float | None) -> str:
    """Return the best value and what was spent, after a comma; nothing where there is nothing."""
    spent = sum(len(trial.intermediate_values) for trial in trials)
    found = "" if best is None else f", best value {_format.cell(best)}"
    return found + (f", {spent} epochs" if spent else "")


def _how_it_ended(trial: "FrozenTrial", interrupted: bool, best: bool) -> str:
    """Return a line on a trial that has ended, and why where a pruner said so."""
    from lyap_optuna.records import chances_apart, read_decisions

    n = len(trial.intermediate_values)
    after = f" after {n} epoch{'' if n == 1 else 's'}" if n else ""
    line = f"Trial {trial.number}: {'interrupted' if interrupted else trial.state.name}{after}"
    if trial.state.name == "COMPLETE" and trial.value is not None:
        line += f", value {_format.cell(trial.value)}{', the best so far' if best else ''}"
    decision = next(reversed(read_decisions(trial)), None)
    if trial.state.name == "PRUNED" and decision is not None and decision.probability is not None:
        chance, least = chances_apart(decision.probability, decision.min_probability or 0.0)
        line += f", as its chance of ending among the best was {chance}"
        line += f", below {least}" if decision.because == "chance" else ""
    return line


def _say_how_it_ended(result: "CampaignResult", file: Path) -> None:
    ran = ", ".join(f"{n} {_word(state)}" for state, n in sorted(result.states.items())) or "none"
    click.echo(f"Trials that ended in this run: {ran}.")
    if result.stopped == "exhausted":
        click.echo(
            f"The sampler or the objective stopped the study, {result.missing} trials before the "
            "total."
        )
    elif result.missing:
        click.echo(
            f"Stopped ({result.stopped}); {result.missing} trials are missing. To go on: "
            f"lyap-optuna campaign run {_format.printable(file)}"
        )


def _word(state: str) -> str:
    return "interrupted" if state == "INTERRUPTED" else state


def _status_reader(config: "CampaignConfig") -> "Callable[[], CampaignStatus]":
    from lyap_optuna.campaign import campaign_status, open_study, storage_of

    with _errors_in_a_line():
        url = storage_of(config, config.workers or 1)
        path = url.removeprefix("sqlite:///")
        if "://" not in path and not Path(path).exists():
            raise click.ClickException(
                f"The campaign has not begun: there is no {_format.printable(path)}."
            )
        if not url.startswith("grpc://"):
            _storage.open_storage(url)  # unlike a campaign, creates nothing
        try:
            study = open_study(config, url, create=False)
        except KeyError:
            raise click.ClickException(
                f"The campaign has not begun: there is no study {_format.quoted(config.study)}."
            ) from None

    def current() -> "CampaignStatus":
        with _errors_in_a_line():
            return campaign_status(config, study)

    return current


def _as_record(config: "CampaignConfig", status: "CampaignStatus") -> dict[str, Any]:
    record = {"study": config.study, **dataclasses.asdict(status)}
    if status.predicted_best is not None:
        record["predicted_best"]["state"] = status.predicted_best.state.name
    return record


def _status_table(config: "CampaignConfig", status: "CampaignStatus") -> "Table":
    best = status.predicted_best
    predicted = "-"
    if best is not None:
        value = best.value if best.value is not None else best.predicted_value
        known = "value" if best.value is not None else "predicted"
        predicted = (
            f"trial {best.number} ({best.state.name.lower()}), {known} {_format.cell(value)}"
        )
    stopped = f" ({status.interrupted} interrupted)" if status.interrupted else ""
    n_steps = getattr(config.strategy, "n_steps", None)
    budget = "" if n_steps is None else f" of {n_steps}"
    rows = [
        ("trials", f"{status.tried} of {status.total}"),
        ("running", str(status.running)),
        ("resting", str(status.resting)),
        ("waiting", str(status.waiting)),
        ("complete", str(status.complete)),
        ("pruned", str(status.pruned)),
        ("failed", f"{status.failed}{stopped}"),
        ("epochs spent", f"{status.epochs_spent}{budget}"),
        ("epochs saved", _format.cell(status.epochs_saved)),
        ("best value", _format.cell(status.best_value)),
        ("predicted best", predicted),
    ]
    return _format.table(
        [{"what": what, "now": now} for what, now in rows],
        {"what": "campaign", "now": _format.printable(config.study)},
    )
