"""Liquid time-constant networks (Hasani et al., 2021), ``ncps.torch.LTC``.

One step is ``ode_unfolds`` (6) fused semi-implicit steps. For the synapse from i to j let
q_ij = sigmoid(sigma_ij (v_i - mu_ij)), and k = C_m unfolds / (time span):

    v_j' = (k_j v_j + g_j E_j + sum_i w_ij q_ij E_ij + I_j) / (k_j + g_j + sum_i w_ij q_ij + G_j)
    dv_j'/dv_i = (w_ij sigma_ij q_ij (1 - q_ij) (E_ij - v_j') + delta_ij k_j) / (the denominator)

where I and G are the same sums over the inputs, constant within the step.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics._libraries import computing, device_of, parameter_dtype
from lyap_optuna.dynamics.base import Dynamics, Trajectory, initial_of
from lyap_optuna.dynamics.ncps_layers import (
    MemoryCell,
    MixedMemoryTrajectory,
    laid_out,
    stacked,
)

_CHUNK = 2**22  # entries of Jacobians of unfolded steps that are kept at once
_KEPT = 2**22  # entries of Jacobians of all steps, up to which they are computed beforehand


@dataclass(frozen=True)
class Synapses:
    """Constants of the fused steps; matrices are (to, from).

    Args:
        slope: sigma, ``(units, units)``.
        threshold: sigma mu.
        weight: w, zero where there is no synapse.
        reversal: w E.
        leak: g + epsilon of the denominator.
        leak_current: g E.
        unfolds: Fused steps in one step.
    """

    slope: Tensor
    threshold: Tensor
    weight: Tensor
    reversal: Tensor
    leak: Tensor
    leak_current: Tensor
    unfolds: int

    def step(
        self, v: Tensor, capacity: Tensor, current: Tensor, conductance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return v' and, for the Jacobian, q and the denominator; all batched over the front."""
        q = torch.sigmoid(torch.addcmul(-self.threshold, v.unsqueeze(-2), self.slope))
        numerator = torch.addcmul(current, capacity, v) + (q * self.reversal).sum(-1)
        denominator = conductance + (q * self.weight).sum(-1)
        return numerator / denominator, q, denominator


