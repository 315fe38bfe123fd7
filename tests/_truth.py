"""An independent truth: Jacobians by reverse-mode autodiff, QR at every step, in float64."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import jacrev


def true_exponents(
    step: Callable[[Tensor, Tensor], Tensor],
    initial: Tensor,
    inputs: Tensor,
    warmup: int | None = None,
    start: Tensor | None = None,
    lengths: Sequence[int] | None = None,
    total: int | None = None,
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
            q, r = torch.linalg.qr(jacobian(s, x).detach() @ q)
            if t >= warmup:
                grown += r.diagonal().abs().log()
            s = step(s, x).detach()
        rates.append(grown / (length - warmup))
    return torch.stack(rates).mean(0).sort(descending=True).values


def gru_step(weights: Sequence[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the step of a GRU with weights W, U and two biases."""
    w_ih, w_hh, b_ih, b_hh = (w.detach().double() for w in weights)

    def step(h: Tensor, x: Tensor) -> Tensor:
        ri, zi, ni = (w_ih @ x + b_ih).chunk(3)
        rh, zh, nh = (w_hh @ h + b_hh).chunk(3)
        r, z = torch.sigmoid(ri + rh), torch.sigmoid(zi + zh)
        n = torch.tanh(ni + r * nh)
        return (1 - z) * n + z * h

    return step


def lstm_step(weights: Sequence[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the step of an LSTM over (h, c)."""
    w_ih, w_hh, b_ih, b_hh = (w.detach().double() for w in weights)
    n = w_hh.shape[1]

    def step(s: Tensor, x: Tensor) -> Tensor:
        h, c = s[:n], s[n:]
        i, f, g, o = (w_ih @ x + b_ih + w_hh @ h + b_hh).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c])

    return step


def rnn_step(weights: Sequence[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the step of a tanh RNN."""
    w_ih, w_hh, b_ih, b_hh = (w.detach().double() for w in weights)
    return lambda h, x: torch.tanh(w_ih @ x + b_ih + w_hh @ h + b_hh)


def layer_weights(layer, index: int = 0, suffix: str = "") -> list[Tensor]:
    """Return W, U and the biases of a layer."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [getattr(layer, f"{kind}_l{index}{suffix}") for kind in kinds]


def cell_weights(cell) -> list[Tensor]:
    """Return W, U and the biases of a cell."""
    return [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
