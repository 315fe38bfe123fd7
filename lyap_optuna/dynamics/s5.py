"""S5 (Smith et al., 2023), ``s5-pytorch``: a complex diagonal state space.

x_t = L_t x_{t-1} + B_t u_t with L and B discretised by zero-order hold or bilinearly at a step size
that may differ between sequences and steps; liquid (Hasani et al., 2023): (L_t + B_t u_t) in place
of L_t. y_t = Re(C x_t) + D u_t.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics._errors import NotMeasurableError
from lyap_optuna.dynamics._libraries import (
    arguments,
    computing,
    device_of,
    extended,
    parameter_dtype,
    sequences,
)
from lyap_optuna.dynamics.base import Trajectory
from lyap_optuna.dynamics.diagonal import DiagonalDynamics


def read_s5_calls(module: Any, calls: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Return the signal, with the scale of the step size as last feature, and the state.

    Raises:
        NotMeasurableError: A liquid layer was given a state.
    """
    call = arguments(module, calls[0])
    x, scale, state = sequences(call["signal"], module), call.get("step_scale", 1.0), None
    state = call.get("state")
    if state is not None and module.seq.liquid:
        raise NotMeasurableError(
            "S5 with liquid=True was given a state: its first step is then another one than all "
            "that follow. Pass the whole sequence in one call."
        )
    scale = torch.as_tensor(scale).to(x)
    while scale.dim() < 3:  # one number, one for each sequence, one for each step of each
        scale = scale.unsqueeze(-1)
    return extended(x, scale), state


def s5_dynamics(module: nn.Module, state: str) -> DiagonalDynamics:
    """Build the dynamics of an ``S5``.

    Raises:
        NotMeasurableError: The layer is bidirectional.
    """
    layer: Any = computing(module)
    ssm = layer.seq
    if ssm.bidir:
        raise NotMeasurableError(
            "S5 with bidir=True runs over the sequence in both directions, which is not one "
            "dynamical system. Build it with bidir=False."
        )

    def coefficients(inputs: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = inputs[..., :-1], inputs[..., -1:]
        if bool((scale == scale[:1, :1]).all()):
            scale = scale[:1, :1]
        weight = ssm.get_BC_tilde()[0]
        # A discretised B is a factor for each component times B.
        one = torch.ones_like(weight[:, :1])
        decay, factor = ssm.discretize(ssm.Lambda, one, scale * ssm.log_step.exp())
        weight = weight.to(factor.dtype) ** ssm.degree
        drive = factor.squeeze(-1) ** ssm.degree * (x.to(weight.dtype) @ weight.T)
        return (decay + drive if ssm.liquid else decay), drive

    return DiagonalDynamics(
        coefficients,
        ssm.Lambda.shape[0],
        is_complex=True,
        dtype=parameter_dtype(layer),
        device=device_of(layer),
    )


@torch.no_grad()
def s5_outputs(module: nn.Module, inputs: Tensor, trajectory: Trajectory) -> Tensor:
    """Return what the layer returns, ``(batch, time, features)``."""
    layer: Any = computing(module)
    ssm = layer.seq
    state = torch.view_as_complex(trajectory.states.unflatten(2, (-1, 2)).contiguous())
    output = ssm.get_BC_tilde()[1].to(state)
    out: Tensor = (state @ output.T).real + inputs[..., :-1] * ssm.D
    return out
