"""Forward-mode differentiation, by one thread at a time.

PyTorch's dual levels belong to the process, not to a thread: two threads that differentiate
forwards at the same time leave each other's levels, and fail or get wrong numbers. Everything here
that does so holds one lock. Forward-mode differentiation in threads of the user's own, outside
this package, cannot be held back: run it and measurements by turns, or under this lock.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()


@contextmanager
def forward_mode() -> Iterator[None]:
    """Hold the process's forward-mode differentiation; the same thread may do so again.

    Example:
        >>> import torch
        >>> from lyap_optuna.dynamics.forward_mode import forward_mode
        >>> with forward_mode():
        ...     _, slope = torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))
        >>> float(slope)
        1.0
    """
    with _lock:
        yield
