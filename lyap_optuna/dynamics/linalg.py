"""Factorisations of batches of matrices."""

import torch
from torch import Tensor

_SMALL = 64  # rows: a quarter of where wrong factors were seen


def _in_one_call(matrices: Tensor) -> bool:
    return matrices.device.type != "cpu" or matrices.shape[1] <= _SMALL


def lu_factor(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Factorise ``(n, rows, columns)`` by LU with partial pivoting.

    On the CPU larger matrices are factorised one after another, each by all threads of the process.
    PyTorch's batched call would spread them over threads, but with more than one thread it was
    measured to return wrong factors, without an error, for 256 rows and more (torch 2.13 with
    MKL 2024.2; ``torch.linalg.slogdet`` is affected too); one by one costs
    the same, but for small ones.

    Returns:
        The packed factors, column-major, and the pivots (LAPACK's, from 1).
    """
    if _in_one_call(matrices):
        factors, pivots, _ = torch.linalg.lu_factor_ex(matrices)
        return factors, pivots
    n, rows, columns = matrices.shape
    factors = matrices.new_empty(n, columns, rows).mT
    pivots = matrices.new_empty(n, min(rows, columns), dtype=torch.int32)
    info = matrices.new_empty(n, dtype=torch.int32)
    for i in range(n):
        torch.linalg.lu_factor_ex(matrices[i], out=(factors[i], pivots[i], info[i]))
    return factors, pivots


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype that logarithms are summed in: float64, but where MPS has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def wide(tensor: Tensor) -> Tensor:
    """Convert to the dtype that logarithms are summed in."""
    return tensor.to(wide_dtype(tensor.device))


def log_abs_det(matrices: Tensor) -> Tensor:
    """Return log|det| of a batch of square matrices, ``(n,)`` in float64, by LU."""
    return wide(lu_factor(matrices)[0].diagonal(dim1=-2, dim2=-1)).abs().log().sum(-1)
