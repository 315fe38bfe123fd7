"""Long short-term memory, ``nn.LSTM``, with PyTorch's gates (i, f, g, o); paper, appendix B.1."""

from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lyap_optuna.dynamics.gated import (
    FusedCell,
    LayerWeights,
    Linearisation,
    log_sigmoid_slope,
    previous_states,
    sigmoid_slope,
    tanh_slope,
)
from lyap_optuna.dynamics.linalg import log_abs_det, wide


class LSTMCell(FusedCell):
    """c' = f c + i g, h' = o tanh c' (the paper's printed c_t is a misprint).

    M = dc'/dh = D[c f (1 - f)] U_f + D[g i (1 - i)] U_i + D[i (1 - g^2)] U_g.

    * ``state="hidden"``, the paper's: J = D[o (1 - o) tanh c'] U_o + D[o (1 - tanh^2 c')] M with
      c held; N exponents. The product is not the tangent map of any dynamics: the cell path D[f]
      is missing.
    * ``state="full"``: over (h, c), [[J, D[o (1 - tanh^2 c') f]], [M, D[f]]]; 2N exponents, and
      log|det| = sum log f + sum log(o (1 - o) |tanh c'|) + log|det U_o| by a Schur complement.

    Args:
        weights: The layer's weights.
        state: ``"hidden"`` or ``"full"``.
    """

    gates = 4
    kernel = "lstm"
    n_initial = 2

    def __init__(self, weights: LayerWeights, state: str) -> None:
        super().__init__(weights)
        self.blocks = 2 if state == "full" else 1

    @cached_property
    def _log_abs_det(self) -> Tensor:
        return log_abs_det(wide(self.weights.hh[3 * self.units :]).unsqueeze(0))

    def linearise(
        self, inputs: Tensor, initial: tuple[Tensor, ...], outputs: Tensor
    ) -> Linearisation:
        """Linearise the layer along its states; see the class for the equations."""
        from_input, from_state = self.preactivations(inputs, previous_states(initial[0], outputs))
        a_i, a_f, a_g, a_o = (from_input + from_state).unbind(2)
        i, f, g, o = torch.sigmoid(a_i), torch.sigmoid(a_f), torch.tanh(a_g), torch.sigmoid(a_o)
        cells = scan(f, i * g, initial[1])
        previous = previous_states(initial[1], cells)
        # dc' over the gates (i, f, g, o), and what of it reaches h'
        to_cell = torch.stack(
            [
                g * sigmoid_slope(a_i),
                previous * sigmoid_slope(a_f),
                i * tanh_slope(a_g),
                torch.zeros_like(a_o),
            ],
            dim=2,
        )
        squashed = torch.tanh(cells)
        rebuilt = o * squashed
        through = o * tanh_slope(cells)
        to_hidden = through.unsqueeze(2) * to_cell
        to_hidden[:, :, 3] = sigmoid_slope(a_o) * squashed
        if self.blocks == 1:
            return Linearisation(outputs=rebuilt, states=outputs, gain=to_hidden.unsqueeze(2))
        zero = torch.zeros_like(f)
        carry = torch.stack([torch.stack([zero, through * f], 2), torch.stack([zero, f], 2)], 2)
        elementwise = log_sigmoid_slope(a_o) + wide(cells).tanh().abs().log() - softplus(-wide(a_f))
        return Linearisation(
            outputs=rebuilt,
            states=torch.cat([outputs, cells], dim=2),
            gain=torch.stack([to_hidden, to_cell], dim=2),
            carry=carry,
            closed_log_abs_det=elementwise.sum(-1) + self._log_abs_det,
        )


def scan(decay: Tensor, increment: Tensor, initial: Tensor) -> Tensor:
    """Return c_t = decay_t c_{t-1} + increment_t, ``(batch, time, units)``.

    The fused kernel returns only the last cell state.
    """
    cells = torch.empty_like(increment)
    c = initial
    for t in range(increment.shape[1]):
        c = torch.addcmul(increment[:, t], decay[:, t], c)
        cells[:, t] = c
    return cells
