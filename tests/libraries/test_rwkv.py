"""Hugging Face's RWKV in ratio form against its own attention in float64."""

import copy

import pytest
import torch
from _steps import rwkv_step
from _truth import agree, library, measured, randomised

import lyap_optuna as lyap
from lyap_optuna.dynamics.rwkv import RwkvTrajectory

B, T, N = 3, 9, 6


@pytest.fixture
def modeling():
    library("transformers")
    return library("transformers.models.rwkv.modeling_rwkv")


def make(modeling, width=N):
    config = modeling.RwkvConfig(hidden_size=N, num_hidden_layers=3, attention_hidden_size=width)
    attention = modeling.RwkvSelfAttention(config, layer_id=1)
    with torch.no_grad():
        for p in attention.parameters():
            p.copy_(torch.rand(p.shape) - 0.5)
    return randomised(attention)


def truth(attention, x, shifted_first=None):
    state = None
    if shifted_first is not None:
        state = [None, torch.zeros(1, N, 3, dtype=torch.float64)]
        state[1][:, :, 1] = shifted_first
    return rwkv_step(attention, x, state)


@pytest.mark.parametrize("width", [6, 8])
def test_rwkv(modeling, width):
    attention = make(modeling, width)
    x = torch.randn(B, T, N, dtype=torch.float64)
    trajectory = measured(attention, x)[2]
    assert isinstance(trajectory, RwkvTrajectory)
    n = len(attention.time_decay)
    empty = torch.cat([torch.zeros(n), torch.full((n,), -1e30)]).double()
    agree(trajectory, truth(attention, x), empty)


@pytest.mark.parametrize("seed", range(5))
def test_a_key_between_two_floats_is_no_other_network(modeling, seed):
    torch.manual_seed(seed)
    attention = make(modeling, 16)
    x = torch.randn(8, 300, N, dtype=torch.float64)
    readout = lyap.lyapunov_readout(attention, x, state="full")
    assert readout.state_size == 32


def test_rwkv_goes_on_from_a_state(modeling):
    attention = make(modeling)
    x = torch.randn(B, T, N, dtype=torch.float64)
    empty = [torch.zeros(B, N, 3, dtype=torch.float64) for _ in range(5)]
    empty[4] -= 1e30
    whole = measured(attention, x, state=copy.deepcopy(empty), use_cache=True)[2]
    state = copy.deepcopy(empty)
    with torch.no_grad():
        state = attention(x[:, :4], state=state, use_cache=True)[1]
    rest = measured(attention, x[:, 4:], state=copy.deepcopy(state), use_cache=True)[2]
    assert torch.allclose(rest.states, whole.states[:, 4:], rtol=0, atol=1e-12)
    assert torch.allclose(rest.closed_log_growth, whole.closed_log_growth[:, 4:], rtol=0, atol=1e-9)
    initial = whole.states[0, 3]
    step = truth(attention, x[:, 4:], x[:1, 3])
    agree(rest, step, initial, warmup=0)


def test_rwkv_exponents_are_its_decays(modeling):
    attention = make(modeling)
    x = torch.randn(2, 2000, N, dtype=torch.float64)
    growth = measured(attention, x)[2].closed_log_growth[:, 100:].mean((0, 1))
    expected = -attention.time_decay.exp().repeat(2)
    assert torch.allclose(growth, expected.double(), rtol=0, atol=0.01)


def test_rwkv_model_as_it_runs():
    transformers = library("transformers")
    config = transformers.RwkvConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=3, rescale_every=1, context_length=32
    )
    model = transformers.RwkvForCausalLM(config).double().eval()
    attention = model.rwkv.blocks[2].attention
    reached = []
    attention.register_forward_pre_hook(
        lambda _, args, kwargs: reached.append(copy.deepcopy((args, kwargs))), with_kwargs=True
    )
    with torch.no_grad():
        model(torch.randint(0, 20, (B, T)))
    args, kwargs = reached[0]
    assert measured(attention, *args, **kwargs)[2].state_size == 16


def test_half_precision_is_measured_in_float32(modeling):
    attention = make(modeling).to(torch.bfloat16)
    x = torch.randn(B, T, N, dtype=torch.bfloat16)
    from lyap_optuna.dynamics._registry import architecture_of

    architecture = architecture_of(attention)
    inputs, _ = architecture.read_calls(attention, [((x,), {})])
    dynamics = architecture.build(attention, "full")
    trajectory = dynamics.linearise(inputs.to(dynamics.dtype))
    assert dynamics.dtype == trajectory.states.dtype == torch.float32
    rebuilt = architecture.outputs(attention, inputs.to(dynamics.dtype), trajectory)
    with torch.no_grad():
        assert torch.allclose(rebuilt, attention(x)[0].float(), rtol=0.05, atol=0.05)
