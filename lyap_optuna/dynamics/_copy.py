"""A copy of what a model takes, of whatever kind."""

import copy
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor

from lyap_optuna.dynamics._errors import NotMeasurableError


def detached(inputs: Any) -> Any:
    """Copy inputs, of whatever kind, with every tensor in them cut off from its graph.

    Raises:
        NotMeasurableError: They hold what cannot be copied.
    """
    try:
        memo = {id(tensor): tensor.detach().clone() for tensor in _tensors(inputs, set())}
        return copy.deepcopy(inputs, memo)
    except Exception as error:
        raise NotMeasurableError(
            f"The inputs ({type(inputs).__name__}) cannot be copied ({type(error).__name__}: "
            f"{error}). Pass tensors, or tuples and dicts of them."
        ) from error


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, _HOLD_NONE) or id(value) in seen:
        return
    else:
        seen.add(id(value))
        parts: list[Any] = []
        if isinstance(value, Mapping):
            parts += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            parts += value
        parts += getattr(value, "__dict__", {}).values()
        for kind in type(value).__mro__:
            names = kind.__dict__.get("__slots__", ())
            for name in (names,) if isinstance(names, str) else names:
                parts.append(getattr(value, name, None))
        for part in parts:
            yield from _tensors(part, seen)


_HOLD_NONE = (str, bytes, int, float, complex, type(None), type, FunctionType, ModuleType)
