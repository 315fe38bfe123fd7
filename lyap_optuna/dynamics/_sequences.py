"""Which calls and steps belong together: groups of layers, batches, directions, lengths."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lyap_optuna.dynamics._capture import ModuleCall
from lyap_optuna.dynamics.base import Batches, Trajectory
from lyap_optuna.dynamics.torch_kernels import KernelCall


@dataclass(frozen=True)
class DrivenLayer:
    """A recurrent layer of a model, linearised along the states that its inputs drive it through.

    Args:
        name: The layer's name within the model; ``""`` where it was given itself.
        trajectory: The layer along its states.
        state: What was followed, ``"hidden"`` or ``"full"``.
        lengths: Steps of each sequence, ``(batch,)`` on the CPU, what follows is padding; None
            where every sequence has all of the trajectory's steps.
        reset: Whether the state of a sequence is reset within it, ``(batch,)`` on the CPU: what
            came before is forgotten, and its exponents are minus infinity. None: nowhere.
        longest: Steps of the longest sequence, which the default warm-up follows from; None for
            the trajectory's. It has one more where what the last one leads to is not seen.
        path: How it was measured: ``"fast"``, or ``"general"`` through the model's forward.
    """

    name: str
    trajectory: Trajectory
    state: str
    lengths: Tensor | None = None
    reset: Tensor | None = None
    longest: int | None = None
    path: str = "fast"


def grouped(calls: list[ModuleCall]) -> list[list[str]]:
    """Return the layers in groups: those whose calls interleave belong together."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, call in enumerate(calls):
        first.setdefault(call.layer, i)
        last[call.layer] = i
    groups: list[list[str]] = []
    end = -1
    for name in sorted(first, key=lambda n: first[n]):
        if groups and first[name] < end:
            groups[-1].append(name)
        else:
            groups.append([name])
            end = -1
        end = max(end, last[name])
    return groups


def sublayers(calls: list[ModuleCall]) -> list[list[KernelCall]]:
    """Return the kernels of a layer by their weights, where each call runs each once; else [].

    A layer that runs its layers one by one, to do something between them, does so.
    """
    by_weights: dict[tuple[int, ...], list[KernelCall]] = {}
    for call in calls:
        for kernel in call.kernels:
            places = tuple(weight.data_ptr() for weight in kernel.weights[0])
            by_weights.setdefault(places, []).append(kernel)
    groups = list(by_weights.values())
    whole = all(len(g) == len(calls) and g[0].inputs.shape[1] > 1 for g in groups)
    return (
        groups if whole and len(calls) * len(groups) == sum(len(c.kernels) for c in calls) else []
    )


def same_weights(a: KernelCall, b: KernelCall) -> bool:
    """Whether two kernels run with the same weights."""
    pairs = zip(a.weights, b.weights, strict=True)
    return all(x is y or _equal(x, y) for p, q in pairs for x, y in zip(p, q, strict=True))


def goes_on(kernels: list[KernelCall]) -> bool:
    """Whether a later call may begin with what an earlier one left."""
    if any(not _is_fresh(call, kernels[0]) for call in kernels[1:]):
        return True
    return kernels[0].inputs.shape[1] == 1 and len(kernels) > 1


def _is_fresh(call: KernelCall, first: KernelCall) -> bool:
    """Whether a call begins at zero, or as the first one did."""
    zero = all(not bool(part.any()) for part in call.initial)
    return zero or all(_equal(a, b) for a, b in zip(call.initial, first.initial, strict=True))


