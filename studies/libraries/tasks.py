"""An objective for each library, as a user of it would write one; data are made on the spot.

Libraries are imported by the objective that needs them. What they leave behind goes to the working
directory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import optuna
import torch
from torch import Tensor, nn

import lyap_optuna as lyap

BATCH = 16
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
"""Options of every Lightning trainer, whoever makes it."""


@dataclass(frozen=True)
class Size:
    """How much a trial trains.

    Args:
        epochs: Validations of a trial.
        batches: Training batches before each.
        units: The fewest and the most units of a layer.
    """

    epochs: int
    batches: int
    units: tuple[int, int]


TINY = Size(epochs=3, batches=3, units=(4, 8))
SMALL = Size(epochs=6, batches=20, units=(8, 64))
FEW = Size(epochs=6, batches=6, units=(8, 32))
"""For large models."""


def _units(trial: optuna.Trial, size: Size) -> int:
    return trial.suggest_int("units", *size.units, log=True)


def _rate(trial: optuna.Trial) -> float:
    return trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)


def _waves(number: int, steps: int) -> np.ndarray:
    """Return noisy sums of two sines, ``(number, steps)``."""
    t, i = np.arange(steps), np.arange(number)[:, None]
    noise = np.random.default_rng(0).normal(size=(number, steps))
    waves = np.sin(t / 6 + i) + 0.5 * np.sin(t / 17 + 2 * i) + 0.1 * noise
    return waves.astype(np.float32)


def _sentences(number: int) -> tuple[Tensor, Tensor]:
    """Return sentences and which half of the vocabulary their first word is of."""
    ids = torch.randint(0, 20, (number, 16), generator=torch.Generator().manual_seed(0))
    return ids, ids[:, 0] // 10


class Classifier(nn.Module):
    """Says of what kind a sentence is, in the manner of Hugging Face's models."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.recurrent = nn.LSTM(8, units, batch_first=True)
        self.output = nn.Linear(units, 2)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        """Return logits, and a loss where there are labels."""
        logits = self.output(self.recurrent(self.embedding(input_ids))[0][:, -1])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def lightning(trial: optuna.Trial, size: Size) -> float:
    """A classifier in a module of one's own."""
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader, TensorDataset

    from lyap_optuna.integration import LyapunovPruningCallback

    class Module(pl.LightningModule):
        def __init__(self, units: int, rate: float) -> None:
            super().__init__()
            self.network, self.rate = Classifier(units), rate

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = self.network(*batch)["loss"]
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.network(*batch)["loss"])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), self.rate)

    data = TensorDataset(*_sentences(BATCH * (size.batches + 4)))
    held_out = range(4 * BATCH), range(4 * BATCH, len(data))
    valid, train = (torch.utils.data.Subset(data, rows) for rows in held_out)
    trainer = pl.Trainer(
        max_epochs=size.epochs,
        callbacks=[LyapunovPruningCallback(trial)],
        logger=False,
        enable_checkpointing=False,
        **QUIET,  # type: ignore[arg-type]
    )
    trainer.fit(
        Module(_units(trial, size), _rate(trial)),
        DataLoader(train, BATCH, shuffle=True),
        DataLoader(valid, BATCH),
    )
    return trainer.callback_metrics["val_loss"].item()


def darts(
    trial: optuna.Trial, size: Size, model: str = "RNNModel", cell: str | None = None
) -> float:
    """``RNNModel`` or ``BlockRNNModel``."""
    import darts.models
    from darts import TimeSeries

    from lyap_optuna.integration import LyapunovPruningCallback

    series = TimeSeries.from_values(_waves(1, 500)[0])
    lengths = (
        {"input_chunk_length": 24, "training_length": 40}
        if model == "RNNModel"
        else {"input_chunk_length": 30, "output_chunk_length": 6}
    )
    made = getattr(darts.models, model)(
        model=cell or trial.suggest_categorical("cell", ["LSTM", "GRU", "RNN"]),
        hidden_dim=_units(trial, size),
        n_epochs=size.epochs,
        batch_size=BATCH,
        optimizer_kwargs={"lr": _rate(trial)},
        random_state=trial.number,
        pl_trainer_kwargs={
            "callbacks": [LyapunovPruningCallback(trial)],
            "limit_train_batches": size.batches,
            **QUIET,
        },
        **lengths,
    )
    made.fit(series[:400], val_series=series[350:])
    return float(made.trainer.callback_metrics["val_loss"])


