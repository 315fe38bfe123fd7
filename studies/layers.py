"""Time readouts of other libraries' layers against training: ``python -m studies.layers``.

For each layer that is installed, end to end: a readout of 10 sequences of 100 steps (copying the
model, running it and checking every layer included) against one epoch of 20 batches of 32 such
sequences, in one run; medians.
"""

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lyap_optuna as lyap

FEATURES, SEQUENCES, STEPS, BATCHES, BATCH = 16, 10, 100, 20, 32


class Model(nn.Module):
    """A layer between two linear maps."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(FEATURES, width), layer
        self.head: nn.Module = nn.LazyLinear(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return one number for each step."""
        out = self.layer(self.first(x))
        result: Tensor = self.head(out[0] if isinstance(out, tuple) else out)
        return result


def _part(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _of_units(name: str, **options: Any) -> Callable[[int], nn.Module]:
    def make(n: int) -> nn.Module:
        layer: nn.Module = _part(name)(n, n, **options)
        return layer

    return make


def _wired(name: str) -> Callable[[int], nn.Module]:
    def make(n: int) -> nn.Module:
        layer: nn.Module = _part(name)(n, _part("ncps.wirings.AutoNCP")(n, max(1, n // 4)))
        return layer

    return make


def _mambapy(n: int) -> nn.Module:
    block: nn.Module = _part("mambapy.mamba.MambaBlock")(
        _part("mambapy.mamba.MambaConfig")(d_model=n, n_layers=1)
    )
    return block


def _mixer(kind: str, **options: Any) -> Callable[[int], nn.Module]:
    def make(n: int) -> nn.Module:
        place = f"transformers.models.{kind.lower()}.modeling_{kind.lower()}."
        config = _part(f"transformers.{kind}Config")(
            hidden_size=n, num_hidden_layers=1, **{k: f(n) for k, f in options.items()}
        )
        mixer = "RwkvSelfAttention" if kind == "Rwkv" else f"{kind}Mixer"
        if kind == "Rwkv":
            made: nn.Module = _part(place + mixer)(config, layer_id=0)
            for p in made.parameters():  # they come uninitialised
                nn.init.uniform_(p, -0.5, 0.5)
            return made
        made = _part(place + mixer)(config, layer_idx=0)
        return made

    return make


def _slstm(n: int) -> nn.Module:
    layers = "xlstm.blocks.slstm.layer."
    layer: Any = _part(layers + "sLSTMLayer")(
        _part(layers + "sLSTMLayerConfig")(embedding_dim=n, num_heads=4, backend="vanilla")
    )
    layer.reset_parameters()
    built: nn.Module = layer
    return built


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "LSTM": _of_units("torch.nn.LSTM", batch_first=True),
    "CfC": _of_units("ncps.torch.CfC"),
    "CfC, wired": _wired("ncps.torch.CfC"),
    "CfC, mixed memory": _of_units("ncps.torch.CfC", mixed_memory=True),
    "LTC": _of_units("ncps.torch.LTC"),
    "LTC, wired": _wired("ncps.torch.LTC"),
    "LTC, mixed memory": _of_units("ncps.torch.LTC", mixed_memory=True),
    "Mamba (mambapy)": _mambapy,
    "Mamba": _mixer("Mamba"),
    "Mamba-2": _mixer(
        "Mamba2",
        num_heads=lambda n: n // 8,
        head_dim=lambda n: 16,
        state_size=lambda n: 16,
        n_groups=lambda n: 1,
    ),
    "RWKV-4": _mixer("Rwkv"),
    "minGRU": lambda n: _part("minGRU_pytorch.minGRU")(n),
    "S5": _of_units("s5.S5"),
    "LRU": lambda n: _part("LRU_pytorch.LRU")(n, n, n),
    "sLSTM": _slstm,
    "IndRNN": _of_units("torchrecurrent.IndRNN", batch_first=True),
    "PeepholeLSTM": _of_units("torchrecurrent.PeepholeLSTM", batch_first=True),
    "LEM": _of_units("torchrecurrent.LEM", batch_first=True),
}
"""A layer of n units on n features."""


def median_times(works: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Return the medians in seconds of works that take turns, after one run that is not counted.

    Whatever else the machine does meanwhile, it does to all of them.
    """
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for work, own in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            if turn:
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def training_batch(model: nn.Module) -> Callable[[], None]:
    """Return one training step."""
    x, y = torch.randn(BATCH, STEPS, FEATURES), torch.randn(BATCH, STEPS, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()

    return step


def ratio(name: str, units: int, repeats: int) -> tuple[float, float] | None:
    """Return seconds of an epoch and of a readout; None where the layer is not installed."""
    torch.manual_seed(0)
    try:
        layer = LAYERS[name](units)
    except ImportError:
        return None
    model = Model(layer, units)
    with torch.no_grad():
        model(torch.randn(2, 3, FEATURES))
    inputs = torch.randn(SEQUENCES, STEPS, FEATURES)
    readout, batch = median_times(
        [lambda: lyap.lyapunov_readout(model, inputs), training_batch(model)], repeats
    )
    return BATCHES * batch, readout


@click.command()
@click.option("--units", default=[32, 64], multiple=True, show_default=True)
@click.option("--layer", "layers", multiple=True, help="By name; all by default.")
@click.option("--repeats", default=9, show_default=True)
def main(units: tuple[int, ...], layers: tuple[str, ...], repeats: int) -> None:
    """Print what a readout of each layer costs, as a share of an epoch."""
    console = Console()
    table = Table(
        title=f"readout of {SEQUENCES} x {STEPS} steps against an epoch of {BATCHES} batches of "
        f"{BATCH}, {torch.get_num_threads()} threads"
    )
    for column in ("layer", "units", "epoch s", "readout ms", "% of an epoch"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    missing = set()
    for name in layers or LAYERS:
        for n in units:
            times = ratio(name, n, repeats)
            if times is None:
                missing.add(name)
                continue
            epoch, readout = times
            share = f"{100 * readout / epoch:.2f}"
            table.add_row(name, str(n), f"{epoch:.2f}", f"{1e3 * readout:.0f}", share)
    console.print(table)
    if missing:
        console.print(f"Not installed: {', '.join(sorted(missing))}.")


if __name__ == "__main__":
    main()
