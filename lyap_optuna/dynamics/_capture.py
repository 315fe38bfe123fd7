"""A forward pass of a private copy, and what reaches the recurrent layers in it.

Two things are seen: the calls of the recurrent modules, by hooks, and the calls of PyTorch's
recurrent kernels within them, by a mode that is local to the thread. An *observer* may look at the
states that arrive, and change them.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lyap_optuna.dynamics._errors import NotMeasurableError, OptionError
from lyap_optuna.dynamics._isolate import (
    OwnRandomNumbers,
    exactly,
    private_copy,
    snapshot,
    undisturbed_generators,
)
from lyap_optuna.dynamics._registry import architecture_of
from lyap_optuna.dynamics.torch_kernels import (
    NAMES,
    KernelCall,
    read_kernel_call,
    state_of_kernel,
    steps_of_kernel,
)


@dataclass
class ModuleCall:
    """One call of a recurrent module, with the kernels that it called."""

    layer: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor] = field(default_factory=list)  # of a layer with equations of its own
    kernels: list[KernelCall] = field(default_factory=list)
    complete: bool = False

    @property
    def result(self) -> Tensor | None:
        """The first tensor that it returned."""
        return self.results[0] if self.results else None


class Observer:
    """What happens to states on the way; this one lets them pass.

    A *level* is where states are seen: ``"module"`` (arguments of the recurrent modules),
    ``"kernel"`` (of PyTorch's kernels in them) or ``"weight"`` (what meets the recurrent weights
    of a module that calls no kernel).
    """

    level = ""

    def arriving(self, layer: str, state: list[Tensor]) -> list[Tensor]:
        """See the state that a call begins with, and return what it begins with."""
        return state

    def leaving(self, layer: str, results: list[Tensor]) -> None:
        """See what the call returned."""

    def follows(self, layer: str) -> bool:
        """Whether the states of a layer are followed."""
        return False

    def made(self, place: tuple[int, int], tensor: Tensor) -> Tensor:
        """See a tensor that the forward made, and return what it goes on with.

        Args:
            place: Number of the operation that made it and its place among the results. What the
                forward was given has numbers below 0.
            tensor: The tensor.
        """
        return tensor


@dataclass(frozen=True)
class Forward:
    """A model and what its forward takes, ready to be run as often as needed.

    Args:
        model: The original; only copies of it run.
        inputs: A tensor, a tuple or list of arguments, or a dict of keyword arguments.
        layers: The recurrent modules by name.
        initial_state: What the first call of each layer begins with; None for what the model
            passes.
        seed: Seeds what the model draws in eval mode.
    """

    model: nn.Module
    inputs: Any
    layers: dict[str, nn.Module]
    initial_state: Any = None
    seed: int = 0

    def run(
        self,
        observer: Observer | None = None,
        *,
        double: bool = False,
        grad: bool = False,
    ) -> tuple[dict[str, nn.Module], list[ModuleCall]]:
        """Run a copy once.

        Args:
            observer: Sees, and may change, the states that arrive at the layers.
            double: Run in float64, whatever the model's dtype. Else half-precision types are
                computed in float32.
            grad: Record the graph.

        Returns:
            The copies of the layers, and their calls in order.

        Raises:
            NotMeasurableError: The forward fails before it has called a layer, or calls none.
        """
        dtype = torch.float64 if double else _computing(self.layers.values())
        clone, copies = private_copy(self.model, dtype)
        layers = {name: copies[id(layer)] for name, layer in self.layers.items()}
        args, kwargs = arguments(self.model, _moved(self.inputs, self.model, dtype))
        observer = observer or Observer()
        for i, given in enumerate(leaves((args, kwargs)) if observer.level else ()):
            observer.made((-1 - i, 0), given)
        recorder = _Recorder(layers, observer, self.initial_state, dtype, grad)
        try:
            with (
                undisturbed_generators(self.seed),
                OwnRandomNumbers(self.seed),
                exactly(),
                torch.set_grad_enabled(grad),
                recorder,
            ):
                clone(*args, **kwargs)
        except (NotMeasurableError, OptionError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if {call.layer for call in recorder.seen} != set(layers) or double:
                raise NotMeasurableError(self._failure(error, args, kwargs)) from error
        calls = recorder.seen
        missing = sorted(set(layers) - {call.layer for call in calls})
        if missing:
            kind = type(self.layers[missing[0]]).__name__
            raise NotMeasurableError(
                f"The forward of {type(self.model).__name__} never called its {kind} layer "
                f"{missing[0]!r}: name the layers that it does call by layer=, or pass the layer "
                "itself and the inputs that reach it."
            )
        return layers, calls

    def _failure(self, error: Exception, args: Any, kwargs: Any) -> str:
        shapes = [tuple(item.shape) for item in leaves((args, kwargs))]
        return (
            f"The forward of {type(self.model).__name__} failed on inputs of shapes {shapes} "
            f"({type(error).__name__}: {error}). Pass a batch as in training, without targets, "
            f"laid out as the model takes it.{_misfit(self.model, self.inputs)}"
        )


class _Recorder(TorchFunctionMode):
    """Records calls while it is entered."""

    def __init__(
        self,
        layers: dict[str, nn.Module],
        observer: Observer,
        initial_state: Any,
        dtype: torch.dtype | None,
        grad: bool,
    ) -> None:
        super().__init__()
        self._grad = grad
        self._looks_on = not observer.level and dtype is None  # changes nothing
        self.calls: list[ModuleCall] = []
        self._layers = layers
        self._observer = observer
        self._initial_state = initial_state
        self._dtype = dtype
        self._open: list[ModuleCall] = []
        self._begun: set[str] = set()
        self._operations = 0
        known = {name: architecture_of(layer) for name, layer in layers.items()}
        self._snapshots = {n for n, a in known.items() if a is not None and a.build is not None}
        self._unchecked = {n for n in self._snapshots if (a := known[n]) and a.outputs is None}
        self._recurrent_weights = {
            name: [p for n, p in layer.named_parameters(recurse=False) if "weight_hh" in n]
            for name, layer in layers.items()
        }

    @property
    def seen(self) -> list[ModuleCall]:
        """The calls that can be used: what a layer returned has to be known to be compared."""
        return [call for call in self.calls if call.complete or call.layer in self._unchecked]

    def __enter__(self) -> "_Recorder":
        self._handles: list[Any] = []
        for name, layer in self._layers.items():
            # Registered last: hooks of others, which may compute weights or change outputs, are
            # part of the network.
            self._handles += [
                layer.register_forward_pre_hook(self._before(name), with_kwargs=True),
                layer.register_forward_hook(self._after),
            ]
            if name in self._snapshots:
                # what the layer itself returned, before the hooks of others
                self._handles.append(layer.register_forward_hook(self._returned, prepend=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def _before(self, name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            with torch._C.DisableTorchFunction():  # nothing of ours counts as an operation
                return self._begin(name, layer, args, kwargs)

        return hook

    def _begin(
        self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
            first = name not in self._begun
            given = self._initial_state if first else None
            args, kwargs = with_state(layer, args, kwargs, given)
        self._begun.add(name)
        if self._observer.level == "module" and self._observer.follows(name):
            state = state_of_call(layer, args, kwargs)
            changed = self._observer.arriving(name, state)
            args, kwargs = replaced((args, kwargs), state, changed)
        seen = ModuleCall(name, args, kwargs)
        if name in self._snapshots and not self._observer.level:
            # a layer of another library may write to what it was given
            seen = ModuleCall(name, *snapshot((args, kwargs)))
        self._open.append(seen)
        self.calls.append(self._open[-1])
        return args, kwargs

    def _returned(self, layer: nn.Module, args: Any, result: Any) -> None:
        self._open[-1].results = [part.detach().clone() for part in leaves(result)]

    def _after(self, layer: nn.Module, args: Any, result: Any) -> None:
        call = self._open.pop()
        call.complete = True
        if self._observer.level == "module" and self._observer.follows(call.layer):
            with torch._C.DisableTorchFunction():
                self._observer.leaving(call.layer, list(leaves(result)))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self._looks_on and name not in NAMES:
            return func(*args, **kwargs)
        self._operations += 1
        number = self._operations
        if not self._observer.level:
            return self._called(func, name, args, kwargs)
        # A state that is detached is the same state, and what forbids gradients is no dynamics.
        if name in ("detach", "detach_") or func is _DATA:
            return args[0]
        if name == "_set_grad_enabled" and self._grad:
            return None
        result = self._called(func, name, args, kwargs)
        if isinstance(result, Tensor):
            return self._observer.made((number, 0), result)
        if isinstance(result, (tuple, list)):
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._observer.made((number, i), part)
        return result

    def _called(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._dtype is not None:
            if func is nn.functional.scaled_dot_product_attention:
                # the fused kernels have no forward-mode rule
                func = _attention
            if name in _CASTS and args[0].dtype == self._dtype:
                cast = func(*args, **kwargs)
                return args[0] if self._is_shorter(cast) else cast
        within = self._open[-1] if self._open else None
        if within is None:
            return self._converted(func(*args, **kwargs))
        if self._observer.level == "weight" and name in _PRODUCTS:
            args = self._seen_at_weights(within.layer, args)
        if not (name in NAMES and not kwargs):
            return self._converted(func(*args, **kwargs))
        if self._observer.level == "kernel" and self._observer.follows(within.layer):
            return self._followed(func, name, args, within)
        result = func(*args, **kwargs)
        within.kernels.append(read_kernel_call(name, args, result).kept())
        return result

    def _followed(self, func: Any, name: str, args: tuple[Any, ...], call: ModuleCall) -> Any:
        """Run a kernel whose state is followed, one time step after the other."""
        if name.endswith("_cell"):
            return self._step(func, name, args, call)
        steps = steps_of_kernel(name, args)
        if steps is None:
            raise NotMeasurableError(
                f"{call.layer!r} hands its state from one packed or bidirectional call to the "
                "next, where single steps cannot be told. Measure it on whole sequences: pass the "
                "layer itself and the inputs that reach it."
            )
        inputs, hx, *options = args
        dim = 1 if args[8] else 0
        outputs = []
        for x in inputs.split(1, dim):
            output, *hx = self._step(
                func, name, (x, tuple(hx) if name == "lstm" else hx, *options), call
            )
            hx = hx if name == "lstm" else hx[0]
            outputs.append(output)
        return (torch.cat(outputs, dim), *(hx if name == "lstm" else (hx,)))

    def _step(self, func: Any, name: str, args: tuple[Any, ...], call: ModuleCall) -> Any:
        state = state_of_kernel(name, args)
        args, _ = replaced((args, {}), state, self._observer.arriving(call.layer, state))
        result = func(*args)
        call.kernels.append(read_kernel_call(name, args, result).kept())
        self._observer.leaving(call.layer, list(leaves(result)))
        return result

    def _seen_at_weights(self, layer: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        tensors = [a for a in args if isinstance(a, Tensor)]
        weights = self._recurrent_weights[layer]
        if len(tensors) < 2 or not any(
            t.data_ptr() == w.data_ptr() for t in tensors[1:] for w in weights
        ):
            return args
        changed = self._observer.arriving(layer, tensors[:1])
        seen: tuple[Any, ...] = replaced((args, {}), tensors[:1], changed)[0]
        return seen

    def _converted(self, result: Any) -> Any:
        return result.to(self._dtype) if self._is_shorter(result) else result

    def _is_shorter(self, result: Any) -> bool:
        if self._dtype is None or not isinstance(result, Tensor):
            return False
        return result.is_floating_point() and result.itemsize < self._dtype.itemsize


_CASTS = {"float", "half", "bfloat16", "to", "type", "type_as"}
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_PRODUCTS = {"linear", "matmul", "mm", "addmm", "__matmul__", "__rmatmul__"}


def _computing(layers: Iterable[nn.Module]) -> torch.dtype | None:
    kinds = {p.dtype for layer in layers for p in layer.parameters() if p.is_floating_point()}
    return torch.float32 if any(kind.itemsize < 4 for kind in kinds) else None


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    kwargs.pop("enable_gqa", None)
    result: Tensor = torch.ops.aten._scaled_dot_product_attention_math(*args, **kwargs)[0]
    return result


# Arguments ---------------------------------------------------------------------------------------


def arguments(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``inputs`` as arguments and keyword arguments of the model's forward.

    A dict is keyword arguments and a tuple arguments, unless the forward takes them whole.

    Raises:
        NotMeasurableError: They do not fit.
    """
    signature = inspect.signature(model.forward)
    if not any(True for _ in leaves(inputs)):
        raise NotMeasurableError(f"inputs hold no tensor: got {inputs!r:.100}.")
    candidates: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((inputs,), {})]
    if isinstance(inputs, Mapping) and all(isinstance(key, str) for key in inputs):
        candidates.insert(0, ((), dict(inputs)))
    elif isinstance(inputs, (tuple, list)) and not isinstance(inputs, nn.utils.rnn.PackedSequence):
        candidates.insert(0, (tuple(inputs), {}))
    error: TypeError | None = None
    for args, kwargs in candidates:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as misfit:
            error = error or misfit
        else:
            return args, kwargs
    raise NotMeasurableError(_MISFIT.format(type(model).__name__, error)) from None


