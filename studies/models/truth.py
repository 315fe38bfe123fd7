"""An independent truth: Jacobians by reverse-mode autodiff, QR at every step, in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, jvp

Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Truth:
    """One entry of a model: its step, and what drives it.

    Args:
        step: ``step(state (S,), input) -> (S,)`` in float64.
        initial: ``(batch, S)``.
        inputs: ``(batch, time, ...)``.
        lengths: Steps of each sequence; None where all are equally long.
        total: What the default warm-up follows from; None for the number of steps.
        empty: First steps before which the state is not defined (averages of nothing): their
            Jacobians are left out.
    """

    step: Step
    initial: Tensor
    inputs: Tensor
    lengths: Sequence[int] | None = None
    total: int | None = None
    empty: int = 0

    def exponents(self, start: Tensor | None = None) -> Tensor:
        """Return ``(k,)``: the mean over sequences, descending."""
        return true_exponents(
            self.step,
            self.initial,
            self.inputs,
            start=start,
            lengths=self.lengths,
            total=self.total,
            empty=self.empty,
        )


@dataclass(frozen=True)
class Diagonal:
    """One entry whose components do not mix; the same arguments as :class:`Truth`."""

    step: Step
    initial: Tensor
    inputs: Tensor

    def exponents(self, start: Tensor | None = None) -> Tensor:
        """Return ``(S,)``: the mean over sequences, descending; each component has its own.

        Raises:
            ValueError: The components do mix.
        """
        steps = self.inputs.shape[1]
        warmup = min(20, steps // 5)
        vector = torch.randn(self.initial.shape[1], dtype=torch.float64)
        rates = torch.zeros(self.initial.shape[1], dtype=torch.float64)
        for s, inputs in zip(self.initial, self.inputs, strict=True):
            for t, x in enumerate(inputs):
                if t < warmup:
                    s = self.step(s, x).detach()
                    continue

                def moved(vector: Tensor, s: Tensor = s, x: Tensor = x) -> Tensor:
                    image: Tensor = jvp(lambda s: self.step(s, x), (s,), (vector,))[1]
                    return image.detach()

                diagonal = moved(torch.ones_like(vector))
                if not torch.allclose(moved(vector), diagonal * vector, rtol=1e-9, atol=1e-12):
                    raise ValueError(f"At step {t} one component depends on another.")
                rates += diagonal.abs().log()
                s = self.step(s, x).detach()
        rates /= len(self.initial) * (steps - warmup)
        return rates.sort(descending=True).values


@dataclass(frozen=True)
class Unrolled:
    """A model whose next state depends on more than its last: growth since the first.

    Args:
        states: ``states(initial (S,), inputs (time, ...)) -> (time + 1, S)``, in float64.
        initial: ``(batch, S)``.
        inputs: ``(batch, time, ...)``.
        total: What the default warm-up follows from.
    """

    states: Step
    initial: Tensor
    inputs: Tensor
    total: int

    def exponents(self, start: Tensor) -> Tensor:
        """Return ``(k,)``: the mean over sequences, descending."""
        warmup = min(20, self.total // 5)
        rates = []
        for s, x in zip(self.initial, self.inputs, strict=True):
            columns = [jvp(lambda s, x=x: self.states(s, x), (s,), (v,))[1] for v in start.T]
            grown = torch.stack(columns, 2)  # (time + 1, S, k)
            logs = torch.linalg.qr(grown)[1].diagonal(dim1=1, dim2=2).abs().log()
            rates.append((logs[-1] - logs[warmup]) / (len(logs) - 1 - warmup))
        return torch.stack(rates).mean(0).sort(descending=True).values


def true_exponents(
    step: Step,
    initial: Tensor,
    inputs: Tensor,
    warmup: int | None = None,
    start: Tensor | None = None,
    lengths: Sequence[int] | None = None,
    total: int | None = None,
    empty: int = 0,
) -> Tensor:
    """Return ``(k,)``: the mean over sequences, descending.

    Args:
        step: ``step(state (S,), input) -> (S,)`` in float64.
        initial: ``(batch, S)``.
        inputs: ``(batch, time, ...)``.
        warmup: Steps that are not averaged; ``min(20, total // 5)`` where it is None.
        start: ``(S, k)``; the identity where it is None.
        lengths: Steps of each sequence.
        total: What the default warm-up follows from; the number of steps where it is None.
        empty: First steps that multiply nothing.
    """
    batch, steps = inputs.shape[:2]
    lengths = [steps] * batch if lengths is None else list(lengths)
    warmup = min(20, (total or max(lengths)) // 5) if warmup is None else warmup
    jacobian = jacrev(step)
    rates = []
    for b, length in enumerate(lengths):
        if length - warmup < max(1, warmup) and min(lengths) < max(lengths):
            continue
        s = initial[b].double()
        q = torch.eye(len(s), dtype=torch.float64) if start is None else start.double()
        grown = torch.zeros(q.shape[1], dtype=torch.float64)
        for t in range(length):
            x = inputs[b, t]
            x = x.double() if x.is_floating_point() else x
            if t >= empty:
                q, r = torch.linalg.qr(jacobian(s, x).detach() @ q)
            if t >= warmup:
                grown += r.diagonal().abs().log()
            s = step(s, x).detach()
        rates.append(grown / (length - warmup))
    return torch.stack(rates).mean(0).sort(descending=True).values


def gru_step(weights: Sequence[Tensor]) -> Step:
    """Return the step of a GRU with weights W, U and two biases."""
    w_ih, w_hh, b_ih, b_hh = (w.detach().double() for w in weights)

    def step(h: Tensor, x: Tensor) -> Tensor:
        ri, zi, ni = (w_ih @ x + b_ih).chunk(3)
        rh, zh, nh = (w_hh @ h + b_hh).chunk(3)
        r, z = torch.sigmoid(ri + rh), torch.sigmoid(zi + zh)
        n = torch.tanh(ni + r * nh)
        return (1 - z) * n + z * h

    return step


def lstm_step(weights: Sequence[Tensor]) -> Step:
    """Return the step of an LSTM over (h, c)."""
    w_ih, w_hh, b_ih, b_hh = (w.detach().double() for w in weights)
    n = w_hh.shape[1]

    def step(s: Tensor, x: Tensor) -> Tensor:
        h, c = s[:n], s[n:]
        i, f, g, o = (w_ih @ x + b_ih + w_hh @ h + b_hh).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c])

    return step


def rnn_step(weights: Sequence[Tensor]) -> Step:
    """Return the step of a tanh RNN."""
    w_ih, w_hh, b_ih, b_hh = (w.detach().double() for w in weights)
    return lambda h, x: torch.tanh(w_ih @ x + b_ih + w_hh @ h + b_hh)


def layer_weights(layer: Any, index: int = 0, suffix: str = "") -> list[Tensor]:
    """Return W, U and the biases of a layer."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [getattr(layer, f"{kind}_l{index}{suffix}") for kind in kinds]


def cell_weights(cell: Any) -> list[Tensor]:
    """Return W, U and the biases of a cell."""
    return [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
