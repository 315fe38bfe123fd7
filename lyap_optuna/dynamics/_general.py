"""The general path: exponents through a model's own forward, whatever it does between two calls.

Tangents go through the forward in forward mode, one pass for each vector, on a float64 copy, and
nothing is rescaled on the way. So normalisation, leaks, residuals, an output that is fed back and
attention over earlier states are in the exponents, without an equation for any of them. Jacobians
between two arriving states come from reverse mode; they are accepted where the arriving state is
all that is known of the past, which is checked against the tangents.

Its limits: what the model's eval mode does is measured (free running or teacher forcing); what
PyTorch cannot differentiate (a token drawn by argmax) carries nothing, as in training; the state is
the full one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lyap_optuna.dynamics._arguments import mapped
from lyap_optuna.dynamics._capture import Forward, ModuleCall
from lyap_optuna.dynamics._carriers import Graphs, Tangents
from lyap_optuna.dynamics._errors import NotMeasurableError, RowsInteractError
from lyap_optuna.dynamics._follow import Beginnings, Sequence
from lyap_optuna.dynamics.base import Trajectory
from lyap_optuna.dynamics.forward_mode import forward_mode

_LEAST = 1e-290  # float64 has lost digits of what is smaller
_FEW = 64  # dimensions whose Jacobians of all steps cost about as much as the passes
_SAME = 1e-6  # relative; both sides are computed in float64, by other orders of operations


@dataclass(frozen=True)
class Piece:
    """Steps of one row that belong together.

    Args:
        sequence: Index of the sequence.
        row: Row of its batch.
        start: State before the first step.
        stop: State after the last.
    """

    sequence: int
    row: int
    start: int
    stop: int


class GeneralPath:
    """Follows the states of some layers, jointly, through a model's own forward.

    Args:
        forward: The model and its inputs.
        level: Where states are seen.
        names: The layers.
    """

    def __init__(self, forward: Forward, level: str, names: list[str]) -> None:
        self._forward = forward
        self.level = level
        self._names = names
        self._graphs: Graphs | None = None
        self.left_torch = False
        self._beginnings: Beginnings | None = None

    def tangents(
        self, seed: Callable[[int, int, int, int], Tensor]
    ) -> tuple[list[Sequence], list[ModuleCall]]:
        """Push one tangent vector through; return the sequences and the calls.

        Raises:
            NotMeasurableError: The forward cannot be differentiated.
        """
        if self._beginnings and self._beginnings.ambiguous:
            raise NotMeasurableError(
                f"Two states of {self._beginnings.ambiguous!r} begin as one tensor "
                "(h = c = zeros), and the model uses it as each of them between the calls, so "
                "that they cannot be told apart. Make two: h, c = zeros, zeros.clone()."
            )
        observer = Tangents(self.level, self._layers, seed, self._beginnings)
        with forward_mode(), forward_ad.dual_level():
            try:
                _, calls = self._forward.run(observer, double=True)
            except NotMeasurableError as error:
                raise _clearer(error) from error
            sequences = observer.finish()
            self.left_torch |= observer.left_torch
            _check_range(sequences)
            for call in calls:
                call.kernels = mapped(call.kernels, lambda t: forward_ad.unpack_dual(t).primal)
        if self._beginnings is None:
            self._beginnings = observer.beginnings
            if self._beginnings.again:
                return self.tangents(seed)
        return sequences, calls

    @property
    def graphs(self) -> Graphs:
        """The graph of a forward pass."""
        if self._graphs is None:
            observer = Graphs(self.level, self._layers, self._beginnings)
            try:
                self._forward.run(observer, double=True, grad=True)
            except NotMeasurableError:
                # a state that is written to after it was made cannot be a leaf from there on
                known = self._beginnings and replace(self._beginnings, made={})
                observer = Graphs(self.level, self._layers, known)
                self._forward.run(observer, double=True, grad=True)
            with torch.enable_grad():
                observer.finish()
            self._graphs = observer
        return self._graphs

    @property
    def _layers(self) -> dict[str, nn.Module]:
        return {name: self._forward.layers[name] for name in self._names}


class GeneralTrajectory(Trajectory):
    """States as they arrive at the layers, and the maps between them.

    Args:
        path: How to run the model.
        pieces: Which states are whose.
        sequences: States and one tangent of each, from a first pass.
    """

    def __init__(self, path: GeneralPath, pieces: list[Piece], sequences: list[Sequence]) -> None:
        self._path = path
        self.pieces = pieces
        self._sequences = sequences
        self._joint = [_joint(s, lambda chain: chain.states) for s in sequences]
        self.states = self._gathered(self._joint)
        self._checked: bool | None = None
        self._structural_rank = self.state_size

    def _gathered(self, joint: list[list[Tensor]]) -> Tensor:
        """Return ``(pieces, time, size)`` of the states after each step."""
        longest = max(piece.stop - piece.start for piece in self.pieces)
        size = joint[self.pieces[0].sequence][0].shape[1]
        out = joint[0][0].new_zeros(len(self.pieces), longest, size)
        for i, piece in enumerate(self.pieces):
            rows = [
                joint[piece.sequence][t][piece.row] for t in range(piece.start + 1, piece.stop + 1)
            ]
            out[i, : len(rows)] = torch.stack(rows)
        return out

    @property
    def ends_known(self) -> bool:
        """Whether the state after the last call is what the call returned, and so is known."""
        return all(chain.ends_known for sequence in self._sequences for chain in sequence)

    @property
    def single_threaded(self) -> bool:
        """Forward mode, and the graph of one forward pass."""
        return True

    def select(self, inputs: slice) -> "GeneralTrajectory":
        """Return the trajectory of some of the pieces."""
        part = GeneralTrajectory(self._path, self.pieces[inputs], self._sequences)
        part._checked, part._structural_rank = self._checked, self._structural_rank
        return part

    def images(self, rows: Tensor) -> Tensor | None:
        """Push each vector through the model's forward; ``(time, pieces, k, size)``."""
        sizes = [chain.states[0].shape[1] for chain in self._sequences[0]]
        images = []
        for row in rows:
            parts = row.split(sizes)

            def seed(
                chain: int, offset: int, batch: int, size: int, parts: tuple[Tensor, ...] = parts
            ) -> Tensor:
                return parts[chain][offset : offset + size].expand(batch, size)

            sequences, _ = self._path.tangents(seed)
            joint = [_joint(s, lambda chain: chain.carried) for s in sequences]
            images.append(self._gathered(joint))
        found = torch.stack(images, dim=2).transpose(0, 1)
        norms = found.norm(dim=(2, 3))
        inside = bool(torch.isfinite(found).all()) and bool((norms > _LEAST).all())
        if not inside and self.state_size <= _FEW and self.has_jacobians:
            return None  # they can be multiplied one by one, and rescaled
        return found

    @property
    def has_jacobians(self) -> bool:
        """Whether the arriving state is all that the past is known by."""
        if self._checked is None:
            try:
                self._checked = self._check()
            except RowsInteractError:
                raise
            except (RuntimeError, NotMeasurableError):
                self._checked = False
        return self._checked

    def _check(self) -> bool:
        graphs = self._path.graphs
        self._check_rows(graphs)
        ranks: list[int] = []
        generator = torch.Generator().manual_seed(0)
        for index, joint in enumerate(self._joint):
            tangents = _joint(self._sequences[index], lambda chain: chain.carried)
            for t, (before, after) in enumerate(pairwise(tangents)):
                covector = torch.randn(after.shape, generator=generator, dtype=after.dtype)
                covector = covector.to(after.device)
                pulled = graphs.pull(index, t, covector)
                ours, theirs = (pulled * before).sum(1), (covector * after).sum(1)
                scale = (pulled.norm(dim=1) * before.norm(dim=1)).maximum(
                    covector.norm(dim=1) * after.norm(dim=1)
                )
                same = (ours - theirs).abs() <= _SAME * scale
                same |= after.norm(dim=1) < _LEAST
                fresh = _reset_rows(self._sequences[index], t + 1)
                if not bool((same if fresh is None else same | fresh).all()):
                    return False
            steps = len(joint) - 1
            if steps < 1:
                continue
            for t in {0, steps // 2, steps - 1}:
                ranks.append(int(torch.linalg.matrix_rank(graphs.jacobian(index, t)).max()))
        self._structural_rank = max(ranks, default=self.state_size)
        return True

    def _check_rows(self, graphs: Graphs) -> None:
        """Check that the rows of a batch are systems of their own.

        Raises:
            RowsInteractError: One depends on another.
        """
        for index, joint in enumerate(self._joint):
            steps = len(joint) - 1
            for t in {0, steps // 2, steps - 1} if len(joint[0]) > 1 and steps > 0 else ():
                covector = torch.zeros_like(joint[0])
                covector[0] = 1
                if bool(graphs.pull(index, t, covector)[1:].any()):
                    raise RowsInteractError(
                        "The sequences of a batch act on one another between the calls of the "
                        "recurrent layer (agents, nodes of a graph, pooling): they are one system. "
                        "Pass a lyap_optuna.RecurrentDynamics of all of them together."
                    )

    def jacobians(self, inputs: Tensor, times: Tensor) -> Tensor:
        """Return Jacobians of pairs of piece and step, from reverse mode.

        Raises:
            NotMeasurableError: There are none.
        """
        if not self.has_jacobians:
            raise NotMeasurableError(
                "The states that arrive at the recurrent layers are not all that the model knows "
                "of the past (attention over earlier states, say): there is a maximum "
                "exponent, by lyapunov_readout, but no whole spectrum."
            )
        out = self.states.new_empty(len(inputs), self.state_size, self.state_size)
        wanted: dict[tuple[int, int], list[int]] = {}
        for i, (piece, t) in enumerate(zip(inputs.tolist(), times.tolist(), strict=True)):
            p = self.pieces[piece]
            wanted.setdefault((p.sequence, min(p.start + t, p.stop - 1)), []).append(i)
        for (sequence, t), places in wanted.items():
            jacobian = self._path.graphs.jacobian(sequence, t)
            rows = [self.pieces[int(inputs[i])].row for i in places]
            out[places] = jacobian[rows]
        return out

    def tangent(self, t: int, vectors: Tensor) -> Tensor:
        """Multiply by the Jacobians."""
        return vectors @ self.jacobian(t).mT

    def tangent_is_cheaper(self, k: int) -> bool:
        """Forming the Jacobian is what costs."""
        return False

    @property
    def closed_log_abs_det(self) -> Tensor | None:
        """Minus infinity where J is singular by construction (a normalised state lacks some)."""
        if not self.has_jacobians or self._structural_rank == self.state_size:
            return None
        return self.states.new_full(self.states.shape[:2], -torch.inf)


def pieces_of(
    sequences: list[Sequence], split: bool, lengths: Tensor | None = None
) -> tuple[list[Piece], Tensor]:
    """Cut sequences into pieces.

    Args:
        sequences: As followed.
        split: Whether rows are cut at their resets.
        lengths: Calls of each row that are no padding; None for all.

    Returns:
        The pieces, and whether each contains a reset.
    """
    pieces, reset = [], []
    for index, sequence in enumerate(sequences):
        steps = min(len(chain.states) for chain in sequence) - 1
        batch = sequence[0].states[0].shape[0]
        if lengths is not None and len(lengths) != batch:
            raise ValueError(
                f"lengths are {len(lengths)} numbers, but {batch} sequences reach the layer "
                f"{sequence[0].layer!r}."
            )
        if steps and any(chain.states[0].shape[0] != batch for chain in sequence):
            raise NotMeasurableError(
                f"{sequence[0].layer!r} is called with different numbers of sequences by turns, so "
                "that no joint step can be told. Pass a lyap_optuna.RecurrentDynamics."
            )
        together = len(sequence) > 1 and steps > 0
        resets = _joint_resets(sequence) if together else sequence[0].resets
        longest = steps
        for row in range(batch):
            steps = longest if lengths is None else min(longest, int(lengths[row]))
            cuts = [t for t, rows in sorted(resets.items()) if bool(rows[row]) and t <= steps]
            edges = [0, *cuts, steps] if split else [0, steps]
            if together and split and cuts:
                edges = [0, cuts[0]]  # a joint state is not followed anew after a reset
            for start, stop in pairwise(edges):
                # The step that resets belongs to no piece: what follows does not depend on it.
                end = stop - 1 if split and stop in cuts else stop
                if end > start + 1:
                    pieces.append(Piece(index, row, start, end))
                    reset.append(bool(cuts) and not split)
    return pieces, torch.tensor(reset, dtype=torch.bool)


def _joint(sequence: Sequence, of: Callable[..., list[Tensor]]) -> list[Tensor]:
    columns = [of(chain) for chain in sequence]
    return [torch.cat(parts, 1) for parts in zip(*columns, strict=False)]


def _joint_resets(sequence: Sequence) -> dict[int, Tensor]:
    """Return the rows whose whole joint state has lost its tangent, by the first such step."""
    found: dict[int, Tensor] = {}
    for t, (before, after) in enumerate(pairwise(_joint(sequence, lambda chain: chain.carried))):
        dead = (after == 0).all(1) & (before != 0).any(1)
        if bool(dead.any()):
            found[t + 1] = dead
    return found


def _reset_rows(sequence: Sequence, t: int) -> Tensor | None:
    return sequence[0].resets.get(t) if len(sequence) == 1 else None


def _check_range(sequences: list[Sequence]) -> None:
    for sequence in sequences:
        for chain in sequence:
            last = chain.carried[-1]
            if not bool(torch.isfinite(last).all()):
                raise NotMeasurableError(
                    "Tangents overflow float64 on the way through the model: pass shorter inputs."
                )


def _clearer(error: NotMeasurableError) -> NotMeasurableError:
    text = str(error)
    if "forward AD" in text or "forward-mode" in text or "jvp" in text:
        return NotMeasurableError(
            "The state of the recurrent layer is changed between its calls, and PyTorch cannot "
            f"follow it through the model's forward: {text}"
        )
    return error
