"""Loops over ``nn.RNNCell``, ``nn.GRUCell`` and ``nn.LSTMCell``: the layers' equations."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics.base import computing_dtype
from lyap_optuna.dynamics.gated import GatedCell, LayerWeights, StackedDynamics
from lyap_optuna.dynamics.gru import GRUCell
from lyap_optuna.dynamics.lstm import LSTMCell
from lyap_optuna.dynamics.vanilla import VanillaCell


def cell_dynamics(module: nn.Module, state: str) -> StackedDynamics:
    """Build the dynamics of a cell that a model calls once per time step."""
    cell = cast(nn.RNNCellBase, module)
    dtype = computing_dtype(cell.weight_hh.dtype)
    tensors = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    weights = LayerWeights(*(cast(Any, t if t is None else t.detach().to(dtype)) for t in tensors))
    built: GatedCell
    if isinstance(module, nn.LSTMCell):
        built = LSTMCell(weights, state)
    elif isinstance(module, nn.GRUCell):
        built = GRUCell(weights)
    else:
        built = VanillaCell(weights, cast(nn.RNNCell, module).nonlinearity)
    return StackedDynamics([built])


def read_cell_calls(
    module: nn.Module, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
) -> tuple[Tensor, Any]:
    """Return the inputs of all calls in one forward, and the first call's state.

    Returns:
        ``(batch, time, features)``, and the initial state as a one-layer ``nn.GRU`` or
        ``nn.LSTM`` takes it; None for zeros.

    Raises:
        ValueError: The calls' inputs are not tensors of one shape.
    """
    steps: list[Tensor] = []
    for args, kwargs in calls:
        x = kwargs.get("input", args[0] if args else None)
        if not isinstance(x, Tensor):
            raise ValueError(f"The recurrent cell needs a tensor, but got {type(x).__name__}.")
        steps.append(x)
    args, kwargs = calls[0]
    initial = kwargs.get("hx", args[1] if len(args) > 1 else None)
    if len(steps) == 1 and steps[0].dim() == 3:
        return steps[0], initial  # the cell itself was given, with whole sequences
    if any(x.shape != steps[0].shape for x in steps):
        raise ValueError(
            f"{type(module).__name__} was called with inputs of several shapes: it must be called "
            "once per time step. Pass the cell itself and the sequences (batch, time, features)."
        )
    inputs = torch.stack(steps, dim=-2)
    if initial is not None:
        parts = initial if isinstance(initial, tuple) else (initial,)
        parts = tuple(part.reshape(1, -1, part.shape[-1]) for part in parts)
        initial = parts if isinstance(initial, tuple) else parts[0]
    return (inputs if inputs.dim() == 3 else inputs.unsqueeze(0)), initial
