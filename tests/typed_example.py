"""What a user writes; CI type-checks it strictly against the installed wheel, and runs it."""

import optuna
import torch

import lyap_optuna as lyap


def objective(trial: optuna.Trial) -> float:
    model = torch.nn.GRU(2, trial.suggest_int("units", 4, 8), batch_first=True)
    inputs = torch.randn(4, 20, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    probe = lyap.LyapunovProbe(model, inputs, layer=None, trial=trial, strict=False)
    loss = float("nan")
    for step in range(3):
        optimizer.zero_grad()
        error: torch.Tensor = model(inputs)[0].square().mean()
        torch.autograd.backward(error)
        optimizer.step()
        loss = error.item()
        probe.report(trial, loss, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss


def main() -> None:
    torch.manual_seed(0)
    study = optuna.create_study(pruner=lyap.LyapunovPruner(n_startup_trials=2))
    study.optimize(objective, n_trials=3)
    best: lyap.TrialPrediction = lyap.rank_trials(study)[0]
    value: float | None = best.predicted_value
    print(best.number, value, str(lyap.explain(study, best.number)))
    spectrum = lyap.lyapunov_spectrum(torch.nn.LSTM(2, 5), torch.randn(30, 2, 2))
    maximum: float = spectrum.max
    print(maximum, len(lyap.visualization.plot_spectrum(spectrum).data))


if __name__ == "__main__":
    main()
