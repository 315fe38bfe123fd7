"""How ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU`` hold their weights and lay out their inputs."""

from typing import Any, cast

from torch import Tensor, nn

from lyap_optuna.dynamics.base import Dynamics, computing_dtype
from lyap_optuna.dynamics.gated import GatedCell, LayerWeights, StackedDynamics
from lyap_optuna.dynamics.gru import GRUCell
from lyap_optuna.dynamics.lstm import LSTMCell
from lyap_optuna.dynamics.projected_lstm import ProjectedLSTMDynamics
from lyap_optuna.dynamics.vanilla import VanillaCell


def layer_dynamics(module: nn.Module, state: str) -> Dynamics:
    """Build the dynamics of an ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU``.

    Args:
        module: The layer; weight-normalised or otherwise parametrised weights are read as its
            last forward call left them.
        state: ``"hidden"`` or ``"full"``; they differ for an LSTM only.

    Raises:
        ValueError: The layer is bidirectional.
    """
    rnn = cast(nn.RNNBase, module)
    name = type(module).__name__
    if rnn.bidirectional:
        raise ValueError(
            f"bidirectional={rnn.bidirectional} in {name}: a bidirectional layer is not one "
            "dynamical system. Pass a one-directional layer; for one direction, copy its weights "
            "into one."
        )
    if isinstance(module, nn.LSTM) and module.proj_size:
        return ProjectedLSTMDynamics(module, state)
    dtype = computing_dtype(cast(Tensor, rnn.weight_hh_l0).dtype)
    cells: list[GatedCell] = []
    for i in range(rnn.num_layers):
        weights = LayerWeights(
            *(
                tensor.detach().to(dtype)
                if (tensor := getattr(rnn, f"{kind}_l{i}", None)) is not None
                else None  # type: ignore[arg-type]
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
        )
        if isinstance(module, nn.LSTM):
            cells.append(LSTMCell(weights, state))
        elif isinstance(module, nn.GRU):
            cells.append(GRUCell(weights))
        else:
            cells.append(VanillaCell(weights, cast(nn.RNN, module).nonlinearity))
    return StackedDynamics(cells)


def read_layer_call(
    module: nn.Module, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
) -> tuple[Tensor, Any]:
    """Return what the layer was called with as ``(batch, time, features)`` and initial state.

    Raises:
        ValueError: A packed sequence, or not a tensor of two or three dimensions.
    """
    args, kwargs = calls[0]
    inputs = kwargs.get("input", args[0] if args else None)
    initial = kwargs.get("hx", args[1] if len(args) > 1 else None)
    if isinstance(inputs, nn.utils.rnn.PackedSequence):
        raise ValueError(
            "A packed sequence reaches the recurrent layer. Exponents need sequences of one "
            "length: pass a batch of equally long sequences straight to the layer, without "
            "pack_padded_sequence."
        )
    if not isinstance(inputs, Tensor):
        raise ValueError(f"The recurrent layer needs a tensor, but got {type(inputs).__name__}.")
    if inputs.dim() == 2:  # unbatched: (time, features)
        return inputs.unsqueeze(0), initial
    if inputs.dim() != 3:
        raise ValueError(
            f"Inputs of shape {tuple(inputs.shape)} reach the recurrent layer; it takes two "
            "dimensions (time, features) or three with a batch."
        )
    return (inputs if cast(nn.RNNBase, module).batch_first else inputs.transpose(0, 1)), initial
