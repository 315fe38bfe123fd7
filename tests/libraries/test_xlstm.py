"""sLSTM and mLSTM of xlstm against their own steps in float64."""

import pytest
import torch
from _steps import mlstm, ratios, slstm_step
from _truth import agree, library, measured, randomised

from lyap_optuna.dynamics import DiagonalDynamics, find_layers
from lyap_optuna.dynamics._errors import NotMeasurableError

B, T, N, HEADS = 3, 8, 6, 2


def make_slstm(**options):
    cells = library("xlstm.blocks.slstm.cell")
    config = cells.sLSTMCellConfig(
        hidden_size=N, num_heads=HEADS, backend="vanilla", dtype="float32", **options
    )
    cell = cells.sLSTMCell(config)
    with torch.no_grad():
        for p in cell.parameters():
            p.copy_(torch.randn(p.shape))  # they come uninitialised or zero
    return cell.double()


@pytest.mark.parametrize("input_shape", ["BSGNH", "SBGNH"])
@pytest.mark.parametrize("output_shape", ["BNSH", "SBH", "BSH", "SBNH"])
@pytest.mark.parametrize("given", [False, True])
def test_slstm(input_shape, output_shape, given):
    cell = make_slstm(input_shape=input_shape, output_shape=output_shape)
    x = torch.randn(B, T, 4 * N, dtype=torch.float64)
    state = torch.rand(4, B, N, dtype=torch.float64) + 0.1 if given else None
    reach = x if input_shape == "BSGNH" else x.transpose(0, 1).contiguous()
    _, _, trajectory = measured(cell, reach, state)
    assert trajectory.state_size == 3 * N
    start = 0 if given else 1  # the library begins with nothing averaged: no logarithm
    if given:
        initial, rest = ratios(state[:, 0]), trajectory
    else:
        initial = trajectory.states[0, 0]
        from lyap_optuna.dynamics.slstm import slstm_dynamics

        rest = slstm_dynamics(cell, "full").linearise(x[:, 1:], trajectory.states[:, 0])
        assert torch.allclose(rest.states, trajectory.states[:, 1:], rtol=0, atol=1e-12)
    agree(rest, slstm_step(cell, x[:, start:]), initial, warmup=0)
    vectors = torch.randn(B, 2, 3 * N, dtype=torch.float64)
    expected = vectors @ trajectory.jacobian(3).mT
    assert torch.allclose(trajectory.tangent(3, vectors), expected, rtol=0, atol=1e-13)


def test_slstm_states_are_the_librarys():
    cell = make_slstm()
    x = torch.randn(B, T, 4 * N, dtype=torch.float64)
    _, _, trajectory = measured(cell, x)
    with torch.no_grad():
        y, c, n, m = cell(x)[1]
    expected = torch.cat([y, c / n, n.log() + m], dim=1)
    assert torch.allclose(trajectory.states[:, -1], expected, rtol=0, atol=1e-12)


def test_slstm_as_it_is_initialised_has_no_recurrence():
    cells = library("xlstm.blocks.slstm.cell")
    config = cells.sLSTMCellConfig(hidden_size=N, num_heads=HEADS, backend="vanilla")
    cell = cells.sLSTMCell(config).double()
    cell.reset_parameters()
    with torch.no_grad():
        cell._recurrent_kernel_.zero_()
    _, _, trajectory = measured(cell, torch.randn(B, T, 4 * N, dtype=torch.float64))
    assert bool((torch.linalg.matrix_rank(trajectory.jacobian(4)) <= 2 * N).all())
    assert bool((trajectory.closed_log_abs_det[:, 1:] == -torch.inf).all())


def test_slstm_of_another_function_is_refused():
    with pytest.raises(NotMeasurableError, match="function='lstm'"):
        measured(make_slstm(function="lstm"), torch.randn(B, T, 4 * N, dtype=torch.float64))


def test_slstm_in_its_layer_is_found():
    layers = library("xlstm.blocks.slstm.layer")
    config = layers.sLSTMLayerConfig(
        embedding_dim=N, num_heads=HEADS, backend="vanilla", conv1d_kernel_size=4
    )
    layer = layers.sLSTMLayer(config)
    assert list(find_layers(layer).values()) == [layer.slstm_cell]


# mLSTM -------------------------------------------------------------------------------------


def make_mlstm():
    cells = library("xlstm.blocks.mlstm.cell")
    config = cells.mLSTMCellConfig(context_length=T, embedding_dim=N, num_heads=HEADS)
    return randomised(cells.mLSTMCell(config))


def test_mlstm():
    cell = make_mlstm()
    q, k, v = torch.randn(3, B, T, N, dtype=torch.float64).unbind(0)
    dynamics, _, trajectory = measured(cell, q=q, k=k, v=v)
    assert isinstance(dynamics, DiagonalDynamics)
    step, initial = mlstm(cell, (), {"q": q, "k": k, "v": v}, 0)
    agree(trajectory, step, initial)


def test_mlstm_in_its_layer_is_found():
    layers = library("xlstm.blocks.mlstm.layer")
    config = layers.mLSTMLayerConfig(embedding_dim=8, num_heads=2, context_length=T)
    layer = layers.mLSTMLayer(config)
    assert list(find_layers(layer).values()) == [layer.mlstm_cell]
    with torch.no_grad():
        reached = []
        layer.mlstm_cell.register_forward_pre_hook(
            lambda _, args, kwargs: reached.append(kwargs), with_kwargs=True
        )
        layer(torch.randn(B, T, 8))
    assert measured(layer.mlstm_cell, **reached[0])[2].state_size == 64 * 33
