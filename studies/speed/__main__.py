"""Time readouts and spectra against Algorithm 1 and against training: ``python -m studies.speed``.

Everything that is compared is timed in this one run, and every time stands beside an error.
"""

import copy
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

import lyap_optuna as lyap
from lyap_optuna.dynamics import StackedDynamics, resolve
from lyap_optuna.dynamics.torch_kernels import cell_of
from lyap_optuna.spectrum._start import random_start

FEATURES, SEQUENCES, STEPS, BATCHES = 82, 10, 100, 256
Result = TypeVar("Result")


@dataclass(frozen=True)
class Case:
    """An architecture, its state and its size."""

    name: str
    layer: Callable[..., nn.RNNBase]
    state: str
    units: int

    def make(self) -> nn.RNNBase:
        """Build the layer, seeded, without bias as in the paper."""
        torch.manual_seed(0)
        return self.layer(FEATURES, self.units, bias=False, batch_first=True)


@dataclass
class Row:
    """One line of the table: medians in seconds, errors in nats/step."""

    case: Case
    epoch: float
    readout: float
    textbook: float  # per step
    spectrum: float  # per step
    method: str
    upper: float
    tail: float


ARCHITECTURES = {
    "vanilla": (nn.RNN, "hidden"),
    "GRU": (nn.GRU, "hidden"),
    "LSTM hidden": (nn.LSTM, "hidden"),
    "LSTM full": (nn.LSTM, "full"),
}


def characters(length: int, seed: int = 0) -> Tensor:
    """Return one-hot characters of a text that every Python ships, ``(length, FEATURES)``."""
    from pydoc_data import topics

    text = "".join(topics.topics.values())
    alphabet = {c: i for i, c in enumerate(sorted(set(text), key=text.count)[-FEATURES:])}
    codes = torch.tensor([alphabet[c] for c in text if c in alphabet])
    start = int(torch.randint(len(codes) - length, (), generator=_generator(seed)))
    return nn.functional.one_hot(codes[start : start + length], FEATURES).float()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(sequences: int = SEQUENCES, steps: int = STEPS, seed: int = 1) -> Tensor:
    """Return sequences of one-hot characters, ``(sequences, steps, FEATURES)``."""
    return characters(sequences * steps, seed).view(sequences, steps, FEATURES)


def median_time(work: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """Return the median of several runs in seconds, after one that is not counted."""
    result = work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def training_batch(layer: nn.RNNBase) -> Callable[[], None]:
    """Return one training step of next-character prediction, 100 sequences of 100 characters."""
    readout = nn.Linear(layer.hidden_size, FEATURES)
    optimizer = torch.optim.Adam([*layer.parameters(), *readout.parameters()], lr=2e-3)
    batches = [inputs(100, 101, seed) for seed in range(20)]
    turn = iter(range(10**9))

    def step() -> None:
        x = batches[next(turn) % len(batches)]
        optimizer.zero_grad()
        logits = readout(layer(x[:, :-1])[0])
        nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].argmax(2).flatten()).backward()
        optimizer.step()

    return step


def errors(layer: nn.RNNBase, x: Tensor, state: str, **options: Any) -> tuple[float, float]:
    """Return the largest error against float64 QR: all but the lowest 5 %, and those."""
    exact = lyap.lyapunov_spectrum(
        _double(layer), x.double(), state=state, warmup=0, k=options.get("k"), method="qr"
    )
    fast = lyap.lyapunov_spectrum(layer, x, state=state, warmup=0, **options)
    distance = (fast.exponents - exact.exponents).abs()
    cut = math.ceil(0.95 * len(distance))
    return float(distance[:cut].max()), float(distance[cut:].max()) if cut < len(distance) else 0.0


def _double(layer: nn.RNNBase) -> nn.RNNBase:
    return copy.deepcopy(layer).double()


