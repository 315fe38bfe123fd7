"""The next frame of motion capture over the wide space; the frames are those of ``motion``."""

from functools import cache
from pathlib import Path

import optuna
import torch
from torch import nn

from studies.recordings.tasks._task import Run, Task
from studies.recordings.tasks._wide import N_TRIALS, Sequences, start_on
from studies.recordings.tasks.motion import DIMENSIONS, frames

N_EPOCH = 2_400
"""A trial takes 6 seconds on one core."""


@cache
def sequences(data: Path | None) -> Sequences:
    """Return what is trained on: windows of 26 frames, drawn at random."""
    train, valid = frames(data)

    def draw(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        windows = train[torch.randint(0, len(train), (n,), generator=generator)]
        return windows[:, :-1], windows[:, 1:]

    held_out = valid[:, :-1], valid[:, 1:]
    return Sequences(draw, held_out, DIMENSIONS, nn.functional.mse_loss, N_EPOCH)


def start(trial: optuna.trial.BaseTrial, data: Path | None) -> Run:
    """Suggest the hyperparameters and return the network."""
    return start_on(trial, sequences(data))


TASK = Task(
    name="wide_motion",
    kind="easy",
    description="next frame of motion capture, wide space",
    epochs=16,
    states=("hidden", "full"),
    start=start,
    trials=N_TRIALS,
    needs_data=True,
)
