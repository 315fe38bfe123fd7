"""Results as JSON lines: added one by one, read again after whatever interrupted the run."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from lyap_optuna._files import AppendLock


def append_line(path: Path, stored: Mapping[str, Any]) -> None:
    """Add an object; numbers that JSON cannot hold are written as text.

    Half a line that an earlier run left at the end is moved to a file beside it first; see
    :class:`~lyap_optuna._files.AppendLock`.

    Raises:
        ValueError: The file holds something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Optuna's journal is a file of JSON lines with a lock that works on network drives too.
    JournalFileBackend(str(path), AppendLock(str(path))).append_logs([_finite(stored)])


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Return the objects of a file; none where there is no file, and no line that was cut."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                stored = json.loads(line)
            except ValueError:
                continue
            # A line is whole once its end is there: else the next run cuts it off.
            if isinstance(stored, dict) and line.endswith(b"\n"):
                yield stored


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
