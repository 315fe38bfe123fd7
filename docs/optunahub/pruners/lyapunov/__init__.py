"""Prune trials of recurrent networks by the Lyapunov exponents of their first epochs."""

from lyap_optuna import LyapunovProbe, LyapunovPruner, explain, rank_trials

__all__ = ["LyapunovProbe", "LyapunovPruner", "explain", "rank_trials"]
