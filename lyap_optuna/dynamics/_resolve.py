"""From a model and what its forward takes to its recurrent layers, linearised.

A layer that is called with whole sequences, and runs PyTorch's kernels or equations of ours, is
rebuilt from its weights along the model's own states, and one rebuilt step from each of them is
compared with what the model did (the *fast path*). A layer that is called for a few steps at a time
is followed from call to call: where the model hands its states on unchanged, and nothing else
depends on them, the fast path serves too; else the general path.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lyap_optuna.dynamics._arguments import leaves
from lyap_optuna.dynamics._call_states import first_state, steps_of_call
from lyap_optuna.dynamics._capture import Forward, ModuleCall
from lyap_optuna.dynamics._checks import agree, another, check_sequences, checked_inputs
from lyap_optuna.dynamics._errors import (
    NonFiniteParametersError,
    NoStepsError,
    NotMeasurableError,
)
from lyap_optuna.dynamics._find import (
    LayerChoice,
    check_parameters,
    chosen_names,
    find_layers,
    is_within,
    unwrapped,
)
from lyap_optuna.dynamics._follow import Chain
from lyap_optuna.dynamics._general import GeneralPath, GeneralTrajectory, pieces_of
from lyap_optuna.dynamics._isolate import exactly
from lyap_optuna.dynamics._rebuilt import Marks, RebuiltLayer
from lyap_optuna.dynamics._registry import architecture_of
from lyap_optuna.dynamics._sequences import (
    DrivenLayer,
    after_padding,
    backwards,
    checked_lengths,
    common_name,
    goes_on,
    grouped,
    hands_on,
    last_outputs,
    lengths_of,
    merged,
    same_weights,
    sublayers,
)
from lyap_optuna.dynamics.base import Dynamics, Trajectory, computing_dtype
from lyap_optuna.dynamics.forward_mode import forward_mode
from lyap_optuna.dynamics.torch_kernels import KernelCall, linearise_along

STATES = ("hidden", "full")


@torch.no_grad()
def resolve(
    model: nn.Module | Dynamics,
    inputs: Any,
    *,
    state: str = "full",
    initial_state: Any = None,
    layer: LayerChoice = None,
    lengths: Any = None,
    seed: int = 0,
    split_resets: bool = False,
) -> dict[str, DrivenLayer]:
    """Find the recurrent layers of ``model`` and linearise them along the model's own states.

    Args:
        model: A registered recurrent layer, a model that contains some, or a dynamics.
        inputs: What ``model``'s forward takes: a tensor, a tuple or list of arguments, or a dict
            of keyword arguments. For a dynamics ``(batch, time, features)``.
        state: ``"hidden"`` or ``"full"``.
        initial_state: As the recurrent layer's forward takes it; None for what the model passes,
            else zeros.
        layer: Name of one recurrent layer within the model, the layer itself, or a list of names;
            None for all.
        lengths: Steps of each sequence, ``(batch,)``; None where all are equally long.
        seed: Seeds what the model's forward may draw in eval mode.
        split_resets: Whether a sequence is cut where its state is reset (a readout), or marked
            (a spectrum, whose exponents are then minus infinity).

    Returns:
        The layers by name, in the model's order.

    Raises:
        NotMeasurableError: The model cannot be measured; the message says why and what to do.
        ValueError: An option is wrong.
    """
    if state not in STATES:
        raise ValueError(f"state must be one of {STATES}, but got {state!r}.")
    steps = checked_lengths(lengths)
    with exactly():
        if isinstance(model, Dynamics):
            trajectory = model.linearise(checked_inputs(inputs, model), initial_state)
            found = [DrivenLayer("", trajectory, state, lengths_of("", trajectory, steps, None))]
        elif isinstance(model, nn.Module):
            forward, chosen = _forward_of(model, inputs, initial_state, layer, seed)
            found = _Measurement(
                forward, chosen, layer is not None, state, steps, split_resets
            ).layers()
        else:
            raise ValueError(
                "model must be an nn.Module or a RecurrentDynamics, but got "
                f"{type(model).__name__}."
            )
        return {driven.name: _finite(driven) for driven in found}


def _forward_of(
    model: nn.Module, inputs: Any, initial_state: Any, layer: LayerChoice, seed: int
) -> tuple[Forward, list[str] | None]:
    """Return the model with its recurrent layers, and the names that were asked for."""
    model = unwrapped(model)
    if isinstance(model, nn.RNNCellBase) and isinstance(inputs, Tensor) and inputs.dim() == 3:
        model = _Loop(model)
    named = layer is not None and not isinstance(layer, nn.Module)
    chosen = chosen_names(layer) if named else None  # type: ignore[arg-type]
    modules = find_layers(model, layer)
    if initial_state is not None and len(modules) > 1:
        raise ValueError(
            f"initial_state is for one layer, but {len(modules)} are measured: "
            f"{sorted(modules)}. Name one by layer=."
        )
    for name, module in modules.items():
        check_parameters(module, f"recurrent layer {name!r}" if name else "recurrent layer")
    return Forward(model, inputs, modules, initial_state, seed), chosen


class _Measurement:
    """The layers of one model on one batch."""

    def __init__(
        self,
        forward: Forward,
        chosen: list[str] | None,
        asked: bool,
        state: str,
        lengths: Tensor | None,
        split: bool,
    ) -> None:
        self._forward, self._chosen = forward, chosen
        self._asked = asked
        self._state, self._lengths, self._split = state, lengths, split

    def layers(self) -> list[DrivenLayer]:
        """Measure them."""
        copies, calls = self._forward.run(every=self._asked)
        mine: dict[str, list[ModuleCall]] = {}
        for call in calls:
            mine.setdefault(call.layer, []).append(call)
        stepwise = {name for name in mine if self._is_stepwise(copies[name], mine[name])}
        groups = grouped([call for call in calls if call.layer in stepwise])
        groups += [[name] for name in mine if name not in stepwise]
        order = list(mine)
        found: list[DrivenLayer] = []
        idle: NoStepsError | None = None
        for names in sorted(groups, key=lambda names: order.index(names[0])):
            try:
                if names[0] in stepwise:
                    group = [call for call in calls if call.layer in names]
                    found.append(self._followed(names, group))
                else:
                    name = names[0]
                    found += self._of_whole_sequences(name, copies[name], mine[name])
            except NoStepsError as error:
                if self._asked:
                    raise
                idle = error  # no recurrence as it is used here; others may be
        if idle is not None and not found:
            raise idle
        if self._chosen is not None:
            chosen = [d for d in found if any(is_within(d.name, name) for name in self._chosen)]
            if not chosen:
                raise NotMeasurableError(
                    f"layer={self._chosen} names none of the layers that were measured: "
                    f"{sorted(d.name for d in found)}."
                )
            found = chosen
        return found

    # Whole sequences ------------------------------------------------------------------------------

    def _is_stepwise(self, module: nn.Module, calls: list[ModuleCall]) -> bool:
        architecture = architecture_of(module)
        assert architecture is not None
        if architecture.build is not None:
            return False
        kernels = [kernel for call in calls for kernel in call.kernels]
        if len(kernels) != len(calls):
            return len(sublayers(calls)) < 2
        return isinstance(module, nn.RNNCellBase) or goes_on(kernels)

    def _of_whole_sequences(
        self, name: str, module: nn.Module, calls: list[ModuleCall]
    ) -> list[DrivenLayer]:
        architecture = architecture_of(module)
        assert architecture is not None
        if architecture.build is None:
            self._check_apart(name, calls)
            groups = sublayers(calls) or [[k for call in calls for k in call.kernels]]
            found = []
            for i, kernels in enumerate(groups):
                label = name
                if len(groups) > 1:  # it runs its layers one by one
                    label = f"{name}.l{i}" if name else f"l{i}"
                by_call = [self._of_kernel(label, kernel) for kernel in kernels]
                found += [merged(parts) for parts in zip(*by_call, strict=True)]
            return found
        layer = RebuiltLayer(self._forward, name, module, architecture, calls, self._state)
        return [merged([self._driven(name, t) for t in layer.trajectories()])]

    def _check_apart(self, name: str, calls: list[ModuleCall]) -> None:
        """Check that what one call returned does not reach another one's inputs."""
        if len(calls) < 2:
            return
        with forward_mode(), forward_ad.dual_level():
            _, seen = self._forward.run(Marks(name), double=True, every=False)
            inputs = [k.inputs for call in seen if call.layer == name for k in call.kernels]
            reached = any(forward_ad.unpack_dual(x).tangent is not None for x in inputs)
        if reached:
            raise NotMeasurableError(
                f"What {name!r} returns reaches the inputs of a later call of it: its calls are no "
                "sequences of their own, and what lies between is not in its equations. Pass a "
                "lyap_optuna.RecurrentDynamics with the whole step."
            )

    def _driven(
        self, name: str, trajectory: Trajectory, packed: Tensor | None = None
    ) -> DrivenLayer:
        lengths = lengths_of(name, trajectory, self._lengths, packed)
        return DrivenLayer(name, trajectory, self._state, lengths)

    def _of_kernel(self, name: str, call: KernelCall) -> list[DrivenLayer]:
        """Linearise what a kernel ran, a stack as one system, or layer by layer and direction."""
        if not bool(torch.isfinite(call.inputs).all()):
            check_parameters(self._forward.model, "model")
        check_sequences(call.inputs)
        dtype = computing_dtype(call.weights[0][0].dtype)
        io = [(x.to(dtype), y.to(dtype)) for x, y in call.by_layer()]
        initial = [tuple(p[i].to(dtype) for p in call.initial) for i in range(len(call.weights))]
        final = [tuple(p[i].to(dtype) for p in call.final) for i in range(len(call.weights))]
        exact = call.outputs.dtype
        if call.directions == 1:
            trajectory, rebuilt = linearise_along(
                call.kernel, call.weights, io, initial, self._state
            )
            self._compare(name, rebuilt, [y for _, y in io], call.lengths, exact)
            ends = last_outputs([y for _, y in io], call.lengths)
            self._compare(name, ends, [f[0] for f in final], None, exact)
            return [self._driven(name, trajectory, call.lengths)]
        found = []
        for i, (x, y) in enumerate(io):
            for reverse in (False, True):
                part = f"l{i}{'_reverse' if reverse else ''}"
                label = f"{name}.{part}" if name else part
                z = y.chunk(2, dim=2)[reverse]
                begin, weights = initial[2 * i + reverse], [call.weights[2 * i + reverse]]
                if reverse:
                    x, z = (backwards(values, call.lengths) for values in (x, z))
                trajectory, rebuilt = linearise_along(
                    call.kernel, weights, [(x, z)], [begin], self._state
                )
                self._compare(label, rebuilt, [z], call.lengths, exact)
                driven = self._driven(label, trajectory, call.lengths)
                if reverse and call.lengths is None and driven.lengths is not None:
                    # The layer has read the padding first.
                    full, _ = linearise_along(call.kernel, weights, [(x, z)], [begin], "full")
                    x, z, begin = after_padding(x, z, begin, full.states, driven.lengths)
                    trajectory, _ = linearise_along(
                        call.kernel, weights, [(x, z)], [begin], self._state
                    )
                    driven = self._driven(label, trajectory)
                found.append(driven)
        return found

    def _compare(
        self,
        name: str,
        rebuilt: Sequence[Tensor],
        real: Sequence[Tensor],
        lengths: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        for ours, theirs in zip(rebuilt, real, strict=True):
            if lengths is not None:
                live = torch.arange(ours.shape[1]) < lengths.unsqueeze(1)
                ours, theirs = ours[live], theirs[live]
            if not agree(ours, theirs, dtype):
                raise NotMeasurableError(another(name, self._forward.layers.get(name)))

    # Step by step ---------------------------------------------------------------------------------

    def _followed(self, names: list[str], calls: list[ModuleCall]) -> DrivenLayer:
        """Follow states from call to call."""
        level = self._level(names, calls)
        fast = level == "kernel" and len(names) == 1 and hands_on(calls)
        if not fast and level == "kernel" and self._are_cells(names):
            # the modules' own states: what a cell does to its kernel's result is part of its step
            level = "module"
        path = GeneralPath(self._forward, level, names)
        sequences, seen = path.tangents(_scout)
        if fast:
            along = self._along_chain(names[0], sequences, seen)
            if along is not None:
                return along
            if self._are_cells(names):
                level = "module"
                path = GeneralPath(self._forward, level, names)
                path.tangents(_scout)
        sequences, _ = path.tangents(_scout)  # from where the states are made, now it is known
        self._check_followed(path, names, calls, sequences)
        return self._of_path(path, names, sequences)

    def _check_followed(
        self,
        path: GeneralPath,
        names: list[str],
        calls: list[ModuleCall],
        sequences: list[list[Chain]],
    ) -> None:
        """Refuse what is no dynamics, or cannot be followed."""
        name = common_name(names)
        if self._state == "hidden" and any(
            isinstance(self._forward.layers[n], (nn.LSTM, nn.LSTMCell)) for n in names
        ):
            raise NotMeasurableError(
                f"The state of {name!r} is changed between its calls. With the cell held fixed "
                "(state='hidden') that is no dynamics: pass state='full'."
            )
        self._check_steps(names, calls, sequences)
        if path.left_torch:
            raise NotMeasurableError(
                f"The state of {name!r} leaves PyTorch between its calls (by numpy), where it "
                "cannot be followed: compute with torch functions."
            )

    def _of_path(
        self, path: GeneralPath, names: list[str], sequences: list[list[Chain]]
    ) -> DrivenLayer:
        """Return the layers along the pieces of their sequences that are averaged."""
        name = common_name(names)
        pieces, reset = pieces_of(sequences, self._split, self._lengths)
        if not pieces:
            raise NoStepsError(
                f"The state of {name!r} is never handed on for two steps: there is nothing to "
                "measure. Pass the layer itself and the inputs that reach it, or longer inputs."
            )
        lengths = torch.tensor([piece.stop - piece.start for piece in pieces])
        trajectory = GeneralTrajectory(path, pieces, sequences)
        if path.level == "weight" and not trajectory.has_jacobians:
            raise NotMeasurableError(
                f"{type(self._forward.layers[names[0]]).__name__} keeps more of the past than what "
                "meets its recurrent weights, and it cannot be seen. Pass a "
                "lyap_optuna.RecurrentDynamics with its step function."
            )
        same = bool((lengths == lengths[0]).all())
        return DrivenLayer(
            name,
            trajectory,
            "full",
            None if same else lengths,
            reset if bool(reset.any()) else None,
            int(lengths.max()) + (not trajectory.ends_known),
            "general",
        )

    def _check_steps(
        self, names: list[str], calls: list[ModuleCall], sequences: list[list[Chain]]
    ) -> None:
        """Check that a layer's own loop takes one step for each step of its inputs."""
        if len(calls) > len(names) or len(names) > 1:
            return
        module = self._forward.layers[names[0]]
        steps = steps_of_call(module, calls[0].args, calls[0].kwargs)
        for sequence in sequences:
            found = max(len(chain.states) - chain.ends_known for chain in sequence)
            if steps is not None and found != steps:
                raise NotMeasurableError(
                    f"{type(module).__name__} {names[0]!r} takes {found} steps of its own for "
                    f"{steps} time steps of its inputs, so that no rate per time step can be told. "
                    "Pass a lyap_optuna.RecurrentDynamics with the whole step."
                )

    def _are_cells(self, names: list[str]) -> bool:
        return all(isinstance(self._forward.layers[n], nn.RNNCellBase) for n in names)

    def _level(self, names: list[str], calls: list[ModuleCall]) -> str:
        """Return where the states of layers are to be seen."""
        if all(len(call.kernels) == 1 for call in calls):
            return "kernel"
        if not all(isinstance(self._forward.layers[n], nn.RNNBase) for n in names):
            return "module"
        if all(call.kernels for call in calls):
            return "kernel"
        return "weight"

    def _along_chain(
        self, name: str, sequences: list[Any], calls: list[ModuleCall]
    ) -> DrivenLayer | None:
        """Return the fast path through a layer's calls, where it is this network's."""
        kernels = [k for call in calls if call.layer == name for k in call.kernels]
        first = kernels[0]
        parts: list[DrivenLayer] = []
        for sequence in sequences:
            (chain, *others) = sequence
            if others or chain.unmodified is None or len(chain.states) < 3 or chain.resets:
                return None
            mine, kernels = kernels[: len(chain.states) - 1], kernels[len(chain.states) - 1 :]
            if any(call.directions == 2 or call.batch_sizes is not None for call in mine):
                return None
            if any(not same_weights(call, used) for call in mine for used in [*mine[:1], first]):
                raise NotMeasurableError(
                    f"{name!r} runs with other weights from call to call: it is not one system. "
                    "Pass a lyap_optuna.RecurrentDynamics with its step function."
                )
            full = self._joined(name, mine, "full")
            if full is None or not _moves(full, mine, chain.carried):
                return None
            driven = full if self._state == "full" else self._joined(name, mine, self._state)
            if driven is None:
                return None
            parts.append(driven)
        return merged(parts)

    def _joined(self, name: str, calls: list[KernelCall], state: str) -> DrivenLayer | None:
        first = calls[0]
        by_call = [call.by_layer() for call in calls]
        io = [
            (
                torch.cat([parts[i][0] for parts in by_call], 1),
                torch.cat([p[i][1] for p in by_call], 1),
            )
            for i in range(first.layers)
        ]
        initial = [tuple(p[i] for p in first.initial) for i in range(first.layers)]
        trajectory, rebuilt = linearise_along(first.kernel, first.weights, io, initial, state)
        if not all(agree(a, y) for a, (_, y) in zip(rebuilt, io, strict=True)):
            return None
        lengths = lengths_of(name, trajectory, self._lengths, None)
        return DrivenLayer(name, trajectory, state, lengths)


def _scout(chain: int, offset: int, batch: int, size: int) -> Tensor:
    """Return tangents that are the same whenever they are asked for."""
    generator = torch.Generator().manual_seed(1_000_003 * chain + offset)
    return torch.randn(batch, size, generator=generator, dtype=torch.float64)


class _Loop(nn.Module):
    """A loop over a cell that was given itself, with whole sequences."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = first_state(self.cell, x[:, 0])
        for step in x.unbind(1):
            state = self.cell(step) if state is None else self.cell(step, state)
        return next(leaves(state))


def _moves(driven: DrivenLayer, calls: list[KernelCall], tangents: list[Tensor]) -> bool:
    """Whether the rebuilt tangent map takes each tangent to the next one.

    It does not where something else depends on the state: an output that is fed back, say.
    """
    size = calls[0].initial[0].shape[0]
    t = 0
    for call, before, after in zip(calls, tangents, tangents[1:], strict=False):
        vector = _by_layer(before, size, call.initial).unsqueeze(1)
        for _ in range(call.inputs.shape[1]):
            vector = driven.trajectory.tangent(t, vector)
            t += 1
        wanted = _by_layer(after, size, call.initial)
        scale = wanted.abs().amax(1, keepdim=True).clamp(min=1e-290)
        if not bool(((vector.squeeze(1) - wanted).abs() <= 1e-7 * scale).all()):
            return False
    return True


def _by_layer(rows: Tensor, layers: int, parts: tuple[Tensor, ...]) -> Tensor:
    # from h1 h2 c1 c2, as PyTorch hands states on, to h1 c1 h2 c2
    sizes = [part.shape[-1] * layers for part in parts]
    split = [p.unflatten(1, (layers, -1)) for p in rows.split(sizes, 1)]
    return torch.cat(split, 2).flatten(1)


def _finite(driven: DrivenLayer) -> DrivenLayer:
    if not bool(torch.isfinite(driven.trajectory.states).all()):
        raise NonFiniteParametersError(
            "The states of the recurrent layer become NaN or infinite on these inputs: it has no "
            "Lyapunov exponents. Check that the inputs are finite."
        )
    return driven
