"""Forward-mode differentiation, which is process-wide in PyTorch: one thread at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()


@contextmanager
def forward_mode() -> Iterator[None]:
    """Let no other measurement differentiate in forward mode meanwhile."""
    with _lock:
        yield
