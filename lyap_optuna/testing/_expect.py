"""How a check fails."""

from typing import Any

HOSTILE = "<img src=x onerror=alert(1)> 'ü' \n 😀"
"""A name that anybody may give to a study, a layer or a hyperparameter."""


def expect(found: Any, wanted: Any, what: str) -> None:
    """Compare.

    Raises:
        ValueError: ``found`` is not ``wanted``; the message says what was compared.
    """
    if found != wanted:
        raise ValueError(f"{what}: found {found!r:.300}, where {wanted!r:.300} is right.")


def require(holds: object, message: str) -> None:
    """Require.

    Raises:
        ValueError: It does not hold.
    """
    if not holds:
        raise ValueError(message)
