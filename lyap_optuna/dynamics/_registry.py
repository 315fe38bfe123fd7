"""The one place where architectures are registered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lyap_optuna.dynamics.antisymmetric import AntisymmetricRNN, antisymmetric_dynamics
from lyap_optuna.dynamics.base import Dynamics, Trajectory
from lyap_optuna.dynamics.closed_form_continuous import cfc_dynamics, cfc_outputs, cfc_states
from lyap_optuna.dynamics.diagonal import DiagonalStateSpace, diagonal_dynamics
from lyap_optuna.dynamics.linear_recurrent_unit import lru_dynamics, lru_outputs, read_lru_calls
from lyap_optuna.dynamics.liquid_time_constant import ltc_dynamics, ltc_outputs
from lyap_optuna.dynamics.mamba import (
    mamba_dynamics,
    mamba_outputs,
    read_block_calls,
    read_mixer_calls,
)
from lyap_optuna.dynamics.mamba2 import mamba2_dynamics, mamba2_outputs, read_mamba2_calls
from lyap_optuna.dynamics.min_gru import min_gru_dynamics, min_gru_outputs, read_min_gru_calls
from lyap_optuna.dynamics.minimal_gated import MinimalGatedUnit, minimal_gated_dynamics
from lyap_optuna.dynamics.mlstm import mlstm_dynamics, mlstm_outputs, read_mlstm_calls
from lyap_optuna.dynamics.ncps_layers import read_ncps_calls
from lyap_optuna.dynamics.rwkv import read_rwkv_calls, rwkv_dynamics, rwkv_outputs
from lyap_optuna.dynamics.s5 import read_s5_calls, s5_dynamics, s5_outputs
from lyap_optuna.dynamics.slstm import read_slstm_calls, slstm_dynamics, slstm_outputs
from lyap_optuna.dynamics.torch_recurrent import (
    read_recurrent_calls,
    recurrent_dynamics,
    recurrent_outputs,
)

Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]
"""Arguments and keyword arguments of the calls of a module's forward."""


def first_argument(module: nn.Module, calls: Calls) -> tuple[Tensor, Any]:
    """Read a call whose first argument is ``(batch, time, features)``; the state starts at 0."""
    args, kwargs = calls[0]
    return (args[0] if args else next(iter(kwargs.values()))), None


def states_of(module: nn.Module, inputs: Tensor, trajectory: Trajectory) -> Tensor:
    """What a layer returns that returns its states, batch first."""
    return trajectory.states


@dataclass(frozen=True)
class Architecture:
    """How to measure one type of module.

    Args:
        build: ``build(module, state) -> Dynamics``; ``state`` is ``"hidden"`` or ``"full"``, and
            ``module`` a private copy. None: the module ends in PyTorch's recurrent kernels, and
            what reaches these says how it steps.
        read_calls: ``read_calls(module, calls)`` returns what the module's forward was called
            with, as inputs ``(batch, time, features)`` and initial state.
        outputs: ``outputs(module, inputs, trajectory)`` rebuilds, from the linearised states,
            what the module's forward returned (its first tensor, in the module's own layout).
            Every measurement compares the two, so that it never reports the exponents of another
            network than the one that ran. None: there is nothing to compare.
        stepwise: Whether a model calls the module once per time step; all calls of one forward
            are read then, else each call is a batch of sequences.
        states: ``states(module, results)`` returns the states of all steps, ``(batch, time,
            state)``, where they are among the tensors that the forward returned, else None. Then
            the dynamics has ``linearise_along(inputs, initial_state, states)``, which returns a
            trajectory along them and where one step leads from each, and nothing is run again.
    """

    build: Callable[[nn.Module, str], Dynamics] | None
    read_calls: Callable[[nn.Module, Calls], tuple[Tensor, Any]] = first_argument
    outputs: Callable[[nn.Module, Tensor, Trajectory], Tensor] | None = None
    stepwise: bool = False
    states: Callable[[nn.Module, list[Tensor]], Tensor | None] | None = None


_kernels = Architecture(None)

