"""Models as people write them: loops, cells and layers of their own, decoders, packed sequences.

A reader of the weights alone gets most of them wrong: what a model does between two calls, or in a
forward of its own, is in its exponents.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

FEATURES, UNITS = 3, 6

# Loops over cells --------------------------------------------------------------------------------


class Loop(nn.Module):
    """A loop over a cell that changes the state between calls, or feeds something back.

    Args:
        kind: What it does, see :meth:`change`.
        cell: Class of the cell.
        units: Units of the cell.
    """

    def __init__(self, kind: str, cell: Any = nn.GRUCell, units: int = UNITS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.cell = kind, cell(FEATURES, units)
        self.norm, self.out = nn.LayerNorm(units), nn.Linear(units, FEATURES)
        self.lstm = cell is nn.LSTMCell
        with torch.no_grad():
            self.cell.weight_hh.mul_(2)

    def change(self, new: Tensor, old: Tensor) -> Tensor:
        """Return the hidden state that the next call gets."""
        ways: dict[str, Callable[[], Tensor]] = {
            "plain": lambda: new,
            "feedback": lambda: new,
            "normalised": lambda: self.norm(new),
            "residual": lambda: old + new,
            "residual, normalised": lambda: self.norm(old + new),
            "zoneout": lambda: 0.9 * old + 0.1 * new,
            "decay": lambda: 0.5 * new,
            "detached": lambda: new.detach(),
            "squashed": lambda: torch.tanh(3 * new),
            "skips a unit": lambda: torch.cat([old[..., :1], new[..., 1:]], -1),
        }
        return ways[self.kind]()

    def forward(self, x: Tensor) -> Tensor:
        """Return the last hidden state."""
        h = x.new_zeros(len(x), self.cell.hidden_size)
        if self.kind != "zoneout":
            h = torch.zeros(len(x), self.cell.hidden_size)
        state: Any = (h, h) if self.lstm else h
        y = x[:, 0]
        for t in range(x.shape[1]):
            if self.kind == "leak first":
                kept = 0.7 * state
                state = kept + 0.3 * self.cell(x[:, t], state)
                continue
            if self.kind == "feedback":
                y = x[:, t] + y
            new = self.cell(y if self.kind == "feedback" else x[:, t], state)
            old_h = state[0] if self.lstm else state
            h = self.change(new[0] if self.lstm else new, old_h)
            state = (h, new[1]) if self.lstm else h
            y = torch.tanh(3 * self.out(h))
        last: Tensor = state[0] if self.lstm else state
        return last


class OwnLoop(nn.Module):
    """A plain loop over a cell.

    Args:
        cell: Class of the cell.
        units: Units of the cell.
    """

    def __init__(self, cell: Any, units: int = UNITS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = cell(FEATURES, units)
        self.lstm = isinstance(self.cell, nn.LSTMCell)

    def forward(self, x: Tensor) -> Any:
        """Return the last state."""
        h = x.new_zeros(len(x), self.cell.hidden_size)
        state: Any = (h, h) if self.lstm else h
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state


class Closed(nn.Module):
    """A forecaster that reads its own last output; nothing else drives it.

    Args:
        no_grad: Whether it forbids gradients.
        units: Units of its cell.
    """

    def __init__(self, no_grad: bool = False, units: int = UNITS) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.cell, self.out, self.no_grad = nn.GRUCell(2, units), nn.Linear(units, 2), no_grad
        with torch.no_grad():
            self.cell.weight_ih.mul_(2)
            self.out.weight.mul_(3)

    def forward(self, x: Tensor) -> Tensor:
        """Read the first input, then forecast as many steps as there are inputs."""
        h, y = x.new_zeros(len(x), self.cell.hidden_size), x[:, 0]
        with torch.set_grad_enabled(not self.no_grad):
            for _ in range(x.shape[1]):
                h = self.cell(y, h)
                y = self.out(h)
        last: Tensor = y
        return last


class Siamese(nn.Module):
    """One cell reads two sequences, each from zero.

    Args:
        way: "both directions" of the first sequence, or both sequences.
        units: Units of the cell.
    """

    def __init__(self, way: str, units: int = UNITS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.way = nn.GRUCell(FEATURES, units), way

    def read(self, steps: Any) -> Tensor:
        """Return the state after one sequence."""
        h = steps[0].new_zeros(len(steps[0]), self.cell.hidden_size)
        for x in steps:
            h = self.cell(x, h)
        last: Tensor = h
        return last

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare the two."""
        if self.way == "both directions":
            return self.read(a.unbind(1)) + self.read(a.unbind(1)[::-1])
        return self.read(a.unbind(1)) - self.read(b.unbind(1))


