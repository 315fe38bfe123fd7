"""One campaign on one storage, run by the command, and what breaks it."""

import contextlib
import heapq
import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import optuna
import psutil
import yaml

from lyap_optuna.campaign import open_storage
from studies.servers import OwnServer, Wire, own_server, wait_for
from studies.soak import faults, objective
from studies.soak.audit import Audit, Rows, audit, rows_in_database, rows_in_journal
from studies.soak.faults import Fault
from studies.soak.ledger import count_acknowledged, read_ledgers

ROOT = Path(__file__).parents[2]
STUDY = "soak"
COMMAND = "from lyap_optuna.cli import main; main()"
LIMIT = 300.0  # seconds within which a campaign begins, goes on after the last fault, and ends
LINE = 300  # bytes: about a line of a journal, within which a full disk tears it

Mend = Callable[[], None]


class Storage:
    """Where a campaign is kept.

    Args:
        url: What the campaign is given: through the wire, if there is one.
        direct: The same storage, whatever is broken.
    """

    def __init__(self, url: str, direct: str) -> None:
        self.url, self.direct = url, direct

    def breaks(self, fault: Fault, processes: list[psutil.Process]) -> Mend | None:
        """Break; return what mends it, None where it is broken already."""
        raise NotImplementedError

    def rows(self, study: optuna.Study) -> Rows:
        """Count what is there."""
        return rows_in_database(self.direct)


