"""Gated recurrent unit, ``nn.GRU``, with PyTorch's gates (r, z, n) and two bias vectors."""

import torch
from torch import Tensor

from lyap_optuna.dynamics.gated import (
    FusedCell,
    Linearisation,
    previous_states,
    sigmoid_slope,
    tanh_slope,
)


class GRUCell(FusedCell):
    """h' = (1 - z) n + z h, n = tanh(W_n x + b_in + r q), q = U_n h + b_hn.

    J = D[z] + D[(h - n) z (1 - z)] U_z + D[(1 - z)(1 - n^2)] (D[r] U_n + D[q r (1 - r)] U_r).
    """

    gates = 3
    kernel = "gru"

    def linearise(
        self, inputs: Tensor, initial: tuple[Tensor, ...], outputs: Tensor
    ) -> Linearisation:
        """Linearise the layer along its states; see the class for the equations."""
        previous = previous_states(initial[0], outputs)
        from_input, from_state = self.preactivations(inputs, previous)
        a_r, a_z = (from_input[:, :, g] + from_state[:, :, g] for g in (0, 1))
        r, z, q = torch.sigmoid(a_r), torch.sigmoid(a_z), from_state[:, :, 2]
        a_n = from_input[:, :, 2] + r * q
        to_n = torch.sigmoid(-a_z) * tanh_slope(a_n)
        to_r = to_n * q * sigmoid_slope(a_r)
        n = torch.tanh(a_n)
        to_z = (previous - n) * sigmoid_slope(a_z)
        return Linearisation(
            outputs=torch.lerp(n, previous, z),
            states=outputs,
            gain=torch.stack([to_r, to_z, to_n * r], dim=2).unsqueeze(2),
            input_gain=torch.stack([to_r, to_z, to_n], dim=2).unsqueeze(2),
            carry=z.unsqueeze(2).unsqueeze(2),
        )
