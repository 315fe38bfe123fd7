"""Vanilla recurrent layer, ``nn.RNN`` with tanh or relu (paper, equations 1 and 4)."""

from functools import cached_property

import torch
from torch import Tensor

from lyap_optuna.dynamics.gated import (
    FusedCell,
    LayerWeights,
    Linearisation,
    log_tanh_slope,
    previous_states,
    tanh_slope,
)
from lyap_optuna.dynamics.linalg import log_abs_det, wide


class VanillaCell(FusedCell):
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
        self.kernel = f"rnn_{nonlinearity}"  # type: ignore[misc]

    @cached_property
    def _log_abs_det(self) -> Tensor:
        return log_abs_det(wide(self.weights.hh).unsqueeze(0))

    def linearise(
        self, inputs: Tensor, initial: tuple[Tensor, ...], outputs: Tensor
    ) -> Linearisation:
        """Linearise the layer along its states; see the class for the equations."""
        from_input, from_state = self.preactivations(inputs, previous_states(initial[0], outputs))
        a = from_input + from_state  # (batch, time, 1, units)
        if self.nonlinearity == "tanh":
            slope, log_slope = tanh_slope(a), log_tanh_slope(a)
        else:
            slope = (a > 0).to(a)
            log_slope = wide(slope).log()
        return Linearisation(
            outputs=getattr(torch, self.nonlinearity)(a.squeeze(2)),
            states=outputs,
            gain=slope.unsqueeze(2),
            closed_log_abs_det=log_slope.sum((-2, -1)) + self._log_abs_det,
        )
