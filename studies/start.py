"""What starting vectors do to a maximum: ``python -m studies.start``.

Networks are driven for a long time. In the same window at the end, the maximum exponent is
measured with vectors that started long before it, whose start is forgotten, and with random ones
that started a warm-up before it. The difference is the effect of the start.
"""

import sys
from collections.abc import Iterator
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lyap_optuna.dynamics import resolve
from lyap_optuna.dynamics.base import Trajectory
from lyap_optuna.spectrum._growth import measure
from lyap_optuna.spectrum._schedule import Schedule
from lyap_optuna.spectrum._start import as_rows, random_start

FEATURES, SEQUENCES, STEPS, LONG = 3, 10, 80, 1500
WARMUPS = (0, 5, 10, 20, 50)


def networks(units: int) -> Iterator[tuple[str, nn.RNNBase]]:
    """Yield dense networks, and such as have many exponents close to the maximum."""

    def layer(kind: Any, recurrent: Tensor | None = None, bias: Tensor | None = None) -> Any:
        made = kind(FEATURES, units, batch_first=True)
        for name, values in (("weight_hh_l0", recurrent), ("bias_hh_l0", bias)):
            if values is not None:
                made.state_dict()[name].copy_(values)
        return made

    def at_second_gate(values: Tensor, gates: int) -> Tensor:
        bias = torch.zeros(gates, units)
        bias[1] = values
        return bias.flatten()

    eye, zero = torch.eye(units), torch.zeros(units)
    forget = torch.linspace(1, 99, units).log()
    gains = (0.3, 0.5, 0.8, 1.1)
    parts = [0.9 * g * nn.init.orthogonal_(torch.empty(units // 4, units // 4)) for g in gains]
    yield "tanh", layer(nn.RNN)
    yield "GRU", layer(nn.GRU)
    yield "LSTM", layer(nn.LSTM)
    yield "tanh, gain 1.5", layer(nn.RNN, 1.5 / units**0.5 * torch.randn(units, units))
    yield "tanh, orthogonal", layer(nn.RNN, nn.init.orthogonal_(torch.empty(units, units)))
    yield "tanh, identity", layer(nn.RNN, eye)
    yield "tanh, diagonal", layer(nn.RNN, torch.linspace(0.1, 0.99, units).diag())
    yield "tanh, 4 blocks", layer(nn.RNN, torch.block_diag(*parts))
    time_scales = at_second_gate(torch.linspace(-2, 4, units), 3)
    yield "GRU, identity gates", layer(nn.GRU, eye.repeat(3, 1), time_scales)
    time_scales = at_second_gate(torch.linspace(0, 4, units), 3)
    yield "GRU, no recurrence", layer(nn.GRU, eye.repeat(3, 1) * 0, time_scales)
    yield "LSTM, chrono", layer(nn.LSTM, bias=torch.cat([-forget, forget, zero, zero]))


def maxima(path: Trajectory, start: Tensor, warmup: int) -> tuple[float, float]:
    """Return the largest of the leading exponents, and what a readout makes of the block."""
    window = Schedule(LONG, 1, (LONG + STEPS,) * path.batch)
    rows = as_rows(start, path.states)
    growth = measure("tangent", path, rows, window, block=len(start.T), since=LONG - warmup)
    assert growth.block is not None
    leading = float(growth.rates.mean(0).max())
    return leading, max(leading, float(growth.block.mean()))


def effect(path: Trajectory, warmup: int, k: int, starts: int, truth: float) -> list[Tensor]:
    """Return errors over random starts: of the leading exponents, and of a readout's maximum."""
    generator = torch.Generator().manual_seed(warmup)
    shape = (path.state_size, k)
    found = [
        maxima(path, torch.linalg.qr(torch.randn(shape, generator=generator).double())[0], warmup)
        for _ in range(starts)
    ]
    return list(torch.tensor(found).sub(truth).unbind(1))


@click.command()
@click.option("--units", default=64, help="Units of every network, a multiple of 4.")
@click.option("--starts", default=8, help="Random starts of each.")
@click.option("-k", default=4, help="Tangent vectors.")
@torch.no_grad()
def main(units: int, starts: int, k: int) -> None:
    """Print the effect of the start on the maximum: bias and spread over starts."""
    torch.manual_seed(0)
    inputs = torch.randn(SEQUENCES, LONG + STEPS, FEATURES)
    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table(
        title=f"Maximum exponent of {STEPS} steps, 1e-3 nats/step: error ± spread over starts, of "
        f"the leading of {k} exponents / of a readout's maximum"
    )
    table.add_column("network")
    for warmup in WARMUPS:
        table.add_column(f"warm-up {warmup}", justify="right")
    squares: list[Tensor] = []
    for name, layer in networks(units):
        (driven,) = resolve(layer.double(), inputs.double()).values()
        path = driven.trajectory
        truth, _ = maxima(path, random_start(path.state_size, 2 * k), LONG)
        errors = [effect(path, warmup, k, starts, truth) for warmup in WARMUPS]
        cells = [
            " / ".join(f"{1e3 * e.mean():.1f}±{1e3 * e.std():.1f}" for e in es) for es in errors
        ]
        table.add_row(name, *cells)
        squares.append(torch.tensor([[float(e.square().mean()) for e in es] for es in errors]))
    total = 1e3 * torch.stack(squares).mean(0).sqrt()
    table.add_row("root mean square", *(f"{a:.1f} / {b:.1f}" for a, b in total.tolist()))
    console.print(table)


if __name__ == "__main__":
    main()