def neuralforecast(trial: optuna.Trial, size: Size, model: str = "LSTM") -> float:
    """``LSTM``, ``GRU`` or ``DeepAR``."""
    from neuralforecast import NeuralForecast, models
    from neuralforecast.losses.pytorch import MAE

    callbacks, units = neuralforecast_callbacks(trial), _units(trial, size)
    own = (
        {"lstm_hidden_size": units, "lstm_dropout": 0.0}
        if model == "DeepAR"
        else {"encoder_hidden_size": units, "encoder_dropout": 0.0, "loss": MAE()}
    )
    made = getattr(models, model)(
        h=6, learning_rate=_rate(trial), **neuralforecast_options(size, callbacks), **own
    )
    forecast = NeuralForecast([made], freq="D")
    forecast.fit(frame(), val_size=12)
    return float(forecast.models[0].metrics["ptl/val_loss"])


def neuralforecast_callbacks(trial: optuna.Trial) -> list[Any]:
    """Return the callbacks of a model."""
    from lyap_optuna.integration import LyapunovPruningCallback

    return [LyapunovPruningCallback(trial, monitor="ptl/val_loss")]


def neuralforecast_options(size: Size, callbacks: list[Any]) -> dict[str, Any]:
    """Return what every model of neuralforecast is given."""
    return {
        "input_size": 24,
        "max_steps": size.epochs * size.batches,
        "val_check_steps": size.batches,
        "callbacks": callbacks,
        "logger": False,
        **QUIET,
    }


def frame() -> Any:
    """Return three series as neuralforecast takes them."""
    import pandas

    days = pandas.date_range("2000", periods=150, freq="D")
    series = enumerate(_waves(3, 150))
    return pandas.concat(pandas.DataFrame({"unique_id": i, "ds": days, "y": y}) for i, y in series)


def pytorch_forecasting(
    trial: optuna.Trial, size: Size, model: str = "TemporalFusionTransformer"
) -> float:
    """``TemporalFusionTransformer``, ``DeepAR`` or ``RecurrentNetwork``."""
    import lightning.pytorch as pl
    import pytorch_forecasting as library

    from lyap_optuna.integration import LyapunovPruningCallback

    dataset = padded_windows() if model == "TemporalFusionTransformer" else windows()
    options: dict[str, dict[str, Any]] = {
        "TemporalFusionTransformer": {"attention_head_size": 1, "hidden_continuous_size": 4},
        "RecurrentNetwork": {"cell_type": "GRU"},
    }
    made = getattr(library, model).from_dataset(
        dataset,
        hidden_size=_units(trial, size),
        learning_rate=_rate(trial),
        dropout=0.0,
        log_interval=-1,
        **options.get(model, {}),
    )
    trainer = pl.Trainer(
        max_epochs=size.epochs,
        limit_train_batches=size.batches,
        limit_val_batches=2,
        callbacks=[LyapunovPruningCallback(trial)],
        logger=False,
        enable_checkpointing=False,
        **QUIET,  # type: ignore[arg-type]
    )
    trainer.fit(made, *loaders(dataset))
    return trainer.callback_metrics["val_loss"].item()


def windows(**options: Any) -> Any:
    """Return a data set of pytorch-forecasting."""
    import pandas
    from pytorch_forecasting import TimeSeriesDataSet

    series = enumerate(_waves(6, 80))
    data = pandas.concat(
        pandas.DataFrame({"series": str(i), "time_idx": range(80), "value": y}) for i, y in series
    )
    lengths = {"min_encoder_length": 30, "max_encoder_length": 30}
    return TimeSeriesDataSet(
        data.reset_index(drop=True),
        time_idx="time_idx",
        target="value",
        group_ids=["series"],
        min_prediction_length=10,
        max_prediction_length=10,
        time_varying_unknown_reals=["value"],
        **lengths | options,
    )


def padded_windows() -> Any:
    """Return a data set whose sequences differ in length."""
    return windows(min_encoder_length=10, time_varying_known_reals=["time_idx"])


def loaders(dataset: Any) -> list[Any]:
    """Return a training and a validation loader."""
    return [dataset.to_dataloader(train=train, batch_size=BATCH) for train in (True, False)]


