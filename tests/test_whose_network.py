"""The numbers are those of the network that really runs.

Each model here is one that a reader of its weights alone gets wrong: what it does between two
calls, or in a forward of its own, is in its exponents. The truth beside is a product of autodiff
Jacobians, from the same start. The models that ``docs/models.md`` lists are held to their truths in
``test_models_page.py``.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import lyap_optuna as lyap
from lyap_optuna.dynamics import NotMeasurableError, resolve
from studies.models.cases import loop_step
from studies.models.networks import (
    FEATURES,
    UNITS,
    ByChunks,
    Closed,
    Decoder,
    Episodes,
    LeakyRNN,
    LooksBack,
    Loop,
    Model,
    NormalisedCell,
    OwnLoop,
    PeepholeCell,
    ScaledCell,
    ScaledLSTM,
    Siamese,
    Stacked,
    ZoneoutCell,
)
from studies.models.truth import (
    cell_weights,
    gru_step,
    layer_weights,
    lstm_step,
    true_exponents,
)

torch.set_default_dtype(torch.float32)
STEPS = 60


def inputs(batch=3, steps=STEPS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, steps, FEATURES, generator=generator, dtype=torch.float64)


def spectrum(model, x, **options):
    return lyap.lyapunov_spectrum(model, x, start="identity", **options).exponents


def path(model, x, **options):
    return {name: layer.path for name, layer in resolve(model, x, **options).items()}


def agree(measured, truth, tolerance=1e-6):
    truth = truth[: len(measured)]
    known = (measured > -25) | (truth > -25)  # below is what rounding leaves of minus infinity
    assert torch.allclose(measured[known], truth[known], atol=tolerance, rtol=0)


def double(module):
    return copy.deepcopy(module).double().eval()


# What a model does between two calls of a cell -------------------------------------------------


KINDS = [
    ("plain", "fast"),
    ("detached", "fast"),
    ("normalised", "general"),
    ("residual", "general"),
    ("residual, normalised", "general"),
    ("zoneout", "general"),
    ("decay", "general"),
    ("squashed", "general"),
    ("skips a unit", "general"),
]


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
@pytest.mark.parametrize(("kind", "way"), KINDS)
def test_a_state_that_is_changed_between_calls(kind, way, cell):
    model, x = Loop(kind, cell), inputs()
    assert path(model, x.float()) == {"cell": way}
    size = UNITS * (2 if model.lstm else 1)
    seen = x if way == "fast" else x[:, :-1]
    truth = true_exponents(loop_step(model), torch.zeros(3, size), seen.float(), total=STEPS)
    agree(spectrum(model, x.float()), truth)


def test_a_leak_that_is_computed_before_the_call():
    model, x = Loop("leak first"), inputs()
    truth = true_exponents(loop_step(model), torch.zeros(3, UNITS), x[:, :-1].float(), total=STEPS)
    agree(spectrum(model, x.float()), truth)
    readout = lyap.lyapunov_readout(model, x.float())
    assert readout.mean == pytest.approx(float(truth.mean()), abs=1e-6)


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell])
@pytest.mark.parametrize("kind", [kind for kind, way in KINDS if way == "general"])
def test_the_readout_of_the_general_path_is_its_spectrum(kind, cell):
    model, x = Loop(kind, cell), inputs().float()
    readout, whole = lyap.lyapunov_readout(model, x), lyap.lyapunov_spectrum(model, x)
    assert readout.max >= float(whole.exponents[0]) - 1e-6  # it sees the whole block
    assert readout.mean == pytest.approx(whole.mean, abs=1e-6)
    assert torch.allclose(readout.exponents, whole.exponents[: len(readout.exponents)], atol=1e-6)


def test_a_loop_that_forbids_gradients_is_the_same_dynamics():
    x = inputs()[..., :2].float()
    free, bound = (lyap.lyapunov_readout(Closed(no_grad), x) for no_grad in (False, True))
    assert (bound.max, bound.mean) == (free.max, free.mean)


# Cells and layers with a forward of their own --------------------------------------------------


@pytest.mark.parametrize("cell", [NormalisedCell, PeepholeCell, ZoneoutCell, ScaledCell])
def test_cells_with_a_forward_of_their_own(cell):
    model, x = OwnLoop(cell), inputs().float()
    d = double(model).cell

    def step(s, x):
        if not model.lstm:
            return d(x[None], s[None])[0]
        return torch.cat(d(x[None], (s[None, :UNITS], s[None, UNITS:])), 1)[0]

    size = UNITS * (2 if model.lstm else 1)
    truth = true_exponents(step, torch.zeros(3, size), x)
    agree(spectrum(model, x), truth)
    agree(spectrum(model.cell, x), truth)  # the cell itself, with whole sequences


def test_a_layer_whose_loop_is_its_own():
    model, x = Model(LeakyRNN), inputs().float()
    w_ih, w_hh, b_ih, b_hh = (w.detach().double() for w in layer_weights(model.rnn))

    def step(h, x):
        return 0.9 * h + 0.1 * torch.tanh(w_ih @ x + b_ih + w_hh @ h + b_hh)

    truth = true_exponents(step, torch.zeros(3, UNITS), x[:, :-1], total=STEPS)
    agree(spectrum(model, x), truth)
    agree(spectrum(model.rnn, x), truth)


def test_a_layer_that_scales_its_inputs():
    model, x = Model(ScaledLSTM), inputs().float()
    truth = true_exponents(
        lstm_step(layer_weights(model.rnn)), torch.zeros(3, 2 * UNITS), 3 * x, start=None
    )
    agree(spectrum(model.double(), x.double()), truth)


class HiddenCell(nn.LSTM):
    """A layer whose own loop keeps a cell state that nobody can see."""

    def forward(self, x, hx=None):
        h = c = x.new_zeros(x.shape[0], self.hidden_size)
        out = []
        for t in range(x.shape[1]):
            gates = F.linear(x[:, t], self.weight_ih_l0, self.bias_ih_l0)
            gates = gates + F.linear(h, self.weight_hh_l0, self.bias_hh_l0)
            i, f, g, o = gates.chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
        return torch.stack(out, 1), (h, c)


def test_a_state_that_cannot_be_seen_is_refused():
    with pytest.raises(NotMeasurableError, match="RecurrentDynamics"):
        lyap.lyapunov_readout(Model(HiddenCell), inputs().float())


def test_hooks_that_change_outputs():
    x = inputs().float()
    hooked = OwnLoop(nn.GRUCell)
    hooked.cell.register_forward_hook(lambda module, args, result: 0.5 * result)
    cell = gru_step(cell_weights(hooked.cell))
    truth = true_exponents(lambda s, z: 0.5 * cell(s, z), torch.zeros(3, UNITS), x)
    agree(spectrum(hooked, x), truth)


def test_hooks_leave_no_trace():
    seen = []
    model = OwnLoop(nn.GRUCell)
    model.cell.register_forward_hook(lambda module, args, result: seen.append(len(result)))
    lyap.lyapunov_readout(model, inputs().float())
    assert seen == []


# Steps, chunks, sequences, resets ----------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("chunk", [1, 7, 20])
def test_a_layer_called_for_a_few_steps_at_a_time(layer, chunk, layers):
    x = inputs()
    whole = ByChunks(layer, STEPS, num_layers=layers).double()
    parts = ByChunks(layer, chunk, num_layers=layers).double()
    assert torch.allclose(spectrum(parts, x), spectrum(whole, x), atol=1e-9)
    a, b = lyap.lyapunov_readout(parts, x), lyap.lyapunov_readout(whole, x)
    assert (a.max, a.mean) == pytest.approx((b.max, b.mean), abs=1e-9)


def test_a_state_reset_within_a_sequence():
    model, x = Episodes(), inputs().float()
    done = torch.zeros(3, STEPS)
    done[0, 20] = done[1, 33] = done[1, 50] = 1
    assert lyap.lyapunov_spectrum(model, (x, done)).max == -torch.inf
    readout = lyap.lyapunov_readout(model, (x, done), warmup=3)
    pieces = [(0, 0, 20), (0, 20, 60), (1, 0, 33), (1, 33, 50), (1, 50, 60), (2, 0, 60)]
    assert readout.sequences == len(pieces)
    step = gru_step(cell_weights(model.cell))
    # mean exponents of the pieces, each over its own steps: the last call's result is not seen
    means = []
    for row, first, last in pieces:
        whole = true_exponents(
            step, torch.zeros(1, UNITS), x[row : row + 1, first : last - 1], warmup=3
        )
        means.append(float(whole.mean()))
    assert readout.mean == pytest.approx(sum(means) / len(means), abs=1e-6)


def test_no_piece_is_long_enough():
    model, x = Episodes(), inputs().float()
    with pytest.raises(NotMeasurableError):
        lyap.lyapunov_readout(model, (x, torch.ones(3, STEPS)))


@pytest.mark.parametrize("way", ["two sequences", "both directions"])
def test_one_cell_over_several_sequences(way):
    model, x = Siamese(way).double(), inputs()
    a, b = x[:, :30], (x[:, 30:] if way == "two sequences" else x[:, :30].flip(1))
    truth = true_exponents(
        gru_step(cell_weights(model.cell)), torch.zeros(6, UNITS), torch.cat([a, b])
    )
    assert path(model, (a, x[:, 30:])) == {"cell": "fast"}
    whole = lyap.lyapunov_spectrum(model, (a, x[:, 30:]), start="identity")
    assert whole.per_input.shape[0] == 6
    assert whole.steps + whole.warmup == 30
    agree(whole.exponents, truth)


@pytest.mark.parametrize("names", [False, True])
def test_stacked_cells_are_one_system(names):
    model, x = Stacked(names), inputs()
    d = double(model)
    low, high = (lstm_step(cell_weights(cell)) for cell in d.both())

    def step(s, x):
        p = low(s[: 2 * UNITS], x)
        return torch.cat([p, high(s[2 * UNITS :], d.norm(p[:UNITS]))])

    truth = true_exponents(step, torch.zeros(3, 4 * UNITS), x.float())
    whole = lyap.lyapunov_spectrum(model, x.float(), start="identity")
    assert whole.layer == ("low+high" if names else "cells")
    agree(whole.exponents, truth)


# Other ways to write a loop ----------------------------------------------------------------------


class Written(nn.Module):
    """A forward given as a function."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = [function]
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args):
        return self.function[0](self, *args)


