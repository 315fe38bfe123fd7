"""The next character of Python's own help texts (``pydoc_data.topics``), LSTM.

The text comes with every Python and differs a little from version to version.
"""

from functools import cache
from pathlib import Path

import optuna
import torch
from torch import nn

from studies.recordings.tasks._task import Run, SequenceModel, Task, step, suggest_optimizer

UNITS = 128
BATCHES = 50
BATCH_SIZE = 32
LENGTH = 64


@cache
def characters() -> tuple[torch.Tensor, int]:
    """Return the text as numbers, shape (characters,), and how many differ."""
    from pydoc_data.topics import topics

    text = "".join(topics[name] for name in sorted(topics))
    alphabet = {c: i for i, c in enumerate(sorted(set(text)))}
    return torch.tensor([alphabet[c] for c in text]), len(alphabet)


def batch(
    text: torch.Tensor, n: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return characters and their successors, both ``(n, 64)``, from random places of ``text``."""
    places = torch.randint(0, len(text) - LENGTH - 1, (n, 1), generator=generator)
    window = text[places + torch.arange(LENGTH + 1)]
    return window[:, :-1], window[:, 1:]


def start(trial: optuna.trial.BaseTrial, data: Path | None) -> Run:
    """Suggest the hyperparameters and return the network."""
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    dropout = trial.suggest_float("dropout", 0.0, 0.8)
    scale = trial.suggest_float("weight_scale", 0.03, 0.5, log=True)
    text, size = characters()
    held_out = len(text) // 10
    train, valid = text[:-held_out], text[-held_out:]
    model = SequenceModel(nn.LSTM(size, UNITS, batch_first=True), size, dropout=dropout)
    with torch.no_grad():
        for parameter in model.recurrent.parameters():
            parameter.uniform_(-scale, scale)
    optimizer = suggest_optimizer(trial, model, lr, ("adam", "rmsprop"))
    generator = torch.Generator().manual_seed(1 + trial.number)

    def one_hot(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(x, size).float()

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(one_hot(x)).flatten(0, 1), y.flatten())

    def train_epoch() -> None:
        model.train()
        for _ in range(BATCHES):
            step(optimizer, loss(*batch(train, BATCH_SIZE, generator)))

    valid_x, valid_y = batch(valid, 256, torch.Generator().manual_seed(0))

    @torch.no_grad()
    def validate() -> float:
        model.eval()
        return loss(valid_x, valid_y).item()

    return Run(model, one_hot(valid_x[:10]), train_epoch, validate)


TASK = Task(
    name="language",
    kind="easy",
    description="next character of Python's help texts, LSTM of 128 units",
    epochs=15,
    states=("hidden", "full"),
    start=start,
)
