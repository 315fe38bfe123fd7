"""The adding problem, LSTM: two of 60 numbers are marked, and their sum is asked for at the end.

Hochreiter and Schmidhuber, *Long Short-Term Memory* (1997), experiment 4. Answering the mean
gives the variance of the sum, 1/6: the plateau.
"""

from pathlib import Path

import optuna
import torch
from torch import nn

from studies.recordings.tasks._task import (
    Run,
    SequenceModel,
    Task,
    fresh_sequences,
    suggest_optimizer,
    uniform_,
)

LENGTH = 60
BATCHES = 40
BATCH_SIZE = 50


def sequences(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs ``(n, 60, 2)``, numbers and marks, and sums ``(n,)``."""
    x = torch.zeros(n, LENGTH, 2)
    x[..., 0] = torch.rand(n, LENGTH, generator=generator)
    half = LENGTH // 2
    rows = torch.arange(n)
    first = torch.randint(0, half, (n,), generator=generator)
    second = torch.randint(half, LENGTH, (n,), generator=generator)
    x[rows, first, 1] = 1.0
    x[rows, second, 1] = 1.0
    return x, (x[..., 0] * x[..., 1]).sum(1)


def train_on_adding(
    model: nn.Module, optimizer: torch.optim.Optimizer, clip: float, seed: int
) -> Run:
    """Return a run of the adding problem for any network that takes its inputs."""

    def loss(answer: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(answer[:, 0, 0], y)

    return fresh_sequences(
        model,
        optimizer,
        sequences,
        loss,
        batches=BATCHES,
        batch_size=BATCH_SIZE,
        clip=clip,
        n_valid=500,
        seed=seed,
    )


def start(trial: optuna.trial.BaseTrial, data: Path | None) -> Run:
    """Suggest the hyperparameters and return the network."""
    lr = trial.suggest_float("lr", 1e-4, 2e-2, log=True)
    scale = trial.suggest_float("weight_scale", 0.01, 1.0, log=True)
    bias = trial.suggest_float("forget_bias", 0.0, 4.0)
    clip = trial.suggest_float("clip", 0.3, 30.0, log=True)
    model = SequenceModel(nn.LSTM(2, 64, batch_first=True), 1, last=1)
    uniform_(model.recurrent, scale, bias)
    optimizer = suggest_optimizer(trial, model, lr, ("adam", "rmsprop"))
    return train_on_adding(model, optimizer, clip, trial.number)


TASK = Task(
    name="adding",
    kind="memory",
    description="adding problem, length 60, LSTM of 64 units",
    epochs=40,
    states=("hidden", "full"),
    start=start,
)
