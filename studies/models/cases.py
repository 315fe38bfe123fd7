"""Models that are measured, each with an independent truth; what a new one needs is one entry.

The page ``docs/models.md`` shows them, ``python -m studies.models`` measures them, and the tests
hold them to their truths.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lyap_optuna as lyap
from lyap_optuna.dynamics import resolve
from lyap_optuna.spectrum._start import random_start
from studies.models.networks import (
    FEATURES,
    UNITS,
    ByChunks,
    Closed,
    DecayGRU,
    Decoder,
    EncoderDecoder,
    LeakyRNN,
    LooksBack,
    Loop,
    Model,
    NormalisedCell,
    OwnLoop,
    Packs,
    PeepholeCell,
    ScaledLSTM,
    Siamese,
    Stacked,
    Stateful,
    TwiceAStep,
    ZoneoutCell,
)
from studies.models.truth import (
    Diagonal,
    Step,
    Truth,
    Unrolled,
    cell_weights,
    gru_step,
    layer_weights,
    lstm_step,
    rnn_step,
)

K = 4
Truths = dict[str, Truth | Diagonal | Unrolled]


@dataclass(frozen=True)
class Case:
    """A model, and what its exponents are.

    Args:
        name: What the page calls it.
        make: ``make(units)`` returns the model.
        inputs: ``inputs(model, batch, steps)`` returns what its forward takes.
        truth: ``truth(model, inputs)`` returns, by the names of the entries, what they do; both
            are in float64, the model a copy in eval mode.
        line: What a user writes.
        path: The path that is taken, ``"fast"`` or ``"general"``.
        whole: Whether there is a whole spectrum; else a maximum only.
        library: The package that the model comes from.
        module: What to import to find out whether it is installed.
    """

    name: str
    make: Callable[[int], nn.Module]
    inputs: Callable[[Any, int, int], Any]
    truth: Callable[[Any, Any], Truths]
    line: str = "LyapunovProbe(model, x)"
    path: str = "fast"
    whole: bool = True
    library: str = ""
    module: str = ""


@dataclass(frozen=True)
class Comparison:
    """What was measured of a case.

    Args:
        entries: Names of the entries.
        path: The path that was taken.
        error: The largest difference from the truth over all exponents, nats/step.
    """

    entries: list[str]
    path: str
    error: float


def compare(case: Case, batch: int = 3, steps: int = 60) -> Comparison:
    """Measure a case and compare each of its exponents with the truth.

    The fast path computes in the model's dtype, so the model is in float64. The general path
    computes in float64 by itself and is given the float32 model that people train. An exponent of
    minus infinity is left out, where rounding leaves less than -25 nats of it in both.
    """
    model = case.make(UNITS).eval()
    if case.path == "fast":
        model = model.double()
    inputs = case.inputs(model, batch, steps)
    truths = case.truth(copy.deepcopy(model).double(), doubled(inputs))
    inputs = doubled(inputs) if case.path == "fast" else inputs
    layers = resolve(model, inputs)
    if list(layers) != list(truths):
        raise ValueError(f"{case.name}: {list(layers)} were measured, not {list(truths)}.")
    worst = 0.0
    for name, truth in truths.items():
        layer = name if len(truths) > 1 else None
        size = layers[name].trajectory.state_size
        if case.whole:
            found = lyap.lyapunov_spectrum(model, inputs, layer=layer, start="identity").exponents
            expected = truth.exponents(torch.eye(size, dtype=torch.float64))
        else:
            found = lyap.lyapunov_readout(model, inputs, layer=layer).exponents
            expected = truth.exponents(random_start(size, K))
        known = (found > -25) | (expected > -25)
        worst = max(worst, float((found - expected.detach())[known].abs().max()))
    (path,) = {layer.path for layer in layers.values()}
    return Comparison(list(layers), path, worst)


def doubled(value: Any) -> Any:
    """Return inputs in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: doubled(item) for key, item in value.items()}
    return tuple(doubled(item) for item in value)


# Inputs ------------------------------------------------------------------------------------------


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return normal random numbers, float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).float()


def sequences(model: Any, batch: int, steps: int) -> Tensor:
    """Return ``(batch, time, features)``."""
    return draw(batch, steps, FEATURES)


def _uneven(model: Any, batch: int, steps: int) -> tuple[Tensor, Tensor]:
    return draw(batch, steps, FEATURES), torch.tensor(_lengths(batch, steps))


