"""Database servers of one's own, to be broken: on a free port, in a folder; and a wire to cut."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa


class ServerMissing(RuntimeError):
    """There is no such server on this machine."""


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Poll until it holds.

    Raises:
        TimeoutError: It did not within ``seconds``.
    """
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"{what} did not happen within {seconds:g} s.")
        time.sleep(0.02)


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class OwnServer:
    """A server that can be stopped, or killed, and started again.

    Args:
        kind: ``postgresql`` or ``mariadb``.
        folder: An empty folder for its data.

    Raises:
        ServerMissing: It is not installed.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.port = free_port()
        program = "postgres" if kind == "postgresql" else "mariadbd"
        install = "initdb" if kind == "postgresql" else "mariadb-install-db"
        self._program = _program(program)
        # Servers refuse to run as root.
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam({"postgresql": "postgres", "mariadb": "mysql"}[kind])
            os.chown(folder, account.pw_uid, account.pw_gid)
            self._user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        data = str(folder / "data")
        if kind == "postgresql":
            self._run(_program(install), "-A", "trust", "-N", "-U", "lyap", "-D", data)
        else:
            options = ["--no-defaults", "--auth-root-authentication-method=normal"]
            self._run(_program(install), *options, "--skip-test-db", f"--datadir={data}")

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **self._user)

    def url(self, port: int | None = None) -> str:
        """Return the URL of its database, through another ``port`` if that leads to it."""
        port = port or self.port
        if self.kind == "postgresql":
            return f"postgresql+psycopg://lyap@127.0.0.1:{port}/postgres"
        return f"mysql+pymysql://root@127.0.0.1:{port}/study"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        data = str(self.folder / "data")
        if self.kind == "postgresql":
            options = ["-D", data, "-p", str(self.port), "-k", str(self.folder)]
            options += ["-c", "fsync=off", "-h", "127.0.0.1"]
        else:
            options = ["--no-defaults", f"--datadir={data}", f"--port={self.port}"]
            options += [f"--socket={self.folder / 's'}", "--bind-address=127.0.0.1"]
            options += ["--skip-log-bin", "--innodb-buffer-pool-size=32M"]
            options += ["--innodb-flush-log-at-trx-commit=2"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *options],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is not for it
                **self._user,
            )
        wait_for(self._answers, f"An answer of {self.kind}")

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self.kind} ended: {(self.folder / 'log').read_text()[-2000:]}")
        url = sa.make_url(self.url())
        if self.kind == "mariadb":
            url = url.set(database="mysql")
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        try:
            with engine.begin() as connection:
                if self.kind == "mariadb":
                    connection.exec_driver_sql("CREATE DATABASE IF NOT EXISTS study")
        except sa.exc.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """Stop at once and drop all connections, as a crash does."""
        # PostgreSQL has a signal for it, and leaves no shared memory behind.
        self._end(signal.SIGQUIT if self.kind == "postgresql" else signal.SIGKILL)

    def kill(self) -> None:
        """Kill all its processes, as the kernel does where memory runs out."""
        self._end(signal.SIGKILL)

    def _end(self, sent: signal.Signals) -> None:
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            server = psutil.Process(self._process.pid)
            helpers = server.children(recursive=True)
            server.send_signal(sent)
            for process in helpers if sent == signal.SIGKILL else ():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(helpers)
        self._process.wait()
        self._process = None


def _program(name: str) -> str:
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]
    places += sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise ServerMissing(f"There is no {name} on this machine: install the server.")
    return found


@contextlib.contextmanager
def own_server(kind: str) -> Iterator[OwnServer]:
    """Run a server, and remove it afterwards.

    Raises:
        ServerMissing: It is not installed.
    """
    # Not in a folder that only its owner may enter; and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="lyap-"))
    server = None
    try:
        server = OwnServer(kind, folder)
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Wire:
    """A wire to a server that can be cut: connections break, and new ones are refused.

    Args:
        port: Of the server; ``self.port`` is the near end.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = free_port()
        self._ends: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.join()

    def join(self) -> None:
        """Mend it."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:  # it is cut
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:  # the server is not there
                near.close()
                continue
            self._ends = [end for end in self._ends if end.fileno() >= 0] + [near, far]
            threading.Thread(target=_carry, args=(near, far), daemon=True).start()

    def cut(self) -> None:
        """Break all connections, and refuse new ones."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for end in self._ends:
            _shut(end)


def _carry(near: socket.socket, far: socket.socket) -> None:
    back = threading.Thread(target=_copy, args=(far, near), daemon=True)
    back.start()
    _copy(near, far)
    back.join()
    near.close()
    far.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _shut(source)
    _shut(target)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
