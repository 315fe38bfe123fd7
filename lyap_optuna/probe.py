"""The probe: measures exponents while a trial trains, and leaves no trace in the training."""

import inspect
import numbers
import sys
import traceback
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from optuna.trial import BaseTrial
from torch import nn

from lyap_optuna._logging import get_logger, without_passwords
from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.dynamics import STATES, Dynamics, NonFiniteParametersError
from lyap_optuna.dynamics._copy import detached
from lyap_optuna.records import (
    FLOOR,
    DatabaseSink,
    ReadoutRecord,
    SpectraError,
    SpectrumSink,
    begins_training,
    has_readout,
    is_untouched,
    write_failure,
    write_readouts,
)
from lyap_optuna.spectrum import LyapunovReadout, lyapunov_readout, lyapunov_spectrum
from lyap_optuna.spectrum._schedule import integer

_logger = get_logger(__name__)

N_QUANTILES = 32

UNTRAINED_STEP = -1
"""Where a baseline stands before the first report: Optuna's steps begin at 0."""


def _options_of(function: Callable[..., Any], *others: str) -> set[str]:
    return {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in ("layer", *others)
    }


_READOUT_OPTIONS = _options_of(lyapunov_readout)
_SPECTRUM_OPTIONS = _options_of(lyapunov_spectrum, "k")  # all exponents, whatever k


