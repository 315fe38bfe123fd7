"""Independent truth: a library's own step, differentiated in float64, with a QR at every step."""

import contextlib
import copy
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev

from lyap_optuna.dynamics import check_dynamics
from lyap_optuna.dynamics._registry import architecture_of
from lyap_optuna.dynamics.base import Dynamics, Trajectory

Step = Callable[[Tensor, int], Tensor]


def library(name: str) -> Any:
    """Import a package, or skip the module that asks for it.

    In their own environment (``make test-libraries``) LYAP_REQUIRE_LIBRARIES=1 makes a missing
    package a failure.
    """
    if os.environ.get("LYAP_REQUIRE_LIBRARIES") == "1":
        return importlib.import_module(name)
    return pytest.importorskip(name)


def randomised(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """Return a float64 copy in eval mode whose parameters are spread out, none zero."""
    module = copy.deepcopy(module).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad and p.is_floating_point():
                p.add_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


def measured(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Dynamics, Tensor, Trajectory]:
    """Return dynamics, inputs and trajectory of a registered layer, as a measurement gets them."""
    architecture = architecture_of(module)
    assert architecture is not None, f"{type(module)} is not recognised"
    calls: list[Any] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(copy.deepcopy((args, kwargs)))  # a forward may change what it is given

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    with torch.no_grad():
        expected = module(*args, **kwargs)
    handle.remove()
    with torch.no_grad():
        inputs, initial = architecture.read_calls(module, calls)
        dynamics = architecture.build(module, "full")
        inputs = inputs.to(dynamics.dtype or inputs.dtype)
        trajectory = dynamics.linearise(inputs, initial)
        assert architecture.outputs is not None
        rebuilt = architecture.outputs(module, inputs, trajectory)
    expected = expected[0] if isinstance(expected, tuple) else expected
    if rebuilt.shape == (1, *expected.shape):  # one sequence without a batch dimension
        rebuilt = rebuilt[0]
    assert rebuilt.shape == expected.shape
    coarse = torch.float32 in (rebuilt.dtype, expected.dtype)
    error = float((rebuilt - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    assert error < (1e-5 if coarse else 1e-9), f"outputs differ by {error:.2e}"
    measured.error = error  # type: ignore[attr-defined]
    if inputs.dtype == torch.float64 and inputs.shape[0] > 1:
        check_dynamics(dynamics, inputs, initial)
    return dynamics, inputs, trajectory


def exponents(jacobians: list[Tensor]) -> Tensor:
    """Return the finite-time exponents of a product of Jacobians, in QR order."""
    generator = torch.Generator().manual_seed(2)
    size = jacobians[0].shape[0]
    q = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    total = torch.zeros(q.shape[0], dtype=torch.float64)
    for jacobian in jacobians:
        q, r = torch.linalg.qr(jacobian.double() @ q)
        total += r.diagonal().abs().log()
    return total / len(jacobians)


def agree(
    trajectory: Trajectory,
    step: Step,
    initial: Tensor,
    *,
    sequence: int = 0,
    warmup: int = 2,
    tolerance: float = 1e-9,
) -> float:
    """Compare a trajectory with the library's own step, state by state and Jacobian by Jacobian.

    Args:
        trajectory: Ours.
        step: ``step(state, t) -> state`` by the library's own code, for one sequence, flat.
        initial: Its state before the first step.
        sequence: Which of the batch.
        warmup: Steps left out of the exponents (states that begin empty have no rate).
        tolerance: Relative to 1.

    Returns:
        The largest error of states, Jacobians and exponents.
    """
    state, truths, ours = initial, [], []
    worst = 0.0
    for t in range(trajectory.steps):
        jacobian = jacrev(lambda s, t=t: step(s, t))(state).detach()
        state = step(state, t).detach()
        mine = trajectory.jacobian(t)[sequence]
        if t >= warmup:
            truths.append(jacobian)
            ours.append(mine)
            worst = max(worst, float((jacobian - mine).abs().max()))
        scale = max(1.0, float(state.abs().max()))
        worst = max(worst, float((state - trajectory.states[sequence, t]).abs().max()) / scale)
    truth = exponents(truths)
    # beyond twenty nats below the first, rounding errors of the first are of their size
    kept = (truth[0] - truth) * len(truths) < 20
    worst = max(worst, float((truth - exponents(ours))[kept].abs().max()))
    growth = trajectory.closed_log_growth
    if growth is not None:
        # the exponents of a block-diagonal product from any start that its blocks share
        exact = torch.stack([torch.linalg.eigvals(j).abs().log().sort().values for j in truths])
        error = (growth[sequence, warmup:].sort(dim=1).values - exact).abs()
        worst = max(worst, float(error.max()))
    determinants = torch.stack([torch.linalg.slogdet(j)[1] for j in truths])
    index = torch.full((len(truths),), sequence)
    times = torch.arange(warmup, trajectory.steps)
    regular = determinants > -25 * trajectory.state_size
    if bool(regular.any()):
        found = trajectory.log_abs_det(index, times)
        worst = max(worst, float((found - determinants)[regular].abs().max()) * 1e-3)
        if trajectory.closed_log_abs_det is not None:
            closed = trajectory.closed_log_abs_det[sequence, warmup:]
            worst = max(worst, float((closed - determinants)[regular].abs().max()) * 1e-3)
    assert worst < tolerance, f"differs by {worst:.2e}"
    print(f"largest error {worst:.1e}, outputs {getattr(measured, 'error', 0):.1e}")
    return worst


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Let layers that make tensors in the default dtype make them in float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@dataclass
class Truth:
    """Exponents of one layer of a model, from its library's own step.

    Args:
        jacobians: Of each sequence and step, empty averages left out.
        warmup: Steps that are not averaged.
    """

    jacobians: list[list[Tensor]]
    warmup: int

    def per_input(self, start: Tensor | None = None) -> Tensor:
        """Return ``(batch, k)`` in QR order; from unit vectors where there is no start."""
        size = self.jacobians[0][0].shape[0]
        found = []
        for steps in self.jacobians:
            q = torch.eye(size, dtype=torch.float64) if start is None else start
            total = torch.zeros(q.shape[1], dtype=torch.float64)
            for t, jacobian in enumerate(steps):
                q, r = torch.linalg.qr(jacobian @ q)
                if t >= self.warmup:
                    total += r.diagonal().abs().log()
            found.append(total / (len(steps) - self.warmup))
        return torch.stack(found)

    def exponents(self, start: Tensor | None = None) -> Tensor:
        """Return the averages over the sequences, descending."""
        return self.per_input(start).mean(0).sort(descending=True).values

    @property
    def mean(self) -> float:
        """The mean exponent, by determinants."""
        rates = [
            torch.stack([torch.linalg.slogdet(j)[1] for j in steps[self.warmup :]]).mean()
            for steps in self.jacobians
        ]
        return float(torch.stack(rates).mean()) / self.jacobians[0][0].shape[0]


def truths(
    model: nn.Module, inputs: Any, names: list[str], lengths: list[int] | None = None
) -> dict[str, Truth]:
    """Run a float64 copy in eval mode, and step its layers as their library does.

    Calls of a layer follow one another in the batch.
    """
    from _steps import steps_of

    with in_double():
        twin = copy.deepcopy(model).double().eval()
        calls: dict[str, list[Any]] = {name: [] for name in names}
        for name in names:
            twin.get_submodule(name).register_forward_pre_hook(
                lambda _, args, kwargs, name=name: calls[name].append(
                    copy.deepcopy((args, kwargs))
                ),
                with_kwargs=True,
            )
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        args = args if isinstance(args, tuple) else (args,)
        args = [a.double() if a.is_floating_point() else a for a in args]
        with torch.no_grad():
            twin(*args, **kwargs)
        found = {}
        for name in names:
            layer = twin.get_submodule(name)
            jacobians = []
            for given in calls[name]:
                layer._forward_pre_hooks.clear()
                layer._forward_hooks.clear()
                batch, time = _extent(layer, *given)
                for b in range(batch):
                    step, state = steps_of(layer, *given, b)
                    steps = []
                    for t in range(lengths[b] if lengths else time):
                        empty = bool((state <= -1e29).any())
                        jacobian = jacrev(lambda s, t=t, step=step: step(s, t))(state).detach()
                        steps.append(torch.eye(len(state)).to(jacobian) if empty else jacobian)
                        state = step(state, t).detach()
                    jacobians.append(steps)
            longest = max(len(steps) for steps in jacobians)
            found[name] = Truth(jacobians, min(20, longest // 5))
        return found


def _extent(layer: nn.Module, args: Any, kwargs: Any) -> tuple[int, int]:
    x = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
    first = getattr(layer, "batch_first", True)
    return (x.shape[0], x.shape[1]) if first else (x.shape[1], x.shape[0])


def distance(ours: Tensor, theirs: Tensor, above: float = -torch.inf) -> float:
    """Return the largest distance of exponents; those below ``above`` do not count."""
    kept = (theirs > above) & (theirs != ours)
    return float((ours - theirs)[kept].abs().max()) if bool(kept.any()) else 0.0
