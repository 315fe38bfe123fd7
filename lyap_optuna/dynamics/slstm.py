"""sLSTM (Beck et al., 2024), the ``sLSTMCell`` of ``xlstm``, without its stabiliser's redundancy.

The library's state is (y, c, n, m), where only c / n and n e^m matter. What the network can feel is
(y, u, l), u = c / n and l = log n + m. With a = W x + R y + b for the gates (i, f, z, o), and
k = l + log sigmoid(a_f):

    l' = logaddexp(k, a_i),   p = sigmoid(k - a_i),   u' = p u + (1 - p) tanh a_z,
    y' = sigmoid(a_o) u'

Hence, with dk = dl + sigmoid(-a_f) da_f and dp = p (1 - p) (dk - da_i), a table of gains as for all
gated layers; and log|det J| = sum log(sigmoid'(a_o) |u'|) + 2 sum log p + log|det R_o|, since
y' - sigmoid(a_o) u' depends on y alone.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lyap_optuna.dynamics._errors import NotMeasurableError
from lyap_optuna.dynamics._libraries import (
    arguments,
    computing,
    device_of,
    parameter_dtype,
    sequences,
)
from lyap_optuna.dynamics.base import Dynamics, Trajectory, initial_of
from lyap_optuna.dynamics.gated import (
    LayerTrajectory,
    LayerWeights,
    Linearisation,
    log_sigmoid_slope,
    previous_states,
    sigmoid_slope,
    tanh_slope,
)
from lyap_optuna.dynamics.linalg import log_abs_det, wide


class SLSTMDynamics(Dynamics):
    """The recurrence of an ``sLSTMCell``; the state is (y, u, l), N units each.

    Args:
        module: The cell, in the dtype to compute in.

    Raises:
        NotMeasurableError: The cell computes another function than the sLSTM.
    """

    def __init__(self, module: Any) -> None:
        config = module.config
        if config.function != "slstm":
            raise NotMeasurableError(
                f"sLSTMCell with function={config.function!r} is another cell than the sLSTM: use "
                "nn.LSTM, or a lyap_optuna.RecurrentDynamics with its step function."
            )
        self.units: int = config.hidden_size
        self.state_size = 3 * self.units
        self.input_size = 4 * self.units
        # (heads, from, gates, to): one block for each head and gate
        kernel = module._recurrent_kernel_int2ext(module._recurrent_kernel.detach())
        blocks = [torch.block_diag(*(head[:, g].T for head in kernel)) for g in range(4)]
        self._recurrent = torch.cat(blocks)
        bias = module._bias_int2ext(module._bias.detach())  # (heads, gates, units of the head)
        self._bias = bias.transpose(0, 1).reshape(-1)
        self.dtype, self.device = parameter_dtype(module), device_of(module)

    @torch.no_grad()
    def linearise(self, inputs: Tensor, initial_state: Any = None) -> LayerTrajectory:
        """Run the cell and linearise it.

        Args:
            inputs: What the inputs contribute to the gates, ``(batch, time, 4 * units)``.
            initial_state: (y, u, l), ``(batch, 3 * units)``, or (y, c, n, m) as the cell takes
                it, ``(4, batch, units)``; y = 0 and nothing averaged, l minus infinity, where it
                is None.
        """
        batch, n = inputs.shape[0], self.units
        if isinstance(initial_state, Tensor) and initial_state.dim() == 3:
            initial_state = _ratios(initial_state)
        if initial_state is None:
            initial = inputs.new_zeros(batch, 3 * n)
            initial[:, 2 * n :] = -torch.inf
        else:
            initial = initial_of(initial_state, batch, 3 * n, inputs)
        drive = inputs + self._bias
        y, u, log_n = initial.chunk(3, dim=1)
        states = inputs.new_empty(*inputs.shape[:2], 3 * n)
        for t in range(inputs.shape[1]):
            i, f, z, o = torch.addmm(drive[:, t], y, self._recurrent.T).chunk(4, dim=1)
            kept = log_n + logsigmoid(f)
            log_n = torch.logaddexp(kept, i)
            u = torch.lerp(torch.tanh(z), u, torch.sigmoid(kept - i))
            y = torch.sigmoid(o) * u
            states[:, t] = torch.cat([y, u, log_n], dim=1)
        before = previous_states(initial, states)
        return LayerTrajectory(
            LayerWeights(inputs.new_empty(4 * n, 0), self._recurrent),
            self._linearised(drive, before, states),
        )

    def _linearised(self, drive: Tensor, before: Tensor, states: Tensor) -> Linearisation:
        y, u, log_n = before.chunk(3, dim=2)
        i, f, z, o = (drive + y @ self._recurrent.T).chunk(4, dim=2)
        new_y, new_u = states.chunk(3, dim=2)[:2]
        x = log_n + logsigmoid(f) - i
        p, q = torch.sigmoid(x), torch.sigmoid(-x)
        moved = p * q * (u - torch.tanh(z))  # du'/dk
        forget = torch.sigmoid(-f)  # dk/da_f
        zero, gate = torch.zeros_like(p), torch.sigmoid(o)
        to_u = torch.stack([-moved, moved * forget, q * tanh_slope(z), zero], dim=2)
        to_log = torch.stack([q, p * forget, zero, zero], dim=2)
        to_y = gate.unsqueeze(2) * to_u
        to_y[:, :, 3] = sigmoid_slope(o) * new_u
        carry_u = torch.stack([zero, p, moved], dim=2)
        carry = [gate.unsqueeze(2) * carry_u, carry_u, torch.stack([zero, zero, p], dim=2)]
        weight = wide(self._recurrent[3 * self.units :])
        determinant = log_sigmoid_slope(o) + wide(new_u).abs().log() + 2 * logsigmoid(wide(x))
        determinant = determinant.sum(-1) + log_abs_det(weight.unsqueeze(0))
        gains, carries = torch.stack([to_y, to_u, to_log], dim=2), torch.stack(carry, dim=2)
        # Where nothing has been averaged there is no state yet: tangent vectors start after it.
        empty = (log_n == -torch.inf).all(2)
        gains[empty], determinant[empty] = 0, 0
        carries[empty] = torch.eye(3).to(carries).unsqueeze(2)
        return Linearisation(
            outputs=new_y,
            states=states,
            gain=gains,
            carry=carries,
            closed_log_abs_det=determinant,
        )


def slstm_dynamics(module: nn.Module, state: str) -> SLSTMDynamics:
    """Build the dynamics of an ``sLSTMCell``."""
    return SLSTMDynamics(computing(module))


def read_slstm_calls(module: Any, calls: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Return the gates' inputs, ``(batch, time, 4 * units)``, and (y, c, n, m) or None."""
    call = arguments(module, calls[0])
    x, state = sequences(call["input"], module), call.get("state")
    x = x if module.config.input_shape == "BSGNH" else x.transpose(0, 1)
    return x, state


def _ratios(state: Tensor) -> Tensor:
    """Return (y, u, l) of (y, c, n, m), ``(batch, 3 * units)``."""
    y, c, n, m = state
    return torch.cat([y, torch.where(n == 0, 0, c / n), n.log() + m], dim=1)


@torch.no_grad()
def slstm_outputs(module: Any, inputs: Tensor, trajectory: Trajectory) -> Tensor:
    """Return what the cell returns first, in the layout that it is configured to."""
    y = trajectory.states[..., : module.config.hidden_size].transpose(0, 1)
    out: Tensor = module._permute_output(y.contiguous())
    return out
