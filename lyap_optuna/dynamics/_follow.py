"""States followed through a model's own forward, from call to call.

A *chain* is one state as it arrives at call after call: a loop over a cell has one, two stacked
cells have two. Chains that are called in turns form one joint state. A chain goes on while the
arriving state depends on what the chain began with; it is followed by what it carries: a tangent
(forward mode) or a graph (reverse mode).
"""

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics._arguments import leaves
from lyap_optuna.dynamics._capture import Observer
from lyap_optuna.dynamics._errors import NotMeasurableError


@dataclass
class Chain:
    """One state, call after call.

    Args:
        layer: The layer that it arrives at.
        states: ``(batch, size)`` at each call, and after the last where that is known.
        carried: What is carried at each call, in the follower's form.
        first: The state that it began with, part by part.
        seen: The tensors that arrived at its first two calls, and the numbers of these arrivals.
        resets: Rows whose state was reset before a call, by call.
        ends_known: Whether the state after the last call is among ``states``.
        results: What the last call returned.
        unmodified: For each part of the state, where among the results it stood at every call
            so far; None once it did not.
    """

    layer: str
    states: list[Tensor] = field(default_factory=list)
    carried: list[Any] = field(default_factory=list)
    first: list[Tensor] = field(default_factory=list)
    seen: list[tuple[int, list[Tensor]]] = field(default_factory=list)
    resets: dict[int, Tensor] = field(default_factory=dict)
    results: list[Tensor] = field(default_factory=list)
    unmodified: list[int] | None = field(default_factory=list)
    ends_known: bool = False


Sequence = list[Chain]
"""Chains that are called in turns: one joint state."""


Role = tuple[int, int, int]
"""Sequence, chain and part of a state."""


@dataclass(frozen=True)
class Beginnings:
    """Where states are made and first arrive; the same in each pass.

    A state may be used before it arrives at the layer (a leak that is computed first), so it is
    followed from where it is made.

    Args:
        arrivals: Numbers of the arrivals at which a chain begins.
        again: Numbers of the arrivals of a state that has just arrived (a layer that is called
            twice on one state).
        made: Layer, number of the chain and offset in its state of the tensors that are made, by
            the number and result of the operation that makes them.
        copied: Sequence, chain and part of states that begin as a tensor which is another state
            too, and which the model uses as that other one.
        ambiguous: The layer whose states begin as one tensor that the model uses as each of them.
    """

    arrivals: frozenset[int]
    again: frozenset[int]
    made: dict[tuple[int, int], tuple[str, int, int]]
    copied: frozenset[Role]
    ambiguous: str | None


