"""Results as JSON lines: added one by one, read again after whatever interrupted the run."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def append_line(path: Path, stored: Mapping[str, Any]) -> None:
    """Add an object; numbers that JSON cannot hold are written as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # the last line of a run that was killed
                file.write(b"\n")
        file.write((json.dumps(_finite(stored), allow_nan=False) + "\n").encode())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Return the objects of a file; none where there is no file, and no line that was cut."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            stored = json.loads(line)
        except ValueError:
            continue
        if isinstance(stored, dict):
            yield stored


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
