"""Temporal order, GRU: which of X and Y came first and which second, told at the end.

Hochreiter and Schmidhuber, *Long Short-Term Memory* (1997), experiment 6a, shorter: two of 70
symbols are X or Y, one among the sixth to fifteenth and one among the 26th to 35th; the others are
drawn from four that mean nothing, 35 of them at the end. The loss is ln 4 for a guess, ln 2 where
only one of the two is known.
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

LENGTH = 70
PLACES = ((5, 15), (25, 35))
DISTRACTORS = 4
BATCHES = 30
BATCH_SIZE = 40


def sequences(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one-hot inputs ``(n, 70, 6)`` and classes ``(n,)``: XX, XY, YX, YY."""
    tokens = torch.randint(0, DISTRACTORS, (n, LENGTH), generator=generator)
    rows = torch.arange(n)
    classes = torch.zeros(n, dtype=torch.int64)
    for begin, end in PLACES:
        at = torch.randint(begin, end, (n,), generator=generator)
        which = torch.randint(0, 2, (n,), generator=generator)
        tokens[rows, at] = DISTRACTORS + which
        classes = 2 * classes + which
    return nn.functional.one_hot(tokens, DISTRACTORS + 2).float(), classes


def start(trial: optuna.trial.BaseTrial, data: Path | None) -> Run:
    """Suggest the hyperparameters and return the network."""
    lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    scale = trial.suggest_float("weight_scale", 0.01, 0.6, log=True)
    bias = trial.suggest_float("update_bias", 0.0, 4.0)
    clip = trial.suggest_float("clip", 0.3, 30.0, log=True)
    model = SequenceModel(nn.GRU(DISTRACTORS + 2, 48, batch_first=True), 4, last=1)
    uniform_(model.recurrent, scale, bias)
    optimizer = suggest_optimizer(trial, model, lr, ("adam", "rmsprop"))

    def loss(answer: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(answer[:, 0], y)

    return fresh_sequences(
        model,
        optimizer,
        sequences,
        loss,
        batches=BATCHES,
        batch_size=BATCH_SIZE,
        clip=clip,
        n_valid=500,
        seed=trial.number,
    )


TASK = Task(
    name="temporal_order",
    kind="memory",
    description="order of two symbols among 70, GRU of 48 units",
    epochs=20,
    states=("hidden",),
    start=start,
)
