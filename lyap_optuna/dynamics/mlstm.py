"""mLSTM (Beck et al., 2024), the ``mLSTMCell`` of ``xlstm``: a matrix memory that decays.

For each head, with k scaled by the root of its size,

    C_t = f_t C_{t-1} + i_t k_t v_t^T,   n_t = f_t n_{t-1} + i_t k_t
    h_t = C_t^T q_t / max(|n_t q_t|, 1),   f = sigmoid(a_f),  i = exp(a_i)

Linear in (C, n) and diagonal: all (d + 1) d components of a head share the exponent that is the
average of log sigmoid(a_f). C and n are not measured as a ratio, as in the sLSTM, since the 1 in
the denominator makes their size matter. The library's maximum m only scales them.
"""

import math
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

_EPSILON = 1e-6  # of the library's denominator


def read_mlstm_calls(module: Any, calls: list[Any]) -> tuple[Tensor, None]:
    """Return queries, keys and values, ``(batch, time, 3 * features)``; the state starts at 0."""
    call = arguments(module, calls[0])
    return torch.cat([sequences(call[name], module) for name in ("q", "k", "v")], dim=2), None


def _parts(layer: Any, inputs: Tensor) -> tuple[Tensor, ...]:
    """Return q, k, v ``(batch, time, heads, d)`` and a_i, log f ``(batch, time, heads)``."""
    heads = layer.config.num_heads
    q, k, v = (part.unflatten(2, (heads, -1)) for part in inputs.chunk(3, dim=2))
    k = k / math.sqrt(k.shape[-1])
    return q, k, v, layer.igate(inputs), logsigmoid(layer.fgate(inputs))


def mlstm_dynamics(module: nn.Module, state: str) -> DiagonalDynamics:
    """Build the dynamics of an ``mLSTMCell``: for each head C, row by row, then n."""
    layer: Any = computing(module)

    def coefficients(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, k, v, gate, log_forget = _parts(layer, inputs)
        written = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)  # n is C's for the value 1
        key = gate.exp().unsqueeze(-1) * k
        drive = written.unsqueeze(-1) * key.unsqueeze(-2)
        return log_forget.exp(), drive.flatten(2), log_forget

    heads, size = layer.config.num_heads, layer.config.embedding_dim
    return DiagonalDynamics(
        coefficients,
        size * (size // heads + 1),
        dtype=parameter_dtype(layer),
        device=device_of(layer),
    )


@torch.no_grad()
def mlstm_outputs(module: nn.Module, inputs: Tensor, trajectory: Trajectory) -> Tensor:
    """Return what the cell returns, ``(batch, time, features)``."""
    layer: Any = computing(module)
    q, _, v, gate, log_forget = _parts(layer, inputs)
    memory = trajectory.states.unflatten(2, (v.shape[2], v.shape[3] + 1, q.shape[3]))
    read = (memory @ q.unsqueeze(-1)).squeeze(-1)  # (batch, time, heads, d + 1)
    maximum = torch.empty_like(gate)
    m = torch.full_like(gate[:, 0], -torch.inf)
    for t in range(gate.shape[1]):
        m = torch.maximum(m + log_forget[:, t], gate[:, t])
        maximum[:, t] = m
    denominator = read[..., -1].abs().clamp(min=1) + _EPSILON * maximum.exp()
    h = (read[..., :-1] / denominator.unsqueeze(-1)).transpose(1, 2)
    return layer.outnorm(h).transpose(1, 2).flatten(2)  # type: ignore[no-any-return]
