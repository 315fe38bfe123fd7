"""Throughput against workers: many simulated workers that report to one PostgreSQL server.

Run it from a checkout, against a server on which the user may create a database; it makes one of
its own and drops it, and ends by itself:

    python -m studies.load_test postgresql+psycopg://postgres@127.0.0.1:5432

A worker is a thread with a storage, a pool of connections and a heartbeat of its own, as a worker
of a campaign has them. It trains nothing: every ``--interval`` seconds it ends an epoch, that is,
it reports a value and stores a readout, and with ``--decide`` it reads the study as the pruner
does before each decision. Several workers share a process of this program. With ``--grpc`` all of
them go through one of Optuna's proxies.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import socket
import statistics
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.managers import SyncManager
from threading import Barrier

import optuna
import sqlalchemy as sa

from lyap_optuna.campaign import open_storage
from lyap_optuna.records import ReadoutRecord, write_readouts

CONNECTIONS_PER_WORKER = 2  # one for the trial, one for its heartbeat
PATIENCE = 120.0  # seconds until all workers have opened the storage and begun a trial
MOST_READOUTS = 6  # a baseline and five epochs, as a probe takes by default


@dataclass(frozen=True)
class Load:
    """What the workers do.

    Args:
        interval: Seconds from one epoch of a worker to its next.
        seconds: How long it is measured.
        decide: Whether each epoch reads the study for a pruning decision.
    """

    interval: float
    seconds: float
    decide: bool


@dataclass(frozen=True)
class Point:
    """What was measured with so many workers.

    Args:
        workers: Simulated workers.
        wanted: Epochs per second if none had to wait.
        throughput: Epochs per second that were stored.
        median: Median milliseconds that storing an epoch took.
        slowest: The 95th percentile of that.
        connections: Connections that the server had open for them.
    """

    workers: int
    wanted: float
    throughput: float
    median: float
    slowest: float
    connections: int


def measure(
    executor: Executor,
    manager: SyncManager,
    processes: int,
    urls: tuple[str, str],
    workers: int,
    load: Load,
) -> Point:
    """Let so many workers report for a while.

    Args:
        executor: Runs the processes that the workers share.
        manager: Holds what they wait at until all have begun a trial.
        processes: How many processes.
        urls: Of the storage, and of the database behind it.
        workers: How many workers.
        load: What they do.
    """
    url, database_url = urls
    name = f"load-{uuid.uuid4().hex[:8]}"
    optuna.create_study(study_name=name, storage=_open(url))
    ready = manager.Barrier(workers + 1)
    shares = [len(range(i, workers, processes)) for i in range(processes)]
    futures = [
        executor.submit(simulate, url, name, share, ready, load) for share in shares if share
    ]
    ready.wait(PATIENCE)
    time.sleep(load.seconds / 2)
    connections = count_connections(database_url)
    taken = [seconds for future in futures for seconds in future.result()]
    if not taken:
        raise RuntimeError(f"None of {workers} workers stored an epoch within {load.seconds:g} s.")
    milliseconds = [1000 * seconds for seconds in taken]
    return Point(
        workers=workers,
        wanted=workers / load.interval,
        throughput=len(taken) / load.seconds,
        median=statistics.median(milliseconds),
        slowest=statistics.quantiles(milliseconds * 2, n=20)[-1],
        connections=connections,
    )


def simulate(url: str, study_name: str, workers: int, ready: Barrier, load: Load) -> list[float]:
    """Run some workers in threads of this process.

    Returns:
        Seconds that each epoch took to store, of those that ended within the time measured.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with ThreadPoolExecutor(workers) as threads:
        runs = [
            threads.submit(_worker, url, study_name, ready, i / workers, load)
            for i in range(workers)
        ]
        return [seconds for run in runs for seconds in run.result()]


