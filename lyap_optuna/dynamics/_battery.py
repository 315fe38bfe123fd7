"""The checks that a dynamics has to pass, for people who add their own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lyap_optuna.dynamics.base import Dynamics, Trajectory, computing_dtype
from lyap_optuna.dynamics.gated import StackedDynamics
from lyap_optuna.dynamics.linalg import wide

_DIRECTIONS = 32
"""Up to this many dimensions a Jacobian is checked in all of them, else in as many directions."""

_RESTARTED = 5
"""Steps that a restarted trajectory is followed; a chaotic system parts from itself later."""


@torch.no_grad()
def check_dynamics(
    dynamics: Dynamics,
    inputs: Tensor,
    initial_state: Any = None,
    *,
    as_initial_state: Callable[[Tensor], Any] | None = None,
) -> dict[str, float]:
    """Check that a dynamics keeps its contract: what it says of itself is what it does.

    These are the facts of :data:`lyap_optuna.testing.DYNAMICS_CHECKS`, one after another. Use
    float64: differences of float32 numbers see coarse errors only.

    Args:
        dynamics: What is checked.
        inputs: ``(batch, time, features)``, at least 2 sequences of at least 4 steps.
        initial_state: State before the first step, as ``linearise`` takes it.
        as_initial_state: Turns states ``(batch, state)``, as a trajectory has them, into what
            ``linearise`` takes as initial state; None where it takes them as they are.

    Returns:
        The largest error of each check by its name, relative to the numbers compared (absolute
        for those below 1, and for logarithms, in nats).

    Raises:
        ValueError: A check failed; the message says which, by how much, and at which step.

    Example:
        >>> import torch
        >>> import lyap_optuna as lyap
        >>> from lyap_optuna.dynamics import check_dynamics
        >>> leaky = lyap.RecurrentDynamics(lambda s, x: 0.9 * s + torch.tanh(x - s), state_size=3)
        >>> errors = check_dynamics(leaky, torch.randn(2, 8, 3, dtype=torch.float64))
        >>> max(errors.values()) < 1e-6
        True
    """
    battery = _Battery(dynamics, inputs, initial_state, as_initial_state)
    for fact in _FACTS:
        fact(battery)
    return battery.errors


class _Battery:
    def __init__(
        self,
        dynamics: Dynamics,
        inputs: Tensor,
        initial_state: Any,
        as_initial_state: Callable[[Tensor], Any] | None,
    ) -> None:
        if not isinstance(inputs, Tensor) or inputs.dim() != 3:
            raise ValueError("inputs must be a tensor (batch, time, features).")
        if inputs.shape[0] < 2 or inputs.shape[1] < 4:
            raise ValueError(
                f"inputs have shape {tuple(inputs.shape)}: pass at least 2 sequences of 4 steps."
            )
        dtype = dynamics.dtype or computing_dtype(inputs.dtype)
        self.inputs = inputs.to(device=dynamics.device or inputs.device, dtype=dtype)
        self.dynamics = dynamics
        self._as_initial = as_initial_state or self._flat
        self.trajectory = dynamics.linearise(self.inputs, initial_state)
        exact = dtype == torch.float64
        self.tolerance = 1e-9 if exact else 1e-3
        self.difference, self.difference_tolerance = (1e-6, 1e-5) if exact else (1e-2, 5e-2)
        self.errors: dict[str, float] = {}
        self.generator = torch.Generator().manual_seed(0)
        steps = self.inputs.shape[1]
        self.times = sorted({1, steps // 2, steps - 1})

    # Facts: what is compared with what ---------------------------------------------------------

    def states_are_finite_and_have_their_shape(self) -> None:
        """States are finite, ``(batch, time, state_size)``."""
        states = self.trajectory.states
        expected = (*self.inputs.shape[:2], self.dynamics.state_size)
        if tuple(states.shape) != expected:
            raise ValueError(
                f"states have shape {tuple(states.shape)}, but (batch, time, state_size) = "
                f"{expected} is needed."
            )
        if not bool(torch.isfinite(states).all()):
            raise ValueError("states become NaN or infinite on these inputs: pass others.")

    def a_trajectory_goes_on_from_any_of_its_states(self) -> None:
        """A trajectory restarted from one of its states goes on as before: that is the state."""
        for t in self.times:
            part = slice(t, t + _RESTARTED)
            again = self._linearised(self.inputs[:, part], self.trajectory.states[:, t - 1])
            self._compare(
                "states",
                again.states,
                self.trajectory.states[:, part],
                "those of a trajectory restarted from its own state: either the state lacks "
                "something that the next step depends on, or linearise does not begin at "
                "initial_state",
                t,
            )

    def tangents_are_derivatives_of_the_states(self) -> None:
        """``tangent`` is the derivative of the states, by differences of ``linearise`` itself."""
        if self._has_images():
            return
        for t in self.times:
            vectors = self._vectors()
            image, found = self.trajectory.tangent(t, vectors), self._pushed(t, vectors)
            self._compare(
                "tangent", image, found, "finite differences", t, self.difference_tolerance
            )

    def jacobians_are_derivatives_of_the_states(self) -> None:
        """``jacobians``, where there are any, are those derivatives, and ``tangent`` is theirs."""
        for t in self.times if self.trajectory.has_jacobians else ():
            vectors = self._vectors()
            image = vectors @ self.trajectory.jacobian(t).mT
            found = self._pushed(t, vectors)
            self._compare(
                "jacobians", image, found, "finite differences", t, self.difference_tolerance
            )
            if not self._has_images():
                tangent = self.trajectory.tangent(t, vectors)
                self._compare("tangent", tangent, image, "jacobians times vectors", t)

    def determinants_are_those_of_the_jacobians(self) -> None:
        """``log_abs_det`` and what is in closed form equal the Jacobians' log-determinants."""
        for t in self.times if self.trajectory.has_jacobians else ():
            self._determinants(t, wide(self.trajectory.jacobian(t)))

    def _determinants(self, t: int, jacobian: Tensor) -> None:
        trajectory = self.trajectory
        index = torch.arange(trajectory.batch, device=jacobian.device)
        truth = torch.linalg.slogdet(jacobian)[1]
        found = {"log_abs_det": trajectory.log_abs_det(index, torch.full_like(index, t))}
        if trajectory.closed_log_abs_det is not None:
            found["closed_log_abs_det"] = trajectory.closed_log_abs_det[:, t]
        if trajectory.closed_log_growth is not None:
            found["closed_log_growth"] = trajectory.closed_log_growth[:, t].sum(-1)
        # A determinant's relative rounding error grows with the condition number.
        epsilon = torch.finfo(trajectory.states.dtype).eps
        noise = jacobian.shape[-1] * epsilon * torch.linalg.cond(jacobian)
        for name, values in found.items():
            error = wide(values) - truth
            # of a singular matrix only noise is known, and minus infinity is right
            error = torch.where(noise < 0.1, (error.abs() - 10 * noise).clamp(min=0), error - 10)
            error = error.nan_to_num(torch.inf, neginf=0.0).clamp(min=0) / (1 + truth.abs())
            error = torch.where(values == truth, 0, error)
            self._note(name, float(error.max()), "the Jacobians' determinants", t)

    def closed_growth_adds_up_over_steps(self) -> None:
        """``closed_log_growth`` of all steps is the growth under the product of their Jacobians."""
        growth = self.trajectory.closed_log_growth
        if growth is None or not self.trajectory.has_jacobians:
            return
        steps = range(self.trajectory.steps)
        # A step that forgets everything (an average that begins) makes all that follows infinite.
        endless = [t for t in steps if not bool(torch.isfinite(growth[:, t]).all())]
        first = endless[-1] + 1 if endless else 0
        jacobians = [wide(self.trajectory.jacobian(t)) for t in steps[first:]]
        if not jacobians:
            return
        total = growth[:, first:].sum(1).sort(dim=1).values
        errors = []
        for reverse in (False, True):  # triangular matrices: from the side where they stay so
            found = _product_growth(jacobians, reverse)
            errors.append(float((total - found).abs().max()))
        error = min(errors) / (1 + float(total.abs().max()))
        self._note("closed_log_growth", error, "the growth under the Jacobians' product", None)

    def images_are_products_of_tangents(self) -> None:
        """``images``, where there are any, go from step to step as the states' derivatives do."""
        rows = self._directions(self.dynamics.state_size)[:3]
        images = self.trajectory.images(rows)
        if images is None:
            return
        for t in self.times:
            found = self._pushed(t, images[t - 1].to(self.inputs))
            scale = found.abs().amax().clamp(min=1e-30)
            self._compare(
                "images",
                images[t].to(found) / scale,
                found / scale,
                "finite differences",
                t,
                self.difference_tolerance,
            )

    def a_selection_has_the_same_numbers(self) -> None:
        """``select`` gives some of the inputs the numbers that they have among all."""
        whole = self.trajectory
        part = slice(1, None)
        chosen = whole.select(part)
        t = self.times[-1]
        what = "the same of the whole trajectory"
        self._compare("select", chosen.states, whole.states[part], what, None)
        for name in ("closed_log_abs_det", "closed_log_growth"):
            mine, theirs = getattr(chosen, name), getattr(whole, name)
            if (mine is None) != (theirs is None):
                raise ValueError(f"select(inputs).{name} is None and that of the whole is not.")
            if mine is not None:
                self._compare("select", wide(mine), wide(theirs[part]), what, None)
        vectors = self._vectors()[:, :3].contiguous()
        if not self._has_images():
            image = chosen.tangent(t, vectors[part])
            self._compare("select", image, whole.tangent(t, vectors)[part], what, t)
        if whole.has_jacobians:
            self._compare("select", chosen.jacobian(t), whole.jacobian(t)[part], what, t)

    # How ---------------------------------------------------------------------------------------

    def _flat(self, states: Tensor) -> Any:
        cells = self.dynamics.cells if isinstance(self.dynamics, StackedDynamics) else None
        if cells is None:
            return states
        if any(cell.blocks != cell.n_initial for cell in cells):
            raise ValueError(
                "The states hold less than linearise takes as initial state: the state is "
                'incomplete. Build the dynamics with state="full".'
            )
        by_cell: tuple[Tensor, ...] = states.split([cell.state_size for cell in cells], dim=1)
        blocks = [part.split(c.units, dim=1) for part, c in zip(by_cell, cells, strict=True)]
        parts = tuple(torch.stack(part) for part in zip(*blocks, strict=True))
        return parts if len(parts) > 1 else parts[0]

    def _has_images(self) -> bool:
        return self.trajectory.images(self._directions(self.dynamics.state_size)[:1]) is not None

    def _vectors(self) -> Tensor:
        """Return the directions for each input, ``(batch, k, state)``."""
        rows = self._directions(self.dynamics.state_size)
        return rows.expand(self.trajectory.batch, *rows.shape).contiguous()

    def _linearised(self, inputs: Tensor, states: Tensor) -> Trajectory:
        initial = self._as_initial(states)
        try:
            return self.dynamics.linearise(inputs, initial)
        except ValueError as error:
            raise ValueError(
                f"linearise does not go on from a trajectory's states {tuple(states.shape)} "
                f"({error}). If a step keeps anything between calls, put it into the state; if "
                "linearise takes another form of states, pass as_initial_state, which makes it."
            ) from error

    def _directions(self, n: int) -> Tensor:
        """Return unit vectors, ``(k, state)``: all of them, or as many as are enough."""
        if n <= _DIRECTIONS:
            return torch.eye(n, dtype=self.inputs.dtype, device=self.inputs.device)
        rows = torch.randn(_DIRECTIONS, n, generator=self.generator, dtype=torch.float64)
        unit: Tensor = rows / rows.norm(dim=1, keepdim=True)
        return unit.to(self.inputs)

    def _pushed(self, t: int, vectors: Tensor) -> Tensor:
        """Return the images of vectors ``(batch, k, state)`` under step t by differences."""
        before = self.trajectory.states[:, t - 1]
        k = vectors.shape[1]
        scale = self.difference * before.abs().amax(dim=1).clamp(min=1).view(-1, 1, 1)
        scale = scale / vectors.abs().amax(dim=2, keepdim=True).clamp(min=1e-30)
        x = self.inputs[:, t : t + 1].repeat_interleave(k, dim=0)
        sides = [
            self._linearised(x, (before.unsqueeze(1) + sign * scale * vectors).flatten(0, 1))
            .states[:, 0]
            .view_as(vectors)
            for sign in (1, -1)
        ]
        return (sides[0] - sides[1]) / (2 * scale)

    def _compare(
        self,
        name: str,
        found: Tensor,
        truth: Tensor,
        other: str,
        t: int | None,
        tolerance: float | None = None,
    ) -> None:
        if found.shape != truth.shape:
            raise ValueError(
                f"{name} has shape {tuple(found.shape)}, but {tuple(truth.shape)} is needed."
            )
        # equal infinities are equal
        difference = torch.where(found == truth, 0, found - truth).abs().nan_to_num(torch.inf)
        known = truth.abs().nan_to_num(0, posinf=0, neginf=0)
        error = float(difference.amax() / known.amax().clamp(min=1))
        self._note(name, error, other, t, tolerance)

    def _note(
        self, name: str, error: float, other: str, t: int | None, tolerance: float | None = None
    ) -> None:
        tolerance = self.tolerance if tolerance is None else tolerance
        self.errors[name] = max(self.errors.get(name, 0.0), error)
        if not error <= tolerance:
            where = "" if t is None else f" at step {t} (from 0)"
            raise ValueError(
                f"{name} disagrees by {error:.2e}{where}, where {tolerance:.0e} is allowed, with "
                f"{other}."
            )


