"""A forward pass of a private copy, and what reaches the recurrent layers in it.

Two things are seen: the calls of the recurrent modules, by hooks, and the calls of PyTorch's
recurrent kernels within them, by a mode that is local to the thread. An *observer* may inspect the
states that arrive, and change them.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from lyap_optuna.dynamics._arguments import arguments, leaves, misfit, moved, replaced
from lyap_optuna.dynamics._call_states import state_of_call, with_state
from lyap_optuna.dynamics._duals import DualKernels, dual_arithmetic
from lyap_optuna.dynamics._errors import NotMeasurableError, OptionError
from lyap_optuna.dynamics._generators import (
    DrewBesideOthersError,
    DrewError,
    OwnRandomNumbers,
    is_alone,
    undisturbed_generators,
    watched_generator,
)
from lyap_optuna.dynamics._isolate import (
    exactly,
    private_copy,
    snapshot,
)
from lyap_optuna.dynamics._registry import architecture_of
from lyap_optuna.dynamics.torch_kernels import (
    NAMES,
    KernelCall,
    read_kernel_call,
    state_of_kernel,
    steps_of_kernel,
    weights_of_kernel,
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
    dual = False
    """Whether it follows tangents."""

    left_torch = False
    """Whether something that is followed was handed to NumPy."""

    def carries(self, part: Tensor) -> bool:
        """Whether a tensor depends on what is followed."""
        return False

    def arriving(self, layer: str, state: list[Tensor]) -> list[Tensor]:
        """See the state that a call begins with, and return what it begins with."""
        return state

    def leaving(self, layer: str, results: list[Tensor]) -> None:
        """See what the call returned."""

    def follows(self, layer: str) -> bool:
        """Whether the states of a layer are followed."""
        return False

    def used(self, arguments: Any) -> None:
        """See what is given to an operation outside the layers' calls."""

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
    _draws: list[bool] = field(default_factory=list)  # of each pass so far

    def run(
        self,
        observer: Observer | None = None,
        *,
        double: bool = False,
        grad: bool = False,
        every: bool = True,
    ) -> tuple[dict[str, nn.Module], list[ModuleCall]]:
        """Run a copy once.

        Args:
            observer: Sees, and may change, the states that arrive at the layers.
            double: Run in float64, whatever the model's dtype. Else half-precision types are
                computed in float32.
            grad: Record the graph.
            every: Whether every layer must be called; else one that is called is enough.

        Returns:
            The copies of the layers, and their calls in order.

        Raises:
            NotMeasurableError: The forward fails before it has called a layer, or calls none.
        """
        # A mode that sees every operation costs more than most of them.
        if self._draws and not any(self._draws):
            nothing = contextlib.nullcontext()
            return self._run(observer or Observer(), nothing, double, grad, every)
        if not self._draws and observer is None and is_alone(self.model):
            try:
                found = self._run(Observer(), watched_generator(), double, grad, every)
            except DrewError:
                pass
            else:
                self._draws.append(False)
                return found
        for attempt in range(1, _ATTEMPTS + 1):
            own = OwnRandomNumbers(self.seed)
            try:
                found = self._run(observer or Observer(), own, double, grad, every)
                break
            except DrewBesideOthersError:
                # another thread draws seldom, a model that draws always
                if attempt == _ATTEMPTS:
                    raise
        self._draws.append(own.drew)
        return found

    def _run(
        self,
        observer: Observer,
        random_numbers: contextlib.AbstractContextManager[Any],
        double: bool,
        grad: bool,
        every: bool,
    ) -> tuple[dict[str, nn.Module], list[ModuleCall]]:
        dtype = torch.float64 if double else _computing(self.layers.values())
        clone, copies = private_copy(self.model, dtype)
        layers = {name: copies[id(layer)] for name, layer in self.layers.items()}
        args, kwargs = arguments(self.model, moved(self.inputs, self.model, dtype))
        for i, given in enumerate(leaves((args, kwargs)) if observer.level else ()):
            observer.made((-1 - i, 0), given)
        recorder = _Recorder(layers, observer, self.initial_state, dtype, grad)
        recorder.know_others(clone)
        try:
            with (
                undisturbed_generators(self.seed, check=not observer.level),
                random_numbers,
                exactly(),
                torch.set_grad_enabled(grad),
                recorder,
            ):
                clone(*args, **kwargs)
        except (NotMeasurableError, OptionError, DrewError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            called = {call.layer for call in recorder.seen}
            if not called or (every and called != set(layers)) or double:
                raise NotMeasurableError(self._failure(error, args, kwargs)) from error
        calls = recorder.seen
        missing = sorted(set(layers) - {call.layer for call in calls})
        if missing and (every or len(missing) == len(layers)):
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
            f"laid out as the model takes it.{misfit(self.model, self.inputs)}"
        )


