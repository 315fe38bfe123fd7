"""From a module and what its forward takes to a dynamics and the inputs that drive it.

What reaches the recurrent layer is captured on a copy of the model in eval mode, so that nothing
of the model, and no global random state, is touched.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lyap_optuna.dynamics._registry import Calls, architecture_of, registered_names
from lyap_optuna.dynamics.base import Dynamics, Trajectory, computing_dtype

STATES = ("hidden", "full")


class NotMeasurableError(ValueError):
    """This model, on these inputs, has no exponents that could be measured; the message says why.

    A wrong option is a plain :class:`ValueError`.
    """


class NonFiniteParametersError(NotMeasurableError):
    """The network has NaN or infinite weights, or diverges: it has no exponents."""


@dataclass(frozen=True)
class DrivenLayer:
    """A recurrent layer of a model, linearised along the states that its inputs drive it through.

    Args:
        name: The layer's name within the model; ``""`` where it was given itself.
        trajectory: The layer along its states.
        state: What was followed, ``"hidden"`` or ``"full"``.
        lengths: Steps of each sequence, ``(batch,)`` on the CPU, what follows is padding; None
            where every sequence has all of the trajectory's steps.
        reset: Whether the state of a sequence is reset within it, ``(batch,)`` on the CPU: what
            came before is forgotten, and its exponents are minus infinity. None: nowhere.
    """

    name: str
    trajectory: Trajectory
    state: str
    lengths: Tensor | None = None
    reset: Tensor | None = None


@torch.no_grad()
def resolve(
    model: nn.Module | Dynamics,
    inputs: Any,
    *,
    state: str = "full",
    initial_state: Any = None,
    layer: str | Sequence[str] | nn.Module | None = None,
    lengths: Any = None,
    seed: int = 0,
    split_resets: bool = False,
) -> dict[str, DrivenLayer]:
    """Find the recurrent layers of ``model`` and linearise them along the model's own states.

    Args:
        model: A registered recurrent layer, a model that contains some, or a dynamics.
        inputs: What ``model``'s forward takes: a tensor, a tuple or list of arguments, or a dict
            of keyword arguments. For a dynamics ``(batch, time, features)``.
        state: ``"hidden"`` or ``"full"``.
        initial_state: As the recurrent layer's forward takes it; None for what the model passes,
            else zeros.
        layer: Name of one recurrent layer within the model, the layer itself, or a list of names;
            None for all.
        lengths: Steps of each sequence, ``(batch,)``; None where all are equally long.
        seed: Seeds what the model's forward may draw in eval mode.
        split_resets: Whether a sequence is cut where its state is reset (a readout), or marked
            (a spectrum, whose exponents are then minus infinity).

    Returns:
        The layers by name, in the model's order.

    Raises:
        NotMeasurableError: The model cannot be measured; the message says why and what to do.
        ValueError: An option is wrong.
    """
    module = model
    if state not in STATES:
        raise ValueError(f"state must be one of {STATES}, but got {state!r}.")
    if isinstance(module, Dynamics):
        dynamics = module
        if not isinstance(inputs, Tensor):
            raise ValueError(f"inputs must be a tensor, but got {type(inputs).__name__}.")
        reaching, captured_state = (inputs.unsqueeze(0) if inputs.dim() == 2 else inputs), None
    elif isinstance(module, nn.Module):
        dynamics, reaching, captured_state = _capture(module, inputs, state, layer, seed)
    else:
        raise ValueError(
            f"module must be an nn.Module or a RecurrentDynamics, but got {type(module).__name__}."
        )
    checked = _checked_inputs(reaching, dynamics)
    if not torch.isfinite(checked).all():
        if isinstance(module, nn.Module):
            _check_parameters(module, "model")
        raise ValueError("inputs contain NaN or infinite values: clean them first.")
    trajectory = dynamics.linearise(
        checked, captured_state if initial_state is None else initial_state
    )
    if not torch.isfinite(trajectory.states).all():
        raise NonFiniteParametersError(
            "The states of the recurrent layer become NaN or infinite on these inputs: it has "
            "no Lyapunov exponents."
        )
    return {"": DrivenLayer("", trajectory, state)}


def _checked_inputs(inputs: Tensor, dynamics: Dynamics) -> Tensor:
    shape = tuple(inputs.shape)
    if inputs.dim() != 3:
        raise ValueError(
            f"inputs must have three dimensions (batch, time, features), but have shape {shape}."
        )
    if shape[0] == 0:
        raise ValueError(
            f"The batch of inputs is empty (shape {shape}): pass at least one sequence."
        )
    if shape[1] < 2:
        raise ValueError(
            f"inputs have {shape[1]} time step(s): exponents need at least 2, better 100."
        )
    if dynamics.input_size is not None and shape[2] != dynamics.input_size:
        raise ValueError(
            f"inputs have {shape[2]} features, but the recurrent layer takes "
            f"{dynamics.input_size}. Check batch_first: sequences are laid out as the module "
            "takes them."
        )
    dtype = dynamics.dtype or computing_dtype(inputs.dtype)
    return inputs.detach().to(device=dynamics.device or inputs.device, dtype=dtype)


def _check_parameters(module: nn.Module, name: str) -> None:
    tensors = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise NonFiniteParametersError(
            f"The {name} has NaN or infinite weights: it has no Lyapunov exponents."
        )


# The recurrent layer and what reaches it -----------------------------------------------------


class _Captured(BaseException):
    """Ends the forward pass at the recurrent layer; no ``except Exception`` swallows it."""


def _capture(
    module: nn.Module, inputs: Any, state: str, layer: str | nn.Module | None, seed: int
) -> tuple[Dynamics, Tensor, Any]:
    module = unwrapped(module)
    target = find_layer(module, layer)
    args, kwargs = _arguments(module, _on_device(inputs, module))
    clone, target_clone = _copy(module, target)
    clone.eval()
    architecture = architecture_of(target_clone)
    if architecture is None:  # find_layer has checked it
        raise AssertionError

    calls: Calls = []
    whole = not architecture.stepwise or target is module

    def capture(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))
        if whole:
            raise _Captured

    # Registered last, so that hooks that compute weights (weight normalisation) have run.
    target_clone.register_forward_pre_hook(capture, with_kwargs=True)
    try:
        with _OwnRandomNumbers(seed), _no_autocast(clone):
            clone(*args, **kwargs)
    except _Captured:
        pass
    except Exception as error:
        shapes = [tuple(item.shape) for item in _leaves((args, kwargs)) if isinstance(item, Tensor)]
        raise ValueError(
            f"The forward of {type(module).__name__} failed on inputs of shapes {shapes} "
            f"({type(error).__name__}: {error}). Pass a batch as in training, without targets."
        ) from error
    if not calls:
        raise ValueError(
            f"The forward of {type(module).__name__} never called its {type(target).__name__} "
            "layer: pass the layer itself and the inputs that reach it."
        )
    reaching, initial = architecture.read_calls(target_clone, calls)
    _check_parameters(target_clone, "recurrent layer")
    return architecture.build(target_clone, state), reaching, initial


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the model behind DistributedDataParallel, DataParallel and ``torch.compile``."""
    while True:
        inner = _wrapped_by(module)
        if inner is None:
            return module
        module = inner