def gru_cell(seed=0):
    torch.manual_seed(seed)
    return nn.GRUCell(FEATURES, UNITS)


def keywords(self, x):
    h = x.new_zeros(len(x), UNITS)
    for step in x.unbind(1):
        h = self.cell(input=step, hx=h)
    return h


def in_place(self, x):
    h = x.new_zeros(len(x), UNITS)
    for step in x.unbind(1):
        h[:] = self.cell(step, h)
    return h


def in_an_array(self, x):
    states = x.new_zeros(x.shape[1] + 1, len(x), UNITS)
    for t, step in enumerate(x.unbind(1)):
        states[t + 1] = self.cell(step, states[t])
    return states


def checkpointed(self, x):
    h = x.new_zeros(len(x), UNITS)
    for step in x.unbind(1):
        h = torch.utils.checkpoint.checkpoint(self.cell, step, h, use_reentrant=False)
    return h


@pytest.mark.parametrize("function", [keywords, in_place, in_an_array, checkpointed])
def test_loops_that_are_written_in_other_ways(function):
    model, x = Written(function, cell=gru_cell()), inputs().float()
    truth = true_exponents(gru_step(cell_weights(model.cell)), torch.zeros(3, UNITS), x)
    assert path(model, x) == {"cell": "fast"}
    agree(spectrum(model, x), truth)


