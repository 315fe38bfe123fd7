"""PyTorch's recurrent kernels: how they are called, and which equations they run.

``nn.RNN``, ``nn.GRU``, ``nn.LSTM`` and their cells, whatever subclasses and hooks make of them, end
in one of a few functions. What reaches these is what really runs: inputs, states and weights. A
kernel is a line in a table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lyap_optuna.dynamics._fused import padded, run_kernel
from lyap_optuna.dynamics.base import Trajectory, computing_dtype
from lyap_optuna.dynamics.gated import (
    GatedCell,
    LayerTrajectory,
    LayerWeights,
    stacked,
)
from lyap_optuna.dynamics.gru import GRUCell
from lyap_optuna.dynamics.lstm import LSTMCell
from lyap_optuna.dynamics.projected_lstm import ProjectedLSTMDynamics
from lyap_optuna.dynamics.vanilla import VanillaCell

CELLS: dict[str, Callable[[LayerWeights, str], GatedCell]] = {
    "rnn_tanh": lambda weights, state: VanillaCell(weights, "tanh"),
    "rnn_relu": lambda weights, state: VanillaCell(weights, "relu"),
    "gru": lambda weights, state: GRUCell(weights),
    "lstm": LSTMCell,
}
"""The equations of a layer by the name of PyTorch's function; ``torch.gru_cell`` is one step."""

NAMES = {name + suffix for name in CELLS for suffix in ("", "_cell")}


@dataclass(frozen=True)
class KernelCall:
    """One call of a recurrent kernel.

    Args:
        kernel: A key of :data:`CELLS`.
        inputs: ``(batch, time, features)``; where sequences were packed, padded again.
        initial: The incoming state, one or two tensors of ``(layers * directions, batch, units)``.
        weights: Of each layer and direction, in PyTorch's order.
        directions: 1 or 2.
        outputs: ``(batch, time, directions * units)``, padded like the inputs.
        final: The outgoing state, laid out like ``initial``.
        batch_sizes: How the sequences were packed; None where they were not.
    """

    kernel: str
    inputs: Tensor
    initial: tuple[Tensor, ...]
    weights: list[list[Tensor]]
    directions: int
    outputs: Tensor
    final: tuple[Tensor, ...]
    batch_sizes: Tensor | None = None

    @property
    def lengths(self) -> Tensor | None:
        """Steps of each sequence, ``(batch,)``, where they were packed."""
        if self.batch_sizes is None:
            return None
        rows = torch.arange(int(self.batch_sizes[0]), device="cpu")
        return (self.batch_sizes.unsqueeze(0) > rows.unsqueeze(1)).sum(1)

    @property
    def layers(self) -> int:
        """How many layers lie on top of one another."""
        return len(self.weights) // self.directions

    def kept(self) -> "KernelCall":
        """Return the call as it is now: a model may write to its inputs and outputs later."""
        return replace(
            self,
            inputs=self.inputs.clone(),
            initial=tuple(part.clone() for part in self.initial),
            outputs=self.outputs.clone(),
            final=tuple(part.clone() for part in self.final),
        )

    def by_layer(self) -> list[tuple[Tensor, Tensor]]:
        """Return inputs and outputs of each layer, ``(batch, time, ...)``.

        The outputs of the top layer are the call's own. Layers below are run again, one by one,
        by the same kernel from the same state, in the same order of operations.
        """
        parts: list[tuple[Tensor, Tensor]] = []
        below = self.inputs
        for layer in range(self.layers - 1):
            outputs = self._run(layer, below)
            parts.append((below, outputs))
            below = outputs
        return [*parts, (below, self.outputs)]

    def _run(self, layer: int, inputs: Tensor) -> Tensor:
        rows = slice(layer * self.directions, (layer + 1) * self.directions)
        weights = [w for group in self.weights[rows] for w in group]
        initial = [part[rows].contiguous() for part in self.initial]
        return run_kernel(self.kernel, inputs, initial, weights, self.directions, self.batch_sizes)


def read_kernel_call(name: str, args: tuple[Any, ...], result: Any) -> KernelCall:
    """Return what a call of ``torch.<name>`` was; ``name`` is one of :data:`NAMES`."""
    if name in CELLS:
        return _read_layer(name, args, result)
    return _read_cell(name.removesuffix("_cell"), args, result)


