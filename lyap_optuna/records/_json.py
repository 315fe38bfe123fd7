"""What may be stored: finite numbers of six digits, in objects below the databases' size limit."""

import json
import math
from typing import Any

FLOOR = -16.0
"""Stored exponents are at least this (nats/step): about log of float32's epsilon, below which
QR returns rounding noise. An exponent of minus infinity is stored as the floor and flagged."""

MAX_BYTES = 60_000
"""MariaDB and MySQL keep 65,535 bytes in an attribute; Optuna stores it as JSON text."""


def finite(value: object) -> float | None:
    """Return ``value`` as a finite float, or None where it is anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def rounded(value: float | None) -> float | None:
    """Round to six significant digits; None where the value is absent or not finite."""
    number = finite(value)
    return None if number is None else float(f"{number:.6g}")


def cut(text: str, n_bytes: int) -> str:
    """Return the beginning of ``text`` that takes at most so many bytes in an attribute."""
    n_bytes -= size("")
    for end, character in enumerate(text):
        n_bytes -= size(character) - size("")
        if n_bytes < 0:
            return text[:end]
    return text


def size(value: Any) -> int:
    """Return the bytes that ``value`` takes in an attribute."""
    return len(json.dumps(value).encode())
