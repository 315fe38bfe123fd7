"""What the tests of libraries that train share: a witness of the first step, and its truth."""

import copy
from typing import Any

import optuna
import pytest
import torch
from _truth import Truth
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

import lyap_optuna as lyap
from lyap_optuna.dynamics._arguments import mapped
from lyap_optuna.spectrum._start import random_start

LAYERS = (nn.LSTM, nn.GRU, nn.RNN)


class PruneSecond(optuna.pruners.BasePruner):
    """Prunes trial 1 at its second report."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number == 1 and len(trial.intermediate_values) == 2


class Witness:
    """Notes what the first call of each recurrent layer of a model is given, and its weights."""

    def __init__(self) -> None:
        self.layers: dict[str, nn.Module] = {}
        self.calls: dict[str, Any] = {}
        self.model: nn.Module | None = None

    def watch(self, model: nn.Module) -> None:
        if self.model is not None:
            return
        self.model = model
        for name, layer in model.named_modules():
            if isinstance(layer, LAYERS):
                self.layers[name] = _plain(layer)
                handle: list[Any] = []

                def note(_: Any, args: Any, kwargs: Any, name: str = name, h: Any = handle) -> None:
                    self.calls[name] = copy.deepcopy(_detached((args, kwargs)))
                    h[0].remove()

                handle.append(layer.register_forward_pre_hook(note, with_kwargs=True))

    def truth(self, name: str, rows: int | None = 10) -> Truth:
        """Return the float64 product of the Jacobians of a layer's own steps."""
        layer, (args, kwargs) = self.layers[name], self.calls[name]
        x, *rest = args
        state = rest[0] if rest else kwargs.get("hx")
        lengths = kwargs.get("lengths")  # pytorch-forecasting's layers pack by themselves
        if isinstance(x, PackedSequence):
            x, lengths = pad_packed_sequence(x, batch_first=True)
        elif not layer.batch_first:
            x = x.transpose(0, 1)
        found = []
        for b in range(len(x))[:rows]:
            parts = _state_of(layer, state, b)
            steps = []
            for t in range(int(lengths[b]) if lengths is not None else x.shape[1]):

                def step(flat: Tensor, b=b, t=t) -> Tensor:  # type: ignore[no-untyped-def]
                    return _step(layer, flat, x[b, t].double())

                steps.append(torch.autograd.functional.jacobian(step, parts))
                parts = step(parts).detach()
            found.append(steps)
        warmup = min(20, max(map(len, found)) // 5)
        # A sequence with fewer averaged steps than that is left out.
        return Truth([steps for steps in found if len(steps) >= 2 * warmup], warmup)

    def agrees(self, stored: dict[str, Any], rows: int | None = 10) -> None:
        """Hold the stored baseline against the truth."""
        assert set(self.calls) == set(self.layers) != set()
        parts = stored.get("layers") or {name: stored for name in self.layers}
        for name in self.layers:
            (own,) = [part for key, part in parts.items() if key == name or name.endswith(key)]
            truth = self.truth(name, rows)
            sampled = not isinstance(self.layers[name], nn.LSTM)  # log-determinants, in the mean
            assert own["mean"] == pytest.approx(truth.mean, abs=0.01 if sampled else 2e-4)
            assert own["max"] == pytest.approx(_maximum(truth), abs=2e-4)


def _plain(layer: Any) -> nn.Module:
    """Return PyTorch's own layer of the same weights in float64, whoever holds them."""
    (kind,) = [kind for kind in LAYERS if isinstance(layer, kind)]
    twin = kind(
        layer.input_size, layer.hidden_size, layer.num_layers, batch_first=layer.batch_first
    ).double()
    with torch.no_grad():
        for name in layer._flat_weights_names:
            getattr(twin, name).copy_(getattr(layer, name))
    return twin


def _maximum(truth: Truth) -> float:
    """Return the largest of the leading exponents, or the growth of their vectors together."""
    size = truth.jacobians[0][0].shape[0]
    start = random_start(size, min(4, size))
    together = []
    for steps in truth.jacobians:
        block, norms = start, [torch.zeros((), dtype=torch.float64)]
        for jacobian in steps:
            block = jacobian @ block
            norms.append(torch.linalg.matrix_norm(block, 2).log())
        together.append((norms[-1] - norms[truth.warmup]) / (len(steps) - truth.warmup))
    return max(float(truth.exponents(start)[0]), float(torch.stack(together).mean()))


def _detached(value: Any) -> Any:
    return mapped(value, lambda tensor: tensor.detach())


def _state_of(layer: Any, state: Any, b: int) -> Tensor:
    kinds = 2 if isinstance(layer, nn.LSTM) else 1
    if state is None:
        return torch.zeros(layer.num_layers * kinds * layer.hidden_size, dtype=torch.float64)
    state = state if isinstance(state, tuple) else (state,)
    return torch.stack([s[:, b].double() for s in state], dim=1).reshape(-1)


def _step(layer: Any, flat: Tensor, x: Tensor) -> Tensor:
    """One step of a stack whose state lies layer by layer, h before c."""
    kinds = 2 if isinstance(layer, nn.LSTM) else 1
    parts = flat.reshape(layer.num_layers, kinds, layer.hidden_size)
    states = tuple(parts[:, i, None].contiguous() for i in range(kinds))
    after = layer(x[None, None], states if kinds == 2 else states[0])[1]
    return torch.stack(after if kinds == 2 else (after,), dim=1).reshape(-1)


def check_study(study: optuna.Study) -> None:
    """A study of three trials, the second pruned: found so, with all readouts."""
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    for trial in study.trials:
        steps = list(trial.intermediate_values)
        readouts = trial.user_attrs["lyapunov:readouts"]
        assert [int(s) for s in readouts][1:] == steps
        assert int(next(iter(readouts))) < steps[0]
    assert len(study.trials[1].intermediate_values) == 2 < len(study.trials[0].intermediate_values)
    assert lyap.rank_trials(study)


def baseline(trial: optuna.trial.FrozenTrial) -> Any:
    """Return what is stored of the untrained network."""
    return next(iter(trial.user_attrs["lyapunov:readouts"].values()))
