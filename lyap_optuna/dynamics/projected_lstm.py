"""``nn.LSTM`` with ``proj_size``: h' = W_hr (o tanh c'), by automatic differentiation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from lyap_optuna.dynamics._fused import run_kernel
from lyap_optuna.dynamics.autodiff import AutodiffTrajectory
from lyap_optuna.dynamics.base import Dynamics, Trajectory, computing_dtype
from lyap_optuna.dynamics.gated import previous_states
from lyap_optuna.dynamics.lstm import scan


class ProjectedLSTMDynamics(Dynamics):
    """An LSTM whose output is projected from N units to P.

    ``state="hidden"`` follows h with c held (P exponents a layer), ``"full"`` (h, c) (P + N a
    layer). There the step is a function of the whole state; for ``"hidden"`` the held c reaches
    it as part of the input.

    Args:
        weights: Of each layer, in PyTorch's order: W, U, the biases if there are any, W_hr.
        state: ``"hidden"`` or ``"full"``.
    """

    def __init__(self, weights: Sequence[Sequence[Tensor]], state: str) -> None:
        dtype = computing_dtype(weights[0][0].dtype)
        self.dtype, self.device = dtype, weights[0][0].device
        self.layers = [[w.detach().to(dtype) for w in layer] for layer in weights]
        self.full = state == "full"
        self.cells, self.outputs = len(weights[0][0]) // 4, len(weights[0][-1])
        self.input_size = weights[0][0].shape[1]
        width = self.outputs + (self.cells if self.full else 0)
        self.state_size = width * len(self.layers)

    def _step(self, state: Tensor, x: Tensor) -> Tensor:
        n = len(self.layers)
        if self.full:
            h, c = state.view(n, -1).split([self.outputs, self.cells], dim=1)
        else:
            h, c = state.view(n, self.outputs), x[self.input_size :].view(n, self.cells)
        x = x[: self.input_size]
        images = []
        for i, (ih, hh, *biases, hr) in enumerate(self.layers):
            a_i, a_f, a_g, a_o = (ih @ x + hh @ h[i] + sum(biases)).chunk(4)
            cell = torch.sigmoid(a_f) * c[i] + torch.sigmoid(a_i) * torch.tanh(a_g)
            x = hr @ (torch.sigmoid(a_o) * torch.tanh(cell))
            images += [x, cell] if self.full else [x]
        return torch.cat(images)

    def linearise(self, inputs: Tensor, initial_state: Any = None) -> Trajectory:
        """Run the layers and linearise them.

        Args:
            inputs: ``(batch, time, features)``.
            initial_state: ``(h, c)`` as ``nn.LSTM`` takes it: ``(layers, batch, P)`` and
                ``(layers, batch, N)``.
        """
        n, batch = len(self.layers), inputs.shape[0]
        h = inputs.new_zeros(n, batch, self.outputs)
        c = inputs.new_zeros(n, batch, self.cells)
        if initial_state is not None:
            try:
                given = (part.detach().to(inputs) for part in initial_state)
                h, c = (part.expand_as(zero) for part, zero in zip(given, (h, c), strict=True))
            except (AttributeError, RuntimeError, TypeError, ValueError):
                raise ValueError(
                    f"initial_state must be (h, c) of shapes ({n}, {batch}, {self.outputs}) and "
                    f"({n}, {batch}, {self.cells}), as the module's forward takes it."
                ) from None
        io = []
        for i, weights in enumerate(self.layers):
            initial = (h[i : i + 1].contiguous(), c[i : i + 1].contiguous())
            outputs = run_kernel("lstm", inputs, initial, weights)
            io.append((inputs, outputs))
            inputs = outputs
        return self.along(io, [(h[i], c[i]) for i in range(n)])[0]

    def along(
        self, io: Sequence[tuple[Tensor, Tensor]], initial: Sequence[tuple[Tensor, ...]]
    ) -> tuple[Trajectory, list[Tensor]]:
        """Linearise the layers along their states.

        Args:
            io: Inputs and outputs of each layer, ``(batch, time, ...)``.
            initial: h and c before the first step, of each layer, ``(batch, ...)``.

        Returns:
            The trajectory, and the outputs of each layer as the equations give them.
        """
        paths, held, rebuilt = [], [], []
        for (ih, hh, *biases, hr), (inputs, outputs), (h, c) in zip(
            self.layers, io, initial, strict=True
        ):
            a = linear(inputs, ih) + linear(previous_states(h, outputs), hh) + sum(biases)
            a_i, a_f, a_g, a_o = a.chunk(4, dim=2)
            cells = scan(torch.sigmoid(a_f), torch.sigmoid(a_i) * torch.tanh(a_g), c)
            rebuilt.append(linear(torch.sigmoid(a_o) * torch.tanh(cells), hr))
            path = torch.cat([h.unsqueeze(1), outputs], dim=1)
            if self.full:
                path = torch.cat([path, torch.cat([c.unsqueeze(1), cells], dim=1)], dim=2)
            paths.append(path)
            held.append(previous_states(c, cells))
        driving = [io[0][0], *([] if self.full else held)]
        path = torch.cat(paths, dim=2)
        return AutodiffTrajectory(self._step, torch.cat(driving, dim=2), path), rebuilt
