"""What the layers of other libraries have in common: how to read their calls and weights."""

import copy
import inspect
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics._errors import NotMeasurableError
from lyap_optuna.dynamics.base import computing_dtype

Module = TypeVar("Module", bound=nn.Module)


def computing(module: Module) -> Module:
    """Return the module in the dtype that exponents are computed in: itself, or a copy.

    Complex parameters stay as they are.
    """
    wanted = parameter_dtype(module)
    if all(p.dtype == wanted for p in module.parameters() if p.is_floating_point()):
        return module
    return copy.deepcopy(module).to(wanted)


def parameter_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype that exponents of a module are computed in."""
    widest = torch.float16
    for parameter in module.parameters():
        if parameter.is_floating_point():
            widest = torch.promote_types(widest, parameter.dtype)
    return computing_dtype(widest)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the first parameter."""
    return next(module.parameters()).device


def arguments(module: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> dict[str, Any]:
    """Return the arguments of a call of the module's forward by their names.

    A subclass may pass all of them on (``*args``): then they are named as its base names them.
    """
    signature = inspect.signature(module.forward)
    for cls in type(module).__mro__:
        if not any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
            break
        if "forward" in vars(cls):
            signature = inspect.signature(vars(cls)["forward"].__get__(module))
    found = dict(signature.bind(*call[0], **call[1]).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found.update(found.pop(name, {}))
    return found


def sequences(x: Any, module: nn.Module) -> Tensor:
    """Check that ``x`` is ``(batch, time, features)``."""
    if not isinstance(x, Tensor) or x.dim() != 3:
        got = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise NotMeasurableError(
            f"{type(module).__name__} is measured on sequences of three dimensions, but was called "
            f"with {got}."
        )
    return x


def extended(x: Tensor, *columns: Tensor) -> Tensor:
    """Append further features, each ``(batch, time, n)`` or broadcastable to it."""
    return torch.cat([x, *(c.to(x).expand(*x.shape[:2], c.shape[-1]) for c in columns)], dim=2)
