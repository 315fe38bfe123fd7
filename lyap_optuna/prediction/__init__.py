"""Predict the final value of a trial from what is known early, and say from what."""

from lyap_optuna.prediction._audit import Audit, audited
from lyap_optuna.prediction._explanation import Explanation, explain, explained
from lyap_optuna.prediction._pruned import PruningLoss, pruning_loss
from lyap_optuna.prediction._ranking import TrialPrediction, rank_trials
from lyap_optuna.prediction._skill import (
    AddedSkill,
    EvidenceSkill,
    added_skill,
    prediction_skill,
)

__all__ = [
    "AddedSkill",
    "Audit",
    "EvidenceSkill",
    "Explanation",
    "PruningLoss",
    "TrialPrediction",
    "added_skill",
    "audited",
    "explain",
    "explained",
    "prediction_skill",
    "pruning_loss",
    "rank_trials",
]
