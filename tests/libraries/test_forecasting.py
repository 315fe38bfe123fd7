"""Forecasting libraries train with the callback, and Optuna hears of it."""

import logging

import numpy as np
import optuna
import pytest
import torch
from _trained import PruneSecond, Witness, check_study
from _truth import library

import lyap_optuna as lyap
from lyap_optuna.integration import LyapunovPruningCallback
from lyap_optuna.integration._lightning import Callback

pytestmark = pytest.mark.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

QUIET = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Watching(Witness, Callback):
    """A witness among the callbacks of a trainer."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.watch(pl_module)


def search(objective, rows=10, **options):
    witness = Watching()
    study = optuna.create_study(pruner=PruneSecond(), **options)

    def seeded(trial):
        torch.manual_seed(trial.number)
        return objective(trial, witness)

    study.optimize(seeded, n_trials=3)
    check_study(study, witness, rows)
    return study


# darts ----------------------------------------------------------------------------------------


def darts_series():
    t = np.arange(300)
    noise = 0.1 * np.random.default_rng(0).normal(size=300)
    return library("darts").TimeSeries.from_values((np.sin(t / 7) + noise).astype("float32"))


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("name", ["RNNModel", "BlockRNNModel"])
def test_darts(name, cell):
    model = getattr(library("darts.models"), name)
    series = darts_series()

    def objective(trial, witness):
        callback = LyapunovPruningCallback(trial, monitor="val_loss")
        own = (
            {"input_chunk_length": 24, "training_length": 40}
            if name == "RNNModel"
            else {"input_chunk_length": 30, "output_chunk_length": 6}
        )
        made = model(
            model=cell,
            hidden_dim=trial.suggest_int("hidden_dim", 4, 8),
            n_epochs=3,
            random_state=trial.number,
            pl_trainer_kwargs={"callbacks": [witness, callback], **QUIET},
            **own,
        )
        made.fit(series[:200], val_series=series[150:])
        return made.trainer.callback_metrics["val_loss"].item()

    search(objective)


# neuralforecast ---------------------------------------------------------------------------------


def frame():
    pandas = library("pandas")
    t = np.arange(150)
    days = pandas.date_range("2000", periods=150, freq="D")
    return pandas.concat(
        pandas.DataFrame({"unique_id": i, "ds": days, "y": np.sin(t / 6 + i)}) for i in range(3)
    )


def nf_options(callbacks):
    return {
        "input_size": 24,
        "max_steps": 15,
        "val_check_steps": 5,
        "callbacks": callbacks,
        "logger": False,
        **QUIET,
    }


@pytest.mark.parametrize("name", ["LSTM", "GRU", "DeepAR"])
def test_neuralforecast(name):
    library("neuralforecast")
    from neuralforecast import NeuralForecast, models
    from neuralforecast.losses.pytorch import MAE

    def objective(trial, witness):
        callback = LyapunovPruningCallback(trial, monitor="ptl/val_loss")
        units = trial.suggest_int("units", 4, 8)
        own = (
            {"lstm_hidden_size": units, "lstm_dropout": 0.0}
            if name == "DeepAR"
            else {"encoder_hidden_size": units, "loss": MAE(), "encoder_dropout": 0.0}
        )
        model = getattr(models, name)(h=6, **nf_options([witness, callback]), **own)
        forecast = NeuralForecast([model], freq="D")
        forecast.fit(frame(), val_size=12)
        return float(forecast.models[0].metrics["ptl/val_loss"])

    study = search(objective)
    assert list(study.trials[0].intermediate_values) == [0, 1, 2]


def test_neuralforecast_auto():
    library("neuralforecast")
    from neuralforecast import NeuralForecast
    from neuralforecast.auto import AutoLSTM
    from neuralforecast.common._base_auto import OptunaOptions
    from neuralforecast.losses.pytorch import MAE

    witness = Watching()

    def config(trial):
        callback = LyapunovPruningCallback(trial, monitor="ptl/val_loss")
        units = trial.suggest_int("encoder_hidden_size", 4, 8)
        return {"encoder_hidden_size": units, **nf_options([witness, callback])}

    options = OptunaOptions(create_study_kwargs={"pruner": PruneSecond()})
    auto = AutoLSTM(
        h=6, config=config, backend="optuna", num_samples=3, loss=MAE(), optuna_options=options
    )
    forecast = NeuralForecast([auto], freq="D")
    forecast.fit(frame(), val_size=12)
    check_study(forecast.models[0].results, witness)


# pytorch-forecasting ----------------------------------------------------------------------------


def series_dataset(**options):
    library("pytorch_forecasting")
    from pytorch_forecasting import TimeSeriesDataSet
    from pytorch_forecasting.data.examples import generate_ar_data

    data = generate_ar_data(seasonality=10.0, timesteps=80, n_series=6, seed=42)
    data["series"] = data["series"].astype(str)
    return TimeSeriesDataSet(
        data,
        time_idx="time_idx",
        target="value",
        group_ids=["series"],
        max_encoder_length=30,
        min_prediction_length=10,
        max_prediction_length=10,
        time_varying_unknown_reals=["value"],
        **options,
    )


def loaders(dataset):
    return (
        dataset.to_dataloader(train=True, batch_size=16, num_workers=0),
        dataset.to_dataloader(train=False, batch_size=16, num_workers=0),
    )


@pytest.mark.parametrize("name", ["TemporalFusionTransformer", "DeepAR", "RecurrentNetwork"])
def test_pytorch_forecasting(name):
    pl = library("lightning.pytorch")
    if name == "TemporalFusionTransformer":
        dataset = series_dataset(min_encoder_length=10, time_varying_known_reals=["time_idx"])
        own = {"attention_head_size": 1, "hidden_continuous_size": 4, "dropout": 0.0}
    else:
        dataset = series_dataset(min_encoder_length=30)
        own = {"dropout": 0.0} | ({"cell_type": "GRU"} if name == "RecurrentNetwork" else {})
    training, validation = loaders(dataset)
    kind = getattr(library("pytorch_forecasting"), name)

    def objective(trial, witness):
        callback = LyapunovPruningCallback(trial, monitor="val_loss")
        model = kind.from_dataset(
            dataset, hidden_size=trial.suggest_int("units", 4, 8), log_interval=-1, **own
        )
        trainer = pl.Trainer(
            max_epochs=3,
            limit_train_batches=3,
            limit_val_batches=2,
            callbacks=[witness, callback],
            logger=False,
            enable_checkpointing=False,
            **QUIET,
        )
        trainer.fit(model, training, validation)
        return trainer.callback_metrics["val_loss"].item()

    search(objective)


def test_pytorch_forecasting_tuner(tmp_path):
    dataset = series_dataset(min_encoder_length=10, time_varying_known_reals=["time_idx"])
    library("optuna_integration")
    tuning = library("pytorch_forecasting.models.temporal_fusion_transformer.tuning")
    study = optuna.create_study(pruner=PruneSecond(), sampler=optuna.samplers.RandomSampler(seed=0))
    tuning.optimize_hyperparameters(
        *loaders(dataset),
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


# GluonTS ----------------------------------------------------------------------------------------


def gluonts_training(trial, callbacks, folder, epochs=3):
    pandas = library("pandas")
    library("gluonts.torch")
    from gluonts.dataset.common import ListDataset
    from gluonts.torch.model.deepar import DeepAREstimator

    start = pandas.Period("2000-01-01", "D")
    t = np.arange(150)
    data = ListDataset(
        [{"start": start, "target": np.sin(t / 6 + i).astype("float32")} for i in range(3)],
        freq="D",
    )
    estimator = DeepAREstimator(
        freq="D",
        prediction_length=6,
        context_length=12,
        hidden_size=trial.suggest_int("hidden_size", 4, 8),
        dropout_rate=0.0,
        batch_size=16,
        num_batches_per_epoch=3,
        trainer_kwargs={
            "max_epochs": epochs,
            "callbacks": callbacks,
            "logger": False,
            "default_root_dir": str(folder),
            **QUIET,
        },
    )
    estimator.train(data, data)


def test_gluonts(tmp_path):
    def objective(trial, witness):
        callback = LyapunovPruningCallback(trial, monitor="val_loss")
        gluonts_training(trial, [witness, callback], tmp_path)
        callback.check_pruned()  # it catches TrialPruned once there is a checkpoint
        return list(trial.study.trials[trial.number].intermediate_values.values())[-1]

    search(objective)


def test_gluonts_swallows_the_pruning_and_the_predictor_is_not_misled(tmp_path):
    study = optuna.create_study(pruner=PruneSecond())

    def objective(trial):
        gluonts_training(trial, [LyapunovPruningCallback(trial)], tmp_path)
        return 1.0 / (trial.number + 1)

    study.optimize(objective, n_trials=2)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE"]
    assert len(study.trials[1].intermediate_values) == 2
    with pytest.warns(lyap.LyapunovWarning, match="Trial 1 is COMPLETE, but was pruned at step 1"):
        ranked = lyap.rank_trials(study)
    assert {p.number: p.value is None for p in ranked} == {0: False, 1: True}


# freeze_thaw ------------------------------------------------------------------------------------


def test_trials_rest_within_a_librarys_fit(tmp_path):
    def objective(trial):
        callback = LyapunovPruningCallback(trial, monitor="val_loss")
        gluonts_training(trial, [callback], tmp_path / str(trial.number))
        callback.check_pruned()
        return list(trial.study.trials[trial.number].intermediate_values.values())[-1]

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    lyap.freeze_thaw(study, objective, n_steps=15, seed=0, cost="steps")
    assert sum(len(t.intermediate_values) for t in study.trials) == 15
    assert {t.state.name for t in study.trials} <= {"COMPLETE", "PRUNED"}
