"""A private copy of a model, and a forward pass that leaves no trace.

Nothing that a forward pass may write to is shared with the original: parameters, buffers, tensors
and generators that modules keep, what hooks and patched functions close over. Random numbers come
from a generator of our own.
"""

import contextlib
import copy
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lyap_optuna.dynamics._errors import NotMeasurableError
from lyap_optuna.dynamics._find import unwrapped, wrapped_by

# The copy --------------------------------------------------------------------------------------


def private_copy(
    model: nn.Module, dtype: torch.dtype | None = None
) -> tuple[nn.Module, dict[int, Any]]:
    """Copy a model, in eval mode; nothing is shared.

    Plain ``copy.deepcopy`` refuses tensors with a gradient history (weight normalisation leaves
    some, and so does a model that keeps its last output), copies wrappers, and shares what
    functions close over; so tensors, wrappers and functions are copied here.

    Args:
        model: The model.
        dtype: What floating-point tensors become; None keeps theirs.

    Returns:
        The copy, and the copies of all its parts by the ids of the originals.

    Raises:
        NotMeasurableError: Something in the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    keep: list[Any] = []  # ids in the memo stay valid as long as their objects live
    convert = _Converter(dtype)
    modules = list(model.modules())
    for sub in modules:
        for p in sub._parameters.values():
            if p is not None and not nn.parameter.is_lazy(p):
                memo[id(p)] = nn.Parameter(convert(p), requires_grad=False)
        for item in _things(vars(sub), keep):
            if id(item) not in memo:
                _prepare(item, memo, convert)
    try:
        with _TensorsCopied(convert):
            for sub in reversed(modules):
                if wrapped_by(sub) is not None:
                    memo[id(sub)] = copy.deepcopy(unwrapped(sub), memo)
            clone: nn.Module = copy.deepcopy(model, memo)
            functions = _Functions(memo)
            for sub in modules:
                functions.into(sub, memo.get(id(sub)))  # None within a scripted module
    except Exception as error:
        raise NotMeasurableError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}), and "
            "is not run itself, so that training stays as it is. Take what cannot be copied off "
            "the model, or pass its recurrent layer itself and the inputs that reach it."
        ) from error
    memo["keep"] = keep  # type: ignore[index]
    for sub in clone.modules():
        sub._compiled_call_impl = None  # set by Module.compile()
        sub._backward_hooks.clear()
        sub._backward_pre_hooks.clear()
    return clone.eval(), memo


def snapshot(value: Any) -> Any:
    """Return a copy of what a forward was called with, as it is now."""
    with _TensorsCopied(_Converter(None)):
        return copy.deepcopy(value)


class _Converter:
    """Copies tensors, each of its own memory, without history."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self._dtype = dtype

    def __call__(self, tensor: Tensor) -> Tensor:
        with torch.no_grad():
            clone = tensor.detach().clone()
            if self._dtype is None or not clone.is_floating_point():
                return clone
            return clone.to(self._dtype)


class _TensorsCopied(TorchFunctionMode):
    """Makes ``copy.deepcopy`` accept tensors with a gradient history."""

    def __init__(self, convert: _Converter) -> None:
        super().__init__()
        self._convert = convert

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._convert(tensor)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _prepare(item: Any, memo: dict[int, Any], convert: _Converter) -> None:
    if isinstance(item, Tensor):
        if not nn.parameter.is_lazy(item):
            memo[id(item)] = convert(item)
    elif isinstance(item, torch.Generator):
        memo[id(item)] = item.clone_state()
    elif isinstance(item, torch.jit.ScriptFunction):
        memo[id(item)] = item  # compiled, and keeps nothing


def _things(value: Any, keep: list[Any], depth: int = 5) -> Iterator[Any]:
    """Walk containers and plain objects; yield what :func:`_prepare` knows."""
    if isinstance(value, (Tensor, torch.Generator, torch.jit.ScriptFunction)):
        keep.append(value)
        yield value
    elif not depth or isinstance(value, (nn.Module, type, str, bytes, types.ModuleType)):
        return
    elif isinstance(value, Mapping):
        for item in list(value.values()):
            yield from _things(item, keep, depth - 1)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _things(item, keep, depth - 1)
    elif hasattr(value, "__dict__") and not callable(value):
        yield from _things(vars(value), keep, depth - 1)


class _Functions:
    """Copies functions that a model keeps: patched forwards and hooks.

    ``copy.deepcopy`` takes a function as it is; one that closes over the original model, or over
    a list that it appends to, would then run on the original.
    """

    def __init__(self, memo: dict[int, Any]) -> None:
        self._memo = memo

    def into(self, original: nn.Module, clone: Any) -> None:
        """Put copies of the functions of ``original`` into ``clone``."""
        if not isinstance(clone, nn.Module) or clone is original:
            return
        for name, value in vars(original).items():
            if isinstance(value, types.FunctionType):
                vars(clone)[name] = self.copy(value)
        for hooks in ("_forward_hooks", "_forward_pre_hooks"):
            ours: dict[int, Any] = getattr(clone, hooks)
            for key, hook in getattr(original, hooks).items():
                if isinstance(hook, types.FunctionType):
                    ours[key] = self.copy(hook)

    def copy(self, function: types.FunctionType) -> types.FunctionType:
        """Return a function over copies of what ``function`` closes over and may change."""
        if function.__module__.startswith("torch."):
            return function
        done = self._memo.get(id(function))
        if done is not None:
            copied: types.FunctionType = done
            return copied
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        names = _global_names(function.__code__)
        globals_ = function.__globals__
        changed = {
            name: globals_[name] for name in names if _can_change(globals_.get(name), self._memo)
        }
        # Where nothing of the module can change, the function keeps seeing its module itself.
        writes = "STORE_GLOBAL" in _operations(function.__code__)
        space = {**globals_} if changed or writes else globals_
        new = types.FunctionType(
            function.__code__, space, function.__name__, function.__defaults__, cells or None
        )
        self._memo[id(function)] = new
        new.__kwdefaults__ = copy.deepcopy(function.__kwdefaults__, self._memo)
        new.__defaults__ = copy.deepcopy(function.__defaults__, self._memo)
        for name, value in changed.items():
            space[name] = self._value(value)
        for ours, theirs in zip(cells, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                ours.cell_contents = self._value(theirs.cell_contents)
        return new

    def _value(self, value: Any) -> Any:
        if isinstance(value, types.FunctionType):
            return self.copy(value)
        return copy.deepcopy(value, self._memo)


def _can_change(value: Any, memo: dict[int, Any]) -> bool:
    return id(value) in memo or isinstance(value, (list, dict, set, bytearray, Tensor, nn.Module))


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _operations(code: types.CodeType) -> set[str]:
    import dis

    return {instruction.opname for instruction in dis.get_instructions(code)}


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """Compute as written: no autocast, which would round what is measured to half precision."""
    with contextlib.ExitStack() as stack:
        for kind in {"cpu", *(("cuda",) if torch.cuda.is_available() else ())}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
