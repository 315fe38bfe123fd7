"""Starting vectors: a fixed dense basis, so that decoupled units are all seen; and what a readout
makes of its block of vectors."""

import math

import pytest
import torch
from _networks import make_inputs, make_layer, orthogonal
from torch import nn

import lyap_optuna as lyap
from lyap_optuna.spectrum import _readout
from lyap_optuna.spectrum._start import random_start, starting_vectors


def explicit(layer, x, start, warmup):
    """Exponents of each input by Jacobians of the layer's own forward and QR, in float64."""
    is_lstm = isinstance(layer, nn.LSTM)
    units = layer.hidden_size

    def step(state, inputs):
        hx = state[:units].view(1, 1, -1)
        if is_lstm:
            hx = (hx, state[units:].view(1, 1, -1))
        _, new = layer(inputs.view(1, 1, -1), hx)
        return torch.cat([part.flatten() for part in new]) if is_lstm else new.flatten()

    rows = []
    for sequence in x:
        state, q, total = torch.zeros(len(start)).double(), start, 0
        for t, inputs in enumerate(sequence):
            jacobian = torch.autograd.functional.jacobian(lambda s, i=inputs: step(s, i), state)
            q, r = torch.linalg.qr(jacobian @ q)
            state = step(state, inputs).detach()
            if t >= warmup:
                total = total + r.diagonal().abs().log()
        rows.append(total / (len(sequence) - warmup))
    return torch.stack(rows)


