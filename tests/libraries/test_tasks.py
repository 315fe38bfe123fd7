"""Libraries train with their callbacks, and Optuna hears of it: the tasks of the long studies."""

import logging

import optuna
import pytest
import torch
from _trained import PruneSecond, baseline, check_study
from _truth import library

import lyap_optuna as lyap
from studies.libraries.tasks import TASKS, TINY, accelerate, variants

pytestmark = pytest.mark.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

# Dropout acts on what a hook sees in training, not on what is measured. (fastai cannot do with 0.)
UNDROPPED = {"drop_mult": 1e-9}


def sampler():
    return optuna.samplers.PartialFixedSampler(UNDROPPED, optuna.samplers.RandomSampler(seed=0))


@pytest.mark.parametrize("name", list(variants()))
def test_a_study_of_three_trials_one_of_them_pruned(name, witness, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = variants()[name]
    library(task.package.replace("-", "_"))
    study = optuna.create_study(direction=task.direction, pruner=PruneSecond(), sampler=sampler())
    study.optimize(task.tuned(TINY), n_trials=3)
    check_study(study)
    assert study.trials[0].value == list(study.trials[0].intermediate_values.values())[-1]
    if name not in ("sb3-contrib", "accelerate"):  # which have tests of their own
        witness.agrees(baseline(study.trials[0]))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.package)
def test_trials_rest_within_an_unchanged_objective(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    library(task.package.replace("-", "_"))
    objective = task.tuned(TINY)
    alone = optuna.create_study(direction=task.direction, sampler=sampler())
    alone.optimize(objective, n_trials=2)
    study = optuna.create_study(direction=task.direction, sampler=sampler())
    lyap.freeze_thaw(study, objective, n_steps=8, seed=0, cost="steps")
    assert sum(len(trial.intermediate_values) for trial in study.trials) == 8
    assert all("lyapunov:readouts" in trial.user_attrs for trial in study.trials)
    for rested, whole in zip(study.trials, alone.trials, strict=False):
        values = list(rested.intermediate_values.items())
        assert values == list(whole.intermediate_values.items())[: len(values)]


def test_mixed_precision_of_accelerate_does_not_change_what_is_measured():
    state = library("accelerate.state").AcceleratorState
    study = optuna.create_study()
    for precision in ("no", "bf16"):
        state._reset_state(reset_partial_state=True)  # else the first of a process is for ever
        study.enqueue_trial({"units": 6, "learning_rate": 0.01})
        torch.manual_seed(0)
        study.optimize(lambda trial, p=precision: accelerate(trial, TINY, p), n_trials=1)
    state._reset_state(reset_partial_state=True)
    plain, mixed = (baseline(trial) for trial in study.trials)
    assert mixed["max"] == pytest.approx(plain["max"], abs=1e-3)
    assert mixed["mean"] == pytest.approx(plain["mean"], abs=1e-3)
