"""The probe says, once, where the study's pruner does not read what it measures."""

import logging
from collections.abc import Iterator

import optuna
import pytest
import torch

import lyap_optuna as lyap

X = torch.randn(8, 6, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.enable_propagation()
    yield
    optuna.logging.disable_propagation()
    optuna.logging.set_verbosity(before)


def objective(trial: optuna.Trial) -> float:
    probe = lyap.LyapunovProbe(torch.nn.GRU(2, 2, batch_first=True), X, last_step=0)
    for step in range(2):
        probe.report(trial, trial.suggest_float("x", 0, 1), step)
        trial.should_prune()
    return 1.0


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "does not read them" in r.getMessage()]


def test_optunas_default_is_named_once_for_each_study(caplog: pytest.LogCaptureFixture) -> None:
    storage = optuna.storages.InMemoryStorage()
    for n_studies in (1, 2):
        study = optuna.create_study(storage=storage)
        with caplog.at_level(logging.WARNING):
            study.optimize(objective, n_trials=2)
        assert len(said(caplog)) == n_studies
    assert "the study's pruner, MedianPruner," in said(caplog)[0]
    assert "pruner=lyap_optuna.LyapunovPruner()" in said(caplog)[0]


@pytest.mark.parametrize(
    "pruner",
    [
        lyap.LyapunovPruner(),
        optuna.pruners.PatientPruner(lyap.LyapunovPruner(), patience=1),
        optuna.pruners.NopPruner(),
    ],
    ids=lambda pruner: type(pruner).__name__,
)
def test_nothing_is_said_where_it_reads_them_or_nothing_is_to_be_pruned(
    pruner: optuna.pruners.BasePruner, caplog: pytest.LogCaptureFixture
) -> None:
    study = optuna.create_study(pruner=pruner)
    with caplog.at_level(logging.WARNING):
        study.optimize(objective, n_trials=2)
    assert not said(caplog)


def test_nothing_is_said_in_freeze_thaw_nor_to_a_trial_without_a_study(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        lyap.freeze_thaw(optuna.create_study(), objective, n_trials=2)
        objective(optuna.trial.FixedTrial({"x": 0.5}))  # type: ignore[arg-type]
    assert not said(caplog)
