"""One step of each layer by the library's own code, for one sequence, flat: the independent truth.

Each function takes a layer, what its forward was called with and the number of a sequence, and
returns ``step(state, t) -> state`` and the state before the first step.
"""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from _truth import library
from torch import Tensor, nn

Step = Callable[[Tensor, int], Tensor]


def called(layer: nn.Module, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    found = dict(inspect.signature(layer.forward).bind(*args, **kwargs).arguments)
    return {**found, **found.pop("kwargs", {})}


# ncps --------------------------------------------------------------------------------------


def ncps_step(layer: Any, x: Tensor, spans: Tensor | None = None) -> Step:
    """(h, c) by the layer's own cells; ``(1, time, features)``, batch first."""

    def step(state: Tensor, t: int) -> Tensor:
        h, c = state[None, : layer.state_size], state[None, layer.state_size :]
        if layer.use_mixed:
            h, c = layer.lstm(x[:1, t], (h, c))
        span = 1.0 if spans is None else spans[0, t]
        h = layer.rnn_cell(x[:1, t], h, span)[1]
        return torch.cat([h, c], dim=1)[0]

    return step


def ncps(layer: Any, args: Any, kwargs: Any, b: int) -> tuple[Step, Tensor]:
    """CfC and LTC."""
    call = called(layer, args, kwargs)
    x, hx, spans = call["input"], call.get("hx"), call.get("timespans")
    if not layer.batch_first:
        x, spans = x.transpose(0, 1), None if spans is None else spans.transpose(0, 1)
    size = layer.state_size * (2 if layer.use_mixed else 1)
    state = torch.zeros(len(x), size).to(x)
    if hx is not None:
        state = torch.cat(hx, dim=1) if layer.use_mixed else hx
    row = slice(b, b + 1)
    return ncps_step(layer, x[row], None if spans is None else spans[row]), state[b]


# torchrecurrent ----------------------------------------------------------------------------


def stack_step(layer: Any, x: Tensor) -> Step:
    """One step of a stack by its own cells; ``(1, time, features)``, batch first."""
    bases = [cls.__name__ for cls in type(layer).__mro__]
    double = any("DoubleState" in base for base in bases)
    decoupled = any(base.startswith("Decoupled") for base in bases)

    def step(state: Tensor, t: int) -> Tensor:
        pieces, new = list(state[None].split(layer.hidden_size, dim=1)), []
        below = x[:1, t]
        for cell in layer.cells:
            given = (pieces.pop(0), pieces.pop(0)) if double else pieces.pop(0)
            below, after = cell(below, given) if decoupled else (None, cell(below, given))
            after = after if isinstance(after, tuple) else (after,)
            below = after[0] if below is None else below
            new.extend(after)
        return torch.cat(new, dim=1)[0]

    return step


def torchrecurrent(layer: Any, args: Any, kwargs: Any, b: int) -> tuple[Step, Tensor]:
    """Stacks whose state is h, or h and c, of every cell."""
    call = called(layer, args, kwargs)
    x, state = call["inp"], call.get("state")
    x = x if layer.batch_first else x.transpose(0, 1)
    parts = 2 if any("DoubleState" in cls.__name__ for cls in type(layer).__mro__) else 1
    if state is None:
        initial = torch.zeros(parts * len(layer.cells) * layer.hidden_size).to(x)
    else:
        state = state if isinstance(state, tuple) else (state,)
        initial = torch.cat([p[i, b] for i in range(len(layer.cells)) for p in state])
    return stack_step(layer, x[b : b + 1]), initial


# State spaces ------------------------------------------------------------------------------


def mambapy(block: Any, args: Any, kwargs: Any, b: int) -> tuple[Step, Tensor]:
    """The block's own ``step``, fed with the window of its convolution."""
    x = called(block, args, kwargs)["x"][b]
    width = block.config.d_conv - 1
    windows = nn.functional.pad(block.in_proj(x).chunk(2, -1)[0], (0, 0, width, 0)).detach()
    shape = (1, *block.A_log.shape)

    def step(state: Tensor, t: int) -> Tensor:
        window = windows[t : t + width].T[None]
        return block.step(x[t][None], (state.view(shape), window))[1][0].flatten()

    return step, x.new_zeros(block.A_log.numel())


def spied(modeling: Any, name: str, layer: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return what a layer's forward calls a function of its module with."""
    seen: dict[str, Any] = {}
    function = getattr(modeling, name)
    names = ("u", "dt", "a", "b", "c")

    def spy(*parts: Any, **rest: Any) -> Any:
        seen.update(zip(names, parts, strict=False), **rest)
        return function(*parts, **rest)

    setattr(modeling, name, spy)
    try:
        with torch.no_grad():
            layer(*args, **kwargs)
    finally:
        setattr(modeling, name, function)
    return seen


def mamba(mixer: Any, args: Any, kwargs: Any, b: int) -> tuple[Step, Tensor]:
    """The definition, from the arguments of the library's own scan."""
    modeling = library("transformers.models.mamba.modeling_mamba")
    seen = spied(modeling, "mamba_selective_scan", mixer, args, kwargs)

    def step(state: Tensor, t: int) -> Tensor:
        dt = nn.functional.softplus(seen["dt"][b, :, t] + seen["delta_bias"])[:, None]
        drive = dt * seen["b"][b, :, t].float() * seen["u"][b, :, t, None].float()
        return (torch.exp(dt * seen["a"]) * state.view(mixer.A_log.shape) + drive).flatten()

    return step, torch.zeros(mixer.A_log.numel(), dtype=torch.float64)


def mamba2(mixer: Any, args: Any, kwargs: Any, b: int) -> tuple[Step, Tensor]:
    """The definition, from the arguments of the library's own scan."""
    modeling = library("transformers.models.mamba2.modeling_mamba2")
    seen = spied(modeling, "mamba2_chunk_scan", mixer, args, kwargs)
    heads, shape = mixer.num_heads, (mixer.num_heads, mixer.head_dim, mixer.ssm_state_size)

    def step(state: Tensor, t: int) -> Tensor:
        dt = nn.functional.softplus(seen["dt"][b, t] + seen["dt_bias"]).clamp(*seen["dt_limit"])
        key = seen["b"][b, t].repeat_interleave(heads // mixer.n_groups, dim=0)
        drive = torch.einsum("h,hp,hn->hpn", dt, seen["u"][b, t], key)
        return (torch.exp(dt * seen["a"])[:, None, None] * state.view(shape) + drive).flatten()

    return step, torch.zeros(heads * shape[1] * shape[2], dtype=torch.float64)


def rwkv_step(attention: Any, x: Tensor, state: Any = None) -> Step:
    """(r, l) after one step by the library's own code, in its numbers (num, den, max)."""
    modeling = library("transformers.models.rwkv.modeling_rwkv")
    _, key, value, _ = attention.extract_key_value(x[:1], state=state)
    n = len(attention.time_decay)

    def step(s: Tensor, t: int) -> Tensor:
        r, log_den = s[:n], s[n:]
        one = torch.ones_like(r)
        # maxima are constants: (num, den, max) with max held where log den is
        held = log_den.detach()
        den = one * torch.exp(log_den - held)
        num, den, maximum = modeling.rwkv_linear_attention_cpu(
            attention.time_decay,
            attention.time_first,
            key[:, t : t + 1].detach(),
            value[:, t : t + 1].detach(),
            state=(torch.where(den > 0, r * den, 0), den, held),
            return_state=True,
        )[1]
        return torch.cat([(num / den)[0], (den.log() + maximum)[0]])

    return step


def rwkv(attention: Any, args: Any, kwargs: Any, b: int) -> tuple[Step, Tensor]:
    """From an empty average."""
    x, n = called(attention, args, kwargs)["hidden"], len(attention.time_decay)
    empty = torch.cat([torch.zeros(n), torch.full((n,), -1e30)]).double()
    return rwkv_step(attention, x[b : b + 1]), empty


def min_gru(layer: Any, args: Any, kwargs: Any, b: int) -> tuple[Step, Tensor]:
    """The layer itself, called with one step and the state before."""
    call = called(layer, args, kwargs)
    x, before = call["x"], call.get("prev_hidden")
    units = layer.to_hidden_and_gate.out_features // 2

    def step(state: Tensor, t: int) -> Tensor:
        return layer(x[b : b + 1, t : t + 1], state[None, None], True)[1].flatten()

    return step, x.new_zeros(units) if before is None else before[b, -1]


def s5(layer: Any, args: Any, kwargs: Any, b: int) -> tuple[Step, Tensor]:
    """Its own recurrent form; a complex component is (real, imaginary)."""
    x = called(layer, args, kwargs)["signal"]

    def step(state: Tensor, t: int) -> Tensor:
        before = torch.view_as_complex(state.view(-1, 2))
        return torch.view_as_real(layer.seq.forward_rnn(x[b, t], before, 1.0)[1]).flatten()

    return step, x.new_zeros(2 * len(layer.seq.Lambda))


def lru(layer: Any, args: Any, kwargs: Any, b: int) -> tuple[Step, Tensor]:
    """A copy of the layer whose outputs are its state: Re(h) and Re(-i h)."""
    x, n = called(layer, args, kwargs)["input"], len(layer.nu_log)
    twin = copy.deepcopy(layer)
    eye = torch.eye(n, dtype=torch.complex128)
    twin.C = nn.Parameter(torch.cat([eye, -1j * eye]))
    twin.D = nn.Parameter(torch.zeros(2 * n, x.shape[-1]))
    twin.out_features = 2 * n

    def step(state: Tensor, t: int) -> Tensor:
        before = torch.view_as_complex(state.view(-1, 2))
        return twin(x[b, t : t + 1], before)[0].view(2, n).T.flatten()

    initial = layer.state if b == 0 else torch.zeros_like(layer.state)
    return step, torch.view_as_real(initial).flatten()


# xlstm -------------------------------------------------------------------------------------


def slstm_step(cell: Any, x: Tensor) -> Step:
    """(y, c / n, log n + m) after one step of the library's own pointwise function."""
    heads, units = cell.config.num_heads, cell.config.hidden_size

    def step(s: Tensor, t: int) -> Tensor:
        y, u, log_n = s.view(3, units)
        held = log_n.detach().clamp(min=-1e4)  # the stabiliser; only n e^m matters
        n = torch.exp(log_n - held)
        state = torch.stack([y, u * n, n, held])[:, None]
        kernel, bias = cell._recurrent_kernel, cell._bias
        width = units // heads
        by_head = y.view(1, heads, 1, -1)
        ry = by_head.matmul(kernel.transpose(1, 2).reshape(1, heads, width, 4 * width))
        ry = ry.reshape(1, heads, 4, -1).transpose(1, 2).reshape(1, -1)
        # the library asks whether all n are zero, which cannot be differentiated through
        new = cell.pointwise(x[0, t][None], ry, bias, state, {})[0][:, 0]
        return ratios(new)

    return step


def ratios(state: Tensor) -> Tensor:
    """Return (y, c / n, log n + m)."""
    y, c, n, m = state
    return torch.cat([y, c / n, n.log() + m])


def slstm(cell: Any, args: Any, kwargs: Any, b: int) -> tuple[Step, Tensor]:
    """From where nothing has been averaged."""
    x, units = called(cell, args, kwargs)["input"], cell.config.hidden_size
    x = x if cell.config.input_shape == "BSGNH" else x.transpose(0, 1)
    empty = torch.cat([torch.zeros(2 * units), torch.full((units,), -1e30)]).double()
    return slstm_step(cell, x[b : b + 1]), empty


def mlstm(cell: Any, args: Any, kwargs: Any, b: int) -> tuple[Step, Tensor]:
    """Its own recurrent form on (C e^m, n e^m), m = 0; ours keeps C transposed, with n below."""
    call = called(cell, args, kwargs)
    q, k, v = (call[name][b : b + 1] for name in ("q", "k", "v"))
    heads, d = cell.config.num_heads, q.shape[-1] // cell.config.num_heads

    def step(state: Tensor, t: int) -> Tensor:
        memory = state.view(1, heads, d + 1, d)
        none = memory.new_zeros(1, heads, 1, 1)
        held = (memory[:, :, :-1].mT, memory[:, :, -1:].mT, none)
        c, n, m = cell.step(*(p[:, t : t + 1].clone() for p in (q, k, v)), mlstm_state=held)[1]
        return torch.cat([c.mT, n.mT], dim=2).mul(m.exp()).flatten()

    return step, q.new_zeros(heads * (d + 1) * d)


STEPS: dict[str, Callable[..., tuple[Step, Tensor]]] = {
    "CfC": ncps,
    "LTC": ncps,
    "RecurrentLayerBase": torchrecurrent,
    "MambaBlock": mambapy,
    "MambaMixer": mamba,
    "Mamba2Mixer": mamba2,
    "RwkvSelfAttention": rwkv,
    "minGRU": min_gru,
    "S5": s5,
    "LRU": lru,
    "sLSTMCellBase": slstm,
    "mLSTMCell": mlstm,
}
"""By the names of the layers' classes."""


def steps_of(layer: nn.Module, args: Any, kwargs: Any, b: int) -> tuple[Step, Tensor]:
    """Return one step of sequence b of any of them, and its initial state."""
    kinds = (STEPS.get(cls.__name__) for cls in type(layer).__mro__)
    return next(kind for kind in kinds if kind is not None)(layer, args, kwargs, b)
