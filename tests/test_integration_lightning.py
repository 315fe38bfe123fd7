"""The callback for PyTorch Lightning, in PyTorch Lightning, also in two processes."""

import contextlib
import copy

import lightning.pytorch as pl
import optuna
import pytest
import pytorch_lightning
import torch
from _frameworks import BATCH_SIZE, EPOCHS, Last, PruneAt, ask, make_data, run, same_state
from optuna.trial import TrialState
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import lyap_optuna as lyap
from lyap_optuna.integration import LyapunovPruningCallback
from lyap_optuna.records import read_readouts

X, Y = make_data()

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:The number of training batches",
    "ignore:`isinstance.treespec, LeafSpec.`",
)


class Steps:
    def __init__(self):
        super().__init__()
        self.network = Last()

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        loss = mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", mse_loss(self(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Module(Steps, pl.LightningModule):
    pass


class OldModule(Steps, pytorch_lightning.LightningModule):
    pass


def trainer_with(*callbacks, folder=None, package=pl, **options):
    return package.Trainer(
        callbacks=list(callbacks),
        default_root_dir=folder,
        **{
            "max_epochs": EPOCHS,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        },
    )


def loaders():
    data = TensorDataset(X, Y)
    return DataLoader(data, BATCH_SIZE, shuffle=True), DataLoader(data, BATCH_SIZE)


def fit(*callbacks, module=None, ckpt_path=None, **options):
    torch.manual_seed(1)
    module = module or Module()
    trainer = trainer_with(*callbacks, **options)
    trainer.fit(module, *loaders(), ckpt_path=ckpt_path)
    return module, trainer


def objective(trial, **options):
    callback = LyapunovPruningCallback(trial, monitor="val_loss")
    _, trainer = fit(callback, **options)
    callback.check_pruned()
    return trainer.callback_metrics["val_loss"].item()


def test_every_epoch_is_reported_with_a_readout_and_the_baseline_lies_before_the_first():
    trial = run(objective, lyap.LyapunovPruner())
    assert trial.state is TrialState.COMPLETE
    assert list(trial.intermediate_values) == [0, 1, 2]
    assert trial.value == trial.intermediate_values[2]
    assert list(trial.user_attrs["lyapunov:readouts"]) == ["-1", "0", "1", "2"]


def test_the_baseline_is_of_the_untrained_network_on_the_batch_that_is_given():
    torch.manual_seed(2)
    module = Module()
    fresh = copy.deepcopy(module)
    trial = ask()
    fit(LyapunovPruningCallback(trial, inputs=X[:4]), module=module)
    stored = trial.user_attrs["lyapunov:readouts"]
    for network, step in ((fresh, "-1"), (module, "2")):
        readout = lyap.lyapunov_readout(network, X[:4])
        assert stored[step]["max"] == pytest.approx(readout.max, rel=1e-4)
    assert stored["2"]["max"] != stored["-1"]["max"]


def test_pruned_trials_stop_where_the_pruner_says():
    trial = run(objective, PruneAt(1))
    assert trial.state is TrialState.PRUNED
    assert list(trial.intermediate_values) == [0, 1]


def test_after_the_last_epoch_nothing_is_pruned():
    assert run(objective, PruneAt(EPOCHS - 1)).state is TrialState.COMPLETE


def test_training_is_bit_identical_to_training_without():
    plain, trainer = fit()
    drawn = torch.rand(3)
    probed, probed_trainer = fit(LyapunovPruningCallback(ask(), full_spectrum=True))
    assert torch.equal(torch.rand(3), drawn)
    assert same_state(plain, probed)
    assert trainer.callback_metrics == probed_trainer.callback_metrics


