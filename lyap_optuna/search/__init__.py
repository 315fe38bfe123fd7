"""Search that pauses trials and goes on with the most promising."""

from lyap_optuna.search._freeze_thaw import freeze_thaw

__all__ = ["freeze_thaw"]
