"""``check_dynamics`` passes what is right and names what is not."""

from typing import Any

import pytest
import torch
from _networks import layer_dynamics, make_inputs, make_layer
from torch import Tensor
from torch.func import jacrev

from lyap_optuna.dynamics import (
    DiagonalDynamics,
    RecurrentDynamics,
    check_dynamics,
)
from lyap_optuna.dynamics._registry import _ARCHITECTURES, architecture_of
from lyap_optuna.dynamics.autodiff import AutodiffTrajectory
from lyap_optuna.dynamics.diagonal import DiagonalTrajectory
from lyap_optuna.dynamics.linear_tape import UntraceableError, record

N = 3


def test_a_tape_is_the_derivative_of_a_step():
    layer = torch.nn.GRUCell(2, 4).double()
    weight, scale = torch.randn(2, 4, 4).double(), torch.rand(4).double()
    x = make_inputs(2, 5, 4)

    def step(s: Any, x: Tensor) -> Any:
        a, b = (s @ weight[0].T + layer.bias_hh[:4]).chunk(2, 1)
        b = 1.0 - torch.cat([torch.sigmoid(b), -a], dim=1) * scale + s / 2 - s**2
        c = torch.nn.functional.linear(x * b, weight[1], scale)
        return torch.tanh(c) / (2 + torch.nn.functional.softplus(s)) - s.sigmoid() + x + 3 / (5 + s)

    before = make_inputs(2, 5, 4, seed=3)
    flat = x.flatten(0, 1)
    with torch.no_grad():
        tape, after = record(lambda s: step(s, flat), before)
    assert torch.allclose(after, step(before.flatten(0, 1), flat).view_as(after), atol=1e-14)
    for b, t in ((0, 1), (1, 4)):
        truth = jacrev(lambda s, b=b, t=t: step(s[None], x[b, t][None])[0])(before[b, t])
        found = tape.matrices(torch.tensor([b]), torch.tensor([t]), before, 4)[0]
        assert torch.allclose(found, truth, rtol=0, atol=1e-13)
        vectors = make_inputs(2, 3, 4, seed=4)
        image = tape.push(t, vectors)[b]
        assert torch.allclose(image, vectors[b] @ truth.mT, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "step",
    [
        lambda s: torch.softmax(s, dim=1),
        lambda s: s.sum(1, keepdim=True) * s,
        lambda s: s @ torch.outer(torch.ones(4), torch.ones(4)).to(s.dtype) @ (s + s.shape[0]),
        lambda s: torch.zeros(10, 4),
    ],
)
def test_a_tape_has_no_word_for_everything(step):
    with pytest.raises((UntraceableError, AttributeError)):
        record(step, make_inputs(2, 5, 4))


def inputs(features: int = N) -> Tensor:
    return make_inputs(2, 9, features)


WEIGHT = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.3]], dtype=torch.float64)


def step(s: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(x + WEIGHT.to(s) @ s)


def built(module: Any) -> Any:
    if isinstance(module, torch.nn.RNNBase):
        return layer_dynamics(module, "full")
    architecture = architecture_of(module.double())
    assert architecture is not None
    assert architecture.build is not None
    return architecture.build(module, "full")


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["rnn_tanh", "rnn_relu", "gru", "lstm_full"])
def test_layers_pass(kind, layers):
    errors = check_dynamics(built(make_layer(kind, layers=layers)), inputs())
    assert {"states", "tangent", "jacobians", "log_abs_det", "select"} <= set(errors)
    assert max(errors.values()) < 1e-6


OWN = [module for module, known in _ARCHITECTURES.items() if known.build is not None]


@pytest.mark.parametrize("module", OWN)
def test_own_architectures_pass(module):
    check_dynamics(built(module(N, 4)), inputs())


@pytest.mark.parametrize("is_complex", [False, True])
def test_diagonal_dynamics_pass(is_complex):
    a = torch.tensor([0.5, 0.9, 1.1], dtype=torch.float64)
    a = a * torch.exp(torch.tensor(0.3j)) if is_complex else a
    dynamics = DiagonalDynamics(lambda x: (a, x.to(a.dtype)), 3, is_complex)
    errors = check_dynamics(dynamics, inputs(), torch.ones(3, dtype=a.dtype))
    assert {"closed_log_abs_det", "closed_log_growth"} <= set(errors)


def test_one_decay_for_several_components_passes():
    decay = torch.tensor([0.5, 0.9], dtype=torch.float64)
    dynamics = DiagonalDynamics(lambda x: (decay, x.repeat(1, 1, 2)), 6)
    check_dynamics(dynamics, inputs())
    trajectory = dynamics.linearise(inputs())
    assert torch.allclose(
        trajectory.closed_log_growth[0, 0], decay.repeat_interleave(3).log(), atol=1e-12
    )


