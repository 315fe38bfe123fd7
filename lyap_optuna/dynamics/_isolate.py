"""A private copy of a model, and a forward pass that leaves no trace.

Nothing that a forward pass may write to is shared with the original: parameters, buffers, tensors
and generators that modules keep, what hooks and patched functions close over. Random numbers come
from a generator of our own.
"""

import contextlib
import copy
import dis
import functools
import random
import sys
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
            copied = {id(sub) for sub in clone.modules()}
            for sub in modules:
                if id(sub) in copied:
                    raise ValueError(f"{type(sub).__name__} copies to itself")
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
    """Copies functions that a model runs: methods of its classes, patched forwards and hooks.

    ``copy.deepcopy`` takes a function as it is; one that closes over the original model, or that
    appends to a list of its module, would then run on the original.
    """

    def __init__(self, memo: dict[int, Any]) -> None:
        self._memo = memo
        self._visited: set[int] = set()

    def into(self, original: nn.Module, clone: Any) -> None:
        """Put copies of the functions of ``original`` into ``clone``."""
        if not isinstance(clone, nn.Module):
            return
        for name, value in _run_by_forward(type(original)).items():
            copied = self.copy(value)
            if copied is not value:
                vars(clone)[name] = types.MethodType(copied, clone)
        for name, value in vars(original).items():
            if isinstance(value, _CALLABLES):
                vars(clone)[name] = self.value(value)
            elif not name.startswith("_") and isinstance(value, (list, tuple, dict)):
                vars(clone)[name] = self._within(value, vars(clone).get(name, value))
        for hooks in ("_forward_hooks", "_forward_pre_hooks"):
            ours: dict[int, Any] = getattr(clone, hooks)
            for key, hook in getattr(original, hooks).items():
                if isinstance(hook, _CALLABLES):
                    ours[key] = self.value(hook)

    def _within(self, original: Any, clone: Any, depth: int = 3) -> Any:
        """Return a copied container in which functions are copies too."""
        if isinstance(original, _CALLABLES):
            return self.value(original)
        if depth and type(original) in (list, tuple) and len(clone) == len(original):
            pairs = zip(original, clone, strict=True)
            return type(original)(self._within(a, b, depth - 1) for a, b in pairs)
        if depth and type(original) is dict and clone.keys() == original.keys():
            return {key: self._within(v, clone[key], depth - 1) for key, v in original.items()}
        return clone

    def copy(self, function: types.FunctionType) -> types.FunctionType:
        """Return a function over copies of what ``function`` may change; itself if nothing."""
        if function.__module__ is None or function.__module__.startswith("torch."):
            return function
        done = self._memo.get(id(function))
        if done is not None:
            copied: types.FunctionType = done
            return copied
        if id(function) in self._visited:  # nothing to copy, or on the way to it
            return function
        self._visited.add(id(function))
        globals_ = function.__globals__
        names = _global_names(function.__code__)
        changed = {
            n: v for n in names if self._can_change(v := globals_.get(n), function.__module__)
        }
        cells = function.__closure__ or ()
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        writes = "STORE_GLOBAL" in _operations(function.__code__)
        closed = [value for cell in cells for value in _contents(cell)]
        if not (changed or writes or any(map(self._can_change, [*closed, *defaults]))):
            return function
        # Where nothing of the module can change, the function keeps seeing its module itself.
        space = {**globals_} if changed or writes else globals_
        own = tuple(types.CellType() for _ in cells)
        new = types.FunctionType(function.__code__, space, function.__name__, None, own or None)
        self._memo[id(function)] = new
        new.__defaults__ = self.value(function.__defaults__)
        new.__kwdefaults__ = self.value(function.__kwdefaults__)
        for name, value in changed.items():
            space[name] = self.value(value)
        for ours, theirs in zip(own, cells, strict=True):
            for value in _contents(theirs):
                ours.cell_contents = self.value(value)
        return new

    def value(self, value: Any) -> Any:
        """Return a copy of what a function holds."""
        if isinstance(value, types.FunctionType):
            return self.copy(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(self.value(value.__func__), self.value(value.__self__))
        if isinstance(value, functools.partial):
            parts = self.value(value.args), self.value(value.keywords)
            return functools.partial(self.value(value.func), *parts[0], **parts[1])
        if isinstance(value, torch.Generator) and id(value) not in self._memo:
            self._memo[id(value)] = value.clone_state()
        return copy.deepcopy(value, self._memo)

    def _can_change(self, value: Any, module: str | None = None) -> bool:
        if isinstance(value, types.FunctionType):
            # of the globals, only functions of the same module: not the caches of libraries
            return module in (None, value.__module__) and self.copy(value) is not value
        if isinstance(value, types.MethodType):
            return self._can_change(value.__self__) or self._can_change(value.__func__)
        if isinstance(value, functools.partial):
            held = [value.func, *value.args, *value.keywords.values()]
            return any(self._can_change(part) for part in held)
        if id(value) in self._memo:
            return True
        numpy = sys.modules.get("numpy")
        kinds: tuple[type, ...] = (torch.Generator, random.Random)
        if numpy is not None:
            kinds = (*kinds, numpy.random.Generator, numpy.random.RandomState)
        return isinstance(value, (*_MUTABLE, *kinds)) and value is not torch.default_generator


_CALLABLES = (types.FunctionType, types.MethodType, functools.partial)
_MUTABLE = (list, dict, set, bytearray, nn.Module)  # tensors of a module are read, not written to


def _run_by_forward(cls: type) -> dict[str, types.FunctionType]:
    """Return the methods of a class that its forward may call, but for PyTorch's own."""
    methods: dict[str, types.FunctionType] = {}
    for base in cls.__mro__:
        if not base.__module__.startswith("torch."):
            for name, value in vars(base).items():
                if isinstance(value, types.FunctionType) and not name.startswith("__"):
                    methods.setdefault(name, value)
    found: dict[str, types.FunctionType] = {}
    waiting = ["forward"]
    while waiting:
        name = waiting.pop()
        if name in methods and name not in found:
            found[name] = methods[name]
            waiting += _global_names(methods[name].__code__)
    return {n: f for n, f in found.items() if getattr(cls, n, None) is f}


def _contents(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # empty
        return []


@functools.lru_cache(maxsize=512)
def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


@functools.lru_cache(maxsize=512)
def _operations(code: types.CodeType) -> set[str]:
    return {instruction.opname for instruction in dis.get_instructions(code)}


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """Compute as written: no autocast, which would round what is measured to half precision."""
    with contextlib.ExitStack() as stack:
        for kind in {"cpu", *(("cuda",) if torch.cuda.is_available() else ())}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
