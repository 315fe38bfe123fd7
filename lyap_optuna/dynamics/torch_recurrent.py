"""The layers of ``torchrecurrent``: forty cells, one way to stack them.

Every layer there is a list of cells and a loop. A cell is called with (input, state) and returns
its next state, h or a pair (h, c); h goes upwards, or an output of its own. So all of them are
measured by their own cells, differentiated forwards; the state is that of the layers in order, h1,
c1, h2, c2, ... Three exceptions: where h is a function of c (JANET, RAN) the state is c; an input
that a cell remembers (TGRU, TLSTM) is input; states of earlier steps that a layer returns to
(tauGRU) are state, all of them.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp

from lyap_optuna.dynamics._errors import NotMeasurableError
from lyap_optuna.dynamics._libraries import (
    arguments,
    device_of,
    extended,
    parameter_dtype,
    sequences,
)
from lyap_optuna.dynamics.base import Dynamics, Trajectory, initial_of
from lyap_optuna.dynamics.gated import previous_states
from lyap_optuna.dynamics.linalg import wide_dtype
from lyap_optuna.dynamics.linear_tape import Tape, record

_ROWS = 2**24  # entries of the states that are differentiated at once


_HIDDEN_OF: dict[str, Callable[[Tensor], Tensor]] = {"JANET": lambda c: c, "RAN": torch.tanh}
"""Layers whose h is a function of c."""

_REMEMBERING = ("TGRU", "TLSTM")
"""Layers whose cells keep their last input."""


def names_of(module: nn.Module) -> set[str]:
    """Return the names of a module's class and its bases."""
    return {cls.__name__ for cls in type(module).__mro__}


