"""The linear recurrent unit (Orvieto et al., 2023), ``LRU_pytorch``.

h_t = exp(-exp(nu) + i exp(theta)) h_{t-1} + gamma B x_t, complex and diagonal; each component is
two dimensions with exponent -exp(nu). y_t = Re(C h_t) + D x_t.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics._errors import NotMeasurableError
from lyap_optuna.dynamics._libraries import (
    arguments,
    computing,
    device_of,
    parameter_dtype,
)
from lyap_optuna.dynamics.base import Trajectory
from lyap_optuna.dynamics.diagonal import DiagonalDynamics


def read_lru_calls(module: Any, calls: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Return the inputs and the state before the first step, ``(batch, components)`` or None.

    The layer starts the first sequence of a batch at the state it is given, or was left with, and
    the others at zero.
    """
    call = arguments(module, calls[0])
    x, state = call["input"], call.get("state")
    if not isinstance(x, Tensor) or x.dim() not in (2, 3):
        raise NotMeasurableError(f"LRU was called with {type(x).__name__}, not with sequences.")
    x = x if x.dim() == 3 else x.unsqueeze(0)
    state = module.state if state is None else state
    initial = state.new_zeros(x.shape[0], state.shape[-1])
    initial[0] = state
    return x, initial


def lru_dynamics(module: nn.Module, state: str) -> DiagonalDynamics:
    """Build the dynamics of an ``LRU``."""
    layer: Any = computing(module)

    def coefficients(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_decay = -layer.nu_log.exp()
        decay = torch.exp(torch.complex(log_decay, layer.theta_log.exp()))
        weight = layer.gamma_log.exp().unsqueeze(-1) * layer.B
        return decay, inputs.to(weight.dtype) @ weight.T, log_decay

    return DiagonalDynamics(
        coefficients,
        len(layer.nu_log),
        is_complex=True,
        dtype=parameter_dtype(layer),
        device=device_of(layer),
    )


@torch.no_grad()
def lru_outputs(module: nn.Module, inputs: Tensor, trajectory: Trajectory) -> Tensor:
    """Return what the layer returns, ``(batch, time, features)``."""
    layer: Any = computing(module)
    h = torch.view_as_complex(trajectory.states.unflatten(2, (-1, 2)).contiguous())
    out: Tensor = (h @ layer.C.to(h).T).real + inputs @ layer.D.to(inputs).T
    return out
