"""Database servers that a test may break: on a free port, with a data folder of their own."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from _campaigns import wait_for


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class OwnServer:
    """A server that can be stopped and started again.

    Args:
        kind: ``postgresql`` or ``mariadb``.
        folder: An empty folder for its data.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.port = free_port()
        # Servers refuse to run as root.
        user = {"postgresql": "postgres", "mariadb": "mysql"}[kind]
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam(user)
            os.chown(folder, account.pw_uid, account.pw_gid)
            self._user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        data = str(folder / "data")
        if kind == "postgresql":
            self._program = _program("postgres", "initdb")
            install = [str(self._program.parent / "initdb"), "-A", "trust", "-N", "-U", "lyap"]
            self._run(*install, "-D", data)
        else:
            self._program = _program("mariadbd", "mariadbd")
            install = [shutil.which("mariadb-install-db") or "mariadb-install-db", "--no-defaults"]
            install += ["--auth-root-authentication-method=normal", "--skip-test-db"]
            self._run(*install, f"--datadir={data}")

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **self._user)

    def url(self, port: int | None = None) -> str:
        port = port or self.port
        if self.kind == "postgresql":
            return f"postgresql+psycopg://lyap@127.0.0.1:{port}/postgres"
        return f"mysql+pymysql://root@127.0.0.1:{port}/study"

    def start(self) -> None:
        data = str(self.folder / "data")
        socket_ = str(self.folder / "s")
        if self.kind == "postgresql":
            options = ["-D", data, "-p", str(self.port), "-k", str(self.folder)]
            options += ["-c", "fsync=off", "-h", "127.0.0.1"]
        else:
            options = ["--no-defaults", f"--datadir={data}", f"--port={self.port}"]
            options += [f"--socket={socket_}", "--bind-address=127.0.0.1", "--skip-log-bin"]
            options += ["--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=2"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._program), *options],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                **self._user,
            )
        wait_for(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
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
        if self._process is not None:
            if self.kind == "postgresql":
                self._process.send_signal(3)  # immediate shutdown
            else:
                self._process.kill()
            self._process.wait()
            self._process = None


def _program(name: str, beside: str) -> Path:
    found = shutil.which(name, path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
    candidates = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if found is None and not candidates:
        if os.environ.get("LYAP_REQUIRE_SERVERS") == "1":
            pytest.fail(f"There is no {name} on this machine.", pytrace=False)
        pytest.skip(f"There is no {name} on this machine: install the server to run this test.")
    path = Path(found) if found else candidates[-1]
    return path if path.with_name(beside).exists() else candidates[-1]


@contextlib.contextmanager
def own_server(kind: str) -> Iterator[OwnServer]:
    # Not below pytest's folder, which only root may enter; and a socket's path must be short.
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
    """A wire to a server that can be cut: connections break, and new ones are refused."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = free_port()
        self._sockets: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.join()

    def join(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._sockets += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=_copy, args=pair, daemon=True).start()

    def cut(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._sockets = []


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
