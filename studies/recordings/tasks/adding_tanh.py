"""The adding problem, tanh RNN: another architecture and another space on the same task."""

from pathlib import Path

import optuna
import torch
from torch import nn

from studies.recordings.tasks._task import Run, SequenceModel, Task, suggest_optimizer
from studies.recordings.tasks.adding import train_on_adding


def start(trial: optuna.trial.BaseTrial, data: Path | None) -> Run:
    """Suggest the hyperparameters and return the network."""
    lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    gain = trial.suggest_float("gain", 0.3, 3.0, log=True)
    input_scale = trial.suggest_float("input_scale", 0.05, 1.0, log=True)
    clip = trial.suggest_float("clip", 0.3, 30.0, log=True)
    model = SequenceModel(nn.RNN(2, 64, batch_first=True), 1, last=1)
    with torch.no_grad():
        model.recurrent.get_parameter("weight_hh_l0").normal_(0.0, gain / 64**0.5)
        model.recurrent.get_parameter("weight_ih_l0").uniform_(-input_scale, input_scale)
    optimizer = suggest_optimizer(trial, model, lr, ("adam", "rmsprop"))
    return train_on_adding(model, optimizer, clip, trial.number)


TASK = Task(
    name="adding_tanh",
    kind="memory",
    description="adding problem, length 60, tanh RNN of 64 units",
    epochs=40,
    states=("hidden",),
    start=start,
)
