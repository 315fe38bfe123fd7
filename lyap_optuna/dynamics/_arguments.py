"""What a forward takes: arguments, containers of tensors, copies of both."""

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics._errors import NotMeasurableError


def arguments(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``inputs`` as arguments and keyword arguments of the model's forward.

    A dict is keyword arguments and a tuple arguments, unless the forward takes them whole.

    Raises:
        NotMeasurableError: They do not fit.
    """
    signature = inspect.signature(model.forward)
    if not any(True for _ in leaves(inputs)):
        raise NotMeasurableError(f"inputs hold no tensor: got {inputs!r:.100}.")
    candidates: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((inputs,), {})]
    if isinstance(inputs, Mapping) and all(isinstance(key, str) for key in inputs):
        candidates.insert(0, ((), dict(inputs)))
    elif isinstance(inputs, (tuple, list)) and not isinstance(inputs, nn.utils.rnn.PackedSequence):
        candidates.insert(0, (tuple(inputs), {}))
    error: TypeError | None = None
    for args, kwargs in candidates:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as misfit:
            error = error or misfit
        else:
            return args, kwargs
    raise NotMeasurableError(_MISFIT.format(type(model).__name__, error)) from None


_MISFIT = (
    "inputs do not fit the forward of {} ({}): pass what it takes, without targets; a tensor, a "
    "tuple of arguments or a dict of keyword arguments."
)


def misfit(model: nn.Module, inputs: Any) -> str:
    """Say so, where a tuple or a dict was taken whole because it fits no other way."""
    if not isinstance(inputs, (tuple, list, Mapping)):
        return ""
    args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (inputs, {})
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        return " Or: " + _MISFIT.format(type(model).__name__, error)
    return ""


def moved(value: Any, model: nn.Module, dtype: torch.dtype | None) -> Any:
    """Copy tensors, on the model's device, so that a forward may write to them."""
    parameter = next(model.parameters(), None)
    device = None if parameter is None else parameter.device

    def tensor(item: Tensor) -> Tensor:
        floating = dtype if item.is_floating_point() else None
        return item.detach().to(device=device, dtype=floating, copy=True)

    return mapped(value, tensor)


def mapped(value: Any, function: Any) -> Any:
    """Apply a function to the tensors in containers, which are made anew."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, nn.utils.rnn.PackedSequence):
        return value._replace(data=function(value.data))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, function) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(item, function) for item in value)
    if isinstance(value, Mapping):
        made = {key: mapped(item, function) for key, item in value.items()}
        if type(value) is dict:
            return made
        try:
            return type(value)(made)  # type: ignore[call-arg]
        except Exception:
            return made
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            f.name: mapped(getattr(value, f.name), function) for f in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **changed)
    return value


def leaves(value: Any) -> Iterator[Tensor]:
    """Return the tensors in containers, in order."""
    found: list[Tensor] = []

    def note(item: Tensor) -> Tensor:
        found.append(item)
        return item

    with contextlib.suppress(TypeError):
        mapped(value, note)
    return iter(found)


def replaced(value: Any, old: list[Tensor], new: list[Tensor]) -> Any:
    """Return ``value`` with some of its tensors replaced."""
    if all(a is b for a, b in zip(old, new, strict=True)):
        return value
    swap: dict[int, list[Tensor]] = {}
    for a, b in zip(old, new, strict=True):
        swap.setdefault(id(a), []).append(b)  # a tensor that stands twice is replaced twice

    def next_of(item: Tensor) -> Tensor:
        waiting = swap.get(id(item))
        return waiting.pop(0) if waiting else item

    return mapped(value, next_of)
