"""A callback for fastai."""

from collections.abc import Callable
from typing import Any

from fastai.callback.core import Callback, CancelFitException
from fastai.callback.tracker import TrackerCallback
from optuna.study import Study
from optuna.trial import BaseTrial

from lyap_optuna.integration._reporter import TrialReporter, pruned

_MARKS = {"do_wd", "force_train"}
"""What an optimizer holds of parameters before its first step."""


class FastaiLyapunovCallback(Callback):  # type: ignore[misc]  # not installed where types are
    """Fastai callback that measures exponents, reports to the trial, and prunes it.

    Stands where :class:`optuna_integration.FastAIPruningCallback` would, among the callbacks of a
    learner or of ``fit``. The baseline is measured before the first update; after each epoch the
    monitored value is reported with a readout. Epochs are counted from 0 and through all fits of a
    learner, as ``fine_tune`` or gradual unfreezing makes them. Training stops as fastai stops it,
    and :class:`optuna.TrialPruned` is raised when the fit has ended. ``lr_find`` and predictions do
    not count.

    Args:
        trial: The running trial, or a study whose running trial is meant.
        monitor: The value to report: ``"valid_loss"`` or the name of a metric.
        epochs: Epochs of all fits together: after the last nothing is pruned, because it would save
            nothing. None where one fit is all; else a trial is pruned at the end of no fit.
        inputs: What the model's forward takes; or a function of the first training batch, a tuple,
            that returns it; None for what reaches the network in the first training step (ten
            sequences of it).
        **probe_options: Passed on to :class:`~lyap_optuna.LyapunovProbe`: ``layer``,
            ``last_step``, ``full_spectrum``, ``state``, ``strict`` and the like.

    Raises:
        ValueError: While fitting: an option is wrong, or nothing is recorded as ``monitor``.

    Example:
        >>> import optuna
        >>> import torch
        >>> import lyap_optuna as lyap
        >>> from fastai.basics import DataLoaders, Learner
        >>> from lyap_optuna.integration import FastaiLyapunovCallback
        >>> class Last(torch.nn.Module):
        ...     def __init__(self, units):
        ...         super().__init__()
        ...         self.recurrent = torch.nn.GRU(2, units, batch_first=True)
        ...         self.output = torch.nn.Linear(units, 1)
        ...     def forward(self, x):
        ...         return self.output(self.recurrent(x)[0][:, -1])
        >>> x = torch.randn(40, 20, 2)
        >>> pairs = list(zip(x, x[:, 0, :1]))
        >>> loaders = DataLoaders.from_dsets(pairs, pairs, bs=20, device="cpu")
        >>> def objective(trial):
        ...     model = Last(trial.suggest_int("units", 4, 16))
        ...     callback = FastaiLyapunovCallback(trial)
        ...     learner = Learner(
        ...         loaders, model, torch.nn.functional.mse_loss, cbs=[callback]
        ...     )
        ...     with learner.no_bar(), learner.no_logging():
        ...         learner.fit(3)
        ...     return learner.recorder.values[-1][1]
        >>> study = optuna.create_study(pruner=lyap.LyapunovPruner())
        >>> study.optimize(objective, n_trials=1)
        >>> sorted(study.trials[0].user_attrs["lyapunov:readouts"])
        ['-1', '0', '1', '2']
    """

    order = TrackerCallback.order  # after what it reads is recorded
    remove_on_fetch = True  # as everything that trains only

    def __init__(
        self,
        trial: BaseTrial | Study,
        monitor: str = "valid_loss",
        *,
        epochs: int | None = None,
        inputs: Any | Callable[[Any], Any] | None = None,
        **probe_options: Any,
    ) -> None:
        super().__init__()
        self.monitored, self.all_epochs = monitor, epochs
        self.reporter = TrialReporter(trial, inputs, probe_options)
        self.trained, self.epochs, self.earlier_epochs = False, 0, 0
        self.pruned_at: int | None = None

    def before_fit(self) -> None:
        """Find the trial and the monitored value.

        Raises:
            ValueError: Nothing is recorded under its name.
        """
        self.run = not hasattr(self.learn, "lr_finder") and not hasattr(self.learn, "gather_preds")
        if not self.run:
            return
        self.reporter.start()
        recorded = list(self.learn.recorder.metric_names[1:])
        if self.monitored not in recorded:
            raise ValueError(f"monitor={self.monitored!r} is not among {recorded}.")
        if not self.reporter.validations:  # of this trial
            self.epochs = 0
        self.earlier_epochs = self.epochs
        self.column, self.pruned_at = recorded.index(self.monitored), None

    def before_epoch(self) -> None:
        """Note that nothing was trained yet: an epoch may be skipped, or validate only."""
        self.trained = False

    def before_batch(self) -> None:
        """Measure the baseline, before the first update."""
        if not self.learn.training:
            return
        self.trained = True
        if not self.reporter.measures(self.learn.model):
            held = self.learn.opt.state
            untrained = all(_MARKS.issuperset(of) for of in held.values())
            batch = (*self.learn.xb, *self.learn.yb)
            self.reporter.begin(self.learn.model, batch, untrained=untrained)

    def after_epoch(self) -> None:
        """Report the monitored value and a readout, and stop training where the pruner says so.

        Raises:
            CancelFitException: The pruner gives the trial up.
        """
        if not self.trained:
            return
        step = self.reporter.step(epoch=self.earlier_epochs + self.learn.epoch, update=0, once=True)
        self.epochs = step + 1
        if self.all_epochs is None:
            last = self.learn.epoch == self.learn.n_epoch - 1
        else:
            last = step == self.all_epochs - 1
        value = float(self.learn.recorder.values[-1][self.column])
        if self.reporter.report(value, step, last=last):
            self.pruned_at = step
            raise CancelFitException

    def after_fit(self) -> None:
        """Tell Optuna.

        Raises:
            optuna.TrialPruned: The pruner gave the trial up.
        """
        if self.pruned_at is not None:
            raise pruned(self.pruned_at)
