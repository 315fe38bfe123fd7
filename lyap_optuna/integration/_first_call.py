"""What reaches the network in the first training step, seen by a hook that is gone afterwards.

No batch is taken apart and no data loader is asked (another iterator would draw a seed): whatever
a batch holds, the model's own training step picks from it what its network takes.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from lyap_optuna.dynamics import NotMeasurableError, find_layers, unwrapped
from lyap_optuna.dynamics._arguments import leaves, mapped

N_SEQUENCES = 10
"""Sequences of the first training batch that are measured where no inputs are given."""

Then = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any], bool], bool]


class FirstCall:
    """Waits for the first call of the model, or else of a part of it that is recurrent.

    A training step may well call ``self.network(...)`` and not the model that holds it. Of parts
    within one another the outermost counts; where it cannot be measured and holds but one
    recurrent layer, the next.

    Args:
        model: The model.
        layer: The layer to be measured, as a probe takes it.
        then: Called with the part's name, the part, its arguments and keyword arguments, before
            they reach it, and whether this is the last part; returns whether it is the one.
        skip: Calls of the model itself that do not count.
    """

    def __init__(self, model: nn.Module, layer: Any, then: Then, skip: int = 0) -> None:
        self._then, self._skip = then, skip
        model = unwrapped(model)
        parts = dict(model.named_modules())
        try:
            layers = set(find_layers(model, layer).values())
        except ValueError:
            layers = set()  # the probe will say what is wrong
        if layers:
            self.wanted = " or ".join(sorted({type(sub).__name__ for sub in layers}))
            parts = {
                name: sub
                for name, sub in parts.items()
                if sub in layers or not layers.isdisjoint(sub.modules())
            }
        else:
            self.wanted = type(model).__name__
            parts = {name: sub for name, sub in parts.items() if not name or any(sub.children())}
        self._parts, self._several = set(parts.values()), len(layers) != 1
        self._handles: list[RemovableHandle] = []
        self._listen(parts)

    def _listen(self, parts: Mapping[str, nn.Module]) -> None:
        for name, sub in parts.items():
            if isinstance(sub, torch.jit.ScriptModule):
                continue  # takes no hooks; the model that holds it does
            hook = sub.register_forward_pre_hook(
                self._hook(name, sub), prepend=True, with_kwargs=True
            )
            self._handles.append(hook)

    def forget(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, name: str, module: nn.Module) -> Any:
        # What is called may be a replica (DataParallel); the module itself is measured.
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not name and self._skip:
                self._skip -= 1
                return
            handles, self._handles = self._handles, []
            for handle in handles:  # a part is copied and called: nothing may come back to here
                handle.remove()
            inner = {} if self._several else dict(module.named_modules(prefix=name))
            inner = {n: sub for n, sub in inner.items() if sub is not module and sub in self._parts}
            if not self._then(name, module, args, kwargs, not inner):
                self._listen(inner)

        # A compiled model must not compile the measurement.
        return torch.compiler.disable(hook) if "torch._dynamo" in sys.modules else hook


def as_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return arguments as a probe takes them.

    Raises:
        NotMeasurableError: Some have no name and others have.
    """
    if not kwargs:
        return args[0] if len(args) == 1 and isinstance(args[0], Tensor) else args
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
            raise NotMeasurableError(
                f"{type(module).__name__}.forward takes both arguments without a name and named "
                "ones. Pass inputs=, what it takes, without the targets."
            )
        else:
            named[name] = value
    return named


def first_sequences(inputs: Any, model: nn.Module, layer: Any = None) -> Any:
    """Return the first ten sequences of a batch of inputs, or all where they are not told apart.

    They are where every recurrent layer, or ``layer`` itself, has them along the first dimension
    (``batch_first``) and all tensors are equally long there.

    Example:
        >>> import torch
        >>> layer = nn.GRU(3, 4, batch_first=True)
        >>> first_sequences((torch.zeros(64, 20, 3), None), layer)[0].shape
        torch.Size([10, 20, 3])
    """
    tensors = [tensor for tensor in leaves(inputs) if tensor.dim()]
    rows = {len(tensor) for tensor in tensors}
    if len(rows) != 1 or _holds_packed(inputs) or not _batch_first(model, layer):
        return inputs
    return mapped(inputs, lambda tensor: tensor[:N_SEQUENCES] if tensor.dim() else tensor)


def _holds_packed(inputs: Any) -> bool:
    if isinstance(inputs, Mapping):
        return any(map(_holds_packed, inputs.values()))
    if isinstance(inputs, PackedSequence):
        return True
    return isinstance(inputs, (tuple, list)) and any(map(_holds_packed, inputs))


def _batch_first(model: nn.Module, layer: Any) -> bool:
    modules = [layer] if isinstance(layer, nn.Module) else list(model.modules())
    said = [
        sub.batch_first for sub in modules if isinstance(getattr(sub, "batch_first", None), bool)
    ]
    return bool(said) and all(said)


def part(layer: Any, name: str) -> Any:
    """Return the ``layer`` of a model as it is called within its part ``name``."""
    if not name or not isinstance(layer, (str, list, tuple)):
        return layer
    names = [layer] if isinstance(layer, str) else layer
    within = [n.removeprefix(f"{name}.") for n in names if n != name]
    return within or None


def told(inputs: Any) -> str:
    """Return in words what inputs hold: names and shapes.

    Example:
        >>> import torch
        >>> told({"x": torch.zeros(10, 20, 3), "mask": None})
        'x (10, 20, 3)'
    """
    if isinstance(inputs, Tensor):
        return str(tuple(inputs.shape))
    if isinstance(inputs, Mapping):
        shown = {str(key): told(value) for key, value in inputs.items()}
        return ", ".join(f"{key} {value}" for key, value in shown.items() if value)
    if isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence):
        return ", ".join(filter(None, map(told, inputs)))
    return ", ".join(str(tuple(tensor.shape)) for tensor in leaves(inputs))
