"""A callback for PyTorch Lightning, on a single device and with DistributedDataParallel."""

import importlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import BaseTrial

from lyap_optuna.integration._reporter import TrialReporter, pruned
from lyap_optuna.integration._trial import frames

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback
else:
    # The same code under two names, and a trainer of one knows no callback of the other.
    _found, _missing = [], []
    for _package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            _found.append(importlib.import_module(f"{_package}.callbacks").Callback)
        except ImportError as error:
            _missing.append(error)
    if not _found:
        raise _missing[0]
    Callback = type("Callback", tuple(_found), {})


class LyapunovPruningCallback(Callback):
    """PyTorch Lightning callback that measures exponents, reports to the trial, and prunes it.

    Stands where :class:`optuna_integration.PyTorchLightningPruningCallback` would, in a trainer of
    ``lightning.pytorch`` as of ``pytorch_lightning``. The baseline is measured before the first
    update; after each validation the monitored value is reported with a readout. Sanity checks and
    validations outside ``fit`` do not count. When training is over (``max_epochs``,
    ``max_steps``) nothing is pruned: it would save nothing.

    A library may copy or pickle the callback: it finds its trial again. Where a library's tuner
    hands over no trial, pass the study. The callback then serves all trials that the tuner runs,
    and where it displaces callbacks of the tuner's own (``trainer_kwargs={"callbacks": ...}``) it
    puts them back.

    That the trial is pruned is recorded before :class:`optuna.TrialPruned` is raised. Where a
    library catches the exception, call :meth:`check_pruned` after training; else the trial ends
    COMPLETE, and the predictor leaves it out.

    With DistributedDataParallel (``strategy="ddp_spawn"``) rank 0 measures the module itself, not
    its wrapper, and without communication; the decision to prune is broadcast. The trial runs in
    other processes then, so its study needs a storage that they can reach, for example
    :class:`optuna.storages.RDBStorage`, and :meth:`check_pruned` must be called after
    ``trainer.fit``.

    Args:
        trial: The running trial, or a study whose running trial is meant.
        monitor: The metric to report, as it is logged by the module.
        step: What the reported steps count: ``"epoch"`` (from 0), ``"global_step"`` (updates made)
            or ``"validation"`` (from 0). None for epochs where each has one validation, and for
            validations where there may be several. Trials of a study should count alike.
        inputs: What the module's forward takes; or a function of the first training batch that
            returns it; None for what reaches the network in the first training step (ten sequences
            of it).
        **probe_options: Passed on to :class:`~lyap_optuna.LyapunovProbe`: ``layer``,
            ``last_step``, ``full_spectrum``, ``state``, ``strict`` and the like.

    Raises:
        ValueError: While fitting: an option is wrong, the strategy shards the module, or other
            processes cannot reach the study's storage.

    Example:
        >>> import lightning.pytorch as pl
        >>> import optuna
        >>> import torch
        >>> import lyap_optuna as lyap
        >>> from lyap_optuna.integration import LyapunovPruningCallback
        >>> class Last(pl.LightningModule):
        ...     def __init__(self, units):
        ...         super().__init__()
        ...         self.recurrent = torch.nn.GRU(2, units, batch_first=True)
        ...         self.output = torch.nn.Linear(units, 1)
        ...     def forward(self, x):
        ...         return self.output(self.recurrent(x)[0][:, -1])
        ...     def training_step(self, batch, batch_idx):
        ...         return torch.nn.functional.mse_loss(self(batch[0]), batch[1])
        ...     def validation_step(self, batch, batch_idx):
        ...         self.log("val_loss", torch.nn.functional.mse_loss(self(batch[0]), batch[1]))
        ...     def configure_optimizers(self):
        ...         return torch.optim.Adam(self.parameters())
        >>> x = torch.randn(40, 20, 2)
        >>> data = torch.utils.data.DataLoader(list(zip(x, x[:, 0, :1])), batch_size=20)
        >>> quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
        >>> def objective(trial):
        ...     module = Last(units=trial.suggest_int("units", 4, 16))
        ...     callback = LyapunovPruningCallback(trial, monitor="val_loss")
        ...     trainer = pl.Trainer(
        ...         max_epochs=3, callbacks=[callback], enable_checkpointing=False, **quiet
        ...     )
        ...     trainer.fit(module, data, data)
        ...     callback.check_pruned()  # where no exception came through
        ...     return trainer.callback_metrics["val_loss"].item()
        >>> study = optuna.create_study(pruner=lyap.LyapunovPruner())
        >>> study.optimize(objective, n_trials=1)
        >>> sorted(study.trials[0].user_attrs["lyapunov:readouts"])
        ['-1', '0', '1', '2']
    """

    def __init__(
        self,
        trial: BaseTrial | Study,
        monitor: str = "val_loss",
        *,
        step: str | None = None,
        inputs: Any | Callable[[Any], Any] | None = None,
        **probe_options: Any,
    ) -> None:
        super().__init__()
        self._monitor = monitor
        self._reporter = TrialReporter(trial, inputs, probe_options, counting=step)

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Find the trial, and put back what a tuner's own callbacks were displaced by."""
        if stage == "fit":
            self._reporter.start()
            if self._reporter.source.is_study:
                _put_back(trainer, self._reporter.trial)

    def on_fit_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Refuse what cannot work before anything is trained.

        Raises:
            ValueError: The strategy shards the module, or no other process can reach the storage.
        """
        strategy = trainer.strategy
        if not _is_distributed(trainer):
            if _is(strategy, "ParallelStrategy"):
                raise ValueError(
                    f"LyapunovPruningCallback does not support {type(strategy).__name__}: use a "
                    "single device or strategy='ddp_spawn'."
                )
            return
        storage = getattr(self._reporter.trial, "storage", None)
        if storage is None or isinstance(storage, InMemoryStorage):
            raise ValueError(
                f"With {type(strategy).__name__} the trial runs in other processes, which cannot "
                f"reach {type(storage).__name__}: create the study with storage= a database, for "
                "example 'sqlite:///study.db'."
            )

    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Measure the baseline, before the first update."""
        if trainer.is_global_zero and not self._reporter.measures(pl_module):
            # `pl_module` is the module itself, also with DDP: no collective is called. The wrapper
            # calls it once in place of its training step.
            wrapped = trainer.strategy.model is not pl_module
            self._reporter.begin(
                pl_module, batch, untrained=trainer.global_step == 0, skip=int(wrapped)
            )

    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Report the monitored value and a readout, and prune.

        Raises:
            optuna.TrialPruned: The pruner gives the trial up, in this process.
        """
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        step = self._reporter.step(
            epoch=trainer.current_epoch,
            update=trainer.global_step,
            once=trainer.check_val_every_n_epoch is not None
            and trainer.val_check_batch is not None
            and trainer.val_check_batch >= trainer.num_training_batches,
        )
        given_up = trainer.is_global_zero and self._report(trainer, step)
        if not _is_distributed(trainer):
            if given_up:
                raise pruned(step)
            return
        # Every process stops: an exception in one of them would leave the others waiting.
        if trainer.strategy.broadcast(given_up):
            trainer.should_stop = True

    def _report(self, trainer: "pl.Trainer", step: int) -> bool:
        value = trainer.callback_metrics.get(self._monitor)
        if value is None:
            warnings.warn(
                f"monitor={self._monitor!r} was not logged in epoch {trainer.current_epoch}, so "
                f"nothing is reported; logged are {sorted(trainer.callback_metrics)}.",
                stacklevel=2,
            )
            return False
        epochs, steps = trainer.max_epochs, trainer.max_steps
        last = (0 < steps <= trainer.global_step) or (
            epochs is not None and 0 < epochs <= trainer.current_epoch + 1 and trainer.is_last_batch
        )
        return self._reporter.report(float(value), step, last=last)

    def check_pruned(self) -> None:
        """Raise :class:`optuna.TrialPruned` where the trial was pruned and Optuna did not hear it.

        Call it right after training: the trial may have run in other processes, or a library may
        have caught the exception. A trial that was trained and validated further is not pruned.

        Raises:
            optuna.TrialPruned: The pruner gave the trial up.
        """
        self._reporter.check_pruned()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds: how many validations there were."""
        return {"validations": self._reporter.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting validations where a checkpoint left off."""
        self._reporter.validations = state_dict["validations"]


def _is(thing: object, *names: str) -> bool:
    """Whether it is of a class, of whichever of the two packages, with one of these names."""
    return any(kind.__name__ in names for kind in type(thing).__mro__)


def _is_distributed(trainer: "pl.Trainer") -> bool:
    """Whether the whole module is trained in several processes; DeepSpeed shards it."""
    return _is(trainer.strategy, "DDPStrategy") and not _is(trainer.strategy, "DeepSpeedStrategy")


def _put_back(trainer: Any, trial: BaseTrial) -> None:
    """Add the callbacks that the objective made for ``trial`` and that ours stands in place of.

    A tuner that takes ``trainer_kwargs`` updates its own with them, so that the callbacks of a
    user displace its checkpoints. They are still the local variables of its objective.
    """
    made: list[Any] = []
    for frame in frames():
        values = frame.f_locals.values()
        if any(value is trainer for value in values) and any(value is trial for value in values):
            made = [v for v in values if _is(v, "Callback") and v not in trainer.callbacks]
            made = [v for v in made if not _is(v, "PyTorchLightningPruningCallback")]
            break
    callbacks = list(trainer.callbacks)
    if any(_is(callback, "ModelCheckpoint") for callback in made):
        # Without one the trainer has made its own, which keeps what nobody asked for.
        callbacks = [c for c in callbacks if not _is(c, "ModelCheckpoint") or c.monitor is not None]
    callbacks += made
    trainer.callbacks[:] = sorted(callbacks, key=lambda callback: _is(callback, "Checkpoint"))