class LyapunovProbe:
    """Measures a network's Lyapunov exponents in the first steps of a trial and stores them.

    Training with a probe is bit-identical to training without it: what reaches the recurrent
    layers is captured on a copy of the model in eval mode, random numbers come from a generator of
    the probe's own, and no global setting is touched.

    The *baseline*, the readout before training, is measured by the constructor: make the probe
    after the model and before its first update. The displacement of the exponents since then is
    often a better early predictor than the exponents themselves.

    No configuration ends a study. A model that cannot be measured (it has no recurrent layer, say,
    or its forward fails on the inputs) costs one :class:`~lyap_optuna.LyapunovWarning` that says
    what to do; the fact is recorded with the trial, and the probe then only reports.
    ``strict=True`` raises instead. :meth:`report` and :meth:`record` only ever warn.

    The readouts of a trial are those of one network, so that a displacement is always that of the
    network which the baseline measured. In cross-validation within a trial :meth:`restart` goes on
    with the network of the next fold; a probe made in the same trial for another network warns
    once, reports values and stores nothing. (For the same network, loaded anew from a checkpoint,
    pass ``baseline=False``.)

    Args:
        model: The model, also behind DistributedDataParallel or ``torch.compile``; or a
            :class:`~lyap_optuna.RecurrentDynamics`.
        inputs: What the model's ``forward`` takes, as for :func:`~lyap_optuna.lyapunov_readout`:
            a fixed batch without targets; ten sequences serve well. Copied.
        layer: The recurrent layer to measure, by name or itself, or a list of names; None for all.
        trial: The running trial. The baseline is stored with it at once, at step -1, and moved to
            the step before the first reported one when that is known. (Its whole spectrum is
            stored then; so is the baseline of a trial that is retried, which may go on from a
            checkpoint.) Without it the first report stores the baseline. Where steps do not
            ascend, it goes down with the lowest step that was reported.
        last_step: Readouts are taken by :meth:`report` up to this step, and after :meth:`restart`
            as many steps on.
        full_spectrum: Measure the whole spectrum of each layer and store 32 of its quantiles too,
            and all of it where ``sink`` says.
        baseline: Measure before training.
        strict: Raise where the model cannot be measured.
        sink: Where whole spectra go: a :class:`~lyap_optuna.DatabaseSink` (by default that of the
            study's own database), a :class:`~lyap_optuna.ArtifactSink`, another
            :class:`~lyap_optuna.SpectrumSink`, or a list of them.
        **readout_options: Passed on to :func:`~lyap_optuna.lyapunov_readout`: ``state``, ``k``,
            ``warmup``, ``lengths``, ``mean_tolerance``, ``seed``, ``initial_state``; with
            ``full_spectrum`` to :func:`~lyap_optuna.lyapunov_spectrum` too: ``qr_every``,
            ``start``, ``rtol`` and the like.

    Raises:
        ValueError: An argument is wrong whatever the model; with ``strict`` also where the model
            cannot be measured, or whatever else was raised in measuring it.

    Example:
        >>> import optuna
        >>> import torch
        >>> import lyap_optuna as lyap
        >>> def objective(trial):
        ...     model = torch.nn.GRU(input_size=3, hidden_size=8, batch_first=True)
        ...     probe = lyap.LyapunovProbe(model, torch.randn(10, 50, 3), trial=trial)
        ...     for epoch in range(1, 4):
        ...         loss = 1 / epoch  # train the model here
        ...         probe.report(trial, loss, epoch)
        ...         if trial.should_prune():
        ...             raise optuna.TrialPruned()
        ...     return loss
        >>> study = optuna.create_study(pruner=lyap.LyapunovPruner())
        >>> study.optimize(objective, n_trials=1)
        >>> sorted(study.trials[0].user_attrs["lyapunov:readouts"])
        ['0', '1', '2', '3']
    """

    _about_inputs = ""  # what a callback adds where it chose the inputs

    def __init__(
        self,
        model: nn.Module | Dynamics,
        inputs: Any,
        *,
        layer: str | Sequence[str] | nn.Module | None = None,
        trial: BaseTrial | None = None,
        last_step: int = 5,
        full_spectrum: bool = False,
        baseline: bool = True,
        strict: bool = False,
        sink: SpectrumSink | Sequence[SpectrumSink] | None = None,
        **readout_options: Any,
    ) -> None:
        self._model = _checked_model(model)
        if trial is not None and not isinstance(trial, BaseTrial):
            raise ValueError(f"trial must be a trial of Optuna, but got {_kind(trial)}.")
        self._last_step = integer("last_step", last_step)
        self._options = _checked_options(readout_options, full_spectrum)
        self._layer = _checked_layer(layer)
        if sink is not None and not full_spectrum:
            raise ValueError("sink is for whole spectra: pass full_spectrum=True too.")
        self._sinks = _checked_sinks(sink)
        self._full_spectrum = full_spectrum
        self._untrained = baseline
        self._strict = strict
        self._warned: set[str] = set()
        self._trial: int | None = None  # number of the trial that this probe belongs to
        self._settled = False  # whether the first report was seen
        self._baseline: LyapunovReadout | None = None
        self._place: int | None = None  # the step at which the baseline belongs
        self._stored_at: int | None = None  # where it is stored
        self._spectra_at: int | None = None  # where its whole spectra are
        self._failure: str | None = None  # why this model is not measured
        self._failure_stored = False
        self._inputs: Any = None
        self._restarted = False
        self._before: ReadoutRecord | None = None  # of a network that was not the first
        self._first_step: int | None = None  # that was reported
        self._later = 0  # steps after which the present network was begun
        self._baseline = self._begin(inputs, measured=baseline)
        if trial is not None:
            self._trial = trial.number
            self._store_at_once(trial)

    def restart(self, model: nn.Module | Dynamics, inputs: Any = None) -> None:
        """Go on with another, untrained network: that of the next fold in cross-validation.

        Its baseline is measured now, and stored with each of its readouts, so that its displacement
        is its own. It costs a warning where this network cannot be measured.

        Args:
            model: The network, before its first update.
            inputs: What its ``forward`` takes; None for the inputs of the network before.

        Raises:
            ValueError: ``model`` is none; with ``strict`` also where it cannot be measured.

        Example:
            >>> import optuna
            >>> import torch
            >>> import lyap_optuna as lyap
            >>> def objective(trial):
            ...     probe = None
            ...     for fold in range(2):
            ...         model = torch.nn.GRU(input_size=3, hidden_size=8, batch_first=True)
            ...         if probe is None:
            ...             probe = lyap.LyapunovProbe(model, torch.randn(10, 50, 3), trial=trial)
            ...         else:
            ...             probe.restart(model)
            ...         for epoch in range(3):
            ...             loss = 1 / (epoch + 1)  # train the model here, on this fold
            ...             probe.report(trial, loss, fold * 3 + epoch)
            ...     return loss
            >>> study = optuna.create_study()
            >>> study.optimize(objective, n_trials=1)
            >>> readouts = study.trials[0].user_attrs["lyapunov:readouts"]
            >>> [step for step, readout in readouts.items() if "baseline" in readout]
            ['3', '4', '5']
        """
        self._model = _checked_model(model)
        self._restarted, self._untrained, self._later = True, True, -1
        self._failure, self._before = None, None
        readout = self._begin(self._inputs if inputs is None else inputs, measured=True)
        self._before = None if readout is None else _record(readout)

    def _begin(self, inputs: Any, *, measured: bool) -> LyapunovReadout | None:
        """Take the inputs; measure the untrained network, or say why it cannot be measured."""
        try:
            self._inputs = detached(inputs)
            if measured or self._strict:
                readout = self._storable()
                return readout if measured else None
        except Exception as error:
            if self._strict:
                raise
            self._failure = _reason(error)
            self._warn_once(
                "model",
                f"No readouts: {self._failure}{self._about_inputs} The trial goes on without them; "
                "strict=True raises instead.",
            )
        return None

    def measure(self) -> LyapunovReadout:
        """Measure now and store nothing.

        Returns:
            The readout; with ``full_spectrum`` each of its ``layers`` holds its spectrum too.

        Raises:
            ValueError: The model cannot be measured, for example since it has NaN weights.
        """
        readout = lyapunov_readout(
            self._model, self._inputs, layer=self._layer, **self._known(_READOUT_OPTIONS)
        )
        if not self._full_spectrum:
            return readout
        several = len(readout.layers) > 1
        parts = []
        for name, part in readout.layers.items():
            try:
                spectrum = lyapunov_spectrum(
                    self._model,
                    self._inputs,
                    layer=name if several or isinstance(self._layer, list) else self._layer,
                    **self._known(_SPECTRUM_OPTIONS),
                )
            except ValueError as error:
                if self._strict:
                    raise
                self._warn_once(
                    f"spectrum of {name}",
                    f"No whole spectrum{f' of layer {name!r}' if name else ''}: {_reason(error)} "
                    "Maximum and mean exponent are stored.",
                )
                parts.append(part)
            else:
                parts.append(LyapunovReadout.from_spectrum(spectrum).layers[spectrum.layer])
        return LyapunovReadout.from_layers(parts)

    def report(self, trial: BaseTrial, value: float, step: int) -> None:
        """Report a value to the trial, as ``trial.report(value, step)``, and store a readout.

        The value is reported first, whatever becomes of the readout. While ``step`` is at most
        ``last_step`` a readout is measured and stored with the trial; the first call also sees to
        it that the baseline stands at the step before. A step that was reported before keeps its
        first readout.

        Args:
            trial: The running trial.
            value: The intermediate value, for example the validation loss.
            step: The step, counted from wherever the training loop does.

        Raises:
            NotImplementedError: By Optuna, in a multi-objective study; use :meth:`record`.
        """
        first = not self._settled
        begins = first and self._begins(trial, step)  # once it is reported, nobody can tell
        trial.report(value, step)
        step = int(step)  # as Optuna does
        with _Storing(self, step):
            _tell_of_another_pruner(trial)
            if not self._is_of(trial):
                return
            if self._first_step is None:
                self._first_step = step
            if self._later < 0:  # the first report of another network
                self._later = max(step - self._first_step, 0)
            if first:
                self._settle(trial, step, begins)
            elif self._place is not None and trial.number == self._trial:
                self._place = min(self._place, step - 1)
            if self._failure is None and step - self._later <= self._last_step:
                self._measure_and_store(trial, step)
            elif first or self._is_misplaced(trial):
                self._store(trial, step, None)

    def record(self, trial: BaseTrial, step: int) -> None:
        """Store a readout with the trial, at a step of one's own choosing, without a value.

        Works in multi-objective studies too. It stores no baseline: pass ``trial=`` to the
        constructor, or record one before training.

        Args:
            trial: The running trial.
            step: The step.
        """
        step = int(step)
        with _Storing(self, step):
            if not self._is_of(trial):
                return
            if self._stored_at is not None:
                self._settled = True  # a baseline stored at once stays where it is
            if self._failure is None:
                self._measure_and_store(trial, step)
            else:
                write_failure(trial, step, self._failure)

    # The trial ----------------------------------------------------------------------------------

    def _is_of(self, trial: BaseTrial) -> bool:
        """Whether the network of this probe is the one whose readouts ``trial`` holds."""
        anew = self._restarted or not self._untrained
        if self._failure is None and not _claim(trial, self._model, anew=anew):
            self._warn_once(
                f"network {trial.number}",
                # The same words in every trial: Python shows a warning once in each place.
                "The trial holds the readouts of another network: those of this one are not "
                "stored. (In cross-validation, call restart(model) of the first fold's probe. If "
                "it is the same network, loaded from a checkpoint, make its probe with "
                "baseline=False.)",
            )
            return False
        if self._trial is not None and self._trial != trial.number:
            self._warn_once(
                f"trial {trial.number}",
                f"This probe was made for trial {self._trial} and reports to trial {trial.number}, "
                "which gets no baseline. Make a probe in each trial, before training.",
            )
        return True

    def _store_at_once(self, trial: BaseTrial) -> None:
        """Store the baseline before the first report, where it is this network's for certain."""
        with _Storing(self, UNTRAINED_STEP):
            if self._failure is not None:
                write_failure(trial, UNTRAINED_STEP, self._failure)
                self._failure_stored = True
            elif self._is_of(trial) and self._baseline is not None and is_untouched(trial):
                write_readouts(trial, {UNTRAINED_STEP: _record(self._baseline)})
                self._place = self._stored_at = UNTRAINED_STEP

    def _is_misplaced(self, trial: BaseTrial) -> bool:
        return trial.number == self._trial and self._stored_at != self._place

    def _begins(self, trial: BaseTrial, step: Any) -> bool:
        """Whether a first report at ``step`` begins the training, as far as can be told."""
        try:
            step = int(step)
        except (TypeError, ValueError):  # no step: Optuna says so
            return False
        begins = True
        with _Storing(self, step):
            begins = begins_training(trial, step)
        return begins

    def _settle(self, trial: BaseTrial, step: int, begins: bool) -> None:
        """See, at the first report, where the baseline belongs."""
        self._settled = True
        if self._trial is None:
            self._trial = trial.number
        elif self._trial != trial.number:
            return
        if step > self._last_step and self._failure is None:
            self._warn_once(
                "last_step",
                f"last_step={self._last_step} lies before the first reported step, {step}: no "
                "readout is taken while training. Raise last_step.",
            )
        if begins and self._baseline is not None:
            self._place = step - 1
        if self._failure is not None and not self._failure_stored:
            write_failure(trial, step - 1 if begins else step, self._failure)

    # Measuring and storing ----------------------------------------------------------------------

    def _storable(self) -> LyapunovReadout:
        readout = self.measure()
        _record(readout)  # raises where there is nothing to store
        return readout

    def _measure_and_store(self, trial: BaseTrial, step: int) -> None:
        misplaced = self._is_misplaced(trial)
        if not (misplaced and step == self._stored_at) and has_readout(trial, step):
            if misplaced:
                self._store(trial, step, None)
            return
        try:
            readout = self._storable()
        except Exception as error:
            reason = _reason(error)
            kind = "weights" if isinstance(error, NonFiniteParametersError) else "readout"
            self._warn_once(kind, f"No readout at step {step}: {reason} The trial goes on.")
            self._store(trial, step, None)
            write_failure(trial, step, reason)
            return
        self._store(trial, step, readout)

    def _store(self, trial: BaseTrial, step: int, readout: LyapunovReadout | None) -> None:
        baseline = None
        if trial.number == self._trial and self._baseline is not None and self._place is not None:
            baseline = self._place, self._baseline
        misplaced = baseline is not None and baseline[0] != self._stored_at
        write_readouts(
            trial,
            {} if readout is None else {step: self._record(readout)},
            baseline=(baseline[0], _record(baseline[1])) if baseline and misplaced else None,
            step=step,
            moved_from=self._stored_at,
        )
        if baseline is not None:
            self._stored_at = baseline[0]
            if self._spectra_at != self._stored_at:
                self._store_spectra(trial, *baseline, self._spectra_at)
                self._spectra_at = self._stored_at
        if readout is not None:
            self._store_spectra(trial, step, readout)

    def _store_spectra(
        self, trial: BaseTrial, step: int, readout: LyapunovReadout, old: int | None = None
    ) -> None:
        parts = readout.layers.items()
        spectra = {name: part.spectrum for name, part in parts if part.spectrum is not None}
        for sink in self._sinks if spectra else ():
            with _Storing(self, step, sink):
                sink.write(trial, step, spectra, old)

    def _record(self, readout: LyapunovReadout) -> ReadoutRecord:
        record = _record(readout)
        return record if self._before is None else record.since(self._before)

    def _known(self, names: set[str]) -> dict[str, Any]:
        return {name: value for name, value in self._options.items() if name in names}

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, LyapunovWarning, stacklevel=_depth_of_the_caller())