@dataclass(frozen=True)
class Drive:
    """What the inputs contribute, each ``(batch, time, units)``.

    Args:
        capacity: k.
        current: I + g E.
        conductance: G + k + g, and the layer's epsilon.
    """

    capacity: Tensor
    current: Tensor
    conductance: Tensor

    def at(self, *index: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three at some inputs and steps."""
        return self.capacity[index], self.current[index], self.conductance[index]


class LTCTrajectory(Trajectory):
    """The fused steps along their states.

    Args:
        synapses: The constants.
        drive: What the inputs contribute.
        before: v before every step, ``(batch, time, units)``.
        states: v after every step.
    """

    def __init__(self, synapses: Synapses, drive: Drive, before: Tensor, states: Tensor) -> None:
        self._synapses, self._drive, self._before, self.states = synapses, drive, before, states
        self._kept: tuple[int, list[Tensor]] | None = None

    def select(self, inputs: slice) -> "LTCTrajectory":
        """Return the trajectory of some of the inputs."""
        drive = replace(self._drive, **{k: v[inputs] for k, v in vars(self._drive).items()})
        return LTCTrajectory(self._synapses, drive, self._before[inputs], self.states[inputs])

    def _factors(self, v: Tensor, drive: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        """Return the transposed Jacobians (from, to) of the fused steps."""
        s = self._synapses
        scaled, reversed_ = s.weight * s.slope, s.reversal * s.slope
        out = []
        for _ in range(s.unfolds):
            after, q, denominator = s.step(v, *drive)
            gain = reversed_ - scaled * after.unsqueeze(-1)
            jacobian = q * (1 - q) * gain
            jacobian.diagonal(dim1=-2, dim2=-1).add_(drive[0])
            out.append((jacobian / denominator.unsqueeze(-1)).mT)
            v = after
        return out

    def tangent(self, t: int, vectors: Tensor) -> Tensor:
        """Multiply by J_t, or by the Jacobians of the fused steps, one after the other."""
        if self._all is not None:
            return torch.bmm(vectors, self._all[:, t])
        first, factors = self._kept_factors(t)
        for factor in factors:
            vectors = torch.bmm(vectors, factor[:, t - first])
        return vectors

    @cached_property
    def _all(self) -> Tensor | None:
        """The transposed Jacobians of all steps, where they are small: they are needed twice."""
        if self.batch * self.steps * self.state_size**2 > _KEPT:
            return None
        parts = [
            _product(self._factors(self._before[:, part], self._drive.at(slice(None), part)))
            for part in self._parts()
        ]
        return torch.cat(parts, dim=1)

    def _parts(self) -> list[slice]:
        # All steps that fit at once: the cost of a step is that of calling its few operations.
        length = max(1, _CHUNK // (self.batch * self._synapses.unfolds * self.state_size**2))
        return [slice(t, t + length) for t in range(0, self.steps, length)]

    def _kept_factors(self, t: int) -> tuple[int, list[Tensor]]:
        part = next(part for part in self._parts() if part.start <= t < part.stop)
        if self._kept is None or self._kept[0] != part.start:
            factors = self._factors(self._before[:, part], self._drive.at(slice(None), part))
            self._kept = part.start, factors
        return self._kept

    def jacobians(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return the products of the fused steps' Jacobians."""
        if self._all is not None:
            return self._all[inputs, times].mT
        before = self._before[inputs, times]
        return _product(self._factors(before, self._drive.at(inputs, times))).mT


def _product(factors: list[Tensor]) -> Tensor:
    out = factors[0]
    for factor in factors[1:]:
        out = out @ factor
    return out


class LTCDynamics(Dynamics):
    """The recurrence of an ``LTC``, with a memory cell or without.

    Args:
        module: The layer, in the dtype to compute in.
    """

    def __init__(self, module: Any) -> None:
        self._cell = cell = module.rnn_cell
        self._parameters: dict[str, Tensor] = {k: v.detach() for k, v in cell._params.items()}
        p, positive = self._parameters, cell.make_positive_fn
        weight = positive(p["w"]) * p["sparsity_mask"]
        leak = positive(p["gleak"])
        self.synapses = Synapses(
            slope=p["sigma"].T.contiguous(),
            threshold=(p["sigma"] * p["mu"]).T.contiguous(),
            weight=weight.T.contiguous(),
            reversal=(weight * p["erev"]).T.contiguous(),
            leak=leak + cell._epsilon,
            leak_current=leak * p["vleak"],
            unfolds=cell._ode_unfolds,
        )
        self.memory = MemoryCell(module.lstm) if module.use_mixed else None
        self.units: int = module.state_size
        self.state_size = 2 * self.units if module.use_mixed else self.units
        self._features: int = module.input_size
        self.dtype, self.device = parameter_dtype(module), device_of(module)

    def _drive(self, x: Tensor, spans: Tensor) -> Drive:
        p, positive = self._parameters, self._cell.make_positive_fn
        weight = positive(p["sensory_w"]) * p["sensory_sparsity_mask"]
        mapped = self._cell._map_inputs(x)
        total, current = [], []
        for i in range(mapped.shape[2]):  # one sensory neuron at a time: no (batch, time, F, S)
            a = p["sensory_sigma"][i] * (mapped[..., i : i + 1] - p["sensory_mu"][i])
            q = torch.sigmoid(a) * weight[i]
            total.append(q)
            current.append(q * p["sensory_erev"][i])
        capacity = positive(p["cm"]) / (spans / self.synapses.unfolds)
        return Drive(
            capacity=capacity.expand(*x.shape[:2], self.units).contiguous(),
            current=sum(current) + self.synapses.leak_current,
            conductance=sum(total) + capacity + self.synapses.leak,
        )

    @torch.no_grad()
    def linearise(self, inputs: Tensor, initial_state: Any = None) -> Trajectory:
        """Run the layer and linearise it.

        Args:
            inputs: ``(batch, time, features + n)``, the last n the time spans, one for all units
                or one each.
            initial_state: v, with a memory cell (v, c), as a pair or ``(batch, state)``; zeros
                where it is None.
        """
        x, spans = inputs[..., : self._features], inputs[..., self._features :]
        initial = initial_of(initial_state, inputs.shape[0], self.state_size, inputs)
        drive = self._drive(x, spans)
        memory_drive = None if self.memory is None else self.memory.drive(x)
        v, c = initial[:, : self.units], initial[:, self.units :]
        entering: list[Tensor] = []
        states: list[Tensor] = []
        for t in range(x.shape[1]):
            if self.memory is not None and memory_drive is not None:
                v, c = self.memory.step(memory_drive[:, t], v, c)
                entering.append(v)
            at = drive.at(slice(None), t)
            for _ in range(self.synapses.unfolds):
                v = self.synapses.step(v, *at)[0]
            states.append(torch.cat([v, c], dim=1))
        after, before = stacked(states, initial)
        hidden = torch.stack(entering, dim=1) if entering else before
        trajectory = LTCTrajectory(self.synapses, drive, hidden, after[..., : self.units])
        if self.memory is None:
            return trajectory
        return MixedMemoryTrajectory(self.memory.linearise(x, before), trajectory)


def ltc_dynamics(module: nn.Module, state: str) -> LTCDynamics:
    """Build the dynamics of an ``LTC``."""
    return LTCDynamics(computing(module))


@torch.no_grad()
def ltc_outputs(module: nn.Module, inputs: Tensor, trajectory: Trajectory) -> Tensor:
    """Return what the layer returns first, in its own layout."""
    layer: Any = computing(module)
    v = trajectory.states[..., : layer.state_size]
    readout = layer.rnn_cell._map_outputs(v.flatten(0, 1)).unflatten(0, v.shape[:2])
    return laid_out(layer, readout)
