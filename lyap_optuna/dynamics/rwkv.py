"""RWKV-4's attention (Peng et al., 2023), Hugging Face's layer, as a ratio and a logarithm.

Its weighted average is num / den, num_t = e^w num_{t-1} + e^k v and den_t = e^w den_{t-1} + e^k.
What the network can feel is r = num / den and l = log den:

    a_t = sigmoid(l_{t-1} + w - k_t),   l_t = logaddexp(l_{t-1} + w, k_t),
    r_t = a_t r_{t-1} + (1 - a_t) v_t

J is triangular for each channel: dr' = a dr + a (1 - a) (r - v) dl, dl' = a dl. Both exponents of a
channel are the average of log a, exactly as for a diagonal J: the off-diagonal entry of J_T ... J_1
is a_T ... a_1 (r_0 - r_T), a telescoping sum, which adds nothing to any rate. The token shift is
input, not state.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lyap_optuna.dynamics._libraries import (
    arguments,
    computing,
    device_of,
    extended,
    parameter_dtype,
    sequences,
)
from lyap_optuna.dynamics.base import Dynamics, Trajectory, initial_of
from lyap_optuna.dynamics.gated import previous_states
from lyap_optuna.dynamics.linalg import wide


class RwkvDynamics(Dynamics):
    """The recurrence of an ``RwkvSelfAttention``; the state is (r, l), channel by channel.

    Args:
        module: The layer, in the dtype to compute in.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.dtype, self.device = parameter_dtype(module), device_of(module)
        self.channels = len(module.time_decay)
        self.state_size = 2 * self.channels
        self.input_size = 2 * module.key.in_features

    @torch.no_grad()
    def linearise(self, inputs: Tensor, initial_state: Any = None) -> "RwkvTrajectory":
        """Run the recurrence.

        Args:
            inputs: (input, previous input) of every step, ``(batch, time, 2 * features)``.
            initial_state: (r, l) of all channels, ``(batch, 2 * channels)``; an empty average
                where it is None.
        """
        key, value = keys_and_values(self._module, inputs)
        w = -torch.exp(self._module.time_decay)
        batch, time, n = key.shape
        if initial_state is None:
            r, log_den = key.new_zeros(batch, n), key.new_full((batch, n), -torch.inf)
        else:
            r, log_den = initial_of(initial_state, batch, 2 * n, key).chunk(2, dim=1)
        initial = torch.cat([r, log_den], dim=1)
        averages, logs = torch.empty_like(key), torch.empty_like(key)
        for t in range(time):
            before = log_den + w
            log_den = torch.logaddexp(before, key[:, t])
            r = torch.lerp(value[:, t], r, torch.sigmoid(before - key[:, t]))
            averages[:, t], logs[:, t] = r, log_den
        states = torch.cat([averages, logs], dim=2)
        before = previous_states(initial, states)
        log_decay = logsigmoid(wide(before[..., n:] + w - key))
        # Where nothing has been averaged there is no state yet: tangent vectors start after it.
        log_decay.masked_fill_(before[..., n:] == -torch.inf, 0)
        decay = log_decay.exp().to(key)
        shear = decay * (1 - decay) * (before[..., :n] - value)
        return RwkvTrajectory(initial, states, log_decay, decay, shear)


class RwkvTrajectory(Trajectory):
    """The recurrence along its states: [[D[a], D[shear]], [0, D[a]]].

    Args:
        initial: (r, l) before the first step, ``(batch, 2 * channels)``.
        states: (r, l), ``(batch, time, 2 * channels)``.
        log_decay: log a in float64, ``(batch, time, channels)``.
        decay: a.
        shear: dr'/dl.
    """

    def __init__(
        self, initial: Tensor, states: Tensor, log_decay: Tensor, decay: Tensor, shear: Tensor
    ) -> None:
        self.initial, self.states = initial, states
        self._log_decay, self._decay, self._shear = log_decay, decay, shear

    def select(self, inputs: slice) -> "RwkvTrajectory":
        """Return the trajectory of some of the inputs."""
        parts = (self.initial, self.states, self._log_decay, self._decay, self._shear)
        return RwkvTrajectory(*(part[inputs] for part in parts))

    def tangent(self, t: int, vectors: Tensor) -> Tensor:
        """Multiply elementwise."""
        r, log_den = vectors.chunk(2, dim=2)
        decay, shear = self._decay[:, t].unsqueeze(1), self._shear[:, t].unsqueeze(1)
        return torch.cat([decay * r + shear * log_den, decay * log_den], dim=2)

    def jacobians(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return upper triangular matrices with three diagonals."""
        n = self._decay.shape[2]
        decay, shear = self._decay[inputs, times], self._shear[inputs, times]
        out = torch.diag_embed(torch.cat([decay, decay], dim=1))
        out.diagonal(offset=n, dim1=1, dim2=2).copy_(shear)
        return out

    @property
    def closed_log_growth(self) -> Tensor:
        """Logarithm of a of every dimension, ``(batch, time, state)`` in float64."""
        return torch.cat([self._log_decay, self._log_decay], dim=2)

    @property
    def closed_log_abs_det(self) -> Tensor:
        """The sum of ``closed_log_growth`` over the state."""
        return 2 * self._log_decay.sum(2)


def keys_and_values(module: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return key and value of every step; keys are rounded to float32, as in the layer."""
    x, shifted = inputs.chunk(2, dim=-1)
    key = module.key(_mixed(x, shifted, module.time_mix_key))
    value: Tensor = module.value(_mixed(x, shifted, module.time_mix_value))
    return key.float().to(value), value


def rwkv_dynamics(module: nn.Module, state: str) -> RwkvDynamics:
    """Build the dynamics of an ``RwkvSelfAttention``."""
    return RwkvDynamics(computing(module))


def read_rwkv_calls(module: Any, calls: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Return (input, previous input) of every step, and (r, l) before the first."""
    call = arguments(module, calls[0])
    x, state = sequences(call["hidden"], module), call.get("state")
    first = torch.zeros_like(x[:, 0]) if state is None else state[1][:, :, module.layer_id]
    inputs = extended(x, previous_states(first.to(x), x))
    if state is None:
        return inputs, None
    numerator, denominator, maximum = (part[:, :, module.layer_id] for part in state[2:])
    r = torch.where(denominator == 0, 0, numerator / denominator)
    return inputs, torch.cat([r, denominator.log() + maximum], dim=1)


@torch.no_grad()
def rwkv_outputs(module: nn.Module, inputs: Tensor, trajectory: Trajectory) -> Tensor:
    """Return what the layer returns, ``(batch, time, features)``.

    It averages over the past and over the present step, whose key has a bonus of its own. In
    float32, to which the layer rounds its keys: the last bit may fall otherwise.
    """
    assert isinstance(trajectory, RwkvTrajectory)
    layer: Any = computing(module)
    x, shifted = inputs.chunk(2, dim=-1)
    key, value = keys_and_values(layer, inputs)
    r, log_den = previous_states(trajectory.initial, trajectory.states).chunk(2, dim=2)
    past = torch.sigmoid(log_den - (key + layer.time_first))
    average = past * r + (1 - past) * value
    gate = torch.sigmoid(layer.receptance(_mixed(x, shifted, layer.time_mix_receptance)))
    out: Tensor = layer.output(gate * average)
    return out.float()


def _mixed(x: Tensor, shifted: Tensor, share: Tensor) -> Tensor:
    return x * share + shifted * (1 - share)
