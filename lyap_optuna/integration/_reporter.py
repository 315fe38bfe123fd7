"""What the callbacks of all frameworks share: a probe made in the first step, and reports."""

import contextlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from optuna import TrialPruned
from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial
from torch import nn

from lyap_optuna._logging import get_logger
from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.dynamics import NotMeasurableError
from lyap_optuna.integration._first_call import FirstCall, as_inputs, first_sequences, part, told
from lyap_optuna.integration._trial import TrialSource
from lyap_optuna.probe import UNTRAINED_STEP, LyapunovProbe
from lyap_optuna.records import (
    keeps_order,
    pruned_at,
    stored_trial,
    write_counting,
    write_failure,
    write_pruned,
)

_logger = get_logger(__name__)

N_READOUTS = 6
"""Readouts in training where steps count updates and no ``last_step`` is given: as many as a probe
takes by default of epochs that are counted from 0."""

COUNTINGS = ("epoch", "global_step", "validation")
"""What the steps of a trial may count: epochs, updates or validations."""

_said: set[str] = set()


def _tell(what: str) -> None:
    """Log once what is measured."""
    if what not in _said:
        _said.add(what)
        _logger.info(f"Exponents are measured on what the first training step gives {what}.")


class _FirstCallProbe(LyapunovProbe):
    _about_inputs = (
        " (These inputs are what the first training step passed on; inputs= names others.)"
    )


