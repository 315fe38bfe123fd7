"""Mamba, Mamba-2, minGRU, S5 and LRU against their own steps in float64."""

import copy

import pytest
import torch
from _truth import agree, library, measured, randomised
from torch import nn

from lyap_optuna.dynamics import DiagonalDynamics
from lyap_optuna.dynamics._errors import NotMeasurableError

B, T = 3, 9


def sequences(features: int, batch: int = B, time: int = T) -> torch.Tensor:
    return torch.randn(batch, time, features, dtype=torch.float64)


# mambapy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("pscan", [False, True])
def test_mambapy(norms, pscan):
    mamba = library("mambapy.mamba")
    config = mamba.MambaConfig(
        d_model=5, n_layers=1, d_state=3, inner_layernorms=norms, pscan=pscan
    )
    block = randomised(mamba.MambaBlock(config))
    x = sequences(5)
    dynamics, _, trajectory = measured(block, x)
    assert isinstance(dynamics, DiagonalDynamics)
    shape = (1, *block.A_log.shape)
    windows = torch.nn.functional.pad(
        block.in_proj(x[0]).chunk(2, -1)[0], (0, 0, config.d_conv - 1, 0)
    ).detach()

    def step(state, t):
        window = windows[t : t + config.d_conv - 1].T[None]
        return block.step(x[0, t][None], (state.view(shape), window))[1][0].flatten()

    agree(trajectory, step, torch.zeros(shape[1] * shape[2], dtype=torch.float64))


# Hugging Face ------------------------------------------------------------------------------


def mixer_step(mixer, x, shape, monkeypatch_module, name):
    """The library's own one-step update of the state, fed with what its forward computes."""
    update = getattr(monkeypatch_module, name)

    def run(state, arguments):
        box = state.view(shape)

        class Box:  # what update writes into
            dtype, device = box.dtype, box.device

            def float(self):
                return box

            def __mul__(self, other):
                return box * other

            def copy_(self, new):
                self.new = new

        holder = Box()
        update(holder, *arguments)
        return holder.new.flatten()

    return run


@pytest.mark.parametrize("options", [{}, {"use_bias": True, "use_conv_bias": False}])
@pytest.mark.parametrize("mask", [False, True])
def test_hugging_face_mamba(options, mask):
    library("transformers")
    modeling = library("transformers.models.mamba.modeling_mamba")
    config = modeling.MambaConfig(hidden_size=6, state_size=3, num_hidden_layers=1, **options)
    mixer = randomised(modeling.MambaMixer(config, layer_idx=0))
    x = sequences(6)
    attention = torch.ones(B, T, dtype=torch.long)
    if mask:
        attention[0, :2] = 0
    kwargs = {"attention_mask": attention} if mask else {}
    dynamics, _, trajectory = measured(mixer, x, **kwargs)
    assert isinstance(dynamics, DiagonalDynamics)
    shape = (1, *mixer.A_log.shape)

    # Its forward calls a function with dt, A, B, u of all steps; one step by its own update.
    seen = {}
    scan = modeling.mamba_selective_scan

    def spy(u, dt, a, b, c, **rest):
        seen.update(u=u, dt=dt, a=a, b=b, c=c, bias=rest["delta_bias"])
        return scan(u, dt, a, b, c, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling, "mamba_selective_scan", spy)
        with torch.no_grad():
            mixer(x, **kwargs)
    run = mixer_step(mixer, x, shape, modeling, "mamba_selective_state_update")

    def step(state, t):
        return run(
            state,
            (
                seen["u"][:1, :, t],
                seen["dt"][:1, :, t],
                seen["a"],
                seen["b"][:1, :, t],
                seen["c"][:1, :, t],
                None,
                seen["bias"],
                True,
            ),
        )

    def definition(state, t):  # from the arguments of the library's own scan
        dt = torch.nn.functional.softplus(seen["dt"][0, :, t] + seen["bias"])[:, None]
        drive = dt * seen["b"][0, :, t].float() * seen["u"][0, :, t, None].float()
        return (torch.exp(dt * seen["a"]) * state.view(shape[1:]) + drive).flatten()

    # its one-step update rounds dt to float32, its scan does not
    initial = torch.zeros(shape[1] * shape[2], dtype=torch.float64)
    agree(trajectory, step, initial, tolerance=1e-5)
    agree(trajectory, definition, initial)