class CellStack:
    """The cells of one layer of torchrecurrent, as one step of a flat state.

    Args:
        module: The layer.

    Raises:
        NotMeasurableError: It is not built as the library's own layers are.
    """

    def __init__(self, module: Any) -> None:
        names = names_of(module)
        loop = next(cls.__name__ for cls in type(module).__mro__ if "forward" in vars(cls))
        self.remembers = loop in _REMEMBERING
        if not (loop.endswith("StateRecurrentLayerBase") or self.remembers or loop == "tauGRU"):
            raise NotMeasurableError(
                f"{type(module).__name__} has a forward of its own (in {loop}), not one of "
                "torchrecurrent's: pass a lyap_optuna.RecurrentDynamics with its step function."
            )
        self.cells: list[Any] = list(module.cells)
        self.units: int = module.hidden_size
        self.features: int = module.input_size
        self.decoupled = any(name.startswith("Decoupled") for name in names)
        self.hidden_of = next((f for name, f in _HIDDEN_OF.items() if name in names), None)
        double = any("DoubleState" in name for name in names)
        self.parts = 2 if double and not self.remembers and self.hidden_of is None else 1
        self.delay: int = module.delay if loop == "tauGRU" else 0
        self.size = self.parts * self.units * len(self.cells) * (1 + self.delay)

    def flat(self, state: Any) -> Tensor:
        """Return a state that the layer's forward takes as ``(batch, state)``.

        Args:
            state: ``(layers, batch, units)``, or a pair of them.

        Raises:
            NotMeasurableError: Its h and c do not belong together, where h is a function of c.
        """
        parts = state if isinstance(state, tuple) else (state,)
        if self.hidden_of is not None:
            hidden, parts = parts[0], parts[1:]
            if not torch.allclose(hidden, self.hidden_of(parts[0])):
                raise NotMeasurableError(
                    "The initial state has an h that is not what its c makes of it, which no step "
                    "returns. Pass zeros, or a state that the layer returned."
                )
        flat = torch.stack(parts, dim=2).permute(1, 0, 2, 3).flatten(1)
        return torch.cat([flat, flat.new_zeros(len(flat), self.size - flat.shape[1])], dim=1)

    def step(self, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next state ``(n, state)`` and the output, ``(n, units)``."""
        pieces = state.split(self.units, dim=1)
        new: list[Tensor] = []
        for i, cell in enumerate(self.cells):
            part = pieces[self.parts * i : self.parts * (i + 1)]
            result = self._call(cell, x, part, pieces[i + len(self.cells) :])
            output, after = result if self.decoupled else (None, result)
            after = after if isinstance(after, tuple) else (after,)
            x = after[0] if output is None else output
            new.extend(after[:1] if self.remembers else after[-self.parts :])
        kept = pieces[2 * len(self.cells) :] + pieces[: len(self.cells)] if self.delay else ()
        return torch.cat([*new, *kept], dim=1), x

    def _call(self, cell: Any, x: Tensor, part: tuple[Tensor, ...], rest: Any) -> Any:
        if self.delay:  # what follows the states now is those of ``delay`` steps ago
            return cell(x, part[0], rest[0])
        if self.remembers:
            x, before = x.split(self.features, dim=1)
            return cell(x, (part[0], before))
        if self.hidden_of is not None:
            return cell(x, (self.hidden_of(part[0]), part[0]))
        return cell(x, part if self.parts == 2 else part[0])


def read_recurrent_calls(module: Any, calls: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Return ``(batch, time, features)`` and the flat initial state, or None for zeros.

    For a layer that remembers its last input, that is appended to the inputs.
    """
    call = arguments(module, calls[0])
    x, state = sequences(call["inp"], module), call.get("state")
    x = x if module.batch_first else x.transpose(0, 1)
    if names_of(module).intersection(_REMEMBERING):
        if module.num_layers > 1:
            raise NotMeasurableError(
                f"{type(module).__name__} with num_layers={module.num_layers}: its upper layers "
                "remember the output below them at the step before. Measure num_layers=1."
            )
        state, before = (None, (torch.zeros_like(x[:, 0]),)) if state is None else state
        x = extended(x, previous_states(before[0], x))
    return x, None if state is None else CellStack(module).flat(state)


class CellStackDynamics(Dynamics):
    """A layer of torchrecurrent, stepped by its own cells.

    Args:
        module: The layer, in the dtype to compute in.
    """

    def __init__(self, module: nn.Module) -> None:
        self.stack = CellStack(module)
        self.state_size = self.stack.size
        self.dtype, self.device = parameter_dtype(module), device_of(module)

    @torch.no_grad()
    def linearise(self, inputs: Tensor, initial_state: Any = None) -> "CellStackTrajectory":
        """Run the cells.

        Args:
            inputs: ``(batch, time, features)``.
            initial_state: ``(state,)`` or ``(batch, state)``, or as the layer's forward takes it;
                zeros where it is None.
        """
        if isinstance(initial_state, tuple) or getattr(initial_state, "ndim", 0) == 3:
            initial_state = self.stack.flat(initial_state)
        initial = initial_of(initial_state, inputs.shape[0], self.state_size, inputs)
        state, states = initial, []
        for t in range(inputs.shape[1]):
            state = self.stack.step(state, inputs[:, t])[0]
            states.append(state)
        return CellStackTrajectory(self.stack, inputs, initial, torch.stack(states, dim=1))


class CellStackTrajectory(Trajectory):
    """Cells along their states, differentiated forwards.

    A cell's derivative is written down once for all steps. Where it does something that the tape
    has no word for, perturbations are further rows of the batch that the cell takes anyway.

    Args:
        stack: The cells.
        inputs: ``(batch, time, features)``.
        initial: State before the first step, ``(batch, state)``.
        states: ``(batch, time, state)``.
    """

    def __init__(self, stack: CellStack, inputs: Tensor, initial: Tensor, states: Tensor) -> None:
        self._stack, self._inputs = stack, inputs
        self.initial, self.states = initial, states
        self._before = previous_states(initial, states)
        self._written: Tape | None = None
        self._has_tape = True

    def select(self, inputs: slice) -> "CellStackTrajectory":
        """Return the trajectory of some of the inputs."""
        parts = (self._inputs, self.initial, self.states)
        return CellStackTrajectory(self._stack, *(part[inputs] for part in parts))

    @torch.no_grad()
    def _pushed(self, before: Tensor, x: Tensor, vectors: Tensor) -> Tensor:
        # (n, state), (n, features), (n, k, state) -> (n, k, state)
        k = vectors.shape[1]
        states, xs = before.repeat_interleave(k, dim=0), x.repeat_interleave(k, dim=0)
        image: Tensor = jvp(
            lambda s: self._stack.step(s, xs)[0], (states,), (vectors.flatten(0, 1),)
        )[1]
        return image.view_as(vectors)

    @property
    def _tape(self) -> Tape | None:
        """The derivative of all steps, or None where it cannot be written down."""
        if self._written is None and self._has_tape:
            xs = self._inputs.flatten(0, 1)
            try:
                with torch.no_grad():
                    tape, after = record(lambda s: self._stack.step(s, xs)[0], self._before)
            except Exception:  # whatever it was: the cells themselves can be differentiated
                self._has_tape = False
            else:
                self._has_tape = torch.allclose(after, self.states, rtol=1e-3, atol=1e-3)
                self._written = tape if self._has_tape else None
        return self._written

    def tangent(self, t: int, vectors: Tensor) -> Tensor:
        """Return the images of tangent vectors, by the tape or by calling the cells once."""
        if self._tape is not None:
            return self._tape.push(t, vectors)
        return self._pushed(self._before[:, t], self._inputs[:, t], vectors)

    def jacobians(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return Jacobians, by the tape or by products with the unit vectors."""
        n, tape = self.state_size, self._tape
        eye = torch.eye(n, dtype=self.states.dtype, device=self.states.device)
        out = self.states.new_empty(len(inputs), n, n)
        at_once = max(1, _ROWS // (n * n))
        for part in range(0, len(inputs), at_once):
            pairs = inputs[part : part + at_once], times[part : part + at_once]
            if tape is not None:
                out[part : part + at_once] = tape.matrices(*pairs, self.states, n).mT
                continue
            before, x = self._before[pairs], self._inputs[pairs]
            out[part : part + at_once] = self._pushed(before, x, eye.expand(len(x), n, n))
        return out.mT

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """Return what the top cell passes on at every step, ``(batch, time, units)``."""
        if not self._stack.decoupled:
            units, parts = self._stack.units, self._stack.parts
            top = parts * units * (len(self._stack.cells) - 1)
            out: Tensor = self.states[..., top : top + units]
            return out if self._stack.hidden_of is None else self._stack.hidden_of(out)
        before, x = self._before.flatten(0, 1), self._inputs.flatten(0, 1)
        above: Tensor = self._stack.step(before, x)[1].unflatten(0, self.states.shape[:2])
        return above


def recurrent_dynamics(module: nn.Module, state: str) -> CellStackDynamics:
    """Build the dynamics of a layer of torchrecurrent.

    In float64: determinants of whole Jacobians are computed, and those of cells like the LSTM,
    where h hardly does more than c, are lost in float32.
    """
    return CellStackDynamics(copy.deepcopy(module).to(wide_dtype(device_of(module))).eval())


def recurrent_outputs(module: Any, inputs: Tensor, trajectory: Trajectory) -> Tensor:
    """Return what the layer returns first, in its own layout."""
    assert isinstance(trajectory, CellStackTrajectory)
    out = trajectory.outputs()
    return out if module.batch_first else out.transpose(0, 1)