class Journal(Storage):
    """A journal file, on a disk that may be full."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), str(path))
        self._full = False

    def breaks(self, fault: Fault, processes: list[psutil.Process]) -> Mend | None:
        """Let no file of the processes grow much beyond what the journal is now."""
        if self._full:
            return None
        self._full = True
        size = Path(self.direct).stat().st_size + int(LINE * fault.pick)
        _limit_files(processes, size)

        def mend() -> None:
            self._full = False

        return mend

    def rows(self, study: optuna.Study) -> Rows:
        """Count its lines."""
        return rows_in_journal(self.direct, study)


def _limit_files(processes: list[psutil.Process], size: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            process.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class Server(Storage):
    """A database on a server of its own, at the end of a wire."""

    def __init__(self, server: OwnServer, wire: Wire) -> None:
        super().__init__(server.url(wire.port), server.url())
        self._server, self._wire = server, wire
        self._broken: set[str] = set()

    def breaks(self, fault: Fault, processes: list[psutil.Process]) -> Mend | None:
        """Kill the server, or cut the wire."""
        if fault.kind in self._broken:
            return None
        self._broken.add(fault.kind)
        if fault.kind == faults.SERVER_KILLED:
            self._server.kill()
        else:
            self._wire.cut()

        def mend() -> None:
            if fault.kind == faults.SERVER_KILLED:
                self._server.start()
            else:
                self._wire.join()
            self._broken.discard(fault.kind)

        return mend


@contextlib.contextmanager
def storage_of(kind: str, folder: Path) -> Iterator[Storage]:
    """Make an empty storage, and take it away.

    Raises:
        ServerMissing: There is no such server on this machine.
    """
    if kind == "journal":
        yield Journal(folder / "soak.journal")
        return
    with own_server(kind) as server:
        wire = Wire(server.port)
        try:
            yield Server(server, wire)
        finally:
            wire.cut()


class Campaign:
    """``lyap-optuna campaign run``, started again whenever it ends.

    Args:
        storage: Where it is kept.
        folder: For its file, its log and the ledgers.
        workers: How many.
        seed: Of its sampler.
        loses: Each so many-th report that its storage forgets on purpose; None for none.
    """

    def __init__(
        self, storage: Storage, folder: Path, *, workers: int, seed: int, loses: int | None
    ) -> None:
        self.storage = storage
        self.ledgers = folder / "ledgers"
        self.ledgers.mkdir()
        self.starts = 0
        self.log = folder / "campaign.log"
        self._file = folder / "campaign.yaml"
        self._file.write_text(
            yaml.safe_dump(
                {
                    "study": STUDY,
                    "objective": f"{objective.__name__}:objective",
                    "storage": storage.url,
                    "trials": 1_000_000,  # it ends when it is told to
                    "max_failures": 1_000_000,
                    "workers": workers,
                    "threads_per_worker": 1,
                    "sampler": "RandomSampler",
                    "pruner": "NopPruner",
                    "seed": seed,
                    "retry_seconds": faults.PATIENCE,
                    "heartbeat_interval": faults.HEARTBEAT,
                }
            )
        )
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            objective.FOLDER: str(self.ledgers),
            objective.LOSES: str(loses or ""),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._parent: psutil.Process | None = None
        self._seen: set[psutil.Process] = set()  # psutil tells processes from others of their id

    def keep_running(self) -> None:
        """Start it if it does not run, and take note of its workers."""
        if self._process is None or self._process.poll() is not None:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", COMMAND, "campaign", "run", str(self._file)],
                    stdout=log,
                    stderr=log,
                    cwd=self._file.parent,
                    start_new_session=True,  # a Ctrl-C is not for it
                    env=self._environment,
                )
            self._parent = psutil.Process(self._process.pid)
            self._seen.add(self._parent)
            self.starts += 1
        self._seen.update(self.workers())

    def workers(self) -> list[psutil.Process]:
        """Return its workers by age, those of a parent that is gone left out."""
        if self._parent is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            children = self._parent.children()
            return [child for child in children if _is_worker(child)]
        return []

    def breaks(self, fault: Fault) -> Mend | None:
        """Let a fault happen.

        Returns:
            What mends it; None where it could not happen, since there is nothing left to break.
        """
        workers = self.workers()
        assert self._parent is not None
        processes = [self._parent, *workers]
        if fault.kind == faults.CAMPAIGN_KILLED:
            return _nothing if _send(processes, psutil.Process.kill) else None
        if fault.kind == faults.DISK_FULL:
            mend = self.storage.breaks(fault, processes)
            return None if mend is None else lambda: self._make_room(mend)
        if fault.kind in (faults.SERVER_KILLED, faults.CONNECTIONS_CUT):
            return self.storage.breaks(fault, processes)
        at_work = [worker for worker in workers if _status(worker) != psutil.STATUS_STOPPED]
        if not at_work:
            return None
        victim = [at_work[int(fault.pick * len(at_work))]]
        if fault.kind == faults.WORKER_KILLED:
            return _nothing if _send(victim, psutil.Process.kill) else None
        if not _send(victim, psutil.Process.suspend):
            return None

        def resume() -> None:
            _send(victim, psutil.Process.resume)

        return resume

    def _make_room(self, mend: Mend) -> None:
        self._seen.update(self.workers())
        # The parent first: its limit is what new workers inherit.
        for processes in ([self._parent] if self._parent else [], list(self._seen)):
            _limit_files(processes, resource.RLIM_INFINITY)
        mend()

    def finish(self) -> list[str]:
        """Let it go on in peace, then stop it as Ctrl-C does; return what went wrong in that."""
        problems = []
        before = count_acknowledged(self.ledgers)

        def goes_on() -> bool:
            self.keep_running()
            time.sleep(0.5)
            return count_acknowledged(self.ledgers) > before

        try:
            wait_for(goes_on, "A report after the last fault was mended", LIMIT)
        except TimeoutError as error:
            problems.append(str(error))
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                problems.append(f"The campaign did not end within {LIMIT:g} s of a SIGINT.")
        return problems

    def close(self) -> None:
        """Kill what is left."""
        self._seen.update(self.workers())
        _send(list(self._seen), psutil.Process.kill)
        psutil.wait_procs(list(self._seen))
        if self._process is not None:
            self._process.wait()


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any("spawn_main" in argument for argument in process.cmdline())
    except psutil.Error:
        return False


def _status(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return str(psutil.STATUS_STOPPED)


def _send(processes: list[psutil.Process], what: Callable[[psutil.Process], None]) -> int:
    """Signal those that are there; return how many."""
    n_sent = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            what(process)
            n_sent += 1
    return n_sent


def _nothing() -> None:
    """Nothing mends it but the campaign itself."""


class Soak:
    """A campaign that is broken as drawn, and the audit afterwards.

    Args:
        kind: ``postgresql``, ``mariadb`` or ``journal``.
        folder: An empty folder.
        drawn: The faults.
        seconds: How long, from the first report.
        stop: Ends it before its time.
    """

    def __init__(
        self, kind: str, folder: Path, drawn: list[Fault], seconds: float, stop: threading.Event
    ) -> None:
        self.kind, self.folder = kind, folder
        self.injected: Counter[str] = Counter()
        self.starts = 0
        self.failures: list[str] = []
        self.audit = Audit()
        self._drawn, self._seconds, self._stop = drawn, seconds, stop

    def run(self, options: Mapping[str, int | None]) -> None:
        """Run, break, mend, stop and audit.

        Raises:
            ServerMissing: There is no such server on this machine.
        """
        workers, seed, loses = options["workers"], options["seed"], options["loses"]
        assert workers is not None
        assert seed is not None
        with storage_of(self.kind, self.folder) as storage:
            campaign = Campaign(storage, self.folder, workers=workers, seed=seed, loses=loses)
            try:
                with (self.folder / "faults.log").open("w") as log:
                    self._break(campaign, log)
                self.failures += campaign.finish()
            finally:
                self.starts = campaign.starts
                campaign.close()
            opened = open_storage(storage.direct, retry_seconds=60, heartbeat_interval=60)
            study = optuna.load_study(study_name=STUDY, storage=opened)
            self.audit = audit(study, read_ledgers(campaign.ledgers), storage.rows(study))

    def _break(self, campaign: Campaign, log: IO[str]) -> None:
        def begun() -> bool:
            campaign.keep_running()
            return self._stop.is_set() or count_acknowledged(campaign.ledgers) > 0

        wait_for(begun, "The first report", LIMIT)
        start = time.monotonic()
        order = itertools.count()
        queue: list[tuple[float, int, Fault | Mend]] = []
        for fault in self._drawn:
            heapq.heappush(queue, (fault.at, next(order), fault))
        while not self._stop.is_set():
            now = time.monotonic() - start
            if now > self._seconds:
                break
            campaign.keep_running()
            while queue and queue[0][0] <= now:
                _, _, due = heapq.heappop(queue)
                if not isinstance(due, Fault):
                    due()
                    continue
                mend = campaign.breaks(due)
                note = "" if mend else ": nothing to break"
                print(f"{now:8.2f} {due}{note}", file=log, flush=True)
                if mend is not None:
                    self.injected[due.kind] += 1
                    heapq.heappush(queue, (now + due.seconds, next(order), mend))
            self._stop.wait(0.2)  # to look at processes is not free
        for _, _, due in queue:
            if not isinstance(due, Fault):
                due()
