"""Closed-form continuous-time networks (Hasani et al., 2022), ``ncps.torch.CfC``.

z = backbone([x, h]) (a small perceptron, or [x, h] itself), then heads p_g = V_g z + b_g and

    default:  h' = (1 - s) tanh p_1 + s tanh p_2,   s = sigmoid(t p_3 + p_4)   with time span t
    no_gate:  h' = tanh p_1 + s tanh p_2
    pure:     h' = A - A exp(-t (|w| + |p_1|)) p_1

A wired one is a stack of such cells without backbones and with sparse V_1 and V_2, whose states are
the layers' in order; a cell sees the state of the layer below at the same step.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lyap_optuna.dynamics._errors import NotMeasurableError
from lyap_optuna.dynamics._libraries import computing, device_of, parameter_dtype
from lyap_optuna.dynamics.base import Dynamics, Trajectory, initial_of
from lyap_optuna.dynamics.gated import (
    LayerTrajectory,
    LayerWeights,
    Linearisation,
    StackTrajectory,
    sigmoid_slope,
    tanh_slope,
)
from lyap_optuna.dynamics.ncps_layers import (
    MemoryCell,
    MixedMemoryTrajectory,
    laid_out,
    stacked,
)


def _silu_slope(a: Tensor) -> Tensor:
    s = torch.sigmoid(a)
    return s * (1 + a * (1 - s))


def _gelu_slope(a: Tensor) -> Tensor:
    density = torch.exp(-0.5 * a * a) * 0.3989422804014327
    return 0.5 * (1 + torch.erf(a * 0.7071067811865476)) + a * density


_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "LeCun": lambda a: 1.7159 * 0.666 * tanh_slope(0.666 * a),
    "Tanh": tanh_slope,
    "ReLU": lambda a: (a > 0).to(a),
    "SiLU": _silu_slope,
    "GELU": _gelu_slope,
}
"""Derivatives of a backbone's activations."""


class CfCCell:
    """One ``CfCCell`` of ncps.

    Args:
        module: The cell, in the dtype to compute in.

    Raises:
        NotMeasurableError: The backbone's activation is not one of ncps's own.
    """

    def __init__(self, module: Any) -> None:
        self.units: int = module.hidden_size
        self.mode: str = module.mode
        self._module = module
        pure = self.mode == "pure"
        names = ("ff1",) if pure else ("ff1", "ff2", "time_a", "time_b")
        heads = [getattr(module, name) for name in names]
        mask = module.sparsity_mask
        weights = [
            head.weight if mask is None or name.startswith("time") else head.weight * mask
            for name, head in zip(names, heads, strict=True)
        ]
        self.heads = torch.cat(weights).detach()
        self.head_bias = torch.cat([head.bias for head in heads]).detach()
        layers = [] if module.backbone is None else list(module.backbone)
        layers = [layer for layer in layers if not isinstance(layer, nn.Dropout)]
        self.hidden: list[Any] = layers[::2]
        self.activations: list[Any] = layers[1::2]
        for activation in self.activations:
            if type(activation).__name__ not in _SLOPES:
                raise NotMeasurableError(
                    f"CfC with the activation {type(activation).__name__}: its derivative is not "
                    f"known, only those of {', '.join(_SLOPES)}."
                )
        self._first = self.hidden[0].weight if self.hidden else self.heads
        self._first_bias = self.hidden[0].bias if self.hidden else self.head_bias
        self._ih = self._first[:, : -self.units].detach()
        self._hh = self._first[:, -self.units :].detach().contiguous()
        # A backbone of one layer, with the constants of a LeCun tanh in the weights around it.
        self._folded: tuple[Tensor, Tensor] | None = None
        if len(self.activations) == 1 and type(self.activations[0]).__name__ == "LeCun":
            self._folded = (0.666 * self._hh.T, 1.7159 * self.heads.T)

    def drive(self, x: Tensor) -> Tensor:
        """Return what the inputs contribute to the first layer of weights."""
        return linear(x, self._ih, self._first_bias)

    def step(self, drive: Tensor, h: Tensor, spans: Tensor) -> Tensor:
        """Return h' of a batch, ``(batch, units)``."""
        if self._folded is not None:
            recurrent, heads = self._folded
            z = torch.addmm(drive, h, recurrent, beta=0.666).tanh_()
            return self._combined(torch.addmm(self.head_bias, z, heads), spans)
        return self._combined(self._heads_of(torch.addmm(drive, h, self._hh.T)), spans)

    def _heads_of(self, z: Tensor, slopes: list[Tensor] | None = None) -> Tensor:
        if not self.hidden:
            return z
        for i, activation in enumerate(self.activations):
            if i:
                z = self.hidden[i](z)
            if slopes is not None:
                slopes.append(_SLOPES[type(activation).__name__](z))
            z = activation(z)
        return linear(z, self.heads, self.head_bias)

    def _combined(self, p: Tensor, spans: Tensor) -> Tensor:
        n = self.units
        if self.mode == "pure":
            amplitude, decay = self._module.A, self._module.w_tau.abs()
            out: Tensor = amplitude - amplitude * torch.exp(-spans * (decay + p.abs())) * p
            return out
        first, second = torch.tanh(p[..., : 2 * n]).chunk(2, dim=-1)
        s = torch.sigmoid(torch.addcmul(p[..., 3 * n :], p[..., 2 * n : 3 * n], spans))
        if self.mode == "no_gate":
            return torch.addcmul(first, s, second)
        return torch.lerp(first, second, s)

    def _gains(self, p: Tensor, spans: Tensor) -> Tensor:
        """Return dh'/dp, ``(batch, time, heads, units)``."""
        if self.mode == "pure":
            decay = torch.exp(-spans * (self._module.w_tau.abs() + p.abs()))
            slope: Tensor = -self._module.A * decay * (1 - spans * p.abs())
            return slope.unsqueeze(2)
        p1, p2, p3, p4 = p.chunk(4, dim=-1)
        first, second, a = torch.tanh(p1), torch.tanh(p2), torch.addcmul(p4, p3, spans)
        s = torch.sigmoid(a)
        kept = torch.ones_like(s) if self.mode == "no_gate" else torch.sigmoid(-a)
        moved = sigmoid_slope(a) * (second if self.mode == "no_gate" else second - first)
        return torch.stack([kept * tanh_slope(p1), s * tanh_slope(p2), moved * spans, moved], dim=2)

    def linearise(self, x: Tensor, before: Tensor, after: Tensor, spans: Tensor) -> LayerTrajectory:
        """Linearise all steps, given the states before and after them."""
        return self.linearise_along(x, before, after, spans)[0]

    def linearise_along(
        self, x: Tensor, before: Tensor, after: Tensor, spans: Tensor
    ) -> tuple[LayerTrajectory, Tensor]:
        """Linearise all steps; return also where one step leads from each state before."""
        slopes: list[Tensor] = []
        p = self._heads_of(self.drive(x) + linear(before, self._hh), slopes)
        trajectory = self._linearised(p, slopes, after, spans)
        return trajectory, self._combined(p, spans)

    def _linearised(
        self, p: Tensor, slopes: list[Tensor], after: Tensor, spans: Tensor
    ) -> LayerTrajectory:
        gain = self._gains(p, spans).unsqueeze(2)
        linearisation = Linearisation(outputs=after, states=after, gain=gain)
        weights = LayerWeights(self._ih, self._hh)
        if not self.hidden:
            return LayerTrajectory(weights, linearisation)
        deeper = [layer.weight.detach() for layer in self.hidden[1:]]
        return BackboneTrajectory(weights, linearisation, slopes, [*deeper, self.heads])


