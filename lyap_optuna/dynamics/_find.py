"""Which layers of a model are recurrent, and which of them are meant."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from lyap_optuna.dynamics._errors import NonFiniteParametersError, NotMeasurableError
from lyap_optuna.dynamics._registry import architecture_of, registered_names

LayerChoice = str | Sequence[str] | nn.Module | None
"""One name, the layer itself, several names, or None for all."""


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model behind DistributedDataParallel, DataParallel and ``torch.compile``."""
    while True:
        inner = wrapped_by(model)
        if inner is None:
            return model
        model = inner


def wrapped_by(model: nn.Module) -> nn.Module | None:
    """Return what a wrapper that changes no numbers wraps, or None where it is no wrapper."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        wrapped: nn.Module = model.module
        return wrapped
    if isinstance(model, torch.jit.ScriptModule):
        return None
    # torch.compile's OptimizedModule; its class lives in a package that is slow to import
    inner = model._modules.get("_orig_mod")
    return inner if isinstance(inner, nn.Module) else None


def find_layers(model: nn.Module, layer: LayerChoice = None) -> dict[str, nn.Module]:
    """Return the recurrent layers of a model by name, in the model's order.

    A layer within a registered layer is part of it.

    Args:
        model: The model.
        layer: The layers that are meant: names of layers, of directions of a bidirectional layer
            (``"lstm.l0_reverse"``) or of modules that hold some layers; or a layer itself.

    Raises:
        NotMeasurableError: There is none.
        ValueError: ``layer`` names none of them.
    """
    model = unwrapped(model)
    layers = dict(_outermost(model))
    if isinstance(layer, nn.Module):
        meant = unwrapped(layer)
        chosen = {name: sub for name, sub in layers.items() if sub is meant}
        if not chosen:
            raise ValueError(
                f"layer is a {type(meant).__name__} that is not one of the model's recurrent "
                f"layers: {_names(layers)}."
            )
        return chosen
    if not layers:
        raise NotMeasurableError(_none_found(model))
    if layer is None:
        return layers
    names = chosen_names(layer)
    for name in names:
        if not any(_meets(name, candidate) for candidate in layers):
            raise NotMeasurableError(
                f"The model has no recurrent layer named {name!r}; it has {_names(layers)}."
            )
    return {n: sub for n, sub in layers.items() if any(_meets(name, n) for name in names)}


def chosen_names(layer: str | Sequence[str]) -> list[str]:
    """Return the names in ``layer``.

    Raises:
        ValueError: It is neither a name nor a list of names.
    """
    names = [layer] if isinstance(layer, str) else layer
    if (
        not isinstance(names, (list, tuple))
        or not names
        or not all(isinstance(n, str) for n in names)
    ):
        raise ValueError(
            "layer must be the name of a recurrent layer, a list of names, the layer itself or "
            f"None for all, but got {layer!r:.100}."
        )
    return [plain_name(name) for name in names]


def is_within(name: str, chosen: str) -> bool:
    """Whether the entry ``name`` is ``chosen`` or a part of it."""
    return chosen in ("", name) or name.startswith(chosen + ".")


def _meets(chosen: str, layer: str) -> bool:
    # "encoder" holds "encoder.lstm"; "lstm.l0_reverse" is a part of "lstm"
    return is_within(layer, chosen) or is_within(chosen, layer)


def plain_name(name: str) -> str:
    """Return a module's name without the parts that ``torch.compile`` puts in."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _outermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    seen: set[nn.Module] = set()

    def walk(sub: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        if sub in seen:
            return
        seen.add(sub)
        if architecture_of(sub) is not None:
            yield plain_name(name), sub
            return
        for child_name, child in sub.named_children():
            yield from walk(child, f"{name}.{child_name}" if name else child_name)

    yield from walk(model, "")


def _names(layers: dict[str, nn.Module]) -> str:
    return str(sorted(layers)) if layers else "none"


def _none_found(model: nn.Module) -> str:
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        name = getattr(model, "original_name", name)
        return (
            f"{name} is scripted or traced: its layers run outside Python, where they cannot be "
            "followed. Pass the model as it was before torch.jit.script or torch.jit.trace."
        )
    return (
        f"{name} contains no recurrent layer that is known ({registered_names()}, and layers of "
        "other libraries by their names, see docs/models.md). For another one, pass a "
        "lyap_optuna.RecurrentDynamics with its step function, or a "
        "lyap_optuna.dynamics.DiagonalDynamics where it is diagonal; or teach the package its "
        "class once, with lyap_optuna.dynamics.register_architecture."
    )


def check_parameters(module: nn.Module, name: str) -> None:
    """Check that weights are numbers.

    Raises:
        NonFiniteParametersError: Some are NaN or infinite.
    """
    tensors = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise NonFiniteParametersError(
            f"The {name} has NaN or infinite weights: it has no Lyapunov exponents."
        )
