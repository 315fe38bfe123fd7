"""What forecasting libraries do besides training: searches of their own, pruning that they catch.

That they train with the callback is in ``test_tasks``.
"""

import logging

import optuna
import pytest
from _trained import PruneSecond, baseline, check_study
from _truth import library

import lyap_optuna as lyap
from lyap_optuna.integration import LyapunovPruningCallback
from studies.libraries.tasks import (
    QUIET,
    TINY,
    frame,
    gluonts,
    loaders,
    neuralforecast_callbacks,
    neuralforecast_options,
    padded_windows,
)

pytestmark = pytest.mark.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def test_neuralforecast_auto(witness, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    library("neuralforecast")
    from neuralforecast import NeuralForecast
    from neuralforecast.auto import AutoLSTM
    from neuralforecast.common._base_auto import OptunaOptions
    from neuralforecast.losses.pytorch import MAE

    def config(trial):
        units = trial.suggest_int("encoder_hidden_size", 4, 8)
        options = neuralforecast_options(TINY, neuralforecast_callbacks(trial))
        return {"encoder_hidden_size": units, **options}

    options = OptunaOptions(create_study_kwargs={"pruner": PruneSecond()})
    auto = AutoLSTM(
        h=6, config=config, backend="optuna", num_samples=3, loss=MAE(), optuna_options=options
    )
    forecast = NeuralForecast([auto], freq="D")
    forecast.fit(frame(), val_size=12)
    study = forecast.models[0].results
    check_study(study)
    witness.agrees(baseline(study.trials[0]))


def test_pytorch_forecasting_tuner(tmp_path):
    library("pytorch_forecasting")
    library("optuna_integration")
    tuning = library("pytorch_forecasting.models.temporal_fusion_transformer.tuning")
    study = optuna.create_study(pruner=PruneSecond(), sampler=optuna.samplers.RandomSampler(seed=0))
    tuning.optimize_hyperparameters(
        *loaders(padded_windows()),
        model_path=str(tmp_path / "models"),
        log_dir=str(tmp_path / "logs"),
        n_trials=3,
        max_epochs=3,
        use_learning_rate_finder=False,
        study=study,
        hidden_size_range=(8, 9),
        trainer_kwargs={
            "callbacks": [LyapunovPruningCallback(study)],
            "limit_train_batches": 2,
            "limit_val_batches": 2,
            **QUIET,
        },
    )
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert [len(t.user_attrs["lyapunov:readouts"]) for t in study.trials] == [4, 3, 4]
    assert all(list((tmp_path / "models" / f"trial_{n}").glob("*.ckpt")) for n in range(3))


def test_gluonts_swallows_the_pruning_and_the_predictor_is_not_misled(tmp_path, monkeypatch):
    library("gluonts.torch")
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(pruner=PruneSecond())

    def objective(trial):
        gluonts(trial, TINY, ask=False)
        return 1.0 / (trial.number + 1)

    study.optimize(objective, n_trials=2)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE"]
    assert len(study.trials[1].intermediate_values) == 2
    with pytest.warns(lyap.LyapunovWarning, match="Trial 1 is COMPLETE, but was pruned at step 1"):
        ranked = lyap.rank_trials(study)
    assert {p.number: p.value is None for p in ranked} == {0: False, 1: True}
