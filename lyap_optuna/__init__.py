"""Prune and rank Optuna trials of recurrent networks by their Lyapunov exponents.

A training script gains three lines: a :class:`LyapunovProbe` after the model, ``probe.report`` in
place of ``trial.report``, and ``pruner=LyapunovPruner()``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lyap_optuna._version import __version__
from lyap_optuna._warnings import LyapunovWarning

if TYPE_CHECKING:
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
    from lyap_optuna.records import (
        ArtifactSink,
        DatabaseSink,
        SpectrumRecord,
        SpectrumSink,
        load_spectra,
    )
    from lyap_optuna.report import write_report
    from lyap_optuna.search import SecondChance, freeze_thaw, second_chance
    from lyap_optuna.spectrum import (
        LyapunovReadout,
        LyapunovSpectrum,
        lyapunov_readout,
        lyapunov_spectrum,
    )

__all__ = [
    "ArtifactSink",
    "Audit",
    "DatabaseSink",
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
    "SpectrumSink",
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
    "write_report",
]

_MODULES = (
    "campaign",
    "dashboard",
    "data",
    "demo",
    "dynamics",
    "integration",
    "prediction",
    "probe",
    "pruner",
    "records",
    "replay",
    "report",
    "search",
    "spectrum",
    "testing",
    "visualization",
)
_HOMES = {
    "ArtifactSink": "records",
    "Audit": "prediction",
    "DatabaseSink": "records",
    "EvidenceSkill": "prediction",
    "Explanation": "prediction",
    "LyapunovProbe": "probe",
    "LyapunovPruner": "pruner",
    "LyapunovReadout": "spectrum",
    "LyapunovSpectrum": "spectrum",
    "RecurrentDynamics": "dynamics",
    "SecondChance": "search",
    "SpectrumRecord": "records",
    "SpectrumSink": "records",
    "TrialPrediction": "prediction",
    "audited": "prediction",
    "explain": "prediction",
    "freeze_thaw": "search",
    "load_spectra": "records",
    "lyapunov_readout": "spectrum",
    "lyapunov_spectrum": "spectrum",
    "prediction_skill": "prediction",
    "rank_trials": "prediction",
    "second_chance": "search",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    # What is not used is not imported: torch takes more than a second, plotly comes in with the
    # first figure, a training framework with its first callback.
    if name in _MODULES:
        return importlib.import_module(f"lyap_optuna.{name}")
    if name in _HOMES:
        found = getattr(importlib.import_module(f"lyap_optuna.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
