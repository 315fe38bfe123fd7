"""The objective that a campaign file names."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import optuna

_MAY_BIND_ANYTHING = re.compile(r"import \*|__getattr__|globals|setattr|exec|vars")


def find_objective(name: str) -> Callable[[optuna.Trial], Any]:
    """Import ``package.module:function``.

    Raises:
        ValueError: There is no such function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"The objective {name} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"The objective {name} is not a function.")
    return found  # type: ignore[no-any-return]


def check_name(name: str, folder: str) -> None:
    """Look for ``package.module:function`` without running any of its code.

    Args:
        name: The objective.
        folder: Where modules are looked up first.

    Raises:
        ValueError: There is surely no such module, or nothing of that name in it. What else keeps
            it from being imported shows in the workers.
    """
    module, _, function = name.partition(":")
    parts = module.split(".")
    found = _first(parts[0], folder)
    for i in range(2, len(parts) + 1):
        inside = None if found is None else found.submodule_search_locations
        found = None if inside is None else PathFinder.find_spec(".".join(parts[:i]), [*inside])
    if found is None:
        raise ValueError(
            f"The objective {name} cannot be imported: there is no module {module!r} in {folder}, "
            "nor among the installed ones."
        )
    source = Path(found.origin or "")
    if source.suffix != ".py" or not source.is_file():
        return
    text = source.read_text(encoding="utf-8", errors="replace")
    if not re.search(rf"\b{re.escape(function)}\b", text) and not _MAY_BIND_ANYTHING.search(text):
        raise ValueError(
            f"The objective {name} cannot be imported: there is no {function!r} in {source}."
        )


def _first(name: str, folder: str) -> ModuleSpec | None:
    if (found := PathFinder.find_spec(name, [folder])) is not None:
        return found
    known = sys.modules.get(name)
    return importlib.util.find_spec(name) if known is None else known.__spec__