def from_a_learned_state(self, x):
    h = self.begin.expand(len(x), UNITS)
    for step in x.unbind(1):
        h = 0.5 * h + 0.5 * self.cell(step, h)
    return h


def computed_state(self, x):
    h = torch.tanh(self.enter(x[:, 0]))
    for step in x.unbind(1):
        h = 0.5 * h + 0.5 * self.cell(step, h)
    return h


@pytest.mark.parametrize("function", [from_a_learned_state, computed_state])
def test_a_leaky_loop_from_a_state_that_is_no_zero(function):
    torch.manual_seed(1)
    begin, enter = nn.Parameter(torch.randn(1, UNITS)), nn.Linear(FEATURES, UNITS)
    model, x = Written(function, cell=gru_cell(), begin=begin, enter=enter), inputs().float()
    cell, d = gru_step(cell_weights(model.cell)), double(enter)
    initial = begin.detach().expand(3, -1)
    if function is computed_state:
        initial = torch.tanh(d(x[:, 0].double())).detach()
    truth = true_exponents(lambda s, z: 0.5 * s + 0.5 * cell(s, z), initial, x[:, :-1], total=STEPS)
    agree(spectrum(model, x), truth)


def from_one_tensor(self, x):
    h = c = x.new_zeros(len(x), UNITS)
    for step in x.unbind(1):
        h, new = self.cell(step, (h, c))
        c = 0.9 * c + 0.1 * new
    return h


