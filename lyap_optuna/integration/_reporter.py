"""What the callbacks of all frameworks share: a probe made from the first batch, and reports."""

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from optuna.trial import BaseTrial
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.probe import UNTRAINED_STEP, LyapunovProbe
from lyap_optuna.records import write_failure

N_SEQUENCES = 10
"""Sequences of the first training batch that are measured where no inputs are given."""


class _FirstBatchProbe(LyapunovProbe):
    _about_inputs = " (These inputs come from the first training batch; inputs= names others.)"


class TrialReporter:
    """Makes the probe of a trial before the first update, then reports to the trial.

    Args:
        trial: The running trial.
        inputs: What the model's forward takes; a function of the first training batch that returns
            it; or None for the first ten sequences of that batch's inputs.
        options: Further options of :class:`~lyap_optuna.LyapunovProbe`.
    """

    def __init__(
        self, trial: BaseTrial, inputs: Any | Callable[[Any], Any] | None, options: dict[str, Any]
    ) -> None:
        self.trial = trial
        self._inputs = inputs
        self._options = options
        self._model: nn.Module | None = None
        self._probe: LyapunovProbe | None = None

    def measures(self, model: nn.Module) -> bool:
        """Whether the probe was made, and for this model."""
        return self._model is model

    def begin(self, model: nn.Module, batch: Any, *, untrained: bool) -> None:
        """Make the probe, and measure the baseline of a network that has seen no update.

        Args:
            model: The model that trains.
            batch: The first training batch, as the data loader gives it.
            untrained: Whether no update was made yet; False where training was resumed.

        Raises:
            ValueError: An option is wrong; with ``strict`` also where the model cannot be measured.
        """
        self._model = model
        options = dict(self._options)
        if not untrained:
            options["baseline"] = False  # a trained network has none
        if self._inputs is not None:
            given = self._inputs
            chosen = callable(given) and not isinstance(given, nn.Module)
            inputs = given(batch) if chosen else given
            self._probe = LyapunovProbe(model, inputs, trial=self.trial, **options)
            return
        try:
            inputs = first_inputs(batch, model, options.get("layer"))
        except ValueError as error:
            if options.get("strict"):
                raise
            warnings.warn(
                f"No readouts: {error} The trial goes on without them; strict=True raises instead.",
                LyapunovWarning,
                stacklevel=3,
            )
            with contextlib.suppress(Exception):  # the storage's own troubles come up elsewhere
                write_failure(self.trial, UNTRAINED_STEP, str(error))
            return
        self._probe = _FirstBatchProbe(model, inputs, trial=self.trial, **options)

    def report(self, value: float, step: int, *, last: bool) -> bool:
        """Report a value with a readout; return whether the trial should be pruned.

        Args:
            value: The monitored value.
            step: The epoch, counted as the framework does.
            last: Whether this was the last epoch: then the trial is never pruned, because it
                would save nothing, and the predictor learns from COMPLETE trials only.
        """
        if self._probe is None:  # nothing was trained
            self.trial.report(value, step)
        else:
            self._probe.report(self.trial, value, step)
        return not last and self.trial.should_prune()


def first_inputs(batch: Any, model: nn.Module, layer: Any = None) -> Any:
    """Return the first sequences of a training batch's inputs.

    A pair (inputs, targets) loses its targets. Where every layer that says so, or ``layer`` itself,
    has its sequences along the first dimension (``batch_first``) the first ten are taken, otherwise
    all.

    Raises:
        ValueError: The batch is neither a tensor nor a pair that begins with the inputs.

    Example:
        >>> import torch
        >>> layer = nn.GRU(3, 4, batch_first=True)
        >>> first_inputs((torch.zeros(64, 20, 3), torch.zeros(64)), layer).shape
        torch.Size([10, 20, 3])
    """
    if isinstance(batch, (tuple, list)) and batch and not isinstance(batch, PackedSequence):
        batch = batch[0]
    elif not isinstance(batch, (Tensor, PackedSequence)):
        raise ValueError(
            f"The first training batch is a {type(batch).__name__}, in which inputs and targets "
            "cannot be told apart: pass inputs=, what the model's forward takes, or a function "
            "that picks it from a training batch."
        )
    if isinstance(batch, PackedSequence) or not _batch_first(model, layer):
        return batch
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    else:
        parts = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    if not all(isinstance(part, Tensor) and part.dim() for part in parts):
        return batch
    if len({len(part) for part in parts}) != 1:
        return batch  # not all of them have a sequence per row
    if isinstance(batch, Mapping):
        return {key: part[:N_SEQUENCES] for key, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(part[:N_SEQUENCES] for part in parts)
    return batch[:N_SEQUENCES]


def _batch_first(model: nn.Module, layer: Any) -> bool:
    modules = [layer] if isinstance(layer, nn.Module) else list(model.modules())
    said = [
        sub.batch_first for sub in modules if isinstance(getattr(sub, "batch_first", None), bool)
    ]
    return bool(said) and all(said)
