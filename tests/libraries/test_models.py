"""Layers of other libraries within models, from end to end, against the libraries' own steps."""

import copy

import pytest
import torch
from _truth import distance, in_double, library, truths
from torch import nn

import lyap_optuna as lyap
from lyap_optuna.spectrum._start import random_start

B, T, F, N = 3, 30, 4, 5


class First(nn.Module):
    """A layer within a model, and a head."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn
        self.head = nn.LazyLinear(2)

    def forward(self, x, *rest):
        out = self.rnn(x, *rest)
        return self.head(out[0] if isinstance(out, tuple) else out)


def sequences(features=F, batch=B, time=T):
    return torch.randn(batch, time, features)


def ids():
    return {"input_ids": torch.randint(0, 20, (B, T))}


def spread(model, scale):
    """Away from the initialisation, which is often too simple to be a test."""
    with torch.no_grad():
        for p in model.parameters():
            if not nn.parameter.is_lazy(p) and p.is_floating_point():
                p.add_(scale * torch.randn_like(p))
    return model


def ncps(name, wired=False, scale=0.2, **options):
    units = library("ncps.wirings").AutoNCP(9, 2, seed=3) if wired else N
    layer = getattr(library("ncps.torch"), name)(F, units, **options)
    return spread(layer, scale if name == "CfC" else 0.02)


def lstm_then_mamba():
    mamba, cfc = library("mambapy.mamba"), library("ncps.torch")

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.LSTM(F, 6, batch_first=True)
            self.mamba = mamba.MambaBlock(mamba.MambaConfig(d_model=6, n_layers=1, d_state=3))
            self.cfc = cfc.CfC(6, N)

        def forward(self, x):
            return self.cfc(self.mamba(self.first(x)[0]))[0]

    return Mixed(), sequences()


def mambapy():
    mamba = library("mambapy.mamba")
    return mamba.Mamba(mamba.MambaConfig(d_model=6, n_layers=2, d_state=3)), sequences(6)


def hugging_face(name, **options):
    transformers = library("transformers")
    config = getattr(transformers, f"{name}Config")(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, **options
    )
    assert config.use_cache  # the default: what a layer is given is written to
    return getattr(transformers, f"{name}ForCausalLM")(config), ids()


def xlstm():
    library("xlstm")
    import xlstm as lib

    slstm = lib.sLSTMLayerConfig(backend="vanilla", num_heads=2, conv1d_kernel_size=4)
    mlstm = lib.mLSTMLayerConfig(conv1d_kernel_size=4, qkv_proj_blocksize=4, num_heads=16)
    config = lib.xLSTMBlockStackConfig(
        mlstm_block=lib.mLSTMBlockConfig(mlstm=mlstm),
        slstm_block=lib.sLSTMBlockConfig(
            slstm=slstm, feedforward=lib.FeedForwardConfig(proj_factor=1.3, act_fn="gelu")
        ),
        context_length=T,
        num_blocks=2,
        embedding_dim=8,
        slstm_at=[1],
    )
    return spread(lib.xLSTMBlockStack(config), 0.3), sequences(8)


def slstm_layer():
    layers = library("xlstm.blocks.slstm.layer")
    config = layers.sLSTMLayerConfig(
        embedding_dim=6, num_heads=2, conv1d_kernel_size=0, backend="vanilla", dropout=0.1
    )
    layer = layers.sLSTMLayer(config)
    layer.reset_parameters()
    return spread(layer, 0.5), sequences(6)


def recurrent(name, features=F, **options):
    def make():
        layer = getattr(library("torchrecurrent"), name)(
            features, N, batch_first=True, dropout=0.2, **options
        )
        return First(spread(layer, 0.2)), sequences(features)

    return make


MODELS = {
    "CfC": lambda: (First(ncps("CfC")), sequences()),
    "CfC wired": lambda: (nn.Sequential(First(ncps("CfC", wired=True))), sequences()),
    "CfC mixed memory": lambda: (First(ncps("CfC", mixed_memory=True)), sequences()),
    "CfC wired mixed": lambda: (First(ncps("CfC", wired=True, mixed_memory=True)), sequences()),
    "CfC time first": lambda: (First(ncps("CfC", batch_first=False)), sequences(batch=T, time=B)),
    "CfC last": lambda: (First(ncps("CfC", return_sequences=False)), sequences()),
    "CfC dropout": lambda: (First(ncps("CfC", backbone_dropout=0.3)), sequences()),
    "LTC": lambda: (First(ncps("LTC")), sequences()),
    "LTC wired": lambda: (First(ncps("LTC", wired=True)), sequences()),
    "LTC mixed memory": lambda: (First(ncps("LTC", mixed_memory=True)), sequences()),
    "LTC time first": lambda: (First(ncps("LTC", batch_first=False)), sequences(batch=T, time=B)),
    "minGRU": lambda: (
        nn.Sequential(library("minGRU_pytorch").minGRU(6), nn.ReLU(inplace=True)),
        sequences(6),
    ),
    "minGRU twice": lambda: (
        nn.Sequential(
            *(library("minGRU_pytorch").minGRU(6, expansion_factor=e) for e in (1.0, 1.5))
        ),
        sequences(6),
    ),
    "mambapy": mambapy,
    "Mamba": lambda: hugging_face("Mamba", state_size=3),
    "Mamba-2": lambda: hugging_face(
        "Mamba2", state_size=3, num_heads=4, head_dim=4, n_groups=1, chunk_size=8
    ),
    "RWKV": lambda: hugging_face(
        "Rwkv", attention_hidden_size=8, context_length=64, rescale_every=1
    ),
    "S5": lambda: (nn.Sequential(library("s5").S5(4, 6), library("s5").S5(4, 6)), sequences()),
    "S5 block": lambda: (library("s5").S5Block(4, 6, bidir=False), sequences()),
    "LRU": lambda: (
        nn.Sequential(library("LRU_pytorch").LRU(4, 3, 5), library("LRU_pytorch").LRU(3, 2, 5)),
        sequences(),
    ),
    "xLSTM": xlstm,
    "sLSTM": slstm_layer,
    "IndRNN": recurrent("IndRNN"),
    "PeepholeLSTM": recurrent("PeepholeLSTM"),
    "coRNN": recurrent("coRNN"),
    "LEM": recurrent("LEM"),
    "UGRNN": recurrent("UGRNN"),
    "UGRNN of two layers": recurrent("UGRNN", num_layers=2),
    "LSTM, Mamba and CfC": lstm_then_mamba,
}
MADE_IN_SINGLE = {"S5", "S5 block"}  # its complex parameters do not follow double()


def ready(name, double):
    with in_double() if double else torch.no_grad():
        model, inputs = MODELS[name]()
        with torch.no_grad():
            model(**inputs) if isinstance(inputs, dict) else model(inputs)  # lazy heads
        return model.train(), inputs


def of_libraries(readout):
    return [name for name in readout.layers if name != "first"]  # nn.LSTM has its own tests


def check(readout, name, truth, tolerance, above=-torch.inf):
    """Compare one layer of a readout; return the largest error."""
    mine = readout.layers[name]
    k = len(mine.exponents)
    theirs = truth.exponents(random_start(mine.state_size, k))
    closed = float((mine.exponents - truth.exponents()[:k]).abs().max()) < tolerance
    error = 0.0 if closed else distance(mine.exponents, theirs, above)
    assert error < tolerance, f"{name}: {mine.exponents} and {theirs}"
    if torch.isfinite(torch.tensor(truth.mean)) and mine.mean_sampling_error == 0:
        error = max(error, abs(mine.mean - truth.mean))
        assert error < tolerance, f"{name}: mean {mine.mean} and {truth.mean}"
    return error


@pytest.mark.parametrize("name", [name for name in MODELS if name not in MADE_IN_SINGLE])
def test_model_in_float64(name):
    model, inputs = ready(name, double=True)
    with in_double():
        readout = lyap.lyapunov_readout(model, inputs, mean_tolerance=1e-9)
        layers = of_libraries(readout)
        spectra = {
            layer: lyap.lyapunov_spectrum(model, inputs, layer=layer, start="identity")
            for layer in layers
        }
        probe = lyap.LyapunovProbe(model, inputs, mean_tolerance=1e-9, strict=True)
        assert probe.measure().max == readout.max
    assert model.training
    worst = 0.0
    for layer, truth in truths(model, inputs, layers).items():
        worst = max(worst, check(readout, layer, truth, 1e-6))
        error = distance(spectra[layer].exponents, truth.exponents())
        assert error < 1e-6, f"{layer}: {spectra[layer].exponents} and {truth.exponents()}"
        worst = max(worst, error)
    print(f"{name}: {len(layers)} layers, largest error {worst:.1e}")


@pytest.mark.parametrize("name", list(MODELS))
def test_model_in_float32(name):
    model, inputs = ready(name, double=False)
    readout = lyap.lyapunov_readout(model, inputs, mean_tolerance=1e-9)
    double = copy.deepcopy(model)
    for sub in double.modules():
        for key, p in sub._parameters.items():
            if p is not None and p.is_complex():
                sub._parameters[key] = nn.Parameter(p.to(torch.complex128))
    worst = 0.0
    for layer, truth in truths(double, inputs, of_libraries(readout)).items():
        # more than ten nats below, rounding errors of the others are of its size
        worst = max(worst, check(readout, layer, truth, 1e-3, above=-10))
    print(f"{name} in float32: largest error {worst:.1e}")