def _worker(url: str, study_name: str, ready: Barrier, phase: float, load: Load) -> list[float]:
    study = optuna.load_study(study_name=study_name, storage=_open(url))
    taken: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0.0, 1.0)
        ready.wait(PATIENCE)
        end = time.monotonic() + load.seconds
        time.sleep(phase * load.interval)
        for epoch in itertools.count():
            start = time.monotonic()
            trial.report(1.0 / (1 + epoch), epoch)
            if epoch < MOST_READOUTS:
                write_readouts(trial, {epoch: ReadoutRecord(-0.1, -0.5, 0.01, 0.01)})
            if load.decide:
                study.get_trials(deepcopy=False)
            now = time.monotonic()
            if now > end:
                break
            taken.append(now - start)
            # Storing is part of the epoch; what took longer than an epoch is not caught up.
            time.sleep(max(load.interval - (now - start), 0.0))
        return 0.0

    study.optimize(objective, n_trials=1)
    return taken


def _open(url: str) -> optuna.storages.BaseStorage:
    return open_storage(url, retry_seconds=60.0, heartbeat_interval=30)


def count_connections(database_url: str) -> int:
    """Return how many connections the database has, besides the one that asks."""
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    with engine.connect() as connection:
        return int(connection.execute(sa.text(query)).scalar_one()) - 1


@contextlib.contextmanager
def own_database(server: str) -> Iterator[tuple[str, int]]:
    """Create a database; yield its URL and the connections that its server allows."""
    url = sa.make_url(server).set(database="postgres")
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    name = f"lyap_load_{uuid.uuid4().hex[:12]}"
    with engine.connect() as connection:
        allowed = int(connection.execute(sa.text("SHOW max_connections")).scalar_one())
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield url.set(database=name).render_as_string(hide_password=False), allowed
    finally:
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


@contextlib.contextmanager
def proxy(database_url: str) -> Iterator[str]:
    """Run Optuna's gRPC proxy in a process of its own; yield its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(database_url, port), daemon=True)
    process.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        process.kill()
        process.join()


def _serve(database_url: str, port: int) -> None:
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.RDBStorage(
        database_url, engine_kwargs={"pool_size": 10, "pool_pre_ping": True}
    )
    optuna.storages.run_grpc_proxy_server(
        optuna.storages.get_storage(storage), host="127.0.0.1", port=port
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table: throughput against workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("server", help="URL of a PostgreSQL server, without a database")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--interval", type=float, default=1.0, help="seconds per epoch")
    parser.add_argument("--seconds", type=float, default=8.0, help="measured time per row")
    parser.add_argument("--processes", type=int, default=2, help="that share the workers")
    parser.add_argument("--decide", action="store_true", help="read the study at each epoch")
    parser.add_argument("--grpc", action="store_true", help="go through Optuna's gRPC proxy")
    options = parser.parse_args(arguments)
    if max(options.workers) > 512:
        parser.error("more than 512 simulated workers measure this program, not the database")
    load = Load(options.interval, options.seconds, options.decide)
    print(
        f"An epoch every {load.interval:g} s in each worker: a report and (in the first "
        f"{MOST_READOUTS}) a readout{', and the study read' if load.decide else ''}; "
        f"{'gRPC proxy' if options.grpc else 'direct connections'}; {load.seconds:g} s per row.\n"
    )
    print("| workers | epochs/s wanted | epochs/s stored | median ms | 95 % ms | connections |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    context = multiprocessing.get_context("spawn")
    with (
        own_database(options.server) as (database_url, allowed),
        proxy(database_url) if options.grpc else contextlib.nullcontext(database_url) as url,
        ProcessPoolExecutor(options.processes, mp_context=context) as executor,
        context.Manager() as manager,
    ):
        for workers in options.workers:
            if not options.grpc and CONNECTIONS_PER_WORKER * workers > allowed - 10:
                print(f"| {workers} | needs more than the {allowed} connections allowed |||||")
                continue
            urls = (url, database_url)
            point = measure(executor, manager, options.processes, urls, workers, load)
            print(
                f"| {point.workers} | {point.wanted:.1f} | {point.throughput:.1f} | "
                f"{point.median:.0f} | {point.slowest:.0f} | {point.connections} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
