"""Jacobians and volume growth: hand-written against automatic differentiation."""

import pytest
import torch
from _networks import KINDS, layer_dynamics, make_inputs, make_layer, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from lyap_optuna import lyapunov_spectrum
from lyap_optuna.dynamics import Dynamics, RecurrentDynamics, resolve
from lyap_optuna.dynamics.gated import log_sigmoid_slope, log_tanh_slope, tanh_slope
from lyap_optuna.dynamics.linalg import log_abs_det


def one_step(layer: nn.RNNBase, state: str, cells: Tensor | None):
    """A layer's step on a flat state, by PyTorch's own forward."""
    layers, units = layer.num_layers, layer.hidden_size
    weights = dict(layer.named_parameters())

    def step(s: Tensor, x: Tensor) -> Tensor:
        x = x[None, None]
        if not isinstance(layer, nn.LSTM):
            return functional_call(layer, weights, (x, s.view(layers, 1, units)))[1].reshape(-1)
        if state == "full":
            h, c = s.view(layers, 2, units).unbind(1)
        else:
            h, c = s.view(layers, units), cells  # the paper's Jacobian holds c
        new_h, new_c = functional_call(layer, weights, (x, (h[:, None], c[:, None])))[1]
        parts = [new_h[:, 0], new_c[:, 0]] if state == "full" else [new_h[:, 0]]
        return torch.stack(parts, 1).reshape(-1)

    return step


networks = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "features": st.integers(1, 4),
        "units": st.integers(1, 7),
        "layers": st.integers(1, 3),
        "bias": st.booleans(),
        "seed": st.integers(0, 10_000),
        "scale": st.floats(0.2, 3.0),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(network=networks)
def test_every_jacobian_equals_automatic_differentiation(network):
    layer = make_layer(**network)
    state = state_of(network["kind"])
    x = make_inputs(2, 4, network["features"], seed=network["seed"])
    trajectory = resolve(layer, x, state=state)[""].trajectory
    # Cell states for the hidden-state Jacobian come from the full-state trajectory.
    full = resolve(layer, x, state="full")[""].trajectory
    for b, t in ((0, 1), (1, 3)):
        before = trajectory.states[b, t - 1]
        cells = None
        if isinstance(layer, nn.LSTM):
            cells = full.states[b, t - 1].view(layer.num_layers, 2, layer.hidden_size)[:, 1]
        step = one_step(layer, state, cells)
        expected = jacrev(step)(before, x[b, t])
        jacobian = trajectory.jacobian(t)[b]
        assert torch.allclose(jacobian, expected, rtol=0, atol=1e-10)
        assert torch.allclose(step(before, x[b, t]), trajectory.states[b, t], rtol=0, atol=1e-10)
        vectors = make_inputs(2, 3, trajectory.state_size, seed=5)
        image = trajectory.tangent(t, vectors)[b]
        assert torch.allclose(image, vectors[b] @ expected.mT, rtol=0, atol=1e-10)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(network=networks)
def test_log_determinants_equal_those_of_the_jacobians(network):
    layer = make_layer(**network)
    x = make_inputs(2, 5, network["features"], seed=network["seed"])
    trajectory = resolve(layer, x, state=state_of(network["kind"]))[""].trajectory
    for t in range(5):
        jacobian = trajectory.jacobian(t)
        expected = torch.linalg.slogdet(jacobian)[1]
        # A determinant's relative rounding error grows with the condition number.
        slack = 1e-12 * torch.linalg.cond(jacobian).clamp(max=1e10) + 1e-12
        inputs, times = torch.arange(2), torch.full((2,), t)
        for actual in (
            trajectory.log_abs_det(inputs, times),
            trajectory.closed_log_abs_det[:, t]
            if trajectory.closed_log_abs_det is not None
            else expected,
        ):
            singular = ~torch.isfinite(expected) | (torch.linalg.cond(jacobian) > 1e13)
            assert bool((((actual - expected).abs() <= slack) | singular).all())


