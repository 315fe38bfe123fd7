"""A callback for the Trainer of Hugging Face's transformers."""

from collections.abc import Callable
from typing import Any

from optuna.study import Study
from optuna.trial import BaseTrial
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lyap_optuna.integration._reporter import TrialReporter


class LyapunovTrainerCallback(TrainerCallback):  # type: ignore[misc]  # as skorch's
    """Callback of a Hugging Face ``Trainer`` that measures exponents while it searches or trains.

    ``trainer.hyperparameter_search(backend="optuna")`` keeps its trials to itself, reports each
    evaluation at the updates made so far, and prunes. The callback adds what is missing: the
    baseline before the first update, and a readout at each evaluation, stored before the Trainer
    asks the pruner. Nothing is reported twice.

    In an objective of one's own, which trains by ``trainer.train()``, pass the trial. The callback
    then reports and prunes too, at the same steps. When training is over nothing is pruned. With
    neither it does nothing.

    Args:
        trainer: The trainer; one that searches has a ``model_init``.
        trial: The running trial, or a study whose running trial is meant; None for those of the
            Trainer's own search.
        monitor: The metric to report, where a trial was given.
        inputs: What the model's forward takes; or a function that picks it from what the first
            training step gives the model; None for all of that (ten sequences of it).
        **probe_options: Passed on to :class:`~lyap_optuna.LyapunovProbe`: ``layer``,
            ``full_spectrum``, ``state``, ``strict`` and the like. ``last_step`` counts updates;
            without it readouts are taken at the first six evaluations.

    Raises:
        optuna.TrialPruned: While training, where a trial was given: the pruner gives it up.
        ValueError: While training: an option is wrong, or there is no such metric.

    Example:
        >>> import torch
        >>> import lyap_optuna as lyap
        >>> from transformers import Trainer, TrainingArguments
        >>> from lyap_optuna.integration import LyapunovTrainerCallback
        >>> class Classifier(torch.nn.Module):
        ...     def __init__(self, units):
        ...         super().__init__()
        ...         self.embedding = torch.nn.Embedding(10, 4)
        ...         self.recurrent = torch.nn.LSTM(4, units, batch_first=True)
        ...         self.output = torch.nn.Linear(units, 2)
        ...     def forward(self, input_ids, labels=None):
        ...         out = self.output(self.recurrent(self.embedding(input_ids))[0][:, -1])
        ...         loss = None
        ...         if labels is not None:
        ...             loss = torch.nn.functional.cross_entropy(out, labels)
        ...         return {"loss": loss, "logits": out}
        >>> ids = torch.randint(0, 10, (32, 12))
        >>> data = [{"input_ids": row, "labels": row[0] // 5} for row in ids]
        >>> trainer = Trainer(
        ...     args=TrainingArguments(
        ...         "out", num_train_epochs=2, eval_strategy="epoch", save_strategy="no",
        ...         report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
        ...     ),
        ...     train_dataset=data, eval_dataset=data,
        ...     model_init=lambda trial: Classifier(trial.suggest_int("n", 4, 8) if trial else 4),
        ... )
        >>> trainer.add_callback(LyapunovTrainerCallback(trainer))
        >>> best = trainer.hyperparameter_search(  # doctest: +ELLIPSIS
        ...     backend="optuna", n_trials=1, hp_space=lambda trial: {},
        ...     pruner=lyap.LyapunovPruner(),
        ... )
        {'eval_loss': ...
    """

    def __init__(
        self,
        trainer: Trainer,
        trial: BaseTrial | Study | None = None,
        monitor: str = "eval_loss",
        *,
        inputs: Any | Callable[[Any], Any] | None = None,
        **probe_options: Any,
    ) -> None:
        self._trainer = trainer
        self._monitor = monitor
        self._inputs, self._options = inputs, probe_options
        self._own = None if trial is None else self._reporter_of(trial)
        self._reporter: TrialReporter | None = None

    def _reporter_of(self, trial: BaseTrial | Study) -> TrialReporter:
        return TrialReporter(trial, self._inputs, self._options, counting="global_step")

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Measure the baseline in the step which follows."""
        trial = getattr(self._trainer, "_trial", None)
        if self._own is not None:
            self._own.start()
            self._reporter = self._own
        elif trial is None:
            self._reporter = None
        elif self._reporter is None or self._reporter.trial is not trial:
            self._reporter = self._reporter_of(trial)
        if model is None or not state.is_world_process_zero:
            self._reporter = None
        if self._reporter is not None and model is not None:
            self._reporter.begin(model, untrained=state.global_step == 0)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Let evaluations that follow not count."""
        if self._own is not None:
            self._reporter = None

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Store a readout, which the Trainer's own report follows, or report and prune.

        Raises:
            optuna.TrialPruned: The pruner gives up the trial that was given.
            ValueError: There is no such metric.
        """
        reporter, step = self._reporter, state.global_step
        if reporter is None or step == 0:
            return
        if self._own is None:
            reporter.record(step)
            return
        found = metrics or {}
        if self._monitor not in found:
            raise ValueError(f"monitor={self._monitor!r} is not among {sorted(found)}.")
        reporter.report_or_prune(found[self._monitor], step, last=step >= state.max_steps)
