"""The derivative of a step, written down once for all steps of all inputs.

A step of a cell is made of products with constant matrices, of elementwise functions, sums,
products and slices. Called once with the states before all steps, on a tensor that writes down
what happens to it, it leaves a *tape* of linear operations: products with the matrices, and with
*gains* that differ between steps, (batch, time, m). Tangent vectors are pushed through the tape at
one step, without calling the cell again; a Jacobian is formed from matrices that are the same for
all steps for as long as no gain has been met, which leaves elementwise work where a product per
column was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp

_ELEMENTWISE = frozenset(
    (
        "__pow__",
        "abs",
        "atan",
        "celu",
        "clamp",
        "cos",
        "elu",
        "erf",
        "exp",
        "gelu",
        "hardsigmoid",
        "hardtanh",
        "leaky_relu",
        "log",
        "log1p",
        "logsigmoid",
        "mish",
        "neg",
        "pow",
        "reciprocal",
        "relu",
        "relu6",
        "rsqrt",
        "selu",
        "sigmoid",
        "silu",
        "sin",
        "softplus",
        "softsign",
        "sqrt",
        "square",
        "tanh",
    )
)
"""Functions of one tensor that act on each entry by itself."""


class UntraceableError(Exception):
    """A step does something that the tape has no word for."""


@dataclass(frozen=True)
class _Operation:
    """One entry of a tape; ``of`` are the entries it acts on, 0 the state itself."""

    kind: str
    of: tuple[int, ...]
    constant: Any = None


class Tape:
    """Linear operations in order, from the state's perturbation to that of the next state."""

    def __init__(self) -> None:
        self._operations: list[_Operation] = []
        self._result = 0

    def push(self, t: int, vectors: Tensor) -> Tensor:
        """Return the images of tangent vectors ``(batch, k, state)`` under step t."""
        values = [vectors]
        for operation in self._operations:
            x, constant = values[operation.of[0]], operation.constant
            if operation.kind == "matmul":
                x = x @ constant
            elif operation.kind == "gain":
                x = x * constant[:, t].unsqueeze(1)
            elif operation.kind == "scale":
                x = x * constant
            elif operation.kind == "add":
                x = x + values[operation.of[1]]
            elif operation.kind == "slice":
                x = x[..., constant]
            else:
                x = torch.cat([values[i] for i in operation.of], dim=-1)
            values.append(x)
        return values[self._result]

    def matrices(self, inputs: Tensor, times: Tensor, like: Tensor, size: int) -> Tensor:
        """Return the Jacobians of pairs of input and step, ``(n, state, state)``.

        Entries are ``(m, state)`` where they are the same for all pairs.
        """
        values = [torch.eye(size, dtype=like.dtype, device=like.device)]
        for operation in self._operations:
            x, constant = values[operation.of[0]], operation.constant
            if operation.kind == "matmul":
                x = constant.T @ x
            elif operation.kind == "gain":
                x = x * constant[inputs, times].unsqueeze(-1)
            elif operation.kind == "scale":
                x = x * (constant.unsqueeze(-1) if isinstance(constant, Tensor) else constant)
            elif operation.kind == "add":
                x = x + values[operation.of[1]]
            elif operation.kind == "slice":
                x = x[..., constant, :]
            else:
                parts = [values[i] for i in operation.of]
                n = (len(inputs),) if any(part.dim() == 3 for part in parts) else ()
                x = torch.cat([part.expand(*n, *part.shape[-2:]) for part in parts], dim=-2)
            values.append(x)
        return values[self._result].expand(len(inputs), size, size)


def record(step: Callable[[Any], Any], before: Tensor) -> tuple[Tape, Tensor]:
    """Write down the derivative of a step.

    Args:
        step: ``step(states: (batch * time, state))``, made of PyTorch operations.
        before: The states before all steps, ``(batch, time, state)``.

    Returns:
        The tape, and what the step returned, ``(batch, time, state)``.

    Raises:
        UntraceableError: The step uses an operation that is not among those that are understood.
    """
    tape = Tape()
    result = step(_Traced(before.flatten(0, 1), 0, tape, before.shape[:2]))
    if not isinstance(result, _Traced):
        raise UntraceableError("the step does not depend on its state")
    tape._result = result._entry
    return tape, result._value.unflatten(0, before.shape[:2])


