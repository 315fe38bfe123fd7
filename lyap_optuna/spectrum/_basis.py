"""Ways to carry a basis of tangent vectors along a trajectory.

Exponents depend only on the nested spans of the leading vectors, so every basis gives the same
numbers in exact arithmetic: vectors pushed by the tangent map or by a Jacobian (QR), Householder
reflectors, triangular factors (LU).

Vectors are rows, ``(batch, k, state)``: Z^T = Q^T J^T.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from lyap_optuna.dynamics.base import Trajectory
from lyap_optuna.dynamics.linalg import lu_factor


class Basis(Protocol):
    """Nested spans of tangent vectors of every input."""

    def advance(self, t: int) -> None:
        """Map the vectors by J_t."""

    def orthonormalise(self, exact: bool) -> Tensor:
        """Begin a new interval; return its triangular factor ``(batch, k, k)``.

        The factor may be overwritten by the next call; what lies below its diagonal is anything.
        Unless ``exact``, the factor of a basis that is not orthonormal will do.
        """


class Vectors:
    """Vectors pushed by the tangent map, no Jacobian formed; QR. For few of them."""

    def __init__(self, trajectory: Trajectory, rows: Tensor) -> None:
        self._trajectory, self._rows = trajectory, rows

    def advance(self, t: int) -> None:
        """Push the vectors."""
        self._rows = self._trajectory.tangent(t, self._rows)

    def orthonormalise(self, exact: bool) -> Tensor:
        """QR."""
        factor: Tensor
        q, factor = torch.linalg.qr(self._rows.mT)
        self._rows = q.mT
        return factor


class Textbook(Vectors):
    """Algorithms 1 and 2 of the paper as printed: form J, multiply, QR. The reference."""

    def advance(self, t: int) -> None:
        """Multiply by J_t."""
        self._rows = (self._trajectory.jacobian(t) @ self._rows.mT).mT


class Reflectors:
    """Householder QR; Q is not formed where its reflectors can go into the next Jacobian."""

    def __init__(self, trajectory: Trajectory, rows: Tensor) -> None:
        self._trajectory, self._k = trajectory, rows.shape[1]
        self._rows: Tensor | None = rows
        self._reflectors = self._tau = rows
        self._thin = 2 * self._k <= trajectory.state_size  # forming Q costs less than applying it

    def advance(self, t: int) -> None:
        """Multiply by J_t, from the right by the reflectors where Q is not formed."""
        jacobian = self._trajectory.jacobian(t)
        if self._rows is None and self._thin:
            self._rows = torch.linalg.householder_product(self._reflectors, self._tau).mT
        if self._rows is None:
            product = torch.ormqr(self._reflectors, self._tau, jacobian, left=False)
            self._rows = product[..., : self._k].mT
        else:
            self._rows = self._rows @ jacobian.mT

    def orthonormalise(self, exact: bool) -> Tensor:
        """QR, as reflectors."""
        assert self._rows is not None
        self._reflectors, self._tau = torch.geqrf(self._rows.mT)
        self._rows = None
        return self._reflectors[:, : self._k]


class Triangular(Reflectors):
    """LU with partial pivoting in place of QR, closed by a QR.

    With Z = P L U the next basis is P L; P goes into the rows of the next transposed Jacobian,
    and L, lower-triangular, is multiplied in blocks of columns.
    """

    _factors: tuple[Tensor, Tensor] | None = None

    def advance(self, t: int) -> None:
        """Multiply by J_t, permuted, and by the triangular factor."""
        if self._factors is None:
            super().advance(t)
            return
        factors, pivots = self._factors
        self._factors = None
        _unit_lower(factors)
        transposed = _permuted(self._trajectory.jacobian(t).mT, _permutation(factors, pivots))
        self._rows = _times_lower(factors.mT, transposed)

    def orthonormalise(self, exact: bool) -> Tensor:
        """LU, or QR."""
        if exact:
            return super().orthonormalise(exact)
        assert self._rows is not None
        self._factors = lu_factor(self._rows.mT)
        self._rows = None
        return self._factors[0][:, : self._k]


METHODS: Mapping[str, Callable[[Trajectory, Tensor], Basis]] = {
    "textbook": Textbook,
    "tangent": Vectors,
    "qr": Reflectors,
    "lu": Triangular,
}


def _unit_lower(factors: Tensor) -> None:
    # Blocks on the diagonal become unit lower-triangular; what lies above is never read.
    for start, end in _column_blocks(factors.shape[2]):
        block = factors[:, start:end, start:end]
        block.tril_(-1)
        block.diagonal(dim1=1, dim2=2).fill_(1)


def _times_lower(lower_transposed: Tensor, transposed: Tensor) -> Tensor:
    # (J P L)^T = L^T (J P)^T, skipping the zeros of L in blocks of columns.
    batch, k, size = lower_transposed.shape
    out = transposed.new_empty(batch, k, size)
    for start, end in _column_blocks(k):
        # `out` slices are not contiguous for one call over the batch: one matrix at a time
        for b in range(batch):
            torch.mm(
                lower_transposed[b, start:end, start:],
                transposed[b, start:],
                out=out[b, start:end],
            )
    return out


def _column_blocks(k: int) -> list[tuple[int, int]]:
    n = max(1, min(8, k // 64))
    edges = [i * k // n for i in range(n + 1)]
    return list(pairwise(edges))


def _permutation(factors: Tensor, pivots: Tensor) -> Tensor:
    # p with (J P)[:, j] = J[:, p[j]]: the row of each column's one in P.
    p, _, _ = torch.lu_unpack(factors, pivots, unpack_data=False)
    size = p.shape[1]
    columns: Tensor = torch.arange(size, dtype=p.dtype, device=p.device) @ p
    order: Tensor = columns.long()
    return order


def _permuted(transposed: Tensor, permutation: Tensor) -> Tensor:
    # Whole rows are moved: the columns of J are the rows of its transpose.
    batch, size, _ = transposed.shape
    offsets = torch.arange(batch, device=transposed.device).unsqueeze(1) * size
    flat = (permutation + offsets).view(-1)
    moved: Tensor = transposed.reshape(batch * size, size).index_select(0, flat)
    return moved.view(batch, size, size)