def from_the_halves_of_a_tensor(self, x):
    h, c = x.new_zeros(2, len(x), UNITS)
    for step in x.unbind(1):
        h, new = self.cell(step, (h, c))
        c = 0.9 * c + 0.1 * new
    return h


@pytest.mark.parametrize("function", [from_one_tensor, from_the_halves_of_a_tensor])
def test_two_states_that_begin_as_one_tensor(function):
    torch.manual_seed(0)
    model, x = Written(function, cell=nn.LSTMCell(FEATURES, UNITS)).double(), inputs()
    cell = lstm_step(cell_weights(model.cell))

    def step(s, x):
        new = cell(s, x)
        return torch.cat([new[:UNITS], 0.9 * s[UNITS:] + 0.1 * new[UNITS:]])

    truth = true_exponents(step, torch.zeros(3, 2 * UNITS), x[:, :-1], total=STEPS)
    assert path(model, x) == {"cell": "general"}
    agree(spectrum(model, x), truth)


def leaky_stack(self, x):
    states = [x.new_zeros(len(x), UNITS)] * 2
    for step in x.unbind(1):
        low = 0.5 * states[0] + 0.5 * self.low(step, states[0])
        states = [low, 0.5 * states[1] + 0.5 * self.high(low, states[1])]
    return states


def test_one_tensor_that_is_used_as_two_states_is_refused():
    low, high = gru_cell(), nn.GRUCell(UNITS, UNITS)
    refused(Written(leaky_stack, low=low, high=high).double(), inputs(), "zeros.clone()")


@pytest.mark.parametrize("tied", ["weight_ih", "weight_hh", "bias_hh"])
def test_cells_that_share_some_of_their_weights(tied):
    torch.manual_seed(0)
    low, high = (nn.GRUCell(FEATURES, FEATURES).double() for _ in range(2))
    setattr(high, tied, getattr(low, tied))

    def forward(self, x):
        a, b = torch.zeros(2, len(x), FEATURES)
        for step in x.unbind(1):
            a = self.low(step + b, a)
            b = self.high(a, b)
        return b

    first, second = (gru_step(cell_weights(cell)) for cell in (low, high))

    def step(s, x):
        a = first(s[:FEATURES], x + s[FEATURES:])
        return torch.cat([a, second(s[FEATURES:], a)])

    model, x = Written(forward, low=low, high=high), inputs()
    agree(spectrum(model, x), true_exponents(step, torch.zeros(3, 2 * FEATURES), x))


@pytest.mark.parametrize("layer", ["low", "high"])
def test_layers_that_share_some_of_their_weights(layer):
    torch.manual_seed(0)
    low, high = (nn.GRU(FEATURES, FEATURES, batch_first=True).double() for _ in range(2))
    high.weight_ih_l0, high.weight_hh_l0 = low.weight_ih_l0, low.weight_hh_l0
    model, x = Written(lambda self, x: self.high(self.low(x)[0]), low=low, high=high), inputs()
    driven = {"low": x, "high": low(x)[0].detach()}[layer]
    step = gru_step(layer_weights(getattr(model, layer)))
    truth = true_exponents(step, torch.zeros(3, FEATURES), driven)
    agree(spectrum(model, x, layer=layer), truth)


