"""Twenty minutes of workers on PostgreSQL, MariaDB and a journal, with faults drawn at random.

    python -m studies.soak                                  # all three at once
    python -m studies.soak --minutes 2 --seed 7 --storage journal

Each storage has a campaign (``lyap-optuna campaign run``) of several workers, whose trials report
values, readouts and whole spectra. Workers are killed and stopped, the whole campaign is killed,
servers (of this program's own, in temporary folders) are killed and started again, connections
break, the journal's disk is full. A worker writes what it sends into a ledger of its own before
and after the call. In the end, what was acknowledged must be stored, and nothing may be there
twice. The same seed draws the same faults. Exits with 1 where anything was lost, doubled or wrong.
"""

import contextlib
import math
import os
import shutil
import signal
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import click

from studies.servers import ServerMissing
from studies.soak.campaign import Soak
from studies.soak.faults import OF_JOURNALS, OF_SERVERS, draw_faults

STORAGES = ("postgresql", "mariadb", "journal")
FATES = ("sent", "acknowledged", "stored", "lost", "doubled", "wrong")
MOST_PROBLEMS = 20  # lines about them, per storage


def _positive(_: click.Context, __: click.Parameter, value: float) -> float:
    """Refuse what is no finite number above 0; NaN passes any range of click's."""
    if not 0 < value < math.inf:
        raise click.BadParameter(f"{value} is no finite number above 0.")
    return value


@click.command(help=__doc__.split("\n\n")[0] if __doc__ else None)
@click.option(
    "--minutes", default=20.0, show_default=True, callback=_positive, help="How long things break."
)
@click.option("--seed", default=0, show_default=True, help="Of the faults and the trials.")
@click.option("--storage", "kinds", type=click.Choice(STORAGES), multiple=True, help="Only these.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=3, show_default=True, help="Per storage."
)
@click.option(
    "--gap",
    default=12.0,
    show_default=True,
    callback=_positive,
    help="Mean seconds between two faults.",
)
@click.option(
    "--loses",
    type=click.IntRange(min=1),
    help="Let storages forget each so many-th report on purpose.",
)
def main(
    minutes: float, seed: int, kinds: Sequence[str], workers: int, gap: float, loses: int | None
) -> None:
    """Run, print a table per storage."""
    stop = threading.Event()
    folder = Path(tempfile.mkdtemp(prefix="lyap-soak-"))
    soaks = []
    for kind in kinds or STORAGES:
        (folder / kind).mkdir()
        of = OF_JOURNALS if kind == "journal" else OF_SERVERS
        drawn = draw_faults(of, f"{seed} {kind}", seconds=60 * minutes, gap=gap)
        soaks.append(Soak(kind, folder / kind, drawn, 60 * minutes, stop))
    options = {"workers": workers, "seed": seed, "loses": loses}
    missing: list[str] = []

    def run(soak: Soak) -> None:
        try:
            soak.run(options)
        except ServerMissing as error:
            missing.append(soak.kind)
            click.echo(f"{soak.kind} is left out. {error}")
            if os.environ.get("LYAP_REQUIRE_SERVERS") == "1":
                soak.failures.append(str(error))
        except Exception:
            soak.failures.append(traceback.format_exc())

    click.echo(f"{minutes:g} minutes of faults, seed {seed}, {workers} workers per storage.")
    threads = [threading.Thread(target=run, args=(soak,), name=soak.kind) for soak in soaks]
    with _signals_set(stop):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sound = True
    for soak in soaks:
        if soak.kind not in missing:
            click.echo(f"\n{table(soak)}")
        for problem in [*soak.failures, *soak.audit.problems[:MOST_PROBLEMS]]:
            click.echo(f"  {problem}")
        sound &= not soak.failures and not soak.audit.problems
    if sound:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        click.echo(f"\nLogs, ledgers and journals are kept in {folder}.")
        raise SystemExit(1)


@contextlib.contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    """Let Ctrl-C bring the end forward."""

    def end(number: int, frame: FrameType | None) -> None:
        click.echo("Stopping: everything is mended, ended and counted first.")
        stop.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def table(soak: Soak) -> str:
    """Return what was sent and what is there, and what broke."""
    states = ", ".join(f"{n} {state}" for state, n in sorted(soak.audit.states.items()))
    broke = ", ".join(f"{n} {kind}" for kind, n in sorted(soak.injected.items()))
    lines = [
        f"{soak.kind}: {sum(soak.injected.values())} faults ({broke}); "
        f"the campaign was started {soak.starts} times",
        f"  trials: {states}",
        f"  | {'':10} |" + "".join(f" {fate:>12} |" for fate in FATES),
        "  | ---------- |" + " -----------: |" * len(FATES),
    ]
    for kind, count in soak.audit.counts.items():
        cells = "".join(f" {getattr(count, fate):>12} |" for fate in FATES)
        lines.append(f"  | {kind:10} |{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
