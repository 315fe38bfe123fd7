"""How models call layers of other libraries: states, time spans, lengths, pieces, hooks."""

import copy

import pytest
import torch
from _truth import distance, in_double, library, truths
from test_models import B, F, First, N, T, ncps, sequences
from torch import nn

import lyap_optuna as lyap
from lyap_optuna.dynamics import NotMeasurableError

pytestmark = pytest.mark.usefixtures("double")
ANOTHER = "a step rebuilt from its weights differs from its own"


@pytest.fixture
def double():
    with in_double():
        yield


def exponents(model, inputs, layer=None, **options):
    return lyap.lyapunov_spectrum(model, inputs, layer=layer, start="identity", **options).exponents


def near(ours, theirs):
    assert distance(ours, theirs) < 1e-6, f"{ours} and {theirs}"


class Spans(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.rnn = layer

    def forward(self, x, spans):
        return self.rnn(x, timespans=spans)[0]


@pytest.mark.parametrize("name", ["CfC", "LTC"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("options", [{}, {"mixed_memory": True}, {"wired": True}], ids=str)
def test_time_spans_that_the_model_passes(name, wide, options):
    # ncps takes a span for each unit, or one where there is one sequence
    batch, units = (B, 9 if options.get("wired") else N) if wide else (1, 1)
    if wide and options.get("wired") and name == "CfC":
        pytest.skip("its cells take no more than one")
    model, x = Spans(ncps(name, **options)), sequences(batch=batch)
    inputs = (x, torch.rand(batch, T, units) * 3 + 0.1)
    near(exponents(model, inputs), truths(model, inputs, ["rnn"])["rnn"].exponents())


LAYERS = {
    "CfC": lambda: ncps("CfC"),
    "CfC mixed memory": lambda: ncps("CfC", mixed_memory=True),
    "LTC": lambda: ncps("LTC"),
    "minGRU": lambda: library("minGRU_pytorch").minGRU(F),
    "LEM": lambda: library("torchrecurrent").LEM(F, N, batch_first=True),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]()


def states(layer):
    """An initial state as the layer's forward takes it."""
    if type(layer).__name__ == "minGRU":
        return torch.rand(B, 1, F)
    if type(layer).__name__ == "LEM":
        return torch.rand(1, B, N), torch.rand(1, B, N)
    return (torch.rand(B, N), torch.rand(B, N)) if layer.use_mixed else torch.rand(B, N)


def given(layer, x, state):
    """Call it with a state; return its output and its state."""
    if type(layer).__name__ == "minGRU":
        return layer(x, state, True)
    return layer(x, state)


def test_initial_states_of_the_model_and_of_the_caller(layer):
    state = states(layer)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = layer

        def forward(self, x):
            return given(self.rnn, x, state)[0]

    x = sequences()
    expected = truths(Model(), x, ["rnn"])["rnn"].exponents()
    near(exponents(Model(), x), expected)
    flat = state[:, 0] if type(layer).__name__ == "minGRU" else state
    near(exponents(First(layer), x, initial_state=flat), expected)


def test_lengths(layer):
    lengths, x = [T, 20, 12], sequences()
    truth = truths(First(layer), x, ["rnn"], lengths)["rnn"]
    near(exponents(First(layer), x, lengths=lengths), truth.exponents())


def test_a_layer_that_is_used_twice_is_measured_on_both(layer):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = layer

        def forward(self, x):
            return given(self.rnn, x, None)[0], given(self.rnn, 2 * x, None)[0]

    x = sequences()
    truth = truths(Twice(), x, ["rnn"])["rnn"]
    assert len(truth.jacobians) == 2 * B
    near(exponents(Twice(), x), truth.exponents())


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("size", [1, 7])
def test_pieces_that_continue_one_another_are_one_sequence(layer, size, detached):
    class Pieces(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = layer

        def forward(self, x):
            outs, state = [], None
            for piece in x.split(size, dim=1):
                out, state = given(self.rnn, piece, state)
                if detached:
                    state = (
                        tuple(s.detach() for s in state)
                        if isinstance(state, tuple)
                        else state.detach()
                    )
                outs.append(out)
            return torch.cat(outs, dim=1)

    x = sequences()
    whole = truths(First(layer), x, ["rnn"])["rnn"]
    near(exponents(Pieces(), x), whole.exponents())


class Fed(nn.Module):
    """Its output is its next input, or its state is changed on the way."""

    def __init__(self, layer, scale):
        super().__init__()
        self.rnn, self.scale = layer, scale
        self.back = nn.Linear(N, F)

    def forward(self, x):
        out, state = self.rnn(x[:, :3])
        for piece in x[:, 3:].split(3, dim=1):
            state = self.scale * state
            fed = self.back(out) if self.scale == 1 else 0
            out, state = self.rnn(piece + fed, state)
        return out


@pytest.mark.parametrize("name", ["CfC", "LTC"])
@pytest.mark.parametrize(("scale", "what"), [(1, "output is fed back"), (0.9, "state is changed")])
def test_what_lies_between_calls_is_not_left_out(name, scale, what):
    with pytest.raises(NotMeasurableError, match=what):
        lyap.lyapunov_readout(Fed(ncps(name), scale), sequences())


def test_a_hook_that_changes_the_output_changes_no_exponent(layer):
    x = sequences()
    expected = exponents(First(layer), x)
    model = First(copy.deepcopy(layer))

    def double(module, args, out):
        out[0].mul_(2)
        return out[0] * 3, *out[1:]

    if type(layer).__name__ == "minGRU":
        model.rnn.register_forward_hook(lambda module, args, out: out.mul_(2) + 1)
    else:
        model.rnn.register_forward_hook(double)
    assert torch.equal(exponents(model, x), expected)


def test_a_hook_that_changes_the_input_is_part_of_the_network(layer):
    x = sequences()
    model = First(copy.deepcopy(layer))
    model.rnn.register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:]))
    near(exponents(model, x), exponents(First(layer), 2 * x))


@pytest.mark.parametrize("name", ["CfC", "LTC", "minGRU"])
def test_a_forward_of_ones_own_is_never_taken_for_the_librarys(name):
    kind = type(LAYERS[name]())

    class Own(kind):
        def forward(self, x, *args, **kwargs):
            return super().forward(2 * x, *args, **kwargs)

    class Same(kind):
        def forward(self, x, *args, **kwargs):
            return super().forward(x, *args, **kwargs)

    sizes = (F,) if name == "minGRU" else (F, N)
    plain, x = kind(*sizes), sequences()
    for cls in (Own, Same):
        other = cls(*sizes)
        other.load_state_dict(plain.state_dict())
        if cls is Own:
            for options in ({}, {"initial_state": torch.rand(B, F if name == "minGRU" else N)}):
                with pytest.raises(NotMeasurableError, match=ANOTHER):
                    lyap.lyapunov_readout(First(other), x, **options)
        else:
            assert torch.equal(exponents(First(other), x), exponents(First(plain), x))


def test_layers_are_picked_by_name():
    mamba = library("mambapy.mamba")
    model = mamba.Mamba(mamba.MambaConfig(d_model=6, n_layers=3, d_state=3))
    x = sequences(6)
    names = [f"layers.{i}.mixer" for i in range(3)]
    whole = lyap.lyapunov_readout(model, x)
    assert list(whole.layers) == names
    some = lyap.lyapunov_readout(model, x, layer=["layers.0", names[2]])
    assert {n: r.max for n, r in some.layers.items()} == {
        n: whole.layers[n].max for n in (names[0], names[2])
    }
    one = lyap.lyapunov_readout(model, x, layer=model.layers[1].mixer)
    assert one.max == whole.layers[names[1]].max
    with pytest.raises(ValueError, match=r"layers\.2\.mixer"):
        lyap.lyapunov_spectrum(model, x)
    assert lyap.LyapunovProbe(model, x, strict=True).measure().max == whole.max


def test_a_chaotic_layer_is_itself_although_it_parts_from_a_rerun():
    layer = library("torchrecurrent").UGRNN(F, 40, batch_first=True)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.copy_(torch.randn(p.shape) * (4 / 40**0.5 if "hh" in name else 0.5))
    model, x = First(layer).float(), sequences(time=200).float()
    model(x)
    assert lyap.lyapunov_readout(model, x).max > 0.1

    class Other(type(layer)):
        def forward(self, x, state=None):
            return super().forward(1.01 * x, state)

    other = Other(F, 40, batch_first=True).float()
    other.load_state_dict(layer.state_dict())
    with pytest.raises(NotMeasurableError):
        lyap.lyapunov_readout(First(other), x)


def test_a_model_with_a_loop_of_its_own_beside_a_layer_of_another_library():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(F, F)
            self.cfc = ncps("CfC")

        def forward(self, x):
            h = c = x.new_zeros(len(x), F)
            outs = []
            for t in range(x.shape[1]):
                h, c = self.cell(x[:, t], (0.9 * h, c))
                outs.append(h)
            return self.cfc(torch.stack(outs, dim=1))[0]

    model, x = Model(), sequences()
    readout = lyap.lyapunov_readout(model, x)
    assert list(readout.layers) == ["cell", "cfc"]
    near(exponents(model, x, "cfc"), truths(model, x, ["cfc"])["cfc"].exponents())


def test_s5_is_measured_and_not_what_it_maps_over_the_batch():
    torch.set_default_dtype(torch.float32)
    s5 = library("s5").S5(4, 8)
    x = sequences(4)
    by_itself = lyap.lyapunov_readout(s5, x)
    within = lyap.lyapunov_readout(nn.Sequential(s5), x, layer="0")
    assert by_itself.max == within.max
    own = s5.seq
    step = own.discretize(own.Lambda, torch.ones_like(own.Lambda), own.log_step.exp().squeeze())[0]
    assert abs(by_itself.max - float(step.abs().log().max())) < 1e-6


def test_lengths_that_a_layer_packs_by_itself():
    layers = library("pytorch_forecasting.models.nn.rnn")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = layers.LSTM(F, N, batch_first=True)

        def forward(self, x, lengths):
            return self.lstm(x, lengths=lengths, enforce_sorted=False)[0]

    lengths = torch.tensor([12, T, 20])
    model, x = Model(), sequences()
    plain = nn.LSTM(F, N, batch_first=True)
    plain.load_state_dict(model.lstm.state_dict())
    expected = exponents(plain, x, lengths=lengths)
    for rest in (x, x * (torch.arange(T) < lengths[:, None])[..., None]):
        near(exponents(model, (rest, lengths)), expected)
    readout = lyap.lyapunov_readout(model, (x, lengths))
    assert abs(readout.mean - lyap.lyapunov_readout(plain, x, lengths=lengths).mean) < 1e-9
