"""Copy memory, GRU: five symbols are shown, and are to be repeated after 20 blank steps.

Hochreiter and Schmidhuber (1997); in this form Arjovsky, Shah and Bengio, *Unitary Evolution
Recurrent Neural Networks* (2016). The loss is that of the five answers: ln 8 for a guess.
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

ALPHABET = 8
SYMBOLS = 5
DELAY = 20
BATCHES = 40
BATCH_SIZE = 64


def sequences(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one-hot inputs ``(n, 30, 10)`` and symbols ``(n, 5)``; 8 is blank, 9 says answer."""
    symbols = torch.randint(0, ALPHABET, (n, SYMBOLS), generator=generator)
    tokens = torch.full((n, SYMBOLS + DELAY + SYMBOLS), ALPHABET)
    tokens[:, :SYMBOLS] = symbols
    tokens[:, SYMBOLS + DELAY - 1] = ALPHABET + 1
    return nn.functional.one_hot(tokens, ALPHABET + 2).float(), symbols


def start(trial: optuna.trial.BaseTrial, data: Path | None) -> Run:
    """Suggest the hyperparameters and return the network."""
    lr = trial.suggest_float("lr", 3e-4, 3e-2, log=True)
    scale = trial.suggest_float("weight_scale", 0.01, 1.0, log=True)
    bias = trial.suggest_float("update_bias", 0.0, 4.0)
    clip = trial.suggest_float("clip", 0.3, 30.0, log=True)
    model = SequenceModel(nn.GRU(ALPHABET + 2, 64, batch_first=True), ALPHABET, last=SYMBOLS)
    uniform_(model.recurrent, scale, bias)
    optimizer = suggest_optimizer(trial, model, lr, ("adam", "rmsprop"))

    def loss(answer: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(answer.flatten(0, 1), y.flatten())

    return fresh_sequences(
        model,
        optimizer,
        sequences,
        loss,
        batches=BATCHES,
        batch_size=BATCH_SIZE,
        clip=clip,
        n_valid=400,
        seed=trial.number,
    )


TASK = Task(
    name="copying",
    kind="memory",
    description="copy memory, 5 of 8 symbols over a delay of 20, GRU of 64 units",
    epochs=25,
    states=("hidden",),
    start=start,
)
