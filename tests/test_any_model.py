"""Models as people write them: directions, lengths, kept states, scripts, random numbers."""

import copy
import dataclasses
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import lyap_optuna as lyap
from lyap_optuna.dynamics import NotMeasurableError
from studies.models.cases import step_of
from studies.models.networks import EncoderDecoder, Packs, Stateful
from studies.models.truth import true_exponents

FEATURES, UNITS = 3, 5


def inputs(batch=4, steps=50, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, steps, FEATURES, generator=generator, dtype=torch.float64).to(dtype)


def layer_of(kind, seed=0, **options):
    torch.manual_seed(seed)
    layer = kind(FEATURES, UNITS, batch_first=True, **options).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(2)
    return layer


def zeros(layer, batch=4):
    return torch.zeros(batch, layer.hidden_size * (2 if isinstance(layer, nn.LSTM) else 1))


class Net(nn.Module):
    def __init__(self, layer, before=None):
        super().__init__()
        self.rnn, self.before = layer, before

    def forward(self, x):
        return self.rnn(x if self.before is None else self.before(x))[0]


# Directions and lengths --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_bidirectional_layer_by_layer_and_direction(kind):
    layer, x = layer_of(kind, bidirectional=True, num_layers=2), inputs()
    below = x
    truths = {}
    for i in range(2):
        for suffix in ("", "_reverse"):
            driving = below.flip(1) if suffix else below
            truths[f"rnn.l{i}{suffix}"] = true_exponents(
                step_of(layer, i, suffix), zeros(layer), driving
            )
        if i == 0:
            lower = kind(FEATURES, UNITS, batch_first=True, bidirectional=True).double()
            lower.load_state_dict({k: v for k, v in layer.state_dict().items() if "_l0" in k})
            below = lower(below)[0].detach()
    model = Net(layer)
    readout = lyap.lyapunov_readout(model, x)
    assert list(readout.layers) == list(truths)
    for name, truth in truths.items():
        spectrum = lyap.lyapunov_spectrum(model, x, layer=name, start="identity")
        assert torch.allclose(spectrum.exponents, truth, atol=1e-6)
        assert readout.layers[name].mean == pytest.approx(float(truth.mean()), abs=1e-6)
    assert readout.max == max(part.max for part in readout.layers.values())
    assert readout.mean == pytest.approx(
        float(torch.stack([t.mean() for t in truths.values()]).mean()), abs=1e-6
    )
    with pytest.raises(ValueError, match=r"rnn\.l0_reverse"):
        lyap.lyapunov_spectrum(model, x)


@pytest.mark.parametrize("lengths", [[50, 20, 35, 12], [50, 50, 50, 50]])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_padding_is_no_step(kind, lengths):
    layer, x = layer_of(kind), inputs()
    truth = true_exponents(step_of(layer), zeros(layer), x, lengths=lengths)
    model = Packs(layer)
    by_model = lyap.lyapunov_spectrum(model, (x, torch.tensor(lengths)), start="identity")
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    by_layer = lyap.lyapunov_spectrum(layer, packed, start="identity")
    told = lyap.lyapunov_spectrum(Net(layer), x, lengths=lengths, start="identity")
    for spectrum in (by_model, by_layer, told):
        assert torch.allclose(spectrum.exponents, truth, atol=1e-6)
    readout = lyap.lyapunov_readout(model, (x, torch.tensor(lengths)))
    assert readout.mean == pytest.approx(float(truth.mean()), abs=1e-6)


