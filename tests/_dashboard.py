"""``lyap-optuna dashboard`` as a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from typing import Any

from _campaigns import COMMAND


class Dashboard:
    """A running command; ``url`` is where it listens, ``said`` the line that told so.

    Args:
        storage: URL of the storage, given by the environment.
        options: Options of the command besides ``--port``.
    """

    def __init__(self, storage: str, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "dashboard", "--port", "0", *options],
            env={**os.environ, "OPTUNA_STORAGE": storage, "COLUMNS": "100"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.said = self._process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", self.said)
        assert found, self.said + self.end()
        self.url = found[0]
        self.port = self.url.rpartition(":")[2].strip("/")

    def json(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def end(self, number: int = signal.SIGINT) -> str:
        """Stop it; return what it said on its error stream."""
        self._process.send_signal(number)
        _, errors = self._process.communicate(timeout=60)
        self.code = self._process.returncode
        return errors
