"""What a model's forward makes of its layers: sequences of several lengths, resets, several layers,
images of tangent vectors; and forward-mode differentiation in threads."""

import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from _networks import KINDS, make_inputs, make_layer, orthogonal, state_of
from torch import nn

import lyap_optuna as lyap
from lyap_optuna.dynamics import DrivenLayer, NotMeasurableError, Trajectory, resolve
from lyap_optuna.spectrum import _readout, _spectrum
from lyap_optuna.spectrum._schedule import make_schedule

LENGTHS = [30, 12, 25, 6, 17]  # with 6 steps of warm-up the fourth is left out


@pytest.fixture
def driven(monkeypatch):
    """Let the measurements find these layers."""

    def use(*layers):
        found = {layer.name: layer for layer in layers}
        for module in (_spectrum, _readout):
            monkeypatch.setattr(module, "resolve", lambda *args, **options: found)
        return None, None

    return use


def ragged(kind, **options):
    """A layer, its padded inputs, and the layer driven by them."""
    layer = make_layer(kind, scale=0.8, **options)
    x = make_inputs(len(LENGTHS), max(LENGTHS), 3)
    for row, length in zip(x, LENGTHS, strict=True):
        row[length:] = 7.0  # padding that would show
    path = resolve(layer, x, state=state_of(kind))[""].trajectory
    return layer, x, DrivenLayer("rnn", path, state_of(kind), torch.tensor(LENGTHS))


def alone(measure, layer, x, **options):
    """Each sequence that is not left out, measured by itself."""
    return [
        measure(layer, row[None, :n], warmup=6, **options)
        for row, n in zip(x, LENGTHS, strict=True)
        if n >= 12
    ]


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "rnn_relu"])
@pytest.mark.parametrize("method", ["auto", "qr", "lu", "tangent", "textbook"])
@pytest.mark.parametrize("qr_every", [1, 4])
def test_sequences_of_several_lengths_are_those_measured_alone(driven, kind, method, qr_every):
    layer, x, found = ragged(kind)
    options = dict(method=method, qr_every=qr_every, keep_history=method != "lu")
    each = alone(lyap.lyapunov_spectrum, layer, x, state=found.state, start="identity", **options)
    s = lyap.lyapunov_spectrum(*driven(found), start="identity", **options)
    assert (s.layer, s.state, s.warmup, s.steps) == ("rnn", found.state, 6, 24)
    rows = torch.cat([one.per_input.sort(1).values for one in each])
    assert torch.allclose(s.per_input.sort(1).values, rows, atol=1e-9)
    if s.history is not None:
        assert s.history.shape[0] == 24
        assert torch.allclose(s.history[-1], s.exponents, atol=1e-12)
        if qr_every == 1:
            early = torch.stack([one.history[3] for one in each]).sum(1).mean()
            assert float(s.history[3].sum()) == pytest.approx(float(early), abs=1e-9)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "rnn_relu"])
def test_readout_of_several_lengths_is_that_of_each_sequence(driven, kind):
    layer, x, found = ragged(kind)
    each = alone(lyap.lyapunov_readout, layer, x, state=found.state)
    r = lyap.lyapunov_readout(*driven(found))
    assert r.sequences == 4
    assert r.mean_sampling_error == 0
    means = torch.tensor([one.mean for one in each], dtype=torch.float64)
    assert r.mean == pytest.approx(float(means.mean()), abs=1e-10)
    assert r.mean_stderr == pytest.approx(float(means.std() / 2), abs=1e-10)
    total = sum(one.exponents.sum() for one in each) / 4
    assert float(r.exponents.sum()) == pytest.approx(float(total), abs=1e-9)
    assert r.max <= sum(one.max for one in each) / 4 + 1e-9


def test_the_mean_of_long_and_short_sequences_is_sampled_within_its_tolerance(driven):
    layer = make_layer("gru", units=6)
    lengths = [400, 300, 45, 150]
    x = make_inputs(4, 400, 3)
    path = resolve(layer, x)[""].trajectory
    found = DrivenLayer("", path, "full", torch.tensor(lengths))
    times = [torch.arange(20, n) for n in lengths]
    exact = [
        float(path.log_abs_det(torch.full_like(t, i), t).mean()) / 6 for i, t in enumerate(times)
    ]
    truth = sum(exact) / 4
    driven(found)
    for seed in range(10):
        r = lyap.lyapunov_readout(None, None, seed=seed, mean_tolerance=0.05)
        assert 0 < r.mean_sampling_error < 0.05
        assert r.mean == pytest.approx(truth, abs=0.05)


