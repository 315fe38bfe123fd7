"""Lyapunov exponents of any dynamics. Knows nothing of Optuna."""

from lyap_optuna.spectrum._readout import lyapunov_readout
from lyap_optuna.spectrum._spectrum import lyapunov_spectrum
from lyap_optuna.spectrum.base import LyapunovReadout, LyapunovSpectrum

__all__ = ["LyapunovReadout", "LyapunovSpectrum", "lyapunov_readout", "lyapunov_spectrum"]
