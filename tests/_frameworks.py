"""What the tests of all frameworks share: data, a model, and pruners that decide at once."""

from typing import Any

import optuna
import torch
from torch import nn

EPOCHS = 3
BATCH_SIZE = 16


def make_data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences whose first number is to be remembered."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(48, 12, 2, generator=generator)
    return x, x[:, 0, :1].clone()


class Last(nn.Module):
    def __init__(self, units: int = 5) -> None:
        super().__init__()
        self.recurrent = nn.GRU(2, units, batch_first=True)
        self.dropout = nn.Dropout(0.3)  # draws random numbers while it trains
        self.output = nn.Linear(units, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.output(self.dropout(self.recurrent(x)[0][:, -1]))
        return out


class PruneAt(optuna.pruners.BasePruner):
    """Prunes at a step and after it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def prune(self, study: optuna.study.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.last_step is not None and trial.last_step >= self.step


def ask(pruner: optuna.pruners.BasePruner | None = None, **options: Any) -> optuna.trial.Trial:
    return optuna.create_study(pruner=pruner or optuna.pruners.NopPruner(), **options).ask()


def run(objective: Any, pruner: optuna.pruners.BasePruner, **options: Any) -> Any:
    """The one trial of a study, as the study holds it afterwards."""
    study = optuna.create_study(pruner=pruner, **options)
    study.optimize(objective, n_trials=1)
    return study.get_trials()[0]


def same_state(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)