def gluonts(trial: optuna.Trial, size: Size, ask: bool = True) -> float:
    """``DeepAREstimator``; with ``ask`` false a script that forgets ``check_pruned()``."""
    import pandas
    from gluonts.dataset.common import ListDataset
    from gluonts.torch.model.deepar import DeepAREstimator

    from lyap_optuna.integration import LyapunovPruningCallback

    start = pandas.Period("2000-01-01", "D")
    data = ListDataset([{"start": start, "target": y} for y in _waves(3, 150)], freq="D")
    callback = LyapunovPruningCallback(trial)
    estimator = DeepAREstimator(
        freq="D",
        prediction_length=6,
        context_length=12,
        hidden_size=_units(trial, size),
        lr=_rate(trial),
        dropout_rate=0.0,
        batch_size=BATCH,
        num_batches_per_epoch=size.batches,
        trainer_kwargs={
            "max_epochs": size.epochs,
            "callbacks": [callback],
            "limit_val_batches": 2,
            "logger": False,
            "default_root_dir": f"gluonts-{trial.number}",
            **QUIET,
        },
    )
    estimator.train(data, data)
    if ask:
        callback.check_pruned()
    return list(trial.study.trials[trial.number].intermediate_values.values())[-1]


def trainer_of(size: Size, units: Callable[[Any], int], **options: Any) -> Any:
    """Return a ``Trainer`` of classifiers that evaluates after each epoch."""
    from transformers import Trainer, TrainingArguments

    pairs = zip(*_sentences(BATCH * (size.batches + 4)), strict=True)
    data = [{"input_ids": ids, "labels": label} for ids, label in pairs]
    given = {
        "output_dir": "transformers",
        "num_train_epochs": size.epochs,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return Trainer(
        args=TrainingArguments(**given | options),
        train_dataset=data[4 * BATCH :],
        eval_dataset=data[: 4 * BATCH],
        model_init=lambda trial=None: Classifier(units(trial)),
    )


def transformers(trial: optuna.Trial, size: Size) -> float:
    """A classifier in Hugging Face's ``Trainer``, in an objective of one's own."""
    from lyap_optuna.integration import LyapunovTrainerCallback

    units = _units(trial, size)
    trainer = trainer_of(size, lambda _: units, learning_rate=_rate(trial), seed=trial.number)
    trainer.add_callback(LyapunovTrainerCallback(trainer, trial))
    trainer.train()
    return float(trainer.evaluate()["eval_loss"])


def sb3_contrib(trial: optuna.Trial, size: Size) -> float:
    """``RecurrentPPO`` on a cart whose velocities must be remembered."""
    import gymnasium
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env

    from lyap_optuna.integration import LyapunovEvalCallback

    class Positions(gymnasium.ObservationWrapper):  # type: ignore[misc]  # not installed there
        def __init__(self) -> None:
            super().__init__(gymnasium.make("CartPole-v1"))
            space = self.env.observation_space
            self.observation_space = gymnasium.spaces.Box(space.low[::2], space.high[::2])

        def observation(self, observation: Any) -> Any:
            return observation[::2]

    steps = BATCH * size.batches
    model = RecurrentPPO(
        "MlpLstmPolicy",
        make_vec_env(Positions, 2, seed=trial.number),
        n_steps=steps // 2,
        batch_size=steps // 2,
        n_epochs=4,
        seed=trial.number,
        device="cpu",
        learning_rate=trial.suggest_float("learning_rate", 1e-4, 3e-2, log=True),
        policy_kwargs={"lstm_hidden_size": _units(trial, size), "net_arch": [16]},
    )
    evaluations = make_vec_env(Positions, 1, seed=0)
    callback = LyapunovEvalCallback(evaluations, trial, n_eval_episodes=3, eval_freq=steps // 2)
    model.learn(size.epochs * steps, callback)
    callback.check_pruned()
    return float(callback.last_mean_reward)


def fastai(trial: optuna.Trial, size: Size) -> float:
    """AWD-LSTM as a language model, from nothing."""
    from fastai.text.all import AWD_LSTM, awd_lstm_lm_config, language_model_learner

    from lyap_optuna.integration import FastaiLyapunovCallback

    config = awd_lstm_lm_config | {
        "emb_sz": 16,
        "n_hid": _units(trial, size),
        "n_layers": trial.suggest_int("layers", 1, 3),
    }
    learner = language_model_learner(
        texts(size),
        AWD_LSTM,
        config=config,
        drop_mult=trial.suggest_float("drop_mult", 0.0, 1.0),
        pretrained=False,
        cbs=[FastaiLyapunovCallback(trial)],
    )
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(size.epochs, _rate(trial))
    return float(learner.recorder.values[-1][1])


def texts(size: Size) -> Any:
    """Return loaders of a text in which every fourth word is the one of eight before."""
    from fastai.text.all import DataLoaders, LMDataLoader, TensorText

    words, length = 20, 24

    def text(batches: int, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(2, words, (BATCH * (batches * length + 1),), generator=generator)
        for i in range(8, len(ids), 4):
            ids[i] = ids[i - 8]
        return [TensorText(ids)]

    made = DataLoaders(
        LMDataLoader(text(size.batches, 0), bs=BATCH, seq_len=length),
        LMDataLoader(text(4, 1), bs=BATCH, seq_len=length),
        device="cpu",
    )
    made.vocab = [str(i) for i in range(words)]
    return made


def accelerate(trial: optuna.Trial, size: Size, precision: str = "no") -> float:
    """A loop of one's own with ``accelerate``: the probe is all that it needs."""
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    ids, labels = _sentences(BATCH * (size.batches + 4))
    data = TensorDataset(ids[4 * BATCH :], labels[4 * BATCH :])
    model = Classifier(_units(trial, size))
    optimizer = torch.optim.Adam(model.parameters(), _rate(trial))
    loader = DataLoader(data, BATCH, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    probe = lyap.LyapunovProbe(model, ids[:10], trial=trial)
    value = 0.0
    for epoch in range(size.epochs):
        for batch in loader:
            optimizer.zero_grad()
            accelerator.backward(model(*batch)["loss"])
            optimizer.step()
        with torch.no_grad():
            value = float(model(ids[: 4 * BATCH], labels[: 4 * BATCH])["loss"])
        probe.report(trial, value, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return value


@dataclass(frozen=True)
class Task:
    """A library and what is tuned in it.

    Args:
        package: The library's name on the registry.
        model: What is trained.
        lines: What its user writes besides ``pruner=lyap.LyapunovPruner()``.
        objective: Trains a trial.
        direction: Of the study.
        size: How much a trial of the long study trains.
    """

    package: str
    model: str
    lines: tuple[str, ...]
    objective: Callable[[optuna.Trial, Size], float]
    direction: Literal["minimize", "maximize"] = "minimize"
    size: Size = SMALL

    def tuned(self, size: Size | None = None) -> Callable[[optuna.Trial], float]:
        """Return the objective, the same for a trial of the same number."""

        def objective(trial: optuna.Trial) -> float:
            torch.manual_seed(trial.number)
            np.random.seed(trial.number)  # noqa: NPY002  # what libraries draw from
            return self.objective(trial, size or self.size)

        return objective


_ASK = "callback.check_pruned()"

TASKS = (
    Task("lightning", "LSTM", ("callbacks=[LyapunovPruningCallback(trial)]",), lightning),
    Task(
        "darts",
        "`RNNModel`",
        ('pl_trainer_kwargs={"callbacks": [LyapunovPruningCallback(trial)]}',),
        darts,
    ),
    Task(
        "neuralforecast",
        "`LSTM`",
        ('callbacks=[LyapunovPruningCallback(trial, monitor="ptl/val_loss")]',),
        neuralforecast,
    ),
    Task(
        "pytorch-forecasting",
        "`TemporalFusionTransformer`",
        ("callbacks=[LyapunovPruningCallback(trial)]",),
        pytorch_forecasting,
        size=FEW,
    ),
    Task(
        "gluonts",
        "`DeepAREstimator`",
        ('trainer_kwargs={"callbacks": [callback]}', _ASK),
        gluonts,
    ),
    Task(
        "transformers",
        "LSTM",
        ("trainer.add_callback(LyapunovTrainerCallback(trainer))",),
        transformers,
    ),
    Task(
        "sb3-contrib",
        "`RecurrentPPO`",
        ("callback = LyapunovEvalCallback(eval_env, trial)", _ASK),
        sb3_contrib,
        direction="maximize",
    ),
    Task("fastai", "`AWD_LSTM`", ("cbs=[FastaiLyapunovCallback(trial)]",), fastai),
    Task(
        "accelerate",
        "LSTM, a loop of one's own",
        (
            "probe = lyap.LyapunovProbe(model, inputs, trial=trial)",
            "probe.report(trial, value, epoch)",
        ),
        accelerate,
    ),
)


def variants() -> dict[str, Task]:
    """Return the tasks by name, and further models of the same libraries."""
    found = {task.package: task for task in TASKS}
    others: dict[str, list[tuple[str, Callable[..., float], dict[str, str]]]] = {
        "darts": [
            (f"{model} {cell}", darts, {"model": model, "cell": cell})
            for model in ("RNNModel", "BlockRNNModel")
            for cell in ("LSTM", "GRU")
        ],
        "neuralforecast": [(name, neuralforecast, {"model": name}) for name in ("GRU", "DeepAR")],
        "pytorch-forecasting": [
            (name, pytorch_forecasting, {"model": name}) for name in ("DeepAR", "RecurrentNetwork")
        ],
    }
    for package, models in others.items():
        for name, objective, own in models:
            task = Task(package, name, found[package].lines, partial(objective, **own))
            found[f"{package} {name}"] = task
    return found