class BackboneTrajectory(LayerTrajectory):
    """A cell whose gates see its state through a perceptron.

    J = sum_g D[gain_g] V_g D[slope_L] W_L ... D[slope_1] W_1, with W_1 = (W_x, W_h).

    Args:
        weights: W_x and W_h.
        linearisation: States and the gains of the heads.
        slopes: The activations' derivatives, each ``(batch, time, units of the layer)``.
        deeper: The weights of W_2 ... W_L and of the heads.
    """

    def __init__(
        self,
        weights: LayerWeights,
        linearisation: Linearisation,
        slopes: list[Tensor],
        deeper: list[Tensor],
    ) -> None:
        super().__init__(weights, linearisation)
        self._slopes, self._deeper = slopes, deeper

    def select(self, inputs: slice) -> "BackboneTrajectory":
        """Return the trajectory of some of the inputs."""
        slopes = [slope[inputs] for slope in self._slopes]
        selected = self._linearisation.select(inputs)
        return BackboneTrajectory(self._weights, selected, slopes, self._deeper)

    def tangent(self, t: int, vectors: Tensor, input_vectors: Tensor | None = None) -> Tensor:
        """Push vectors through the perceptron's layers and the heads."""
        image = linear(vectors, self._weights.hh)
        if input_vectors is not None:
            image += linear(input_vectors, self._weights.ih)
        for slope, weight in zip(self._slopes, self._deeper, strict=True):
            image = linear(image * slope[:, t].unsqueeze(1), weight)
        gain = self._gain[:, t, 0].unsqueeze(1)  # (batch, 1, heads, units)
        return (image.view(*image.shape[:2], *gain.shape[2:]) * gain).sum(2)

    def _weighted(self, gain: Tensor, name: str, rows: int) -> Tensor:
        raise AssertionError

    def jacobians(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return ds'/ds of pairs."""
        return self._through(inputs, times) @ self._weights.hh

    def input_jacobians(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return ds'/dx of pairs."""
        return self._through(inputs, times) @ self._weights.ih

    def _through(self, inputs: Tensor, times: Tensor) -> Tensor:
        gain = self._gain[inputs, times, 0]  # (n, heads, units)
        heads = self._deeper[-1].view(*gain.shape[1:], -1)
        out = torch.einsum("ngu,guz->nuz", gain, heads)
        for i in range(len(self._slopes) - 1, -1, -1):
            out = out * self._slopes[i][inputs, times].unsqueeze(1)
            if i:
                out = out @ self._deeper[i - 1]
        return out


class CfCDynamics(Dynamics):
    """The recurrence of a ``CfC``: one cell, or several wired in sequence; a memory cell or none.

    Args:
        module: The layer, in the dtype to compute in.
    """

    def __init__(self, module: Any) -> None:
        wired = getattr(module.rnn_cell, "_layers", None)
        self.cells = [CfCCell(cell) for cell in (wired or [module.rnn_cell])]
        self.memory = MemoryCell(module.lstm) if module.use_mixed else None
        self.units: int = module.state_size
        self.state_size = 2 * self.units if module.use_mixed else self.units
        self._features: int = module.input_size
        self.dtype, self.device = parameter_dtype(module), device_of(module)

    @torch.no_grad()
    def linearise(self, inputs: Tensor, initial_state: Any = None) -> Trajectory:
        """Run the layer and linearise it.

        Args:
            inputs: ``(batch, time, features + n)``, the last n the time spans, one for all units
                or one each.
            initial_state: h, with a memory cell (h, c), as a pair or ``(batch, state)``; zeros
                where it is None.
        """
        x, spans = inputs[..., : self._features], inputs[..., self._features :]
        initial = initial_of(initial_state, inputs.shape[0], self.state_size, inputs)
        sizes = [cell.units for cell in self.cells]
        by_cell = spans.split(sizes, dim=2) if spans.shape[2] > 1 else (spans,) * len(sizes)
        # The state's own recursion; all else is computed for all steps at once.
        h, c = list(initial[:, : self.units].split(sizes, dim=1)), initial[:, self.units :]
        plain = len(h) == 1 and self.memory is None
        drive = self.cells[0].drive(x)
        memory_drive = None if self.memory is None else self.memory.drive(x)
        entering: list[Tensor] = []
        states: list[Tensor] = []
        for t in range(x.shape[1]):
            if self.memory is not None and memory_drive is not None:
                joined, c = self.memory.step(memory_drive[:, t], torch.cat(h, dim=1), c)
                entering.append(joined)
                h = list(joined.split(sizes, dim=1))
            below = drive[:, t]
            for i, cell in enumerate(self.cells):
                h[i] = cell.step(below, h[i], by_cell[i][:, t])
                if i + 1 < len(sizes):
                    below = self.cells[i + 1].drive(h[i])
            states.append(h[0] if plain else torch.cat([*h, c], dim=1))
        after, before = stacked(states, initial)
        hidden = torch.stack(entering, dim=1) if entering else before
        from_, to = hidden.split(sizes, dim=2), after[..., : self.units].split(sizes, dim=2)
        layers = [
            cell.linearise(to[i - 1] if i else x, from_[i], to[i], by_cell[i])
            for i, cell in enumerate(self.cells)
        ]
        trajectory = layers[0] if len(layers) == 1 else StackTrajectory(layers)
        if self.memory is None:
            return trajectory
        return MixedMemoryTrajectory(self.memory.linearise(x, before), trajectory)

    @torch.no_grad()
    def linearise_along(
        self, inputs: Tensor, initial_state: Any, states: Tensor
    ) -> tuple[Trajectory, Tensor]:
        """Linearise one cell without memory along states of its own, ``(batch, time, units)``.

        Returns:
            The trajectory, and where one step leads from each state before.
        """
        x, spans = inputs[..., : self._features], inputs[..., self._features :]
        initial = initial_of(initial_state, inputs.shape[0], self.state_size, inputs)
        before = torch.cat([initial.unsqueeze(1), states[:, :-1]], dim=1)
        return self.cells[0].linearise_along(x, before, states, spans)


def cfc_states(module: Any, results: list[Tensor]) -> Tensor | None:
    """Return the states of all steps, where they are what the layer returns."""
    plain = getattr(module.rnn_cell, "_layers", None) is None and not module.use_mixed
    if not (plain and module.return_sequences and isinstance(module.fc, nn.Identity)):
        return None
    states = results[0] if results[0].dim() == 3 else results[0].unsqueeze(0)
    return states if module.batch_first or results[0].dim() == 2 else states.transpose(0, 1)


def cfc_dynamics(module: nn.Module, state: str) -> CfCDynamics:
    """Build the dynamics of a ``CfC``."""
    return CfCDynamics(computing(module))


@torch.no_grad()
def cfc_outputs(module: nn.Module, inputs: Tensor, trajectory: Trajectory) -> Tensor:
    """Return what the layer returns first, in its own layout."""
    layer: Any = computing(module)
    motor = getattr(layer.rnn_cell, "layer_sizes", [layer.state_size])[-1]
    h = trajectory.states[..., : layer.state_size]
    return laid_out(layer, layer.fc(h[..., -motor:]))