class TwiceAStep(nn.Module):
    """One cell used twice per step, with two states that begin as one tensor.

    Args:
        units: Units of the cell.
    """

    def __init__(self, units: int = UNITS) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.cell, self.enter = nn.GRUCell(units, units), nn.Linear(FEATURES, units)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last upper state."""
        a = b = x.new_zeros(len(x), self.cell.hidden_size)
        for t in range(x.shape[1]):
            a = self.cell(self.enter(x[:, t]), a)
            b = self.cell(a, b)
        return b


class Stacked(nn.Module):
    """Stacked LSTM cells, one below the other, with a layer norm between.

    Args:
        names: Whether the cells are attributes; else they stand in a list.
        units: Units of each.
    """

    def __init__(self, names: bool, units: int = UNITS) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.norm = nn.LayerNorm(units)
        cells = [nn.LSTMCell(FEATURES, units), nn.LSTMCell(units, units)]
        self.named = names
        if names:
            self.low, self.high = cells
        else:
            self.cells = nn.ModuleList(cells)

    def both(self) -> tuple[Any, Any]:
        """Return the lower and the upper cell."""
        return (self.low, self.high) if self.named else (self.cells[0], self.cells[1])

    def forward(self, x: Tensor) -> Tensor:
        """Return the last upper hidden state."""
        low, high = self.both()
        zero = x.new_zeros(len(x), low.hidden_size)
        p, q = (zero, zero), (zero, zero)
        for step in x.unbind(1):
            p = low(step, p)
            q = high(self.norm(p[0]), q)
        return q[0]


class Decoder(nn.Module):
    """The decoder of every seq2seq tutorial: attention, one token at a time.

    Args:
        units: Units of the decoder and of what it attends to.
    """

    def __init__(self, units: int = UNITS) -> None:
        super().__init__()
        torch.manual_seed(0)
        n = units
        self.embedding, self.gru = nn.Embedding(50, n), nn.GRU(2 * n, n, batch_first=True)
        self.out = nn.Linear(n, 50)
        self.q, self.k, self.v = nn.Linear(n, n), nn.Linear(n, n), nn.Linear(n, 1)

    def forward(self, memory: Tensor, h: Tensor, target: Tensor) -> Tensor:
        """Return logits of the tokens that follow ``target``."""
        outs = []
        for t in range(target.shape[1]):
            query = h.permute(1, 0, 2)
            weights = torch.softmax(self.v(torch.tanh(self.q(query) + self.k(memory))), 1)
            context = (weights * memory).sum(1, keepdim=True)
            token = self.embedding(target[:, t : t + 1])
            o, h = self.gru(torch.cat([token, context], 2), h)
            outs.append(self.out(o))
        return torch.cat(outs, 1)


class LooksBack(nn.Module):
    """Attention over its own earlier states: more than the last state is remembered.

    Args:
        units: Units of the cell.
    """

    def __init__(self, units: int = UNITS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRUCell(FEATURES + units, units)

    def states(self, x: Tensor, h: Tensor) -> list[Tensor]:
        """Return the state before each step and after the last."""
        past = [h]
        for step in x.unbind(1):
            kept = torch.stack(past[-5:], 1)
            weights = torch.softmax((kept * h.unsqueeze(1)).sum(2), 1).unsqueeze(2)
            h = self.cell(torch.cat([step, (weights * kept).sum(1)], 1), h)
            past.append(h)
        return past

    def forward(self, x: Tensor) -> Tensor:
        """Return the last state."""
        return self.states(x, x.new_zeros(len(x), self.cell.hidden_size))[-1]


class Episodes(nn.Module):
    """The state is set to zero where an episode ends."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRUCell(FEATURES, UNITS)

    def forward(self, x: Tensor, done: Tensor) -> Tensor:
        """Return the last state."""
        h = x.new_zeros(len(x), self.cell.hidden_size)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h * (1 - done[:, t : t + 1]))
        return h


# Cells and layers with a forward of their own ----------------------------------------------------