_MISFIT = (
    "inputs do not fit the forward of {} ({}): pass what it takes, without targets; a tensor, a "
    "tuple of arguments or a dict of keyword arguments."
)


def _misfit(model: nn.Module, inputs: Any) -> str:
    """Say so, where a tuple or a dict was taken whole because it fits no other way."""
    if not isinstance(inputs, (tuple, list, Mapping)):
        return ""
    args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (inputs, {})
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        return " Or: " + _MISFIT.format(type(model).__name__, error)
    return ""


def _moved(value: Any, model: nn.Module, dtype: torch.dtype | None) -> Any:
    """Copy tensors, on the model's device, so that a forward may write to them."""
    parameter = next(model.parameters(), None)
    device = None if parameter is None else parameter.device

    def tensor(item: Tensor) -> Tensor:
        floating = dtype if item.is_floating_point() else None
        return item.detach().to(device=device, dtype=floating, copy=True)

    return mapped(value, tensor)


def mapped(value: Any, function: Any) -> Any:
    """Apply a function to the tensors in containers, which are made anew."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, nn.utils.rnn.PackedSequence):
        return value._replace(data=function(value.data))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, function) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(item, function) for item in value)
    if isinstance(value, Mapping):
        made = {key: mapped(item, function) for key, item in value.items()}
        if type(value) is dict:
            return made
        try:
            return type(value)(made)  # type: ignore[call-arg]
        except Exception:
            return made
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            f.name: mapped(getattr(value, f.name), function) for f in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **changed)
    return value


def leaves(value: Any) -> Iterator[Tensor]:
    """Return the tensors in containers, in order."""
    found: list[Tensor] = []

    def note(item: Tensor) -> Tensor:
        found.append(item)
        return item

    with contextlib.suppress(TypeError):
        mapped(value, note)
    return iter(found)


def replaced(value: Any, old: list[Tensor], new: list[Tensor]) -> Any:
    """Return ``value`` with some of its tensors replaced."""
    if all(a is b for a, b in zip(old, new, strict=True)):
        return value
    swap: dict[int, list[Tensor]] = {}
    for a, b in zip(old, new, strict=True):
        swap.setdefault(id(a), []).append(b)  # a tensor that stands twice is replaced twice

    def next_of(item: Tensor) -> Tensor:
        waiting = swap.get(id(item))
        return waiting.pop(0) if waiting else item

    return mapped(value, next_of)


# States of calls ---------------------------------------------------------------------------------


def with_state(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], given: Any = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of one of PyTorch's layers or cells, with a state that fits.

    A state that was kept for another number of sequences is left out: the layer then begins at
    zero, as a model does before its first batch. One that is absent is made explicit.

    Args:
        layer: An ``nn.RNNBase`` or ``nn.RNNCellBase``.
        args: Arguments of its forward.
        kwargs: Keyword arguments.
        given: A state in place of the call's, as the layer takes it; without the batch dimension
            the same for every sequence. None: the call's own.

    Raises:
        ValueError: ``given`` does not fit.
    """
    names = _parameters_of(layer)
    inputs = args[0] if args else kwargs.get(names[0] if names else "input")
    if len(args) > 2 or len(names) < 2:
        return args, kwargs
    name = names[1]
    state = args[1] if len(args) > 1 else kwargs.get(name)
    zeros = _zero_state(layer, inputs)
    if zeros is None:
        return args, kwargs
    if given is not None:
        state = _fitted(given, zeros)
    else:
        shapes = [tuple(part.shape) for part in leaves(state)]
        fits = shapes == [tuple(zero.shape) for zero in zeros]
        if state is not None and (fits or not _other_batch(shapes, zeros)):
            return args, kwargs
        state = tuple(zeros) if len(zeros) > 1 else zeros[0]
    return args[:1], {**{k: v for k, v in kwargs.items() if k != name}, name: state}


