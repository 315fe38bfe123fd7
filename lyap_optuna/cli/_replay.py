"""``lyap-optuna replay``: which pruner would have served a study that ran to its end."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lyap_optuna._files import write_whole
from lyap_optuna.cli import _format, _storage

if TYPE_CHECKING:
    from lyap_optuna.replay import Compared, Interval, PrunerSummary, Recording

_COLUMNS = {
    "pruner": "pruner",
    "epochs_spent": "epochs\nspent",
    "found_by": "found by",
    "found_by_late": "9 of 10\nfound by",
    "found_by_seconds": "both in\nseconds",
    "success": "win",
    "regret": "regret at 10,\n25, 50, 100 %",
    "wrongly_pruned": "wrong",
    "calibration": "80 %\nholds",
    "seconds": "decide",
}

_SPARE = ("seconds", "found_by_seconds", "calibration", "wrongly_pruned", "regret")

_SEARCH = "freeze_thaw"

LEGEND = (
    "Over {orders} random orders of the trials, the same for every pruner; medians where nothing "
    "else is said. Found by: share of all epochs spent when the first winner ended, in half of the "
    "orders and in nine of ten, with 95 % bootstrap intervals (open where it may be never). "
    "Winners, of which there are {winners}: hardly any trial is better, and the regret is at most "
    "0.05 (0 is the true best, 1 the median). Win: share of orders that end a winner. Regret: "
    "when so many of the epochs were spent. Wrong: pruned trials of the true top 5 %. 80 % "
    "holds: how often the final value of a pruned trial is in the 80 % interval of the decision "
    "that pruned. Decide: seconds spent deciding. Both in seconds: found by, in per cent of the "
    "seconds that training took; a dash where they were not recorded."
)


@click.command(short_help="Which pruner would have served a study.")
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
    help="Only the pruner of this name (or freeze_thaw), or those whose name contains this; may be "
    "repeated.",
)
@click.option("--state", help="Which recorded exponents the pruner sees, hidden or full.")
@click.option(
    "--results",
    type=_format.OutputFile(),
    help="File to which every replay is added; what stands there is not replayed again.",
)
@click.option(
    "--record",
    type=_format.OutputFile(),
    help="Write the study as a recording (.json.gz) and replay nothing.",
)
@click.option("--plot", type=_format.OutputFile(), help="Write the figures, as HTML.")
@_format.option(_format.FORMATS)
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

    The search freeze_thaw stands beside the pruners.

    RECORDING is a file that --record wrote; without one, the study comes from --storage. Every
    trial of it must have run to its end. The recorded values are reported anew, in many random
    orders, and each pruner is asked as it would have been.
    """
    from lyap_optuna.replay import RecordingError, compare_pruners, summarize, winners

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
        from lyap_optuna.report import Section, page
        from lyap_optuna.visualization import plot_regret, plot_replay

        pruners_alone = [s for s in summaries if s.pruner != _SEARCH]
        sections = [
            Section(
                "What each spent, and how often it ended a winner",
                figure=plot_replay(pruners_alone),
            ),
            Section("How soon each had a good trial", figure=plot_regret(replays)),
        ]
        write_whole(plot, page(f"Replay of {source.name}", [source.summary()], sections))
        _storage.note(f"Figures: {plot}")
    if output_format == "table":
        _format.show(_format.table([shown(s) for s in summaries], _COLUMNS, spare=_SPARE))
        _storage.note(LEGEND.format(orders=orders, winners=len(winners(source))))
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


def _chosen(names: Sequence[str]) -> "dict[str, Compared]":
    from lyap_optuna.replay import default_pruners, replay_freeze_thaw

    known: dict[str, Compared] = {**default_pruners(), _SEARCH: replay_freeze_thaw}
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
    """Return a summary as a row of text, narrow enough that all fit into 120 columns."""
    held = summary.calibration
    return {
        "pruner": summary.pruner.replace(
            "LyapunovPruner without exponents, displacement", "- no exponents at all"
        ).replace("LyapunovPruner without", "- no"),
        # The search goes on for as long as it may.
        "epochs_spent": None if summary.pruner == _SEARCH else share(summary.epochs_spent.value),
        "found_by": share_with_interval(summary.found_by),
        "found_by_late": share_with_interval(summary.found_by_late),
        "found_by_seconds": _both(summary.found_by_seconds, summary.found_by_seconds_late),
        "success": share(summary.success.value),
        "regret": " ".join(_short(r.value) for r in (*summary.regret_at, summary.regret)),
        "wrongly_pruned": f"{summary.wrongly_pruned.value:.0f}",
        "calibration": None if held.share is None else f"{held.share:.0%}",
        "seconds": f"{summary.seconds.value:.2g}",
    }


def share(value: float) -> str:
    """Return a share as per cent; never, where it is infinite."""
    return "never" if math.isinf(value) else f"{value:.0%}"


def share_with_interval(interval: "Interval") -> str:
    """Return a share with its interval, as short as can be."""
    if math.isinf(interval.lower):
        return share(interval.value)
    upper = "" if math.isinf(interval.upper) else f"{100 * interval.upper:.0f}"
    return f"{share(interval.value)} ({100 * interval.lower:.0f}-{upper})"


def _both(*found: "Interval | None") -> str | None:
    """Return shares in per cent; a dash for never, None where nothing is known."""
    known = [i.value for i in found if i is not None]
    return " ".join("-" if math.isinf(v) else f"{100 * v:.0f}" for v in known) or None


def _short(regret: float) -> str:
    return f"{regret:.2f}" if regret < 10 else f"{regret:.2g}"


def _flat(summary: "PrunerSummary") -> dict[str, Any]:
    import dataclasses

    from lyap_optuna.replay import REGRET_AT, Interval

    flat: dict[str, Any] = {}

    def add(key: str, interval: Interval) -> None:
        flat.update({key: interval.value, f"{key}_lower": interval.lower})
        flat[f"{key}_upper"] = interval.upper

    for item in dataclasses.fields(summary):
        value = getattr(summary, item.name)
        if isinstance(value, Interval):
            add(item.name, value)
        elif item.name == "regret_at":
            for share_spent, interval in zip(REGRET_AT, value, strict=True):
                add(f"regret_at_{share_spent:.0%}".rstrip("%"), interval)
        elif item.name == "calibration":
            flat |= {
                "pruned_with_interval": value.n,
                "interval_held": value.share,
                "missed_better": value.better,
                "missed_worse": value.worse,
                "interval_score": value.mean_score,
            }
        else:
            flat[item.name] = value
    return flat
