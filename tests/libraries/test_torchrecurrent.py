"""Every layer of torchrecurrent against its own cells in float64."""

import inspect

import pytest
import torch
from _steps import stack_step
from _truth import agree, library, measured, randomised

from lyap_optuna.dynamics._errors import NotMeasurableError

B, T, F, N = 3, 7, 4, 4  # some cells want as many features as units


def layers():
    try:
        import torchrecurrent
    except ImportError:
        library("torchrecurrent")  # skips, or fails where it must not be missing
    from torchrecurrent.base import RecurrentLayerBase

    return sorted(
        name
        for name, cls in vars(torchrecurrent).items()
        if inspect.isclass(cls) and issubclass(cls, RecurrentLayerBase)
    )


try:
    LAYERS = layers()
except pytest.skip.Exception:
    LAYERS = []
REMEMBERING = ("TGRU", "TLSTM")
OF_CELL = {"JANET": lambda c: c, "RAN": torch.tanh}
OTHERS = (*REMEMBERING, *OF_CELL, "tauGRU")
WANTED = {"IndRNN", "PeepholeLSTM", "coRNN", "LEM", "UGRNN"}


def test_there_are_layers():
    library("torchrecurrent")
    assert set(LAYERS) >= WANTED


def make(name, **options):
    return randomised(getattr(library("torchrecurrent"), name)(F, N, **options), scale=0.3)


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in OTHERS])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_layer(name, num_layers):
    batch_first = num_layers == 1
    layer = make(name, num_layers=num_layers, batch_first=batch_first, dropout=0.2)
    x = torch.randn(B, T, F, dtype=torch.float64)
    bases = [cls.__name__ for cls in type(layer).__mro__]
    double = any("DoubleState" in base for base in bases)
    parts = 2 if double else 1
    state = [torch.rand(num_layers, B, N, dtype=torch.float64) for _ in range(parts)]
    given = tuple(state) if double else state[0]
    _, _, trajectory = measured(layer, x if batch_first else x.transpose(0, 1), given)
    initial = torch.cat([part[i, 0] for i in range(num_layers) for part in state])
    agree(trajectory, stack_step(layer, x), initial, warmup=0)
    vectors = torch.randn(B, 2, trajectory.state_size, dtype=torch.float64)
    expected = vectors @ trajectory.jacobian(3).mT
    assert torch.allclose(trajectory.tangent(3, vectors), expected, rtol=0, atol=1e-13)
    assert trajectory._tape is not None
    trajectory._written, trajectory._has_tape = None, False  # and without a tape
    assert torch.allclose(trajectory.tangent(3, vectors), expected, rtol=0, atol=1e-13)
    assert torch.allclose(vectors @ trajectory.jacobian(3).mT, expected, rtol=0, atol=1e-13)
    # from zeros, which is what it starts at when it is given nothing
    measured(layer, x if batch_first else x.transpose(0, 1))


@pytest.mark.parametrize("name", [name for name in LAYERS if name in REMEMBERING])
@pytest.mark.parametrize("given", [False, True])
def test_a_remembered_input_is_input(name, given):
    layer = make(name)
    x = torch.randn(T, B, F, dtype=torch.float64)
    first, before = torch.rand(1, B, N).double(), torch.rand(B, F).double()
    _, _, trajectory = measured(layer, x, (first, (before,)) if given else None)
    before, initial = (
        (before[0], first[0, 0]) if given else (torch.zeros(F).double(), torch.zeros(N).double())
    )

    def step(state, t):
        result = layer.cells[0](x[t, 0], (state, x[t - 1, 0] if t else before))
        return result[1][0] if name == "TLSTM" else result[0]

    agree(trajectory, step, initial, warmup=0)


@pytest.mark.parametrize("name", [name for name in LAYERS if name in REMEMBERING])
def test_a_remembered_output_is_refused(name):
    with pytest.raises(NotMeasurableError, match="num_layers=2"):
        measured(make(name, num_layers=2), torch.randn(T, B, F, dtype=torch.float64))


@pytest.mark.parametrize("name", list(OF_CELL))
@pytest.mark.parametrize("given", [False, True])
def test_where_h_is_a_function_of_c_the_state_is_c(name, given):
    layer = make(name, num_layers=2)
    x = torch.randn(T, B, F, dtype=torch.float64)
    c = torch.rand(2, B, N, dtype=torch.float64) * given
    hidden = OF_CELL[name]
    _, _, trajectory = measured(layer, x, (hidden(c), c) if given else None)
    assert trajectory.state_size == 2 * N

    def step(state, t):
        below, new = x[t, 0], []
        for cell, c in zip(layer.cells, state.split(N), strict=True):
            below, c = cell(below, (hidden(c), c))
            new.append(c)
        return torch.cat(new)

    agree(trajectory, step, c[:, 0].flatten(), warmup=0)
    with pytest.raises(NotMeasurableError, match="no step returns"):
        measured(layer, x, (c + 1, c))


@pytest.mark.parametrize("delay", [1, 3])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_states_that_tau_gru_returns_to_are_state(delay, num_layers):
    layer = make("tauGRU", delay=delay, num_layers=num_layers)
    size = num_layers * N
    x = torch.randn(T, B, F, dtype=torch.float64)
    h = torch.rand(num_layers, B, N, dtype=torch.float64)
    _, _, trajectory = measured(layer, x, h)
    assert trajectory.state_size == (1 + delay) * size

    def step(state, t):
        now, *history = state.split(size)
        below, new = x[t, 0], []
        for i, cell in enumerate(layer.cells):
            below = cell(below, now[i * N : (i + 1) * N], history[0][i * N : (i + 1) * N])
            new.append(below)
        return torch.cat([*new, *history[1:], now])

    initial = torch.cat([h[:, 0].flatten(), torch.zeros(delay * size).double()])
    agree(trajectory, step, initial, warmup=0)


def test_a_forward_of_ones_own_is_refused():
    base = library("torchrecurrent").IndRNN

    class Residual(base):
        def forward(self, inp, state=None):
            out, state = super().forward(inp, state)
            return out + inp, state

    with pytest.raises(NotMeasurableError, match="forward of its own"):
        measured(Residual(F, N), torch.randn(T, B, F))
