"""The probe: measures exponents while a trial trains, and leaves no trace in the training."""

import copy
import traceback
import warnings
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optuna.trial import BaseTrial
from torch import Tensor, nn

from lyap_optuna._logging import get_logger, without_passwords
from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.dynamics import Dynamics, NonFiniteParametersError, find_layers, unwrapped
from lyap_optuna.records import (
    FLOOR,
    NoDatabaseError,
    ReadoutRecord,
    SpectraError,
    begins_training,
    checked_url,
    has_readout,
    upload_spectrum,
    write_failure,
    write_readouts,
    write_spectrum,
)
from lyap_optuna.spectrum import LyapunovReadout, lyapunov_readout, lyapunov_spectrum
from lyap_optuna.spectrum._schedule import integer

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

_logger = get_logger(__name__)

N_QUANTILES = 32

_SPECTRUM_OPTIONS = frozenset({"state", "warmup", "initial_state", "layer", "qr_every", "rtol"})
_READOUT_OPTIONS = frozenset(
    {"state", "warmup", "initial_state", "layer", "k", "mean_tolerance", "seed"}
)


class LyapunovProbe:
    """Measures a network's Lyapunov exponents in the first steps of a trial and stores them.

    Training with a probe is bit-identical to training without it: what reaches the recurrent
    layer is captured on a copy of the model in eval mode, random numbers come from a generator of
    the probe's own, and no global setting is touched. A readout that fails for any reason costs a
    :class:`~lyap_optuna.LyapunovWarning`, never the trial.

    The *baseline*, the readout before training, is measured by the constructor: make the probe
    after the model and before its first update. The displacement of the exponents since then is
    often a better early predictor than the exponents themselves.

    Args:
        model: The model, also behind DistributedDataParallel or ``torch.compile``; or a
            :class:`~lyap_optuna.RecurrentDynamics`.
        batch: What the model's ``forward`` takes, as for :func:`~lyap_optuna.lyapunov_spectrum`:
            a fixed batch of inputs without targets; ten sequences serve well. Copied.
        module: The recurrent layer to measure, by name or itself, where the model has several.
        last_step: Readouts are taken by :meth:`report` up to this step.
        full_spectrum: Measure the whole spectrum and store 32 of its quantiles too, and all of it
            in the study's relational database (:func:`~lyap_optuna.load_spectra` reads it back).
            A study that is kept elsewhere says so once, in the log.
        baseline: Measure before training.
        spectra_url: The URL of a database for whole spectra, where the study's storage is none (a
            journal file, a gRPC proxy, memory) or another is preferred.
        artifact_store: An artifact store (:mod:`optuna.artifacts`), into which each whole spectrum
            goes as a file of the trial too, while it runs; optuna-dashboard opens it there.
        **readout_options: Passed on to :func:`~lyap_optuna.lyapunov_readout` (with
            ``full_spectrum`` to :func:`~lyap_optuna.lyapunov_spectrum`): ``state``, ``k``,
            ``warmup``, ``mean_tolerance``, ``seed``, ``initial_state``.

    Raises:
        ValueError: An argument is bad, or the batch does not fit the model. NaN or infinite
            weights are a warning: there is no readout, and the trial goes on.

    Example:
        >>> import optuna
        >>> import torch
        >>> import lyap_optuna as lyap
        >>> def objective(trial):
        ...     model = torch.nn.GRU(input_size=3, hidden_size=8, batch_first=True)
        ...     probe = lyap.LyapunovProbe(model, torch.randn(10, 50, 3))
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

    def __init__(
        self,
        model: nn.Module | Dynamics,
        batch: Any,
        *,
        module: str | nn.Module | None = None,
        last_step: int = 5,
        full_spectrum: bool = False,
        baseline: bool = True,
        spectra_url: str | None = None,
        artifact_store: "ArtifactStore | None" = None,
        **readout_options: Any,
    ) -> None:
        last_step = integer("last_step", last_step)
        known = _READOUT_OPTIONS | (_SPECTRUM_OPTIONS if full_spectrum else frozenset())
        unknown = sorted(set(readout_options) - known)
        if unknown:
            raise ValueError(
                f"Unknown option(s) {unknown}: a probe takes {sorted(known)} besides its own."
            )
        if module is not None and "layer" in readout_options:
            raise ValueError("Name the recurrent layer once: by module=, not by layer= too.")
        if spectra_url is not None and not full_spectrum:
            raise ValueError("spectra_url is for whole spectra: pass full_spectrum=True too.")
        if artifact_store is not None and not full_spectrum:
            raise ValueError("artifact_store is for whole spectra: pass full_spectrum=True too.")
        self._artifact_store = artifact_store
        self._spectra_url = None if spectra_url is None else checked_url(spectra_url)
        self._model = model
        self._batch = _detached(batch)
        self._last_step = last_step
        self._full_spectrum = full_spectrum
        self._options = dict(readout_options)
        if module is not None:
            self._options["layer"] = module
        self._warned: set[str] = set()
        self._trial: int | None = None  # number of the trial that this probe reported to
        self._pending: tuple[int, LyapunovReadout] | None = None  # a baseline not stored yet
        self._baseline: LyapunovReadout | None = None
        self._baseline_failure: str | None = None
        try:
            if full_spectrum or not baseline:
                # Bad arguments are found now, not in the middle of training.
                lyapunov_readout(self._model, self._batch, **self._known(_READOUT_OPTIONS))
            if baseline:
                self._baseline = self.measure()
        except NonFiniteParametersError as error:
            self._baseline_failure = str(error)
            self._warn_once("weights", f"No baseline: {error} The trial goes on.")

    def measure(self) -> LyapunovReadout:
        """Measure now and store nothing.

        Returns:
            The readout; with ``full_spectrum`` it holds the spectrum too.

        Raises:
            ValueError: The network has NaN or infinite weights, or the batch does not fit it.
        """
        if not self._full_spectrum:
            return lyapunov_readout(self._model, self._batch, **self._known(_READOUT_OPTIONS))
        return LyapunovReadout.from_spectrum(
            lyapunov_spectrum(self._model, self._batch, **self._known(_SPECTRUM_OPTIONS))
        )

    def report(self, trial: BaseTrial, value: float, step: int) -> None:
        """Report a value to the trial, as ``trial.report(value, step)``, and store a readout.

        The value is reported first, whatever becomes of the readout. While ``step`` is at most
        ``last_step`` a readout is measured and stored with the trial; the first call stores the
        baseline too, at the step before. A step that was reported before keeps its first readout.

        Args:
            trial: The running trial.
            value: The intermediate value, for example the validation loss.
            step: The step, counted from wherever the training loop does.

        Raises:
            NotImplementedError: By Optuna, in a multi-objective study; use :meth:`record`.
        """
        trial.report(value, step)
        step = int(step)  # as Optuna does
        if self._trial is None:
            self._trial = trial.number
            self._begin(trial, step)
        elif self._trial != trial.number:
            self._warn_once(
                f"trial {trial.number}",
                f"This probe was made for trial {self._trial} and reports to trial {trial.number}, "
                "which gets no baseline. Make a probe in each trial, before training.",
            )
        if step <= self._last_step:
            self._measure_and_store(trial, step)
        elif self._pending is not None:
            self._store(trial, step, None)

    def record(self, trial: BaseTrial, step: int) -> None:
        """Store a readout with the trial, at a step of one's own choosing, without a value.

        Works in multi-objective studies too. No baseline is stored: record one before training.

        Args:
            trial: The running trial.
            step: The step.
        """
        self._measure_and_store(trial, int(step))

    def _begin(self, trial: BaseTrial, step: int) -> None:
        """Note, at the first report, what is to be stored with it."""
        if step > self._last_step:
            self._warn_once(
                "last_step",
                f"last_step={self._last_step} lies before the first reported step, {step}: no "
                "readout is taken while training. Raise last_step.",
            )
        try:
            begins = begins_training(trial, step)
            if begins and self._baseline_failure is not None:
                write_failure(trial, step - 1, self._baseline_failure)
        except Exception as error:
            begins = True
            self._warn_storage(step, error)
        if begins and self._baseline is not None:
            self._pending = (step - 1, self._baseline)

    def _measure_and_store(self, trial: BaseTrial, step: int) -> None:
        try:
            if has_readout(trial, step):
                return
            readout = self.measure()
        except Exception as error:
            reason = without_passwords(str(error)) or type(error).__name__
            kind = "weights" if isinstance(error, NonFiniteParametersError) else "readout"
            self._warn_once(kind, f"No readout at step {step}: {reason} The trial goes on.")
            self._store(trial, step, None, failure=reason)
            return
        self._store(trial, step, readout)

    def _store(
        self,
        trial: BaseTrial,
        step: int,
        readout: LyapunovReadout | None,
        *,
        failure: str | None = None,
    ) -> None:
        pending = self._pending if trial.number == self._trial else None
        try:
            new = {} if readout is None else {step: _record(readout)}
            baseline = None if pending is None else (pending[0], _record(pending[1]))
            write_readouts(trial, new, baseline=baseline, step=step)
            if failure is not None:
                write_failure(trial, step, failure)
        except Exception as error:
            self._warn_storage(step, error)
            return
        if pending is not None:
            self._pending = None
            self._store_spectrum(trial, *pending)
            self._upload_spectrum(trial, *pending)
        if readout is not None:
            self._store_spectrum(trial, step, readout)
            self._upload_spectrum(trial, step, readout)

    def _warn_storage(self, step: int, error: Exception) -> None:
        self._warn_once(
            "storage",
            f"The readout at step {step} was not stored ({_reason(error)}). The trial goes on.",
        )

    def _store_spectrum(self, trial: BaseTrial, step: int, readout: LyapunovReadout) -> None:
        if readout.spectrum is None:
            return
        try:
            write_spectrum(
                trial,
                step,
                module=_layer_name(self._model, self._options.get("layer")),
                state=self._options.get("state", "hidden"),
                exponents=readout.spectrum.exponents.tolist(),
                std=readout.spectrum.std.tolist(),
                state_size=readout.spectrum.state_size,
                inputs=len(readout.spectrum.per_input),
                spectra_url=self._spectra_url,
            )
        except NoDatabaseError as error:
            # Not a warning: 32 quantiles of the spectrum are stored, and nobody asked for more.
            _tell_once(trial, f"{error} 32 quantiles of each spectrum are stored with its trial.")
        except SpectraError as error:
            self._warn_once("spectra", f"{error} The readouts are stored; the trial goes on.")
        except Exception as error:
            self._warn_once(
                "spectra",
                f"The spectrum at step {step} was not stored ({_reason(error)}); its readout was. "
                "The trial goes on.",
            )

    def _upload_spectrum(self, trial: BaseTrial, step: int, readout: LyapunovReadout) -> None:
        if self._artifact_store is None or readout.spectrum is None:
            return
        try:
            upload_spectrum(
                self._artifact_store,
                trial,
                step,
                exponents=readout.spectrum.exponents.tolist(),
                std=readout.spectrum.std.tolist(),
            )
        except Exception as error:
            self._warn_once(
                "artifact",
                f"The spectrum at step {step} was not uploaded ({_reason(error)}); its readout was "
                "stored. The trial goes on.",
            )

    def _known(self, names: frozenset[str]) -> dict[str, Any]:
        return {name: value for name, value in self._options.items() if name in names}

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, LyapunovWarning, stacklevel=4)


_told: "weakref.WeakSet[Any]" = weakref.WeakSet()


def _tell_once(trial: BaseTrial, message: str) -> None:
    """Log ``message`` once for the storage of ``trial``, however many probes a study makes."""
    storage = getattr(getattr(trial, "_delegate", trial), "storage", None)
    if storage not in _told:
        _told.add(storage)
        _logger.info(message)


def _record(readout: LyapunovReadout) -> ReadoutRecord:
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
    )


def _reason(error: Exception) -> str:
    """Return why a storage failed; only what the database itself said, and no password."""
    trace = "".join(traceback.format_exception(error))
    _logger.debug("Storing failed.\n%s", without_passwords(trace))
    for e in (error, error.__cause__):
        said = getattr(e, "orig", None)  # of SQLAlchemy's errors
        if said is not None and (lines := str(said).strip().splitlines()):
            return f"{type(error).__name__}: {without_passwords(lines[0])}"
    return type(error).__name__


def _layer_name(model: nn.Module | Dynamics, layer: str | nn.Module | None) -> str:
    if not isinstance(model, nn.Module):
        return ""
    plain = unwrapped(model)
    return next(iter(find_layers(plain, layer)))


def _detached(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.detach().clone()
    if isinstance(batch, nn.utils.rnn.PackedSequence):
        return batch
    if isinstance(batch, (tuple, list)):
        return tuple(_detached(item) for item in batch)
    if isinstance(batch, Mapping):
        return {key: _detached(item) for key, item in batch.items()}
    return copy.copy(batch)


__all__ = ["LyapunovProbe"]