class Follower(Observer):
    """Follows the states of some layers; subclasses say what is carried.

    Args:
        level: Where states are seen, see :class:`Observer`.
        layers: The layers that are followed, jointly.
        beginnings: Where states begin, as an earlier pass found; None to find out.
    """

    def __init__(
        self, level: str, layers: dict[str, nn.Module], beginnings: Beginnings | None = None
    ) -> None:
        self.level = level
        self._known = beginnings
        self._arrivals = 0
        self._begun = 0  # arrivals before the last sequence
        self._first_arrivals: set[int] = set()
        self._again: list[int] = []
        # where tensors were made, by their ids as long as they live
        self._made: dict[int, tuple[tuple[int, int], weakref.ref[Tensor]]] = {}
        self._origins: dict[Role, tuple[tuple[int, int], tuple[str, int, int]]] = {}
        self._uses: dict[Any, set[int]] = {}  # arrivals before uses, by place in memory
        self._layers = layers
        self.sequences: list[Sequence] = []
        self._turn = 0
        self._last: dict[str, Chain] = {}
        self._memory: set[int] = set()  # of first states that are followed already
        self._taken: set[Any] = set()  # where in memory
        self._keep: list[Any] = []
        self._current: list[tuple[Tensor, int]] = []  # with the number of times it was written to

    def arriving(self, layer: str, state: list[Tensor]) -> list[Tensor]:
        """See a state; begin to follow it, or go on."""
        if not state:
            raise NotMeasurableError(
                f"{layer!r} is called without a state, so that it cannot be followed from one call "
                "to the next. Give it one at its first call too (zeros, say), or pass the layer "
                "itself, or a lyap_optuna.RecurrentDynamics."
            )
        if any(part.is_inference() for part in state):
            raise NotMeasurableError(
                f"{layer!r} is called under torch.inference_mode, where nothing can be followed: "
                "use torch.no_grad there, or nothing, as measurements record no gradients."
            )
        number, self._arrivals = self._arrivals, self._arrivals + 1
        arrived = state
        if self._known is None:
            if self._just_arrived(state):
                self._again.append(number)
        elif number in self._known.again:
            return state
        shared = self._is_shared(state)
        carries = any(self.carries(part) for part in state) and not shared
        if carries and self._known is None and layer not in self._last and self.sequences:
            first = self.sequences[-1][0].layer
            raise NotMeasurableError(
                f"{first!r} and {layer!r} act on one state in turns, so that it cannot be told "
                f"which calls are a time step. Name the layer whose calls are, {first!r} say, by "
                "layer=; what the others do between its calls is then a part of its step."
            )
        if self._known is not None:
            carries = number not in self._known.arrivals
        if not shared:
            state, attached = self._attached(layer, state)
            carries = carries or attached
        chain = self._going_on(layer) if carries else self._beginning(layer, state)
        if chain.states and len(self.rows(chain, state[0])) != len(chain.states[-1]):
            raise NotMeasurableError(
                f"{layer!r} is called with fewer sequences as some end. Pass sequences of one "
                "length, or the layer itself and the inputs that reach it, with lengths=."
            )
        if not carries:
            self._first_arrivals.add(number)
            chain.first = [part.detach().clone() for part in state]
            state = [self._followed(chain, i, part) for i, part in enumerate(state)]
        else:
            self._compare(chain, state)
        self.note(chain, state)
        if len(chain.seen) < 2:
            chain.seen.append((number, arrived))
        self._last[layer] = chain
        self._current = [(part, part._version) for part in arrived]
        return state

    def follows(self, layer: str) -> bool:
        """Whether it is one of the layers."""
        return layer in self._layers

    def made(self, place: tuple[int, int], tensor: Tensor) -> Tensor:
        """See a tensor that was made; follow it where it is known to be a state."""
        if self._known is None:
            self._made[id(tensor)] = (place, weakref.ref(tensor))
        elif place in self._known.made:
            return self.begin(*self._known.made[place], tensor)
        return tensor

    def used(self, arguments: Any) -> None:
        """Keep what the model itself does with the states of the first rounds."""
        rounds = len(self.sequences[-1]) if self.sequences else 1
        if self._known is None and (self._arrivals - self._begun) <= 2 * rounds:
            for tensor in leaves(arguments):
                self._keep.append(tensor)
                self._uses.setdefault(_place(tensor), set()).add(self._arrivals)

    @property
    def beginnings(self) -> Beginnings:
        """Where states begin."""
        n = len(self.sequences[-1]) if self.sequences else 0
        # In the first round two states may begin as one tensor; later they are two.
        again = self._again if any(number >= n for number in self._again) else []
        copied, ambiguous = self._copied()
        return Beginnings(
            frozenset(self._first_arrivals - set(again)),
            frozenset(again),
            {place: role for key, (place, role) in self._origins.items() if key not in copied},
            copied,
            ambiguous,
        )

    def _copied(self) -> tuple[frozenset[Role], str | None]:
        """Return the states that begin as a tensor which is used as another state.

        At the second call the two are two tensors: which of them is used when tells which one
        the common tensor stands for.
        """
        copied: set[Role] = set()
        ambiguous = None
        for number, sequence in enumerate(self.sequences):
            common: dict[Any, list[Role]] = {}
            for turn, chain in enumerate(sequence):
                for index, part in enumerate(chain.seen[0][1]):
                    common.setdefault(_place(part), []).append((number, turn, index))
            for place, roles in common.items():
                owners = [r for r in roles if self._uses_as(sequence[r[1]], r[2], place)]
                copied.update(role for role in roles if role != (owners or roles)[0])
                if len(owners) > 1:
                    ambiguous = sequence[0].layer
        return frozenset(copied), ambiguous

    def _uses_as(self, chain: Chain, index: int, place: Any) -> bool:
        """Whether what lies at ``place`` is used as the second state's part is, a round later."""
        if len(chain.seen) < 2:
            return False
        (first, _), (second, state) = chain.seen
        later = self._uses.get(_place(state[index]), set())
        return bool(self._uses.get(place, set()) & {n - (second - first) for n in later})

    def leaving(self, layer: str, results: list[Tensor]) -> None:
        """Keep what a call returned."""
        if layer in self._last:
            self._last[layer].results = results

    def finish(self) -> list[Sequence]:
        """Add the state after the last call, where it is what the call returned."""
        for sequence in self.sequences:
            known = all(
                chain.unmodified is not None and chain.results and len(chain.states) > 1
                for chain in sequence
            )
            for chain in sequence if known else ():
                assert chain.unmodified is not None
                self.note(chain, [chain.results[i] for i in chain.unmodified])
                chain.ends_known = True
        return self.sequences

    # To be said by subclasses ---------------------------------------------------------------------

    def carries(self, part: Tensor) -> bool:
        """Whether a tensor depends on what is followed."""
        raise NotImplementedError

    def attach(self, part: Tensor, result: Tensor) -> Tensor:
        """Return ``part``, which equals ``result``, carrying what that carries."""
        raise NotImplementedError

    def follow(self, chain: Chain, index: int, part: Tensor, *, in_place: bool) -> Tensor:
        """Begin to follow part ``index`` of a state."""
        raise NotImplementedError

    def begin(self, layer: str, chain: int, offset: int, made: Tensor) -> Tensor:
        """Begin to follow a state where it is made, and return it."""
        raise NotImplementedError

    def note(self, chain: Chain, state: list[Tensor]) -> None:
        """Keep a state and what it carries."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------------------------

    def _beginning(self, layer: str, state: list[Tensor]) -> Chain:
        chain = Chain(layer)
        in_first_round = bool(self.sequences) and self._turn == len(self.sequences[-1])
        if in_first_round:
            batch = len(self.sequences[-1][0].states[0])
            in_first_round = len(self.rows(chain, state[0])) == batch
        if in_first_round:
            self.sequences[-1].append(chain)
        else:
            self.sequences.append([chain])
            self._turn = 0
            self._memory.clear()
            self._taken.clear()
            self._begun = self._arrivals
        self._turn += 1
        return chain

    def _just_arrived(self, state: list[Tensor]) -> bool:
        now = self._current
        return len(now) == len(state) and all(
            part is other and part._version == version
            for part, (other, version) in zip(state, now, strict=True)
        )

    def _is_shared(self, state: list[Tensor]) -> bool:
        """Whether a state is the very tensor that another chain has just begun with."""
        if not self.sequences or self._turn != len(self.sequences[-1]):
            return False
        rows = [part.detach() for part in state]
        return all(p.untyped_storage().data_ptr() in self._memory for p in state) and any(
            len(chain.first) == len(rows)
            and all(_equal(a, b) for a, b in zip(chain.first, rows, strict=True))
            for chain in self.sequences[-1]
        )

    def _going_on(self, layer: str) -> Chain:
        sequence = self.sequences[-1]
        chain = sequence[self._turn % len(sequence)]
        self._turn += 1
        if chain.layer != layer:
            raise NotMeasurableError(
                f"The recurrent layers {sorted(self._layers)} are called in no regular order, so "
                "that no step can be told. Measure one of them: layer=..."
            )
        return chain

    def _attached(self, layer: str, state: list[Tensor]) -> tuple[list[Tensor], bool]:
        """Let parts that equal what a call returned carry what that carried.

        Returns:
            The state, and whether all of it was returned by one call.
        """
        for chain in reversed(self.sequences[-1] if self.sequences else []):
            if chain.layer != layer or not any(self.carries(r) for r in chain.results):
                continue
            found = [next((r for r in chain.results if _equal(r, part)), None) for part in state]
            if any(result is not None for result in found):
                attached = [
                    part if result is None or self.carries(part) else self.attach(part, result)
                    for part, result in zip(state, found, strict=True)
                ]
                return attached, all(result is not None for result in found)
        return state, False

    def _followed(self, chain: Chain, index: int, part: Tensor) -> Tensor:
        # The caller's own tensor is followed, for what it does with it besides; but a tensor that
        # is two states at once becomes two.
        turn = next(i for i, c in enumerate(self.sequences[-1]) if c is chain)
        role = (len(self.sequences) - 1, turn, index)
        if self._known is None:
            alone = _place(part) not in self._taken
        else:
            alone = role not in self._known.copied
        self._taken.add(_place(part))
        self._memory.add(part.untyped_storage().data_ptr())
        self._keep.append(part)
        place, made = self._made.get(id(part), (None, None))
        if place is not None and made is not None and made() is part:
            self._origins[role] = place, (chain.layer, turn, self.offset(chain, index))
        return self.follow(chain, index, part, in_place=alone)

    def _compare(self, chain: Chain, state: list[Tensor]) -> None:
        if chain.unmodified is None:
            return
        found = []
        for i, part in enumerate(state):
            places = chain.unmodified[i : i + 1] or range(len(chain.results))
            place = next(
                (p for p in places if p < len(chain.results) and _equal(chain.results[p], part)),
                None,
            )
            if place is None:
                chain.unmodified = None
                return
            found.append(place)
        chain.unmodified = found

    def offset(self, chain: Chain, index: int) -> int:
        """Return where part ``index`` of a chain's state begins in its rows."""
        return sum(self.rows(chain, earlier).shape[1] for earlier in chain.first[:index])

    def rows(self, chain: Chain, part: Tensor) -> Tensor:
        """Return a part of a state as ``(batch, size)``."""
        return as_rows(part, self.batch_dimension(chain.layer, part))

    def batch_dimension(self, layer: str, part: Tensor) -> int | None:
        """Return where the batch stands in a part of a state; None where there is none."""
        if self.level == "module" and isinstance(self._layers[layer], nn.RNNBase):
            return 1 if part.dim() == 3 else None
        if self.level == "kernel" and part.dim() == 3:
            return 1
        return 0 if part.dim() > 1 else None


def as_rows(part: Tensor, batch: int | None) -> Tensor:
    """Return ``(batch, size)``."""
    if batch is None:
        return part.reshape(1, -1)
    return part.movedim(batch, 0).flatten(1) if part.dim() > 1 else part.unsqueeze(1)


def like_part(rows: Tensor, part: Tensor, batch: int | None) -> Tensor:
    """Return ``(batch, size)`` laid out as ``part``; the inverse of :func:`as_rows`."""
    if batch is None:
        return rows.reshape(part.shape)
    shape = part.movedim(batch, 0).shape
    return rows.reshape(shape).movedim(0, batch)


def _place(tensor: Tensor) -> Any:
    """Return where in memory a tensor lies."""
    try:
        return tensor.data_ptr(), tensor.shape, tensor.stride()
    except RuntimeError:  # it has no memory of its own (sparse, or within torch.vmap)
        return id(tensor)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a.detach(), b.detach()))