def _wrapped_by(module: nn.Module) -> nn.Module | None:
    if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        wrapped: nn.Module = module.module
        return wrapped
    # torch.compile's OptimizedModule; its class lives in a package that is slow to import
    inner = module._modules.get("_orig_mod")
    return inner if isinstance(inner, nn.Module) else None


def find_layer(module: nn.Module, layer: str | nn.Module | None = None) -> nn.Module:
    """Return the recurrent layer of a model.

    Raises:
        ValueError: There is none, there are several, or ``layer`` names none of them.
    """
    layers: dict[str, nn.Module] = {
        _plain_name(name): sub for name, sub in module.named_modules() if architecture_of(sub)
    }
    if isinstance(layer, nn.Module):
        layer = unwrapped(layer)
        if not any(sub is layer for sub in layers.values()):
            raise ValueError(
                f"module is a {type(layer).__name__} that is not one of the model's recurrent "
                f"layers: {sorted(layers) or 'none'}."
            )
        return layer
    if isinstance(layer, str):
        if _plain_name(layer) not in layers:
            raise ValueError(
                f"The model has no recurrent layer named {layer!r}; it has "
                f"{sorted(layers) or 'none'}."
            )
        return layers[_plain_name(layer)]
    if layer is not None:
        raise ValueError(
            f"The recurrent layer is given by its name or itself, not by {type(layer).__name__}."
        )
    if not layers:
        raise ValueError(
            f"{type(module).__name__} contains no recurrent layer ({registered_names()}). For "
            "another architecture pass a lyap_optuna.RecurrentDynamics with its step function."
        )
    if len(layers) > 1:
        raise ValueError(
            f"{type(module).__name__} contains {len(layers)} recurrent layers: {sorted(layers)}. "
            "Name one: layer=... (in LyapunovProbe: module=...), or pass that layer itself with "
            "the inputs that reach it."
        )
    return next(iter(layers.values()))


def _plain_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in ("_orig_mod",))