class _Storing:
    """Within it, an error is a warning of the probe: whatever it is, it is not worth the trial."""

    def __init__(self, probe: LyapunovProbe, step: int, sink: SpectrumSink | None = None) -> None:
        self._warn_once = probe._warn_once
        self._kind = f"storing {type(sink).__name__}"
        self._what = f"The {'spectrum' if sink else 'readout'} at step {step}"
        self._besides = "Its readout was. " if sink else ""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        if isinstance(error, Exception):
            why = _why(error)
            self._warn_once(
                self._kind, f"{self._what} was not stored{why} {self._besides}The trial goes on."
            )
        return isinstance(error, Exception)


def _depth_of_the_caller() -> int:
    """Return how many frames up the first one outside this package is, for its caller."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        depth, frame = depth + 1, frame.f_back
    return depth


_PACKAGE = f"{__name__.split('.')[0]}."

_unread: "weakref.WeakKeyDictionary[Any, set[int]]" = weakref.WeakKeyDictionary()


def _tell_of_another_pruner(trial: BaseTrial) -> None:
    """Log once for each study that its pruner reads no exponents; Optuna's default reads none."""
    study = getattr(trial, "study", None)
    pruner = getattr(study, "pruner", None)
    if study is None or "should_prune" in vars(trial):  # freeze_thaw runs it, and asks no pruner
        return
    told = _unread.setdefault(study._storage, set())
    if study._study_id in told:
        return
    told.add(study._study_id)
    while (inner := getattr(pruner, "_wrapped_pruner", None)) is not None:
        pruner = inner
    names = {kind.__name__ for kind in type(pruner).__mro__}
    if not names & {"LyapunovPruner", "NopPruner"}:
        _logger.warning(
            f"The exponents are recorded, but the study's pruner, {type(pruner).__name__}, does "
            "not read them: create the study with pruner=lyap_optuna.LyapunovPruner()."
        )