def _parameters_of(layer: nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(layer.forward).parameters.values()
    return [p.name for p in parameters if p.kind in kinds]


def _zero_state(layer: nn.Module, inputs: Any) -> list[Tensor] | None:
    parts = 2 if isinstance(layer, (nn.LSTM, nn.LSTMCell)) else 1
    if isinstance(layer, nn.RNNBase):
        shape: tuple[int, ...]
        if isinstance(inputs, nn.utils.rnn.PackedSequence):
            data = inputs.data
            batch: tuple[int, ...] = (int(inputs.batch_sizes[0]),)
        elif isinstance(inputs, Tensor) and inputs.dim() in (2, 3):
            data = inputs
            batch = () if inputs.dim() == 2 else (inputs.shape[0 if layer.batch_first else 1],)
        else:
            return None
        shape = (layer.num_layers * (2 if layer.bidirectional else 1), *batch)
        sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size][:parts]
    elif (
        isinstance(layer, nn.RNNCellBase) and isinstance(inputs, Tensor) and inputs.dim() in (1, 2)
    ):
        data, shape, sizes = inputs, tuple(inputs.shape[:-1]), [layer.hidden_size] * parts
    else:
        return None
    return [data.new_zeros(*shape, size) for size in sizes]


def _other_batch(shapes: list[tuple[int, ...]], zeros: list[Tensor]) -> bool:
    # the same but for the batch dimension, the last but one
    def but_batch(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-2], *shape[-1:])

    return [but_batch(s) for s in shapes] == [but_batch(tuple(z.shape)) for z in zeros]


