"""How a number is written in a table: one rule for all of them."""

import math
from collections.abc import Sequence

_PLAIN = 1e6
"""From here on a number is written with an exponent."""


def number(value: float, *, sign: bool = False) -> str:
    """Return a number with four significant digits, noughts at the end too.

    So that equal precision looks equal. From 1,000 on all digits before the point are written;
    from 1,000,000 on, and below 0.0001, there is an exponent.

    Args:
        value: Any number; infinity and NaN are named.
        sign: Whether a positive number has its sign too.

    Example:
        >>> from lyap_optuna._numbers import number
        >>> [number(v) for v in (0.19, -2.5, 12345.6, 1234567.8, 0.00000123, 0.0)]
        ['0.1900', '-2.500', '12346', '1.235e+06', '1.230e-06', '0']
    """
    plus = "+" if sign else ""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else f"{value:{'' if math.isnan(value) else plus}}"
    digits = "#.4g" if abs(value) < 1000 else ".0f" if round(abs(value)) < _PLAIN else ".3e"
    return f"{value:{plus}{digits}}".removesuffix(".")


def apart(a: float, b: float, *, least: int = 3, most: int = 17) -> tuple[str, str]:
    """Return two numbers with as many significant digits as it takes to tell them apart.

    Args:
        a: A number.
        b: Another.
        least: Significant digits at least.
        most: And at most; with 17, different numbers always look different.

    Example:
        >>> from lyap_optuna._numbers import apart
        >>> apart(0.25, 0.75), apart(1.0, 0.9999)
        (('0.25', '0.75'), ('1', '0.9999'))
    """
    for digits in range(least, most + 1):
        texts = f"{a:.{digits}g}", f"{b:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts


def aligned(texts: Sequence[str]) -> list[str]:
    """Return numbers padded to one width, their points one below the other.

    Example:
        >>> from lyap_optuna._numbers import aligned
        >>> aligned(["0.003060", "-1.250", "12346", ""])
        ['    0.003060', '   -1.250   ', '12346       ', '            ']
    """
    after = [len(text) - text.find(".") if "." in text else 0 for text in texts]
    padded = [
        text + " " * (max(after) - own) if text else ""
        for text, own in zip(texts, after, strict=True)
    ]
    width = max(map(len, padded), default=0)
    return [text.rjust(width) for text in padded]