def test_packed_sequences_in_both_directions():
    layer, x, lengths = layer_of(nn.LSTM, bidirectional=True), inputs(), [50, 30, 35, 22]
    backwards = torch.stack(
        [torch.cat([row[:n].flip(0), row[n:]]) for row, n in zip(x, lengths, strict=True)]
    )
    truth = true_exponents(step_of(layer, 0, "_reverse"), zeros(layer), backwards, lengths=lengths)
    model = Packs(layer)
    spectrum = lyap.lyapunov_spectrum(
        model, (x, torch.tensor(lengths)), layer="lstm.l0_reverse", start="identity"
    )
    assert torch.allclose(spectrum.exponents, truth, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("state", ["hidden", "full"])
def test_lengths_of_a_direction_that_reads_the_padding_first(kind, state):
    layer, x, lengths = layer_of(kind, bidirectional=True), inputs(), [50, 30, 35, 22]
    step = step_of(layer, 0, "_reverse")
    begun, rows = [], []
    for row, n in zip(x, lengths, strict=True):
        s = torch.zeros(zeros(layer).shape[1], dtype=torch.float64)
        for padding in row[n:].flip(0):
            s = step(s, padding)
        begun.append(s.detach())
        rows.append(torch.cat([row[:n].flip(0), row[n:]]))
    truth = true_exponents(step, torch.stack(begun), torch.stack(rows), lengths=lengths)
    spectrum = lyap.lyapunov_spectrum(
        layer, x, layer="l0_reverse", lengths=lengths, state=state, start="identity"
    )
    if state == "full" or kind is nn.GRU:
        assert torch.allclose(spectrum.exponents, truth, atol=1e-6)


class DecayLoop(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRUCell(FEATURES, UNITS)

    def forward(self, x):
        h = x.new_zeros(len(x), UNITS)
        for step in x.unbind(1):
            h = 0.5 * self.cell(step, h)
        return h


@pytest.mark.parametrize("lengths", [[50, 20, 35, 40], [30, 20, 25, 30]])
def test_lengths_in_a_loop_that_changes_its_state(lengths):
    model, x = DecayLoop(), inputs(dtype=torch.float32)
    cell = step_of(model.cell)
    seen = [min(n, 49) for n in lengths]  # what the last call leads to is not seen
    truth = true_exponents(
        lambda s, z: 0.5 * cell(s, z), torch.zeros(4, UNITS), x[:, :49], lengths=seen, warmup=5
    )
    spectrum = lyap.lyapunov_spectrum(model, x, lengths=lengths, warmup=5, start="identity")
    assert torch.allclose(spectrum.exponents, truth, atol=1e-6)


@pytest.mark.parametrize("lengths", [[50, 20], [0, 1, 2, 3], [60] * 4, [1.5] * 4, "ten"])
def test_wrong_lengths_are_named(lengths):
    with pytest.raises(ValueError, match="lengths"):
        lyap.lyapunov_readout(layer_of(nn.GRU), inputs(), lengths=lengths)


def test_all_layers_of_a_model_in_one_pass():
    model, x = EncoderDecoder(UNITS).double(), inputs()
    readout = lyap.lyapunov_readout(model, x)
    assert list(readout.layers) == ["encoder", "decoder"]
    alone = lyap.lyapunov_readout(model, x, layer="decoder")
    assert alone.max == readout.layers["decoder"].max
    assert list(lyap.lyapunov_readout(model, x, layer=["decoder"]).layers) == ["decoder"]
    sizes = [part.state_size for part in readout.layers.values()]
    means = [part.mean for part in readout.layers.values()]
    weighted = sum(s * m for s, m in zip(sizes, means, strict=True)) / sum(sizes)
    assert readout.mean == pytest.approx(weighted, abs=1e-12)
    with pytest.raises(ValueError, match=r"decoder.*encoder|encoder.*decoder"):
        lyap.lyapunov_spectrum(model, x)
    with pytest.raises(ValueError, match="'middle'"):
        lyap.lyapunov_readout(model, x, layer="middle")


# States that a model keeps -----------------------------------------------------------------------


def test_a_state_kept_for_another_batch_size():
    model, x = Stateful(UNITS).double(), inputs()
    fresh = lyap.lyapunov_readout(model, x)
    model(inputs(batch=32))
    kept = [part.clone() for part in model.kept]
    other = lyap.lyapunov_readout(model, x)
    assert (other.max, other.mean) == (fresh.max, fresh.mean)
    assert all(torch.equal(a, b) for a, b in zip(kept, model.kept, strict=True))
    zero = torch.zeros(1, UNITS)
    given = lyap.lyapunov_readout(model, x, initial_state=(zero, zero))
    assert (given.max, given.mean) == (fresh.max, fresh.mean)


def test_a_state_kept_for_this_batch_size_is_begun_with():
    model, x = Stateful(UNITS).double(), inputs()
    model(inputs(seed=3))
    initial = torch.cat([part[0] for part in model.kept], 1)
    truth = true_exponents(step_of(model.rnn), initial, x)
    spectrum = lyap.lyapunov_spectrum(model, x, start="identity")
    assert torch.allclose(spectrum.exponents, truth, atol=1e-6)


@dataclasses.dataclass
class State:
    h: torch.Tensor


class KeepsObject(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out, self.kind = (
            nn.GRU(FEATURES, UNITS, batch_first=True),
            nn.Linear(5, 1),
            kind,
        )

    def forward(self, x):
        out, h = self.rnn(x)
        mean = self.out(out[:, -1])
        self.last = {
            "tuple": lambda: (h,),
            "nested": lambda: {"a": [{"h": h}]},
            "dataclass": lambda: State(h),
            "distribution": lambda: torch.distributions.Normal(mean, 1.0),
            "closure": lambda: lambda: h.sum(),
        }[self.kind]()
        return mean


@pytest.mark.parametrize("kind", ["tuple", "nested", "dataclass", "distribution", "closure"])
def test_objects_that_hold_tensors_with_a_graph(kind):
    model, x = KeepsObject(kind).double(), inputs()
    before = lyap.lyapunov_readout(model, x)
    model(x).sum().backward()
    after = lyap.lyapunov_readout(model, x)
    assert (after.max, after.mean) == (before.max, before.mean)


# What runs outside Python, in another precision, or elsewhere ------------------------------------


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, inputs())])
def test_a_scripted_model_is_told_so(make):
    with pytest.raises(NotMeasurableError, match="scripted or traced"):
        lyap.lyapunov_readout(make(Net(layer_of(nn.GRU))), inputs())


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(4, 3))])
def test_a_scripted_part_beside_a_plain_layer(make):
    layer, x = layer_of(nn.GRU), inputs()
    part = make(nn.Sequential(nn.Linear(FEATURES, FEATURES)))
    model = Net(layer, part).double()
    expected = lyap.lyapunov_readout(layer, part(x).detach())
    assert lyap.lyapunov_readout(model, x).max == expected.max


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_autocast_around_everything(kind):
    layer, x = layer_of(kind).float(), inputs(dtype=torch.float32)
    plain, whole = lyap.lyapunov_readout(layer, x), lyap.lyapunov_spectrum(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        cast, cast_whole = lyap.lyapunov_readout(layer, x), lyap.lyapunov_spectrum(layer, x)
    assert (cast.max, cast.mean) == (plain.max, plain.mean)
    assert torch.equal(cast_whole.exponents, whole.exponents)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_half_precision(kind):
    layer, x = layer_of(kind).float(), inputs(dtype=torch.float32)
    half = copy.deepcopy(layer).bfloat16()
    expected = lyap.lyapunov_readout(copy.deepcopy(half).float(), x.bfloat16().float())
    readout = lyap.lyapunov_readout(half, x.bfloat16())
    assert readout.max == pytest.approx(expected.max, abs=0.02)


class TakesDict(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.rnn = layer

    def forward(self, x: dict):
        return self.rnn(x["series"] * x["scale"])[0]


def test_a_forward_that_takes_a_dict_or_a_tuple_whole():
    layer, x = layer_of(nn.GRU), inputs()
    expected = lyap.lyapunov_readout(layer, 2 * x).max
    batch = {"series": x, "scale": torch.tensor(2.0)}
    assert lyap.lyapunov_readout(TakesDict(layer), batch).max == expected

    class TakesTuple(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = layer

        def forward(self, batch):
            return self.rnn(batch[0] * batch[1])[0]

    assert lyap.lyapunov_readout(TakesTuple(), (x, torch.tensor(2.0))).max == expected


def test_no_recurrent_layer_names_both_ways_and_how_to_register():
    with pytest.raises(NotMeasurableError) as caught:
        lyap.lyapunov_readout(nn.Linear(3, 3), inputs())
    for word in ("RecurrentDynamics", "DiagonalDynamics", "register_architecture"):
        assert word in str(caught.value)


# Random numbers, patches and hooks ---------------------------------------------------------------

DRAWS = {
    "dropout": lambda x: F.dropout(x, 0.3, True),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.3, True),
    "rrelu": lambda x: F.rrelu(x, 0.1, 0.3, True),
    "gumbel": lambda x: F.gumbel_softmax(x),
    "randperm": lambda x: x[:, torch.randperm(x.shape[1])],
    "randn_like": lambda x: x + torch.randn_like(x),
    "rand(out=)": lambda x: x + torch.rand(x.shape, out=torch.empty(x.shape)),
    "default generator": lambda x: x + torch.rand(x.shape, generator=torch.default_generator),
    "normal_": lambda x: x + torch.empty_like(x).normal_(),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
    "gamma": lambda x: x + torch.distributions.Gamma(1.0, 1.0).sample(x.shape),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.3),
    "manual_seed": lambda x: (torch.manual_seed(3), x + torch.rand(x.shape))[1],
    "seed": lambda x: (torch.seed(), x)[1],
    "fork_rng": lambda x: x + _forked(x),
    "python": lambda x: x + random.random(),
    "shuffled": lambda x: x[:, random.sample(range(x.shape[1]), x.shape[1])],
    "numpy": lambda x: x + np.random.rand(),  # noqa: NPY002
    "init": lambda x: x + nn.init.xavier_uniform_(torch.empty(3, 3))[0],
}


def _forked(x):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return torch.rand(x.shape)


def generators():
    state = np.random.get_state()  # noqa: NPY002
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        state[1].tolist(),
        state[2:],
    )