def test_training_resumed_from_a_checkpoint_has_no_baseline(tmp_path):
    _, trainer = fit(folder=tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trial = ask()
    fit(
        LyapunovPruningCallback(trial, last_step=9),
        ckpt_path=tmp_path / "last.ckpt",
        max_epochs=EPOCHS + 2,
    )
    assert list(trial.user_attrs["lyapunov:readouts"]) == ["3", "4"]


def test_a_metric_that_is_not_logged_is_a_warning_that_names_what_is():
    trial = ask()
    with pytest.warns(UserWarning, match=r"monitor='accuracy' was not logged.*'val_loss'"):
        fit(LyapunovPruningCallback(trial, monitor="accuracy"))
    assert list(trial.user_attrs["lyapunov:readouts"]) == ["-1"]  # the baseline


def test_a_batch_that_does_not_fit_says_where_it_came_from():
    def flipped(batch):
        return batch[0].mT

    trial = ask()
    with pytest.warns(lyap.LyapunovWarning, match="Expected 2, got 12"):
        fit(LyapunovPruningCallback(trial, inputs=flipped))
    assert len(trial.study.trials[0].intermediate_values) == EPOCHS
    with pytest.raises(ValueError, match="Expected 2, got 12"):
        fit(LyapunovPruningCallback(ask(), inputs=flipped, strict=True))

    class Short(Module):
        def forward(self, x):
            return super().forward(x[:, :1])

    said = "are what the first training step passed on; inputs= names others"
    with pytest.warns(lyap.LyapunovWarning, match=said):
        fit(LyapunovPruningCallback(ask()), module=Short())


def test_a_strategy_with_other_processes_needs_a_storage_that_they_reach():
    callback = LyapunovPruningCallback(ask())
    trainer = trainer_with(callback, strategy="ddp", devices=1)
    with pytest.raises(ValueError, match=r"cannot reach InMemoryStorage.*sqlite"):
        callback.on_fit_start(trainer, Module())


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_a_strategy_that_shards_the_module_is_refused(name):
    callback = LyapunovPruningCallback(ask())
    trainer = trainer_with(callback)
    trainer.strategy.__class__ = getattr(pl.strategies, name)
    with pytest.raises(ValueError, match=f"does not support {name}: use a single device"):
        callback.on_fit_start(trainer, Module())


def test_check_pruned_does_nothing_elsewhere():
    LyapunovPruningCallback(optuna.trial.FixedTrial({})).check_pruned()
    LyapunovPruningCallback(ask()).check_pruned()
    # A retried trial inherits the attributes of the dead one.
    retried = ask()
    retried.set_user_attr("lyapunov:pruned", {"trial": 7, "epoch": 1})
    LyapunovPruningCallback(retried).check_pruned()


def test_a_trainer_of_the_other_package_takes_the_same_callback():
    def objective(trial):
        callback = LyapunovPruningCallback(trial)
        fit(callback, module=OldModule(), package=pytorch_lightning)

    trial = run(objective, PruneAt(1))
    assert trial.state is TrialState.PRUNED
    assert list(trial.user_attrs["lyapunov:readouts"]) == ["-1", "0", "1"]


def test_a_pruning_that_a_library_catches_is_recorded_and_can_be_raised_again():
    def objective(trial):
        callback = LyapunovPruningCallback(trial, monitor="val_loss")
        given = copy.deepcopy(callback)  # as neuralforecast does
        with contextlib.suppress(optuna.TrialPruned):
            fit(given)
        callback.check_pruned()
        return 1.0

    trial = run(objective, PruneAt(1))
    assert trial.state is TrialState.PRUNED
    assert trial.user_attrs["lyapunov:pruned"] == {"trial": 0, "step": 1}
    assert list(trial.intermediate_values) == [0, 1]


VALIDATIONS = {
    "once": ({}, [0, 1, 2], [3, 6, 9]),
    "each": ({"val_check_interval": 1, "max_epochs": 2}, range(6), range(1, 7)),
    "one epoch": ({"val_check_interval": 1, "max_steps": 3, "max_epochs": -1}, range(3), [1, 2, 3]),
    "across": (
        {"val_check_interval": 4, "check_val_every_n_epoch": None, "max_steps": 9},
        [0, 1],
        [4, 8],
    ),
    "every second": ({"check_val_every_n_epoch": 2, "max_epochs": 4}, [1, 3], [6, 12]),
}


@pytest.mark.parametrize("name", VALIDATIONS)
@pytest.mark.parametrize("step", [None, "global_step", "validation"])
def test_every_validation_is_reported_and_sanity_checks_never(name, step):
    options, own, updates = VALIDATIONS[name]
    trial = ask()
    callback = LyapunovPruningCallback(trial, step=step)
    module, trainer = fit(callback, num_sanity_val_steps=2, **options)
    reported = trial.study.trials[0].intermediate_values
    expected = {None: own, "global_step": updates, "validation": range(len(own))}[step]
    assert list(reported) == list(expected)
    readouts = [int(s) for s in trial.user_attrs["lyapunov:readouts"]]
    assert readouts == [expected[0] - 1, *expected]
    trainer.validate(module, loaders()[1], verbose=False)
    assert trial.study.trials[0].intermediate_values == reported


def test_epochs_are_counted_where_that_is_asked_for():
    trial = ask()
    with pytest.warns(UserWarning, match="already reported"):
        fit(LyapunovPruningCallback(trial, step="epoch"), val_check_interval=1)
    assert list(trial.study.trials[0].intermediate_values) == [0, 1, 2]


@pytest.mark.parametrize("at", [1, 4])
def test_within_an_epoch_a_trial_is_pruned_but_not_when_training_is_over(at):
    def objective(trial):
        fit(LyapunovPruningCallback(trial), val_check_interval=1, max_epochs=-1, max_steps=5)
        return 1.0

    state = run(objective, PruneAt(at)).state
    assert state is (TrialState.PRUNED if at < 4 else TrialState.COMPLETE)


def test_validations_are_counted_on_from_a_checkpoint(tmp_path):
    first, again = ask(), ask()
    _, trainer = fit(LyapunovPruningCallback(first), folder=tmp_path, val_check_interval=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(
        LyapunovPruningCallback(again, last_step=99),
        ckpt_path=tmp_path / "last.ckpt",
        val_check_interval=1,
        max_epochs=EPOCHS + 1,
    )
    assert list(again.study.trials[0].intermediate_values) == [9, 10, 11]


def test_a_study_stands_for_the_trial_that_a_tuner_keeps_and_its_callbacks_stay(tmp_path):
    """As pytorch-forecasting does: what a user passes displaces what the tuner has made."""

    def tune(study, **trainer_kwargs):
        def objective(trial):
            folder = tmp_path / str(trial.number)
            checkpoint = pl.callbacks.ModelCheckpoint(folder, monitor="val_loss")
            monitor = pl.callbacks.Timer()
            options = {"callbacks": [monitor, checkpoint], "enable_checkpointing": True}
            options |= trainer_kwargs
            trainer = trainer_with(*options.pop("callbacks"), folder=tmp_path, **options)
            trainer.fit(Module(), *loaders())
            made.append((monitor in trainer.callbacks, trainer.callbacks[-1] is checkpoint))
            return trainer.callback_metrics["val_loss"].item()

        study.optimize(objective, n_trials=3)

    class Second(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 1 and trial.last_step == 1

    made = []
    study = optuna.create_study(pruner=Second())
    tune(study, callbacks=[LyapunovPruningCallback(study)])
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert [list(t.user_attrs["lyapunov:readouts"]) for t in study.trials] == [
        ["-1", "0", "1", "2"],
        ["-1", "0", "1"],
        ["-1", "0", "1", "2"],
    ]
    assert made == [(True, True)] * 2
    assert all(list((tmp_path / str(n)).glob("*.ckpt")) for n in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("prune_at", [1, 99], ids=["pruned", "complete"])
def test_two_processes_with_ddp_spawn(tmp_path, prune_at):
    modules = []

    def objective(trial):
        callback = LyapunovPruningCallback(trial, inputs=X[:10])
        torch.manual_seed(1)
        modules.append(Module())
        modules.append(copy.deepcopy(modules[0]))
        trainer = trainer_with(callback, strategy="ddp_spawn", devices=2)
        trainer.fit(modules[1], *loaders())
        callback.check_pruned()
        return trainer.callback_metrics["val_loss"].item()

    storage = f"sqlite:///{tmp_path / 'study.db'}"
    trial = run(objective, PruneAt(prune_at), storage=storage)
    epochs = min(prune_at + 1, EPOCHS)
    assert trial.state is (TrialState.PRUNED if prune_at < EPOCHS else TrialState.COMPLETE)
    assert list(trial.intermediate_values) == list(range(epochs))
    readouts = read_readouts(trial)
    assert list(readouts) == list(range(-1, epochs))
    # Rank 0 measured what this process gave it, and what it gave back.
    for module, step in zip(modules, (-1, epochs - 1), strict=True):
        readout = lyap.lyapunov_readout(module, X[:10])
        assert readouts[step].max == pytest.approx(readout.max, rel=1e-4)
        assert readouts[step].mean == pytest.approx(readout.mean, rel=1e-4)
    assert readouts[-1].max != readouts[0].max


def test_trials_rest_within_fit_and_go_on():
    """Lightning validates in inference mode; there the callback asks, and the trial waits."""

    def objective(trial):
        lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        module = Module()
        module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr)
        callback = LyapunovPruningCallback(trial, monitor="val_loss")
        trainer = trainer_with(callback)
        trainer.fit(module, *loaders())
        return trainer.callback_metrics["val_loss"].item()

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    lyap.freeze_thaw(study, objective, n_steps=6 * EPOCHS, seed=0, cost="steps")
    assert sum(len(t.intermediate_values) for t in study.trials) == 6 * EPOCHS
    assert {t.state for t in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(read_readouts(t) for t in study.trials)
    assert not torch.is_inference_mode_enabled()
