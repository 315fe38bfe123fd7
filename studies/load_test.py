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
import multiprocessing
import socket
import statistics
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass

import optuna
import sqlalchemy as sa

from lyap_optuna.campaign import open_storage
from lyap_optuna.records import ReadoutRecord, write_readouts

CONNECTIONS_PER_WORKER = 2  # one for the trial, one for its heartbeat
LEAD_SECONDS = 3.0
MOST_READOUTS = 6  # a baseline and five epochs, as a probe takes by default


@dataclass(frozen=True)
class Load:
    """What the workers do.

    Args:
        interval: Seconds from the end of one epoch to the end of the next, in each worker.
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
    processes: int,
    url: str,
    database_url: str,
    workers: int,
    load: Load,
) -> Point:
    """Let so many workers report for a while."""
    name = f"load-{uuid.uuid4().hex[:8]}"
    optuna.create_study(study_name=name, storage=_open(url))
    begin = time.time() + LEAD_SECONDS + 0.02 * workers
    shares = [len(range(i, workers, processes)) for i in range(processes)]
    futures = [
        executor.submit(simulate, url, name, share, begin, load) for share in shares if share
    ]
    time.sleep(max(begin + load.seconds / 2 - time.time(), 0))
    connections = count_connections(database_url)
    taken = [seconds for future in futures for seconds in future.result()]
    if not taken:
        raise RuntimeError(f"None of {workers} workers stored an epoch within {load.seconds:g} s.")
    quantiles = statistics.quantiles([1000 * t for t in taken], n=20) if len(taken) > 1 else [0.0]
    return Point(
        workers=workers,
        wanted=workers / load.interval,
        throughput=len(taken) / load.seconds,
        median=1000 * statistics.median(taken),
        slowest=quantiles[-1],
        connections=connections,
    )


def simulate(url: str, study_name: str, workers: int, begin: float, load: Load) -> list[float]:
    """Run some workers in threads of this process.

    Returns:
        Seconds that each epoch took to store, of those that ended within the time measured.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with ThreadPoolExecutor(workers) as threads:
        runs = [
            threads.submit(_worker, url, study_name, begin + load.interval * i / workers, load)
            for i in range(workers)
        ]
        ended = [epoch for run in runs for epoch in run.result()]
    return [took for at, took in ended if begin <= at <= begin + load.seconds]


def _worker(url: str, study_name: str, begin: float, load: Load) -> list[tuple[float, float]]:
    study = optuna.load_study(study_name=study_name, storage=_open(url))
    ended: list[tuple[float, float]] = []

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0.0, 1.0)
        end, epoch = begin + load.seconds, 0
        while (now := time.time()) < end:
            # A worker that had to wait does not catch up: its next epoch takes as long as any.
            time.sleep(max(begin - now, 0) if epoch == 0 else load.interval)
            start = time.perf_counter()
            trial.report(1.0 / (1 + epoch), epoch)
            if epoch < MOST_READOUTS:
                write_readouts(trial, {epoch: ReadoutRecord(-0.1, -0.5, 0.01, 0.01)})
            if load.decide:
                study.get_trials(deepcopy=False)
            ended.append((time.time(), time.perf_counter() - start))
            epoch += 1
        return 0.0

    study.optimize(objective, n_trials=1)
    return ended


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
    ):
        for _ in executor.map(_warm_up, range(options.processes)):
            pass
        for workers in options.workers:
            if not options.grpc and CONNECTIONS_PER_WORKER * workers > allowed - 10:
                print(f"| {workers} | needs more than the {allowed} connections allowed |||||")
                continue
            point = measure(executor, options.processes, url, database_url, workers, load)
            print(
                f"| {point.workers} | {point.wanted:.1f} | {point.throughput:.1f} | "
                f"{point.median:.0f} | {point.slowest:.0f} | {point.connections} |",
                flush=True,
            )


def _warm_up(_: int) -> None:
    # Import everything before anything is measured, in every process.
    threading.Event().wait(0.5)


if __name__ == "__main__":
    main()