_networks: "weakref.WeakKeyDictionary[BaseTrial, weakref.ref[Any]]" = weakref.WeakKeyDictionary()


def _claim(trial: BaseTrial, model: nn.Module | Dynamics, *, anew: bool) -> bool:
    """Whether ``model`` is the network that this process measures in ``trial``.

    The first one is, and with ``anew`` the one that takes its place.
    """
    try:
        first = _networks.get(trial)
        if first is None or anew:
            _networks[trial] = weakref.ref(model)
            return True
    except TypeError:  # a trial that is no key, as a FrozenTrial is none
        return True
    return (known := first()) is not None and (_holds(known, model) or _holds(model, known))


def _holds(model: nn.Module | Dynamics, other: nn.Module | Dynamics) -> bool:
    modules = model.modules() if isinstance(model, nn.Module) else (model,)
    return any(sub is other for sub in modules)


# Options ------------------------------------------------------------------------------------------


def _checked_options(options: dict[str, Any], full_spectrum: bool) -> dict[str, Any]:
    """Check what is wrong whatever the model."""
    known = _READOUT_OPTIONS | (_SPECTRUM_OPTIONS if full_spectrum else frozenset())
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"Unknown option(s) {unknown}: a probe takes {sorted(known)} besides its own."
        )
    if options.get("state", STATES[0]) not in STATES:
        raise ValueError(f"state must be one of {STATES}, but got {options['state']!r}.")
    checked = dict(options)
    for name, least in (("k", 1), ("warmup", 0), ("qr_every", 1), ("seed", None)):
        if name not in options or (name == "warmup" and options[name] is None):
            continue
        checked[name] = integer(name, options[name])
        if least is not None and checked[name] < least:
            raise ValueError(f"{name} must be at least {least}, but got {options[name]!r}.")
    for name in ("mean_tolerance", "rtol"):
        if name in options and not (_is_number(options[name]) and options[name] > 0):
            raise ValueError(f"{name} must be a positive number, but got {options[name]!r}.")
    return checked