def test_sequences_that_are_too_short_are_left_out():
    schedule = make_schedule(40, batch=3, lengths=torch.tensor([40, 16, 15]))
    assert (schedule.warmup, schedule.kept, schedule.counts) == (8, [0, 1], [32, 8])
    with pytest.raises(NotMeasurableError, match="warm-up of 25"):
        make_schedule(40, 25, batch=2, lengths=torch.tensor([40, 30]))
    with pytest.raises(ValueError, match="leaves no steps"):
        make_schedule(40, 30, batch=2, lengths=torch.tensor([30, 30]))


def test_a_reset_within_a_sequence_is_minus_infinity(driven):
    layer, x = make_layer("gru"), make_inputs(3, 20, 3)
    path = resolve(layer, x)[""].trajectory
    reset = torch.tensor([False, True, False])
    driven(DrivenLayer("", path, "full", reset=reset))
    s = lyap.lyapunov_spectrum(None, None, keep_history=True)
    assert s.max == -math.inf
    assert bool((s.per_input[1] == -math.inf).all())
    assert bool(torch.isfinite(s.per_input[[0, 2]]).all())
    assert bool((s.history == -math.inf).all())


def test_several_layers_are_one_readout(driven):
    x = make_inputs(4, 40, 3)
    layers = {"slow": make_layer("gru", units=4), "fast": make_layer("lstm_full", units=7)}
    own = {name: lyap.lyapunov_readout(layer, x) for name, layer in layers.items()}
    driven(
        *(DrivenLayer(n, resolve(layer, x)[""].trajectory, "full") for n, layer in layers.items())
    )
    r = lyap.lyapunov_readout(None, None)
    assert list(r.layers) == ["slow", "fast"]
    for name, one in r.layers.items():
        assert (one.layer, one.max, one.mean) == (name, own[name].max, own[name].mean)
        assert one.layers == {}
    leader = max(r.layers.values(), key=lambda one: one.max)
    assert (r.max, r.max_stderr, r.layer) == (leader.max, leader.max_stderr, leader.layer)
    assert r.state_size == 18
    assert r.mean == pytest.approx((4 * own["slow"].mean + 14 * own["fast"].mean) / 18)
    assert r.mean_stderr == pytest.approx(
        (4 * own["slow"].mean_stderr + 14 * own["fast"].mean_stderr) / 18
    )
    assert r.mean_sampling_error == 0
    everything = torch.cat([one.exponents for one in own.values()]).sort(descending=True).values
    assert torch.equal(r.exponents, everything[:4])
    with pytest.raises(ValueError, match=r"2 recurrent layers, \['fast', 'slow'\]"):
        lyap.lyapunov_spectrum(None, None)


def test_one_layer_is_its_own_readout():
    r = lyap.lyapunov_readout(make_layer("gru"), make_inputs(3, 20, 3))
    (one,) = r.layers.values()
    assert (one.max, one.mean, one.state) == (r.max, r.mean, "full")
    whole = lyap.LyapunovReadout.from_spectrum(
        lyap.lyapunov_spectrum(make_layer("gru"), make_inputs(3, 20, 3))
    )
    assert list(whole.layers) == [""]
    assert whole.mean == pytest.approx(r.mean)
    assert whole.max == pytest.approx(r.max, abs=1e-9)


class Pushed(Trajectory):
    """A trajectory that pushes vectors through all its steps at once."""

    def __init__(self, path, with_jacobians=True):
        self._path, self._with_jacobians = path, with_jacobians
        self.states = path.states

    @property
    def has_jacobians(self):
        return self._with_jacobians

    def images(self, rows):
        vectors, out = rows.expand(self.batch, -1, -1).to(self.states), []
        for t in range(self.steps):
            vectors = self._path.tangent(t, vectors)
            out.append(vectors)
        return torch.stack(out)

    def tangent(self, t, vectors):
        raise AssertionError

    def jacobians(self, inputs, times):
        return self._path.jacobians(inputs, times)

    def select(self, inputs):
        return Pushed(self._path.select(inputs), self._with_jacobians)

    def tangent_is_cheaper(self, k):
        return False


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("lengths", [None, [30, 12, 25, 17, 30]])
def test_images_give_what_the_time_loop_gives(driven, warmup, lengths):
    layer, x = make_layer("lstm_full", scale=0.8), make_inputs(5, 30, 3)
    path = resolve(layer, x)[""].trajectory
    steps = None if lengths is None else torch.tensor(lengths)
    driven(DrivenLayer("", path, "full", steps))
    expected = lyap.lyapunov_readout(None, None, warmup=warmup)
    loop = lyap.lyapunov_spectrum(None, None, warmup=warmup, k=3, keep_history=True)
    driven(DrivenLayer("", Pushed(path), "full", steps))
    r = lyap.lyapunov_readout(None, None, warmup=warmup)
    assert torch.allclose(r.exponents, expected.exponents, rtol=0, atol=1e-8)
    assert r.max == pytest.approx(expected.max, abs=1e-8)
    assert r.max_stderr == pytest.approx(expected.max_stderr, abs=1e-8)
    assert r.mean == pytest.approx(expected.mean, abs=1e-10)
    assert lyap.lyapunov_spectrum(None, None, warmup=warmup, k=3).method == "textbook"
    driven(DrivenLayer("", Pushed(path, False), "full", steps))
    r = lyap.lyapunov_readout(None, None, warmup=warmup)
    assert r.max == pytest.approx(expected.max, abs=1e-8)
    assert r.mean is r.mean_stderr is r.mean_sampling_error is None
    assert next(iter(r.layers.values())).mean is None
    s = lyap.lyapunov_spectrum(None, None, warmup=warmup, k=3, keep_history=True)
    assert s.method == "images"
    assert torch.allclose(s.exponents, loop.exponents, rtol=0, atol=1e-8)
    assert torch.allclose(s.history, loop.history, rtol=0, atol=1e-8)
    with pytest.raises(NotMeasurableError, match="pass k=4"):
        lyap.lyapunov_spectrum(None, None)


