"""CfC and LTC of ncps against their own cells in float64."""

import pytest
import torch
from _steps import ncps_step as truth
from _truth import agree, library, measured, randomised

from lyap_optuna.dynamics._errors import NotMeasurableError

B, T, F, N = 3, 7, 4, 5


def wiring(units=9, motor=2):
    return library("ncps.wirings").AutoNCP(units, motor, seed=3)


def states_of(layer, batch=B, given=False):
    """An initial state as the layer takes it; in float64 it needs one where it has memory."""
    shape = (batch, layer.state_size)
    h, c = (
        torch.randn(shape, dtype=torch.float64) if given else torch.zeros(shape).double()
        for _ in range(2)
    )
    if layer.use_mixed:
        return (h, c), torch.cat([h, c], dim=1)
    return (h if given else None), h


CFC = [
    {},
    {"mode": "pure"},
    {"mode": "no_gate"},
    {"backbone_layers": 0},
    {"backbone_layers": 3, "backbone_units": 6, "activation": "tanh", "backbone_dropout": 0.1},
    {"activation": "relu"},
    {"activation": "silu", "backbone_units": 7},
    {"activation": "gelu", "mode": "pure"},
    {"proj_size": 3},
]


def make(name, mixed=False, wired=False, **options):
    layers = library("ncps.torch")
    units = wiring() if wired else N
    return randomised(
        getattr(layers, name)(F, units, mixed_memory=mixed, **options),
        scale=0.3 if name == "CfC" else 0.02,
    )


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("options", CFC, ids=str)
def test_cfc(options, mixed, given):
    layer = make("CfC", mixed, **options)
    x = torch.randn(B, T, F, dtype=torch.float64)
    hx, initial = states_of(layer, given=given)
    _, _, trajectory = measured(layer, x, hx)
    agree(trajectory, truth(layer, x), initial[0], warmup=0)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("mode", ["default", "pure", "no_gate"])
def test_wired_cfc(mode, mixed):
    layer = make("CfC", mixed, wired=True, mode=mode)
    x = torch.randn(B, T, F, dtype=torch.float64)
    hx, initial = states_of(layer, given=mixed)
    _, _, trajectory = measured(layer, x, hx)
    agree(trajectory, truth(layer, x), initial[0], warmup=0)


LTC = [
    {},
    {"input_mapping": "linear", "output_mapping": "linear"},
    {"input_mapping": None, "output_mapping": None},
    {"ode_unfolds": 2, "epsilon": 1e-3},
    {"implicit_param_constraints": True},
]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("wired", [False, True])
@pytest.mark.parametrize("options", LTC, ids=str)
def test_ltc(options, wired, mixed):
    layer = make("LTC", mixed, wired, **options)
    x = torch.randn(B, T, F, dtype=torch.float64)
    hx, initial = states_of(layer, given=mixed)
    _, _, trajectory = measured(layer, x, hx)
    agree(trajectory, truth(layer, x), initial[0], warmup=0)


def test_ltc_chain_of_unfolded_steps(monkeypatch):
    from lyap_optuna.dynamics import liquid_time_constant

    monkeypatch.setattr(liquid_time_constant, "_KEPT", 0)
    monkeypatch.setattr(liquid_time_constant, "_CHUNK", 2 * B * 6 * N * N)
    layer = make("LTC")
    _, _, trajectory = measured(layer, torch.randn(B, T, F, dtype=torch.float64))
    vectors = torch.randn(B, 2, N, dtype=torch.float64)
    for t in (0, 5, 2):
        expected = vectors @ trajectory.jacobian(t).mT
        assert torch.allclose(trajectory.tangent(t, vectors), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["CfC", "LTC"])
@pytest.mark.parametrize("wired", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("layout", ["batch_first", "time_first", "one_sequence"])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_layouts_and_time_spans(name, wired, mixed, layout, return_sequences):
    layer = make(
        name,
        mixed,
        wired,
        batch_first=layout != "time_first",
        return_sequences=return_sequences,
    )
    x = torch.randn(1, T, F, dtype=torch.float64)
    spans = torch.rand(1, T, 1, dtype=torch.float64) * 3 + 0.1
    hx, initial = states_of(layer, batch=1, given=mixed)
    if layout == "one_sequence":
        hx = tuple(part[0] for part in hx) if mixed else None
        _, _, trajectory = measured(layer, x[0], hx, spans[0])
    elif layout == "time_first":
        _, _, trajectory = measured(layer, x.transpose(0, 1), hx, timespans=spans.transpose(0, 1))
    else:
        _, _, trajectory = measured(layer, x, hx, spans)
    agree(trajectory, truth(layer, x, spans), initial[0], warmup=0)


@pytest.mark.parametrize("name", ["CfC", "LTC"])
def test_time_spans_of_every_unit(name):
    layer = make(name)
    x = torch.randn(B, T, F, dtype=torch.float64)
    spans = torch.rand(B, T, N, dtype=torch.float64) + 0.5
    _, _, trajectory = measured(layer, x, None, spans)
    agree(trajectory, truth(layer, x, spans), torch.zeros(N, dtype=torch.float64), warmup=0)


def test_time_spans_are_read_as_the_layer_reads_them():
    # ncps squeezes (batch, 1) and multiplies: with as many sequences as units, by unit.
    layer = make("CfC")
    x = torch.randn(N, T, F, dtype=torch.float64)
    measured(layer, x, None, torch.rand(N, T, 1, dtype=torch.float64))


@pytest.mark.parametrize("name", ["CfC", "LTC"])
def test_in_float32(name):
    layer = make(name, wired=True).float()
    _, _, trajectory = measured(layer, torch.randn(B, T, F))
    assert trajectory.states.dtype == torch.float32


def test_an_unknown_activation_is_refused():
    layer = make("CfC")
    layer.rnn_cell.backbone[1] = torch.nn.Softsign()
    with pytest.raises(NotMeasurableError, match="Softsign"):
        measured(layer, torch.randn(B, T, F, dtype=torch.float64))
