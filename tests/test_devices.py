"""The time loops run on a device without host synchronisation: under fake tensors, which hold no
numbers, any ``.item()`` raises. (No GPU was at hand; what runs here is the same code.)"""

import pytest
import torch
from _networks import KINDS, layer_dynamics, make_layer, state_of
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from lyap_optuna.dynamics import (
    LayerWeights,
    Linearisation,
    StackedDynamics,
    linalg,
    resolve,
)
from lyap_optuna.dynamics.diagonal import DiagonalTrajectory
from lyap_optuna.dynamics.gated import LayerTrajectory, StackTrajectory
from lyap_optuna.spectrum import _growth
from lyap_optuna.spectrum._basis import METHODS
from lyap_optuna.spectrum._schedule import make_schedule


def fake(tensor):
    """A fake tensor of the same shape."""
    return None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype)


@pytest.mark.parametrize("in_one_call", [True, False], ids=["as on a GPU", "as on a CPU"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("layers", [1, 2])
def test_no_host_synchronisation_in_the_time_loop(kind, method, layers, in_one_call, monkeypatch):
    monkeypatch.setattr(linalg, "_in_one_call", lambda device: in_one_call)
    layer = make_layer(kind, units=8, layers=layers, dtype=torch.float32)
    trajectory = resolve(layer, torch.zeros(2, 12, 3), state=state_of(kind))[""].trajectory
    real = trajectory.layers if layers > 1 else [trajectory]
    with FakeTensorMode():
        fakes = [
            LayerTrajectory(
                LayerWeights(*map(fake, vars(part._weights).values())),
                Linearisation(**{n: fake(v) for n, v in vars(part._linearisation).items()}),
            )
            for part in real
        ]
        path = StackTrajectory(fakes) if layers > 1 else fakes[0]
        rows = torch.empty(2, path.state_size, path.state_size)
        schedule = make_schedule(12, 3, 2, batch=2)
        growth = _growth.measure(method, path, rows, schedule, history=True)
        assert growth.rates.shape == (2, path.state_size)
        assert growth.history.shape == (9, path.state_size)
        with pytest.raises(DataDependentOutputException):
            growth.rates.sum().item()


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_gains_of_all_steps_need_no_synchronisation(kind):
    layer = make_layer(kind, units=8, dtype=torch.float32)
    cell = layer_dynamics(layer, state_of(kind)).cells[0]
    with FakeTensorMode():
        cell.weights = LayerWeights(*map(fake, vars(cell.weights).values()))
        path = StackedDynamics([cell]).linearise(torch.zeros(2, 12, 3))
        assert path.states.shape == (2, 12, path.state_size)


def test_diagonal_recurrences_need_no_synchronisation():
    with FakeTensorMode():
        a = torch.empty(2, 12, 4)
        closed = DiagonalTrajectory(a, a).closed_log_growth
        growth = _growth.from_closed_form(closed, 3, make_schedule(12, 3, 1, batch=2))
        assert growth.rates.shape == (2, 3)


def test_logarithms_are_summed_in_float32_where_there_is_no_float64():
    assert linalg.wide_dtype(torch.device("mps")) == torch.float32
    assert linalg.wide_dtype(torch.device("cuda")) == torch.float64