def state_of_kernel(name: str, args: tuple[Any, ...]) -> list[Tensor]:
    """Return the tensors of the state that a call of ``torch.<name>`` begins with."""
    hx = args[2 if _is_packed(name, args) else 1]
    return list(hx) if isinstance(hx, (tuple, list)) else [hx]


def weights_of_kernel(name: str, args: tuple[Any, ...]) -> Any:
    """Return the weights that a call of ``torch.<name>`` runs with."""
    return args[2:] if name.endswith("_cell") else args[3 if _is_packed(name, args) else 2]


def steps_of_kernel(name: str, args: tuple[Any, ...]) -> int | None:
    """Return the time steps of a call, or None where they cannot be run one by one."""
    if _is_packed(name, args):
        return None
    inputs, *_, bidirectional, batch_first = args
    steps: int = inputs.shape[1 if batch_first else 0]
    return None if bidirectional and steps > 1 else steps


def _is_packed(name: str, args: tuple[Any, ...]) -> bool:
    if name.endswith("_cell"):
        return False
    return isinstance(args[1 if name == "lstm" else 2], Tensor)


def _read_layer(name: str, args: tuple[Any, ...], result: Any) -> KernelCall:
    batch_sizes = None
    if _is_packed(name, args):
        data, batch_sizes, hx, flat, _, layers, _, _, bidirectional = args
        inputs, outputs = padded(data, batch_sizes), padded(result[0], batch_sizes)
    else:
        inputs, hx, flat, _, layers, _, _, bidirectional, batch_first = args
        outputs = result[0]
        if not batch_first:
            inputs, outputs = inputs.transpose(0, 1), outputs.transpose(0, 1)
    initial = tuple(hx) if name == "lstm" else (hx,)
    per = len(flat) // (layers * (2 if bidirectional else 1))
    return KernelCall(
        kernel=name,
        inputs=inputs,
        initial=initial,
        weights=[list(flat[i : i + per]) for i in range(0, len(flat), per)],
        directions=2 if bidirectional else 1,
        outputs=outputs,
        final=tuple(result[1:]),
        batch_sizes=batch_sizes,
    )


def _read_cell(name: str, args: tuple[Any, ...], result: Any) -> KernelCall:
    inputs, hx, *weights = args
    initial = tuple(hx) if name == "lstm" else (hx,)
    final = tuple(result) if name == "lstm" else (result,)
    return KernelCall(
        kernel=name,
        inputs=inputs.unsqueeze(1),
        initial=tuple(part.unsqueeze(0) for part in initial),
        weights=[[w for w in weights if w is not None]],
        directions=1,
        outputs=final[0].unsqueeze(1),
        final=tuple(part.unsqueeze(0) for part in final),
    )


def cell_of(kernel: str, weights: Sequence[Tensor], state: str) -> GatedCell:
    """Return the equations of one layer in one direction."""
    dtype = computing_dtype(weights[0].dtype)
    return CELLS[kernel](LayerWeights(*(w.detach().to(dtype) for w in weights)), state)


def linearise_along(
    kernel: str,
    weights: Sequence[Sequence[Tensor]],
    io: Sequence[tuple[Tensor, Tensor]],
    initial: Sequence[tuple[Tensor, ...]],
    state: str,
) -> tuple[Trajectory, list[Tensor]]:
    """Linearise layers on top of one another along the states that really occurred.

    Args:
        kernel: A key of :data:`CELLS`.
        weights: Of each layer.
        io: Inputs and outputs of each layer, ``(batch, time, ...)``.
        initial: State before the first step, of each layer, tensors of ``(batch, units)``.
        state: ``"hidden"`` or ``"full"``.

    Returns:
        The trajectory, and the outputs of each layer as the equations give them, one step from
        each state: to be compared with ``io``.
    """
    if kernel == "lstm" and initial[0][0].shape[-1] != initial[0][1].shape[-1]:
        return ProjectedLSTMDynamics(weights, state).along(io, initial)
    layers, rebuilt = [], []
    for group, (inputs, outputs), parts in zip(weights, io, initial, strict=True):
        cell = cell_of(kernel, group, state)
        linearised = cell.linearise(inputs, parts, outputs)
        layers.append(LayerTrajectory(cell.weights, linearised))
        rebuilt.append(linearised.outputs)
    return stacked(layers), rebuilt
