"""The callback for skorch, in skorch."""

import numpy as np
import optuna
import pytest
import sklearn.base
import torch
from _frameworks import BATCH_SIZE, EPOCHS, Last, PruneAt, ask, make_data, run, same_state
from optuna.trial import TrialState
from skorch import NeuralNetRegressor

import lyap_optuna as lyap
from lyap_optuna.integration import SkorchLyapunovCallback

X, Y = (part.numpy() for part in make_data())


def net_with(*callbacks, **options):
    torch.manual_seed(1)
    defaults = {"max_epochs": EPOCHS, "batch_size": BATCH_SIZE, "lr": 0.1, "verbose": 0}
    options = {**defaults, "iterator_train__shuffle": True, **options}
    return NeuralNetRegressor(Last, callbacks=list(callbacks), **options)


def objective(trial):
    net = net_with(SkorchLyapunovCallback(trial))
    net.fit(X, Y)
    return net.history[-1, "valid_loss"]


def test_every_epoch_is_reported_with_a_readout_and_the_baseline_lies_before_the_first():
    trial = run(objective, lyap.LyapunovPruner())
    assert trial.state is TrialState.COMPLETE
    assert list(trial.intermediate_values) == [0, 1, 2]
    assert trial.value == trial.intermediate_values[2]
    assert list(trial.user_attrs["lyapunov:readouts"]) == ["-1", "0", "1", "2"]


def test_the_baseline_is_of_the_untrained_network_on_the_first_ten_sequences():
    trial = ask()
    net = net_with(SkorchLyapunovCallback(trial, seed=0), iterator_train__shuffle=False)
    net.initialize()
    fresh = {name: value.clone() for name, value in net.module_.state_dict().items()}
    train, _ = net.get_split_datasets(X, Y)
    first = torch.as_tensor(np.stack([train[i][0] for i in range(10)]))
    net.partial_fit(X, Y)
    model = Last()
    model.load_state_dict(fresh)
    stored = trial.user_attrs["lyapunov:readouts"]
    assert stored["-1"]["max"] == pytest.approx(lyap.lyapunov_readout(model, first).max, rel=1e-4)
    assert stored["2"]["max"] == pytest.approx(
        lyap.lyapunov_readout(net.module_, first).max, rel=1e-4
    )
    assert stored["2"]["max"] != stored["-1"]["max"]


def test_pruned_trials_stop_where_the_pruner_says():
    trial = run(objective, PruneAt(1))
    assert trial.state is TrialState.PRUNED
    assert list(trial.intermediate_values) == [0, 1]


def test_after_the_last_epoch_nothing_is_pruned():
    assert run(objective, PruneAt(EPOCHS - 1)).state is TrialState.COMPLETE


def test_training_is_bit_identical_to_training_without():
    plain = net_with().fit(X, Y)
    drawn = torch.rand(3)
    probed = net_with(SkorchLyapunovCallback(ask())).fit(X, Y)
    assert torch.equal(torch.rand(3), drawn)
    assert same_state(plain.module_, probed.module_)
    assert plain.history[:, "valid_loss"] == probed.history[:, "valid_loss"]


def test_a_network_that_was_trained_before_has_no_baseline():
    net = net_with().fit(X, Y)
    trial = ask()
    net.set_params(callbacks=[SkorchLyapunovCallback(trial, last_step=9)])
    net.initialize_callbacks().partial_fit(X, Y)
    assert list(trial.user_attrs["lyapunov:readouts"]) == ["3", "4", "5"]


def test_a_network_that_is_made_anew_is_the_one_that_is_measured():
    trial = ask()
    net = net_with(SkorchLyapunovCallback(trial, last_step=9))
    net.fit(X, Y)
    first = net.module_
    before = trial.user_attrs["lyapunov:readouts"]
    with pytest.warns(UserWarning, match="already reported"):
        net.fit(X, Y)
    assert trial.user_attrs["lyapunov:readouts"] == before  # steps keep their first report
    assert net.module_ is not first
    assert dict(net.callbacks_)["SkorchLyapunovCallback"].reporter_.measures(net.module_)


def test_a_value_that_is_not_in_the_history_is_an_error_that_names_what_is():
    net = net_with(SkorchLyapunovCallback(ask(), monitor="val_loss"))
    with pytest.raises(ValueError, match=r"'val_loss' is not in net.history.*'valid_loss'"):
        net.fit(X, Y)


def test_a_fixed_trial_serves_while_debugging():
    trial = optuna.trial.FixedTrial({})
    net_with(SkorchLyapunovCallback(trial)).fit(X, Y)
    assert len(trial.user_attrs["lyapunov:readouts"]) == EPOCHS + 1


def test_scikit_learn_copies_the_net_and_not_the_study():
    trial = ask()
    net = sklearn.base.clone(net_with(SkorchLyapunovCallback(trial)))
    net.fit(X, Y)
    stored = trial.study.trials[0]
    assert list(stored.intermediate_values) == [0, 1, 2]
    assert list(stored.user_attrs["lyapunov:readouts"]) == ["-1", "0", "1", "2"]