def under_vmap(self, x):
    h = x.new_zeros(len(x), UNITS)
    for step in x.unbind(1):
        h = torch.vmap(lambda x, h: self.cell(x[None], h[None])[0])(step, h)
    return h


def vmap_between(self, x):
    h = x.new_zeros(len(x), UNITS)
    for step in x.unbind(1):
        h = torch.vmap(lambda h: 0.5 * h)(self.cell(step, h))
    return h


def test_vmap_around_a_cell_is_refused_and_between_calls_followed():
    cell = gru_cell().double()
    refused(Written(under_vmap, cell=cell), inputs(), "vmap")
    truth = spectrum(Written(halves, cell=cell), inputs())
    agree(spectrum(Written(vmap_between, cell=cell), inputs()), truth)


def halves(self, x):
    h = x.new_zeros(len(x), UNITS)
    for step in x.unbind(1):
        h = 0.5 * self.cell(step, h)
    return h


def twice_on_one_state(self, x):
    h = x.new_zeros(len(x), UNITS)
    for step in x.unbind(1):
        h = 0.4 * self.cell(step, h) + 0.4 * self.cell(-step, h)
    return h


def test_a_cell_called_twice_on_one_state():
    model, x = Written(twice_on_one_state, cell=gru_cell()), inputs().float()
    cell = gru_step(cell_weights(model.cell))
    truth = true_exponents(
        lambda s, z: 0.4 * cell(s, z) + 0.4 * cell(s, -z),
        torch.zeros(3, UNITS),
        x[:, :-1],
        total=STEPS,
    )
    agree(spectrum(model, x), truth)


def in_series(self, x):
    h = x.new_zeros(len(x), UNITS)
    for step in x.unbind(1):
        h = self.other(torch.zeros_like(step), self.cell(step, h))
    return h


def test_two_cells_in_series_on_one_state():
    model, x = Written(in_series, cell=gru_cell(), other=gru_cell(1)), inputs().float()
    one, two = (gru_step(cell_weights(cell)) for cell in (model.cell, model.other))
    truth = true_exponents(
        lambda s, z: two(one(s, z), torch.zeros_like(z)),
        torch.zeros(3, UNITS),
        x[:, :-1],
        total=STEPS,
    )
    agree(spectrum(model, x, layer="cell"), truth)
    with pytest.raises(NotMeasurableError, match="layer="):
        lyap.lyapunov_readout(model, x)


def coupled(self, x):
    a, b = x.new_zeros(len(x), UNITS), x.new_zeros(len(x), UNITS)
    for step in x.unbind(1):
        both = torch.cat([step, b], 1), torch.cat([step, a], 1)
        a, b = self.cell(both[0], a), self.other(both[1], b)
    return a


def test_two_cells_that_drive_one_another():
    torch.manual_seed(0)
    parts = [nn.GRUCell(FEATURES + UNITS, UNITS) for _ in range(2)]
    model, x = Written(coupled, cell=parts[0], other=parts[1]), inputs().float()
    one, two = (gru_step(cell_weights(cell)) for cell in parts)

    def step(s, z):
        a, b = s[:UNITS], s[UNITS:]
        return torch.cat([one(a, torch.cat([z, b])), two(b, torch.cat([z, a]))])

    agree(spectrum(model, x), true_exponents(step, torch.zeros(3, 2 * UNITS), x))


def halved_once(self, x):
    _, h = self.rnn(x[:, :40])
    return self.rnn(x[:, 40:], 0.5 * h)[0]


def test_chunks_of_several_steps_between_which_the_state_is_changed():
    torch.manual_seed(0)
    model = Written(halved_once, rnn=nn.GRU(FEATURES, UNITS, batch_first=True))
    x = inputs().float()
    cell = gru_step(layer_weights(model.rnn))
    marked = torch.cat([torch.zeros(3, STEPS, 1), x], 2)
    marked[:, 39, 0] = 1  # what this step leads to is halved
    truth = true_exponents(
        lambda s, z: (1 - 0.5 * z[0]) * cell(s, z[1:]),
        torch.zeros(3, UNITS),
        marked[:, :-1],
        total=STEPS,
    )
    agree(spectrum(model, x), truth)


