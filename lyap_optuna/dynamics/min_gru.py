"""minGRU (Feng et al., 2024), ``minGRU_pytorch``: h_t = (1 - z_t) h_{t-1} + z_t g(W x_t)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lyap_optuna.dynamics._libraries import (
    arguments,
    computing,
    device_of,
    parameter_dtype,
    sequences,
)
from lyap_optuna.dynamics.base import Trajectory
from lyap_optuna.dynamics.diagonal import DiagonalDynamics


def read_min_gru_calls(module: nn.Module, calls: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Return the inputs and the previous hidden state, ``(batch, units)`` or None."""
    call = arguments(module, calls[0])
    previous = call.get("prev_hidden")
    return sequences(call["x"], module), None if previous is None else previous[:, -1]


def min_gru_dynamics(module: nn.Module, state: str) -> DiagonalDynamics:
    """Build the dynamics of a ``minGRU``: a = sigmoid(-gate), diagonal."""
    layer: Any = computing(module)

    def coefficients(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, gate = layer.to_hidden_and_gate(inputs).chunk(2, dim=-1)
        candidate = torch.where(hidden >= 0, hidden + 0.5, hidden.sigmoid())
        return torch.sigmoid(-gate), gate.sigmoid() * candidate, logsigmoid(-gate)

    size = layer.to_hidden_and_gate.out_features // 2
    return DiagonalDynamics(
        coefficients, size, dtype=parameter_dtype(layer), device=device_of(layer)
    )


@torch.no_grad()
def min_gru_outputs(module: nn.Module, inputs: Tensor, trajectory: Trajectory) -> Tensor:
    """Return what the layer returns, ``(batch, time, features)``."""
    layer: Any = computing(module)
    out: Tensor = layer.to_out(trajectory.states)
    return out