def _checked_model(model: Any) -> nn.Module | Dynamics:
    if isinstance(model, (nn.Module, Dynamics)):
        return model
    raise ValueError(f"model must be an nn.Module or a RecurrentDynamics, but got {_kind(model)}.")


def _checked_layer(layer: Any) -> str | list[str] | nn.Module | None:
    if layer is None or isinstance(layer, (str, nn.Module)):
        return layer
    if isinstance(layer, (list, tuple)) and layer and all(isinstance(name, str) for name in layer):
        return list(layer)
    raise ValueError(
        "layer must be the name of a layer, a list of names, the layer itself, or None for all, "
        f"but got {layer!r:.80}."
    )


def _checked_sinks(sink: Any) -> list[SpectrumSink]:
    sinks = list(sink) if isinstance(sink, (list, tuple)) else [sink or DatabaseSink()]
    wrong = [_kind(one) for one in sinks if not isinstance(one, SpectrumSink)]
    if wrong or not sinks:
        raise ValueError(
            "sink must be a DatabaseSink, an ArtifactSink, another SpectrumSink, or a list of "
            f"them, but got {', '.join(wrong) or 'an empty list'}."
        )
    return sinks


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


# What was measured --------------------------------------------------------------------------------


def _record(readout: LyapunovReadout) -> ReadoutRecord:
    layers = {name: _numbers(part) for name, part in readout.layers.items()}
    if len(layers) == 1:
        return next(iter(layers.values()))
    return replace(_numbers(replace(readout, spectrum=None)), layers=layers)


