"""Layers are known by name: nothing that the user has not imported is imported."""

import subprocess
import sys

import pytest
from _truth import library
from torch import nn

from lyap_optuna.dynamics import find_layers
from lyap_optuna.dynamics._registry import _BY_NAME, architecture_of

PACKAGES = sorted({name.split(".")[0] for name in _BY_NAME})


def test_nothing_is_imported():
    code = f"import sys, lyap_optuna.dynamics; print([p for p in {PACKAGES} if p in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("name", list(_BY_NAME))
def test_every_name_is_that_of_a_class(name):
    module, _, cls = name.rpartition(".")
    found = getattr(library(module), cls)
    assert issubclass(found, nn.Module)
    assert f"{found.__module__}.{found.__qualname__}" == name

    class Own(found):
        """A subclass is found too."""

        def __init__(self):
            nn.Module.__init__(self)

    assert architecture_of(object.__new__(Own)) is _BY_NAME[name]
    layer = Own()
    assert list(find_layers(nn.Sequential(nn.Linear(1, 1), layer)).values()) == [layer]


def test_an_initial_state_is_taken_as_the_layer_takes_it():
    import torch

    x = torch.randn(2, 4, 3, dtype=torch.float64)
    parts = torch.rand(2, 2, 5, dtype=torch.float64).unbind(0)
    cfc = library("ncps.torch").CfC(3, 5, mixed_memory=True).double()
    dynamics = architecture_of(cfc).build(cfc, "full")
    inputs = torch.cat([x, torch.ones(2, 4, 1).double()], dim=2)
    states = dynamics.linearise(inputs, parts).states
    with torch.no_grad():
        assert torch.allclose(states[:, -1], torch.cat(cfc(x, parts)[1], dim=1), atol=1e-12)

    lem = library("torchrecurrent").LEM(3, 5, batch_first=True).double()
    dynamics = architecture_of(lem).build(lem, "full")
    state = tuple(part[None] for part in parts)
    with torch.no_grad():
        expected = torch.cat([part[0] for part in lem(x, state)[1]], dim=1)
    assert torch.allclose(dynamics.linearise(x, state).states[:, -1], expected, atol=1e-12)
