"""The next frame of motion capture (CMU: basketball, soccer, walking, jumping), LSTM."""

import io
import tarfile
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
    step,
    suggest_optimizer,
    uniform_,
)

DIMENSIONS = 20
LENGTH = 25
BATCHES = 50
BATCH_SIZE = 50


@cache
def frames(data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sequences of 26 frames for training and validation, ``(n, 26, 20)`` each."""
    recordings = []
    with tarfile.open(data / "cmu_mocap.tar.xz") as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if member.isfile():
                file = archive.extractfile(member)
                assert file is not None
                text = io.StringIO(file.read().decode())
                recordings.append(np.loadtxt(text, delimiter=",", dtype=np.float64))
    together = np.concatenate(recordings)
    std = together.std(axis=0)
    kept = np.flatnonzero(std >= 1e-4)[:DIMENSIONS]
    mean = together[:, kept].mean(axis=0)
    windows = []
    for recording in recordings:
        scaled = (recording[:, kept] - mean) / std[kept]
        for begin in range(0, len(scaled) - LENGTH, LENGTH):
            windows.append(scaled[begin : begin + LENGTH + 1])
    x = torch.as_tensor(np.stack(windows), dtype=torch.float32)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    held_out = len(x) // 5
    return x[held_out:], x[:held_out]


def start(trial: optuna.trial.BaseTrial, data: Path | None) -> Run:
    """Suggest the hyperparameters and return the network."""
    assert data is not None
    lr = trial.suggest_float("lr", 3e-4, 3.0, log=True)
    scale = trial.suggest_float("weight_scale", 0.02, 1.0, log=True)
    noise = trial.suggest_float("input_noise", 1e-6, 1e-3, log=True)
    train, valid = frames(data)
    model = SequenceModel(nn.LSTM(DIMENSIONS, 64, batch_first=True), DIMENSIONS)
    uniform_(model.recurrent, scale)
    optimizer = suggest_optimizer(trial, model, lr, ("adam", "sgd"))
    generator = torch.Generator().manual_seed(1 + trial.number)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(model(x[:, :-1]), x[:, 1:])

    def train_epoch() -> None:
        for _ in range(BATCHES):
            rows = torch.randint(0, len(train), (BATCH_SIZE,), generator=generator)
            x = train[rows]
            step(optimizer, loss(x + noise * torch.randn(x.shape, generator=generator)))

    @torch.no_grad()
    def validate() -> float:
        return loss(valid).item()

    return Run(model, valid[:10, :-1], train_epoch, validate)


TASK = Task(
    name="motion",
    kind="easy",
    description="next frame of motion capture, LSTM of 64 units",
    epochs=20,
    states=("hidden", "full"),
    start=start,
    needs_data=True,
)