def _arguments(module: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = dict(inputs)
    elif isinstance(inputs, (tuple, list)) and not isinstance(inputs, nn.utils.rnn.PackedSequence):
        args, kwargs = tuple(inputs), {}
    else:
        args, kwargs = (inputs,), {}
    try:
        inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"inputs do not fit the forward of {type(module).__name__} ({error}): pass what it "
            "takes, without targets; a tensor, a tuple of arguments or a dict of keyword "
            "arguments."
        ) from None
    return args, kwargs


def _on_device(inputs: Any, module: nn.Module) -> Any:
    parameter = next(module.parameters(), None)
    if parameter is None:
        return inputs
    if isinstance(inputs, Tensor):
        return inputs.detach().to(parameter.device)
    if isinstance(inputs, nn.utils.rnn.PackedSequence):
        return inputs
    if isinstance(inputs, (tuple, list)):
        return tuple(_on_device(item, module) for item in inputs)
    if isinstance(inputs, Mapping):
        return {key: _on_device(item, module) for key, item in inputs.items()}
    return inputs


def _no_autocast(module: nn.Module) -> torch.autocast:
    parameter = next(module.parameters(), None)
    kind = "cpu" if parameter is None else parameter.device.type
    return torch.autocast(kind, enabled=False)


# A copy that shares nothing that could be changed --------------------------------------------


def _copy(module: nn.Module, target: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Copy a model with the layer of interest; nothing is shared, and hooks of users are left out.

    Parameters too: a forward pass may write to them (an embedding with ``max_norm`` does). Hooks
    that compute weights, which are PyTorch's own, stay; others would see calls that are not
    training.

    Plain ``copy.deepcopy`` refuses tensors with a gradient history (weight normalisation and
    parametrisations leave some) and copies wrappers, so every tensor and wrapper is put into its
    memo first.
    """
    memo: dict[int, Any] = {}
    keep: list[Any] = []  # ids in the memo stay valid as long as their objects live
    for sub in module.modules():
        for p in sub._parameters.values():
            if p is not None and not isinstance(
                p, (nn.UninitializedParameter, nn.UninitializedBuffer)
            ):
                memo[id(p)] = nn.Parameter(p.detach().clone(), requires_grad=False)
        for b in sub._buffers.values():
            if b is not None and not isinstance(
                b, (nn.UninitializedParameter, nn.UninitializedBuffer)
            ):
                memo[id(b)] = b.detach().clone()
    for sub in module.modules():
        for name, value in vars(sub).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                for item in _leaves(value):
                    keep.append(item)
                    if isinstance(item, Tensor):
                        memo.setdefault(id(item), item.detach().clone())
                    elif isinstance(item, torch.Generator):
                        memo.setdefault(id(item), item.clone_state())
    try:
        for sub in reversed(list(module.modules())):
            if _wrapped_by(sub) is not None:
                memo[id(sub)] = copy.deepcopy(unwrapped(sub), memo)
        clone: nn.Module = copy.deepcopy(module, memo)
    except Exception as error:
        raise ValueError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}): pass "
            "its recurrent layer itself and the inputs that reach it."
        ) from error
    for sub in clone.modules():
        sub._compiled_call_impl = None  # set by Module.compile()
        for hooks in (sub._forward_hooks, sub._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not type(hook).__module__.startswith("torch."):
                    del hooks[key]
    return clone, memo[id(target)]


def _leaves(value: Any, depth: int = 3) -> Iterator[Any]:
    if isinstance(value, (Tensor, torch.Generator)):
        yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item, depth - 1)


class _OwnRandomNumbers(TorchDispatchMode):
    """Gives operations that draw random numbers a generator of our own.

    A model may draw in eval mode (dropout that is always on, a random initial state). Modes are
    local to the thread, and the global generators are never touched, not even to restore them.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            drawing = _with_generator(func)
            if drawing is not None:
                tensors = [item for item in _leaves(args) if isinstance(item, Tensor)]
                device = tensors[0].device if tensors else torch.device(kwargs.get("device", "cpu"))
                return drawing(*args, **{**kwargs, "generator": self._generator(device)})
        return func(*args, **kwargs)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


def _with_generator(func: Any) -> Any:
    def takes_one(overload: Any) -> bool:
        return any(argument.name == "generator" for argument in overload._schema.arguments)

    if takes_one(func):
        return func
    name = func._overloadname
    candidate = "generator" if name == "default" else f"{name}_generator"
    return getattr(func.overloadpacket, candidate, _DRAWS_LIKE.get(func.overloadpacket))


# Older releases of PyTorch have no overloads of these that take a generator.
_DRAWS_LIKE = {
    torch.ops.aten.randn_like: lambda like, generator, **options: torch.empty_like(
        like, **options
    ).normal_(generator=generator),
    torch.ops.aten.rand_like: lambda like, generator, **options: torch.empty_like(
        like, **options
    ).uniform_(generator=generator),
}
