"""The machinery that all gated layers share: a cell is a table of gains over it.

A layer has G gates with pre-activations a_g = W_g x + U_g h, a state of R blocks of N units each
(block 0 is the output h), and, at each step, diagonal *gains*:

    ds'_r = sum_g D[gain_rg] U_g dh  +  sum_g D[input_gain_rg] W_g dx  +  sum_q D[carry_rq] ds_q

which is every Jacobian of the paper's appendix B. What an architecture has to write is its gains.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from lyap_optuna.dynamics._fused import run_kernel
from lyap_optuna.dynamics.base import Dynamics, Trajectory
from lyap_optuna.dynamics.linalg import wide, wide_dtype


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one layer in PyTorch's layout: G gates of N units stacked.

    Args:
        ih: Input weights W, ``(G * N, features)``.
        hh: Recurrent weights U, ``(G * N, N)``.
        bias_ih: ``(G * N,)`` or None.
        bias_hh: ``(G * N,)`` or None.
    """

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Return the tensors there are, in the order of PyTorch's fused kernels."""
        return [w for w in (self.ih, self.hh, self.bias_ih, self.bias_hh) if w is not None]


@dataclass(frozen=True)
class Linearisation:
    """What a cell computes for all steps of all inputs at once.

    Args:
        outputs: h of every step as these equations give it from the state before,
            ``(batch, time, units)``; to be compared with what really ran.
        states: All state blocks, ``(batch, time, R * units)``.
        gain: ``(batch, time, R, G, units)``.
        input_gain: The same for the input's pre-activations; None where it equals ``gain``.
        carry: Diagonal blocks ``(batch, time, R, R, units)``; None where there are none.
        closed_log_abs_det: ``(batch, time)`` in float64, where there is a closed form.
    """

    outputs: Tensor
    states: Tensor
    gain: Tensor
    input_gain: Tensor | None = None
    carry: Tensor | None = None
    closed_log_abs_det: Tensor | None = None

    def select(self, inputs: slice) -> "Linearisation":
        """Return some of the inputs."""
        parts = {name: value for name, value in vars(self).items() if value is not None}
        return Linearisation(**{name: value[inputs] for name, value in parts.items()})


