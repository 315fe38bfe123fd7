"""Which layer is measured, what reaches it, and what a bad input is told."""

import copy

import pytest
import torch
from _networks import make_inputs, make_layer
from torch import nn

import lyap_optuna as lyap
from lyap_optuna.dynamics import Architecture, register_architecture, resolve
from lyap_optuna.dynamics._registry import _ARCHITECTURES


class Net(nn.Module):
    """A model around a recurrent layer: embedding, dropout, normalisation, readout."""

    def __init__(self, kind="gru", dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.embedding = nn.Embedding(11, 3)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.randn(11, 3, generator=generator))
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)
        self.rnn = make_layer(kind)
        self.out = nn.Linear(5, 2)
        self.to(dtype)

    def embed(self, tokens):
        return self.dropout(self.norm(self.embedding(tokens).transpose(1, 2)).transpose(1, 2))

    def forward(self, tokens, scale=1.0):
        return self.out(self.rnn(scale * self.embed(tokens))[0])


@pytest.fixture
def tokens():
    return torch.randint(11, (3, 20), generator=torch.Generator().manual_seed(0))


def test_what_reaches_the_layer_drives_it(tokens):
    net = Net()
    net.train()
    with torch.no_grad():
        reaching = copy.deepcopy(net).eval().embed(tokens)
    expected = lyap.lyapunov_spectrum(net.rnn, reaching).exponents
    assert torch.equal(lyap.lyapunov_spectrum(net, tokens).exponents, expected)
    assert torch.equal(lyap.lyapunov_spectrum(net, (tokens,)).exponents, expected)
    assert torch.equal(lyap.lyapunov_spectrum(net, {"tokens": tokens}).exponents, expected)
    halved = lyap.lyapunov_spectrum(net, {"tokens": tokens, "scale": 0.5}).exponents
    assert not torch.equal(halved, expected)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda net: torch.compile(net, backend="eager"),
        lambda net: (net.compile(backend="eager"), net)[1],
        lambda net: (setattr(net, "rnn", torch.compile(net.rnn, backend="eager")), net)[1],
    ],
    ids=["DataParallel", "compile", "compile in place", "compiled layer"],
)
def test_wrapped_models(wrap, tokens):
    expected = lyap.lyapunov_spectrum(Net(), tokens).exponents
    wrapped = lyap.lyapunov_spectrum(wrap(Net()), tokens).exponents
    assert torch.allclose(wrapped, expected, atol=1e-12)


