"""Layers with equations of their own, rebuilt from their weights along the calls of a forward.

What a layer returned is compared with what its equations say, in the model's own dtype; where
rounding may be the difference, once more in float64. Calls that continue one another are one
sequence, where nothing but the state is handed on.
"""

from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lyap_optuna.dynamics._arguments import leaves
from lyap_optuna.dynamics._capture import Forward, ModuleCall, Observer
from lyap_optuna.dynamics._carriers import made_dual
from lyap_optuna.dynamics._checks import agree, agree_at_first, another, checked_inputs
from lyap_optuna.dynamics._errors import NotMeasurableError
from lyap_optuna.dynamics._registry import Architecture
from lyap_optuna.dynamics.base import Dynamics, Trajectory
from lyap_optuna.dynamics.forward_mode import forward_mode

Runs = list[list[ModuleCall]]
"""Calls that belong together: those of one forward, or one."""


class RebuiltLayer:
    """A layer of a model, with what it was called with.

    Args:
        forward: The model and its inputs.
        name: The layer's name.
        module: A private copy of it.
        architecture: Its equations.
        calls: Its calls.
        state: ``"hidden"`` or ``"full"``.
    """

    def __init__(
        self,
        forward: Forward,
        name: str,
        module: nn.Module,
        architecture: Architecture,
        calls: list[ModuleCall],
        state: str,
    ) -> None:
        self._forward, self._name, self._module = forward, name, module
        self._architecture, self._state = architecture, state
        self._runs = self._split(calls)

    def trajectories(self) -> list[Trajectory]:
        """Linearise each sequence of calls.

        Raises:
            NotMeasurableError: The layer cannot be measured, or is another than its weights say.
        """
        dynamics = self._dynamics(self._module)
        given = self._forward.initial_state
        found: list[Trajectory] = []
        pieces: list[tuple[Tensor, Any]] = []
        for i, run in enumerate(self._runs):
            first = not (i and self._continues[i - 1])
            last = i + 1 == len(self._runs) or not self._continues[i]
            reaching, initial = self._read(self._module, run)
            inputs = checked_inputs(reaching, dynamics, least=2 if first and last else 1)
            along = self._along(dynamics, run, inputs, initial)
            trajectory = along or dynamics.linearise(inputs, initial)
            same = along is not None or self._same(self._module, run, inputs, trajectory)
            if not same and not self._same_in_double(i):
                raise NotMeasurableError(another(self._name, self._module))
            pieces.append((inputs, initial))
            if last:
                begin = pieces[0][1]
                if given is not None and not found:
                    begin = given
                if begin is not initial or len(pieces) > 1:
                    joined = torch.cat([piece[0] for piece in pieces], dim=1)
                    trajectory = dynamics.linearise(joined, begin)
                found.append(trajectory)
                pieces = []
        return found

    def _split(self, calls: list[ModuleCall]) -> Runs:
        return [calls] if self._architecture.stepwise else [[call] for call in calls]

    def _dynamics(self, module: nn.Module) -> Dynamics:
        assert self._architecture.build is not None
        return self._architecture.build(module, self._state)

    def _read(self, module: nn.Module, run: list[ModuleCall]) -> tuple[Tensor, Any]:
        try:
            return self._architecture.read_calls(module, [(c.args, c.kwargs) for c in run])
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise NotMeasurableError(
                f"What {type(module).__name__} {self._name!r} was called with cannot be read "
                f"({type(error).__name__}: {error}): pass a lyap_optuna.RecurrentDynamics with its "
                "step function."
            ) from error

    def _along(
        self, dynamics: Any, run: list[ModuleCall], inputs: Tensor, initial: Any
    ) -> Trajectory | None:
        """Return a trajectory along the model's own states, where it is these equations'."""
        if self._architecture.states is None or not run[-1].results:
            return None
        states = self._architecture.states(self._module, run[-1].results)
        if states is None or states.shape[:2] != inputs.shape[:2]:
            return None
        states = states.to(inputs)
        trajectory: Trajectory
        trajectory, rebuilt = dynamics.linearise_along(inputs, initial, states)
        return trajectory if agree(rebuilt, states) else None

    # Whose network? -------------------------------------------------------------------------------

    def _same(
        self,
        module: nn.Module,
        run: list[ModuleCall],
        inputs: Tensor,
        trajectory: Trajectory,
        spreading: bool = False,
    ) -> bool:
        """Whether the equations say what the layer returned."""
        if self._architecture.outputs is None:
            return True
        returned = run[-1].result
        if returned is None:
            return False
        rebuilt = self._architecture.outputs(module, inputs, trajectory)
        if rebuilt.shape == (1, *returned.shape):  # one sequence, without a batch dimension
            rebuilt = rebuilt[0]
        if agree(rebuilt, returned):
            return True
        return spreading and agree_at_first(rebuilt, returned, trajectory)

    def _same_in_double(self, i: int) -> bool:
        module, runs = self._in_double
        if len(runs) != len(self._runs):
            return False
        dynamics = self._dynamics(module)
        reaching, initial = self._read(module, runs[i])
        inputs = checked_inputs(reaching, dynamics, least=1)
        trajectory = dynamics.linearise(inputs, initial)
        return self._same(module, runs[i], inputs, trajectory, spreading=True)

    @cached_property
    def _in_double(self) -> tuple[nn.Module, Runs]:
        try:
            copies, calls = self._forward.run(double=True)
        except NotMeasurableError:  # a model may insist on its dtype
            return self._module, []
        return copies[self._name], self._split([c for c in calls if c.layer == self._name])

    # Calls that continue one another --------------------------------------------------------------

    @cached_property
    def _continues(self) -> list[bool]:
        """Whether each run but the first continues the one before it."""
        if not self._may_continue():
            return [False] * (len(self._runs) - 1)
        with forward_mode(), forward_ad.dual_level():
            _, calls = self._forward.run(Marks(self._name), double=True)
            runs = self._split([call for call in calls if call.layer == self._name])
            return [self._continued(a[-1], b[0]) for a, b in pairwise(runs)]

    def _may_continue(self) -> bool:
        """Whether a later call begins with another state than the first."""
        first, *later = (_states(run[0]) for run in self._runs)
        return any(
            bool(part.count_nonzero()) and not any(_equal(part, begin) for begin in first)
            for states in later
            for part in states
        )

    def _continued(self, before: ModuleCall, call: ModuleCall) -> bool:
        handed_on = False
        for part in _states(call):
            same = any(_equal(part, result) for result in before.results)
            if _is_marked(part) and not same:
                raise NotMeasurableError(self._between("its state is changed"))
            handed_on |= same and bool(part.count_nonzero())
        if handed_on and any(_is_marked(part) for part in _inputs(call)):
            raise NotMeasurableError(self._between("its output is fed back"))
        return handed_on

    def _between(self, what: str) -> str:
        return (
            f"{type(self._module).__name__} {self._name!r} is called several times for one "
            f"sequence, and {what} between the calls, which is not in its own equations. Pass a "
            "lyap_optuna.RecurrentDynamics with the whole step."
        )


class Marks(Observer):
    """Marks what a layer returns, so that it can be seen where it arrives again."""

    level = "module"

    def __init__(self, name: str) -> None:
        self._name = name

    def follows(self, layer: str) -> bool:
        """Whether it is the layer."""
        return layer == self._name

    def leaving(self, layer: str, results: list[Tensor]) -> None:
        """Give results a tangent."""
        for part in results:
            if part.is_floating_point() or part.is_complex():
                made_dual(part, torch.ones_like(part))


def _is_marked(part: Tensor) -> bool:
    return forward_ad.unpack_dual(part).tangent is not None


def _leaves(call: ModuleCall) -> list[Tensor]:
    found = leaves((call.args, call.kwargs))
    return [part for part in found if part.is_floating_point() or part.is_complex()]


def _inputs(call: ModuleCall) -> list[Tensor]:
    return _leaves(call)[:1]


def _states(call: ModuleCall) -> list[Tensor]:
    return _leaves(call)[1:]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.detach(), b.detach())
