"""Random numbers of our own: a measurement leaves the global generators alone."""

import contextlib
import functools
import itertools
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lyap_optuna.dynamics._errors import NotMeasurableError


class OwnRandomNumbers(TorchDispatchMode):
    """Gives operations that draw random numbers a generator of our own.

    A model may draw in eval mode (dropout that is always on, a random initial state). Modes are
    local to the thread, and PyTorch's global generators are not touched.

    Args:
        seed: Seeds the generators, one per device.

    Attributes:
        drew: Whether an operation drew.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seed = seed
        self.drew = False
        self._generators: dict[torch.device, torch.Generator] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # nothing is compiled in here, and to guard against it costs more than all else
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _draws(func):
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        self.drew = True
        if _is_global(kwargs.get("generator")):
            drawing = _with_generator(func)
            if drawing is not None:
                tensors = [item for item in args if isinstance(item, Tensor)]
                place = kwargs.get("device") or "cpu"
                device = tensors[0].device if tensors else torch.device(place)
                return drawing(*args, **{**kwargs, "generator": self._generator(device)})
        return func(*args, **kwargs)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


def _is_global(generator: torch.Generator | None) -> bool:
    return (
        generator is None
        or generator is torch.default_generator
        or any(generator is g for g in torch.cuda.default_generators)
    )


def _takes_generator(overload: Any) -> bool:
    return any(argument.name == "generator" for argument in overload._schema.arguments)


@functools.cache
def _draws(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags or _takes_generator(func)


def _with_generator(func: Any) -> Any:
    if _takes_generator(func):
        return func
    name = func._overloadname
    candidates = ["generator"] if name == "default" else [f"{name}_generator", f"generator_{name}"]
    for candidate in candidates:
        overload = getattr(func.overloadpacket, candidate, None)
        if overload is not None:
            return overload
    return _DRAWS_LIKE.get(func.overloadpacket)


# Older releases of PyTorch have no overloads of these that take a generator.
_DRAWS_LIKE: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.randn_like: lambda like, generator, **options: torch.empty_like(
        like, **options
    ).normal_(generator=generator),
    torch.ops.aten.rand_like: lambda like, generator, **options: torch.empty_like(
        like, **options
    ).uniform_(generator=generator),
}


class DrewBesideOthersError(NotMeasurableError):
    """A global generator of Python or NumPy moved while other threads live."""


class DrewError(Exception):
    """A forward drew from PyTorch's global generator, where none was to be drawn from."""


def is_alone(model: nn.Module) -> bool:
    """Whether nothing else can draw meanwhile from what a model may draw from."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return threading.active_count() == 1 and all(t.device.type == "cpu" for t in tensors)


@contextlib.contextmanager
def watched_generator() -> Iterator[None]:
    """See whether PyTorch's generator is drawn from; it is put back.

    For a model that is alone. Hardly any draws in eval mode, and inspecting every operation, as
    :class:`OwnRandomNumbers` does, costs more than many a forward.

    Raises:
        DrewError: It was.
    """
    before = torch.default_generator.get_state()
    try:
        yield
    finally:
        if not torch.equal(before, torch.default_generator.get_state()):
            torch.default_generator.set_state(before)
            raise DrewError


@contextlib.contextmanager
def undisturbed_generators(seed: int, check: bool = True) -> Iterator[None]:
    """Leave the global generators of PyTorch, Python and NumPy as they were.

    PyTorch's are not touched by what :class:`OwnRandomNumbers` diverts; the rest
    (``torch.manual_seed`` in a forward, ``random``, ``numpy.random``) cannot be diverted in one
    thread alone. Where no other thread lives, Python's and NumPy's are seeded, so that every
    measurement draws the same, and all are put back. Beside other threads nothing can be put
    back: PyTorch's generator is theirs too, and moves all the time.

    Raises:
        NotMeasurableError: Another thread lives, and Python's or NumPy's generator was drawn from.
    """
    alone = threading.active_count() == 1
    numpy = sys.modules.get("numpy")
    python_before = random.getstate()
    numpy_before = None if numpy is None else numpy.random.get_state()
    torch_before = torch.default_generator.get_state()
    if alone:
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed)
    try:
        yield
    finally:
        if alone:
            random.setstate(python_before)
            if numpy is not None:
                numpy.random.set_state(numpy_before)
            if not torch.equal(torch_before, torch.default_generator.get_state()):
                torch.default_generator.set_state(torch_before)
    if alone or not check:
        return
    numpy_same = numpy is None or _same(numpy_before, numpy.random.get_state())
    if not numpy_same or python_before != random.getstate():
        raise DrewBesideOthersError(
            "The model's forward, or another thread meanwhile, drew from Python's or NumPy's "
            "global generator. Beside other threads that cannot be put back: let the model draw "
            "by torch functions, or only in training mode."
        )


def _same(a: Any, b: Any) -> bool:
    return bool(a[2:] == b[2:] and (a[1] == b[1]).all())