def _numbers(readout: LyapunovReadout) -> ReadoutRecord:
    quantiles = clipped = None
    if readout.spectrum is not None:
        quantiles = tuple(float(q) for q in readout.spectrum.quantiles(N_QUANTILES))
        clipped = float((readout.spectrum.exponents < FLOOR).double().mean())
    return ReadoutRecord.from_measurement(
        max=readout.max,
        mean=readout.mean,
        max_stderr=readout.max_stderr,
        mean_stderr=readout.mean_stderr,
        quantiles=quantiles,
        clipped_fraction=clipped,
        state=readout.state,
    )


# Words --------------------------------------------------------------------------------------------


def _kind(value: Any) -> str:
    return type(value).__name__


def _reason(error: Exception) -> str:
    """Return, as a sentence, why nothing could be measured."""
    _logger.debug(
        "Measuring failed.\n%s", without_passwords("".join(traceback.format_exception(error)))
    )
    text = " ".join(without_passwords(str(error)).split())
    if len(text) > _MAX_REASON:
        text = f"{text[:_MAX_REASON]}..."
    if not isinstance(error, ValueError) or not text:
        return f"Measuring failed ({type(error).__name__}{text and f': {text}'})."
    return text if text.endswith((".", "!", "?")) else f"{text}."


_MAX_REASON = 400


def _why(error: Exception) -> str:
    """Return the end of a sentence: why a storage failed, by its own words and no password."""
    trace = "".join(traceback.format_exception(error))
    _logger.debug("Storing failed.\n%s", without_passwords(trace))
    if isinstance(error, SpectraError):
        return f": {error}"
    for e in (error, error.__cause__):
        said = getattr(e, "orig", None)  # of SQLAlchemy's errors
        if said is not None and (lines := str(said).strip().splitlines()):
            return f" ({type(error).__name__}: {without_passwords(lines[0])})."
    return f" ({type(error).__name__})."


__all__ = ["LyapunovProbe"]
