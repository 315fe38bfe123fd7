"""Threads with one kernel thread each, without touching any global setting.

Factorisations of a few hundred rows do not speed up well over the threads of one call, and slow
down tenfold where another process competes for a core; one thread for each of several inputs does
neither. ``torch.set_num_threads`` in a worker would change the number that threads of others start
with, so the worker's own OpenMP and MKL settings, which are local to the thread, are set instead.
"""

import ctypes
import functools
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def number_of_workers(device: torch.device) -> int:
    """Return how many workers keep the caller's threads busy; 1 where workers cannot be had."""
    if device.type != "cpu" or _thread_local_settings() is None:
        return 1
    return torch.get_num_threads()


def map_in_workers(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> list[_Result]:
    """Return ``[function(item) for item in items]``, in order, computed by ``workers`` threads.

    Without gradients. With one worker the calling thread does it, with all its kernel threads.
    """
    items = list(items)
    settings = _thread_local_settings()
    if workers <= 1 or len(items) <= 1 or settings is None:
        return [function(item) for item in items]

    def initialise() -> None:
        torch.get_num_threads()  # lets PyTorch initialise this thread first
        for setting in settings:
            setting(1)

    def run(item: _Item) -> _Result:
        with torch.no_grad():
            return function(item)

    with ThreadPoolExecutor(min(workers, len(items)), "lyapunov", initialise) as pool:
        return list(pool.map(run, items))


@functools.cache
def _thread_local_settings() -> tuple[Callable[[int], Any], ...] | None:
    # The libraries that PyTorch itself loaded; None where they lack what is needed.
    if not sys.platform.startswith("linux") or not torch.backends.mkl.is_available():
        return None
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        settings = (library.omp_set_num_threads, library.MKL_Set_Num_Threads_Local)
    except (OSError, AttributeError):
        return None
    for setting in settings:
        setting.argtypes = [ctypes.c_int]
    return settings