class NormalisedCell(nn.LSTMCell):
    """An LSTM with layer normalisation of gates and cell.

    Args:
        i: Features.
        h: Units.
    """

    def __init__(self, i: int, h: int) -> None:
        super().__init__(i, h)
        self.a, self.b, self.n = nn.LayerNorm(4 * h), nn.LayerNorm(4 * h), nn.LayerNorm(h)

    def forward(  # type: ignore[override]
        self, x: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return h and c."""
        h, c = state
        gates = self.a(F.linear(x, self.weight_ih, self.bias_ih))
        gates = gates + self.b(F.linear(h, self.weight_hh, self.bias_hh))
        i, f, g, o = gates.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * self.n(c).tanh(), c


class PeepholeCell(nn.LSTMCell):
    """An LSTM whose gates see the cell.

    Args:
        i: Features.
        h: Units.
    """

    def __init__(self, i: int, h: int) -> None:
        super().__init__(i, h)
        self.peep = nn.Parameter(torch.randn(3, h))

    def forward(  # type: ignore[override]
        self, x: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return h and c."""
        h, c = state
        gates = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(
            h, self.weight_hh, self.bias_hh
        )
        i, f, g, o = gates.chunk(4, -1)
        new = (f + self.peep[0] * c).sigmoid() * c + (i + self.peep[1] * c).sigmoid() * g.tanh()
        return (o + self.peep[2] * new).sigmoid() * new.tanh(), new


class ZoneoutCell(nn.GRUCell):
    """Zoneout: units keep their value by chance in training, on average in eval mode."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:  # type: ignore[override]
        """Return the state."""
        new: Tensor = super().forward(x, h)
        if self.training:
            keep = torch.bernoulli(torch.full_like(h, 0.5))
            return keep * h + (1 - keep) * new
        return 0.5 * h + 0.5 * new


class ScaledCell(nn.GRUCell):
    """A cell that doubles its input."""

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """Return the state."""
        new: Tensor = super().forward(2 * x, h)
        return new


class LeakyRNN(nn.RNN):
    """A whole layer whose loop is in its forward, and never calls a kernel."""

    def forward(self, x: Any, hx: Any = None) -> Any:
        """Return the states, and the last."""
        h, out = x.new_zeros(x.shape[0], self.hidden_size), []
        w_ih, w_hh, b_ih, b_hh = self.all_weights[0]
        for t in range(x.shape[1]):
            new = F.linear(x[:, t], w_ih, b_ih)
            h = 0.9 * h + 0.1 * torch.tanh(new + F.linear(h, w_hh, b_hh))
            out.append(h)
        return torch.stack(out, 1), h


class DecayGRU(nn.GRU):
    """A layer that runs its kernel step by step, and decays the state before each."""

    def forward(self, x: Any, h: Any = None) -> Any:
        """Return the states, and the last."""
        h, out = x.new_zeros(1, len(x), self.hidden_size), []
        for t in range(x.shape[1]):
            _, h = super().forward(x[:, t : t + 1], 0.5 * h)
            out.append(h[0])
        return torch.stack(out, 1), h


class ScaledLSTM(nn.LSTM):
    """A layer that triples its inputs."""

    def forward(self, x: Any, hx: Any = None) -> Any:
        """Return outputs and state."""
        return super().forward(3 * x, hx)


# Models around whole layers ----------------------------------------------------------------------


class Model(nn.Module):
    """A model around one layer.

    Args:
        layer: Class of the layer.
        seed: Seeds the weights.
        units: Units of the layer.
        **options: Of the layer.
    """

    def __init__(self, layer: Any, seed: int = 0, units: int = UNITS, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.rnn = layer(FEATURES, units, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's outputs."""
        out: Tensor = self.rnn(x)[0]
        return out


class ByChunks(nn.Module):
    """A layer that reads a few steps at a time.

    Args:
        layer: Class of the layer.
        chunk: Steps of a call.
        units: Units of the layer.
        **options: Of the layer.
    """

    def __init__(self, layer: Any, chunk: int, units: int = UNITS, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.chunk = layer(FEATURES, units, batch_first=True, **options), chunk

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of all steps."""
        state, out = None, []
        for part in x.split(self.chunk, 1):
            y, state = self.rnn(part, state)
            out.append(y)
        return torch.cat(out, 1)


class Packs(nn.Module):
    """Packs sequences of unequal lengths.

    Args:
        layer: An LSTM or a GRU, batch first.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.lstm = layer

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the outputs, padded."""
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out: Tensor = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]
        return out


class EncoderDecoder(nn.Module):
    """Two layers, the second of which begins where the first ended.

    Args:
        units: Units of the encoder; the decoder has one more.
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.GRU(FEATURES, units, batch_first=True)
        self.decoder = nn.GRU(FEATURES, units + 1, batch_first=True)
        self.bridge = nn.Linear(units, units + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the decoder's outputs."""
        h = self.encoder(x)[1]
        out: Tensor = self.decoder(x.flip(1), torch.tanh(self.bridge(h)))[0]
        return out


class Stateful(nn.Module):
    """A model that goes on where its last batch ended.

    Args:
        units: Units of its LSTM.
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.LSTM(FEATURES, units, batch_first=True)
        self.kept: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        y, h = self.rnn(x, self.kept)
        self.kept = tuple(part.detach() for part in h)
        out: Tensor = y
        return out
