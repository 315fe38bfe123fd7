"""Prune and rank Optuna trials of recurrent networks by their Lyapunov exponents."""

from lyap_optuna._version import __version__
from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.dynamics import RecurrentDynamics
from lyap_optuna.spectrum import (
    LyapunovReadout,
    LyapunovSpectrum,
    lyapunov_readout,
    lyapunov_spectrum,
)

__all__ = [
    "LyapunovReadout",
    "LyapunovSpectrum",
    "LyapunovWarning",
    "RecurrentDynamics",
    "__version__",
    "lyapunov_readout",
    "lyapunov_spectrum",
]
