"""Networks for tests, all seeded."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics import StackedDynamics
from lyap_optuna.dynamics.torch_kernels import cell_of
from lyap_optuna.spectrum import LyapunovSpectrum

KINDS = ("rnn_tanh", "rnn_relu", "gru", "lstm_hidden", "lstm_full")


def make_layer(
    kind: str,
    features: int = 3,
    units: int = 5,
    layers: int = 1,
    bias: bool = True,
    seed: int = 0,
    scale: float = 1.5,
    dtype: torch.dtype = torch.float64,
    batch_first: bool = True,
) -> nn.RNNBase:
    options: dict[str, Any] = dict(num_layers=layers, bias=bias, batch_first=batch_first)
    if kind.startswith("rnn"):
        layer: nn.RNNBase = nn.RNN(features, units, nonlinearity=kind[4:], **options)
    elif kind == "gru":
        layer = nn.GRU(features, units, **options)
    else:
        layer = nn.LSTM(features, units, **options)
    generator = torch.Generator().manual_seed(seed)
    layer = layer.to(dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
            p.mul_(scale / units**0.5)
    return layer


def layer_dynamics(layer: nn.RNNBase, state: str) -> StackedDynamics:
    """The equations of a layer by themselves, without a model around it."""
    return StackedDynamics(
        [cell_of(layer.mode.lower(), weights, state) for weights in layer.all_weights]
    )


def state_of(kind: str) -> str:
    return "full" if kind == "lstm_full" else "hidden"


def make_inputs(
    batch: int, time: int, features: int, seed: int = 1, dtype: torch.dtype = torch.float64
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, features, generator=generator, dtype=torch.float64).to(dtype)


def orthogonal(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]


def spectrum_of(
    exponents: Sequence[float], std: Sequence[float] | None = None, state: str = "hidden"
) -> LyapunovSpectrum:
    """A spectrum with these exponents, as if ten sequences had been measured."""
    as_tensor = torch.tensor(exponents, dtype=torch.float64)
    return LyapunovSpectrum(
        exponents=as_tensor,
        std=torch.tensor([0.1] * len(exponents) if std is None else std, dtype=torch.float64),
        per_input=as_tensor.expand(10, -1),
        history=None,
        state_size=len(exponents),
        steps=1,
        warmup=0,
        method="textbook",
        state=state,
    )