def linear(matrix, steps, batch=2):
    dynamics = lyap.RecurrentDynamics(lambda s, x: matrix @ s, len(matrix))
    return Pushed(dynamics.linearise(torch.zeros(batch, steps, 0).double()))


def test_images_that_have_lost_their_independence_are_dropped(driven):
    q = orthogonal(4)
    rates = torch.tensor([0.0, -0.5, -2.0, -2.5]).double()
    driven(DrivenLayer("", linear(q @ rates.exp().diag() @ q.T, 40), "full"))
    r = lyap.lyapunov_readout(None, None, warmup=10)
    assert torch.allclose(r.exponents, rates[:2], rtol=0, atol=1e-2)
    assert r.mean == pytest.approx(float(rates.mean()))


@pytest.mark.parametrize("rate", [12.0, -12.0])
def test_images_that_over_or_underflow_are_no_exponents(driven, rate):
    driven(DrivenLayer("", linear(math.exp(rate) * orthogonal(4), 80), "full"))
    with pytest.raises(NotMeasurableError, match="over- or underflow within 80 steps"):
        lyap.lyapunov_readout(None, None)


def test_no_determinant_is_no_mean(driven, monkeypatch):
    path = linear(orthogonal(4), 20)

    def refuse(inputs, times):
        raise NotMeasurableError("no reverse mode")

    monkeypatch.setattr(path, "log_abs_det", refuse)
    driven(DrivenLayer("", path, "full"))
    r = lyap.lyapunov_readout(None, None)
    assert r.mean is None
    assert r.max == pytest.approx(0, abs=1e-12)


def recurrent(seed, size=8):
    matrix = make_layer("rnn_tanh", units=size, seed=seed, scale=1.2).weight_hh_l0.detach()
    return lyap.RecurrentDynamics(lambda s, x: torch.tanh(matrix @ s + x.sum()), size)


def test_readouts_of_a_step_function_in_threads():
    x = make_inputs(3, 25, 2)
    serial = [lyap.lyapunov_readout(recurrent(seed), x) for seed in range(9)]
    with ThreadPoolExecutor(3) as pool:
        threads = list(pool.map(lambda seed: lyap.lyapunov_readout(recurrent(seed), x), range(9)))
    assert [(r.max, r.mean) for r in threads] == [(r.max, r.mean) for r in serial]


def test_a_step_function_is_not_given_to_workers():
    program = """
import torch, lyap_optuna as lyap
torch.manual_seed(0)
matrix = torch.randn(64, 64, dtype=torch.float64) / 8
dynamics = lyap.RecurrentDynamics(lambda s, x: torch.tanh(matrix @ s + x.sum()), 64)
x = torch.randn(4, 12, 2, dtype=torch.float64)
found = []
for threads in (1, 2):
    torch.set_num_threads(threads)
    s, r = lyap.lyapunov_spectrum(dynamics, x), lyap.lyapunov_readout(dynamics, x)
    found.append(torch.cat([s.exponents, torch.tensor([r.max, r.mean]).double()]))
assert torch.allclose(*found, rtol=0, atol=1e-9)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_what_a_model_draws_is_the_same_alone_and_beside_another_thread():
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(4, 6, batch_first=True)

        def forward(self, x):
            return self.rnn(nn.functional.dropout(x, 0.5, training=True))[0]

    model, x = Drawing(), torch.randn(4, 40, 4)
    before = torch.default_generator.get_state()
    alone = lyap.lyapunov_readout(model, x)
    assert torch.equal(torch.default_generator.get_state(), before)
    torch.rand(3)
    assert lyap.lyapunov_readout(model, x).max == alone.max
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        assert lyap.lyapunov_readout(model, x).max == alone.max
    finally:
        done.set()
        other.join()
