"""The contract between an architecture and everything that measures exponents.

A *dynamics* says how a recurrent system steps: state s_t = f(s_{t-1}, x_t). Driven by a batch of
input sequences it gives a *trajectory*: the states of all steps, and f linearised along them. A
trajectory answers a few questions, and exponents are measured by these alone:

========================  ===================================================================
``states``                s_1 ... s_T of every input
``tangent(t, v)``         J_t v for tangent vectors v; must not form J_t where it can be avoided
``jacobians(inputs, t)``  J_t itself, for pairs of input and step
``log_abs_det``           log|det J_t| for pairs of input and step; the default factorises J_t
``closed_log_abs_det``    the same for all pairs at once where there is a closed form, else None
``closed_log_growth``     log expansion of every dimension where J is diagonal, else None
``images(v)``             J_t ... J_1 v for all t, where all steps are taken at once, else None
``has_jacobians``         whether ``jacobians`` and ``log_abs_det`` can be had
``single_threaded``       whether it must not be given to several threads at once
``select(inputs)``        the trajectory of some of the inputs
========================  ===================================================================

Tangent vectors are *rows*: ``(batch, k, state)``. A linear map of a row vector is one matrix
product for the whole batch (``torch.nn.functional.linear``), and the transpose of a row-major
block of rows is the column-major matrix that LAPACK factorises in place.

Times count from 0 for the first input: J_t = ds_{t+1}/ds_t in code is J_{t+1} in the papers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lyap_optuna.dynamics import linalg


class Trajectory(ABC):
    """A dynamics linearised along the states that a batch of inputs drives it through.

    Attributes:
        states: States after each step, ``(batch, time, state)``.
    """

    states: Tensor

    @property
    def batch(self) -> int:
        """Number of input sequences."""
        return self.states.shape[0]

    @property
    def steps(self) -> int:
        """Number of time steps."""
        return self.states.shape[1]

    @property
    def state_size(self) -> int:
        """Dimension of the state: the number of exponents."""
        return self.states.shape[2]

    @abstractmethod
    def tangent(self, t: int, vectors: Tensor) -> Tensor:
        """Return J_t applied to tangent vectors, ``(batch, k, state)`` to the same shape."""

    @abstractmethod
    def jacobians(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return the Jacobians of pairs of input and step.

        Args:
            inputs: Index of the input sequence of each pair, ``(n,)``.
            times: Step of each pair, ``(n,)``.

        Returns:
            ``(n, state, state)``; its transpose is contiguous where that is cheap to arrange.
        """

    def jacobian(self, t: int) -> Tensor:
        """Return J_t of every input, ``(batch, state, state)``."""
        inputs = torch.arange(self.batch, device=self.states.device)
        return self.jacobians(inputs, torch.full_like(inputs, t))

    def log_abs_det(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return log|det J| of pairs of input and step, ``(n,)`` in float64.

        The Jacobians of the pairs are independent of one another: one batched LU, no QR.
        """
        return linalg.log_abs_det(self.jacobians(inputs, times))

    @property
    def closed_log_abs_det(self) -> Tensor | None:
        """log|det J| of all pairs by a closed form, ``(batch, time)`` in float64, or None."""
        return None

    @property
    def closed_log_growth(self) -> Tensor | None:
        """Log expansion of every dimension where J is diagonal, or None.

        ``(batch, time, state)`` in float64; equal to all the exponents there is.
        """
        return None

    @property
    def has_jacobians(self) -> bool:
        """Whether ``jacobians`` and ``log_abs_det`` can be had; else there is no mean exponent."""
        return True

    @property
    def single_threaded(self) -> bool:
        """Whether one thread has to ask: forward-mode differentiation is process-wide."""
        return False

    def images(self, rows: Tensor) -> Tensor | None:
        """Return the images of tangent vectors after every step, or None.

        For systems that push vectors through all their steps at once, without rescaling; then
        exponents are the growth of log|diag R| of these images, and ``tangent`` is not asked.

        Args:
            rows: Tangent vectors before the first step, ``(k, state)``.

        Returns:
            ``(time, batch, k, state)`` in float64.
        """
        return None

    @abstractmethod
    def select(self, inputs: slice) -> "Trajectory":
        """Return the trajectory of some of the inputs; the data is shared, not copied."""

    def tangent_is_cheaper(self, k: int) -> bool:
        """Whether ``tangent`` costs less for k vectors than forming J_t and multiplying."""
        return True

    @property
    def bytes_per_jacobian(self) -> int:
        """Memory of one Jacobian."""
        return self.state_size**2 * self.states.element_size()


class Batches(Trajectory):
    """Trajectories of one system on several batches, as one batch.

    Shorter ones are padded by their last step.

    Args:
        parts: The trajectories.
    """

    def __init__(self, parts: Sequence[Trajectory]) -> None:
        self.parts = list(parts)
        longest = max(part.steps for part in parts)
        self.states = torch.cat([_padded(part.states, longest) for part in parts])
        sizes = torch.tensor([part.batch for part in parts])
        self._starts = [0, *sizes.cumsum(0).tolist()]

    @property
    def single_threaded(self) -> bool:
        """Whether one of them is."""
        return any(part.single_threaded for part in self.parts)

    @property
    def has_jacobians(self) -> bool:
        """Whether all have them."""
        return all(part.has_jacobians for part in self.parts)

    def select(self, inputs: slice) -> Trajectory:
        """Return the trajectory of some of the inputs."""
        start, stop, _ = inputs.indices(self.batch)
        chosen = []
        for part, first in zip(self.parts, self._starts, strict=False):
            low, high = max(start - first, 0), min(stop - first, part.batch)
            if low < high:
                chosen.append(part.select(slice(low, high)))
        return Batches(chosen)

    def tangent(self, t: int, vectors: Tensor) -> Tensor:
        """Apply each batch's own map."""
        pieces = vectors.split([part.batch for part in self.parts])
        return torch.cat(
            [p.tangent(min(t, p.steps - 1), v) for p, v in zip(self.parts, pieces, strict=True)]
        )

    def jacobians(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return the Jacobians of pairs of input and step."""
        out = self.states.new_empty(len(inputs), self.state_size, self.state_size)
        for part, mine, local, t in self._shares(inputs, times):
            out[mine] = part.jacobians(local, t)
        return out

    def log_abs_det(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return log|det J| of pairs."""
        device = self.states.device
        out = torch.empty(len(inputs), dtype=linalg.wide_dtype(device), device=device)
        for part, mine, local, t in self._shares(inputs, times):
            out[mine] = part.log_abs_det(local, t)
        return out

    def _shares(
        self, inputs: Tensor, times: Tensor
    ) -> Iterator[tuple[Trajectory, Tensor, Tensor, Tensor]]:
        for part, first in zip(self.parts, self._starts, strict=False):
            mine = (inputs >= first) & (inputs < first + part.batch)
            if bool(mine.any()):
                yield part, mine, inputs[mine] - first, times[mine].clamp(max=part.steps - 1)

    @property
    def closed_log_abs_det(self) -> Tensor | None:
        """The closed forms of all, where each has one."""
        return self._closed([part.closed_log_abs_det for part in self.parts])

    @property
    def closed_log_growth(self) -> Tensor | None:
        """The closed forms of all, where each has one."""
        return self._closed([part.closed_log_growth for part in self.parts])

    def _closed(self, parts: list[Tensor | None]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        if len(there) < len(parts):
            return None
        return torch.cat([_padded(part, self.steps) for part in there])

    def tangent_is_cheaper(self, k: int) -> bool:
        """As for each of them."""
        return self.parts[0].tangent_is_cheaper(k)


def _padded(values: Tensor, steps: int) -> Tensor:
    missing = steps - values.shape[1]
    if not missing:
        return values
    last = values[:, -1:].expand(-1, missing, *values.shape[2:])
    return torch.cat([values, last], dim=1)


class Dynamics(ABC):
    """How a recurrent system steps.

    Attributes:
        state_size: Dimension of the state.
        input_size: Features of an input; None, unless set, where any number will do.
        dtype: What it computes in; None, unless set, where that of the inputs decides.
        device: Of the parameters; None, unless set, where that of the inputs decides.
    """

    state_size: int
    input_size: int | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None

    @abstractmethod
    def linearise(self, inputs: Tensor, initial_state: Any = None) -> Trajectory:
        """Drive the system by a batch of inputs and linearise it along the way.

        Args:
            inputs: ``(batch, time, features)``, already of the dynamics' dtype and device.
            initial_state: State before the first step, as the architecture takes it; zeros
                where it is None.

        Raises:
            ValueError: ``initial_state`` does not fit.
        """


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that exponents of a network of ``dtype`` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def initial_of(given: Any, batch: int, size: int, like: Tensor) -> Tensor:
    """Return an ``initial_state`` as ``(batch, size)``; zeros where None is given.

    Args:
        given: ``(size,)`` or ``(batch, size)``, or a tuple of parts, which are put in a row.
        batch: Number of sequences.
        size: Dimension of the state.
        like: What tells dtype and device.

    Raises:
        ValueError: It has another shape.
    """
    if given is None:
        return like.new_zeros(batch, size)
    if isinstance(given, (tuple, list)):
        given = torch.cat(list(given), dim=-1)
    state = torch.as_tensor(given).detach().to(like)
    try:
        return state.expand(batch, size)
    except RuntimeError:
        raise ValueError(
            f"initial_state has shape {tuple(state.shape)}, but (batch, state) = {(batch, size)} "
            "is needed."
        ) from None
