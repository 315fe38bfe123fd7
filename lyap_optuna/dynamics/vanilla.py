"""Vanilla recurrent layer, ``nn.RNN`` with tanh or relu (paper, equations 1 and 4)."""

import torch
from torch import Tensor

from lyap_optuna.dynamics.gated import (
    GatedCell,
    LayerWeights,
    Linearisation,
    log_tanh_slope,
    previous_states,
    tanh_slope,
)
from lyap_optuna.dynamics.linalg import log_abs_det, wide


class VanillaCell(GatedCell):
    """h' = phi(a), a = W x + U h + b; J = D[phi'(a)] U.

    log|det J| = sum log|phi'(a)| + log|det U|: elementwise, one determinant per model.

    Args:
        weights: The layer's weights.
        nonlinearity: ``"tanh"`` or ``"relu"``.
    """

    gates = 1

    def __init__(self, weights: LayerWeights, nonlinearity: str) -> None:
        super().__init__(weights)
        self.nonlinearity = nonlinearity

    def linearise(self, inputs: Tensor, initial: tuple[Tensor, ...]) -> Linearisation:
        """Run the layer and linearise it; see the class for the equations."""
        fused = torch.rnn_tanh if self.nonlinearity == "tanh" else torch.rnn_relu
        has_bias = self.weights.bias_ih is not None
        outputs = fused(
            inputs,
            initial[0].unsqueeze(0).contiguous(),
            self.weights.tensors(),
            has_bias,
            1,
            0.0,
            False,
            False,
            True,
        )[0]
        from_input, from_state = self.preactivations(inputs, previous_states(initial[0], outputs))
        a = from_input + from_state  # (batch, time, 1, units)
        if self.nonlinearity == "tanh":
            slope, log_slope = tanh_slope(a), log_tanh_slope(a)
        else:
            slope = (a > 0).to(a)
            log_slope = wide(slope).log()
        determinant = log_abs_det(wide(self.weights.hh).unsqueeze(0))
        return Linearisation(
            outputs=outputs,
            states=outputs,
            gain=slope.unsqueeze(2),
            closed_log_abs_det=log_slope.sum((-2, -1)) + determinant,
        )