class _Traced:
    """A tensor ``(batch * time, m)`` that writes down how it depends on the state."""

    def __init__(self, value: Tensor, entry: int, tape: Tape, shape: torch.Size) -> None:
        self._value, self._entry, self._tape, self._shape = value, entry, tape, shape

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if name in ("cat", "concat"):
            return _cat(args[0], *args[1:], **kwargs)
        if name in ("chunk", "split") and isinstance(args[0], cls):
            return getattr(args[0], name)(*args[1:], **kwargs)
        if name == "linear" and isinstance(args[0], cls):
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            out = args[0] @ args[1].T
            return out if bias is None else out + bias
        if name in _ELEMENTWISE and isinstance(args[0], cls):
            return args[0]._elementwise(func, *args[1:], **kwargs)
        if name.strip("_") in _BINARY and len(args) == 2 and not kwargs:
            return _BINARY[name.strip("_")](*args)
        raise UntraceableError(name)

    def _write(self, value: Tensor, kind: str, constant: Any, *others: int) -> "_Traced":
        operations = self._tape._operations
        operations.append(_Operation(kind, (self._entry, *others), constant))
        return _Traced(value, len(operations), self._tape, self._shape)

    def _gained(self, value: Tensor, gain: Any) -> "_Traced":
        """Write down a product with a gain: of all steps, or one that is the same for all."""
        if isinstance(gain, Tensor):
            gain = gain.detach()
            if gain.dim() == 2 and gain.shape[0] == len(self._value):
                gain = gain.expand_as(value).unflatten(0, self._shape)
                return self._write(value, "gain", gain)
            if gain.dim() > 1 and gain.shape[:-1].numel() > 1:
                raise UntraceableError("a product with a tensor of another shape")
            gain = gain.reshape(-1) if gain.dim() else gain
        if value.shape != self._value.shape:
            raise UntraceableError("a broadcast state")
        return self._write(value, "scale", gain)

    def _elementwise(self, func: Any, *args: Any, **kwargs: Any) -> "_Traced":
        value = self._value
        one = torch.ones_like(value)
        result: Any = jvp(lambda x: func(x, *args, **kwargs), (value,), (one,))
        return self._gained(result[0].detach(), result[1])

    # What a cell asks of a tensor ----------------------------------------------------------------

    def dim(self) -> int:
        return self._value.dim()

    def size(self, *args: int) -> Any:
        return self._value.size(*args)

    @property
    def shape(self) -> torch.Size:
        return self._value.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._value.dtype

    @property
    def device(self) -> torch.device:
        return self._value.device

    def split(self, sizes: Any, dim: int = 0) -> tuple["_Traced", ...]:
        if dim % 2 != 1:
            raise UntraceableError("a split along the batch")
        out, start = [], 0
        for part in self._value.split(sizes, dim=1):
            stop = start + part.shape[1]
            out.append(self._write(part, "slice", slice(start, stop)))
            start = stop
        return tuple(out)

    def chunk(self, chunks: int, dim: int = 0) -> tuple["_Traced", ...]:
        return self.split(-(-self._value.shape[1] // chunks), dim)

    def tanh(self) -> "_Traced":
        return self._elementwise(torch.tanh)

    def sigmoid(self) -> "_Traced":
        return self._elementwise(torch.sigmoid)

    def __neg__(self) -> "_Traced":
        return self._gained(-self._value, -1.0)

    def __pow__(self, exponent: Any) -> "_Traced":
        return self._elementwise(torch.pow, exponent)

    def __add__(self, other: Any) -> "_Traced":
        return _add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> "_Traced":
        return _add(self, -other)

    def __rsub__(self, other: Any) -> "_Traced":
        return _add(-self, other)

    def __mul__(self, other: Any) -> "_Traced":
        return _mul(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "_Traced":
        return _mul(self, other**-1 if isinstance(other, _Traced) else 1 / other)

    def __rtruediv__(self, other: Any) -> "_Traced":
        return _mul(self**-1, other)

    def __matmul__(self, other: Any) -> "_Traced":
        if isinstance(other, _Traced) or other.dim() != 2:
            raise UntraceableError("a product with a matrix that depends on the state")
        return self._write(self._value @ other, "matmul", other.detach())


def _add(a: Any, b: Any) -> _Traced:
    if not isinstance(a, _Traced):
        a, b = b, a
    if isinstance(b, _Traced):
        value = a._value + b._value
        if value.shape != a._value.shape or value.shape != b._value.shape:
            raise UntraceableError("a broadcast state")
        return a._write(value, "add", None, b._entry)  # type: ignore[no-any-return]
    value = a._value + b
    if value.shape != a._value.shape:
        raise UntraceableError("a broadcast state")
    return _Traced(value, a._entry, a._tape, a._shape)


def _mul(a: Any, b: Any) -> _Traced:
    if not isinstance(a, _Traced):
        a, b = b, a
    if not isinstance(b, _Traced):
        return a._gained(a._value * b, b)  # type: ignore[no-any-return]
    value = a._value * b._value
    left, right = a._gained(value, b._value), b._gained(value, a._value)
    return left._write(value, "add", None, right._entry)  # type: ignore[no-any-return]


def _cat(parts: Any, dim: int = 0) -> _Traced:
    first = next(part for part in parts if isinstance(part, _Traced))
    if dim % 2 != 1 or not all(isinstance(part, _Traced) for part in parts):
        raise UntraceableError("a concatenation with what does not depend on the state")
    operations = first._tape._operations
    operations.append(_Operation("cat", tuple(part._entry for part in parts)))
    value = torch.cat([part._value for part in parts], dim=1)
    return _Traced(value, len(operations), first._tape, first._shape)


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": _add,
    "radd": _add,
    "sub": lambda a, b: _add(a, -b),
    "rsub": lambda a, b: _add(-a, b),
    "mul": _mul,
    "multiply": _mul,
    "rmul": _mul,
    "matmul": lambda a, b: a @ b,
    "div": lambda a, b: a / b if isinstance(a, _Traced) else _mul(b**-1, a),
    "true_divide": lambda a, b: a / b if isinstance(a, _Traced) else _mul(b**-1, a),
    "truediv": lambda a, b: a / b if isinstance(a, _Traced) else _mul(b**-1, a),
}
