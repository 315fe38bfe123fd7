"""Every shipped architecture: its exponents against automatic differentiation of its own step."""

import pytest
import torch
from _networks import make_inputs, make_layer, state_of
from torch import nn

import lyap_optuna as lyap
from lyap_optuna.dynamics import (
    AntisymmetricRNN,
    DiagonalDynamics,
    DiagonalStateSpace,
    MinimalGatedUnit,
    resolve,
)


class Loop(nn.Module):
    """A user's own loop over a cell."""

    def __init__(self, cell, initial=None):
        super().__init__()
        self.cell = cell
        self.initial = initial

    def forward(self, x):
        state = self.initial
        outputs = []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1)


CELLS = {
    "rnn_tanh": lambda: nn.RNNCell(3, 5),
    "rnn_relu": lambda: nn.RNNCell(3, 5, nonlinearity="relu"),
    "gru": lambda: nn.GRUCell(3, 5),
    "lstm_hidden": lambda: nn.LSTMCell(3, 5),
    "lstm_full": lambda: nn.LSTMCell(3, 5),
}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("with_initial", [False, True])
def test_a_loop_over_a_cell_equals_the_layer(kind, with_initial):
    layer = make_layer(kind)
    cell = CELLS[kind]().double()
    cell.load_state_dict({name[:-3]: p for name, p in layer.state_dict().items()})
    x = make_inputs(4, 20, 3)
    initial = hx = None
    if with_initial:
        h = make_inputs(4, 1, 5, seed=3)[:, 0]
        lstm = kind.startswith("lstm")
        hx, initial = ((h, h), (h[None], h[None])) if lstm else (h, h[None])
    state = state_of(kind)
    expected = lyap.lyapunov_spectrum(layer, x, state=state, initial_state=initial)
    looped = lyap.lyapunov_spectrum(Loop(cell, hx), x, state=state)
    assert torch.allclose(looped.per_input, expected.per_input, atol=1e-10)
    alone = lyap.lyapunov_spectrum(cell, x, state=state, initial_state=initial)
    assert torch.allclose(alone.per_input, expected.per_input, atol=1e-10)


def test_cell_called_with_other_shapes_says_what_to_pass():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(3, 5)

        def forward(self, x):
            return self.cell(x[:1, 0]) + self.cell(x[:, 1])

    with pytest.raises(ValueError, match="once per time step"):
        lyap.lyapunov_readout(Odd(), make_inputs(2, 9, 3, dtype=torch.float32))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("state", ["hidden", "full"])
def test_projected_lstm(state, bias, layers):
    torch.manual_seed(0)
    layer = nn.LSTM(3, 5, num_layers=layers, proj_size=2, bias=bias, batch_first=True).double()
    x = make_inputs(3, 12, 3)
    driven = resolve(layer, x, state=state)
    trajectory = driven.trajectory()
    outputs, (h, c) = layer(x)
    width = 2 if state == "hidden" else 7
    assert trajectory.state_size == width * layers
    final = trajectory.states[:, -1].view(3, layers, width)
    assert torch.allclose(final[:, :, :2], h.transpose(0, 1), atol=1e-12)
    assert torch.allclose(trajectory.states.view(3, 12, layers, width)[:, :, -1, :2], outputs)
    if state == "full":
        assert torch.allclose(final[:, :, 2:], c.transpose(0, 1), atol=1e-12)
    # A finite difference of PyTorch's own forward, from the state after step 5
    _, (h5, c5) = layer(x[:, :6])
    eps = 1e-6
    columns = []
    for i in range(layers):
        for part, size in ((h5, 2), *(((c5, 5),) if state == "full" else ())):
            for j in range(size):
                images = []
                for sign in (1, -1):
                    moved = part.clone()
                    moved[i, :, j] += sign * eps
                    pair = (moved, c5) if part is h5 else (h5, moved)
                    _, (hn, cn) = layer(x[:, 6:7], pair)
                    parts = (hn, cn) if state == "full" else (hn,)
                    images.append(torch.cat(parts, 2).transpose(0, 1).flatten(1))
                columns.append((images[0] - images[1]) / (2 * eps))
    expected = torch.stack(columns, 2)
    assert torch.allclose(trajectory.jacobian(6), expected, atol=1e-8)
    begun = lyap.lyapunov_spectrum(layer, x[:, 6:], state=state, initial_state=(h5, c5), warmup=0)
    whole = lyap.lyapunov_spectrum(layer, x, state=state, warmup=6)
    assert begun.mean == pytest.approx(whole.mean, abs=1e-10)
    with pytest.raises(ValueError, match=r"initial_state must be \(h, c\)"):
        lyap.lyapunov_spectrum(layer, x, state=state, initial_state=h5)


