"""A callback for PyTorch Lightning, on a single device and with DistributedDataParallel."""

import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import optuna
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from optuna.storages import InMemoryStorage
from optuna.trial import BaseTrial

from lyap_optuna.integration._reporter import TrialReporter
from lyap_optuna.records import stored_trial

_PRUNED = "lyapunov:pruned"
"""Attribute of a trial that was pruned in another process: the trial's number and the epoch."""


class LyapunovPruningCallback(Callback):
    """PyTorch Lightning callback that measures exponents, reports to the trial, and prunes it.

    Stands where :class:`optuna_integration.PyTorchLightningPruningCallback` would. The baseline
    is measured before the first update; after each validation the monitored value is reported
    with a readout, at the epoch counted from 0. After the last epoch (``max_epochs``) nothing is
    pruned: it would save nothing.

    With DistributedDataParallel (``strategy="ddp_spawn"``) rank 0 measures the module itself, not
    its wrapper, and without communication; the decision to prune is broadcast. The trial runs in
    other processes then, so its study needs a storage that they can reach, for example
    :class:`optuna.storages.RDBStorage`, and :meth:`check_pruned` must be called after
    ``trainer.fit``; elsewhere it does nothing.

    Args:
        trial: The running trial.
        monitor: The metric to report, as it is logged by the module.
        inputs: What the module's forward takes; or a function of the first training batch that
            returns it; None for the first ten sequences of the inputs, where the batch is a pair
            (inputs, targets).
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
        ...     callback.check_pruned()  # needed with ddp_spawn only
        ...     return trainer.callback_metrics["val_loss"].item()
        >>> study = optuna.create_study(pruner=lyap.LyapunovPruner())
        >>> study.optimize(objective, n_trials=1)
        >>> sorted(study.trials[0].user_attrs["lyapunov:readouts"])
        ['-1', '0', '1', '2']
    """

    def __init__(
        self,
        trial: BaseTrial,
        monitor: str = "val_loss",
        *,
        inputs: Any | Callable[[Any], Any] | None = None,
        **probe_options: Any,
    ) -> None:
        super().__init__()
        self._trial = trial
        self._monitor = monitor
        self._reporter = TrialReporter(trial, inputs, probe_options)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse what cannot work before anything is trained.

        Raises:
            ValueError: The strategy shards the module, or no other process can reach the storage.
        """
        strategy = trainer.strategy
        if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise ValueError(
                f"LyapunovPruningCallback does not support {type(strategy).__name__}: use a single "
                "device or strategy='ddp_spawn'."
            )
        storage = getattr(self._trial, "storage", None)
        if isinstance(strategy, DDPStrategy) and (
            storage is None or isinstance(storage, InMemoryStorage)
        ):
            raise ValueError(
                f"With {type(strategy).__name__} the trial runs in other processes, which cannot "
                f"reach {type(storage).__name__}: create the study with storage= a database, for "
                "example 'sqlite:///study.db'."
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure the baseline, before the first update."""
        if trainer.is_global_zero and not self._reporter.measures(pl_module):
            # `pl_module` is the module itself, also with DDP: no collective is called.
            self._reporter.begin(pl_module, batch, untrained=trainer.global_step == 0)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the monitored value and a readout, and prune.

        Raises:
            optuna.TrialPruned: The pruner gives the trial up, on a single device.
        """
        if trainer.sanity_checking:
            return
        epoch = trainer.current_epoch
        pruned = trainer.is_global_zero and self._report(trainer, epoch)
        if not isinstance(trainer.strategy, DDPStrategy):
            if pruned:
                raise optuna.TrialPruned(_message(epoch))
            return
        if pruned:
            self._trial.set_user_attr(_PRUNED, {"trial": self._trial.number, "epoch": epoch})
        # Every process stops: an exception in one of them would leave the others waiting.
        if trainer.strategy.broadcast(pruned):
            trainer.should_stop = True

    def _report(self, trainer: pl.Trainer, epoch: int) -> bool:
        value = trainer.callback_metrics.get(self._monitor)
        if value is None:
            warnings.warn(
                f"monitor={self._monitor!r} was not logged in epoch {epoch}, so nothing is "
                f"reported; logged are {sorted(trainer.callback_metrics)}.",
                stacklevel=2,
            )
            return False
        last = trainer.max_epochs is not None and 0 < trainer.max_epochs <= epoch + 1
        return self._reporter.report(value.item(), epoch, last=last)

    def check_pruned(self) -> None:
        """Raise :class:`optuna.TrialPruned` where the trial was pruned in another process.

        Call it right after ``trainer.fit``.

        Raises:
            optuna.TrialPruned: The pruner gave the trial up.
        """
        found = stored_trial(self._trial).user_attrs.get(_PRUNED)
        # A retried trial inherits the attributes of the dead one.
        if found is not None and found["trial"] == self._trial.number:
            raise optuna.TrialPruned(_message(found["epoch"]))


def _message(epoch: int) -> str:
    return f"Trial was pruned at epoch {epoch}."
