"""How architectures step, their Jacobians and their volume growth: one file each."""

from lyap_optuna.dynamics._battery import check_dynamics
from lyap_optuna.dynamics._errors import NonFiniteParametersError, NotMeasurableError
from lyap_optuna.dynamics._find import find_layers, unwrapped
from lyap_optuna.dynamics._registry import Architecture, register_architecture
from lyap_optuna.dynamics._resolve import STATES, resolve
from lyap_optuna.dynamics._sequences import DrivenLayer
from lyap_optuna.dynamics.antisymmetric import AntisymmetricRNN
from lyap_optuna.dynamics.autodiff import RecurrentDynamics
from lyap_optuna.dynamics.base import Dynamics, Trajectory
from lyap_optuna.dynamics.diagonal import DiagonalDynamics, DiagonalStateSpace
from lyap_optuna.dynamics.gated import (
    GatedCell,
    LayerWeights,
    Linearisation,
    StackedDynamics,
)
from lyap_optuna.dynamics.minimal_gated import MinimalGatedUnit

__all__ = [
    "AntisymmetricRNN",
    "Architecture",
    "DiagonalDynamics",
    "DiagonalStateSpace",
    "DrivenLayer",
    "Dynamics",
    "GatedCell",
    "LayerWeights",
    "Linearisation",
    "MinimalGatedUnit",
    "NonFiniteParametersError",
    "NotMeasurableError",
    "RecurrentDynamics",
    "STATES",
    "StackedDynamics",
    "Trajectory",
    "find_layers",
    "check_dynamics",
    "register_architecture",
    "resolve",
    "unwrapped",
]