def autodiff_check(module, x, step):
    """Jacobians of a module's dynamics against those of its step, along its own states."""
    driven = resolve(module, x)
    trajectory = driven.trajectory()
    assert torch.allclose(trajectory.states, module(x), atol=1e-12)
    for t in (1, 5):
        for b in range(len(x)):
            before = trajectory.states[b, t - 1]
            expected = torch.func.jacrev(step)(before, x[b, t])
            assert torch.allclose(trajectory.jacobian(t)[b], expected, atol=1e-10)
            vectors = make_inputs(len(x), 3, trajectory.state_size, seed=5)
            image = trajectory.tangent(t, vectors)[b]
            assert torch.allclose(image, vectors[b] @ expected.mT, atol=1e-10)
    inputs, times = torch.arange(len(x)), torch.full((len(x),), 5)
    determinants = torch.linalg.slogdet(trajectory.jacobian(5))[1]
    assert torch.allclose(trajectory.log_abs_det(inputs, times), determinants, atol=1e-8)


def test_antisymmetric():
    torch.manual_seed(0)
    module = AntisymmetricRNN(3, 6).double()
    x = make_inputs(2, 8, 3)

    def step(h, x):
        return h + 0.1 * torch.tanh(module.recurrent_weight() @ h + module.input(x))

    autodiff_check(module, x, step)
    # Near-critical by construction: no direction grows or fades fast
    assert lyap.lyapunov_spectrum(module, make_inputs(3, 100, 3)).exponents.abs().max() < 0.1


def test_minimal_gated_unit():
    torch.manual_seed(0)
    module = MinimalGatedUnit(3, 6).double()
    autodiff_check(module, make_inputs(2, 8, 3), module.step)


def test_diagonal_state_space_is_exact():
    torch.manual_seed(0)
    module = DiagonalStateSpace(3, 6).double()
    x = make_inputs(4, 30, 3)

    def step(h, x):
        a, b = module.coefficients(x)
        return a * h + b

    autodiff_check(module, x, step)
    s = lyap.lyapunov_spectrum(module, x, keep_history=True)
    a = module.coefficients(x)[0][:, 6:]
    expected = a.abs().log().mean((0, 1)).sort(descending=True).values
    assert torch.allclose(s.exponents, expected, atol=1e-12)
    assert torch.allclose(s.history[-1], s.exponents, atol=1e-12)
    textbook = lyap.lyapunov_spectrum(module, x, method="textbook")
    assert torch.allclose(s.per_input, textbook.per_input, atol=1e-12)
    leading = lyap.lyapunov_spectrum(module, x, k=2)
    assert torch.allclose(leading.exponents, expected[:2], atol=1e-12)
    r = lyap.lyapunov_readout(module, x)
    assert r.max == pytest.approx(float(expected[0]), abs=1e-12)
    assert r.mean == pytest.approx(float(expected.mean()), abs=1e-12)


def test_complex_diagonal_recurrence():
    angle = torch.linspace(0.1, 2.0, 4, dtype=torch.float64)
    modulus = torch.tensor([0.99, 0.9, 0.5, 1.01], dtype=torch.float64)
    a = torch.polar(modulus, angle)
    dynamics = DiagonalDynamics(lambda x: (a, x.to(a.dtype)), 4, is_complex=True)
    x = make_inputs(2, 40, 4)
    s = lyap.lyapunov_spectrum(dynamics, x)
    expected = modulus.log().repeat_interleave(2).sort(descending=True).values
    assert s.state_size == 8
    assert torch.allclose(s.exponents, expected, atol=1e-12)
    textbook = lyap.lyapunov_spectrum(dynamics, x, method="textbook")
    assert torch.allclose(textbook.exponents, expected, atol=1e-12)
    tangent = lyap.lyapunov_spectrum(dynamics, x, method="tangent", start="identity")
    assert torch.allclose(tangent.exponents, expected, atol=1e-12)
    with pytest.raises(ValueError, match="is_complex=False"):
        lyap.lyapunov_spectrum(DiagonalDynamics(dynamics.coefficients, 4), x)
    with pytest.raises(ValueError, match="must broadcast"):
        lyap.lyapunov_spectrum(DiagonalDynamics(dynamics.coefficients, 5, is_complex=True), x)


@pytest.mark.parametrize("module", [AntisymmetricRNN, MinimalGatedUnit, DiagonalStateSpace])
def test_in_a_model_with_single_and_half_precision(module):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), module(3, 6), nn.Linear(6, 2))
    x = make_inputs(4, 30, 3, dtype=torch.float32)
    single = lyap.lyapunov_readout(net, x)
    double = lyap.lyapunov_readout(net.double(), x.double())
    assert single.max == pytest.approx(double.max, abs=1e-4)
    half = lyap.lyapunov_readout(net.bfloat16(), x.bfloat16())
    assert half.max == pytest.approx(double.max, abs=0.05)
