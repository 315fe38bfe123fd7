"""A minimal gated unit (Zhou et al., 2016): an example of a step that is differentiated for you."""

import copy

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics.autodiff import RecurrentDynamics
from lyap_optuna.dynamics.base import computing_dtype


class MinimalGatedUnit(nn.Module):
    """f = sigmoid(W_f x + U_f h + b_f), h' = (1 - f) h + f tanh(W x + U (f h) + b).

    Args:
        input_size: Features of an input.
        hidden_size: Units.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.gate = nn.Linear(input_size + hidden_size, hidden_size)
        self.candidate = nn.Linear(input_size + hidden_size, hidden_size)

    def step(self, h: Tensor, x: Tensor) -> Tensor:
        """Return the next state, ``(..., units)``."""
        f = torch.sigmoid(self.gate(torch.cat([x, h], dim=-1)))
        return (1 - f) * h + f * torch.tanh(self.candidate(torch.cat([x, f * h], dim=-1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the states of all steps, ``(batch, time, units)``."""
        h = x.new_zeros(x.shape[0], self.hidden_size)
        states = []
        for t in range(x.shape[1]):
            h = self.step(h, x[:, t])
            states.append(h)
        return torch.stack(states, dim=1)


def minimal_gated_dynamics(module: nn.Module, state: str) -> RecurrentDynamics:
    """Build the dynamics of a :class:`MinimalGatedUnit`."""
    assert isinstance(module, MinimalGatedUnit)
    module = copy.deepcopy(module).to(computing_dtype(module.gate.weight.dtype))
    weight = module.gate.weight
    return RecurrentDynamics(
        module.step, module.hidden_size, dtype=weight.dtype, device=weight.device
    )
