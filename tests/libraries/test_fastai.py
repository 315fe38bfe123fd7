"""fastai's learners: several fits, skipped epochs, what does not count."""

import copy
import doctest
import random

import optuna
import pytest
import torch
from _truth import library
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore")

basics = library("fastai.basics")
schedule = library("fastai.callback.schedule")

from lyap_optuna.integration import FastaiLyapunovCallback  # noqa: E402


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.GRU(2, 5, batch_first=True)
        self.dropout = nn.Dropout(0.3)
        self.output = nn.Linear(5, 1)

    def forward(self, x):
        return self.output(self.dropout(self.recurrent(x)[0][:, -1]))


class PruneAt(optuna.pruners.BasePruner):
    def __init__(self, step):
        self.step = step

    def prune(self, study, trial):
        return trial.last_step is not None and trial.last_step >= self.step


def learner_with(*callbacks, folder="."):
    torch.manual_seed(1)
    random.seed(1)  # which fastai's loaders draw from
    x = torch.randn(48, 12, 2, generator=torch.Generator().manual_seed(0))
    pairs = list(zip(x, x[:, 0, :1], strict=True))
    loaders = basics.DataLoaders.from_dsets(pairs, pairs[:16], bs=16, device="cpu")
    made = basics.Learner(loaders, Last(), nn.functional.mse_loss, cbs=list(callbacks), path=folder)
    made.remove_cb(made.progress)
    made.logger = lambda *_: None
    return made


def ask(pruner=None):
    return optuna.create_study(pruner=pruner or optuna.pruners.NopPruner()).ask()


def readouts(trial):
    return list(trial.user_attrs["lyapunov:readouts"])


def test_epochs_are_counted_through_all_fits():
    trial = ask()
    learner = learner_with(FastaiLyapunovCallback(trial))
    learner.fit(2)
    learner.fit(2)
    assert list(trial.study.trials[0].intermediate_values) == [0, 1, 2, 3]
    assert readouts(trial) == ["-1", "0", "1", "2", "3"]


@pytest.mark.parametrize(("epochs", "spent"), [(None, 3), (4, 2)])
def test_at_the_last_epoch_nothing_is_pruned(epochs, spent):
    """Of a fit of two epochs, or of two such fits where that was said."""
    trial = ask(PruneAt(1))
    learner = learner_with(FastaiLyapunovCallback(trial, epochs=epochs))
    if epochs is None:
        learner.fit(2)
    with pytest.raises(optuna.TrialPruned, match=f"pruned at step {spent - 1}"):
        learner.fit(2)
    assert len(trial.study.trials[0].intermediate_values) == spent


def test_training_is_bit_identical_to_training_without():
    weights = []
    for callbacks in ([], [FastaiLyapunovCallback(ask(), full_spectrum=True)]):
        learner = learner_with(*callbacks)
        learner.fit(2)
        weights.append([*learner.model.parameters(), torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_looking_for_a_learning_rate_and_predicting_do_not_count(tmp_path):
    trial = ask()
    learner = learner_with(FastaiLyapunovCallback(trial), folder=tmp_path)
    schedule.Learner.lr_find(learner, num_it=5, show_plot=False, suggest_funcs=None)
    learner.validate()
    learner.fit(1)
    learner.get_preds()
    learner.validate()
    learner.fit(1)
    assert list(trial.study.trials[0].intermediate_values) == [0, 1]
    assert readouts(trial) == ["-1", "0", "1"]


def test_a_network_that_was_trained_before_has_no_baseline():
    trial = ask()
    learner = learner_with()
    learner.fit(1)
    learner.fit(1, cbs=FastaiLyapunovCallback(trial))
    assert readouts(trial) == ["0"]


def test_epochs_that_are_skipped_are_counted_and_not_reported():
    trial = ask()
    learner_with(FastaiLyapunovCallback(trial)).fit(3, start_epoch=2)
    assert list(trial.study.trials[0].intermediate_values) == [2]


def test_a_value_that_is_not_recorded_is_an_error_that_names_what_is():
    with pytest.raises(ValueError, match=r"monitor='accuracy' is not among.*'valid_loss'"):
        learner_with(FastaiLyapunovCallback(ask(), monitor="accuracy")).fit(1)


def test_a_copied_callback_reports_to_the_same_trial():
    trial = ask()
    learner_with(copy.deepcopy(FastaiLyapunovCallback(trial))).fit(1)
    assert readouts(trial) == ["-1", "0"]


def test_the_example(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    from lyap_optuna.integration import _fastai

    assert doctest.testmod(_fastai).failed == 0