def test_a_large_state_is_checked_in_some_directions():
    weight = torch.randn(50, 50, dtype=torch.float64) / 7
    check_dynamics(RecurrentDynamics(lambda s, x: torch.tanh(weight @ s + x), 50), inputs(50))


def test_float32_passes():
    check_dynamics(RecurrentDynamics(step, N), inputs().float())


# What is wrong is named --------------------------------------------------------------------


class Wrong(RecurrentDynamics):
    """A right step, and a trajectory that is wrong in one respect."""

    def __init__(self, **answers: Any) -> None:
        super().__init__(step, N)
        self.answers = answers

    def linearise(self, inputs: Tensor, initial_state: Any = None) -> Any:
        right = super().linearise(inputs, initial_state)
        bases = (AutodiffTrajectory,)
        right.__class__ = type("WrongTrajectory", bases, self.answers)
        return right


def half_off(name: str) -> Any:
    def answer(self: Any, *args: Any) -> Tensor:
        return getattr(AutodiffTrajectory, name)(self, *args) * 1.01

    return answer


@pytest.mark.parametrize("name", ["tangent", "jacobians"])
def test_a_wrong_linearisation(name):
    with pytest.raises(ValueError, match=rf"^{name} disagrees by .* at step 1.*differences"):
        check_dynamics(Wrong(**{name: half_off(name)}), inputs())


def test_a_wrong_determinant():
    with pytest.raises(ValueError, match=r"^log_abs_det disagrees by .*determinants"):
        check_dynamics(Wrong(log_abs_det=half_off("log_abs_det")), inputs())


def test_a_wrong_closed_determinant():
    closed = property(lambda self: self.states.new_zeros(self.states.shape[:2]))
    with pytest.raises(ValueError, match=r"^closed_log_abs_det disagrees"):
        check_dynamics(Wrong(closed_log_abs_det=closed), inputs())


def test_a_closed_growth_of_what_is_not_diagonal():
    # Right determinants at every step, but the Jacobians do not share an eigenbasis.
    def growth(self: Any) -> Tensor:
        total = torch.stack(
            [torch.linalg.slogdet(self.jacobian(t))[1] for t in range(self.steps)], dim=1
        )
        return (total / N).unsqueeze(2).expand(-1, -1, N)

    with pytest.raises(ValueError, match=r"^closed_log_growth disagrees .*product"):
        check_dynamics(Wrong(closed_log_growth=property(growth)), inputs())


def test_a_selection_of_the_wrong_inputs():
    def select(self: Any, chosen: slice) -> Any:
        return AutodiffTrajectory.select(self, slice(0, 1))

    with pytest.raises(ValueError, match=r"^select disagrees"):
        check_dynamics(Wrong(select=select), inputs())


def test_an_incomplete_state():
    class Momentum(RecurrentDynamics):
        def linearise(self, inputs: Tensor, initial_state: Any = None) -> Any:
            # its velocity is part of what the next step depends on, but not of the state
            both = RecurrentDynamics(
                lambda s, x: torch.cat([0.9 * s[:N] + s[N:], 0.5 * s[N:] + x]), 2 * N
            )
            initial = torch.zeros(len(inputs), 2 * N)
            if initial_state is not None:
                initial[:, :N] = initial_state
            path = both.linearise(inputs, initial)
            a = torch.full((*path.states.shape[:2], N), 0.9, dtype=inputs.dtype)
            return DiagonalTrajectory(a, path.states[..., :N].contiguous())

    with pytest.raises(ValueError, match=r"^states disagree.*lacks something"):
        check_dynamics(Momentum(step, N), inputs())


def test_the_papers_hidden_state_is_incomplete():
    dynamics = layer_dynamics(make_layer("lstm_full"), "hidden")
    with pytest.raises(ValueError, match="incomplete"):
        check_dynamics(dynamics, inputs())


def test_states_in_a_layout_of_their_own():
    class Swapped(RecurrentDynamics):
        def linearise(self, inputs: Tensor, initial_state: Any = None) -> Any:
            if initial_state is not None and not isinstance(initial_state, tuple):
                raise ValueError("initial_state must be a tuple")
            return super().linearise(inputs, initial_state and initial_state[0])

    with pytest.raises(ValueError, match="pass as_initial_state"):
        check_dynamics(Swapped(step, N), inputs())
    check_dynamics(Swapped(step, N), inputs(), as_initial_state=lambda states: (states,))


@pytest.mark.parametrize("shape", [(2, 9), (1, 9, N), (2, 3, N)])
def test_inputs_that_are_too_few(shape):
    with pytest.raises(ValueError, match="inputs"):
        check_dynamics(RecurrentDynamics(step, N), torch.randn(shape))
