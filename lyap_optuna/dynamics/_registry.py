"""The one place where architectures are registered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lyap_optuna.dynamics.base import Dynamics
from lyap_optuna.dynamics.torch_layers import read_call, stacked_dynamics


@dataclass(frozen=True)
class Architecture:
    """How to measure one type of module.

    Args:
        build: ``build(module, state) -> Dynamics``; ``state`` is ``"hidden"`` or ``"full"``.
        read_call: ``read_call(module, args, kwargs)`` returns what a call of the module's
            forward was given, as inputs ``(batch, time, features)`` and initial state.
    """

    build: Callable[[nn.Module, str], Dynamics]
    read_call: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[Tensor, Any]] = (
        read_call
    )


_ARCHITECTURES: dict[type[nn.Module], Architecture] = {
    nn.RNN: Architecture(stacked_dynamics),
    nn.LSTM: Architecture(stacked_dynamics),
    nn.GRU: Architecture(stacked_dynamics),
}


def register_architecture(module_type: type[nn.Module], architecture: Architecture) -> None:
    """Teach the package to measure another type of recurrent module.

    Args:
        module_type: The class; subclasses are covered.
        architecture: How to build its dynamics and read its calls.

    Raises:
        ValueError: ``module_type`` is not a class of modules.

    Example:
        >>> import torch
        >>> from lyap_optuna.dynamics import Architecture, RecurrentDynamics, register_architecture
        >>> class Leaky(torch.nn.Module):
        ...     def forward(self, x): ...
        >>> register_architecture(
        ...     Leaky,
        ...     Architecture(
        ...         build=lambda module, state: RecurrentDynamics(lambda s, x: 0.9 * s + x, 3),
        ...         read_call=lambda module, args, kwargs: (args[0], None),
        ...     ),
        ... )
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise ValueError(f"module_type must be a subclass of nn.Module, but got {module_type!r}.")
    _ARCHITECTURES[module_type] = architecture


def architecture_of(module: nn.Module) -> Architecture | None:
    """Return how to measure ``module``, or None where it is not a registered architecture."""
    for cls in type(module).__mro__:
        if cls in _ARCHITECTURES:
            return _ARCHITECTURES[cls]
    return None


def registered_names() -> str:
    """Return the registered types in words."""
    return ", ".join(
        f"nn.{t.__name__}" if t.__module__.startswith("torch.") else t.__name__
        for t in _ARCHITECTURES
    )
