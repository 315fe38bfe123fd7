"""A callback for skorch."""

import copy
from collections.abc import Callable
from typing import Any

from optuna.study import Study
from optuna.trial import BaseTrial
from skorch import NeuralNet
from skorch.callbacks import Callback

from lyap_optuna.integration._reporter import TrialReporter
from lyap_optuna.integration._trial import TrialSource


class SkorchLyapunovCallback(Callback):  # type: ignore[misc]  # skorch has no types
    """Skorch callback that measures exponents, reports to the trial, and prunes it.

    Stands where :class:`optuna_integration.SkorchPruningCallback` would. The baseline is measured
    before the first update; after each epoch the monitored value is reported with a readout, at
    the epoch counted from 0. After the last epoch nothing is pruned: it would save nothing.

    Args:
        trial: The running trial, or a study whose running trial is meant.
        monitor: The value to report, a column of ``net.history``.
        inputs: What the module's forward takes; or a function of the first training batch, a pair
            (inputs, targets), that returns it; None for what reaches the network in the first
            training step (ten sequences of it).
        **probe_options: Passed on to :class:`~lyap_optuna.LyapunovProbe`: ``layer``,
            ``last_step``, ``full_spectrum``, ``state``, ``strict`` and the like.

    Raises:
        ValueError: While fitting: an option is wrong, or ``monitor`` is not in the history.

    Example:
        >>> import numpy as np
        >>> import optuna
        >>> import torch
        >>> from skorch import NeuralNetRegressor
        >>> import lyap_optuna as lyap
        >>> from lyap_optuna.integration import SkorchLyapunovCallback
        >>> class Last(torch.nn.Module):
        ...     def __init__(self, units=8):
        ...         super().__init__()
        ...         self.recurrent = torch.nn.GRU(2, units, batch_first=True)
        ...         self.output = torch.nn.Linear(units, 1)
        ...     def forward(self, x):
        ...         return self.output(self.recurrent(x)[0][:, -1])
        >>> X = np.random.default_rng(0).normal(size=(40, 20, 2)).astype(np.float32)
        >>> y = X[:, 0, :1]
        >>> def objective(trial):
        ...     net = NeuralNetRegressor(
        ...         Last,
        ...         module__units=trial.suggest_int("units", 4, 16),
        ...         max_epochs=3,
        ...         callbacks=[SkorchLyapunovCallback(trial)],
        ...         verbose=0,
        ...     )
        ...     net.fit(X, y)
        ...     return net.history[-1, "valid_loss"]
        >>> study = optuna.create_study(pruner=lyap.LyapunovPruner())
        >>> study.optimize(objective, n_trials=1)
        >>> sorted(study.trials[0].user_attrs["lyapunov:readouts"])
        ['-1', '0', '1', '2']
    """

    def __init__(
        self,
        trial: BaseTrial | Study,
        monitor: str = "valid_loss",
        *,
        inputs: Any | Callable[[Any], Any] | None = None,
        **probe_options: Any,
    ) -> None:
        super().__init__()
        self.trial = TrialSource(trial)  # scikit-learn copies parameters, and not the study
        self.monitor = monitor
        self.inputs = inputs
        self.probe_options = probe_options
        self.reporter_ = TrialReporter(self.trial, inputs, probe_options)

    def __sklearn_clone__(self) -> "SkorchLyapunovCallback":
        return copy.deepcopy(self)  # of a callback that takes options, scikit-learn knows not how

    def on_train_begin(self, net: NeuralNet, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Find the trial, and note how many epochs are to come."""
        self.reporter_.start()
        self.last_epoch_ = len(net.history) + net.max_epochs - 1

    def on_batch_begin(
        self, net: NeuralNet, batch: Any = None, training: bool | None = None, **kwargs: Any
    ) -> None:
        """Measure the baseline, before the first update."""
        if training and not self.reporter_.measures(net.module_):
            self.reporter_.begin(net.module_, batch, untrained=len(net.history) == 1)

    def on_epoch_end(
        self, net: NeuralNet, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any
    ) -> None:
        """Report the monitored value and a readout, and prune.

        Raises:
            optuna.TrialPruned: The pruner gives the trial up.
            ValueError: The history has no such column.
        """
        epoch = len(net.history) - 1
        if self.monitor not in net.history[-1]:
            columns = sorted(set(net.history[-1]) - {"batches"})
            raise ValueError(f"monitor={self.monitor!r} is not in net.history; it has {columns}.")
        value = net.history[-1, self.monitor]
        self.reporter_.report_or_prune(value, epoch, last=epoch >= self.last_epoch_)