_FACTS: tuple[Callable[[_Battery], None], ...] = (
    _Battery.states_are_finite_and_have_their_shape,
    _Battery.a_trajectory_goes_on_from_any_of_its_states,
    _Battery.tangents_are_derivatives_of_the_states,
    _Battery.jacobians_are_derivatives_of_the_states,
    _Battery.determinants_are_those_of_the_jacobians,
    _Battery.closed_growth_adds_up_over_steps,
    _Battery.images_are_products_of_tangents,
    _Battery.a_selection_has_the_same_numbers,
)


def _check_of(fact: Callable[[_Battery], None]) -> Callable[..., None]:
    @torch.no_grad()
    def check(
        dynamics: Dynamics,
        inputs: Tensor,
        initial_state: Any = None,
        *,
        as_initial_state: Callable[[Tensor], Any] | None = None,
    ) -> None:
        fact(_Battery(dynamics, inputs, initial_state, as_initial_state))

    check.__name__, check.__doc__ = fact.__name__, fact.__doc__
    return check


DYNAMICS_CHECKS = tuple(map(_check_of, _FACTS))
"""The facts that :func:`check_dynamics` checks, each a function of the same arguments."""


def _product_growth(jacobians: list[Tensor], reverse: bool) -> Tensor:
    """Return log|diag R| of a product, from the unit vectors in order or reversed, sorted."""
    q = torch.eye(jacobians[0].shape[-1]).to(jacobians[0])
    q = (q.flip(1) if reverse else q).expand_as(jacobians[0])
    total = torch.zeros(jacobians[0].shape[:2]).to(q)
    for jacobian in jacobians:
        q, r = torch.linalg.qr(jacobian @ q)
        total += r.diagonal(dim1=-2, dim2=-1).abs().log()
    return total.sort(dim=1).values
