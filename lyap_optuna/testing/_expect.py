"""How a check fails."""

from typing import Any

HOSTILE = "<img src=x onerror=alert(1)> 'ü' \n 😀"
"""A name that anybody may give to a study, a layer or a hyperparameter."""

_BEFORE = 60
"""Characters that are shown before the first difference."""


def expect(found: Any, wanted: Any, what: str) -> None:
    """Compare.

    Raises:
        ValueError: ``found`` is not ``wanted``; the message says what was compared, and shows both
            from shortly before they first differ.
    """
    if found != wanted:
        texts = [repr(found), repr(wanted)]
        differ = (i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b)
        start = next(differ, min(map(len, texts))) - _BEFORE
        here, there = (t if start <= 0 else f"...{t[start:]}" for t in texts)
        raise ValueError(f"{what}: found {here:.300}, where {there:.300} is right.")


def require(holds: object, message: str) -> None:
    """Require.

    Raises:
        ValueError: It does not hold.
    """
    if not holds:
        raise ValueError(message)
