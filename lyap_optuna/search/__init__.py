"""Search that pauses trials and goes on with the most promising."""

from lyap_optuna.search._freeze_thaw import freeze_thaw
from lyap_optuna.search._second_chance import SecondChance, second_chance

__all__ = ["SecondChance", "freeze_thaw", "second_chance"]