def measure(case: Case, repeats: int) -> Row:
    """Time and check one case."""
    layer, x = case.make(), inputs()
    readout, _ = median_time(lambda: lyap.lyapunov_readout(layer, x, state=case.state), repeats)
    size = case.units * (2 if case.state == "full" else 1)
    steps = max(4, min(20, 20 * 512**3 // size**3))  # a step costs the same wherever it is
    short = x[:, :steps]

    def spectrum(method: str) -> Callable[[], lyap.LyapunovSpectrum]:
        return lambda: lyap.lyapunov_spectrum(
            layer, short, state=case.state, warmup=0, method=method
        )

    few = max(1, min(repeats, 3)) if size >= 1024 else repeats
    textbook, _ = median_time(spectrum("textbook"), few)
    fast, result = median_time(spectrum("auto"), few)
    upper, tail = errors(layer, short, case.state)
    batch, _ = median_time(training_batch(case.make()), max(3, repeats // 2))
    return Row(
        case, BATCHES * batch, readout, textbook / steps, fast / steps, result.method, upper, tail
    )


def slope(rows: list[Row], quantity: Callable[[Row], float], smallest: int = 0) -> float:
    """Return the exponent b of cost = a N^b, fitted on logarithmic axes."""
    chosen = [r for r in rows if r.case.units >= smallest]
    sizes = np.log([r.case.units for r in chosen])
    return float(np.polyfit(sizes, np.log([quantity(r) for r in chosen]), 1)[0])


# The figures that the project promises --------------------------------------------------------


@dataclass
class Figure:
    """A promised figure and what was measured."""

    work: str
    promised: str
    measured: str
    met: bool


def headline(units: int, repeats: int) -> list[Figure]:
    """Measure every promised figure on the LSTM of the paper's character task."""
    case = Case("LSTM hidden", nn.LSTM, "hidden", units)
    layer, x = case.make(), inputs()
    trained = case.make()
    step = training_batch(trained)
    for _ in range(60):
        step()
    networks = {"untrained": layer, "trained for 60 batches": trained}
    return [
        *readout_cost(case, layer, x, repeats),
        *spectrum_cost(networks, x[:, :20], repeats),
        first_exponents(layer, x),
        Figure(
            "effect of other starting vectors on max",
            "printed",
            ", ".join(
                f"{start_vector_spread(layer, x, warmup):.1e} (warm-up {warmup})"
                for warmup in (0, 20, 50)
            ),
            True,
        ),
        sampled_mean(layer, x),
    ]


def readout_cost(case: Case, layer: nn.RNNBase, x: Tensor, repeats: int) -> list[Figure]:
    """Time readouts against an epoch, against their parts, and against Algorithm 1."""
    batch, _ = median_time(training_batch(case.make()), repeats)
    epoch = BATCHES * batch
    figures, took = [], {}
    for state, limit in (("hidden", 0.3), ("full", 0.2)):
        seconds, _ = median_time(partial(lyap.lyapunov_readout, layer, x, state=state), repeats)
        took[state], share = seconds, 100 * seconds / epoch
        whole, _ = median_time(partial(resolve, layer, x, state=state), repeats)
        weights = [list(group) for group in layer.all_weights]
        alone = StackedDynamics([cell_of("lstm", group, state) for group in weights])
        bare, _ = median_time(partial(alone.linearise, x), repeats)
        figures += [
            Figure(
                f"readout, state={state!r}, against one epoch ({epoch:.0f} s)",
                f"at most {limit} %",
                f"{share:.3f} % ({1e3 * seconds:.0f} ms)",
                share <= limit,
            ),
            Figure(
                "of it: private copy of the model, recording, checks",
                "printed",
                f"{100 * max(0.0, whole - bare) / seconds:.0f} %",
                True,
            ),
        ]
    plain, _ = median_time(_spectrum_of(layer, x, method="textbook"), 1)
    ratio = plain / took["hidden"]
    return [
        *figures,
        Figure("readout against plain Algorithm 1", "at least 30x", f"{ratio:.0f}x", ratio >= 30),
    ]


def _spectrum_of(
    layer: nn.RNNBase, x: Tensor, **options: Any
) -> Callable[[], lyap.LyapunovSpectrum]:
    return partial(lyap.lyapunov_spectrum, layer, x, state="hidden", warmup=0, **options)


def spectrum_cost(networks: dict[str, nn.RNNBase], x: Tensor, repeats: int) -> list[Figure]:
    """Time whole and half spectra of the first network; errors are of all networks."""
    layer, steps = next(iter(networks.values())), x.shape[1]
    whole, _ = median_time(_spectrum_of(layer, x, method="textbook"), repeats)
    fast, _ = median_time(_spectrum_of(layer, x), repeats)
    figures = [
        Figure(
            "full spectrum, every step, against plain Algorithm 1",
            "at least 2.5x",
            f"{whole / fast:.1f}x ({1e3 * whole / steps:.0f} and {1e3 * fast / steps:.0f} ms/step)",
            whole / fast >= 2.5,
        )
    ]
    for name, network in networks.items():
        upper, tail = errors(network, x, "hidden")
        figures.append(
            Figure(
                f"its error against float64 QR, {name}",
                "1e-3; lowest 5 % 2e-2",
                f"{upper:.1e}; {tail:.1e}",
                upper <= 1e-3 and tail <= 2e-2,
            )
        )
    half, interval, error = layer.hidden_size // 2, 0, 0.0
    for every in (1, 2, 4, 5, 10, 20):
        worst = max(errors(n, x, "hidden", k=half, qr_every=every)[0] for n in networks.values())
        if worst <= 1e-3:
            interval, error = every, worst
    if interval:
        leading, _ = median_time(_spectrum_of(layer, x, k=half, qr_every=interval), repeats)
        figures.append(
            Figure(
                "leading half, longest interval with an error of 1e-3",
                "at least 6x",
                f"{whole / leading:.1f}x (every {interval} steps, error {error:.1e})",
                whole / leading >= 6,
            )
        )
    return figures


def first_exponents(layer: nn.RNNBase, x: Tensor) -> Figure:
    """Compare a readout's exponents with the first of a spectrum, from the same start."""
    twin = _double(layer)
    first = lyap.lyapunov_spectrum(
        twin,
        x.double(),
        k=4,
        method="textbook",
        state="hidden",
        start=random_start(layer.hidden_size, 4),
    )
    gap32, gap64 = (
        float((readout.exponents - first.exponents).abs().max())
        for readout in (
            lyap.lyapunov_readout(layer, x, state="hidden"),
            lyap.lyapunov_readout(twin, x.double(), state="hidden"),
        )
    )
    return Figure(
        "readout's k exponents against the spectrum's first k",
        "1e-6 and 1e-3",
        f"{gap64:.1e} (float64) and {gap32:.1e} (float32)",
        gap64 <= 1e-6 and gap32 <= 1e-3,
    )


def sampled_mean(layer: nn.RNNBase, x: Tensor) -> Figure:
    """Compare sampled means with that of every log-determinant."""
    # No sampling meets this tolerance, so all of them are computed.
    exact = _mean(layer, x, mean_tolerance=1e-9)
    worst = max(abs(_mean(layer, x, seed=seed) - exact) for seed in range(10))
    bound = 0.01 * max(1, abs(exact))
    return Figure(
        "sampled mean against the exact mean, worst of 10 draws",
        f"{bound:.3f} nats",
        f"{worst:.1e} nats",
        worst <= bound,
    )


def start_vector_spread(layer: nn.RNNBase, x: Tensor, warmup: int) -> float:
    """Return the standard deviation of ``max`` over orders of the units.

    Reordering the units leaves the dynamics as it is; the starting vectors become others.
    """
    maxima = []
    weights = layer.state_dict()
    gates = len(weights["weight_hh_l0"]) // layer.hidden_size
    for seed in range(8):
        order = torch.randperm(layer.hidden_size, generator=_generator(seed))
        rows = torch.cat([order + g * layer.hidden_size for g in range(gates)])
        twin = copy.deepcopy(layer)
        twin.load_state_dict(
            {
                "weight_ih_l0": weights["weight_ih_l0"][rows],
                "weight_hh_l0": weights["weight_hh_l0"][rows][:, order],
            }
        )
        maxima.append(lyap.lyapunov_readout(twin, x, state="hidden", warmup=warmup).max)
    return statistics.stdev(maxima)


def _mean(layer: nn.RNNBase, x: Tensor, **options: Any) -> float:
    mean = lyap.lyapunov_readout(layer, x, state="hidden", **options).mean
    assert mean is not None
    return mean


def memory(units: int) -> Figure:
    """Measure the peak memory of a whole spectrum."""
    # A process of its own: the largest resident size so far cannot be reset.
    command = [sys.executable, "-m", "studies.speed.memory", str(units)]
    peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return Figure(
        f"peak memory above model and inputs, full spectrum, N = {units}",
        "under 600 MiB",
        f"{peak:.0f} MiB",
        peak < 600,
    )


def machine_rates(units: int, repeats: int) -> str:
    """What bounds the figures: the rates of product, LU and QR on this machine."""
    a = torch.randn(units, units, generator=_generator(0))
    parts = []
    for name, work in (
        ("product", lambda: a @ a),
        ("LU", lambda: torch.linalg.lu_factor_ex(a)),
        ("QR with Q", lambda: torch.linalg.qr(a)),
    ):
        seconds, _ = median_time(work, 3 * repeats)
        parts.append(f"{name} {1e3 * seconds:.2f} ms")
    return f"One {units} x {units} float32 matrix, {torch.get_num_threads()} threads: " + ", ".join(
        parts
    )


# What people see -------------------------------------------------------------------------------


def print_rows(console: Console, rows: list[Row]) -> None:
    """Print the table of all cases."""
    table = Table(title=f"{SEQUENCES} sequences of {STEPS} steps, medians")
    for column in (
        "architecture",
        "N",
        "readout ms",
        "% of an epoch",
        "Algorithm 1 / readout",
        "Algorithm 1 ms/step",
        "spectrum ms/step",
        "speed-up",
        "by",
        "error",
        "lowest 5 %",
    ):
        table.add_column(column, justify="left" if column in ("architecture", "by") else "right")
    for r in rows:
        table.add_row(
            r.case.name,
            str(r.case.units),
            f"{1e3 * r.readout:.1f}",
            f"{100 * r.readout / r.epoch:.3f}",
            f"{STEPS * r.textbook / r.readout:.0f}",
            f"{1e3 * r.textbook:.1f}",
            f"{1e3 * r.spectrum:.1f}",
            f"{r.textbook / r.spectrum:.1f}",
            r.method,
            f"{r.upper:.0e}",
            f"{r.tail:.0e}",
        )
    console.print(table)


def print_figures(console: Console, figures: list[Figure]) -> None:
    """Print what was promised beside what was measured."""
    table = Table(title="Target and measured")
    for column in ("work", "target", "measured", "met"):
        table.add_column(column)
    for f in figures:
        table.add_row(f.work, f.promised, f.measured, "yes" if f.met else "NO")
    console.print(table)


def draw(rows: list[Row], path: Path) -> None:
    """Draw cost against size."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    def readout_ms(row: Row) -> float:
        return 1e3 * row.readout

    def percent_of_epoch(row: Row) -> float:
        return 100 * row.readout / row.epoch

    def spectrum_ms(row: Row) -> float:
        return 1e3 * row.spectrum

    quantities = (
        ("Readout, ms", readout_ms),
        ("Readout, % of an epoch", percent_of_epoch),
        ("Whole spectrum: Algorithm 1 (dashed) and ours, ms/step", spectrum_ms),
    )
    figure = make_subplots(1, 3, subplot_titles=[title for title, _ in quantities])
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
    for name, colour in zip(ARCHITECTURES, colours, strict=True):
        own = [r for r in rows if r.case.name == name]
        for column, (_, quantity) in enumerate(quantities, start=1):
            figure.add_trace(
                go.Scatter(
                    x=[r.case.units for r in own],
                    y=[quantity(r) for r in own],
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    line={"color": colour},
                ),
                1,
                column,
            )
        figure.add_trace(
            go.Scatter(
                x=[r.case.units for r in own],
                y=[1e3 * r.textbook for r in own],
                name=name,
                legendgroup=name,
                showlegend=False,
                line={"color": colour, "dash": "dash"},
            ),
            1,
            3,
        )
    sizes = sorted({r.case.units for r in rows})
    figure.update_xaxes(type="log", title="Units N", tickvals=sizes, ticktext=list(map(str, sizes)))
    figure.update_yaxes(type="log")
    figure.update_layout(template="plotly_white", legend_title="Architecture")
    figure.write_html(path, include_plotlyjs=True)


@click.command()
@click.option("--sizes", default="64,128,256,512,1024", help="Units, separated by commas.")
@click.option("--repeats", default=5, type=click.IntRange(1), help="Counted runs of each work.")
@click.option("--out", default="speed-benchmark", type=click.Path(path_type=Path))
def main(sizes: str, repeats: int, out: Path) -> None:
    """Time readouts and spectra on this machine; ends with the figures that are promised."""
    units = [int(size) for size in sizes.split(",")]
    console = Console(width=None if sys.stdout.isatty() else 150)
    cases = [Case(name, *made, n) for name, made in ARCHITECTURES.items() for n in units]
    rows: list[Row] = []
    figures: list[Figure] = []
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("Measuring", total=len(cases) + 2)
        figures += headline(min(512, max(units)), repeats)
        progress.advance(task)
        for case in cases:
            progress.update(task, description=f"{case.name}, N = {case.units}")
            rows.append(measure(case, repeats))
            progress.advance(task)
        figures.append(memory(max(units)))
        progress.advance(task)
    growth = (
        slope([r for r in rows if r.case.name == "LSTM full"], lambda r: r.readout, 256)
        if (sum(n >= 256 for n in units) > 1)
        else None
    )
    if growth is not None:
        figures.append(
            Figure(
                f"growth of readout cost, N = 256 to {max(units)}, LSTM full",
                "exponent at most 2.2",
                f"{growth:.2f}",
                growth <= 2.2,
            )
        )
    print_rows(console, rows)
    for name in ARCHITECTURES:
        own = [r for r in rows if r.case.name == name]
        if len(own) > 1:
            console.print(
                f"{name}: readout grows as N^{slope(own, lambda r: r.readout):.2f}, "
                f"Algorithm 1 as N^{slope(own, lambda r: r.textbook):.2f}, "
                f"our spectrum as N^{slope(own, lambda r: r.spectrum):.2f}"
            )
    print_figures(console, figures)
    console.print(machine_rates(min(512, max(units)), repeats))
    out.mkdir(parents=True, exist_ok=True)
    draw(rows, out / "speed.html")
    console.print(f"Figure: {out / 'speed.html'}")


if __name__ == "__main__":
    main()
