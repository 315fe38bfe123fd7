"""Mamba-2 (Dao and Gu, 2024), Hugging Face's layer: one decay per head.

Per head h, channel p and component n, driven by u after the short convolution:

    s_t = exp(dt_t A) s_{t-1} + dt_t B_t u_t,    y_t = C_t s_t + D u_t,    out = W norm(y, z)

Diagonal: the exponents are the averages of dt_t A_h, each for all components of a head. The window
of the convolution is input, not state.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lyap_optuna.dynamics._libraries import (
    arguments,
    computing,
    device_of,
    extended,
    parameter_dtype,
    sequences,
)
from lyap_optuna.dynamics.base import Trajectory
from lyap_optuna.dynamics.diagonal import DiagonalDynamics
from lyap_optuna.dynamics.mamba import masked


def read_mamba2_calls(module: Any, calls: list[Any]) -> tuple[Tensor, None]:
    """Return (u, B, C; dt; z) of a ``Mamba2Mixer``, each per step; the state starts at 0."""
    call = arguments(module, calls[0])
    mask = call.get("attention_mask")
    x = masked(sequences(call["hidden_states"], module), mask)
    sizes = [module.intermediate_size, module.conv_dim, module.num_heads]
    z, u, dt = module.in_proj(x).split(sizes, dim=-1)
    u = module.act(module.conv1d(u.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
    return extended(masked(u, mask), dt, z), None


def _parts(layer: Any, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return u ``(batch, time, heads, channels)``, B, C ``(.., heads, 1, state)``, dt and z."""
    groups, heads, size = layer.n_groups, layer.num_heads, layer.ssm_state_size
    width = layer.intermediate_size
    u, b, c, dt, z = inputs.split([width, groups * size, groups * size, heads, width], dim=-1)
    b, c = (
        part.unflatten(2, (groups, size)).repeat_interleave(heads // groups, dim=2).unsqueeze(3)
        for part in (b, c)
    )
    dt = softplus(dt + layer.dt_bias).clamp(*layer.time_step_limit)
    return u.unflatten(2, (heads, layer.head_dim)), b, c, dt, z


def mamba2_dynamics(module: nn.Module, state: str) -> DiagonalDynamics:
    """Build the dynamics of a ``Mamba2Mixer``: heads x channels x components."""
    layer: Any = computing(module)

    def coefficients(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, b, _, dt, _ = _parts(layer, inputs)
        log_decay = dt * -torch.exp(layer.A_log.float()).to(dt)
        drive = (dt.unsqueeze(-1) * u).unsqueeze(-1) * b
        return log_decay.exp(), drive.flatten(2), log_decay

    size = layer.intermediate_size * layer.ssm_state_size
    return DiagonalDynamics(
        coefficients, size, dtype=parameter_dtype(layer), device=device_of(layer)
    )


@torch.no_grad()
def mamba2_outputs(module: nn.Module, inputs: Tensor, trajectory: Trajectory) -> Tensor:
    """Return what the layer returns, ``(batch, time, features)``.

    In float32, whatever the layer's dtype is: its own scan is computed in float32.
    """
    layer: Any = computing(module)
    u, _, c, _, z = _parts(layer, inputs)
    s = trajectory.states.unflatten(2, (*u.shape[2:], layer.ssm_state_size))
    y = (s * c).sum(-1) + u * layer.D.unsqueeze(-1)
    out: Tensor = layer.out_proj(layer.norm(y.flatten(2), z).to(z))
    return out.float()