_ATTEMPTS = 4
"""Passes, until one of them draws while no other thread does."""

_TORCH = (nn.RNNBase, nn.RNNCellBase)


def _places(layer: nn.Module) -> set[int]:
    return {p.data_ptr() for p in layer.parameters()}


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
        self._kernels = DualKernels()
        self._begun: set[str] = set()
        self._operations = 0
        known = {name: architecture_of(layer) for name, layer in layers.items()}
        self._snapshots = {n for n, a in known.items() if a is not None and a.build is not None}
        # Layers with equations of their own are seen by their hooks alone.
        alone = len(self._snapshots) == len(layers)
        self._sees_operations = bool(observer.level) or dtype is not None or not alone
        self._unchecked = {n for n in self._snapshots if (a := known[n]) and a.outputs is None}
        self._own_weights = {
            name: _places(layer) for name, layer in layers.items() if isinstance(layer, _TORCH)
        }
        self._other_weights: list[set[int]] = []
        self._recurrent_weights = {
            name: [p for n, p in layer.named_parameters(recurse=False) if "weight_hh" in n]
            for name, layer in layers.items()
        }

    def know_others(self, model: nn.Module) -> None:
        """Know the weights of a model's other recurrent layers."""
        mine = list(self._layers.values())
        for module in model.modules():
            if isinstance(module, _TORCH) and not any(module is layer for layer in mine):
                self._other_weights.append(_places(module))

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
        if self._sees_operations:
            super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._sees_operations:
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
        if name in ("numpy", "__array__") and self._observer.carries(args[0]):
            self._observer.left_torch = True
            return func(forward_ad.unpack_dual(args[0]).primal.detach(), *args[1:], **kwargs)
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
        if name in NAMES and any(is_functorch_wrapped_tensor(t) for t in leaves(args)):
            raise NotMeasurableError(
                f"The recurrent layers {sorted(self._layers)} are called under torch.vmap or "
                "another transform of torch.func, where nothing can be seen: call them on the "
                "batch itself, or pass a lyap_optuna.RecurrentDynamics."
            )
        if within is None:
            self._observer.used((args, kwargs))
        if self._observer.dual and not kwargs:
            dual = dual_arithmetic(func, name, args)
            if dual is not None:
                return dual
        if within is None and name in NAMES and not kwargs:
            within = self._called_directly(name, args)
        if within is None:
            return self._converted(func(*args, **kwargs))
        if self._observer.level == "weight" and name in _PRODUCTS:
            args = self._seen_at_weights(within.layer, args)
        if not (name in NAMES and not kwargs):
            return self._converted(func(*args, **kwargs))
        if self._observer.level == "kernel" and self._observer.follows(within.layer):
            return self._followed(func, name, args, within)
        result = self._run_kernel(func, name, args)
        within.kernels.append(read_kernel_call(name, args, result).kept())
        return result

    def _called_directly(self, name: str, args: tuple[Any, ...]) -> ModuleCall | None:
        """Return a call of a layer whose kernel runs without its hooks, by ``forward`` say."""
        weights = {t.data_ptr() for t in leaves(weights_of_kernel(name, args))}
        # layers may share some of their weights, also with one that is not measured
        found = {layer: len(weights & own) for layer, own in self._own_weights.items()}
        layer = max(found, key=lambda layer: found[layer], default=None)
        if layer is None or not found[layer]:
            return None
        if any(len(weights & other) > found[layer] for other in self._other_weights):
            return None
        self.calls.append(ModuleCall(layer, args, {}, complete=True))
        return self.calls[-1]

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

    def _run_kernel(self, func: Any, name: str, args: tuple[Any, ...]) -> Any:
        if self._observer.dual:
            result = self._kernels.run(func, name, args)
            if result is not None:
                return result
        return func(*args)

    def _step(self, func: Any, name: str, args: tuple[Any, ...], call: ModuleCall) -> Any:
        state = state_of_kernel(name, args)
        args, _ = replaced((args, {}), state, self._observer.arriving(call.layer, state))
        result = self._run_kernel(func, name, args)
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
    if any(kind.itemsize < 4 for kind in kinds):
        return torch.float32
    # what a forward makes in float32 then fits a layer of float64
    return torch.float64 if torch.float64 in kinds else None


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    kwargs.pop("enable_gqa", None)
    result: Tensor = torch.ops.aten._scaled_dot_product_attention_math(*args, **kwargs)[0]
    return result
