"""What workers sent, in files of their own: the truth that a storage is held against."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Ledger:
    """The ledger of one process: a file of JSON lines, each appended by one call of the system.

    So a line is there or it is not, whenever the process is killed.

    Args:
        folder: Of the ledgers of all processes.
    """

    def __init__(self, folder: Path) -> None:
        name = f"{os.getpid()}-{os.urandom(4).hex()}.jsonl"
        self._file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)

    def write(self, what: str, trial: int, **more: Any) -> None:
        """Append a line.

        Args:
            what: ``begun``, ``sent``, ``acknowledged`` or ``returned``.
            trial: Number of the trial.
            **more: What else is to be known.
        """
        line = json.dumps({"what": what, "trial": trial, **more}) + "\n"
        os.write(self._file, line.encode())


def read_ledgers(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of all ledgers."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            yield json.loads(line)


def count_acknowledged(folder: Path) -> int:
    """Return how many reports were acknowledged so far."""
    return sum(entry["what"] == "acknowledged" for entry in read_ledgers(folder))
