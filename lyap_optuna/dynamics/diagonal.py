"""Diagonal linear recurrences, h_t = a_t h_{t-1} + b_t: state-space layers, linear recurrent units.

Their exponents are exact: the averages of log|a_t|, no tangent vectors and no factorisation.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics.base import Dynamics, Trajectory, computing_dtype
from lyap_optuna.dynamics.linalg import wide


class DiagonalDynamics(Dynamics):
    """h_t = a_t h_{t-1} + b_t with real or complex a_t, possibly a function of the input.

    A complex component is two real dimensions, which share their exponent.

    Args:
        coefficients: ``coefficients(inputs: (batch, time, F)) -> (a, b)``, each broadcastable to
            ``(batch, time, N)``. Where a has M entries and M divides N, each entry holds for N / M
            components in a row (a decay per head, say), and nothing is repeated in memory. A third
            value, where there is one, is log|a|, of a's shape: its logarithm is coarse in float32
            near 1, and minus infinity where a has underflown.
        state_size: N, the number of components.
        is_complex: Whether a is complex; the state then has 2N dimensions.
        dtype: What the coefficients are computed from, float32 or float64; None where the inputs
            decide.
        device: Where; None where the inputs decide.

    Example:
        >>> import torch
        >>> import lyap_optuna as lyap
        >>> from lyap_optuna.dynamics import DiagonalDynamics
        >>> layer = DiagonalDynamics(lambda x: (torch.tensor([0.5, 0.9]), x), state_size=2)
        >>> s = lyap.lyapunov_spectrum(layer, torch.randn(3, 40, 2, dtype=torch.float64))
        >>> [round(float(e), 4) for e in s.exponents]
        [-0.1054, -0.6931]
    """

    def __init__(
        self,
        coefficients: Callable[[Tensor], tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]],
        state_size: int,
        is_complex: bool = False,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.coefficients = coefficients
        self.dtype, self.device = dtype, device
        self.components = state_size
        self.is_complex = is_complex
        self.state_size = 2 * state_size if is_complex else state_size

    def linearise(self, inputs: Tensor, initial_state: Any = None) -> "DiagonalTrajectory":
        """Run the recurrence.

        Args:
            inputs: ``(batch, time, features)``.
            initial_state: ``(N,)`` or ``(batch, N)``, complex where a is, or as ``states`` lays
                it out; zeros where it is None.

        Raises:
            ValueError: The coefficients are not of the announced size or kind.
        """
        shape = (*inputs.shape[:2], self.components)
        a, b, *logs = (c.detach() for c in self.coefficients(inputs))
        if a.is_complex() != self.is_complex:
            raise ValueError(
                f"a_t is {'complex' if a.is_complex() else 'real'}, but is_complex="
                f"{self.is_complex}."
            )
        kind = torch.promote_types(inputs.dtype, torch.complex64 if self.is_complex else a.dtype)
        try:
            distinct = a.shape[-1] if a.dim() else 1
            if self.components % max(distinct, 1):
                a.expand(shape)  # says what does not fit
            a = a.to(kind).expand(*shape[:2], distinct)
            log_a = wide(logs[0]).expand(a.shape) if logs else None
            b = b.to(kind).expand(shape)
            h = a.new_zeros(shape[0], shape[2])
            if initial_state is not None:
                h = self._components(torch.as_tensor(initial_state).detach()).to(h).expand_as(h)
        except RuntimeError as error:
            raise ValueError(
                f"a, b and initial_state must broadcast to (batch, time, {self.components}): "
                f"{error}."
            ) from None
        states = torch.empty_like(b, memory_format=torch.contiguous_format)
        by_entry = (shape[0], distinct, self.components // distinct)
        for t in range(shape[1]):
            decay = a[:, t].unsqueeze(2)
            h = torch.addcmul(b[:, t].reshape(by_entry), decay, h.reshape(by_entry)).flatten(1)
            states[:, t] = h
        return DiagonalTrajectory(a, states, log_a)

    def _components(self, state: Tensor) -> Tensor:
        # (real, imaginary) pairs, as a trajectory's states have them, to complex components
        if self.is_complex and not state.is_complex() and state.shape[-1:] == (self.state_size,):
            return torch.view_as_complex(state.unflatten(-1, (-1, 2)).contiguous())
        return state


class DiagonalTrajectory(Trajectory):
    """A diagonal recurrence along its states; a complex component is (real, imaginary).

    Args:
        a: ``(batch, time, M)``, M a divisor of N; each entry holds for N / M components in a row.
        components: ``(batch, time, N)``.
        log_a: log|a| in float64, where it is known better than from a.
    """

    def __init__(self, a: Tensor, components: Tensor, log_a: Tensor | None = None) -> None:
        self._a, self._components = a, components
        self._log_a = wide(a.abs()).log() if log_a is None else log_a
        self._repeats = components.shape[2] // a.shape[2]
        self.states = torch.view_as_real(components).flatten(2) if a.is_complex() else components

    @property
    def _dimensions(self) -> int:
        # of the state, per entry of a
        return self._repeats * (2 if self._a.is_complex() else 1)

    @property
    def closed_log_growth(self) -> Tensor:
        """log|a_t| of every dimension, ``(batch, time, state)`` in float64."""
        return self._log_a.repeat_interleave(self._dimensions, dim=2)

    @property
    def closed_log_abs_det(self) -> Tensor:
        """The sum of ``closed_log_growth`` over the state."""
        return self._log_a.sum(2) * self._dimensions

    def select(self, inputs: slice) -> "DiagonalTrajectory":
        """Return the trajectory of some of the inputs."""
        return DiagonalTrajectory(self._a[inputs], self._components[inputs], self._log_a[inputs])

    def tangent(self, t: int, vectors: Tensor) -> Tensor:
        """Multiply by a_t."""
        a = self._a[:, t].repeat_interleave(self._repeats, dim=1).unsqueeze(1)
        if not a.is_complex():
            return vectors * a
        pairs = torch.view_as_complex(vectors.unflatten(2, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * a).flatten(2)

    def jacobians(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return diagonal matrices, of 2 x 2 rotations where a is complex."""
        a = self._a[inputs, times].repeat_interleave(self._repeats, dim=1)
        if not a.is_complex():
            return torch.diag_embed(a)
        blocks = torch.stack([a.real, -a.imag, a.imag, a.real], dim=-1).unflatten(-1, (2, 2))
        out = self.states.new_zeros(len(a), a.shape[1], 2, a.shape[1], 2)
        out.diagonal(dim1=1, dim2=3).copy_(blocks.permute(0, 2, 3, 1))
        return out.view(len(a), self.state_size, self.state_size)


