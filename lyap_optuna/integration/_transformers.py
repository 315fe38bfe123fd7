"""A callback for the Trainer of Hugging Face's transformers."""

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lyap_optuna.integration._reporter import TrialReporter


class LyapunovTrainerCallback(TrainerCallback):  # type: ignore[misc]  # as skorch's
    """Callback of a Hugging Face ``Trainer`` that measures exponents in its search with Optuna.

    ``trainer.hyperparameter_search(backend="optuna")`` keeps its trials to itself, reports each
    evaluation at the updates made so far, and prunes. The callback adds what is missing: the
    baseline before the first update, and a readout at each evaluation, stored before the Trainer
    asks the pruner. Nothing is reported twice. Outside a search it does nothing.

    Args:
        trainer: The trainer, which has a ``model_init``.
        inputs: What the model's forward takes; or a function that picks it from what the first
            training step gives the model; None for all of that (ten sequences of it).
        **probe_options: Passed on to :class:`~lyap_optuna.LyapunovProbe`: ``layer``,
            ``full_spectrum``, ``state``, ``strict`` and the like. ``last_step`` counts updates;
            without it readouts are taken at the first six evaluations.

    Raises:
        ValueError: While training: an option is wrong.

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
        *,
        inputs: Any | Callable[[Any], Any] | None = None,
        **probe_options: Any,
    ) -> None:
        self._trainer = trainer
        self._inputs, self._options = inputs, probe_options
        self._reporter: TrialReporter | None = None

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
        if trial is None or model is None or not state.is_world_process_zero:
            self._reporter = None
            return
        if self._reporter is None or self._reporter.trial is not trial:
            self._reporter = TrialReporter(
                trial, self._inputs, self._options, counting="global_step"
            )
        self._reporter.begin(model, untrained=state.global_step == 0)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Store a readout, which the Trainer's own report follows."""
        if self._reporter is not None and state.global_step > 0:
            self._reporter.record(state.global_step)
