"""What a study's database is asked for: calls, statements and milliseconds per thing stored.

Run it from a checkout. SQLite is always measured, and each server that is named:

    python -m studies.storage_cost \
        postgresql+psycopg://postgres@127.0.0.1:5432 mysql+pymysql://root@127.0.0.1:3306

On a server it makes a database of its own and drops it.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
import sqlalchemy as sa
import torch
from optuna.storages import RDBStorage

import lyap_optuna as lyap
from lyap_optuna.records import DatabaseSink, Decision, write_decision

STEPS = 5  # readouts per trial, as many as a probe takes by default
DECISION = Decision(
    step=1,
    verdict="kept",
    predicted_value=0.512345,
    lower=0.312345,
    upper=0.712345,
    threshold=0.45,
    probability=0.42,
    min_probability=0.1,
    evidence=("loss", "displacement"),
    shares={"loss": 0.3, "displacement": 0.2},
    skill=0.71,
    n_trials=24,
)


@dataclass
class Cost:
    """What it took to store one kind of thing, once per step.

    Args:
        writes: Calls of Optuna's storage that write.
        reads: Calls of Optuna's storage that read.
        statements: SQL statements, of any kind.
        transactions: Commits and rollbacks.
        milliseconds: Wall-clock time.
    """

    writes: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    statements: list[int] = field(default_factory=list)
    transactions: list[int] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)


class Meter:
    """Counts what one study's storage and its engine are asked for."""

    def __init__(self, study: optuna.Study, engine: sa.Engine) -> None:
        self._counts = {"writes": 0, "reads": 0, "statements": 0, "transactions": 0}
        for name in dir(study._storage):
            if name.startswith(("set_trial_", "get_trial")):
                kind = "writes" if name.startswith("set") else "reads"
                setattr(study._storage, name, self._counted(getattr(study._storage, name), kind))
        sa.event.listen(engine, "before_cursor_execute", lambda *_: self._count("statements"))
        for event in ("commit", "rollback"):
            sa.event.listen(engine, event, lambda *_: self._count("transactions"))

    def _count(self, kind: str) -> None:
        self._counts[kind] += 1

    def _counted(self, call: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._count(kind)
            return call(*args, **kwargs)

        return counted

    @contextlib.contextmanager
    def measure(self, cost: Cost) -> Iterator[None]:
        """Add what happens within to ``cost``."""
        before, start = dict(self._counts), time.perf_counter()
        yield
        cost.milliseconds.append(1000 * (time.perf_counter() - start))
        for kind, count in self._counts.items():
            getattr(cost, kind).append(count - before[kind])


def measure(url: str, *, trials: int, units: int) -> dict[str, Cost]:
    """Store all that a probe and a pruner store, ``STEPS`` times in each of ``trials`` trials.

    Args:
        url: An empty database.
        trials: How many trials; one more comes first and does not count.
        units: How many exponents a spectrum has.

    Returns:
        By the kind of thing that was stored.
    """
    storage = RDBStorage(url)
    study = optuna.create_study(storage=storage)
    meter = Meter(study, storage.engine)
    torch.manual_seed(0)
    model = torch.nn.GRU(3, units, batch_first=True)
    probe = lyap.LyapunovProbe(model, torch.randn(4, 20, 3), full_spectrum=True)
    whole = probe.measure()
    assert whole.spectrum is not None
    # Only storing is measured: the numbers are there already.
    storing = lyap.LyapunovProbe(model, torch.randn(4, 20, 3), baseline=False)
    measured = storing.measure()
    mean = measured.mean
    assert mean is not None
    costs: dict[str, Cost] = {}
    for trial_number in range(trials + 1):
        if trial_number <= 1:  # the first trial makes the table
            costs = {n: Cost() for n in ("trial.report", "readout", "decision", "spectrum")}
        trial = study.ask()
        for step in range(1, STEPS + 1):
            with meter.measure(costs["trial.report"]):
                trial.report(1 / step, step)
            # New numbers each time: what did not change is not written again.
            moved = step / 1000
            now = replace(measured, max=measured.max + moved, mean=mean + moved)
            storing.measure = lambda now=now: now  # type: ignore[method-assign,misc]
            decision = replace(DECISION, step=step, predicted_value=0.5 + moved)
            with meter.measure(costs["readout"]):
                storing.record(trial, step)
            frozen = study._storage.get_trial(trial._trial_id)
            with meter.measure(costs["decision"]):
                write_decision(study, frozen, decision)
            with meter.measure(costs["spectrum"]):
                DatabaseSink().write(trial, step, {"": whole.spectrum})
        study.tell(trial, 0.5)
    assert len(lyap.load_spectra(study, trial_number=1)) == STEPS
    storage.engine.dispose()
    return costs


@contextlib.contextmanager
def new_database(server: str) -> Iterator[str]:
    """Make a database on a server, yield its URL, drop it."""
    url, name = sa.make_url(server), f"lyap_cost_{uuid.uuid4().hex[:16]}"
    postgresql = url.get_backend_name() == "postgresql"
    if postgresql and not url.database:
        url = url.set(database="postgres")
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name}")


def version(url: str) -> str:
    """Return the name and version of a database."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect():
        numbers = ".".join(map(str, engine.dialect.server_version_info or ()))
    names = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
    maria = getattr(engine.dialect, "is_mariadb", False)
    return f"{names.get(engine.dialect.name, 'MariaDB' if maria else 'MySQL')} {numbers}"


def table(costs: dict[str, dict[str, Cost]]) -> str:
    """Return a Markdown table with the databases side by side."""
    first, *others = costs
    names = [f"{first}: statements, transactions, ms (95 %)", *others]
    lines = [
        f"| what is stored | writes | reads | {' | '.join(names)} |",
        "| --- | --: | --: |" + " --: |" * len(costs),
    ]
    for kind, cost in costs[first].items():
        cells = [kind, str(max(cost.writes)), str(max(cost.reads))]
        for on in (by_kind[kind] for by_kind in costs.values()):
            ms = sorted(on.milliseconds)
            late = ms[int(0.95 * (len(ms) - 1))]
            counts = f"{max(on.statements)}, {max(on.transactions)}"
            cells.append(f"{counts}, {statistics.median(ms):.1f} ({late:.1f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m studies.storage_cost", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("servers", nargs="*", metavar="URL", help="of a server, without a database")
    parser.add_argument("--trials", type=int, default=40, help="of five steps each")
    parser.add_argument("--units", type=int, default=256, help="exponents of a spectrum")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    costs = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        urls = [f"sqlite:///{folder}/study.db"]
        urls += [stack.enter_context(new_database(server)) for server in options.servers]
        for url in urls:
            costs[version(url)] = measure(url, trials=options.trials, units=options.units)
    n = options.trials * STEPS
    print(
        f"Each stored {n} times, spectra of {options.units} exponents: the most calls of Optuna's "
        "storage, statements and transactions of one time; the median milliseconds.\n"
    )
    print(table(costs))


if __name__ == "__main__":
    main()
