"""An antisymmetric recurrent layer (Chang et al., 2019): an example of a hand-written cell."""

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics.base import computing_dtype
from lyap_optuna.dynamics.gated import (
    GatedCell,
    LayerWeights,
    Linearisation,
    StackedDynamics,
    previous_states,
    tanh_slope,
)


class AntisymmetricRNN(nn.Module):
    """h' = h + epsilon tanh((W - W^T - gamma I) h + V x + b): near-critical by construction.

    Args:
        input_size: Features of an input.
        hidden_size: Units.
        epsilon: Step size.
        gamma: Diffusion, which makes up for the integrator's growth.
    """

    def __init__(
        self, input_size: int, hidden_size: int, epsilon: float = 0.1, gamma: float = 0.1
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(hidden_size, hidden_size) / hidden_size**0.5)
        self.input = nn.Linear(input_size, hidden_size)
        self.epsilon, self.gamma = epsilon, gamma

    def recurrent_weight(self) -> Tensor:
        """Return W - W^T - gamma I."""
        eye = torch.eye(len(self.weight), dtype=self.weight.dtype, device=self.weight.device)
        return self.weight - self.weight.T - self.gamma * eye

    def forward(self, x: Tensor) -> Tensor:
        """Return the states of all steps, ``(batch, time, units)``."""
        recurrent, drive = self.recurrent_weight(), self.input(x)
        h = drive.new_zeros(drive.shape[0], drive.shape[2])
        states = []
        for t in range(drive.shape[1]):
            h = h + self.epsilon * torch.tanh(h @ recurrent.T + drive[:, t])
            states.append(h)
        return torch.stack(states, dim=1)


class AntisymmetricCell(GatedCell):
    """One gate: gain epsilon tanh'(a), and each unit carries itself."""

    gates = 1

    def __init__(self, weights: LayerWeights, epsilon: float) -> None:
        super().__init__(weights)
        self.epsilon = epsilon

    def run(self, inputs: Tensor, initial: tuple[Tensor, ...]) -> Tensor:
        """Run the layer."""
        w = self.weights
        drive = torch.nn.functional.linear(inputs, w.ih, w.bias_ih)
        h, states = initial[0], []
        for t in range(drive.shape[1]):
            h = h + self.epsilon * torch.tanh(h @ w.hh.T + drive[:, t])
            states.append(h)
        return torch.stack(states, dim=1)

    def linearise(
        self, inputs: Tensor, initial: tuple[Tensor, ...], outputs: Tensor
    ) -> Linearisation:
        """Linearise the layer along its states."""
        previous = previous_states(initial[0], outputs)
        from_input, from_state = self.preactivations(inputs, previous)
        a = from_input + from_state
        return Linearisation(
            outputs=previous + self.epsilon * torch.tanh(a.squeeze(2)),
            states=outputs,
            gain=self.epsilon * tanh_slope(a).unsqueeze(2),
            carry=torch.ones_like(outputs)[:, :, None, None],
        )


def antisymmetric_dynamics(module: nn.Module, state: str) -> StackedDynamics:
    """Build the dynamics of an :class:`AntisymmetricRNN`."""
    assert isinstance(module, AntisymmetricRNN)
    dtype = computing_dtype(module.weight.dtype)
    tensors = (module.input.weight, module.recurrent_weight(), module.input.bias)
    weights = LayerWeights(*(tensor.detach().to(dtype) for tensor in tensors))
    return StackedDynamics([AntisymmetricCell(weights, module.epsilon)])
