"""Layers of other libraries, each with the library's own step as the truth.

A package is imported only where its case is used.
"""

import importlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from studies.models.cases import Case, Truths, draw, zeros
from studies.models.truth import Diagonal, Truth

FEATURES = 4


def _module(name: str) -> Any:
    return importlib.import_module(name)


class Around(nn.Module):
    """A model around one layer.

    Args:
        layer: The layer.
        units: Its units.
        scale: How far its weights are spread.
    """

    def __init__(self, layer: nn.Module, units: int, scale: float = 0.3) -> None:
        super().__init__()
        self.layer: Any = layer
        self.units = units
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in layer.parameters():
                if p.requires_grad and p.is_floating_point():
                    p.add_(scale * torch.randn(p.shape, generator=generator).to(p))

    def forward(self, *args: Any) -> Any:
        """Return what the layer returns."""
        return self.layer(*args)


def _seeded(make: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    def made(units: int) -> nn.Module:
        torch.manual_seed(0)
        return make(units)

    return made


def _sequences(model: Any, batch: int, steps: int) -> Tensor:
    return draw(batch, steps, FEATURES)


def _as_wide_as_the_layer(model: Any, batch: int, steps: int) -> Tensor:
    return draw(batch, steps, model.units)


def _time_first(model: Any, batch: int, steps: int) -> Tensor:
    return draw(steps, batch, model.units)


def _tokens(model: Any, batch: int, steps: int) -> Tensor:
    return torch.randint(0, 20, (batch, steps), generator=torch.Generator().manual_seed(0))


def _numbered(batch: int, steps: int) -> Tensor:
    """Return ``(batch, time, 2)``: which sequence and which step."""
    rows, times = torch.arange(batch), torch.arange(steps)
    return torch.stack(torch.meshgrid(rows, times, indexing="ij"), 2)


# Hugging Face ------------------------------------------------------------------------------------


def _language_model(name: str, heads: int = 0, **options: Any) -> Callable[[int], nn.Module]:
    def make(units: int) -> nn.Module:
        library = _module("transformers")
        if heads:
            options.update(num_heads=heads, head_dim=2 * units // heads)
        config = getattr(library, f"{name}Config")(
            vocab_size=20, hidden_size=units, num_hidden_layers=2, **options
        )
        model: nn.Module = getattr(library, f"{name}ForCausalLM")(config)
        return model

    return make


def _linear(a: Tensor, b: Tensor) -> Diagonal:
    """Return the recurrence of decays and drives ``(batch, time, S)``."""
    return Diagonal(lambda s, x: x[0] * s + x[1], zeros(a, a.shape[2]), torch.stack([a, b], 2))


def _mamba(model: Any, x: Tensor) -> Truths:
    calls: list[Any] = []
    modeling = _module("transformers.models.mamba.modeling_mamba")
    scan = modeling.mamba_selective_scan

    def spy(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *rest: Any, **more: Any) -> Any:
        calls.append((u, dt + more["delta_bias"][:, None], a, b))
        return scan(u, dt, a, b, c, *rest, **more)

    with mock.patch.object(modeling, "mamba_selective_scan", spy), torch.no_grad():
        model(x)
    truths: Truths = {}
    for i, (u, dt, a, b) in enumerate(calls):
        dt = torch.nn.functional.softplus(dt.double()).transpose(1, 2).unsqueeze(3)
        decay = torch.exp(dt * a.double())
        drive = dt * b.double().transpose(1, 2).unsqueeze(2) * u.double().mT.unsqueeze(3)
        truths[f"backbone.layers.{i}.mixer"] = _linear(decay.flatten(2), drive.flatten(2))
    return truths


def _mamba2(model: Any, x: Tensor) -> Truths:
    calls: list[Any] = []
    modeling = _module("transformers.models.mamba2.modeling_mamba2")
    scan = modeling.mamba2_chunk_scan

    def spy(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *rest: Any, **more: Any) -> Any:
        calls.append((u, dt + more["dt_bias"], a, b, more["dt_limit"]))
        return scan(u, dt, a, b, c, *rest, **more)

    with mock.patch.object(modeling, "mamba2_chunk_scan", spy), torch.no_grad():
        model(x)
    truths: Truths = {}
    for i, (u, dt, a, b, limit) in enumerate(calls):
        dt = torch.nn.functional.softplus(dt.double()).clamp(*limit)
        heads = u.shape[2]
        b = b.double().repeat_interleave(heads // b.shape[2], dim=2)
        drive = torch.einsum("bth,bthp,bthn->bthpn", dt, u.double(), b)
        decay = torch.exp(dt * a.double())[..., None, None].expand_as(drive)
        truths[f"backbone.layers.{i}.mixer"] = _linear(decay.flatten(2), drive.flatten(2))
    return truths


def _rwkv(model: Any, x: Tensor) -> Truths:
    modeling = _module("transformers.models.rwkv.modeling_rwkv")
    calls: list[Any] = []
    attend = modeling.rwkv_linear_attention_cpu

    def spy(decay: Tensor, first: Tensor, key: Tensor, value: Tensor, **more: Any) -> Any:
        calls.append((decay, first, key, value))
        return attend(decay, first, key, value, **more)

    with mock.patch.object(modeling, "rwkv_linear_attention_cpu", spy), torch.no_grad():
        model(x)
    truths: Truths = {}
    for i, (decay, first, key, value) in enumerate(calls):
        n = len(decay)

        def step(
            s: Tensor,
            at: Tensor,
            parts: tuple[Tensor, ...] = (decay, first, key, value),
            n: int = n,
        ) -> Tensor:
            decay, first, key, value = parts
            row, t = int(at[0]), int(at[1])
            r, log_den = s[:n], s[n:]
            held = log_den.detach()  # (num, den, max) with max held where log den is
            den = torch.exp(log_den - held)
            num, den, maximum = attend(
                decay,
                first,
                key[row : row + 1, t : t + 1],
                value[row : row + 1, t : t + 1],
                state=(r * den, den, held),
                return_state=True,
            )[1]
            return torch.cat([(num / den)[0], (den.log() + maximum)[0]])

        empty = torch.cat([torch.zeros(n), torch.full((n,), -1e30)]).double()
        truths[f"rwkv.blocks.{i}.attention"] = Truth(
            step, empty.expand(len(x), -1), _numbered(*x.shape), empty=2
        )
    return truths


# Other state-space layers ------------------------------------------------------------------------


def _mambapy(units: int) -> nn.Module:
    library = _module("mambapy.mamba")
    config = library.MambaConfig(d_model=units, n_layers=1, d_state=3, pscan=False)
    return Around(library.MambaBlock(config), units)


def _mambapy_truth(model: Any, x: Tensor) -> Truths:
    block = model.layer
    shape, history = block.A_log.shape, block.config.d_conv - 1
    windows = nn.functional.pad(block.in_proj(x).chunk(2, -1)[0], (0, 0, history, 0)).detach()

    def step(s: Tensor, at: Tensor) -> Tensor:
        row, t = int(at[0]), int(at[1])
        window = windows[row, t : t + history].T[None]
        new: Tensor = block.step(x[row, t][None], (s.view(1, *shape), window))[1][0]
        return new.flatten()

    return {"layer": Diagonal(step, zeros(x, block.A_log.numel()), _numbered(*x.shape[:2]))}


def _min_gru(model: Any, x: Tensor) -> Truths:
    layer = model.layer
    n = layer.to_hidden_and_gate.out_features // 2

    def step(s: Tensor, x: Tensor) -> Tensor:
        new: Tensor = layer(x[None, None], s[None, None], True)[1]
        return new.flatten()

    # the library keeps logarithms of the state, so that it cannot begin at 0
    before = torch.full((len(x), n), 1e-300, dtype=torch.float64)
    return {"layer": Truth(step, before, x)}


class _Complex(Around):
    """Around a layer whose complex numbers do not follow ``double()``."""

    def double(self) -> Any:
        """Convert them too."""
        super().double()
        for module in self.modules():
            for name, p in module.named_parameters(recurse=False):
                if p.is_complex():
                    setattr(module, name, nn.Parameter(p.detach().to(torch.complex128)))
        if isinstance(getattr(self.layer, "state", None), Tensor):
            self.layer.state = self.layer.state.to(torch.complex128)
        return self


def _s5(model: Any, x: Tensor) -> Truths:
    sequence = model.layer.seq

    def step(s: Tensor, x: Tensor) -> Tensor:
        state = torch.view_as_complex(s.view(-1, 2))
        return torch.view_as_real(sequence.forward_rnn(x, state)[1]).flatten()

    size = 2 * sequence.Lambda.numel()
    return {"layer": Truth(step, zeros(x, size), x)}


def _lru(model: Any, x: Tensor) -> Truths:
    layer = model.layer
    modulus, phase = torch.exp(-torch.exp(layer.nu_log)), torch.exp(layer.theta_log)
    decay = torch.polar(modulus, phase)
    gain, b = torch.exp(layer.gamma_log), layer.B.to(torch.complex128)

    def step(s: Tensor, x: Tensor) -> Tensor:
        state = decay * torch.view_as_complex(s.view(-1, 2)) + gain * (b @ x.to(b.dtype))
        return torch.view_as_real(state).flatten()

    return {"layer": Truth(step, zeros(x, 2 * len(modulus)), x)}


# Cells -------------------------------------------------------------------------------------------


def _recurrent(name: str) -> Callable[[int], nn.Module]:
    return lambda units: Around(getattr(_module("torchrecurrent"), name)(units, units), units)


def _of_cells(model: Any, x: Tensor) -> Truths:
    (cell,) = model.layer.cells
    bases = [base.__name__ for base in type(model.layer).__mro__]
    parts = 2 if any("DoubleState" in base for base in bases) else 1

    def step(s: Tensor, x: Tensor) -> Tensor:
        given = s[None].chunk(parts, dim=1)
        new = cell(x[None], given if parts > 1 else given[0])
        return torch.cat(new if isinstance(new, tuple) else (new,), dim=1)[0]

    x = x.transpose(0, 1)
    return {"layer": Truth(step, zeros(x, parts * model.units), x)}


def _ncps(name: str) -> Callable[[int], nn.Module]:
    def make(units: int) -> nn.Module:
        layer = getattr(_module("ncps.torch"), name)(FEATURES, units)
        return Around(layer, units, scale=0.3 if name == "CfC" else 0.02)

    return make


def _ncps_truth(model: Any, x: Tensor) -> Truths:
    layer = model.layer

    def step(s: Tensor, x: Tensor) -> Tensor:
        new: Tensor = layer.rnn_cell(x[None], s[None], 1.0)[1]
        return new[0]

    return {"layer": Truth(step, zeros(x, layer.state_size), x)}


# xLSTM -------------------------------------------------------------------------------------------


def _slstm(units: int) -> nn.Module:
    layers = _module("xlstm.blocks.slstm.layer")
    config = layers.sLSTMLayerConfig(
        embedding_dim=units, num_heads=2, backend="vanilla", conv1d_kernel_size=4, dtype="float32"
    )
    return Around(layers.sLSTMLayer(config), units)


def _reaching(model: Any, part: nn.Module, x: Tensor) -> tuple[Any, Any]:
    calls: list[Any] = []
    handle = part.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        model(x)
    handle.remove()
    (call,) = calls
    return call[0], call[1]


def _slstm_truth(model: Any, x: Tensor) -> Truths:
    cell = model.layer.slstm_cell
    args, _ = _reaching(model, cell, x)
    gates = args[0] if cell.config.input_shape == "BSGNH" else args[0].transpose(0, 1)
    n, heads = cell.config.hidden_size, cell.config.num_heads

    def step(s: Tensor, gates: Tensor) -> Tensor:
        y, u, log_n = s.view(3, n)
        held = log_n.detach().clamp(min=-1e4)  # the stabiliser; only n e^m matters
        norm = torch.exp(log_n - held)
        state = torch.stack([y, u * norm, norm, held])[:, None]
        kernel, width = cell._recurrent_kernel, n // heads
        ry = y.view(1, heads, 1, -1).matmul(
            kernel.transpose(1, 2).reshape(1, heads, width, 4 * width)
        )
        ry = ry.reshape(1, heads, 4, -1).transpose(1, 2).reshape(1, -1)
        y, c, norm, m = cell.pointwise(gates[None], ry, cell._bias, state, {})[0][:, 0]
        return torch.cat([y, c / norm, norm.log() + m])

    empty = torch.cat([torch.zeros(2 * n), torch.full((n,), -1e30)]).double()
    return {"layer.slstm_cell": Truth(step, empty.expand(len(x), -1), gates)}


def _mlstm(units: int) -> nn.Module:
    layers = _module("xlstm.blocks.mlstm.layer")
    config = layers.mLSTMLayerConfig(embedding_dim=units, num_heads=8, context_length=128)
    return Around(layers.mLSTMLayer(config), units)


def _mlstm_truth(model: Any, x: Tensor) -> Truths:
    cell = model.layer.mlstm_cell
    args, kwargs = _reaching(model, cell, x)
    q, k, v = args or (kwargs["q"], kwargs["k"], kwargs["v"])
    heads = cell.config.num_heads
    d = cell.config.embedding_dim // heads

    def step(s: Tensor, at: Tensor) -> Tensor:
        # its own recurrent form on (C e^m, n e^m), m = 0; ours keeps C transposed, with n below
        row, t = int(at[0]), int(at[1])
        memory = s.view(1, heads, d + 1, d)
        held = (memory[:, :, :-1].mT, memory[:, :, -1:].mT, torch.zeros(1, heads, 1, 1).double())
        parts = (part[row : row + 1, t : t + 1].clone() for part in (q, k, v))
        c, n, m = cell.step(*parts, mlstm_state=held)[1]
        new: Tensor = torch.cat([c.mT, n.mT], dim=2).mul(m.exp())
        return new.flatten()

    size = heads * d * (d + 1)
    return {"layer.mlstm_cell": Diagonal(step, zeros(x, size), _numbered(*x.shape[:2]))}


# The list ----------------------------------------------------------------------------------------

_TOKENS = "LyapunovProbe(model, tokens)"


def _of(
    library: str,
    module: str,
    name: str,
    make: Callable[[int], nn.Module],
    inputs: Any,
    truth: Any,
    **more: Any,
) -> Case:
    made = _seeded(make)
    return Case(f"{library}: `{name}`", made, inputs, truth, library=library, module=module, **more)


LIBRARIES: dict[str, list[Case]] = {
    "Layers of other libraries": [
        _of(
            "transformers",
            "transformers",
            "MambaForCausalLM",
            _language_model("Mamba", state_size=3),
            _tokens,
            _mamba,
            line=_TOKENS,
        ),
        _of(
            "transformers",
            "transformers",
            "Mamba2ForCausalLM",
            _language_model("Mamba2", heads=2, state_size=3, n_groups=1, chunk_size=8),
            _tokens,
            _mamba2,
            line=_TOKENS,
        ),
        _of(
            "transformers",
            "transformers",
            "RwkvForCausalLM",
            _language_model("Rwkv", context_length=128, rescale_every=0),
            _tokens,
            _rwkv,
            line=_TOKENS,
        ),
        _of("mambapy", "mambapy", "MambaBlock", _mambapy, _as_wide_as_the_layer, _mambapy_truth),
        _of(
            "minGRU-pytorch",
            "minGRU_pytorch",
            "minGRU",
            lambda units: Around(_module("minGRU_pytorch").minGRU(units), units),
            _as_wide_as_the_layer,
            _min_gru,
        ),
        _of(
            "s5-pytorch",
            "s5",
            "S5",
            lambda units: _Complex(_module("s5").S5(FEATURES, units), units, scale=0),
            _sequences,
            _s5,
        ),
        _of(
            "LRU-pytorch",
            "LRU_pytorch",
            "LRU",
            lambda units: _Complex(_module("LRU_pytorch").LRU(FEATURES, 3, units), units, scale=0),
            _sequences,
            _lru,
        ),
        *(
            _of("torchrecurrent", "torchrecurrent", name, _recurrent(name), _time_first, _of_cells)
            for name in ("IndRNN", "PeepholeLSTM", "UGRNN", "coRNN", "LEM")
        ),
        _of("ncps", "ncps", "CfC", _ncps("CfC"), _sequences, _ncps_truth),
        _of("ncps", "ncps", "LTC", _ncps("LTC"), _sequences, _ncps_truth),
        _of("xlstm", "xlstm", "sLSTMLayer", _slstm, _as_wide_as_the_layer, _slstm_truth, share=3),
        _of("xlstm", "xlstm", "mLSTMLayer", _mlstm, _as_wide_as_the_layer, _mlstm_truth),
    ]
}
