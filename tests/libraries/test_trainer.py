"""Hugging Face's Trainer in its own search with Optuna, and in an unchanged objective."""

import doctest
import warnings

import optuna
import pytest
import torch
from _trained import PruneSecond, Witness, check_study
from _truth import library
from torch import nn

import lyap_optuna as lyap

pytestmark = pytest.mark.filterwarnings("ignore")

transformers = library("transformers")
library("accelerate")

from lyap_optuna.integration import LyapunovTrainerCallback  # noqa: E402


class Classifier(nn.Module):
    def __init__(self, units):
        super().__init__()
        self.embedding = nn.Embedding(20, 4)
        self.recurrent = nn.LSTM(4, units, batch_first=True)
        self.output = nn.Linear(units, 2)

    def forward(self, input_ids, labels=None):
        logits = self.output(self.recurrent(self.embedding(input_ids))[0][:, -1])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class Watching(transformers.TrainerCallback):
    def __init__(self):
        self.witness = Witness()

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.witness.watch(model)


class Remembering(PruneSecond):
    """Hands out the study, which the Trainer keeps to itself."""

    study = None

    def prune(self, study, trial):
        self.study = study
        return super().prune(study, trial)


def make_trainer(folder, *callbacks, **options):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (64, 16), generator=generator)
    data = [{"input_ids": row, "labels": row[0] // 10} for row in ids]
    defaults = {"num_train_epochs": 3, "eval_strategy": "epoch", "save_strategy": "no"}
    args = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=16,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        **defaults | options,
    )
    return transformers.Trainer(
        args=args,
        train_dataset=data[:48],
        eval_dataset=data[48:],
        model_init=lambda trial: Classifier(trial.suggest_int("units", 4, 8) if trial else 4),
        callbacks=list(callbacks),
    )


def search(trainer, pruner, n_trials=3):
    trainer.hyperparameter_search(
        backend="optuna",
        n_trials=n_trials,
        direction="minimize",
        hp_space=lambda t: {
            "learning_rate": t.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
        },
        compute_objective=lambda metrics: metrics["eval_loss"],
        pruner=pruner,
    )
    return pruner.study


@pytest.mark.parametrize("by_steps", [False, True])
def test_a_search_of_the_trainer(tmp_path, by_steps):
    watching = Watching()
    options = {"eval_strategy": "steps", "eval_steps": 2} if by_steps else {}
    trainer = make_trainer(tmp_path, watching, **options)
    trainer.add_callback(LyapunovTrainerCallback(trainer))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The reported value is ignored")
        study = search(trainer, Remembering())
    check_study(study, watching.witness)
    expected = [2, 4, 6, 8, 9] if by_steps else [3, 6, 9]
    assert list(study.trials[0].intermediate_values) == expected
    assert study.trials[0].user_attrs["lyapunov:steps"] == "global_step"
    trainer.train()  # outside a search nothing is measured
    assert len(study.trials) == 3


def test_evaluations_before_training_have_the_baseline_before_them(tmp_path):
    trainer = make_trainer(tmp_path, eval_on_start=True)
    trainer.add_callback(LyapunovTrainerCallback(trainer))
    study = search(trainer, Remembering(), n_trials=1)
    assert list(study.trials[0].intermediate_values) == [0, 3, 6, 9]
    assert list(study.trials[0].user_attrs["lyapunov:readouts"]) == ["-1", "3", "6", "9"]


def test_six_readouts_are_taken_unless_last_step_says_otherwise(tmp_path):
    for options, expected in (({}, 6), ({"last_step": 4}, 4)):
        trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=1)
        trainer.add_callback(LyapunovTrainerCallback(trainer, **options))
        study = search(trainer, Remembering(), n_trials=1)
        assert len(study.trials[0].intermediate_values) == 9
        stored = study.trials[0].user_attrs["lyapunov:readouts"]
        assert len(stored) == 1 + expected


def test_inputs_are_picked_from_what_the_model_is_given(tmp_path):
    seen = []

    def pick(given):
        seen.append(given)
        return {"input_ids": given["input_ids"][:5]}

    trainer = make_trainer(tmp_path)
    trainer.add_callback(LyapunovTrainerCallback(trainer, inputs=pick))
    search(trainer, Remembering(), n_trials=1)
    (given,) = seen
    assert set(given) == {"input_ids", "labels"}


def test_training_is_bit_identical_to_training_without(tmp_path):
    finals = []
    for with_callback in (False, True):
        trainer = make_trainer(tmp_path)
        if with_callback:
            trainer.add_callback(LyapunovTrainerCallback(trainer, full_spectrum=True))
        pruner = Remembering()
        fixed = optuna.samplers.RandomSampler(seed=0)
        trainer.hyperparameter_search(
            backend="optuna",
            n_trials=1,
            hp_space=lambda t: {},
            pruner=pruner,
            sampler=fixed,
        )
        finals.append(pruner.study.trials[0].intermediate_values)
    assert finals[0] == finals[1]


def test_trials_rest_within_train_in_an_unchanged_objective(tmp_path):
    def objective(trial):
        trainer = make_trainer(tmp_path / str(trial.number))
        trainer.hp_search_backend = transformers.trainer_utils.HPSearchBackend.OPTUNA
        trainer.hp_space = lambda trial: {}
        trainer.compute_objective = lambda metrics: metrics["eval_loss"]
        trainer.add_callback(LyapunovTrainerCallback(trainer))
        trainer.train(trial=trial)
        return trainer.objective

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    lyap.freeze_thaw(study, objective, n_steps=12, seed=0, cost="steps")
    assert sum(len(t.intermediate_values) for t in study.trials) == 12
    assert all("lyapunov:readouts" in t.user_attrs for t in study.trials)


def test_the_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from lyap_optuna.integration import _transformers

    assert doctest.testmod(_transformers).failed == 0