def hands_on(calls: list[ModuleCall]) -> bool:
    """Whether each call begins with what an earlier one left, or at zero, or as the first did."""
    kernels = [kernel for call in calls for kernel in call.kernels]
    for before, call in pairwise(kernels):
        handed = all(_equal(a, b) for a, b in zip(before.final, call.initial, strict=True))
        if not handed and not _is_fresh(call, kernels[0]):
            return False
    return True


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def merged(parts: Sequence[DrivenLayer]) -> DrivenLayer:
    """Return several batches of one layer as one."""
    if len(parts) == 1:
        return parts[0]
    steps = [part.trajectory.steps for part in parts]
    lengths = torch.cat(
        [
            torch.full((part.trajectory.batch,), n) if part.lengths is None else part.lengths
            for part, n in zip(parts, steps, strict=True)
        ]
    )
    same = bool((lengths == lengths[0]).all())
    return DrivenLayer(
        parts[0].name,
        Batches([part.trajectory for part in parts]),
        parts[0].state,
        None if same else lengths,
    )


def common_name(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    parents = {name.rpartition(".")[0] for name in names}
    only_digits = all(name.rpartition(".")[2].isdigit() for name in names)
    if len(parents) == 1 and only_digits:
        return parents.pop()
    return "+".join(names)


def last_outputs(outputs: Sequence[Tensor], lengths: Tensor | None) -> list[Tensor]:
    if lengths is None:
        return [y[:, -1] for y in outputs]
    rows = torch.arange(len(lengths))
    return [y[rows, lengths - 1] for y in outputs]


def backwards(sequences: Tensor, lengths: Tensor | None) -> Tensor:
    """Return ``(batch, time, ...)`` backwards in time, each row within its length."""
    if lengths is None:
        return sequences.flip(1)
    steps = torch.arange(sequences.shape[1])
    index = torch.where(steps < lengths.unsqueeze(1), lengths.unsqueeze(1) - 1 - steps, steps)
    turned: Tensor = sequences.gather(
        1, index.unsqueeze(2).expand_as(sequences).to(sequences.device)
    )
    return turned


def checked_lengths(lengths: Any) -> Tensor | None:
    if lengths is None:
        return None
    try:
        steps = torch.as_tensor(lengths).detach().cpu()
        valid = steps.dim() == 1 and len(steps) > 0 and not steps.is_floating_point()
        valid = valid and bool((steps >= 1).all())
    except (RuntimeError, TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            "lengths must be positive whole numbers, one for each sequence, but got "
            f"{lengths!r:.100}."
        )
    return steps.long()


def lengths_of(
    name: str, trajectory: Trajectory, lengths: Tensor | None, packed: Tensor | None
) -> Tensor | None:
    """Return the steps of each sequence: those of the packing, or those that were told.

    Raises:
        ValueError: The two disagree, or what was told does not fit.
    """
    if lengths is None:
        return packed
    if packed is not None:
        if not torch.equal(lengths.sort().values, packed.sort().values):
            raise ValueError(
                f"lengths={lengths.tolist()!r:.100}, but the sequences that reach {name!r} are "
                f"packed with lengths {packed.tolist()!r:.100}: leave lengths out."
            )
        return packed
    if len(lengths) != trajectory.batch or int(lengths.max()) > trajectory.steps:
        raise ValueError(
            f"lengths are {len(lengths)} numbers of at most {int(lengths.max())}, but "
            f"{trajectory.batch} sequences of {trajectory.steps} steps reach the layer {name!r}."
        )
    return lengths


def after_padding(
    x: Tensor, z: Tensor, begin: tuple[Tensor, ...], states: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return a direction that runs backwards, each row from where its padding ends.

    Args:
        x: Inputs, backwards in time, ``(batch, time, features)``.
        z: Outputs, the same way.
        begin: State before the first step.
        states: The whole state after each step.
        lengths: Real steps of each row: the last ones.
    """
    batch, steps = x.shape[:2]
    skipped = (steps - lengths).to(x.device)
    index = (skipped.unsqueeze(1) + torch.arange(steps, device=x.device)) % steps
    rows = torch.arange(batch, device=x.device).unsqueeze(1)
    before = torch.cat([torch.cat(begin, 1).unsqueeze(1), states], 1)
    parts = before[rows[:, 0], skipped].split([part.shape[1] for part in begin], 1)
    return x[rows, index], z[rows, index], tuple(parts)
