"""Any step function, linearised by automatic differentiation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jacfwd, jvp, vmap

from lyap_optuna.dynamics.base import Dynamics, Trajectory, initial_of
from lyap_optuna.dynamics.forward_mode import forward_mode


class RecurrentDynamics(Dynamics):
    """A recurrent system given by its step function.

    The step is written for one sample; it is batched by ``torch.func.vmap`` and differentiated
    by Jacobian-vector products, never row by row. It must be made of PyTorch operations, free of
    randomness and of changes to anything outside it.

    Args:
        step: ``step(state: (S,), input: (F,)) -> (S,)``.
        state_size: S, the dimension of the state.
        dtype: What the step computes in, float32 or float64; None where the inputs decide.
        device: Where it computes; None where the inputs decide.

    Raises:
        ValueError: ``state_size`` is not a positive integer.

    Example:
        >>> import torch
        >>> import lyap_optuna as lyap
        >>> logistic = lyap.RecurrentDynamics(lambda s, x: 4 * s * (1 - s), state_size=1)
        >>> inputs = torch.zeros(1, 5000, 0, dtype=torch.float64)
        >>> s = lyap.lyapunov_spectrum(logistic, inputs, initial_state=torch.tensor([0.3]))
        >>> abs(float(s.max) - 0.6931) < 0.01
        True
    """

    def __init__(
        self,
        step: Callable[[Tensor, Tensor], Tensor],
        state_size: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        if not isinstance(state_size, int) or isinstance(state_size, bool) or state_size < 1:
            raise ValueError(f"state_size must be a positive integer, but got {state_size!r}.")
        self.step = step
        self.state_size = state_size
        self.dtype, self.device = dtype, device

    def linearise(self, inputs: Tensor, initial_state: Any = None) -> Trajectory:
        """Run the step over ``(batch, time, features)``.

        Args:
            inputs: ``(batch, time, features)``.
            initial_state: ``(S,)`` for all inputs or ``(batch, S)``; zeros where it is None.
        """
        shape = (inputs.shape[0], self.state_size)
        state = initial_of(initial_state, *shape, inputs).clone()
        step = vmap(self.step)
        states = [state]
        for t in range(inputs.shape[1]):
            try:
                state = step(state, inputs[:, t])
            except Exception as error:
                raise ValueError(
                    f"step failed on a state of shape ({self.state_size},) and an input of shape "
                    f"({inputs.shape[2]},): {type(error).__name__}: {error}"
                ) from error
            if state.shape != shape:
                raise ValueError(
                    f"step returned a state of shape {tuple(state.shape[1:])}, but state_size is "
                    f"{self.state_size}: return a tensor of shape ({self.state_size},)."
                )
            state = state.detach().to(inputs)
            states.append(state)
        return AutodiffTrajectory(self.step, inputs, torch.stack(states, dim=1))


class AutodiffTrajectory(Trajectory):
    """A step function along its states, differentiated forwards, by one thread at a time.

    Args:
        step: One sample's step.
        inputs: ``(batch, time, features)``.
        states: ``(batch, time + 1, state)``, the initial state first.
    """

    def __init__(
        self, step: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, states: Tensor
    ) -> None:
        self._step = step
        self._inputs = inputs
        self._path = states
        self._before = states[:, :-1]
        self.states = states[:, 1:]

        def push(state: Tensor, x: Tensor, vector: Tensor) -> Tensor:
            image: Tensor = jvp(lambda s: step(s, x), (state,), (vector,))[1]
            return image

        self._push = vmap(vmap(push, in_dims=(None, None, 0)))
        self._jacobian = vmap(jacfwd(step))

    def select(self, inputs: slice) -> "AutodiffTrajectory":
        """Return the trajectory of some of the inputs."""
        return AutodiffTrajectory(self._step, self._inputs[inputs], self._path[inputs])

    @property
    def single_threaded(self) -> bool:
        """Forward mode is process-wide."""
        return True

    def tangent(self, t: int, vectors: Tensor) -> Tensor:
        """Return one Jacobian-vector product per vector, batched."""
        with forward_mode():
            image: Tensor = self._push(self._before[:, t], self._inputs[:, t], vectors)
        return image.detach()

    def jacobians(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return Jacobians by Jacobian-vector products with the unit vectors."""
        with forward_mode():
            rows: Tensor = self._jacobian(self._before[inputs, times], self._inputs[inputs, times])
        return rows.detach()
