"""The next character of Tolstoy's *War and Peace* over the wide space."""

from functools import cache
from pathlib import Path

import optuna
import torch
from torch import nn

from lyap_optuna.data import load_war_and_peace
from studies.recordings.tasks._task import Run, Task
from studies.recordings.tasks._wide import N_TRIALS, Sequences, cross_entropy, start_on

LENGTH = 40
"""Some seven words: what so small networks learn of a text lies within a few."""

N_EPOCH = 2_400
"""A trial takes 9 seconds on one core."""

N_VALID = 256


@cache
def sequences(data: Path | None) -> Sequences:
    """Return what is trained on: windows of 40 characters from random places."""
    text = load_war_and_peace(data)
    size = len(text.alphabet)

    def windows(
        codes: torch.Tensor, n: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.randint(0, len(codes) - LENGTH, (n, 1), generator=generator)
        window = codes[places + torch.arange(LENGTH + 1)]
        return nn.functional.one_hot(window[:, :-1], size).float(), window[:, 1:]

    def draw(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return windows(text.train, n, generator)

    valid = windows(text.valid, N_VALID, torch.Generator().manual_seed(0))
    return Sequences(draw, valid, size, cross_entropy, N_EPOCH)


def start(trial: optuna.trial.BaseTrial, data: Path | None) -> Run:
    """Suggest the hyperparameters and return the network."""
    return start_on(trial, sequences(data))


TASK = Task(
    name="wide_text",
    kind="easy",
    description="next character of War and Peace, wide space",
    epochs=16,
    states=("hidden", "full"),
    start=start,
    trials=N_TRIALS,
    needs_data=True,
)