class DiagonalStateSpace(nn.Module):
    """A selective state-space layer: a_t = exp(-softplus(W x_t + b) rate), real, per channel.

    Args:
        input_size: Features of an input.
        state_size: Components of the state.
    """

    def __init__(self, input_size: int, state_size: int) -> None:
        super().__init__()
        self.step_size = nn.Linear(input_size, state_size)
        self.drive = nn.Linear(input_size, state_size)
        self.log_rate = nn.Parameter(torch.linspace(-3, 0, state_size))

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return a_t and b_t of every step."""
        step = nn.functional.softplus(self.step_size(x))
        return torch.exp(-step * self.log_rate.exp()), step * self.drive(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the states of all steps, ``(batch, time, state)``."""
        a, b = self.coefficients(x)
        h = torch.zeros_like(b[:, 0])
        states = []
        for t in range(x.shape[1]):
            h = a[:, t] * h + b[:, t]
            states.append(h)
        return torch.stack(states, dim=1)


def diagonal_dynamics(module: nn.Module, state: str) -> DiagonalDynamics:
    """Build the dynamics of a :class:`DiagonalStateSpace`."""
    assert isinstance(module, DiagonalStateSpace)
    module = copy.deepcopy(module).to(computing_dtype(module.log_rate.dtype))
    weight = module.log_rate
    return DiagonalDynamics(
        module.coefficients, len(weight), dtype=weight.dtype, device=weight.device
    )