@pytest.mark.parametrize("kind", KINDS)
def test_closed_forms_exist_exactly_where_the_identities_say(kind):
    x = make_inputs(2, 4, 3)
    trajectory = layer_dynamics(make_layer(kind), state_of(kind)).linearise(x)
    assert (trajectory.closed_log_abs_det is not None) == (kind not in ("gru", "lstm_hidden"))


def test_relu_with_dead_units_has_determinant_zero():
    layer = make_layer("rnn_relu", units=6)
    x = make_inputs(3, 20, 3)
    closed = resolve(layer, x)[""].trajectory.closed_log_abs_det
    assert bool((closed == -torch.inf).any())
    assert not bool(torch.isnan(closed).any())


def test_slopes_do_not_cancel_at_saturation():
    a = torch.tensor([10.0])
    exact = torch.tensor([10.0], dtype=torch.float64).cosh().pow(-2)
    assert float(tanh_slope(a)) == pytest.approx(float(exact), rel=1e-5)
    assert float(1 - torch.tanh(a) ** 2) != pytest.approx(float(exact), rel=1e-1)
    assert float(log_tanh_slope(a)) == pytest.approx(float(exact.log()), abs=1e-12)
    assert float(log_sigmoid_slope(torch.tensor([60.0]))) == pytest.approx(-60, abs=1e-9)


def test_autodiff_agrees_with_the_hand_written_gru():
    layer = make_layer("gru", units=4)
    x = make_inputs(3, 6, 3)
    by_hand = resolve(layer, x)[""].trajectory

    def step(h, x):  # parameters with a gradient, as a user's own cell has them
        i_r, i_z, i_n = (layer.weight_ih_l0 @ x + layer.bias_ih_l0).chunk(3)
        h_r, h_z, h_n = (layer.weight_hh_l0 @ h + layer.bias_hh_l0).chunk(3)
        r, z = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
        return (1 - z) * torch.tanh(i_n + r * h_n) + z * h

    dynamics = RecurrentDynamics(step, 4)
    automatic = dynamics.linearise(x)
    assert torch.allclose(automatic.states, by_hand.states, atol=1e-12)
    assert torch.allclose(automatic.jacobian(3), by_hand.jacobian(3), atol=1e-12)
    inputs, times = torch.arange(3), torch.tensor([0, 2, 5])
    assert torch.allclose(
        automatic.log_abs_det(inputs, times), by_hand.log_abs_det(inputs, times), atol=1e-10
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_determinants_of_large_batches_are_right(dtype):
    # PyTorch's batched LU with several threads was seen to return wrong factors from 256 rows on.
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(4, 300, 300, generator=generator, dtype=torch.float64)
    r = torch.linalg.qr(matrices)[1]
    expected = r.diagonal(dim1=1, dim2=2).abs().log().sum(-1)
    assert torch.allclose(log_abs_det(matrices.to(dtype)), expected, atol=1e-2)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "3"])
def test_state_size_must_be_a_positive_integer(bad):
    with pytest.raises(ValueError, match="state_size must be a positive integer"):
        RecurrentDynamics(lambda s, x: s, bad)


def test_step_with_a_wrong_shape_says_what_to_return():
    dynamics = RecurrentDynamics(lambda s, x: s[:1], 2)
    with pytest.raises(ValueError, match=r"return a tensor of shape \(2,\)"):
        dynamics.linearise(torch.zeros(1, 3, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dynamics_that_say_no_more_than_how_they_step(dtype):
    class Halving(Dynamics):
        state_size = 3

        def linearise(self, inputs, initial_state=None):
            assert inputs.dtype == dtype
            halves = RecurrentDynamics(lambda s, x: s / 2 + x, self.state_size)
            return halves.linearise(inputs, initial_state)

    found = lyapunov_spectrum(Halving(), make_inputs(2, 10, 3).to(dtype))
    assert torch.allclose(
        torch.as_tensor(found.exponents).double(), torch.tensor(0.5).log().double()
    )
