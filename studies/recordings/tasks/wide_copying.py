"""Copy memory over the wide space: five symbols are to be repeated after 15 blank steps.

As ``copying``, a little shorter, so that cells without gates can learn it too. The loss is that of
the five answers: ln 8 for a guess.
"""

from functools import cache
from pathlib import Path

import optuna
import torch
from torch import nn

from studies.recordings.tasks._task import Run, Task
from studies.recordings.tasks._wide import N_TRIALS, Sequences, cross_entropy, start_on

ALPHABET = 8
SYMBOLS = 5
DELAY = 15
"""So long that about half of the configurations stay on the plateau to the end."""

N_EPOCH = 2_400
"""A trial takes 5 seconds on one core."""

N_VALID = 400


def draw(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one-hot inputs ``(n, 25, 10)`` and symbols ``(n, 5)``; 8 is blank, 9 says answer."""
    symbols = torch.randint(0, ALPHABET, (n, SYMBOLS), generator=generator)
    tokens = torch.full((n, SYMBOLS + DELAY + SYMBOLS), ALPHABET)
    tokens[:, :SYMBOLS] = symbols
    tokens[:, SYMBOLS + DELAY - 1] = ALPHABET + 1
    return nn.functional.one_hot(tokens, ALPHABET + 2).float(), symbols


@cache
def sequences() -> Sequences:
    """Return what is trained on."""
    valid = draw(N_VALID, torch.Generator().manual_seed(0))
    return Sequences(draw, valid, ALPHABET, cross_entropy, N_EPOCH, last=SYMBOLS)


def start(trial: optuna.trial.BaseTrial, data: Path | None) -> Run:
    """Suggest the hyperparameters and return the network."""
    return start_on(trial, sequences())


TASK = Task(
    name="wide_copying",
    kind="memory",
    description="copy memory, 5 of 8 symbols over a delay of 15, wide space",
    epochs=20,
    states=("hidden", "full"),
    start=start,
    trials=N_TRIALS,
)