@pytest.mark.parametrize("name", DRAWS)
def test_a_forward_that_draws_leaves_the_generators_alone(name, monkeypatch):
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # the test runner has its own
    model, x = Drawing(layer_of(nn.GRU).float(), DRAWS[name]), inputs(dtype=torch.float32)
    before = generators()
    first, second = (lyap.lyapunov_readout(model, x).max for _ in range(2))
    assert generators() == before
    assert first == second


class Drawing(nn.Module):
    def __init__(self, layer, draw):
        super().__init__()
        self.rnn, self.draw = layer, [draw]

    def forward(self, x):
        return self.rnn(self.draw[0](x))[0]


def test_a_scripted_function_that_draws():
    @torch.jit.script
    def noisy(x: torch.Tensor):
        return x + torch.rand_like(x)

    model, x = Drawing(layer_of(nn.GRU).float(), noisy), inputs(dtype=torch.float32)
    before = torch.get_rng_state()
    assert lyap.lyapunov_readout(model, x).max == lyap.lyapunov_readout(model, x).max
    assert torch.equal(torch.get_rng_state(), before)


def test_python_draws_beside_other_threads_are_refused():
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        model = Drawing(layer_of(nn.GRU), lambda x: x + random.random())
        with pytest.raises(NotMeasurableError, match="generator"):
            lyap.lyapunov_readout(model, inputs())
    finally:
        stop.set()
        other.join()


