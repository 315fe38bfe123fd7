"""The next state of the Lorenz-96 system, tanh RNN.

Lorenz, *Predictability: a problem partly solved* (1996): ten variables on a ring, forcing 8,
chaotic; fourth-order Runge-Kutta with a step of 0.05.
"""

from functools import cache
from pathlib import Path

import numpy as np
import optuna
import torch
from torch import nn

from studies.recordings.tasks._task import (
    Run,
    SequenceModel,
    Task,
    predict_next_step,
    suggest_optimizer,
)

VARIABLES = 10
LENGTH = 50
BATCHES = 40
BATCH_SIZE = 50


@cache
def sequences() -> tuple[torch.Tensor, torch.Tensor]:
    """Return standardised sequences for training and validation, ``(n, 51, 10)`` each."""

    def slope(x: np.ndarray) -> np.ndarray:
        ahead, behind, before = np.roll(x, -1, -1), np.roll(x, 2, -1), np.roll(x, 1, -1)
        change: np.ndarray = (ahead - behind) * before - x + 8.0
        return change

    x = 8.0 + 0.01 * np.random.default_rng(0).standard_normal((600, VARIABLES))
    h, states = 0.05, []
    for t in range(200 + LENGTH + 1):
        a = slope(x)
        b = slope(x + h / 2 * a)
        c = slope(x + h / 2 * b)
        d = slope(x + h * c)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
        if t >= 200:
            states.append(x)
    series = np.stack(states, axis=1)
    series = (series - series.mean()) / series.std()
    data = torch.as_tensor(series, dtype=torch.float32)
    return data[100:], data[:100]


def start(trial: optuna.trial.BaseTrial, data: Path | None) -> Run:
    """Suggest the hyperparameters and return the network."""
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    gain = trial.suggest_float("gain", 0.1, 3.0, log=True)
    noise = trial.suggest_float("input_noise", 1e-6, 1e-3, log=True)
    train, valid = sequences()
    model = SequenceModel(nn.RNN(VARIABLES, 64, batch_first=True), VARIABLES)
    with torch.no_grad():
        model.recurrent.get_parameter("weight_hh_l0").normal_(0.0, gain / 64**0.5)
    optimizer = suggest_optimizer(trial, model, lr, ("adam", "sgd"))
    return predict_next_step(
        model,
        optimizer,
        train,
        valid,
        batches=BATCHES,
        batch_size=BATCH_SIZE,
        noise=noise,
        seed=1 + trial.number,
    )


TASK = Task(
    name="lorenz96",
    kind="easy",
    description="next state of Lorenz-96, tanh RNN of 64 units",
    epochs=20,
    states=("hidden",),
    start=start,
)
