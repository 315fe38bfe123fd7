"""Callbacks for training frameworks, one file each; a framework is imported with its callback.

=====================  ================================  ================
framework              class                             extra to install
=====================  ================================  ================
PyTorch Lightning      :class:`LyapunovPruningCallback`  ``lightning``
skorch                 :class:`SkorchLyapunovCallback`   ``skorch``
PyTorch Ignite         :class:`IgniteLyapunovHandler`    ``ignite``
Hugging Face Trainer   :class:`LyapunovTrainerCallback`  ``transformers``
Stable-Baselines3      :class:`LyapunovEvalCallback`     ``sb3``
fastai                 :class:`FastaiLyapunovCallback`   ``fastai``
=====================  ================================  ================

Each stands where Optuna's own pruning callback for that framework would stand, and does the same:
it reports the monitored value after each validation and prunes. Besides, it takes readouts as a
:class:`~lyap_optuna.LyapunovProbe` does, beginning before the first update.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lyap_optuna._extras import how_to_install

if TYPE_CHECKING:
    from lyap_optuna.integration._fastai import FastaiLyapunovCallback
    from lyap_optuna.integration._ignite import IgniteLyapunovHandler
    from lyap_optuna.integration._lightning import LyapunovPruningCallback
    from lyap_optuna.integration._skorch import SkorchLyapunovCallback
    from lyap_optuna.integration._stable_baselines3 import LyapunovEvalCallback
    from lyap_optuna.integration._transformers import LyapunovTrainerCallback

__all__ = [
    "FastaiLyapunovCallback",
    "IgniteLyapunovHandler",
    "LyapunovEvalCallback",
    "LyapunovPruningCallback",
    "LyapunovTrainerCallback",
    "SkorchLyapunovCallback",
]

# class: (the module that defines it, the framework, its extra)
_CALLBACKS = {
    "FastaiLyapunovCallback": ("_fastai", "fastai", "fastai"),
    "IgniteLyapunovHandler": ("_ignite", "PyTorch Ignite", "ignite"),
    "LyapunovEvalCallback": ("_stable_baselines3", "sb3-contrib", "sb3"),
    "LyapunovPruningCallback": ("_lightning", "PyTorch Lightning", "lightning"),
    "LyapunovTrainerCallback": ("_transformers", "Hugging Face transformers", "transformers"),
    "SkorchLyapunovCallback": ("_skorch", "skorch", "skorch"),
}


def __getattr__(name: str) -> Any:
    if name not in _CALLBACKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, framework, extra = _CALLBACKS[name]
    try:
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    except ImportError as error:
        raise ImportError(f"{name} needs {framework} ({error}): {how_to_install(extra)}") from error


def __dir__() -> list[str]:
    return __all__