def _fitted(given: Any, zeros: list[Tensor]) -> Any:
    parts = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    needed = [tuple(zero.shape) for zero in zeros]
    try:
        fitted = []
        for part, zero in zip(parts, zeros, strict=True):
            if not isinstance(part, Tensor):
                raise TypeError
            part = part.detach().to(zero)
            if part.dim() == zero.dim() - 1 and zero.dim() == 3:
                part = part.unsqueeze(1)  # the same for every sequence
            elif part.dim() == zero.dim() + 1 and len(part) == 1:
                part = part[0]  # a cell's, as a layer of one takes it
            fitted.append(part.expand_as(zero).clone())
    except (RuntimeError, TypeError, ValueError):
        got = [tuple(part.shape) if isinstance(part, Tensor) else type(part) for part in parts]
        raise OptionError(
            f"initial_state has shapes {got}, but {needed} is needed: a state as the recurrent "
            "layer's forward takes it."
        ) from None
    return tuple(fitted) if len(fitted) > 1 else fitted[0]


def state_of_call(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors of the state that a call begins with: what follows the input."""
    rest = [*args[1:], *(kwargs.values() if args else list(kwargs.values())[1:])]
    widths = {getattr(layer, "hidden_size", None), getattr(layer, "proj_size", None)}
    tensors = [t for t in leaves(rest) if t.is_floating_point() and t.dim()]
    return [t for t in tensors if widths == {None} or t.shape[-1] in widths]
