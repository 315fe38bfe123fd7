"""Tune a GRU that must recall, at its last step, the first number of a sequence."""

import optuna
import optunahub
import torch
from torch import nn

lyapunov = optunahub.load_module("pruners/lyapunov")

torch.manual_seed(0)
x = torch.randn(192, 30, 1)  # (sequences, steps, features)
train_x, valid_x = x[:128], x[128:]


def objective(trial: optuna.Trial) -> float:
    """Train for eight epochs; return the validation loss."""
    recurrent = nn.GRU(1, trial.suggest_int("units", 4, 32), batch_first=True)
    output = nn.Linear(recurrent.hidden_size, 1)
    parameters = [*recurrent.parameters(), *output.parameters()]
    optimizer = torch.optim.Adam(parameters, trial.suggest_float("lr", 1e-3, 1e-1, log=True))

    def loss_on(batch: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(output(recurrent(batch)[0][:, -1]), batch[:, 0])

    probe = lyapunov.LyapunovProbe(recurrent, train_x[:10])  # after the model, before training
    loss = float("nan")
    for epoch in range(8):
        for batch in train_x.split(16):
            optimizer.zero_grad()
            loss_on(batch).backward()
            optimizer.step()
        loss = loss_on(valid_x).item()
        probe.report(trial, loss, epoch)  # in place of trial.report
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss


study = optuna.create_study(pruner=lyapunov.LyapunovPruner())
study.optimize(objective, n_trials=20)
for prediction in lyapunov.rank_trials(study)[:5]:
    print(prediction)
print(lyapunov.explain(study, study.best_trial.number))
