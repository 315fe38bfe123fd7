"""Prune and rank Optuna trials of recurrent networks by their Lyapunov exponents.

A training script gains three lines: a :class:`LyapunovProbe` after the model, ``probe.report`` in
place of ``trial.report``, and ``pruner=LyapunovPruner()``.
"""

import importlib
from types import ModuleType

from lyap_optuna._version import __version__
from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.dynamics import RecurrentDynamics
from lyap_optuna.prediction import (
    Audit,
    EvidenceSkill,
    Explanation,
    TrialPrediction,
    audited,
    explain,
    prediction_skill,
    rank_trials,
)
from lyap_optuna.probe import LyapunovProbe
from lyap_optuna.pruner import LyapunovPruner
from lyap_optuna.records import SpectrumRecord, load_spectra
from lyap_optuna.search import SecondChance, freeze_thaw, second_chance
from lyap_optuna.spectrum import (
    LyapunovReadout,
    LyapunovSpectrum,
    lyapunov_readout,
    lyapunov_spectrum,
)

__all__ = [
    "Audit",
    "EvidenceSkill",
    "Explanation",
    "LyapunovProbe",
    "LyapunovPruner",
    "LyapunovReadout",
    "LyapunovSpectrum",
    "LyapunovWarning",
    "RecurrentDynamics",
    "SecondChance",
    "SpectrumRecord",
    "TrialPrediction",
    "__version__",
    "audited",
    "explain",
    "freeze_thaw",
    "load_spectra",
    "lyapunov_readout",
    "lyapunov_spectrum",
    "prediction_skill",
    "rank_trials",
    "second_chance",
]


def __getattr__(name: str) -> ModuleType:
    # plotly comes in with the first figure, a training framework with its first callback
    if name in ("dashboard", "integration", "visualization"):
        return importlib.import_module(f"lyap_optuna.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