def both_directions_in_chunks(self, x):
    state = None
    for part in x.split(20, 1):
        y, state = self.rnn(part, state)
    return y


def test_what_has_no_steps_is_refused():
    rnn = nn.GRU(FEATURES, UNITS, batch_first=True, bidirectional=True)
    with pytest.raises(NotMeasurableError, match="bidirectional"):
        lyap.lyapunov_readout(Written(both_directions_in_chunks, rnn=rnn), inputs().float())

    def stateless(self, x):
        return sum(self.cell(step) for step in x.unbind(1))

    with pytest.raises(NotMeasurableError, match="handed on"):
        lyap.lyapunov_readout(Written(stateless, cell=gru_cell()), inputs().float())

    def inference(self, x):
        with torch.inference_mode():
            return 2 * keywords(self, x)

    with pytest.raises(NotMeasurableError, match="inference_mode"):
        lyap.lyapunov_readout(Written(inference, cell=gru_cell()), inputs().float())


def fed_back_detached(self, x):
    h, y = x.new_zeros(len(x), UNITS), x[:, 0]
    for step in x.unbind(1):
        h = self.cell(step + y, h)
        y = self.out(h).detach()
    return h


def test_an_output_that_is_detached_and_fed_back():
    torch.manual_seed(3)
    model = Written(fed_back_detached, cell=gru_cell(), out=nn.Linear(UNITS, FEATURES))
    x = inputs().float()
    cell, d = gru_step(cell_weights(model.cell)), double(model.out)

    def step(s, z):
        return cell(s, z[1:] + torch.where(z[:1] > 0, z[1:], d(s)))

    marked = torch.cat([torch.zeros(3, STEPS, 1), x], 2)
    marked[:, 0, 0] = 1
    agree(spectrum(model, x), true_exponents(step, torch.zeros(3, UNITS), marked))


def test_what_would_underflow_is_multiplied_step_by_step():
    def shrinking(self, x):
        h = x.new_zeros(len(x), UNITS)
        for step in x.unbind(1):
            h = 0.1 * self.cell(step, h)
        return h

    model, x = Written(shrinking, cell=gru_cell()), inputs(steps=400).float()
    readout, whole = lyap.lyapunov_readout(model, x), lyap.lyapunov_spectrum(model, x)
    assert readout.max == pytest.approx(whole.max, abs=0.01)
    assert readout.mean == pytest.approx(whole.mean, abs=0.03)


def test_a_decoder_leaves_what_it_is_given():
    model = Decoder()
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(4, 30, UNITS, generator=generator)
    h = torch.randn(1, 4, UNITS, generator=generator)
    before = h.clone(), memory.clone()
    target = torch.randint(0, 50, (4, 40), generator=generator)
    lyap.lyapunov_spectrum(model, (memory, h, target))
    assert torch.equal(h, before[0])
    assert torch.equal(memory, before[1])


def test_attention_over_earlier_states_has_no_mean():
    model, x = LooksBack(), inputs(steps=100)
    assert lyap.lyapunov_readout(model, x.float()).mean is None
    with pytest.raises(NotMeasurableError, match="leading"):
        lyap.lyapunov_spectrum(model, x.float())


# What a hostile reader tried ---------------------------------------------------------------------


class MaskFirst(nn.GRUCell):
    def forward(self, x, mask=None, h=None):
        new = super().forward(x, h)
        return new if mask is None else mask * new + (1 - mask) * h


class MaskLast(nn.LSTMCell):
    def forward(self, x, state, mask):
        h, c = state
        return super().forward(x, (h * mask, c))


def with_keyword(self, x):
    h = x.new_zeros(len(x), UNITS)
    for step in x.unbind(1):
        h = self.cell(step, h=h)
    return h


