"""The tangent vectors that a measurement starts from.

Unit vectors never leave their block where units are decoupled (an identity recurrence, say), and
then the leading exponents are missed. So vectors start from a fixed random orthonormal basis.
"""

import functools
from typing import Any

import torch
from torch import Tensor

_SEED = 20_220_614  # any will do, as long as it is the same everywhere
_WORTH_KEEPING = 2**18  # numbers


def random_start(size: int, k: int) -> Tensor:
    """Return the first k columns of the fixed random orthonormal basis, ``(size, k)`` float64.

    Columns are drawn one by one on the CPU, so that k nests and every dtype and device starts
    alike.
    """
    return _kept(size, k) if size * k <= _WORTH_KEEPING else _drawn(size, k)


def _drawn(size: int, k: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(_SEED)
    columns = [
        torch.randn(size, generator=generator, dtype=torch.float64, device="cpu") for _ in range(k)
    ]
    basis: Tensor = torch.linalg.qr(torch.stack(columns, dim=1))[0]
    return basis


_kept = functools.lru_cache(maxsize=16)(_drawn)


def starting_vectors(start: Any, size: int, k: int) -> Tensor:
    """Return k orthonormal starting vectors as columns, ``(size, k)`` float64 on the CPU.

    Args:
        start: None, ``"identity"``, or a matrix of at least k columns, of which the first count.
        size: Dimension of the state.
        k: Number of vectors.

    Raises:
        ValueError: The matrix does not fit, is not finite or has not full rank.
    """
    if start is None:
        return random_start(size, k)
    if isinstance(start, str):
        if start != "identity":
            raise ValueError(f"start must be None, 'identity' or a matrix, but got {start!r}.")
        return torch.eye(size, k, dtype=torch.float64, device="cpu")
    try:
        matrix = torch.as_tensor(start).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"start must be None, 'identity' or a matrix, but got {type(start).__name__}."
        ) from None
    if matrix.dim() != 2 or len(matrix) != size or matrix.shape[1] < k:
        raise ValueError(
            f"start must hold {k} vectors of the state's {size} dimensions as columns, "
            f"({size}, {k}), but has shape {tuple(matrix.shape)}."
        )
    matrix = matrix[:, :k]
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError("start contains NaN or infinite values.")
    basis: Tensor
    basis, r = torch.linalg.qr(matrix)
    if bool((r.diagonal().abs() <= 1e-12 * matrix.norm(dim=0)).any()):
        raise ValueError("The columns of start must be linearly independent.")
    return basis


def as_rows(vectors: Tensor, states: Tensor) -> Tensor:
    """Return the vectors for every sequence, ``(batch, k, state)`` like ``states``."""
    rows = vectors.mT.to(states.device, states.dtype, copy=True)
    return rows.expand(len(states), -1, -1)