def _lengths(batch: int, steps: int) -> list[int]:
    return [steps - i * steps // (2 * batch) for i in range(batch)]


def _pair(model: Any, batch: int, steps: int) -> tuple[Tensor, Tensor]:
    return draw(batch, steps, FEATURES), draw(batch, steps, FEATURES, seed=1)


def _two_features(model: Any, batch: int, steps: int) -> Tensor:
    return draw(batch, steps, 2)


def _attended(model: Any, batch: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    n = model.gru.hidden_size
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (batch, steps), generator=generator)
    return draw(batch, 30, n), draw(1, batch, n, seed=1), tokens


# Truths ------------------------------------------------------------------------------------------

STEPS: dict[type, Callable[..., Step]] = {
    nn.RNN: rnn_step,
    nn.RNNCell: rnn_step,
    nn.GRU: gru_step,
    nn.GRUCell: gru_step,
    nn.LSTM: lstm_step,
    nn.LSTMCell: lstm_step,
}


def step_of(layer: Any, index: int = 0, suffix: str = "") -> Step:
    """Return the step of one of PyTorch's layers (one of a stack, one direction) or cells."""
    make = next(make for kind, make in STEPS.items() if isinstance(layer, kind))
    cell = isinstance(layer, nn.RNNCellBase)
    return make(cell_weights(layer) if cell else layer_weights(layer, index, suffix))


def width(layer: Any) -> int:
    """Return the size of the state of a layer in one direction, or of a cell."""
    parts = 2 if isinstance(layer, (nn.LSTM, nn.LSTMCell)) else 1
    size: int = parts * layer.hidden_size
    return size


def zeros(x: Tensor, size: int) -> Tensor:
    """Return the state that everything begins at."""
    return torch.zeros(len(x), size, dtype=torch.float64)


def _plain(model: Any, x: Tensor) -> Truths:
    return {"rnn": Truth(step_of(model.rnn), zeros(x, width(model.rnn)), x)}


def _stack(model: Any, x: Tensor) -> Truths:
    n = width(model.rnn)
    low, high = step_of(model.rnn, 0), step_of(model.rnn, 1)

    def step(s: Tensor, x: Tensor) -> Tensor:
        p = low(s[:n], x)
        return torch.cat([p, high(s[n:], p[: model.rnn.hidden_size])])

    return {"rnn": Truth(step, zeros(x, 2 * n), x)}


def _directions(model: Any, x: Tensor) -> Truths:
    layer, below, truths = model.rnn, x, {}
    for i in range(2):
        outputs = []
        for suffix in ("", "_reverse"):
            driving = below.flip(1) if suffix else below
            step = step_of(layer, i, suffix)
            truths[f"rnn.l{i}{suffix}"] = Truth(step, zeros(x, width(layer)), driving)
            states = torch.stack([_run(step, row, width(layer)) for row in driving])
            outputs.append((states.flip(1) if suffix else states)[..., : layer.hidden_size])
        below = torch.cat(outputs, 2)
    return dict(truths)


def _run(step: Step, inputs: Tensor, size: int) -> Tensor:
    s, states = torch.zeros(size, dtype=torch.float64), []
    for x in inputs:
        s = step(s, x)
        states.append(s)
    return torch.stack(states)


def _packed(model: Any, inputs: Any) -> Truths:
    x, lengths = inputs
    layer = model.lstm
    return {"lstm": Truth(step_of(layer), zeros(x, width(layer)), x, lengths.tolist())}


def _encoder_decoder(model: Any, x: Tensor) -> Truths:
    encoder, decoder = model.encoder, model.decoder
    bridged = torch.tanh(model.bridge(encoder(x)[1][0])).detach()
    return {
        "encoder": Truth(step_of(encoder), zeros(x, encoder.hidden_size), x),
        "decoder": Truth(step_of(decoder), bridged, x.flip(1)),
    }


def _kept(model: Any, x: Tensor) -> Truths:
    initial = torch.cat([part[0] for part in model.kept], 1)
    return {"rnn": Truth(step_of(model.rnn), initial, x)}


def _after_a_batch(model: Any, batch: int, steps: int) -> Tensor:
    like = model.rnn.weight_hh_l0
    shape = (1, batch, model.rnn.hidden_size)
    model.kept = tuple(torch.tanh(draw(*shape, seed=seed)).to(like) for seed in (3, 4))
    return sequences(model, batch, steps)


def loop_step(model: Any) -> Step:
    """Return the step of a ``Loop`` from one arriving state to the next, in float64."""
    d = copy.deepcopy(model).double().eval()
    d.kind = "plain" if d.kind == "detached" else d.kind
    cell, n = step_of(d.cell), d.cell.hidden_size
    if model.kind == "leak first":
        return lambda s, x: 0.7 * s + 0.3 * cell(s, x)

    def step(s: Tensor, x: Tensor) -> Tensor:
        new = cell(s, x)
        changed: Tensor = d.change(new[:n], s[:n])
        return torch.cat([changed, new[n:]])

    return step


def _loop(model: Any, x: Tensor) -> Truths:
    # what the model makes of the last call's result is not seen
    size, steps = width(model.cell), x.shape[1]
    return {"cell": Truth(loop_step(model), zeros(x, size), x[:, :-1], total=steps)}


def _fed_back(model: Any, x: Tensor) -> Truths:
    cell = step_of(model.cell)

    def step(s: Tensor, x: Tensor) -> Tensor:  # the first input is read twice, without feedback
        first, x = x[:1], x[1:]
        return cell(s, x + torch.where(first > 0, x, torch.tanh(3 * model.out(s))))

    return {"cell": Truth(step, zeros(x, width(model.cell)), _marked(x))}


def _closed(model: Any, x: Tensor) -> Truths:
    cell = step_of(model.cell)

    def step(s: Tensor, x: Tensor) -> Tensor:
        return cell(s, torch.where(x[:1] > 0, x[1:], model.out(s)))

    return {"cell": Truth(step, zeros(x, width(model.cell)), _marked(x))}


def _marked(x: Tensor) -> Tensor:
    marks = torch.zeros_like(x[..., :1])
    marks[:, 0] = 1
    return torch.cat([marks, x], 2)


def _both(model: Any, inputs: Any) -> Truths:
    a, b = inputs
    truth = Truth(
        step_of(model.cell), zeros(torch.cat([a, b]), width(model.cell)), torch.cat([a, b])
    )
    return {"cell": truth}


def _twice(model: Any, x: Tensor) -> Truths:
    cell, n = step_of(model.cell), model.cell.hidden_size

    def step(s: Tensor, x: Tensor) -> Tensor:
        a = cell(s[:n], model.enter(x))
        return torch.cat([a, cell(s[n:], a)])

    return {"cell": Truth(step, zeros(x, 2 * n), x)}


def _cells(model: Any, x: Tensor) -> Truths:
    low, high = (step_of(cell) for cell in model.both())
    n = model.both()[0].hidden_size

    def step(s: Tensor, x: Tensor) -> Tensor:
        p = low(s[: 2 * n], x)
        return torch.cat([p, high(s[2 * n :], model.norm(p[:n]))])

    name = "low+high" if model.named else "cells"
    return {name: Truth(step, zeros(x, 4 * n), x)}


def _decoder(model: Any, inputs: Any) -> Truths:
    memory, h, target = inputs
    cell, n = step_of(model.gru), model.gru.hidden_size

    def step(s: Tensor, x: Tensor) -> Tensor:
        m = x[n:].view(-1, n)
        w = torch.softmax(model.v(torch.tanh(model.q(s)[None] + model.k(m))), 0)
        return cell(s, torch.cat([x[:n], (w * m).sum(0)]))

    tokens = model.embedding(target).detach()
    memories = memory.flatten(1).unsqueeze(1).expand(-1, target.shape[1], -1)
    return {"gru": Truth(step, h[0], torch.cat([tokens, memories], 2))}


def _looks_back(model: Any, x: Tensor) -> Truths:
    def states(h: Tensor, x: Tensor) -> Tensor:
        return torch.stack([row[0] for row in model.states(x[None], h[None])])

    return {"cell": Unrolled(states, zeros(x, width(model.cell)), x, x.shape[1])}


def _own_cell(model: Any, x: Tensor) -> Truths:
    cell, n = model.cell, model.cell.hidden_size

    def step(s: Tensor, x: Tensor) -> Tensor:
        if not model.lstm:
            new: Tensor = cell(x[None], s[None])[0]
            return new
        return torch.cat(cell(x[None], (s[None, :n], s[None, n:])), 1)[0]

    return {"cell": Truth(step, zeros(x, width(cell)), x)}


def _leaky(model: Any, x: Tensor) -> Truths:
    new = step_of(model.rnn)
    truth = Truth(
        lambda h, x: 0.9 * h + 0.1 * new(h, x),
        zeros(x, model.rnn.hidden_size),
        x[:, :-1],
        total=x.shape[1],
    )
    return {"rnn": truth}


def _decaying(model: Any, x: Tensor) -> Truths:
    cell = step_of(model.rnn)
    truth = Truth(
        lambda s, z: 0.5 * cell(s, z),
        zeros(x, model.rnn.hidden_size),
        x[:, :-1],
        total=x.shape[1],
    )
    return {"rnn": truth}


def _scaled(model: Any, x: Tensor) -> Truths:
    return {"rnn": Truth(step_of(model.rnn), zeros(x, width(model.rnn)), 3 * x)}


# The list ----------------------------------------------------------------------------------------


def _of(layer: Any, **options: Any) -> Callable[[int], nn.Module]:
    return lambda units: Model(layer, units=units, **options)


def _looping(kind: str, cell: Any) -> Callable[[int], nn.Module]:
    return lambda units: Loop(kind, cell, units=units)


def _general(
    name: str, make: Callable[[int], nn.Module], truth: Any = _loop, inputs: Any = sequences
) -> Case:
    return Case(name, make, inputs, truth, path="general")


_ENTRY = 'LyapunovProbe(model, x, layer="rnn.l1_reverse")'

CASES: dict[str, list[Case]] = {
    "PyTorch's layers": [
        Case("`nn.RNN`", _of(nn.RNN), sequences, _plain),
        Case("`nn.GRU`", _of(nn.GRU), sequences, _plain),
        Case("`nn.LSTM`", _of(nn.LSTM), sequences, _plain),
        Case("`nn.LSTM`, two layers", _of(nn.LSTM, num_layers=2), sequences, _stack),
        Case(
            "`nn.GRU`, two layers, bidirectional",
            _of(nn.GRU, num_layers=2, bidirectional=True),
            sequences,
            _directions,
            _ENTRY,
        ),
        Case(
            "`nn.LSTM`, packed sequences",
            lambda units: Packs(nn.LSTM(FEATURES, units, batch_first=True)),
            _uneven,
            _packed,
            "LyapunovProbe(model, (x, lengths))",
        ),
        Case(
            "encoder and decoder",
            EncoderDecoder,
            sequences,
            _encoder_decoder,
        ),
        Case(
            "a state kept from batch to batch",
            Stateful,
            _after_a_batch,
            _kept,
        ),
        Case(
            "`nn.GRU`, two layers, one call per step",
            lambda units: ByChunks(nn.GRU, 1, units, num_layers=2),
            sequences,
            _stack,
        ),
    ],
    "Loops over cells": [
        Case(
            "`nn.LSTMCell` in a loop",
            lambda units: OwnLoop(nn.LSTMCell, units=units),
            sequences,
            _own_cell,
        ),
        Case(
            "one cell over two sequences",
            lambda units: Siamese("two sequences", units),
            _pair,
            _both,
            "LyapunovProbe(model, (a, b))",
        ),
        _general("layer norm between steps", _looping("normalised", nn.LSTMCell)),
        _general("residual and layer norm", _looping("residual, normalised", nn.GRUCell)),
        _general("zoneout in the loop", _looping("zoneout", nn.GRUCell)),
        _general("a leak", _looping("leak first", nn.GRUCell)),
        _general("decay of the state", _looping("decay", nn.LSTMCell)),
        _general("an output that is fed back", _looping("feedback", nn.GRUCell), _fed_back),
        _general(
            "a forecaster that reads its own output",
            lambda units: Closed(units=units),
            _closed,
            _two_features,
        ),
        _general("one cell twice per step", lambda units: TwiceAStep(units), _twice),
        _general(
            "two `nn.LSTMCell`, layer norm between", lambda units: Stacked(True, units), _cells
        ),
        Case(
            "decoder that attends to an encoder",
            lambda units: Decoder(units),
            _attended,
            _decoder,
            "LyapunovProbe(model, (memory, h, tokens))",
            path="general",
        ),
        Case(
            "attention over its own earlier states",
            lambda units: LooksBack(units),
            sequences,
            _looks_back,
            path="general",
            whole=False,
        ),
    ],
    "Cells and layers with a forward of their own": [
        _general(
            "LSTM cell with layer norm",
            lambda units: OwnLoop(NormalisedCell, units=units),
            _own_cell,
        ),
        _general(
            "LSTM cell with peepholes", lambda units: OwnLoop(PeepholeCell, units=units), _own_cell
        ),
        _general(
            "GRU cell with zoneout", lambda units: OwnLoop(ZoneoutCell, units=units), _own_cell
        ),
        _general("subclass of `nn.RNN`, leaky", _of(LeakyRNN), _leaky),
        _general("subclass of `nn.GRU`, decaying", _of(DecayGRU), _decaying),
        Case("subclass of `nn.LSTM`, scaled inputs", _of(ScaledLSTM), sequences, _scaled),
    ],
}