def test_another_argument_is_not_the_state():
    torch.manual_seed(0)
    model, x = Written(with_keyword, cell=MaskFirst(FEATURES, UNITS)), inputs().float()
    truth = true_exponents(gru_step(cell_weights(model.cell)), torch.zeros(3, UNITS), x)
    agree(spectrum(model, x), truth)

    mask = torch.full((3, UNITS), 0.7)

    def dropped(self, x):
        h = c = x.new_zeros(len(x), UNITS)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c), mask.to(x))
        return h

    model = Written(dropped, cell=MaskLast(FEATURES, UNITS))
    cell = lstm_step(cell_weights(model.cell))
    scale = torch.cat([torch.full((UNITS,), float(mask[0, 0])), torch.ones(UNITS)]).double()
    truth = true_exponents(lambda s, z: cell(scale * s, z), torch.zeros(3, 2 * UNITS), x)
    agree(spectrum(model, x), truth)


class LearnedStart(nn.GRU):
    def forward(self, x, hx=None):
        if hx is None:
            hx = torch.full((1, len(x), self.hidden_size), 3.0).to(x)
        return super().forward(x, hx)


def test_a_subclass_begins_where_it_likes():
    torch.manual_seed(0)
    layer, x = LearnedStart(FEATURES, UNITS, batch_first=True), inputs(steps=15)
    truth = true_exponents(gru_step(layer_weights(layer)), torch.full((3, UNITS), 3.0), x)
    agree(spectrum(layer.double(), x), truth)


def refused(model, x, reason):
    with pytest.raises(NotMeasurableError, match=reason):
        lyap.lyapunov_readout(model, x)


def test_rows_that_act_on_one_another_are_refused():
    def pooled(self, x):
        h = x.new_zeros(len(x), UNITS)
        for step in x.unbind(1):
            h = self.cell(step, h + 3 * (h - h.mean(0, keepdim=True)))
        return h

    def spoken(self, x):
        h = x.new_zeros(len(x), UNITS)
        for step in x.unbind(1):
            h = self.cell(step + self.out(h).mean(0, keepdim=True), h)
        return h

    x = inputs().float()
    refused(Written(pooled, cell=gru_cell()), x, "act on one another")
    refused(Written(pooled, cell=gru_cell()), x[:1].expand(3, -1, -1), "act on one another")
    refused(Written(spoken, cell=gru_cell(), out=nn.Linear(UNITS, 3)), x, "act on one another")


def test_calls_that_feed_one_another_are_no_sequences():
    x = inputs().float()

    def chunks(self, x):
        y = x.new_zeros(len(x), FEATURES)
        for part in x.split(20, 1):
            y = self.out(self.rnn(part + y.unsqueeze(1))[0][:, -1])
        return y

    rnn = nn.GRU(FEATURES, UNITS, batch_first=True)
    refused(Written(chunks, rnn=rnn, out=nn.Linear(UNITS, 3)), x, "reaches the inputs")
    tied = nn.GRU(FEATURES, FEATURES, batch_first=True)
    refused(Written(lambda self, x: self.rnn(self.rnn(x)[0])[0], rnn=tied), x, "reaches the inputs")


class Substeps(nn.RNN):
    def forward(self, x, hx=None):
        h = x.new_zeros(1, len(x), self.hidden_size)
        for step in x.split(1, 1):
            for _ in range(2):
                h = 0.5 * h + 0.5 * super().forward(step, h)[1]
        return h, h


class OneByOne(nn.LSTM):
    """Its layers one after the other, with something between them."""

    def forward(self, x, hx=None):
        zero = x.new_zeros(1, len(x), self.hidden_size)
        for i in range(self.num_layers):
            weights = self._flat_weights[4 * i : 4 * i + 4]
            x, *_ = torch.lstm(x, (zero, zero), weights, True, 1, 0.0, False, False, True)
            x = F.dropout(x, 0.5, self.training)
        return x, None


def test_steps_and_layers_of_a_loop_of_its_own_are_told_apart():
    x = inputs()
    refused(Model(Substeps).double(), x, "steps of its own")
    model = Model(OneByOne, num_layers=2).double()
    stock = nn.LSTM(FEATURES, UNITS, 2, batch_first=True).double()
    stock.load_state_dict(model.rnn.state_dict())
    readout, expected = lyap.lyapunov_readout(model, x), lyap.lyapunov_readout(stock, x)
    assert list(readout.layers) == ["rnn.l0", "rnn.l1"]
    assert readout.mean == pytest.approx(expected.mean, abs=1e-9)


