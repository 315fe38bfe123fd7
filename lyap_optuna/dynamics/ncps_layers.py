"""What CfC and LTC of ``ncps`` share: calls, time spans, and the memory cell in front.

With ``mixed_memory`` (Lechner and Hasani, 2020) an LSTM cell acts on the state first, at every
step: (h~, c') = LSTM(x, h, c), then h' = cell(x, h~). The state is (h, c).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lyap_optuna.dynamics._errors import NotMeasurableError
from lyap_optuna.dynamics._libraries import arguments, extended
from lyap_optuna.dynamics.base import Trajectory
from lyap_optuna.dynamics.gated import LayerTrajectory, LayerWeights, Linearisation
from lyap_optuna.dynamics.linalg import wide
from lyap_optuna.dynamics.lstm import LSTMCell


def read_ncps_calls(module: Any, calls: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Return inputs and initial state of a ``CfC`` or an ``LTC``.

    Returns:
        ``(batch, time, features + n)``, the last n the time spans, one for all units or one each;
        and the flat initial state, (h, c) with a memory cell, or None for zeros.
    """
    call = arguments(module, calls[0])
    x, spans, state = call["input"], call.get("timespans"), call.get("hx")
    if not isinstance(x, Tensor) or x.dim() not in (2, 3):
        raise NotMeasurableError(
            f"{type(module).__name__} was called with {type(x).__name__}, not with sequences."
        )
    batched = x.dim() == 3
    if not batched:
        x, spans = x.unsqueeze(0), None if spans is None else spans.unsqueeze(0)
    elif not module.batch_first:
        x, spans = x.transpose(0, 1), None if spans is None else spans.transpose(0, 1)
    if spans is None:
        columns = x.new_ones(1, 1, 1)
    else:
        # As the layer reads them: squeezed, then broadcast against (batch, units).
        steps = [spans[:, t].squeeze() for t in range(x.shape[1])]
        if steps[0].dim() == 0:
            columns = torch.stack(steps).view(1, -1, 1)
        else:
            sizes = getattr(module.rnn_cell, "layer_sizes", [module.state_size])
            columns = torch.stack(
                [torch.cat([s.expand(x.shape[0], n) for n in sizes], dim=1) for s in steps], dim=1
            )
    if state is not None:
        parts = state if module.use_mixed else (state,)
        state = torch.cat([part if batched else part.unsqueeze(0) for part in parts], dim=1)
    return extended(x, columns), state


def laid_out(module: Any, readout: Tensor) -> Tensor:
    """Lay a readout ``(batch, time, features)`` out as the module returns it."""
    if not module.return_sequences:
        return readout[:, -1]
    return readout if module.batch_first else readout.transpose(0, 1)


class MemoryCell:
    """The LSTM cell in front; its gates are in the order (g, i, f, o), its forget bias 1 more.

    Args:
        module: The ``LSTMCell`` of ncps.
    """

    def __init__(self, module: Any) -> None:
        n = module.hidden_size
        order = torch.cat([torch.arange(g * n, (g + 1) * n) for g in (1, 2, 0, 3)])
        ih, hh = module.input_map.weight.detach(), module.recurrent_map.weight.detach()
        order = order.to(ih.device)
        bias = module.input_map.bias.detach()[order]
        bias[n : 2 * n] += 1
        self._cell = LSTMCell(
            LayerWeights(ih[order], hh[order], bias, torch.zeros_like(bias)), "full"
        )

    def drive(self, x: Tensor) -> Tensor:
        """Return what the inputs of all steps contribute, ``(batch, time, 4 * units)``."""
        w = self._cell.weights
        return torch.nn.functional.linear(x, w.ih, w.bias_ih)

    def step(self, drive: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return (h~, c')."""
        i, f, g, o = torch.addmm(drive, h, self._cell.weights.hh.T).chunk(4, dim=1)
        c = torch.addcmul(torch.sigmoid(f) * c, torch.sigmoid(i), torch.tanh(g))
        return torch.sigmoid(o) * torch.tanh(c), c

    def linearise(self, x: Tensor, before: Tensor) -> LayerTrajectory:
        """Linearise all steps, each from the state (h, c) before it."""
        h, c = before.flatten(0, 1).chunk(2, dim=1)
        one, initial = x.reshape(-1, 1, x.shape[2]), (h.contiguous(), c.contiguous())
        flat = self._cell.linearise(one, initial, self._cell.run(one, initial))
        parts = {name: value for name, value in vars(flat).items() if value is not None}
        shape = before.shape[:2]
        joined = {name: value.squeeze(1).unflatten(0, shape) for name, value in parts.items()}
        return LayerTrajectory(self._cell.weights, Linearisation(**joined))


class MixedMemoryTrajectory(Trajectory):
    """A memory cell, then another cell on its output: J = [[C L_h], [L_c]].

    Args:
        memory: The memory cell along the states, L over (h, c).
        cell: What acts on h~, C.
    """

    def __init__(self, memory: LayerTrajectory, cell: Trajectory) -> None:
        self._memory, self._cell = memory, cell
        self._units = cell.state_size
        self.states = torch.cat([cell.states, memory.states[..., self._units :]], dim=2)

    def select(self, inputs: slice) -> "MixedMemoryTrajectory":
        """Return the trajectory of some of the inputs."""
        return MixedMemoryTrajectory(self._memory.select(inputs), self._cell.select(inputs))

    def tangent(self, t: int, vectors: Tensor) -> Tensor:
        """Apply the two maps one after the other."""
        image = self._memory.tangent(t, vectors)
        hidden = self._cell.tangent(t, image[..., : self._units])
        return torch.cat([hidden, image[..., self._units :]], dim=2)

    def jacobians(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return C L_h over L_c."""
        memory = self._memory.jacobians(inputs, times)
        hidden = self._cell.jacobians(inputs, times) @ memory[:, : self._units]
        return torch.cat([hidden, memory[:, self._units :]], dim=1)

    def log_abs_det(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return the sum of the two maps' log-determinants."""
        memory = self._memory.closed_log_abs_det
        assert memory is not None
        return memory[inputs, times] + wide(self._cell.log_abs_det(inputs, times))


def stacked(states: Sequence[Tensor], before: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states of all steps and those before them, each ``(batch, time, state)``."""
    after = torch.stack(list(states), dim=1)
    return after, torch.cat([before.unsqueeze(1), after[:, :-1]], dim=1)
