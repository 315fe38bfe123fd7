"""Figures of Lyapunov exponents and of what was predicted from them, as plotly figures.

In the manner of :mod:`optuna.visualization`: a study goes in, a
:class:`plotly.graph_objects.Figure` comes out, and a study without data gives an empty figure and
a logged warning. Exponents are in nats per time step; 0 is where a perturbation neither grows nor
fades.
"""

from lyap_optuna.visualization._convergence import plot_convergence
from lyap_optuna.visualization._explanation import plot_explanation
from lyap_optuna.visualization._exponent_value import plot_exponent_value
from lyap_optuna.visualization._prediction_skill import plot_prediction_skill
from lyap_optuna.visualization._predictions import plot_predictions
from lyap_optuna.visualization._pruning_timeline import plot_pruning_timeline
from lyap_optuna.visualization._replay import plot_regret, plot_replay
from lyap_optuna.visualization._spectrum import plot_spectrum
from lyap_optuna.visualization._spectrum_evolution import plot_spectrum_evolution

__all__ = [
    "plot_convergence",
    "plot_explanation",
    "plot_exponent_value",
    "plot_prediction_skill",
    "plot_predictions",
    "plot_pruning_timeline",
    "plot_regret",
    "plot_replay",
    "plot_spectrum",
    "plot_spectrum_evolution",
]
