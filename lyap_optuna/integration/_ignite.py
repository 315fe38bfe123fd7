"""A handler for PyTorch Ignite."""

from collections.abc import Callable
from typing import Any

from ignite.engine import Engine, Events
from optuna.study import Study
from optuna.trial import BaseTrial
from torch import nn

from lyap_optuna.integration._reporter import TrialReporter


class IgniteLyapunovHandler:
    """PyTorch Ignite handler that measures exponents, reports to the trial, and prunes it.

    Stands where :class:`optuna_integration.PyTorchIgnitePruningHandler` would: attach it to the
    evaluator. The baseline is measured before the trainer's first update; each time the evaluator
    calls the handler after that, the metric is reported with a readout. When training is over
    nothing is pruned: it would save nothing.

    Args:
        trial: The running trial, or a study whose running trial is meant.
        metric: Name of the evaluator's metric to report.
        trainer: The engine that trains.
        model: The model that it trains.
        step: What the reported steps count: ``"epoch"`` (from 1), ``"global_step"`` (the trainer's
            iterations) or ``"validation"`` (runs of the evaluator, from 1). None for epochs where
            the first of these runs is at an epoch's end, and for the runs elsewhere. Trials of a
            study should count alike.
        inputs: What the model's forward takes; or a function of the first training batch that
            returns it; None for what reaches the network in the first training step (ten sequences
            of it).
        **probe_options: Passed on to :class:`~lyap_optuna.LyapunovProbe`: ``layer``,
            ``last_step``, ``full_spectrum``, ``state``, ``strict`` and the like.

    Raises:
        ValueError: While training: an option is wrong, or the evaluator has no such metric.

    Example:
        >>> import optuna
        >>> import torch
        >>> from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
        >>> from ignite.metrics import Loss
        >>> import lyap_optuna as lyap
        >>> from lyap_optuna.integration import IgniteLyapunovHandler
        >>> class Last(torch.nn.Module):
        ...     def __init__(self, units):
        ...         super().__init__()
        ...         self.recurrent = torch.nn.GRU(2, units, batch_first=True)
        ...         self.output = torch.nn.Linear(units, 1)
        ...     def forward(self, x):
        ...         return self.output(self.recurrent(x)[0][:, -1])
        >>> x = torch.randn(40, 20, 2)
        >>> data = [(x[:20], x[:20, 0, :1]), (x[20:], x[20:, 0, :1])]
        >>> def objective(trial):
        ...     model = Last(trial.suggest_int("units", 4, 16))
        ...     optimizer = torch.optim.Adam(model.parameters())
        ...     loss = torch.nn.functional.mse_loss
        ...     trainer = create_supervised_trainer(model, optimizer, loss)
        ...     evaluator = create_supervised_evaluator(model, {"loss": Loss(loss)})
        ...     handler = IgniteLyapunovHandler(trial, "loss", trainer, model)
        ...     evaluator.add_event_handler(Events.COMPLETED, handler)
        ...     trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(data))
        ...     trainer.run(data, max_epochs=3)
        ...     return evaluator.state.metrics["loss"]
        >>> study = optuna.create_study(pruner=lyap.LyapunovPruner())
        >>> study.optimize(objective, n_trials=1)
        >>> sorted(study.trials[0].user_attrs["lyapunov:readouts"])
        ['0', '1', '2', '3']
    """

    def __init__(
        self,
        trial: BaseTrial | Study,
        metric: str,
        trainer: Engine,
        model: nn.Module,
        *,
        step: str | None = None,
        inputs: Any | Callable[[Any], Any] | None = None,
        **probe_options: Any,
    ) -> None:
        self._metric = metric
        self._trainer = trainer
        self._model = model
        self._reporter = TrialReporter(trial, inputs, probe_options, counting=step, first=1)
        trainer.add_event_handler(Events.ITERATION_STARTED, self._begin)

    def _begin(self, trainer: Engine) -> None:
        """Measure the baseline, before the first update."""
        untrained = trainer.state.iteration == 1
        self._reporter.begin(self._model, trainer.state.batch, untrained=untrained)
        trainer.remove_event_handler(self._begin, Events.ITERATION_STARTED)

    def __call__(self, engine: Engine) -> None:
        """Report the evaluator's metric and a readout, and prune.

        Raises:
            optuna.TrialPruned: The pruner gives the trial up.
            ValueError: The evaluator has no such metric.
        """
        if self._metric not in engine.state.metrics:
            raise ValueError(
                f"metric={self._metric!r} is not among the evaluator's: "
                f"{sorted(engine.state.metrics) or 'it has none'}."
            )
        state = self._trainer.state
        if not state.iteration:
            return  # before training
        length = state.epoch_length or 0
        ended = state.iteration == state.epoch * length
        step = self._reporter.step(epoch=state.epoch, update=state.iteration, once=ended)
        last = state.max_epochs is not None and state.iteration >= state.max_epochs * length > 0
        self._reporter.report_or_prune(engine.state.metrics[self._metric], step, last=last)
