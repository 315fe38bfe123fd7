"""What a trial's code sees of the process: generators, grad mode, autocast, default dtype, device.

Each trial has a world of its own, which is put in place while the trial runs and taken away while
it rests. So what a trial draws does not depend on which others ran between its epochs, and a pause
inside ``torch.no_grad()`` or ``torch.autocast`` switches nothing off or on for the others.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class Surroundings:
    """A snapshot of what a world holds.

    Args:
        python: State of the generator of :mod:`random`.
        numpy: State of NumPy's global generator.
        cpu: State of PyTorch's generator of the CPU.
        cuda: States of PyTorch's generators of CUDA devices; empty before CUDA is used.
        dtype: Default dtype.
        device: What :func:`torch.set_default_device` has set.
        modes: Function modes in force (``with torch.device(...)``), the innermost last.
        grad: Whether gradients are recorded.
        inference: Whether inference mode is on.
        autocast: By device, whether autocast is on, and its dtype.
        nesting: Depth of nested autocasts.
        cache: Whether autocast keeps cast weights.
    """

    python: tuple[Any, ...]
    numpy: Any
    cpu: torch.Tensor
    cuda: list[torch.Tensor]
    dtype: torch.dtype
    device: Any
    modes: list[Any]
    grad: bool
    inference: bool
    autocast: dict[str, tuple[bool, torch.dtype]]
    nesting: int
    cache: bool

    @classmethod
    def here(cls) -> "Surroundings":
        """Take the snapshot of this thread, now."""
        nesting = torch.autocast_increment_nesting() - 1
        torch.autocast_decrement_nesting()
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(),  # noqa: NPY002
            cpu=torch.default_generator.get_state(),
            cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            dtype=torch.get_default_dtype(),
            device=getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None),
            modes=torch.overrides._get_current_function_mode_stack(),
            grad=torch.is_grad_enabled(),
            inference=torch.is_inference_mode_enabled(),
            autocast={
                d: (torch.is_autocast_enabled(d), torch.get_autocast_dtype(d))
                for d in _AUTOCAST_DEVICES
            },
            nesting=nesting,
            cache=torch.is_autocast_cache_enabled(),
        )

    def restore(self) -> None:
        """Put everything but inference mode back; that has no setter, only guards."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        torch.default_generator.set_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        torch.set_default_dtype(self.dtype)
        while torch.overrides._get_current_function_mode_stack():
            torch.overrides._pop_mode()
        for mode in self.modes:
            torch.overrides._push_mode(mode)
        torch._GLOBAL_DEVICE_CONTEXT.device_context = self.device
        torch.set_grad_enabled(self.grad)
        for device, (enabled, dtype) in self.autocast.items():
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(self.cache)
        while (depth := torch.autocast_increment_nesting()) < self.nesting:
            pass
        while depth > self.nesting:
            depth = torch.autocast_decrement_nesting()


def seed_generators(entropy: Sequence[int]) -> None:
    """Seed PyTorch's, Python's and NumPy's global generators, each by a seed of its own."""
    words = [int(word) for word in np.random.SeedSequence(list(entropy)).generate_state(3)]
    torch.manual_seed(words[0])
    random.seed(words[1])
    np.random.seed(words[2])  # noqa: NPY002


class World:
    """The surroundings of one trial; :meth:`enter` and :meth:`leave` in the trial's own thread.

    Args:
        start: The surroundings in which the search was called; a trial begins in these.
        entropy: What seeds the trial's generators: the search's seed and the trial's number.
    """

    def __init__(self, start: Surroundings, entropy: Sequence[int]) -> None:
        self._own = start
        self._entropy: Sequence[int] | None = entropy
        self._outer = start
        self._guard: Any = None

    def enter(self) -> None:
        """Put the trial's surroundings in place."""
        self._outer = Surroundings.here()
        if self._guard is not None:
            self._guard.__exit__(None, None, None)
            self._guard = None
        self._own.restore()
        if self._entropy is not None:
            seed_generators(self._entropy)
            self._entropy = None

    def leave(self) -> None:
        """Keep them, and put back those that were there before."""
        self._own = Surroundings.here()
        if self._own.inference and not self._outer.inference:
            self._guard = torch._C._InferenceMode(False)
            self._guard.__enter__()
        self._outer.restore()
