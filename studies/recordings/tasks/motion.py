"""The next frame of motion capture (CMU: basketball, soccer, walking, jumping), LSTM."""

from functools import cache
from pathlib import Path

import optuna
import torch
from torch import nn

from lyap_optuna.data import load_mocap
from studies.recordings.tasks._task import (
    Run,
    SequenceModel,
    Task,
    predict_next_step,
    suggest_optimizer,
    uniform_,
)

DIMENSIONS = 20
LENGTH = 25
BATCHES = 50
BATCH_SIZE = 50


@cache
def frames(data: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sequences of 26 frames for training and validation, ``(n, 26, 20)`` each."""
    motion = load_mocap(data, features=DIMENSIONS)
    pairs = zip(motion.train, motion.valid, strict=True)
    recordings = [torch.cat(pair) for pair in pairs]  # here single windows are held out
    mean = torch.cat(recordings).double().mean(0).float()
    x = torch.cat(
        [(r - mean).unfold(0, LENGTH + 1, LENGTH).transpose(1, 2) for r in recordings]
    ).contiguous()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    held_out = len(x) // 5
    return x[held_out:], x[:held_out]


def start(trial: optuna.trial.BaseTrial, data: Path | None) -> Run:
    """Suggest the hyperparameters and return the network."""
    lr = trial.suggest_float("lr", 3e-4, 3.0, log=True)
    scale = trial.suggest_float("weight_scale", 0.02, 1.0, log=True)
    noise = trial.suggest_float("input_noise", 1e-6, 1e-3, log=True)
    train, valid = frames(data)
    model = SequenceModel(nn.LSTM(DIMENSIONS, 64, batch_first=True), DIMENSIONS)
    uniform_(model.recurrent, scale)
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
    name="motion",
    kind="easy",
    description="next frame of motion capture, LSTM of 64 units",
    epochs=20,
    states=("hidden", "full"),
    start=start,
    needs_data=True,
)