_ARCHITECTURES: dict[type[nn.Module], Architecture] = {
    nn.RNN: _kernels,
    nn.LSTM: _kernels,
    nn.GRU: _kernels,
    nn.RNNCell: _kernels,
    nn.LSTMCell: _kernels,
    nn.GRUCell: _kernels,
    AntisymmetricRNN: Architecture(antisymmetric_dynamics, outputs=states_of),
    MinimalGatedUnit: Architecture(minimal_gated_dynamics, outputs=states_of),
    DiagonalStateSpace: Architecture(diagonal_dynamics, outputs=states_of),
}

_hf = "transformers.models"

_BY_NAME: dict[str, Architecture] = {
    f"{_hf}.mamba.modeling_mamba.MambaMixer": Architecture(
        mamba_dynamics, read_mixer_calls, mamba_outputs
    ),
    f"{_hf}.mamba2.modeling_mamba2.Mamba2Mixer": Architecture(
        mamba2_dynamics, read_mamba2_calls, mamba2_outputs
    ),
    f"{_hf}.rwkv.modeling_rwkv.RwkvSelfAttention": Architecture(
        rwkv_dynamics, read_rwkv_calls, rwkv_outputs
    ),
    "mambapy.mamba.MambaBlock": Architecture(mamba_dynamics, read_block_calls, mamba_outputs),
    "minGRU_pytorch.minGRU.minGRU": Architecture(
        min_gru_dynamics, read_min_gru_calls, min_gru_outputs
    ),
    "s5.s5_model.S5": Architecture(s5_dynamics, read_s5_calls, s5_outputs),
    "LRU_pytorch.LRU.LRU": Architecture(lru_dynamics, read_lru_calls, lru_outputs),
    "torchrecurrent.base.RecurrentLayerBase": Architecture(
        recurrent_dynamics, read_recurrent_calls, recurrent_outputs
    ),
    "ncps.torch.cfc.CfC": Architecture(
        cfc_dynamics, read_ncps_calls, cfc_outputs, states=cfc_states
    ),
    "ncps.torch.ltc.LTC": Architecture(ltc_dynamics, read_ncps_calls, ltc_outputs),
    "xlstm.blocks.slstm.cell.sLSTMCellBase": Architecture(
        slstm_dynamics, read_slstm_calls, slstm_outputs
    ),
    "xlstm.blocks.mlstm.cell.mLSTMCell": Architecture(
        mlstm_dynamics, read_mlstm_calls, mlstm_outputs
    ),
}
"""Layers of other libraries by the qualified names of their classes; nothing is imported."""


def register_architecture(module_type: type[nn.Module], architecture: Architecture) -> None:
    """Teach the package to measure another type of recurrent module.

    Args:
        module_type: The class; subclasses are covered.
        architecture: How to build its dynamics and read its calls.

    Raises:
        ValueError: ``module_type`` is not a class of modules.

    Example:
        >>> import torch
        >>> from lyap_optuna.dynamics import Architecture, RecurrentDynamics, register_architecture
        >>> class Leaky(torch.nn.Module):
        ...     def forward(self, x): ...
        >>> register_architecture(
        ...     Leaky,
        ...     Architecture(lambda module, state: RecurrentDynamics(lambda s, x: 0.9 * s + x, 3)),
        ... )
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise ValueError(f"module_type must be a subclass of nn.Module, but got {module_type!r}.")
    _ARCHITECTURES[module_type] = architecture


def architecture_of(module: nn.Module) -> Architecture | None:
    """Return how to measure ``module``, or None where it is not a registered architecture."""
    for cls in type(module).__mro__:
        found = _ARCHITECTURES.get(cls) or _BY_NAME.get(f"{cls.__module__}.{cls.__qualname__}")
        if found is not None:
            return found
    return None


def registered_names() -> str:
    """Return the registered types in words."""
    return ", ".join(
        f"nn.{t.__name__}" if t.__module__.startswith("torch.") else t.__name__
        for t in _ARCHITECTURES
    )
