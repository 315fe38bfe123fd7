"""Delayed digits over the wide space: the demo's images, to be named 16 steps after their end."""

from functools import cache
from pathlib import Path

import optuna
import torch

from lyap_optuna.demo import load_digits
from studies.recordings.tasks._task import Run, Task
from studies.recordings.tasks._wide import N_TRIALS, Sequences, cross_entropy, start_on

BLANK_STEPS = 16
"""As copying's delay: half of the configurations stay on the plateau."""

CLASSES = 10
N_EPOCH = 1_400
"""As many as there are images to train on."""


@cache
def sequences() -> Sequences:
    """Return what is trained on: 8 rows of 8 pixels and the blank steps, drawn at random."""
    digits = load_digits(BLANK_STEPS)

    def draw(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(0, len(digits.train_y), (n,), generator=generator)
        return digits.train_x[chosen], digits.train_y[chosen]

    valid = digits.valid_x, digits.valid_y
    return Sequences(draw, valid, CLASSES, cross_entropy, N_EPOCH, last=1)


def start(trial: optuna.trial.BaseTrial, data: Path | None) -> Run:
    """Suggest the hyperparameters and return the network."""
    return start_on(trial, sequences())


TASK = Task(
    name="wide_digits",
    kind="memory",
    description="handwritten digits answered 16 steps later, wide space",
    epochs=20,
    states=("hidden", "full"),
    start=start,
    trials=N_TRIALS,
)
