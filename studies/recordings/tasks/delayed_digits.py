"""Delayed digits, LSTM: the demo's task, to be answered 56 steps after the image was shown."""

from functools import cache
from pathlib import Path

import optuna
import torch

from lyap_optuna.demo import Classifier, Digits, load_digits, train_one_epoch, validate
from studies.recordings.tasks._task import Run, Task, suggest_optimizer


@cache
def digits() -> Digits:
    """Return the images, loaded once."""
    return load_digits()


def start(trial: optuna.trial.BaseTrial, data: Path | None) -> Run:
    """Suggest the hyperparameters and return the network."""
    lr = trial.suggest_float("lr", 1e-3, 3e-2, log=True)
    model = Classifier(
        cell="LSTM",
        units=trial.suggest_int("units", 16, 48),
        weight_scale=trial.suggest_float("weight_scale", 0.01, 0.6, log=True),
        gate_bias=trial.suggest_float("forget_bias", 0.0, 4.0),
        dropout=trial.suggest_float("dropout", 0.0, 0.5),
    )
    optimizer: torch.optim.Optimizer = suggest_optimizer(trial, model, lr, ("adam", "rmsprop"))
    return Run(
        model=model,
        probe_inputs=digits().valid_x[:10],
        train_epoch=lambda: train_one_epoch(model, optimizer, digits()),
        validate=lambda: validate(model, digits())[0],
    )


TASK = Task(
    name="delayed_digits",
    kind="memory",
    description="handwritten digits answered 56 steps later, LSTM of 16 to 48 units",
    epochs=20,
    states=("hidden", "full"),
    start=start,
)
