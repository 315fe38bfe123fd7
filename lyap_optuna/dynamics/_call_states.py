"""The state that a call of a recurrent module begins with."""

import functools
import inspect
from typing import Any

from torch import Tensor, nn

from lyap_optuna.dynamics._arguments import leaves
from lyap_optuna.dynamics._errors import OptionError


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
    if given is None and not _is_own(layer):
        return args, kwargs  # a forward of its own begins as it likes
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


def _signature(layer: nn.Module) -> inspect.Signature:
    function = getattr(layer.forward, "__func__", None)
    return inspect.signature(layer.forward) if function is None else _unbound(function)


@functools.lru_cache(maxsize=64)
def _unbound(function: Any) -> inspect.Signature:
    signature = inspect.signature(function)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _is_own(layer: nn.Module) -> bool:
    """Whether a layer's forward is PyTorch's."""
    function = getattr(layer.forward, "__func__", None)
    return function is not None and function.__module__ == nn.RNNBase.__module__


def _parameters_of(layer: nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = _signature(layer).parameters.values()
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
    """Return the tensors of the state that a call begins with.

    They are the arguments that have the name of a state; where none has, the second argument.
    What else a cell takes (masks, contexts, time gaps) is input.
    """
    bound = _signature(layer).bind(*args, **kwargs).arguments
    named = [value for name, value in bound.items() if name.lower() in _STATES]
    chosen = named or list(bound.values())[1:2]
    widths = {getattr(layer, "hidden_size", None), getattr(layer, "proj_size", None)}
    tensors = [t for t in leaves(chosen) if t.is_floating_point() and t.dim()]
    return [t for t in tensors if widths == {None} or t.shape[-1] in widths]


_STATES = {
    *("hx", "cx", "h", "c", "hc", "hidden", "cell", "state", "states", "hidden_state"),
    *("h0", "c0", "h_0", "c_0", "h_prev", "c_prev", "prev_h", "prev_c", "prev_state", "hprev"),
    *("h_t", "c_t", "ht", "ct", "h_tm1", "c_tm1", "prev", "previous", "memory", "init_state"),
}


def first_state(cell: nn.RNNCellBase, x: Tensor) -> Any:
    """Return zeros for a cell that must be given a state; None where it begins by itself."""
    parameters = list(_signature(cell).parameters.values())[1:2]
    if not parameters or parameters[0].default is not inspect.Parameter.empty:
        return None
    zero = x.new_zeros(len(x), cell.hidden_size)
    return (zero, zero) if isinstance(cell, nn.LSTMCell) else zero


def steps_of_call(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Return the time steps of the inputs of an ``nn.RNNBase``, or None where that is unknown."""
    inputs = next(leaves((args, kwargs)), None)
    if not isinstance(layer, nn.RNNBase) or inputs is None or inputs.dim() not in (2, 3):
        return None
    return inputs.shape[1 if layer.batch_first and inputs.dim() == 3 else 0]