def test_a_part_patched_by_a_closure_does_not_run_on_the_original():
    model, x = Net(layer_of(nn.GRU), nn.BatchNorm1d(50)).double(), inputs()
    norm, counted = model.before, []
    original = norm.forward

    def patched(value):
        counted.append(1)
        norm.train()  # the original, if it were closed over as it is
        return original(value)

    norm.forward = patched
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    lyap.lyapunov_readout(model, x)
    assert counted == []
    assert not norm.training
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), norm.state_dict().values(), strict=True)
    )


LOG = []


def _logging_hook(module, args, result):
    global CALLS
    CALLS = CALLS + 1
    LOG.append(1)
    return 2 * result


CALLS = 0


def test_a_hook_that_writes_to_its_module_changes_the_copy_alone():
    model, x = Net(layer_of(nn.GRU), nn.Identity()), inputs()
    model.before.register_forward_hook(_logging_hook)
    expected = lyap.lyapunov_readout(model.rnn, 2 * x).max
    assert lyap.lyapunov_readout(model, x).max == expected
    assert (LOG, CALLS) == ([], 0)


def test_three_threads_measure_the_general_path():
    model, x = DecayLoop(), inputs(dtype=torch.float32, steps=20)
    expected = lyap.lyapunov_readout(model, x)
    found, failed = [], []

    def measure():
        try:
            found.append(lyap.lyapunov_readout(model, x))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=measure) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [(r.max, r.mean) for r in found] == [(expected.max, expected.mean)] * 3