def test_cells_that_take_turns_are_no_step():
    def alternating(self, x):
        h = x.new_zeros(len(x), UNITS)
        for t, step in enumerate(x.unbind(1)):
            h = (self.cell if t % 2 else self.other)(step, h)
        return h

    refused(Written(alternating, cell=gru_cell(), other=gru_cell(1)), inputs().float(), "layer=")


def test_a_memory_that_is_used_at_rare_steps():
    def rare(self, x):
        h = kept = x.new_zeros(len(x), UNITS)
        for t, step in enumerate(x.unbind(1)):
            if t in (5, 12, 26, 33):
                h, kept = h + 3 * kept, h
            h = self.cell(step, h)
        return h

    model, x = Written(rare, cell=gru_cell()), inputs(steps=40).float()
    assert lyap.lyapunov_readout(model, x).mean is None
    with pytest.raises(NotMeasurableError, match="Jacobians"):
        lyap.lyapunov_spectrum(model, x)


def test_resets_of_stacked_cells_are_cut_in_a_readout():
    class Episodic(Stacked):
        def forward(self, x, done):
            zero = x.new_zeros(len(x), UNITS)
            low, high = self.both()
            p, q = (zero, zero), (zero, zero)
            for t, step in enumerate(x.unbind(1)):
                keep = 1 - done[:, t : t + 1]
                p = low(step, tuple(keep * part for part in p))
                q = high(self.norm(p[0]), tuple(keep * part for part in q))
            return q[0]

    model, x = Episodic(False), inputs().float()
    done = torch.zeros(3, STEPS)
    done[0, 30] = 1
    readout = lyap.lyapunov_readout(model, (x, done), warmup=5)
    assert -1 < readout.max < 0
    assert lyap.lyapunov_spectrum(model, (x, done)).max == -torch.inf


def test_layers_that_interleave_whole_sequences_are_layers_of_their_own():
    torch.manual_seed(0)
    low, high = nn.GRU(FEATURES, 4, batch_first=True), nn.GRU(4, 6, batch_first=True)
    model = Written(
        lambda self, a, b: self.high(self.low(a)[0])[0] - self.high(self.low(b)[0])[0],
        low=low,
        high=high,
    )
    a, b = inputs().float(), inputs(seed=1).float()
    readout = lyap.lyapunov_readout(model, (a, b))
    assert {n: (p.sequences, p.state_size) for n, p in readout.layers.items()} == {
        "low": (6, 4),
        "high": (6, 6),
    }


def test_a_cell_that_is_called_once_is_no_recurrence():
    torch.manual_seed(0)
    model = Written(
        lambda self, x: self.cell(self.rnn(x)[0][:, -1]),
        rnn=nn.GRU(FEATURES, UNITS, batch_first=True),
        cell=nn.GRUCell(UNITS, UNITS),
    )
    assert list(lyap.lyapunov_readout(model, inputs().float()).layers) == ["rnn"]
    with pytest.raises(NotMeasurableError):
        lyap.lyapunov_readout(model, inputs().float(), layer="cell")


def test_other_ways_to_call_and_to_end():
    x = inputs().float()
    cell = gru_cell()
    truth = true_exponents(gru_step(cell_weights(cell)), torch.zeros(3, UNITS), x)

    def by_forward(self, x):
        h = x.new_zeros(len(x), UNITS)
        for step in x.unbind(1):
            h = self.cell.forward(step, h)
        return h

    agree(spectrum(Written(by_forward, cell=cell), x), truth)

    def ending(self, x):
        h = x.new_zeros(len(x), UNITS)
        for t, step in enumerate(x.unbind(1)):
            n = 3 if t < 30 else 2
            h = self.cell(step[:n], h[:n])
        return h

    refused(Written(ending, cell=cell), x, "fewer sequences")

    def by_numpy(self, x):
        h = x.new_zeros(len(x), UNITS)
        for step in x.unbind(1):
            left = torch.from_numpy(h.detach().numpy().copy())
            h = 0.5 * left.to(h) + 0.5 * self.cell(step, h)
        return h

    refused(Written(by_numpy, cell=cell), x, "numpy")