def test_distributed_data_parallel(tokens, tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(Net().eval())
        wrapped(tokens).sum().backward()
        actual = lyap.lyapunov_spectrum(wrapped, tokens).exponents
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(actual, lyap.lyapunov_spectrum(Net(), tokens).exponents)


@pytest.mark.parametrize(
    "normalise",
    [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm],
    ids=["hooks", "parametrization"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_normalisation(normalise, tokens):
    net = Net().eval()
    normalise(net.rnn, "weight_hh_l0")
    net(tokens).sum().backward()  # leaves tensors with a gradient history behind
    with torch.no_grad():  # as an optimizer step does
        for name, p in net.rnn.named_parameters():
            if name.endswith(("_g", "original0")):
                p.mul_(0.5)
    plain = Net()
    with torch.no_grad():
        plain.rnn.weight_hh_l0.mul_(0.5)
    expected = lyap.lyapunov_spectrum(plain, tokens).exponents
    assert torch.allclose(lyap.lyapunov_spectrum(net, tokens).exponents, expected, atol=1e-10)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = make_layer("gru"), make_layer("lstm_full", features=5)

    def forward(self, x):
        return self.decoder(self.encoder(x)[0])


def test_one_of_several_layers_by_name_or_itself():
    net, x = Two(), make_inputs(3, 20, 3)
    expected = lyap.lyapunov_spectrum(net.decoder, net.encoder(x)[0]).exponents
    assert torch.allclose(lyap.lyapunov_spectrum(net, x, layer="decoder").exponents, expected)
    assert torch.allclose(lyap.lyapunov_spectrum(net, x, layer=net.decoder).exponents, expected)
    probe = lyap.LyapunovProbe(net, x, layer="decoder")
    assert probe.measure().state_size == 10
    with pytest.raises(ValueError, match=r"2 recurrent layers"):
        lyap.lyapunov_spectrum(net, x)
    with pytest.raises(ValueError, match="no recurrent layer named 'middle'"):
        lyap.lyapunov_spectrum(net, x, layer="middle")
    with pytest.raises(ValueError, match="not one of the model's recurrent layers"):
        lyap.lyapunov_spectrum(net, x, layer=make_layer("gru"))


def test_unbatched_inputs_are_one_sequence():
    x = make_inputs(1, 20, 3)
    layer = make_layer("gru")
    expected = lyap.lyapunov_spectrum(layer, x).exponents
    assert torch.equal(lyap.lyapunov_spectrum(layer, x[0]).exponents, expected)


def with_weight(layer, value):
    with torch.no_grad():
        layer.weight_hh_l0[0, 0] = value
    return layer


BAD = {
    "no recurrent layer": (lambda: (nn.Linear(3, 3), torch.zeros(2, 3)), "no recurrent layer"),
    "not a module": (lambda: ("gru", torch.zeros(2, 3)), "must be an nn.Module"),
    "feature size": (lambda: (make_layer("gru"), make_inputs(2, 20, 4)), "Expected 3, got 4"),
    "one time step": (lambda: (make_layer("gru"), make_inputs(2, 1, 3)), "have 1 time step"),
    "empty batch": (lambda: (make_layer("gru"), make_inputs(0, 20, 3)), "batch .* is empty"),
    "NaN input": (
        lambda: (make_layer("gru"), make_inputs(2, 20, 3) / 0 * 0),
        "inputs contain NaN or infinite",
    ),
    "infinite input": (
        lambda: (make_layer("gru"), make_inputs(2, 20, 3) / 0),
        "inputs contain NaN or infinite",
    ),
    "NaN weight": (
        lambda: (with_weight(make_layer("gru"), float("nan")), make_inputs(2, 20, 3)),
        "NaN or infinite weights",
    ),
    "infinite weight": (
        lambda: (with_weight(make_layer("gru"), float("inf")), make_inputs(2, 20, 3)),
        "NaN or infinite weights",
    ),
    "four dimensions": (
        lambda: (make_layer("gru"), torch.zeros(1, 2, 20, 3)),
        "got 4D",
    ),
    "targets in the batch": (
        lambda: (nn.Sequential(make_layer("gru")), [make_inputs(2, 20, 3), torch.zeros(2)]),
        "do not fit the forward of Sequential",
    ),
    "not a tensor": (lambda: (make_layer("gru"), 3), "hold no tensor: got 3"),
    "dynamics without a tensor": (
        lambda: (lyap.RecurrentDynamics(lambda s, x: s, 2), [1, 2]),
        "inputs must be a tensor",
    ),
    "states that explode": (
        lambda: (lyap.RecurrentDynamics(lambda s, x: 1e30 * (s + 1), 2), make_inputs(2, 20, 3)),
        "states of the recurrent layer become NaN or infinite",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("measure", [lyap.lyapunov_spectrum, lyap.lyapunov_readout])
def test_bad_input_is_named(case, measure):
    make, message = BAD[case]
    module, inputs = make()
    with pytest.raises(ValueError, match=message):
        measure(module, inputs)


def test_layer_that_forward_never_calls():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = make_layer("gru")

        def forward(self, x):
            return x

    with pytest.raises(ValueError, match="never called its GRU layer"):
        lyap.lyapunov_readout(Idle(), make_inputs(2, 20, 3))


def test_model_that_cannot_be_copied_says_what_to_pass():
    net = Net()
    net.lock = __import__("threading").Lock()
    with pytest.raises(ValueError, match=r"cannot be copied .* pass its recurrent layer"):
        lyap.lyapunov_readout(net, torch.zeros(2, 20, dtype=torch.long))


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: nn.functional.dropout(x, 0.3, training=True),
        lambda x: x + torch.randn(x.shape, dtype=x.dtype),
        lambda x: x + torch.randn_like(x),
        lambda x: x + torch.rand(x.shape, dtype=x.dtype),
        lambda x: x + torch.empty_like(x).normal_(),
        lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
        lambda x: x + torch.randint(3, x.shape),
        lambda x: x[:, torch.randperm(x.shape[1])],
        lambda x: x + torch.normal(torch.zeros_like(x), 1.0),
    ],
)
def test_random_numbers_in_eval_mode_come_from_a_generator_of_our_own(draw):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = make_layer("gru")

        def forward(self, x):
            return self.rnn(draw(x))

    net, other, third = Noisy(), Noisy(), Noisy()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = lyap.lyapunov_readout(net, make_inputs(3, 20, 3))
    assert torch.equal(torch.get_rng_state(), before)
    assert lyap.lyapunov_readout(other, make_inputs(3, 20, 3)).max == first.max
    assert lyap.lyapunov_readout(third, make_inputs(3, 20, 3), seed=1).max != first.max


def test_another_architecture_is_one_registration():
    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor([0.5, 0.9], dtype=torch.float64))

        def forward(self, x):
            raise NotImplementedError

    def build(module, state):
        return lyap.RecurrentDynamics(lambda s, x: module.rate * s + x, 2)

    register_architecture(Leaky, Architecture(build))
    try:
        s = lyap.lyapunov_spectrum(Leaky(), make_inputs(2, 20, 2))
    finally:
        del _ARCHITECTURES[Leaky]
    expected = torch.tensor([0.9, 0.5]).double().log()
    assert torch.allclose(s.exponents, expected, atol=1e-12)
    with pytest.raises(ValueError, match=r"must be a subclass of nn\.Module"):
        register_architecture(int, Architecture(build))


def test_resolving_leaves_no_hooks_and_no_changes_behind():
    net = Net()
    net.train()
    hooks = [len(m._forward_pre_hooks) for m in net.modules()]
    state = copy.deepcopy(net.state_dict())
    resolve(net, torch.zeros(2, 20, dtype=torch.long))
    assert [len(m._forward_pre_hooks) for m in net.modules()] == hooks
    assert all(m.training for m in net.modules())
    assert all(torch.equal(v, state[n]) for n, v in net.state_dict().items())
