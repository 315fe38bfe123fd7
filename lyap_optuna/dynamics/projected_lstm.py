"""``nn.LSTM`` with ``proj_size``: h' = W_hr (o tanh c'), by automatic differentiation."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics.autodiff import AutodiffTrajectory
from lyap_optuna.dynamics.base import Dynamics, Trajectory, computing_dtype


class ProjectedLSTMDynamics(Dynamics):
    """An LSTM whose output is projected from N units to P.

    ``state="hidden"`` follows h with c held (P exponents a layer), ``"full"`` (h, c) (P + N a
    layer). There the step is a function of the whole state; for ``"hidden"`` the held c reaches
    it as part of the input.

    Args:
        module: The layer.
        state: ``"hidden"`` or ``"full"``.
    """

    def __init__(self, module: nn.LSTM, state: str) -> None:
        self._dtype = computing_dtype(cast(Tensor, module.weight_hh_l0).dtype)
        self.layers = [
            [
                cast(Tensor, getattr(module, f"{kind}_l{i}")).detach().to(self._dtype)
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
                if hasattr(module, f"{kind}_l{i}")
            ]
            for i in range(module.num_layers)
        ]
        self.full = state == "full"
        self.outputs, self.cells = module.proj_size, module.hidden_size
        self.input_size = module.input_size
        width = self.outputs + (self.cells if self.full else 0)
        self.state_size = width * module.num_layers

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """The weights' device."""
        return self.layers[0][0].device

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
        """Run the layers step by step and linearise them.

        Args:
            inputs: ``(batch, time, features)``.
            initial_state: ``(h, c)`` as ``nn.LSTM`` takes it: ``(layers, batch, P)`` and
                ``(layers, batch, N)``.
        """
        n, batch = len(self.layers), inputs.shape[0]
        whole = ProjectedLSTMDynamics.__new__(ProjectedLSTMDynamics)
        whole.__dict__.update(self.__dict__, full=True)
        width = self.outputs + self.cells
        start = inputs.new_zeros(batch, n, width)
        if initial_state is not None:
            try:
                h, c = (part.detach().to(inputs).transpose(0, 1) for part in initial_state)
                start = torch.cat([h, c], dim=2).expand(batch, n, width)
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                raise ValueError(
                    f"initial_state must be (h, c) of shapes ({n}, {batch}, {self.outputs}) and "
                    f"({n}, {batch}, {self.cells}), as the module's forward takes it."
                ) from None
        step = torch.func.vmap(whole._step)
        states = [start.reshape(batch, -1)]
        for t in range(inputs.shape[1]):
            states.append(step(states[-1], inputs[:, t]))
        path = torch.stack(states, dim=1)
        if self.full:
            return AutodiffTrajectory(self._step, inputs, path)
        by_layer = path.view(batch, -1, n, width)
        held = by_layer[:, :-1, :, self.outputs :].flatten(2)
        path = by_layer[..., : self.outputs].flatten(2)
        return AutodiffTrajectory(self._step, torch.cat([inputs, held], dim=2), path)