def test_hugging_face_mamba_model_as_it_runs():
    transformers = library("transformers")
    config = transformers.MambaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, state_size=4
    )
    model = transformers.MambaForCausalLM(config).double().eval()
    mixer = model.backbone.layers[1].mixer
    ids = torch.randint(0, 20, (B, T))
    reached = []
    mixer.register_forward_pre_hook(lambda _, args: reached.append(args[0]))
    with torch.no_grad():
        model(ids)
    assert measured(mixer, reached[0])[2].state_size == mixer.A_log.numel()


@pytest.mark.parametrize(
    "options", [{}, {"n_groups": 2}, {"time_step_limit": (0.5, 0.9), "use_bias": True}]
)
def test_hugging_face_mamba2(options):
    library("transformers")
    modeling = library("transformers.models.mamba2.modeling_mamba2")
    config = modeling.Mamba2Config(
        **{
            "hidden_size": 8,
            "num_heads": 4,
            "head_dim": 4,
            "state_size": 3,
            "n_groups": 1,
            "num_hidden_layers": 1,
            "chunk_size": 4,
            **options,
        }
    )
    mixer = randomised(modeling.Mamba2Mixer(config, layer_idx=0))
    x = sequences(8)
    dynamics, _, trajectory = measured(mixer, x)
    assert isinstance(dynamics, DiagonalDynamics)
    shape = (1, 4, 4, 3)
    seen = {}
    scan = modeling.mamba2_chunk_scan

    def spy(u, dt, a, b, c, **rest):
        seen.update(u=u, dt=dt, a=a, b=b, c=c, **rest)
        return scan(u, dt, a, b, c, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling, "mamba2_chunk_scan", spy)
        with torch.no_grad():
            mixer(x)

    def step(state, t):  # the definition, from the arguments of the library's own scan
        dt = torch.nn.functional.softplus(seen["dt"][0, t] + seen["dt_bias"])
        dt = dt.clamp(*seen["dt_limit"])
        b = seen["b"][0, t].repeat_interleave(4 // config.n_groups, dim=0)
        drive = torch.einsum("h,hp,hn->hpn", dt, seen["u"][0, t], b)
        return (torch.exp(dt * seen["a"])[:, None, None] * state.view(shape[1:]) + drive).flatten()

    agree(trajectory, step, torch.zeros(48, dtype=torch.float64))


# minGRU ------------------------------------------------------------------------------------


@pytest.mark.parametrize("expansion", [1.0, 1.5])
@pytest.mark.parametrize("previous", [False, True])
def test_min_gru(expansion, previous):
    layer = randomised(library("minGRU_pytorch").minGRU(6, expansion_factor=expansion))
    units = layer.to_hidden_and_gate.out_features // 2
    x = sequences(6)
    hidden = torch.rand(B, 1, units, dtype=torch.float64) if previous else None
    dynamics, _, trajectory = measured(layer, x, hidden, True)
    assert isinstance(dynamics, DiagonalDynamics)
    initial = torch.zeros(units, dtype=torch.float64) if hidden is None else hidden[0, 0]
    agree(
        trajectory, lambda s, t: layer(x[:1, t : t + 1], s[None, None], True)[1].flatten(), initial
    )


# S5 ----------------------------------------------------------------------------------------


def s5(**options):
    """In float64: its complex parameters do not follow ``double()``."""
    layer = randomised(library("s5").S5(4, 6 if options.get("degree", 1) == 1 else 4, **options))
    layer.seq.C = nn.Parameter(layer.seq.C.to(torch.complex128))
    layer.seq.Lambda = nn.Parameter(layer.seq.Lambda.to(torch.complex128))
    return layer


@pytest.mark.parametrize("options", [{}, {"liquid": True}, {"degree": 2}, {"block_count": 2}])
@pytest.mark.parametrize("scale", ["none", "number", "sequence", "step"])
@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_s5(options, scale, discretization):
    model = library("s5.s5_model")
    layer = s5(**options)
    layer.seq.discretize = getattr(model, f"discretize_{discretization}")
    x = 0.3 * sequences(4)
    scales = {
        "none": torch.ones(B, T, dtype=torch.float64),
        "number": torch.full((B, T), 0.7).double(),
        "sequence": torch.rand(B, 1, dtype=torch.float64).expand(B, T) + 0.5,
        "step": torch.rand(B, T, dtype=torch.float64) + 0.5,
    }[scale]
    given = {"none": (), "number": (0.7,), "sequence": (scales[:, 0],), "step": (scales,)}[scale]
    dynamics, _, trajectory = measured(layer, x, *given)
    assert isinstance(dynamics, DiagonalDynamics)

    def step(v, t):
        state = torch.view_as_complex(v.view(-1, 2))
        return torch.view_as_real(layer.seq.forward_rnn(x[0, t], state, scales[0, t])[1]).flatten()

    initial = torch.zeros(trajectory.state_size, dtype=torch.float64)
    agree(trajectory, step, initial)


def test_s5_starts_at_the_state_it_is_given():
    layer = s5()
    x, state = sequences(4), torch.randn(B, 6, dtype=torch.complex128)
    _, _, trajectory = measured(layer, x, state=state)

    def step(v, t):
        state = torch.view_as_complex(v.view(-1, 2))
        return torch.view_as_real(layer.seq.forward_rnn(x[0, t], state)[1]).flatten()

    agree(trajectory, step, torch.view_as_real(state[0]).flatten())


def test_s5_refuses_what_is_not_one_dynamical_system():
    with pytest.raises(NotMeasurableError, match="bidir"):
        measured(library("s5").S5(4, 6, bidir=True), torch.randn(B, T, 4))
    layer = library("s5").S5(4, 6, liquid=True)
    with pytest.raises(NotMeasurableError, match="liquid"):
        measured(layer, torch.randn(B, T, 4), state=torch.zeros(B, 6, dtype=torch.complex64))


def test_s5_in_its_block_is_found():
    from lyap_optuna.dynamics import find_layers

    block = library("s5").S5Block(4, 6, bidir=False)
    assert list(find_layers(block).values()) == [block.s5]
    assert measured(block.s5, torch.randn(B, T, 4))[2].state_size == 12


# LRU ---------------------------------------------------------------------------------------


@pytest.fixture
def lru():
    library("LRU_pytorch")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # it makes its outputs in the default dtype
    try:
        yield library("LRU_pytorch").LRU(4, 3, 5)
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_lru(lru, given, batched):
    layer = lru.eval()
    x = sequences(4)
    x = x if batched else x[0]
    state = torch.randn(5, dtype=torch.complex128) if given else None
    dynamics, _, trajectory = measured(layer, x, state)
    assert isinstance(dynamics, DiagonalDynamics)
    first = x[0] if batched else x
    # A layer that returns its state: Re(h) and Re(-i h).
    probe = copy.deepcopy(layer)
    eye = torch.eye(5, dtype=torch.complex128)
    probe.C = nn.Parameter(torch.cat([eye, -1j * eye]))
    probe.D = nn.Parameter(torch.zeros(10, 4))
    probe.out_features = 10

    def step(v, t):
        state = torch.view_as_complex(v.view(-1, 2))
        return probe(first[t : t + 1], state)[0].view(2, 5).T.flatten()

    initial = state if given else torch.zeros(5, dtype=torch.complex128)
    agree(trajectory, step, torch.view_as_real(initial).flatten())


# All diagonal ones -------------------------------------------------------------------------


def test_a_decay_that_underflows_has_an_exponent():
    mamba = library("mambapy.mamba")
    block = mamba.MambaBlock(mamba.MambaConfig(d_model=4, n_layers=1, d_state=16))
    with torch.no_grad():
        block.dt_proj.bias.fill_(20.0)
    _, _, trajectory = measured(block, torch.randn(B, T, 4))
    growth = trajectory.closed_log_growth
    assert bool((growth < -200).any())
    assert bool(torch.isfinite(growth).all())
