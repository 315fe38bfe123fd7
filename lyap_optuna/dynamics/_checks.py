"""Whether a rebuilt layer is the model's own, and whether inputs can be measured on."""

from typing import Any

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics._errors import NoStepsError, NotMeasurableError
from lyap_optuna.dynamics.base import Dynamics, Trajectory, computing_dtype

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Relative: rounding of one step, by another order of operations, at some thousand units."""

_SPREAD = 1e6  # growth of rounding errors beyond which states that differ prove nothing


def agree(ours: Tensor, theirs: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether a rebuilt step is the model's own, but for rounding."""
    if ours.shape != theirs.shape:
        return False
    dtype = max((dtype or theirs.dtype, ours.dtype), key=lambda kind: torch.finfo(kind).eps)
    tolerance = _TOLERANCE.get(dtype, 16 * torch.finfo(dtype).eps)
    ours, theirs = ours.double(), theirs.double()
    scale = theirs.abs().max().clamp(min=torch.finfo(dtype).tiny)
    difference = (ours - theirs).abs().max()
    return not bool(torch.isfinite(scale)) or bool(difference <= tolerance * scale)


def agree_at_first(ours: Tensor, theirs: Tensor, trajectory: Trajectory) -> bool:
    """Whether outputs are the model's own as long as rounding errors have not spread.

    Two runs of a chaotic network part from each other by rounding; until then they agree.
    """
    if ours.shape != theirs.shape:
        return False
    steps = horizon(trajectory)
    along_time = [axis for axis, n in enumerate(ours.shape) if n == trajectory.steps]
    return any(agree(ours.narrow(a, 0, steps), theirs.narrow(a, 0, steps)) for a in along_time)


def horizon(trajectory: Trajectory) -> int:
    """Return for how many steps an error of one at every step stays below a million.

    The errors of all steps so far are followed together, with random signs.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    size = trajectory.state_size
    error = trajectory.states.new_zeros(trajectory.batch, 1, size)
    for t in range(trajectory.steps):
        fresh = torch.randn(error.shape, generator=generator, dtype=torch.float64, device="cpu")
        error = trajectory.tangent(t, error) + fresh.to(error)
        if not bool(error.norm(dim=2).amax() <= _SPREAD * size**0.5):
            return max(t, 1)
    return trajectory.steps


def another(name: str, module: nn.Module | None) -> str:
    """Say that a layer is not what its weights say."""
    kind = "The layer" if module is None else type(module).__name__
    return (
        f"{kind}{f' {name!r}' if name else ''}: a step rebuilt from its weights differs from its "
        "own, which cannot be followed, so that only another network's exponents could be "
        "measured. Pass a lyap_optuna.RecurrentDynamics with its step function."
    )


def check_sequences(inputs: Tensor, least: int = 2) -> None:
    """Check that inputs are sequences of at least ``least`` steps.

    Raises:
        NotMeasurableError: They are not, or are not finite.
    """
    shape = tuple(inputs.shape)
    if inputs.dim() != 3:
        raise NotMeasurableError(
            f"inputs must have three dimensions (batch, time, features), but have shape {shape}."
        )
    if shape[0] == 0:
        raise NotMeasurableError(
            f"The batch of inputs is empty (shape {shape}): pass at least one sequence."
        )
    if shape[1] < least:
        raise NoStepsError(
            f"inputs have {shape[1]} time step(s): exponents need at least 2, better 100."
        )
    if not bool(torch.isfinite(inputs).all()):
        raise NotMeasurableError("inputs contain NaN or infinite values: clean them first.")


def checked_inputs(inputs: Any, dynamics: Dynamics, least: int = 2) -> Tensor:
    """Return inputs as a dynamics takes them.

    Raises:
        NotMeasurableError: They have the wrong shape, or are not finite.
    """
    if not isinstance(inputs, Tensor):
        raise NotMeasurableError(f"inputs must be a tensor, but got {type(inputs).__name__}.")
    if inputs.dim() == 2:
        inputs = inputs.unsqueeze(0)
    check_sequences(inputs, least)
    if dynamics.input_size is not None and inputs.shape[2] != dynamics.input_size:
        raise NotMeasurableError(
            f"inputs have {inputs.shape[2]} features, but the recurrent layer takes "
            f"{dynamics.input_size}. Check batch_first: sequences are laid out as the module "
            "takes them."
        )
    dtype = dynamics.dtype or computing_dtype(inputs.dtype)
    checked: Tensor = inputs.detach()
    return checked.to(device=dynamics.device or inputs.device, dtype=dtype)
