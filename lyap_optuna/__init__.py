"""Prune and rank Optuna trials of recurrent networks by their Lyapunov exponents."""

from lyap_optuna._version import __version__
from lyap_optuna._warnings import LyapunovWarning

__all__ = ["LyapunovWarning", "__version__"]
