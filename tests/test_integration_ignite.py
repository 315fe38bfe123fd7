"""The handler for PyTorch Ignite, in PyTorch Ignite."""

import copy

import pytest
import torch
from _frameworks import BATCH_SIZE, EPOCHS, Last, PruneAt, ask, make_data, run, same_state
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Loss
from optuna.trial import TrialState
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import lyap_optuna as lyap
from lyap_optuna.integration import IgniteLyapunovHandler

X, Y = make_data()


def train(trial, *, model=None, metric="loss", epochs=EPOCHS, state=None, **options):
    torch.manual_seed(1)
    model = model or Last()
    trainer = create_supervised_trainer(model, torch.optim.SGD(model.parameters(), 0.1), mse_loss)
    evaluator = create_supervised_evaluator(model, {"loss": Loss(mse_loss)})
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: evaluator.run(DataLoader(TensorDataset(X, Y), BATCH_SIZE))
    )
    if trial is not None:
        handler = IgniteLyapunovHandler(trial, metric, trainer, model, **options)
        evaluator.add_event_handler(Events.COMPLETED, handler)
    if state is not None:
        trainer.load_state_dict(state)
    loader = DataLoader(TensorDataset(X, Y), BATCH_SIZE, shuffle=True)
    trainer.run(loader, max_epochs=epochs)
    return model, evaluator.state.metrics["loss"], trainer.state_dict()


def test_every_epoch_is_reported_with_a_readout_and_the_baseline_lies_before_the_first():
    trial = run(lambda trial: train(trial)[1], lyap.LyapunovPruner())
    assert trial.state is TrialState.COMPLETE
    assert list(trial.intermediate_values) == [1, 2, 3]
    assert trial.value == trial.intermediate_values[3]
    assert list(trial.user_attrs["lyapunov:readouts"]) == ["0", "1", "2", "3"]


def test_the_baseline_is_of_the_untrained_network_on_the_batch_that_is_given():
    torch.manual_seed(2)
    model = Last()
    fresh = copy.deepcopy(model)
    trial = ask()
    train(trial, model=model, inputs=lambda first: first[0][:4] * 0 + X[:4])
    stored = trial.user_attrs["lyapunov:readouts"]
    for network, step in ((fresh, "0"), (model, "3")):
        readout = lyap.lyapunov_readout(network, X[:4])
        assert stored[step]["max"] == pytest.approx(readout.max, rel=1e-4)
    assert stored["3"]["max"] != stored["0"]["max"]


def test_pruned_trials_stop_where_the_pruner_says():
    trial = run(lambda trial: train(trial)[1], PruneAt(2))
    assert trial.state is TrialState.PRUNED
    assert list(trial.intermediate_values) == [1, 2]


def test_after_the_last_epoch_nothing_is_pruned():
    assert run(lambda trial: train(trial)[1], PruneAt(EPOCHS)).state is TrialState.COMPLETE


def test_training_is_bit_identical_to_training_without():
    plain, loss, _ = train(None)
    drawn = torch.rand(3)
    probed, probed_loss, _ = train(ask())
    assert torch.equal(torch.rand(3), drawn)
    assert same_state(plain, probed)
    assert loss == probed_loss


def test_a_resumed_training_has_no_baseline():
    model, _, state = train(None)
    trial = ask()
    train(trial, model=model, state=state, epochs=EPOCHS + 2, last_step=9)
    assert list(trial.user_attrs["lyapunov:readouts"]) == ["4", "5"]


def test_a_metric_that_the_evaluator_has_not_is_an_error_that_names_what_it_has():
    with pytest.raises(ValueError, match=r"metric='accuracy' is not among .*\['loss'\]"):
        train(ask(), metric="accuracy")


def evaluated(trial, *events, epochs, step=None):
    model = Last()
    trainer = create_supervised_trainer(model, torch.optim.SGD(model.parameters(), 0.1), mse_loss)
    evaluator = create_supervised_evaluator(model, {"loss": Loss(mse_loss)})
    loader = DataLoader(TensorDataset(X, Y), BATCH_SIZE)
    for event in events:
        trainer.add_event_handler(event, lambda: evaluator.run(loader))
    handler = IgniteLyapunovHandler(trial, "loss", trainer, model, step=step)
    evaluator.add_event_handler(Events.COMPLETED, handler)
    trainer.run(loader, max_epochs=epochs)
    stored = trial.study.trials[0]
    return list(stored.intermediate_values), [int(s) for s in trial.user_attrs["lyapunov:readouts"]]


@pytest.mark.parametrize(
    ("step", "expected"), [(None, [1, 2, 3, 4]), ("global_step", [2, 4, 6, 8])]
)
def test_several_evaluations_in_an_epoch_are_all_reported(step, expected):
    event = Events.ITERATION_COMPLETED(every=2)
    found = evaluated(ask(), event, epochs=EPOCHS, step=step)
    assert found == (expected, [expected[0] - 1, *expected])


def test_an_evaluation_before_training_does_not_count():
    steps, readouts = evaluated(ask(), Events.STARTED, Events.EPOCH_COMPLETED, epochs=2)
    assert steps == [1, 2]
    assert readouts == [0, 1, 2]
