"""Facts about exponents: known values, identities, invariances; and every path against the
algorithm as printed."""

import copy
import math
import threading

import pytest
import torch
from _networks import KINDS, make_inputs, make_layer, orthogonal, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lyap_optuna as lyap
from lyap_optuna.spectrum._start import random_start
from lyap_optuna.spectrum._workers import map_in_workers


def linear(matrix):
    return lyap.RecurrentDynamics(lambda s, x: matrix @ s, len(matrix))


def autonomous(steps, batch=1):
    return torch.zeros(batch, steps, 0, dtype=torch.float64)


@pytest.mark.parametrize("steps", [2, 7, 40])
@pytest.mark.parametrize("method", ["textbook", "tangent", "qr", "lu"])
def test_upper_triangular_matrix_gives_log_of_its_diagonal_at_every_time(steps, method):
    matrix = torch.tensor([[2.0, 5.0, -1.0], [0.0, -0.5, 3.0], [0.0, 0.0, 0.1]]).double()
    s = lyap.lyapunov_spectrum(
        linear(matrix), autonomous(steps), warmup=0, method=method, start="identity"
    )
    expected = matrix.diagonal().abs().log().sort(descending=True).values
    assert torch.allclose(s.exponents, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("g", [0.3, 1.0, 1.9])
def test_scaled_orthogonal_matrix_gives_log_of_the_scale(g):
    s = lyap.lyapunov_spectrum(linear(g * orthogonal(6)), autonomous(15))
    assert torch.allclose(s.exponents, torch.full((6,), math.log(g)).double(), atol=1e-12)


@pytest.mark.parametrize("g", [0.5, 1.3])
def test_tanh_network_at_rest_gives_log_of_the_scale(g):
    layer = nn.RNN(2, 8, bias=False, batch_first=True).double()
    with torch.no_grad():
        layer.weight_hh_l0.copy_(g * orthogonal(8))
    s = lyap.lyapunov_spectrum(layer, torch.zeros(3, 30, 2).double())
    assert torch.allclose(s.exponents, torch.full((8,), math.log(g)).double(), atol=1e-12)
    r = lyap.lyapunov_readout(layer, torch.zeros(3, 30, 2).double())
    assert r.max == pytest.approx(math.log(g), abs=1e-12)
    assert r.mean == pytest.approx(math.log(g), abs=1e-12)


def test_any_matrix_approaches_the_log_moduli_of_its_eigenvalues():
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    expected = torch.linalg.eigvals(matrix).abs().log().sort(descending=True).values
    errors = [
        float(
            (
                lyap.lyapunov_spectrum(linear(matrix), autonomous(steps), warmup=0).exponents
                - expected
            )
            .abs()
            .max()
        )
        for steps in (20, 200, 2000)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 5e-3


def test_logistic_map_at_4_has_exponent_log_2():
    logistic = lyap.RecurrentDynamics(lambda s, x: 4 * s * (1 - s), 1)
    s = lyap.lyapunov_spectrum(
        logistic, autonomous(5000), warmup=0, initial_state=torch.tensor([0.3123456])
    )
    assert s.max == pytest.approx(math.log(2), abs=1e-3)
    assert s.entropy_rate == pytest.approx(math.log(2), abs=1e-3)


def test_henon_map():
    henon = lyap.RecurrentDynamics(
        lambda s, x: torch.stack([1 - 1.4 * s[0] ** 2 + s[1], 0.3 * s[0]]), 2
    )
    generator = torch.Generator().manual_seed(0)
    starts = 0.1 * torch.rand(10, 2, generator=generator, dtype=torch.float64)
    s = lyap.lyapunov_spectrum(henon, autonomous(1500, 10), warmup=100, initial_state=starts)
    assert float(s.exponents.sum()) == pytest.approx(math.log(0.3), abs=1e-12)
    assert s.max == pytest.approx(0.4192, abs=1e-2)
    assert s.kaplan_yorke_dimension == pytest.approx(1.258, abs=0.01)


paths = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "units": st.integers(2, 9),
        "layers": st.integers(1, 3),
        "bias": st.booleans(),
        "seed": st.integers(0, 10_000),
        "warmup": st.integers(0, 6),
        "qr_every": st.integers(1, 4),
        "steps": st.integers(8, 17),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    case=paths,
    method=st.sampled_from(["tangent", "qr", "lu"]),
    part=st.floats(0.1, 1.0),
    dense=st.booleans(),
)
def test_every_path_equals_the_algorithm_as_printed(case, method, part, dense):
    kind = case["kind"]
    layer = make_layer(
        kind,
        units=case["units"],
        layers=case["layers"],
        bias=case["bias"],
        seed=case["seed"],
        scale=1.0,
    )
    x = make_inputs(3, case["steps"], 3, seed=case["seed"])
    options = dict(state=state_of(kind), warmup=case["warmup"], qr_every=case["qr_every"])
    size = case["units"] * case["layers"] * (2 if kind == "lstm_full" else 1)
    k = max(1, int(part * size))
    options["start"] = start = random_start(size, k) if dense else "identity"
    reference = lyap.lyapunov_spectrum(layer, x, method="textbook", k=k, **options)
    actual = lyap.lyapunov_spectrum(layer, x, method=method, k=k, **options)
    assert actual.method == method
    # Of a direction that shrank to nothing (relu, saturation) only rounding is left, and of all
    # those that were orthogonalised against it.
    firm = [never_lost(layer, sequence[None], k, state_of(kind), start) for sequence in x]
    rows = [s.per_input[firm].sort(dim=1).values for s in (actual, reference)]
    assert torch.allclose(*rows, rtol=0, atol=1e-6)


def never_lost(layer, sequence, k, state, start):
    s = lyap.lyapunov_spectrum(
        layer,
        sequence,
        k=k,
        state=state,
        keep_history=True,
        warmup=0,
        method="textbook",
        start=start,
    )
    sums = s.history * torch.arange(1, s.steps + 1)[:, None]
    return bool((sums.diff(dim=0, prepend=torch.zeros_like(sums[:1])) > -5).all())


@pytest.mark.parametrize("kind", KINDS)
def test_mean_exponent_is_the_rate_of_volume_at_every_time(kind):
    # relu's determinant is zero in general, so its identity reads -inf = -inf
    layer = make_layer(kind, units=6, scale=0.8)
    for steps in (3, 11):
        x = make_inputs(2, steps, 3)
        s = lyap.lyapunov_spectrum(layer, x, state=state_of(kind), warmup=0, method="textbook")
        r = lyap.lyapunov_readout(layer, x, state=state_of(kind), warmup=0)
        if kind == "rnn_relu":
            assert r.mean == -math.inf
            assert s.mean < -1
        else:
            assert r.mean == pytest.approx(s.mean, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2])
