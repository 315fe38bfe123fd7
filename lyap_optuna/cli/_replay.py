"""``lyap-optuna replay``: which pruner would have served a study that ran to its end."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lyap_optuna.cli import _format, _storage

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

    from lyap_optuna.replay import Interval, PrunerSummary, Recording

_COLUMNS = {
    "pruner": "pruner",
    "n_orders": "orders",
    "epochs_spent": "epochs spent",
    "success": "succeed",
    "regret": "regret",
    "wrongly_pruned": "wrongly pruned",
    "coverage": "coverage",
    "seconds": "seconds",
}

LEGEND = (
    "Medians over random orders of the trials, the same for every pruner, with the middle 95 % of "
    "orders; for succeed, the share of orders with its 95 % interval. Succeed: the best COMPLETE "
    "trial is in the true top 5 %, and its regret at most 0.05 (0 is the true best, 1 the median). "
    "Wrongly pruned: trials of the true top 5 %. Coverage: final values in the 80 % interval. "
    "Seconds: spent deciding."
)


@click.command()
@click.argument(
    "recording", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@_storage.study_options
@click.option(
    "--orders", default=20, show_default=True, type=click.IntRange(min=1), help="Random orders."
)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Processes.")
@click.option(
    "--pruner",
    "pruners",
    multiple=True,
    help="Only the pruner of this name, or those whose name contains this; may be repeated.",
)
@click.option("--state", help="Which recorded exponents the pruner sees, hidden or full.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to which every replay is added; what stands there is not replayed again.",
)
@click.option(
    "--record",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the study as a recording (.json.gz) and replay nothing.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write the figure, as HTML."
)
@click.option(
    "-f", "--format", "output_format", type=click.Choice(_format.FORMATS), default="table"
)
def replay(
    recording: Path | None,
    storage: str | None,
    storage_class: str | None,
    study_name: str | None,
    orders: int,
    jobs: int,
    pruners: tuple[str, ...],
    state: str | None,
    results: Path | None,
    record: Path | None,
    plot: Path | None,
    output_format: str,
) -> None:
    """Run a finished study again with several pruners: what would each have spent and found?

    RECORDING is a file that --record wrote; without one, the study comes from --storage. Every
    trial of it must have run to its end. The recorded values are reported anew, in many random
    orders, and each pruner is asked as it would have been.
    """
    from lyap_optuna.replay import RecordingError, compare_pruners, summarize

    try:
        source = _source(recording, storage, storage_class, study_name)
        if state is not None:
            source = source.with_state(state)
    except (RecordingError, ValueError) as error:
        raise click.ClickException(_storage.scrub(str(error))) from None
    if record is not None:
        source.save(record)
        click.echo(f"{record}: {_format.printable(source.summary())}")
        return
    chosen = _chosen(pruners)
    _storage.note(_format.printable(source.summary()))
    with _progress() as advance:
        replays = compare_pruners(
            source, chosen, orders=orders, jobs=jobs, results=results, progress=advance
        )
    summaries = summarize(source, replays)
    if plot is not None:
        from lyap_optuna.visualization import plot_replay

        figure = plot_replay(summaries)
        _format.write_whole(plot, figure.to_html(include_plotlyjs=True, full_html=True))
        _storage.note(f"Figure: {plot}")
    if output_format == "table":
        _format.console().print(_format.table([shown(s) for s in summaries], _COLUMNS))
        _storage.note(LEGEND)
    else:
        click.echo(_format.dump([_flat(s) for s in summaries], output_format), nl=False)


def _source(
    recording: Path | None, storage: str | None, storage_class: str | None, study_name: str | None
) -> "Recording":
    from lyap_optuna.replay import Recording

    if recording is None:
        return Recording.from_study(_storage.load_study(storage, storage_class, study_name))
    if storage is not None or study_name is not None:
        raise click.UsageError("Give a recording or a study in a storage, not both.")
    return Recording.load(recording)


def _chosen(names: Sequence[str]) -> "dict[str, Callable[[], BasePruner]]":
    from lyap_optuna.replay import default_pruners

    known = default_pruners()
    for name in names:
        if not any(name.lower() in pruner.lower() for pruner in known):
            raise click.UsageError(f"No pruner is called {name!r}; there are {', '.join(known)}.")
    if not names:
        return known

    def matches(name: str, pruner: str) -> bool:
        exact = any(name.lower() == other.lower() for other in known)
        return name.lower() == pruner.lower() if exact else name.lower() in pruner.lower()

    return {p: make for p, make in known.items() if any(matches(n, p) for n in names)}


class _progress:
    """A bar on the error stream, where that is a terminal."""

    def __enter__(self) -> Callable[[int, int], None]:
        from rich.progress import Progress

        console = _format.console(stderr=True)
        self._bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._bar.start()
        task = self._bar.add_task("Replaying")
        return lambda done, total: self._bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def shown(summary: "PrunerSummary") -> dict[str, Any]:
    """Return a summary as a row of text."""

    def interval(i: "Interval", form: str) -> str:
        return f"{i.value:{form}} ({i.lower:{form}} to {i.upper:{form}})"

    return {
        "pruner": summary.pruner,
        "n_orders": summary.n_orders,
        "epochs_spent": interval(summary.epochs_spent, ".0%"),
        "success": interval(summary.success, ".0%"),
        "regret": interval(summary.regret, ".2g"),
        "wrongly_pruned": interval(summary.wrongly_pruned, ".0f"),
        "coverage": None if summary.coverage is None else f"{summary.coverage:.0%}",
        "seconds": f"{summary.seconds.value:.2g}",
    }


def _flat(summary: "PrunerSummary") -> dict[str, Any]:
    import dataclasses

    flat: dict[str, Any] = {}
    for key, value in dataclasses.asdict(summary).items():
        if isinstance(value, dict):
            flat |= {key if end == "value" else f"{key}_{end}": v for end, v in value.items()}
        else:
            flat[key] = value
    return flat