class GatedCell(ABC):
    """The equations of one layer. One subclass per architecture.

    Args:
        weights: The layer's weights.
    """

    gates: ClassVar[int]
    """G, the number of gates."""

    blocks: int = 1
    """R, the number of state blocks whose perturbations are followed."""

    n_initial: ClassVar[int] = 1
    """Tensors in an initial state: 1 (h) or 2 (h, c)."""

    def __init__(self, weights: LayerWeights) -> None:
        self.weights = weights
        self.units = weights.hh.shape[1]

    @property
    def state_size(self) -> int:
        """Dimension of the layer's state."""
        return self.blocks * self.units

    @abstractmethod
    def run(self, inputs: Tensor, initial: tuple[Tensor, ...]) -> Tensor:
        """Run the layer by itself; return h of every step, ``(batch, time, units)``."""

    @abstractmethod
    def linearise(
        self, inputs: Tensor, initial: tuple[Tensor, ...], outputs: Tensor
    ) -> Linearisation:
        """Linearise the layer along its states, all steps at once.

        Args:
            inputs: ``(batch, time, features)``.
            initial: ``n_initial`` tensors of ``(batch, units)``.
            outputs: h of every step, ``(batch, time, units)``, of whatever ran it.
        """

    def preactivations(self, inputs: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Return W x + b_ih and U h + b_hh for all steps, each ``(batch, time, G, units)``."""
        shape = (*inputs.shape[:2], self.gates, self.units)
        w = self.weights
        return (
            linear(inputs, w.ih, w.bias_ih).view(shape),
            linear(previous, w.hh, w.bias_hh).view(shape),
        )


class FusedCell(GatedCell):
    """A cell that PyTorch has a fused kernel for."""

    kernel: ClassVar[str]
    """The kernel's name."""

    def run(self, inputs: Tensor, initial: tuple[Tensor, ...]) -> Tensor:
        """Run the layer by its kernel."""
        return run_kernel(
            self.kernel,
            inputs,
            [part.unsqueeze(0).contiguous() for part in initial],
            self.weights.tensors(),
        )


class _FormedCheaply(Trajectory):
    """A Jacobian that is formed elementwise: worth it for more than a few vectors."""

    def tangent_is_cheaper(self, k: int) -> bool:
        # One product with G gates against R * G passes over J and one product with J: both were
        # timed at 128 to 1,024 units and cross near a sixteenth.
        return 16 * k <= self.state_size


class LayerTrajectory(_FormedCheaply):
    """One layer, linearised; the block on the diagonal of a stack's Jacobian."""

    def __init__(self, weights: LayerWeights, linearisation: Linearisation) -> None:
        self.states = linearisation.states
        self._weights = weights
        self._linearisation = linearisation
        self._gain = linearisation.gain
        input_gain = linearisation.input_gain
        self._input_gain = linearisation.gain if input_gain is None else input_gain
        self._carry = linearisation.carry
        self._closed = linearisation.closed_log_abs_det
        self.blocks, self._gates, self.units = linearisation.gain.shape[2:]
        self._transposed: dict[str, Tensor] = {}

    def select(self, inputs: slice) -> "LayerTrajectory":
        """Return the trajectory of some of the inputs."""
        return LayerTrajectory(self._weights, self._linearisation.select(inputs))

    def tangent(self, t: int, vectors: Tensor, input_vectors: Tensor | None = None) -> Tensor:
        """Return the image of tangent vectors and of perturbations of the layer's input.

        Args:
            t: The step.
            vectors: ``(batch, k, state)``.
            input_vectors: ``(batch, k, features)`` or None.
        """
        batch, k, _ = vectors.shape
        shape = (batch, k, 1, self._gates, self.units)
        gain = self._gain[:, t].unsqueeze(1)  # (batch, 1, R, G, units)
        pre = linear(vectors[..., : self.units], self._weights.hh).view(shape)
        out = (pre * gain).sum(-2)
        if input_vectors is not None:
            pre = linear(input_vectors, self._weights.ih).view(shape)
            out += (pre * self._input_gain[:, t].unsqueeze(1)).sum(-2)
        if self._carry is not None:
            by_block = vectors.view(batch, k, 1, self.blocks, self.units)
            out += (by_block * self._carry[:, t].unsqueeze(1)).sum(-2)
        return out.view(batch, k, self.state_size)

    def jacobians(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return ds'/ds of pairs, ``(n, state, state)``, with a contiguous transpose."""
        n, units = inputs.shape[0], self.units
        out = self._weighted(self._gain[inputs, times], "hh", self.state_size)
        if self._carry is not None:
            carry = self._carry[inputs, times]  # (n, R, R, units)
            rows = out.view(n, self.blocks, units, self.blocks, units)
            rows.diagonal(dim1=2, dim2=4).add_(carry.transpose(1, 2))
        return out.mT

    def input_jacobians(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return ds'/dx of pairs, ``(n, state, features)``, with a contiguous transpose."""
        features = self._weights.ih.shape[1]
        return self._weighted(self._input_gain[inputs, times], "ih", features).mT

    def _weighted(self, gain: Tensor, name: str, rows: int) -> Tensor:
        # sum_g D[gain_rg] W_g, transposed: (n, rows, R * units). Rows beyond the weight's
        # columns (those of further state blocks) stay zero.
        weight = self._transposed.get(name)
        if weight is None:
            stacked: Tensor = getattr(self._weights, name)
            weight = stacked.view(self._gates, self.units, -1).transpose(1, 2).contiguous()
            self._transposed[name] = weight  # (G, columns, units)
        n, columns = gain.shape[0], weight.shape[1]
        out = gain.new_zeros(n, rows, self.blocks, self.units)
        for r in range(self.blocks):
            part = out[:, :columns, r]
            torch.mul(gain[:, r, 0].unsqueeze(1), weight[0], out=part)
            for g in range(1, self._gates):
                part.addcmul_(gain[:, r, g].unsqueeze(1), weight[g])
        return out.view(n, rows, self.blocks * self.units)

    @property
    def closed_log_abs_det(self) -> Tensor | None:
        """log|det| of the layer's own block by the cell's closed form, if it has one."""
        return self._closed


class StackTrajectory(_FormedCheaply):
    """Layers on top of one another; the Jacobian is block lower-triangular (appendix B).

    The state is that of the layers in order: h1, h2, ... or h1, c1, h2, c2, ...
    """

    def __init__(self, layers: Sequence[LayerTrajectory]) -> None:
        self.layers = list(layers)
        self.states = torch.cat([layer.states for layer in layers], dim=2)
        self._ends = [0]
        for layer in layers:
            self._ends.append(self._ends[-1] + layer.state_size)

    def select(self, inputs: slice) -> "StackTrajectory":
        """Return the trajectory of some of the inputs."""
        return StackTrajectory([layer.select(inputs) for layer in self.layers])

    def tangent(self, t: int, vectors: Tensor) -> Tensor:
        """Apply the layers' maps in order: a layer is perturbed by the one below it."""
        images: list[Tensor] = []
        below: Tensor | None = None
        for layer, start, end in zip(self.layers, self._ends, self._ends[1:], strict=False):
            image = layer.tangent(t, vectors[..., start:end], below)
            below = image[..., : layer.units]
            images.append(image)
        return torch.cat(images, dim=-1)

    def jacobians(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return the block lower-triangular Jacobian of pairs.

        A block below the diagonal is the layer's input Jacobian times the output rows of the
        block above it.
        """
        n, size = inputs.shape[0], self.state_size
        out = self.states.new_zeros(n, size, size)  # transposed: [column, row]
        for i, (layer, start, end) in enumerate(
            zip(self.layers, self._ends, self._ends[1:], strict=False)
        ):
            out[:, start:end, start:end] = layer.jacobians(inputs, times).mT
            if i:
                above = self._ends[i - 1]
                outputs = out[:, :start, above : above + self.layers[i - 1].units]
                out[:, :start, start:end] = outputs @ layer.input_jacobians(inputs, times).mT
        return out.mT

    def log_abs_det(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return the sum of the diagonal blocks' log-determinants."""
        device = self.states.device
        total = torch.zeros(inputs.shape[0], dtype=wide_dtype(device), device=device)
        for layer in self.layers:
            closed = layer.closed_log_abs_det
            if closed is None:
                total += layer.log_abs_det(inputs, times)
            else:
                total += closed[inputs, times]
        return total

    @property
    def closed_log_abs_det(self) -> Tensor | None:
        """The sum over the layers, where each has a closed form."""
        total: Tensor | None = None
        for layer in self.layers:
            closed = layer.closed_log_abs_det
            if closed is None:
                return None
            total = closed if total is None else total + closed
        return total


def stacked(layers: Sequence[LayerTrajectory]) -> Trajectory:
    """Return the trajectory of layers on top of one another."""
    return layers[0] if len(layers) == 1 else StackTrajectory(layers)


class StackedDynamics(Dynamics):
    """One or more gated layers, as in ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``.

    Args:
        cells: The layers, from the input upwards.
    """

    def __init__(self, cells: Sequence[GatedCell]) -> None:
        self.cells = list(cells)
        self.state_size = sum(cell.state_size for cell in cells)
        weights = cells[0].weights
        self.input_size = weights.ih.shape[1]
        self.dtype, self.device = weights.hh.dtype, weights.hh.device

    def linearise(self, inputs: Tensor, initial_state: Any = None) -> Trajectory:
        """Run the layers in order, each over all steps at once.

        Args:
            inputs: ``(batch, time, features)``.
            initial_state: What the module's ``forward`` takes as ``hx``: ``(layers, batch,
                units)``, for an LSTM a pair of them; without the batch dimension it is the same
                for every input.
        """
        initial = self._initial(initial_state, inputs)
        layers: list[LayerTrajectory] = []
        for i, cell in enumerate(self.cells):
            parts = tuple(part[i] for part in initial)
            outputs = cell.run(inputs, parts)
            layers.append(LayerTrajectory(cell.weights, cell.linearise(inputs, parts, outputs)))
            inputs = outputs
        return stacked(layers)

    def _initial(self, initial_state: Any, inputs: Tensor) -> tuple[Tensor, ...]:
        n_initial, units = self.cells[0].n_initial, self.cells[0].units
        shape = (len(self.cells), inputs.shape[0], units)
        if initial_state is None:
            return (inputs.new_zeros(shape),) * n_initial
        parts = tuple(initial_state) if n_initial > 1 else (initial_state,)
        if len(parts) != n_initial or not all(isinstance(part, Tensor) for part in parts):
            raise ValueError(
                f"initial_state must be {n_initial} tensor(s) of shape (layers, batch, units), as "
                f"the module's forward takes it, but got {type(initial_state).__name__} of "
                f"{len(parts)}."
            )
        checked: list[Tensor] = []
        for part in parts:
            part = part.detach().to(inputs)
            if part.dim() == 2:
                part = part.unsqueeze(1)
            try:
                checked.append(part.expand(shape))
            except RuntimeError:
                raise ValueError(
                    f"initial_state has shape {tuple(part.shape)}, but (layers, batch, units) = "
                    f"{shape} is needed."
                ) from None
        return tuple(checked)


def previous_states(initial: Tensor, states: Tensor) -> Tensor:
    """Return the states before each step, ``(batch, time, units)``."""
    return torch.cat([initial.unsqueeze(1), states[:, :-1]], dim=1)


def sigmoid_slope(a: Tensor) -> Tensor:
    """Return sigmoid'(a) = sigmoid(a) sigmoid(-a), without cancellation."""
    return torch.sigmoid(a) * torch.sigmoid(-a)


def tanh_slope(a: Tensor) -> Tensor:
    """Return tanh'(a) = 4 sigmoid'(2a), without the cancellation of 1 - tanh(a)^2."""
    return 4 * sigmoid_slope(2 * a)


def log_sigmoid_slope(a: Tensor) -> Tensor:
    """Return log sigmoid'(a) = -softplus(a) - softplus(-a), in float64."""
    a = wide(a)
    return -softplus(a) - softplus(-a)


def log_tanh_slope(a: Tensor) -> Tensor:
    """Return log tanh'(a) = 2 (log 2 - |a| - log(1 + exp(-2|a|))), in float64."""
    a = wide(a).abs()
    return 2 * (0.6931471805599453 - a - torch.log1p(torch.exp(-2 * a)))