@torch.no_grad()
def decoupled(name, units=8):
    kind = {"lstm": nn.LSTM, "gru": nn.GRU}.get(name.split()[0], nn.RNN)
    torch.manual_seed(1)
    layer = kind(3, units, batch_first=True).double()
    recurrent, bias = layer.weight_hh_l0, layer.bias_hh_l0
    second = slice(units, 2 * units)
    if name == "tanh identity":
        recurrent.copy_(torch.eye(units))
    elif name == "tanh diagonal":
        recurrent.copy_(torch.linspace(0.1, 0.99, units).diag())
    elif name == "tanh blocks":
        recurrent.copy_(torch.block_diag(*(g * orthogonal(units // 2) for g in (0.4, 0.95))))
    elif name == "gru identity":
        recurrent.copy_(torch.eye(units).repeat(3, 1))
        bias[second] = torch.linspace(-2, 4, units).double()
    elif name == "gru no recurrence":
        recurrent.zero_()
        bias[second] = torch.linspace(0, 4, units).double()
    elif name == "lstm chrono":
        bias[second] = torch.linspace(1, 99, units).log().double()
        bias[:units] = -bias[second]
    return layer


DECOUPLED = (
    "tanh identity",
    "tanh diagonal",
    "tanh blocks",
    "gru identity",
    "gru no recurrence",
    "lstm chrono",
)


@pytest.mark.parametrize("name", DECOUPLED)
def test_decoupled_units_are_all_seen(name):
    layer, x = decoupled(name), make_inputs(3, 60, 3)
    size = 16 if name.startswith("lstm") else 8
    truth = explicit(layer, x, random_start(size, size), 12).mean(0).sort(descending=True).values
    s = lyap.lyapunov_spectrum(layer, x)
    assert torch.allclose(s.exponents, truth, rtol=0, atol=1e-9)
    same = lyap.lyapunov_spectrum(layer, x, start="identity").exponents
    unit = explicit(layer, x, torch.eye(size).double(), 12).mean(0).sort(descending=True).values
    assert torch.allclose(same, unit, rtol=0, atol=1e-9)
    r = lyap.lyapunov_readout(layer, x)
    first = explicit(layer, x, random_start(size, 4), 12).mean(0).sort(descending=True).values
    assert torch.allclose(r.exponents, first, rtol=0, atol=1e-9)
    assert float(r.exponents[0]) <= r.max
    assert r.mean < r.max
    assert r.max == pytest.approx(float(unit[0]), abs=0.02)  # the effect of the start


@torch.no_grad()
def test_identity_relu_keeps_the_units_that_stay_on():
    layer = nn.RNN(2, 6, nonlinearity="relu", batch_first=True).double()
    layer.weight_hh_l0.copy_(torch.eye(6))
    for p in (layer.weight_ih_l0, layer.bias_hh_l0, layer.bias_ih_l0):
        p.zero_()
    layer.bias_ih_l0[:3] = 0.1  # these are on, always; the others never
    x = make_inputs(2, 30, 2)
    expected = torch.tensor([0.0, 0, 0, -math.inf, -math.inf, -math.inf]).double()
    for method in ("auto", "qr", "tangent", "lu"):
        s = lyap.lyapunov_spectrum(layer, x, method=method)
        assert torch.allclose(s.exponents, expected, rtol=0, atol=1e-12)
    r = lyap.lyapunov_readout(layer, x)
    assert torch.allclose(r.exponents, expected[:4], rtol=0, atol=1e-12)
    assert r.max == pytest.approx(0, abs=1e-12)
    assert r.mean == -math.inf


@torch.no_grad()
def test_lstm_without_recurrence_has_its_forget_gates_and_minus_infinity():
    layer = decoupled("lstm")
    layer.weight_hh_l0.zero_()
    x = make_inputs(3, 60, 3)
    gates = x @ layer.weight_ih_l0[8:16].T + layer.bias_ih_l0[8:16] + layer.bias_hh_l0[8:16]
    s = lyap.lyapunov_spectrum(layer, x)
    assert bool((s.exponents[8:] == -math.inf).all())
    volume = gates.sigmoid().log()[:, 12:].sum(2).mean()
    assert float(s.exponents[:8].sum()) == pytest.approx(float(volume), abs=0.02)
    assert lyap.lyapunov_readout(layer, x, state="hidden").max == -math.inf


@pytest.mark.parametrize("size", [5, 40])
def test_starting_vectors_nest(size):
    whole = random_start(size, size)
    assert torch.allclose(whole.T @ whole, torch.eye(size).double(), atol=1e-14)
    for k in (1, 3, size - 1):
        assert torch.allclose(random_start(size, k), whole[:, :k], rtol=0, atol=1e-14)
    assert float(whole.abs().min()) > 1e-7


@pytest.mark.parametrize("method", ["textbook", "tangent", "qr", "lu"])
def test_a_spectrum_holds_the_readouts_maximum(method):
    layer, x = make_layer("gru", units=12, scale=0.8), make_inputs(4, 30, 3)
    start = random_start(12, 12)
    s = lyap.lyapunov_spectrum(layer, x, method=method, start=start, qr_every=3)
    own, r = lyap.LyapunovReadout.from_spectrum(s), lyap.lyapunov_readout(layer, x)
    assert own.max == pytest.approx(r.max, abs=1e-10)
    assert own.max_stderr == pytest.approx(r.max_stderr, abs=1e-10)
    assert own.max > s.max


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm_full"])
def test_leading_exponents_nest_in_k_and_are_the_readouts(kind):
    layer, x = make_layer(kind, units=12, scale=0.8), make_inputs(4, 30, 3)
    whole = lyap.lyapunov_spectrum(layer, x, method="qr").per_input
    for k in (1, 4, 9):
        part = lyap.lyapunov_spectrum(layer, x, k=k)
        r = lyap.lyapunov_readout(layer, x, k=k)
        assert torch.allclose(r.exponents, part.exponents, rtol=0, atol=1e-10)
        for column in part.per_input.T:
            assert float((whole - column[:, None]).abs().amax(0).min()) < 1e-10


def test_any_basis_can_be_given():
    layer, x = make_layer("gru", units=6), make_inputs(2, 20, 3)
    basis = random_start(6, 6)
    expected = lyap.lyapunov_spectrum(layer, x)
    for start in (basis, 3 * basis @ torch.ones(6, 6).double().triu()):  # the same nested spans
        s = lyap.lyapunov_spectrum(layer, x, start=start)
        assert torch.allclose(s.exponents, expected.exponents, atol=1e-10)
    assert len(lyap.lyapunov_spectrum(layer, x, start=basis[:, :2]).exponents) == 2
    printed = lyap.lyapunov_spectrum(layer, x, method="textbook")
    same = lyap.lyapunov_spectrum(layer, x, start="identity")
    assert torch.allclose(printed.exponents, same.exponents, atol=1e-10)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("unit", "start must be None, 'identity' or a matrix, but got 'unit'"),
        (object(), "start must be None, 'identity' or a matrix, but got object"),
        (torch.eye(4), r"but has shape \(4, 4\)"),
        (torch.eye(5)[:, :2], r"must hold 3 vectors .* shape \(5, 2\)"),
        (torch.full((5, 3), math.nan), "NaN or infinite"),
        (torch.ones(5, 3), "linearly independent"),
    ],
)
def test_bad_starting_vectors_are_named(start, message):
    with pytest.raises(ValueError, match=message):
        starting_vectors(start, 5, 3)


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm_full"])
@torch.no_grad()
def test_renumbering_the_units_changes_nothing_but_the_start(kind):
    layer, x = make_layer(kind, units=16, scale=0.7), make_inputs(5, 100, 3)
    twin = make_layer(kind, units=16, scale=0.7)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    gates = len(layer.weight_hh_l0) // 16
    rows = torch.cat([order + 16 * g for g in range(gates)])
    for name, p in twin.named_parameters():
        p.copy_(layer.state_dict()[name][rows])
    twin.weight_hh_l0.copy_(twin.weight_hh_l0[:, order])
    a, b = (lyap.lyapunov_readout(net, x) for net in (layer, twin))
    assert a.mean == pytest.approx(b.mean, abs=1e-10)
    assert a.max == pytest.approx(b.max, abs=0.02)
    whole = torch.cat([order + 16 * block for block in range(2 if kind == "lstm_full" else 1)])
    start = random_start(len(whole), len(whole))
    first = lyap.lyapunov_spectrum(layer, x, start=start)
    renumbered = lyap.lyapunov_spectrum(twin, x, start=start[whole])
    assert torch.allclose(first.exponents, renumbered.exponents, atol=1e-9)


def test_maximum_is_the_growth_of_the_whole_block():
    # Without a warm-up: the largest singular value of the product, restricted to the start
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()
    dynamics = lyap.RecurrentDynamics(lambda s, x: matrix @ s, 6)
    r = lyap.lyapunov_readout(dynamics, torch.zeros(2, 9, 0).double(), warmup=0)
    product = torch.linalg.matrix_power(matrix, 9) @ random_start(6, 4)
    expected = float(torch.linalg.matrix_norm(product, 2).log() / 9)
    assert r.max == pytest.approx(expected, abs=1e-12)
    assert r.max > float(r.exponents[0])
    after = lyap.lyapunov_readout(dynamics, torch.zeros(2, 9, 0).double(), warmup=4)
    begun = torch.linalg.matrix_power(matrix, 4) @ random_start(6, 4)
    growth = (expected * 9 - float(torch.linalg.matrix_norm(begun, 2).log())) / 5
    assert after.max == pytest.approx(max(growth, float(after.exponents[0])), abs=1e-12)


def test_maximum_is_never_below_the_mean(monkeypatch):
    factors = torch.tensor([0.1, 0.9, 0.9, 0.9]).double()
    dynamics = lyap.RecurrentDynamics(lambda s, x: factors * s, 4)
    monkeypatch.setattr(_readout, "random_start", lambda size, k: torch.eye(size, k).double())
    r = lyap.lyapunov_readout(dynamics, torch.zeros(2, 20, 0).double(), k=1)
    assert float(r.exponents[0]) == pytest.approx(math.log(0.1))
    assert r.max == r.mean == pytest.approx(float(factors.log().mean()))