def test_readout_has_the_leading_exponents_of_the_spectrum(kind, layers):
    layer = make_layer(kind, units=12, layers=layers, scale=0.8)
    if kind == "rnn_relu":  # all units alive: a dead direction has no exponent but rounding
        with torch.no_grad():
            for name, p in layer.named_parameters():
                if name.startswith("bias_ih"):
                    p.fill_(20.0)
    x = make_inputs(4, 30, 3)
    size = 12 * layers * (2 if kind == "lstm_full" else 1)
    options = dict(state=state_of(kind), method="textbook")
    s = lyap.lyapunov_spectrum(layer, x, k=4, start=random_start(size, 4), **options)
    r = lyap.lyapunov_readout(layer, x, state=state_of(kind), k=4)
    assert torch.allclose(r.exponents, s.exponents, rtol=0, atol=1e-6)
    # Each is one of the whole spectrum's (whose sorted order may put a fifth between them).
    whole = lyap.lyapunov_spectrum(layer, x, start=random_start(size, size), **options)
    distance = (r.exponents[:, None] - whole.exponents).abs().min(1).values
    assert float(distance.max()) < 1e-6
    single = copy.deepcopy(layer).float()
    r32 = lyap.lyapunov_readout(single, x.float(), state=state_of(kind), k=4)
    assert torch.allclose(r32.exponents, s.exponents, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["gru", "lstm_hidden"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("tolerance", [0.01, 0.002])
def test_sampled_mean_stays_within_its_tolerance(kind, layers, tolerance):
    layer = make_layer(kind, units=10, layers=layers)
    x = make_inputs(6, 150, 3)
    options = dict(state=state_of(kind))
    exact = lyap.lyapunov_spectrum(layer, x, **options).mean
    errors = []
    for seed in range(20):
        r = lyap.lyapunov_readout(layer, x, mean_tolerance=tolerance, seed=seed, **options)
        errors.append((r.mean - exact) / (tolerance * max(1, abs(exact))))
        assert 0 <= r.mean_sampling_error <= tolerance * max(1, abs(exact)) / 2
    assert max(abs(e) for e in errors) <= 1
    assert abs(sum(errors)) / len(errors) < 0.3  # and it is unbiased


def test_a_batch_of_few_pairs_is_computed_exactly():
    layer = make_layer("gru", units=6)
    x = make_inputs(4, 50, 3)  # 4 * 40 pairs after the warm-up
    r = lyap.lyapunov_readout(layer, x)
    assert r.mean_sampling_error == 0
    assert r.mean == pytest.approx(lyap.lyapunov_spectrum(layer, x).mean, abs=1e-12)


def test_repeated_input_has_no_spread():
    x = make_inputs(1, 30, 3).expand(4, -1, -1)
    layer = make_layer("lstm_full")
    s = lyap.lyapunov_spectrum(layer, x, state="full")
    assert torch.allclose(s.std, torch.zeros_like(s.std), atol=1e-12)
    r = lyap.lyapunov_readout(layer, x, state="full")
    assert r.max_stderr == pytest.approx(0, abs=1e-12)
    assert r.mean_stderr == pytest.approx(0, abs=1e-12)


def test_single_input_has_no_standard_error():
    r = lyap.lyapunov_readout(make_layer("gru"), make_inputs(1, 30, 3))
    assert r.max_stderr is None
    assert r.mean_stderr is None
    s = lyap.lyapunov_spectrum(make_layer("gru"), make_inputs(1, 30, 3))
    assert bool(torch.isnan(s.std).all())


def test_permuting_the_batch_permutes_the_inputs():
    layer = make_layer("gru")
    x = make_inputs(5, 30, 3)
    order = torch.tensor([3, 0, 4, 1, 2])
    a, b = lyap.lyapunov_spectrum(layer, x), lyap.lyapunov_spectrum(layer, x[order])
    assert torch.allclose(a.per_input[order], b.per_input, atol=1e-12)


def test_arrays_are_consistent():
    layer = make_layer("lstm_hidden", units=7)
    s = lyap.lyapunov_spectrum(
        layer, make_inputs(4, 33, 3), state="hidden", keep_history=True, qr_every=5
    )
    assert s.exponents.dtype == torch.float64
    assert bool((s.exponents.diff() <= 0).all())
    assert torch.equal(s.exponents, s.per_input.mean(0))
    assert torch.allclose(s.std, s.per_input.std(0))
    assert s.warmup == 6
    assert s.steps == 27
    assert s.history.shape == (27, 7)
    assert torch.allclose(s.history[-1], s.exponents, atol=1e-12)
    assert bool(torch.isnan(s.history[:4]).all())
    assert torch.equal(s.history[4], s.history[8])
    quantiles = s.quantiles(32)
    assert float(quantiles[0]) == float(s.exponents[-1])
    assert float(quantiles[-1]) == s.max
    assert s.variance == pytest.approx(float(((s.exponents - s.mean) ** 2).mean()))


def test_history_equals_shorter_measurements():
    layer = make_layer("gru")
    x = make_inputs(3, 20, 3)
    s = lyap.lyapunov_spectrum(layer, x, warmup=4, keep_history=True)
    shorter = lyap.lyapunov_spectrum(layer, x[:, :12], warmup=4)
    assert torch.allclose(s.history[7].sort(descending=True).values, shorter.exponents, atol=1e-12)


def test_kaplan_yorke_dimension():
    def dimension(*exponents, size=None):
        values = torch.tensor(exponents, dtype=torch.float64)
        return lyap.LyapunovSpectrum(
            exponents=values,
            std=values,
            per_input=values[None],
            history=None,
            state_size=size or len(values),
            steps=1,
            warmup=0,
            method="qr",
        ).kaplan_yorke_dimension

    assert dimension(-0.1, -2.0) == 0
    assert dimension(0.5, 0.0, -1.0) == 2.5
    assert dimension(0.5, 0.1) == 2
    assert math.isnan(dimension(0.5, 0.1, size=3))


def test_relu_may_have_an_exponent_of_minus_infinity():
    layer = nn.RNN(2, 4, nonlinearity="relu", bias=False, batch_first=True).double()
    with torch.no_grad():
        layer.weight_ih_l0.fill_(-1)
        layer.weight_hh_l0.copy_(torch.eye(4))
    s = lyap.lyapunov_spectrum(layer, torch.ones(2, 10, 2).double())
    assert bool((s.exponents == -math.inf).all())
    assert s.max == s.mean == -math.inf
    assert bool((s.quantiles() == -math.inf).all())


@pytest.mark.parametrize("method", ["textbook", "tangent", "qr", "lu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_that_relu_lost_have_no_exponent_but_minus_infinity(method, dtype):
    layer = make_layer("rnn_relu", units=8, dtype=dtype)
    x = make_inputs(1, 100, 3, dtype=dtype)
    active = (layer(x)[0] > 0).sum(2)[0, 20:]
    least = int(active.min())
    assert 0 < least < 8
    s = lyap.lyapunov_spectrum(layer, x, method=method)
    assert bool((s.exponents[least:] == -math.inf).all())
    assert math.isfinite(s.max)


def test_an_interval_that_overflows_is_named():
    dynamics = lyap.RecurrentDynamics(lambda s, x: s * torch.tensor([3.0, 0.3]), 2)
    with pytest.raises(ValueError, match="qr_every=100"):
        lyap.lyapunov_spectrum(dynamics, torch.zeros(1, 100, 1), qr_every=100, warmup=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype):
    layer = make_layer("gru", dtype=dtype)
    x = make_inputs(3, 30, 3, dtype=dtype)
    same = make_layer("gru", dtype=torch.float32)
    same.load_state_dict({n: p.float() for n, p in layer.state_dict().items()})
    expected = lyap.lyapunov_spectrum(same, x.float())
    assert torch.allclose(lyap.lyapunov_spectrum(layer, x).exponents, expected.exponents)


@pytest.mark.parametrize("kind", ["gru", "lstm_full"])
def test_pieces_of_a_batch_give_the_same_numbers(kind):
    layer = make_layer(kind, units=70, scale=0.5)
    x = make_inputs(5, 12, 3)
    whole = lyap.lyapunov_spectrum(layer, x, state=state_of(kind), keep_history=True)
    in_pieces = lyap.lyapunov_spectrum(
        layer,
        x,
        state=state_of(kind),
        keep_history=True,
        max_memory=7 * whole.state_size**2 * 8 * 2,
    )
    assert torch.allclose(whole.per_input, in_pieces.per_input, atol=1e-9)
    assert torch.allclose(whole.history, in_pieces.history, atol=1e-9, equal_nan=True)
    lu = lyap.lyapunov_spectrum(layer, x, state=state_of(kind))
    assert lu.method == "lu"
    assert torch.allclose(lu.exponents, whole.exponents, atol=1e-9)


@pytest.mark.parametrize("method", ["lu", "qr", "tangent"])
@pytest.mark.parametrize("kind", ["gru", "lstm_full"])
def test_workers_give_the_same_numbers_and_touch_no_global_setting(kind, method):
    units = 100 if kind == "lstm_full" else 200  # enough for workers to pay
    layer = make_layer(kind, units=units, scale=0.5)
    x = make_inputs(3, 8, 3)
    options = dict(state=state_of(kind), method=method, keep_history=method != "lu")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = lyap.lyapunov_spectrum(layer, x, **options)
        readout_alone = lyap.lyapunov_readout(layer, x, state=state_of(kind), k=70)
        torch.set_num_threads(3)
        together = lyap.lyapunov_spectrum(layer, x, **options)
        readout = lyap.lyapunov_readout(layer, x, state=state_of(kind), k=70)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert seen == [3]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(alone.per_input, together.per_input, atol=1e-9)
    if together.history is not None:
        assert torch.allclose(alone.history, together.history, atol=1e-9)
    assert readout.max == pytest.approx(readout_alone.max, abs=1e-9)
    assert readout.mean == pytest.approx(readout_alone.mean, abs=1e-9)


def test_an_error_in_a_worker_reaches_the_caller():
    def fail(item):
        raise ArithmeticError(item)

    with pytest.raises(ArithmeticError, match="7"):
        map_in_workers(fail, [7, 7], 2)


def test_lu_falls_back_where_it_is_not_accurate_enough():
    layer = make_layer("gru", units=80, dtype=torch.float32)
    x = make_inputs(2, 12, 3, dtype=torch.float32)
    assert lyap.lyapunov_spectrum(layer, x).method == "lu"
    assert lyap.lyapunov_spectrum(layer, x, rtol=1e-12).method == "qr"
    assert lyap.lyapunov_spectrum(make_layer("gru", units=40), x.double()).method == "textbook"


@pytest.mark.parametrize("units", [128, pytest.param(256, marks=pytest.mark.slow)])
def test_full_state_of_an_lstm_in_single_precision(units):
    torch.manual_seed(0)
    layer = nn.LSTM(20, units, bias=False, batch_first=True)
    x = make_inputs(2, 20, 20, dtype=torch.float32)
    s = lyap.lyapunov_spectrum(layer, x, warmup=0)
    exact = lyap.lyapunov_spectrum(layer.double(), x.double(), warmup=0, method="qr")
    upper = int(0.95 * 2 * units)
    assert float((s.exponents - exact.exponents)[:upper].abs().max()) <= 1e-3


def test_forget_gate_open_hidden_and_full_state_differ():
    # With the cell path left out, the maximum does not say whether gradients survive.
    layer = make_layer("lstm_full", units=16, scale=0.3)
    with torch.no_grad():
        layer.bias_ih_l0[16:32] = 4.0
    x = make_inputs(4, 100, 3)
    assert lyap.lyapunov_readout(layer, x, state="full").max > -0.1
    assert lyap.lyapunov_readout(layer, x, state="hidden").max < -0.5


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm_hidden"])
def test_both_layouts(kind, batch_first):
    x = make_inputs(3, 20, 4)
    expected = lyap.lyapunov_spectrum(make_layer(kind, features=4), x).exponents
    layer = make_layer(kind, features=4, batch_first=batch_first)
    actual = lyap.lyapunov_spectrum(layer, x if batch_first else x.transpose(0, 1)).exponents
    assert torch.allclose(actual, expected, atol=1e-12)


def test_initial_state_is_the_modules_own():
    layer = make_layer("lstm_full", layers=2)
    x = make_inputs(3, 24, 3)
    _, state = layer(x[:, :10])
    resumed = lyap.lyapunov_spectrum(
        layer, x[:, 10:], state="full", warmup=0, initial_state=state, method="textbook"
    )
    trajectory = lyap.lyapunov_spectrum(
        layer, x, state="full", warmup=10, keep_history=True, method="textbook"
    )
    assert resumed.steps == trajectory.steps
    # The same states, other vectors: the volumes agree, whatever the vectors
    assert resumed.mean == pytest.approx(trajectory.mean, abs=1e-10)


def test_model_passing_its_own_initial_state():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = make_layer("gru")

        def forward(self, x):
            return self.rnn(x, torch.ones(1, len(x), 5).double())

    x = make_inputs(2, 12, 3)
    expected = lyap.lyapunov_spectrum(
        Net().rnn, x, initial_state=torch.ones(1, 2, 5).double()
    ).exponents
    assert torch.allclose(lyap.lyapunov_spectrum(Net(), x).exponents, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 6}, "k must be between 1 and the dimension of the state, 5, but got 6"),
        ({"k": 0}, "k must be between 1"),
        ({"k": 2.5}, "k must be an integer, but got 2.5"),
        ({"warmup": -1}, "warmup must not be negative, but got -1"),
        ({"warmup": 20}, "warmup=20 leaves no steps"),
        ({"qr_every": 0}, "qr_every must be at least 1, but got 0"),
        ({"state": "cell"}, "state must be one of"),
        ({"method": "svd"}, "method must be one of"),
        ({"rtol": 0}, "rtol must be positive"),
        ({"max_memory": 0}, "max_memory must be a positive"),
        ({"method": "lu", "keep_history": True}, "keeps no history"),
        ({"initial_state": torch.zeros(2, 2, 5)}, "initial_state has shape"),
        ({"initial_state": 3}, "initial_state has shape"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        lyap.lyapunov_spectrum(make_layer("gru"), make_inputs(2, 20, 3), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 6}, "k must be between 1"),
        ({"mean_tolerance": 0}, "mean_tolerance must be positive, but got 0"),
        ({"mean_tolerance": math.nan}, "mean_tolerance must be positive"),
        ({"warmup": 30}, "leaves no steps"),
    ],
)
def test_bad_readout_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        lyap.lyapunov_readout(make_layer("gru"), make_inputs(2, 20, 3), **options)
