"""Predict the final value of a trial from what is known early, and say from what."""

from lyap_optuna.prediction._audit import Audit, audited
from lyap_optuna.prediction._explanation import Explanation, explain, explained
from lyap_optuna.prediction._ranking import TrialPrediction, rank_trials
from lyap_optuna.prediction._skill import EvidenceSkill, prediction_skill

__all__ = [
    "Audit",
    "EvidenceSkill",
    "Explanation",
    "TrialPrediction",
    "audited",
    "explain",
    "explained",
    "prediction_skill",
    "rank_trials",
]
