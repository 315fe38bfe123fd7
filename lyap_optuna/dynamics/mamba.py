"""Mamba's selective state space (Gu and Dao, 2023): Hugging Face's layer and mambapy's.

Per channel d and component n, driven by u after the short convolution and its activation:

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,    y_t = C_t h_t + D u_t,    out = W (y silu(z))

with dt, B and C functions of u_t alone. Diagonal, so the exponents are the averages of dt_t A. The
window of the convolution is input, not state: what drives the recurrence is u_t, and the gate z_t.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softplus

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


def masked(x: Tensor, mask: Any) -> Tensor:
    """Set padding to zero, as Hugging Face's layers do; the mask is ``(batch, time)`` or None."""
    return x if mask is None else x * mask[:, -x.shape[1] :, None].to(x)


def read_mixer_calls(module: Any, calls: list[Any]) -> tuple[Tensor, None]:
    """Return (u, z) of a ``MambaMixer``: ``(batch, time, 2 * channels)``; the state starts at 0."""
    call = arguments(module, calls[0])
    mask = call.get("attention_mask")
    x = masked(sequences(call["hidden_states"], module), mask)
    u, z = module.in_proj(x).chunk(2, dim=-1)
    u = module.act(module.conv1d(u.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
    return extended(masked(u, mask), z), None


def read_block_calls(module: Any, calls: list[Any]) -> tuple[Tensor, None]:
    """Return (u, z) of a ``MambaBlock``: ``(batch, time, 2 * channels)``; the state starts at 0."""
    x = sequences(arguments(module, calls[0])["x"], module)
    u, z = module.in_proj(x).chunk(2, dim=-1)
    u = silu(module.conv1d(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
    return extended(u, z), None


def _selected(module: Any, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dt ``(batch, time, channels)``, B, C ``(batch, time, state)`` and what B multiplies.

    Hugging Face rounds B, u and the bias of dt to float32, whatever the layer's dtype is.
    """
    size = module.A_log.shape[1]
    dt, b, c = module.x_proj(u).split([module.dt_proj.in_features, size, size], dim=-1)
    if hasattr(module, "_apply_layernorms"):  # mambapy
        dt, b, c = module._apply_layernorms(dt, b, c)
        bias, driven = module.dt_proj.bias, u
    else:
        bias, b, driven = (part.float().to(u) for part in (module.dt_proj.bias, b, u))
    return softplus(linear(dt, module.dt_proj.weight) + bias), b, c, driven


def mamba_dynamics(module: nn.Module, state: str) -> DiagonalDynamics:
    """Build the dynamics of a ``MambaMixer`` or a ``MambaBlock``: channels x components."""
    layer: Any = computing(module)

    def coefficients(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u = inputs.chunk(2, dim=-1)[0]
        dt, b, _, driven = _selected(layer, u)
        a = -torch.exp(layer.A_log.float()).to(u)
        log_decay = (dt.unsqueeze(-1) * a).flatten(2)
        drive = dt.unsqueeze(-1) * b.unsqueeze(2) * driven.unsqueeze(-1)
        return log_decay.exp(), drive.flatten(2), log_decay

    return DiagonalDynamics(
        coefficients, layer.A_log.numel(), dtype=parameter_dtype(layer), device=device_of(layer)
    )


@torch.no_grad()
def mamba_outputs(module: nn.Module, inputs: Tensor, trajectory: Trajectory) -> Tensor:
    """Return what the layer returns, ``(batch, time, features)``.

    In float32 where the layer rounds what it computes to it: the last bit may fall otherwise.
    """
    layer: Any = computing(module)
    u, z = inputs.chunk(2, dim=-1)
    _, _, c, driven = _selected(layer, u)
    h = trajectory.states.unflatten(2, layer.A_log.shape)
    y = (h @ c.unsqueeze(-1)).squeeze(-1) + u * layer.D.float().to(u)
    out: Tensor = layer.out_proj(y * silu(z))
    return out if driven is u else out.float()
