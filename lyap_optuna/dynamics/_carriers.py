"""What is carried from call to call: tangents (forward mode) or graphs (reverse mode)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lyap_optuna.dynamics._follow import Beginnings, Chain, Follower, as_rows, like_part


class Tangents(Follower):
    """One tangent vector for each sequence, in forward mode.

    Args:
        level: See :class:`Follower`.
        layers: See there.
        seed: ``seed(chain, offset, batch, size)``: where the tangent of some of the first state of
            chain number ``chain`` starts, its dimensions from ``offset`` on, ``(batch, size)``.
        beginnings: See :class:`Follower`.
    """

    dual = True

    def __init__(
        self,
        level: str,
        layers: dict[str, nn.Module],
        seed: Callable[[int, int, int, int], Tensor],
        beginnings: Beginnings | None = None,
    ) -> None:
        super().__init__(level, layers, beginnings)
        self._seed = seed

    def carries(self, part: Tensor) -> bool:
        """Whether a tensor has a tangent."""
        return forward_ad.unpack_dual(part).tangent is not None

    def attach(self, part: Tensor, result: Tensor) -> Tensor:
        """Give a tensor the tangent of an equal one, in place."""
        tangent = forward_ad.unpack_dual(result).tangent
        return part if tangent is None else made_dual(part, tangent)

    def follow(self, chain: Chain, index: int, part: Tensor, *, in_place: bool) -> Tensor:
        """Start a tangent."""
        tangent = self._start(chain, index, part)
        if in_place:
            return made_dual(part, tangent)
        dual: Tensor = forward_ad.make_dual(forward_ad.unpack_dual(part).primal.clone(), tangent)
        return dual

    def _start(self, chain: Chain, index: int, part: Tensor) -> Tensor:
        number = next(i for i, c in enumerate(self.sequences[-1]) if c is chain)
        return self._seeded(chain.layer, number, self.offset(chain, index), part)

    def _seeded(self, layer: str, chain: int, offset: int, part: Tensor) -> Tensor:
        layout = self.batch_dimension(layer, part)
        rows = as_rows(part, layout)
        seed = self._seed(chain, offset, *rows.shape).to(rows)
        return like_part(seed.expand_as(rows).clone(), part, layout).contiguous()

    def begin(self, layer: str, chain: int, offset: int, made: Tensor) -> Tensor:
        """Start a tangent where a state is made."""
        return made_dual(made, self._seeded(layer, chain, offset, made))

    def arriving(self, layer: str, state: list[Tensor]) -> list[Tensor]:
        """See a state; rows that were reset since the last call start anew."""
        arrived = self._arrivals
        state = super().arriving(layer, state)
        chain = self._last.get(layer)
        again = self._known is not None and arrived in self._known.again
        if chain is None or again or len(self.sequences[-1]) > 1 or len(chain.states) < 2:
            return state
        dead = (chain.carried[-1] == 0).all(1)
        # One step does not bring a tangent to zero by underflow; many do.
        dead &= chain.carried[-2].abs().amax(1) > _LEAST
        if not bool(dead.any()):
            return state
        # The tangent of a state that decays vanishes too, but then it is what the call returned.
        before = [r for r in chain.results if any(r.shape == part.shape for part in state)]
        moved = torch.zeros_like(dead)
        for part, result in zip(state, before[-len(state) :], strict=False):
            moved |= (self.rows(chain, part) != self.rows(chain, result)).any(1)
        dead &= moved
        if not bool(dead.any()):
            return state
        renewed = []
        for i, part in enumerate(state):
            old = forward_ad.unpack_dual(part)
            layout = self.batch_dimension(layer, part)
            tangent = self.rows(
                chain, torch.zeros_like(part) if old.tangent is None else old.tangent
            )
            start = self.rows(chain, self._start(chain, i, part))
            tangent = torch.where(dead.unsqueeze(1), start, tangent)
            renewed.append(made_dual(part, like_part(tangent, part, layout).contiguous()))
        chain.resets[len(chain.states) - 1] = dead
        chain.states.pop()
        chain.carried.pop()
        self.note(chain, renewed)
        return renewed

    def note(self, chain: Chain, state: list[Tensor]) -> None:
        """Keep a state and its tangents, ``(batch, size)`` each."""
        states, tangents = [], []
        for part in state:
            primal, tangent = forward_ad.unpack_dual(part)
            states.append(self.rows(chain, primal))
            tangents.append(
                torch.zeros_like(states[-1]) if tangent is None else self.rows(chain, tangent)
            )
        chain.states.append(torch.cat(states, 1).detach().clone())
        chain.carried.append(torch.cat(tangents, 1).detach().clone())


_LEAST = 1e-200
"""A tangent above this comes to zero in one step by a reset: float64 underflows at 1e-308."""


def made_dual(part: Tensor, tangent: Tensor) -> Tensor:
    old = forward_ad.unpack_dual(part)
    dual: Tensor = forward_ad.make_dual(old.primal.clone(), tangent)
    try:
        part.copy_(dual)
    except RuntimeError:  # an expanded tensor has no memory of its own
        return dual
    return part


class Graphs(Follower):
    """The graph from each state to the next, in reverse mode."""

    def carries(self, part: Tensor) -> bool:
        """Whether a tensor has a graph."""
        return part.requires_grad

    def attach(self, part: Tensor, result: Tensor) -> Tensor:
        """Return the equal tensor that has the graph."""
        return result

    def follow(self, chain: Chain, index: int, part: Tensor, *, in_place: bool) -> Tensor:
        """Begin the graph."""
        return (part if in_place else part.detach().clone()).requires_grad_()

    def begin(self, layer: str, chain: int, offset: int, made: Tensor) -> Tensor:
        """Begin the graph where a state is made."""
        return made.requires_grad_()

    def note(self, chain: Chain, state: list[Tensor]) -> None:
        """Keep where in the graph the state stands, and the state as rows that depend on it."""
        chain.states.append(torch.cat([self.rows(chain, part).clone() for part in state], 1))
        edges: list[tuple[GradientEdge | None, Tensor]] = [
            (get_gradient_edge(part) if part.requires_grad else None, part.detach())
            for part in state
        ]
        chain.carried.append(edges)

    @torch.enable_grad()
    def jacobian(self, sequence: int, t: int) -> Tensor:
        """Return the Jacobian of state t + 1 by state t, ``(batch, size, size)``.

        Reverse mode gives total derivatives: where one part of a state depends on another (an
        LSTM's h on its c), what flows through the one counts for the other too. With T the total
        derivative of state t + 1 and D that of state t itself, both by the parts of state t, the
        Jacobian is T D^-1.

        Raises:
            RuntimeError: There is no graph between the two.
        """
        total = self._total(sequence, t + 1, t)
        if sum(len(chain.carried[t]) for chain in self.sequences[sequence]) == 1:
            return total
        itself = self._total(sequence, t, t)
        jacobian: Tensor = torch.linalg.solve(itself, total, left=False)
        return jacobian

    @torch.enable_grad()
    def pull(self, sequence: int, t: int, covector: Tensor) -> Tensor:
        """Return w^T J_t for one covector w of each row, ``(batch, size)``.

        With y = w^T J_t and T, D as in :meth:`jacobian`: y D = w^T T. D - 1 is nilpotent, so y is
        found by as many steps as a state has parts.

        Raises:
            RuntimeError: There is no graph between the two states.
        """
        total = self._pulled(sequence, t + 1, t, covector)
        found = total
        for _ in range(sum(len(chain.carried[t]) for chain in self.sequences[sequence]) - 1):
            found = total - (self._pulled(sequence, t, t, found) - found)
        return found

    def _pulled(self, sequence: int, of: int, by: int, covector: Tensor) -> Tensor:
        chains = self.sequences[sequence]
        outputs = torch.cat([chain.states[of] for chain in chains], 1)
        targets = [(chain, *edge) for chain in chains for edge in chain.carried[by]]
        edges = [edge for _, edge, _ in targets if edge is not None]
        if not edges or not outputs.requires_grad:
            raise RuntimeError("The states are not connected by a graph.")
        by_edge = iter(
            torch.autograd.grad(outputs, edges, covector, retain_graph=True, allow_unused=True)
        )
        columns, first = [], 0
        for chain, edge, part in targets:
            gradient = None if edge is None else next(by_edge)
            layout = self.batch_dimension(chain.layer, part)
            rows = as_rows(part if gradient is None else gradient, layout)
            if gradient is None:  # nothing flows into it: it depends on itself alone
                own = covector[:, first : first + rows.shape[1]]
                rows = own if of == by else torch.zeros_like(rows)
            columns.append(rows)
            first += rows.shape[1]
        return torch.cat(columns, 1).detach()

    def _total(self, sequence: int, of: int, by: int) -> Tensor:
        chains = self.sequences[sequence]
        outputs = torch.cat([chain.states[of] for chain in chains], 1)
        targets = [(chain, *edge) for chain in chains for edge in chain.carried[by]]
        edges = [edge for _, edge, _ in targets if edge is not None]
        batch, size = outputs.shape
        units = torch.eye(size, dtype=outputs.dtype, device=outputs.device)
        wanted = units.unsqueeze(1).expand(size, batch, size)
        by_edge = iter(_gradients(outputs, edges, wanted))
        columns = []
        for chain, edge, part in targets:
            gradient = None if edge is None else next(by_edge)
            layout = self.batch_dimension(chain.layer, part)
            width = as_rows(part, layout).shape[1]
            if gradient is not None:
                columns.append(torch.stack([as_rows(g, layout) for g in gradient], 1))
            elif of == by:  # nothing flows into it: it depends on itself alone
                columns.append(_unit_columns(outputs, sum(c.shape[2] for c in columns), width))
            else:
                columns.append(outputs.new_zeros(batch, size, width))
        return torch.cat(columns, 2).detach()


def _unit_columns(outputs: Tensor, first: int, width: int) -> Tensor:
    batch, size = outputs.shape
    columns = outputs.new_zeros(batch, size, width)
    columns[:, range(first, first + width), range(width)] = 1
    return columns.detach()


def _gradients(outputs: Tensor, edges: list[Any], wanted: Tensor) -> list[Tensor | None]:
    if not edges or not outputs.requires_grad:
        raise RuntimeError("The states are not connected by a graph.")
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
    try:
        return list(torch.autograd.grad(outputs, edges, wanted, is_grads_batched=True, **options))
    except RuntimeError:
        rows = [torch.autograd.grad(outputs, edges, g, **options) for g in wanted]
        return [None if c[0] is None else torch.stack(c) for c in zip(*rows, strict=True)]
