"""Forward mode where PyTorch is slow: one step of its kernels, and sums and products.

PyTorch takes a step of a cell apart into some twenty operations, each with a rule of its own; the
equations of this package give the same tangent from one product. And where one of two operands has
no tangent, PyTorch adds a symbolic zero, which is worked out in Python.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from lyap_optuna.dynamics.gated import GatedCell, LayerTrajectory
from lyap_optuna.dynamics.torch_kernels import KernelCall, cell_of, read_kernel_call


class DualKernels:
    """Runs single steps of one layer with tangents; cells are built once for their weights."""

    def __init__(self) -> None:
        # by where all of their weights lie, which are kept: cells may share some of them
        self._cells: dict[tuple[int, ...], tuple[list[Tensor], GatedCell]] = {}

    def run(self, function: Any, name: str, args: tuple[Any, ...]) -> Any:
        """Run a kernel on tensors with tangents.

        Returns:
            What ``function`` returns, with tangents; None where this is not one step of one layer
            whose inputs or state have some.
        """
        found: list[tuple[Tensor, Tensor | None]] = []

        def primal(tensor: Tensor) -> Tensor:
            unpacked = forward_ad.unpack_dual(tensor)
            part: Tensor = unpacked.primal
            tangent = unpacked.tangent
            found.append((part, tangent))
            return part

        plain = _mapped(args, primal)
        if all(tangent is None for _, tangent in found):
            return None
        result = function(*plain)
        call = read_kernel_call(name, plain, result)
        single = call.layers == 1 and call.directions == 1 and call.inputs.shape[1] == 1
        sizes = {part.shape[-1] for part in call.initial}
        if not single or call.batch_sizes is not None or len(sizes) > 1:
            return None
        n = 1 + len(call.initial)
        if any(tangent is not None for _, tangent in found[n:]):
            return None  # weights that depend on the state
        # inputs and state are the first tensors of every kernel's arguments
        inputs, *state = (tangent for _, tangent in found[:n])
        batch = call.inputs.shape[0]
        image = self._image(call, inputs, state, batch)
        parts = [part.unsqueeze(0) for part in image.split(next(iter(sizes)), 1)]
        return _with_tangents(name, result, parts)

    def _image(
        self, call: KernelCall, inputs: Tensor | None, state: list[Tensor | None], batch: int
    ) -> Tensor:
        weights = call.weights[0]
        key = tuple(weight.data_ptr() for weight in weights)
        if key not in self._cells:
            self._cells[key] = (weights, cell_of(call.kernel, weights, "full"))
        cell = self._cells[key][1]
        initial = tuple(part[0] for part in call.initial)
        linearised = cell.linearise(call.inputs, initial, call.outputs)
        vectors = torch.cat(
            [
                torch.zeros_like(part) if tangent is None else tangent.reshape(batch, -1)
                for part, tangent in zip(initial, state, strict=True)
            ],
            1,
        )
        below = None if inputs is None else inputs.reshape(batch, 1, -1)
        path = LayerTrajectory(cell.weights, linearised)
        image: Tensor = path.tangent(0, vectors.unsqueeze(1), below)[:, 0]
        return image


def dual_arithmetic(function: Any, name: str, args: tuple[Any, ...]) -> Tensor | None:
    """Run a sum, difference, product or quotient of which one operand alone has a tangent.

    Returns:
        The result with its tangent; None where PyTorch is to run it.
    """
    if name not in _ARITHMETIC or len(args) != 2:
        return None
    if any(isinstance(a, Tensor) and is_functorch_wrapped_tensor(a) for a in args):
        return None  # within torch.vmap, say
    unpacked = [forward_ad.unpack_dual(a) if isinstance(a, Tensor) else None for a in args]
    tangents = [None if u is None else u.tangent for u in unpacked]
    if (tangents[0] is None) == (tangents[1] is None):
        return None
    a, b = (x if u is None else u.primal for x, u in zip(args, unpacked, strict=True))
    rule = _ARITHMETIC[name]
    first = tangents[0] is not None
    moved = rule(tangents[0], b, True) if first else rule(tangents[1], a, False)
    if moved is None:
        return None
    result = function(a, b)
    if moved.dtype != result.dtype:
        return None
    dual: Tensor = forward_ad.make_dual(result, moved.expand_as(result).contiguous())
    return dual


def _product(tangent: Tensor, other: Any, first: bool) -> Tensor:
    moved: Tensor = tangent * other
    return moved


def _sum(tangent: Tensor, other: Any, first: bool) -> Tensor:
    return tangent


def _difference(tangent: Tensor, other: Any, first: bool) -> Tensor:
    return tangent if first else -tangent


def _reversed_difference(tangent: Tensor, other: Any, first: bool) -> Tensor:
    return -tangent if first else tangent


def _quotient(tangent: Tensor, other: Any, first: bool) -> Tensor | None:
    return tangent / other if first else None


_ARITHMETIC: dict[str, Callable[[Any, Any, bool], Tensor | None]] = {
    **dict.fromkeys(("mul", "__mul__", "__rmul__"), _product),
    **dict.fromkeys(("add", "__add__", "__radd__"), _sum),
    **dict.fromkeys(("sub", "__sub__"), _difference),
    "__rsub__": _reversed_difference,
    **dict.fromkeys(("div", "__truediv__"), _quotient),
}


def _mapped(args: tuple[Any, ...], function: Any) -> tuple[Any, ...]:
    def one(item: Any) -> Any:
        if isinstance(item, Tensor):
            return function(item)
        if isinstance(item, (list, tuple)):
            return type(item)(one(part) for part in item)
        return item

    return tuple(one(item) for item in args)


def _with_tangents(name: str, result: Any, parts: list[Tensor]) -> Any:
    def dual(tensor: Tensor, tangent: Tensor) -> Tensor:
        made: Tensor = forward_ad.make_dual(tensor, tangent.reshape(tensor.shape).contiguous())
        return made

    if isinstance(result, Tensor):
        return dual(result, parts[0])
    if name == "lstm_cell":
        return tuple(dual(r, p) for r, p in zip(result, parts, strict=True))
    # outputs, then the state; the outputs of one step are h
    return tuple(dual(r, p) for r, p in zip(result, [parts[0], *parts], strict=True))