class TrialReporter:
    """Makes the probe of a trial before the first update, then reports to the trial.

    A copy of it, or what was pickled and loaded, reports to the same trial and has no probe yet.

    Args:
        trial: The running trial, or a study whose running trial is meant.
        inputs: What the model's forward takes; a function of the first training batch that returns
            it; or None for what reaches the model in the first training step.
        options: Further options of :class:`~lyap_optuna.LyapunovProbe`.
        counting: What steps count, one of :data:`COUNTINGS`; None for epochs where each has one
            validation and for validations elsewhere.
        first: The first epoch's number, and so the first validation's.

    Raises:
        ValueError: ``counting`` is none of them, or ``trial`` is neither.
    """

    def __init__(
        self,
        trial: BaseTrial | Study | TrialSource,
        inputs: Any | Callable[[Any], Any] | None,
        options: dict[str, Any],
        *,
        counting: str | None = None,
        first: int = 0,
    ) -> None:
        if counting is not None and counting not in COUNTINGS:
            raise ValueError(
                f"step must be one of {COUNTINGS}, or None so that each validation has a step of "
                f"its own, but got {counting!r}."
            )
        self.source = TrialSource(trial)
        self._inputs, self._options = inputs, options
        self._chosen, self._first = counting, first
        self._forget()

    def _forget(self) -> None:
        self.validations = 0
        self._counting = self._chosen
        self._trial: BaseTrial | None = None
        self._model: nn.Module | None = None
        self._probe: LyapunovProbe | None = None
        self._call: FirstCall | None = None
        self._reports = 0

    def __getstate__(self) -> dict[str, Any]:
        kept = ("source", "_inputs", "_options", "_chosen", "_first")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @property
    def trial(self) -> BaseTrial:
        """The trial; of a study, the one that ran when it was asked for first."""
        if self._trial is None:
            self._trial = self.source.find()
        return self._trial

    def start(self) -> None:
        """Begin anew where another trial of the study runs than before."""
        found = self.source.find()
        if self._trial is not None and self._trial.number != found.number:
            self._forget()
        self._trial = self._trial or found

    def measures(self, model: nn.Module) -> bool:
        """Whether ``begin`` was called, and with this model."""
        return self._model is model

    def begin(self, model: nn.Module, batch: Any = None, *, untrained: bool, skip: int = 0) -> None:
        """Make the probe, and measure the baseline of a network that has seen no update.

        Without ``inputs`` that is done in the training step which follows, with what reaches the
        network there.

        Args:
            model: The model that trains.
            batch: The first training batch, as the data loader gives it; None where only what the
                model is given can be seen, which ``inputs`` then picks from.
            untrained: Whether no update was made yet; False where training was resumed.
            skip: Calls of ``model`` to come that are none of its forward.

        Raises:
            ValueError: An option is wrong; with ``strict`` also where the model cannot be measured.
        """
        self._model = model
        options = dict(self._options)
        if not untrained:
            options["baseline"] = False  # a trained network has none
        if self._counting == "global_step":
            options.setdefault("last_step", sys.maxsize)
        given = self._inputs
        picks = given if callable(given) and not isinstance(given, nn.Module) else None
        if given is not None and not (picks and batch is None):
            self._take(LyapunovProbe, model, picks(batch) if picks else given, options)
            return

        def measure(
            name: str,
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            final: bool,
        ) -> bool:
            now = options | {"layer": part(options.get("layer"), name)}
            # Autocasting is switched on for a thread, and a training step may be under it.
            device = next((p.device.type for p in module.parameters()), "cpu")
            try:
                inputs = as_inputs(module, args, kwargs)
                inputs = picks(inputs) if picks else inputs
                inputs = first_sequences(inputs, module, now["layer"])
                with torch.autocast(device, enabled=False):
                    self._take(_FirstCallProbe, module, inputs, now, tentative=not final)
            except Exception as error:
                if not final:
                    return False
                if not isinstance(error, NotMeasurableError) or now.get("strict"):
                    raise
                self._go_without(str(error))
            else:
                _tell(f"{name or 'the model'} ({type(module).__name__}): {told(inputs)}")
            self._call = None
            return True

        if self._call is not None:
            self._call.forget()
        self._call = FirstCall(model, options.get("layer"), measure, skip)

    def _take(
        self,
        kind: type[LyapunovProbe],
        model: nn.Module,
        inputs: Any,
        options: dict[str, Any],
        *,
        tentative: bool = False,
    ) -> None:
        """Make the probe, or let it go on with the untrained network of the next fold.

        Raises:
            Exception: It cannot be measured, which is tentative.
        """
        strict = options.get("strict", False)
        options = options | {"strict": strict or tentative}
        if self._probe is None or not options.get("baseline", True):
            probe = kind(model, inputs, trial=self.trial, **options)
        else:
            probe = self._probe
            probe._strict = options["strict"]
            probe.restart(model, inputs)
        probe._strict = strict
        self._probe = probe

    def _go_without(self, why: str) -> None:
        """Say that nothing can be measured.

        Raises:
            ValueError: With ``strict``.
        """
        if self._options.get("strict"):
            raise ValueError(why)
        warnings.warn(
            f"No readouts: {why} The trial goes on without them; strict=True raises instead.",
            LyapunovWarning,
            stacklevel=4,
        )
        with contextlib.suppress(Exception):  # the storage's own troubles come up elsewhere
            write_failure(self.trial, UNTRAINED_STEP, why)

    def step(self, *, epoch: int, update: int, once: bool) -> int:
        """Return the step of a validation that has just ended.

        Args:
            epoch: The epoch.
            update: Updates made so far.
            once: Whether every epoch has at most one validation.
        """
        if self._counting is None:
            self._counting = "epoch" if once else "validation"
        place = self.validations
        self.validations += 1
        steps = {"epoch": epoch, "global_step": update, "validation": self._first + place}
        return steps[self._counting]

    def report(self, value: float, step: int, *, last: bool) -> bool:
        """Report a value with a readout; return whether the trial should be pruned.

        If so, that is recorded with the trial: a library may catch the exception.

        Args:
            value: The monitored value.
            step: Its step.
            last: Whether training is over: then the trial is never pruned, because it would save
                nothing, and the predictor learns from COMPLETE trials only.
        """
        self.measure(value, step)
        if last or not self.trial.should_prune():
            return False
        write_pruned(self.trial, step)
        return True

    def report_or_prune(self, value: float, step: int, *, last: bool) -> None:
        """Report a value as :meth:`report` does.

        Raises:
            optuna.TrialPruned: The trial should be pruned.
        """
        if self.report(value, step, last=last):
            raise pruned(step)

    def measure(self, value: float, step: int) -> None:
        """Report a value and take a readout."""
        if self._enough():
            self.trial.report(value, step)
        else:
            assert self._probe is not None
            self._probe.report(self.trial, value, step)

    def record(self, step: int) -> None:
        """Take a readout at a step whose value the framework itself is about to report."""
        if not self._enough() and step <= self._options.get("last_step", step):
            assert self._probe is not None
            self._probe.record(self.trial, step)

    def _enough(self) -> bool:
        """Whether no readout is taken at the report to come."""
        if self._call is not None:
            self._call.forget()
            wanted, self._call = self._call.wanted, None
            self._go_without(
                f"No training step has called {wanted} in a way that can be seen. Pass inputs=, "
                "what the model's forward takes, or a function that picks it from a training batch."
            )
        if not self._reports and self._counting not in (None, "epoch"):
            write_counting(self.trial, str(self._counting))
        self._reports += 1
        by_updates = self._counting == "global_step" and "last_step" not in self._options
        return self._probe is None or (by_updates and self._reports > N_READOUTS)

    def check_pruned(self) -> None:
        """Raise where the trial was pruned, and reported nothing afterwards.

        Raises:
            optuna.TrialPruned: It was.
        """
        trial = self.source.find()
        stored = stored_trial(trial)
        if not isinstance(stored, FrozenTrial):  # a FixedTrial is never pruned
            return
        storage = getattr(trial, "storage", None)
        step = pruned_at(stored, storage is None or keeps_order(storage))
        if step is not None:
            raise pruned(step)


def pruned(step: int) -> TrialPruned:
    """Return what tells Optuna that a trial was pruned."""
    return TrialPruned(f"Trial was pruned at step {step}.")
