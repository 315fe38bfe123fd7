"""Judge pruners on recorded studies: which would have served, at what cost, at what risk?"""

from lyap_optuna.replay._compare import (
    Choosing,
    Compared,
    Interval,
    PrunerSummary,
    Search,
    compare_pruners,
    default_pruners,
    summarize,
)
from lyap_optuna.replay._outcome import REGRET_AT, Replay
from lyap_optuna.replay._recording import RecordedTrial, Recording, RecordingError
from lyap_optuna.replay._replay import replay, replay_freeze_thaw
from lyap_optuna.replay._truth import MAX_REGRET, Calibration, winners

__all__ = [
    "Calibration",
    "Choosing",
    "Compared",
    "Interval",
    "MAX_REGRET",
    "REGRET_AT",
    "PrunerSummary",
    "RecordedTrial",
    "Recording",
    "RecordingError",
    "Replay",
    "Search",
    "compare_pruners",
    "default_pruners",
    "replay",
    "replay_freeze_thaw",
    "summarize",
    "winners",
]
