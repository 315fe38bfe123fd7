"""Hugging Face's Trainer in its own search with Optuna, and in an objective of one's own."""

import doctest
import warnings

import optuna
import pytest
from _trained import PruneSecond, baseline, check_study
from _truth import library

from studies.libraries.tasks import TINY, trainer_of

pytestmark = pytest.mark.filterwarnings("ignore")

library("transformers")
library("accelerate")

from lyap_optuna.integration import LyapunovTrainerCallback  # noqa: E402


class Remembering(PruneSecond):
    """Hands out the study, which the Trainer keeps to itself."""

    study = None

    def prune(self, study, trial):
        self.study = study
        return super().prune(study, trial)


def make_trainer(folder, **options):
    def units(trial):
        return trial.suggest_int("units", 4, 8) if trial else 4

    return trainer_of(TINY, units, output_dir=str(folder), **options)


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
def test_a_search_of_the_trainer(tmp_path, by_steps, witness):
    options = {"eval_strategy": "steps", "eval_steps": 2} if by_steps else {}
    trainer = make_trainer(tmp_path, **options)
    trainer.add_callback(LyapunovTrainerCallback(trainer))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The reported value is ignored")
        study = search(trainer, Remembering())
    check_study(study)
    witness.agrees(baseline(study.trials[0]))
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


def test_in_an_objective_of_ones_own_the_callback_reports_and_prunes(tmp_path):
    def objective(trial):
        trainer = make_trainer(tmp_path)
        trainer.add_callback(LyapunovTrainerCallback(trainer, trial))
        trainer.evaluate()  # before and after training nothing counts
        trainer.train()
        return trainer.evaluate()["eval_loss"]

    study = optuna.create_study(pruner=PruneSecond())
    study.optimize(objective, n_trials=3)
    check_study(study)
    assert list(study.trials[0].intermediate_values) == [3, 6, 9]
    assert study.trials[0].value == study.trials[0].intermediate_values[9]


def test_a_metric_that_is_not_there_is_an_error_that_names_what_is(tmp_path):
    trainer = make_trainer(tmp_path)
    trial = optuna.create_study().ask()
    trainer.add_callback(LyapunovTrainerCallback(trainer, trial, monitor="accuracy"))
    with pytest.raises(ValueError, match=r"monitor='accuracy' is not among.*'eval_loss'"):
        trainer.train()


def test_the_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from lyap_optuna.integration import _transformers

    assert doctest.testmod(_transformers).failed == 0
