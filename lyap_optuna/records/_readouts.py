"""The series of readouts of a trial: how it is written, read back and judged after a retry."""

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import BaseTrial, FrozenTrial

from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.dynamics import STATES
from lyap_optuna.records import _json, _keys

_MAX_ENTRY = _json.MAX_BYTES // 8
"""Bytes that one entry may take with its layers, so that eight steps are always kept."""

_MAX_FAILURES = 32  # one repeated reason is enough; each has room for a sentence
_MAX_REASON = _json.MAX_BYTES // _MAX_FAILURES - 32  # bytes, beside its step


@dataclass(frozen=True)
class ReadoutRecord:
    """A readout as it is stored with a trial.

    Args:
        max: Maximum exponent, nats/step, finite (floored at -16).
        mean: Mean exponent, nats/step, finite (floored at -16); None where it cannot be had.
        max_stderr: Standard error of ``max`` over the inputs; None for a single input.
        mean_stderr: Standard error of ``mean`` over the inputs; None for a single input.
        quantiles: Quantiles of the whole spectrum at equally spaced probabilities from 0 to 1
            (32 of them when the probe wrote them), ascending; None where it was not measured, and
            where several layers were: each of those has its own.
        clipped_fraction: Fraction of the spectrum that lay below the floor; None where the
            whole spectrum was not measured.
        floored: Whether ``max`` or ``mean`` lay below the floor.
        state: What was followed, ``"hidden"`` or ``"full"``.
        layers: Where several layers were measured, their records by name; empty for one layer.
        baseline: Maximum and mean exponent of this network before it was trained, where it is not
            the trial's first (:meth:`~lyap_optuna.LyapunovProbe.restart`); None elsewhere.
    """

    max: float
    mean: float | None
    max_stderr: float | None = None
    mean_stderr: float | None = None
    quantiles: tuple[float, ...] | None = None
    clipped_fraction: float | None = None
    floored: bool = False
    state: str = "hidden"
    layers: Mapping[str, "ReadoutRecord"] = field(default_factory=dict)
    baseline: "ReadoutRecord | None" = None

    def since(self, baseline: "ReadoutRecord") -> "ReadoutRecord":
        """Return the record with a baseline of its own, and so each of its layers."""
        layers = {
            name: layer.since(baseline.layers[name]) if name in baseline.layers else layer
            for name, layer in self.layers.items()
        }
        own = ReadoutRecord(max=baseline.max, mean=baseline.mean, state=baseline.state)
        return replace(self, layers=layers, baseline=own)

    @classmethod
    def from_measurement(
        cls,
        *,
        max: float,
        mean: float | None,
        max_stderr: float | None,
        mean_stderr: float | None,
        quantiles: tuple[float, ...] | None = None,
        clipped_fraction: float | None = None,
        state: str = "hidden",
    ) -> "ReadoutRecord":
        """Floor and round what was measured, so that it can be stored.

        Raises:
            ValueError: ``max`` or ``mean`` is NaN or plus infinity.
        """
        for name, value in (("max", max), ("mean", mean)):
            if value is not None and (math.isnan(value) or value == math.inf):
                raise ValueError(f"The {name} exponent is {value}: there is no readout to store.")

        def stored(value: float) -> float:
            # An exact 0.0 stays 0.0; rounding cannot carry a value below the floor.
            return float(f"{_max(value, _json.FLOOR):.6g}")

        return cls(
            max=stored(max),
            mean=None if mean is None else stored(mean),
            max_stderr=_json.rounded(max_stderr),
            mean_stderr=None if mean is None else _json.rounded(mean_stderr),
            quantiles=None if quantiles is None else tuple(stored(q) for q in quantiles),
            clipped_fraction=_json.rounded(clipped_fraction),
            floored=min(max, max if mean is None else mean) < _json.FLOOR,
            state=state,
        )

    def spectra(self) -> dict[str, tuple[float, ...]]:
        """Return the quantiles of each layer whose whole spectrum was measured, by its name.

        The name is empty where one layer was measured.
        """
        parts = self.layers if self.layers else {"": self}
        return {name: part.quantiles for name, part in parts.items() if part.quantiles}

    def to_json(self) -> dict[str, Any]:
        """Return the object that is stored for one step, without layers that make it too large.

        First the layers' quantiles are left out, then the layers.
        """
        stored = self._numbers()
        stored["state"] = self.state
        if self.layers:
            layers = {str(name): layer._numbers() for name, layer in self.layers.items()}
            stored["layers"] = layers
            if _json.size(stored) > _MAX_ENTRY:
                for layer in layers.values():
                    layer.pop("quantiles", None)
            if _json.size(stored) > _MAX_ENTRY:
                del stored["layers"]
        return stored

    def _numbers(self) -> dict[str, Any]:
        stored: dict[str, Any] = {
            "max": self.max,
            "mean": self.mean,
            "max_stderr": self.max_stderr,
            "mean_stderr": self.mean_stderr,
        }
        if self.quantiles is not None:
            stored["quantiles"] = list(self.quantiles)
        if self.clipped_fraction is not None:
            stored["clipped_fraction"] = self.clipped_fraction
        if self.floored:
            stored["floored"] = True
        if self.baseline is not None:
            stored["baseline"] = {"max": self.baseline.max, "mean": self.baseline.mean}
        return stored

    @classmethod
    def from_json(cls, stored: object) -> "ReadoutRecord":
        """Validate one stored object.

        An entry that does not say its state is of ``"hidden"``. Layers and baselines that do not
        validate are left out.

        Raises:
            ValueError: It is not an object with a finite ``max``, its ``mean`` is there and not
                finite, or its ``state`` is no such state.
        """
        if not isinstance(stored, Mapping):
            raise ValueError(f"a readout must be an object, not {stored!r:.80}")
        largest = _json.finite(stored.get("max"))
        mean = _json.finite(stored.get("mean"))
        if largest is None or (mean is None and stored.get("mean") is not None):
            raise ValueError(f"max and mean must be finite numbers, in {dict(stored)!r:.200}")
        state = stored.get("state", "hidden")
        if state not in STATES:
            raise ValueError(f"state must be one of {STATES}, not {state!r:.40}")
        quantiles = stored.get("quantiles")
        if isinstance(quantiles, (list, tuple)):
            checked = [number for q in quantiles if (number := _json.finite(q)) is not None]
            complete = bool(checked) and len(checked) == len(quantiles)
            quantiles = tuple(checked) if complete else None
        else:
            quantiles = None
        layers: dict[str, ReadoutRecord] = {}
        found = stored.get("layers")
        for name, layer in found.items() if isinstance(found, Mapping) else ():
            if isinstance(layer, Mapping):
                layer = {key: value for key, value in layer.items() if key != "layers"}
            with contextlib.suppress(ValueError):
                layers[str(name)] = replace(cls.from_json(layer), state=state)
        before: ReadoutRecord | None = None
        if isinstance(own := stored.get("baseline"), Mapping):
            own = {"max": own.get("max"), "mean": own.get("mean"), "state": state}
            with contextlib.suppress(ValueError):
                before = cls.from_json(own)
        return cls(
            max=largest,
            mean=mean,
            max_stderr=_json.finite(stored.get("max_stderr")),
            mean_stderr=_json.finite(stored.get("mean_stderr")),
            quantiles=quantiles,
            clipped_fraction=_json.finite(stored.get("clipped_fraction")),
            floored=stored.get("floored") is True,
            state=state,
            layers=layers,
            baseline=before,
        )


_max = max


def read_readouts(trial: FrozenTrial) -> dict[int, ReadoutRecord]:
    """Return the readouts that count for ``trial``, by ascending step.

    Whatever wrote them counts: the probe, a script, an import. What does not validate is left
    out with a :class:`~lyap_optuna.LyapunovWarning`. In a retried trial
    (:class:`optuna.storages.RetryHeartbeatStaleTrialCallback` copies every attribute), readouts
    of the dead attempt count only as the baseline and at steps at which this trial has a
    reported value. A trial that was copied from another study, where it had another number, keeps
    them all.

    Args:
        trial: Any trial of any storage.

    Returns:
        A dict from step to record; empty where there is none.

    Example:
        >>> import optuna
        >>> from lyap_optuna.records import read_readouts
        >>> trial = optuna.create_trial(
        ...     value=0.1, user_attrs={"lyapunov:readouts": {"0": {"max": -0.1, "mean": -0.5}}}
        ... )
        >>> read_readouts(trial)[0].mean
        -0.5
    """
    return _counting(
        _parse(trial.user_attrs.get(_keys.READOUTS), trial.number),
        own=is_own(trial, trial.user_attrs.get(_keys.TRIAL)),
        reported=trial.intermediate_values.keys(),
    )


def is_own(trial: BaseTrial | FrozenTrial, number: object) -> bool:
    """Whether what is marked with a trial's ``number`` is of ``trial``, not of a dead attempt.

    A finished trial that carries another number than its own was copied from another study,
    unless it is a retry of just that one.
    """
    if number is None or number == trial.number:
        return True
    if not isinstance(trial, FrozenTrial) or not trial.state.is_finished():
        return False
    history = trial.system_attrs.get("retry_history")
    attempts = [trial.system_attrs.get("failed_trial"), *(history or [])]
    return number not in attempts + [trial.user_attrs.get(k) for k in _keys.ATTEMPTS]


def baseline_step(trial: FrozenTrial, readouts: Mapping[int, ReadoutRecord]) -> int | None:
    """Return the step of the readout taken before training, or None.

    Optuna's steps begin at 0: a readout at a negative step is the baseline. Where there is none, it
    is the last readout before the first reported step.
    """
    first_reported = min(trial.intermediate_values, default=0)
    before = [step for step in readouts if step < first_reported]
    return max([step for step in before if step < 0] or before, default=None)


def prevailing_state(states: Iterable[str]) -> str | None:
    """Return the state that most readouts are of, ``"full"`` where it is a tie; None for none."""
    counts = Counter(states)
    return max(sorted(counts), key=lambda state: (counts[state], state == "full"), default=None)


def write_readouts(
    trial: BaseTrial,
    new: Mapping[int, ReadoutRecord],
    *,
    baseline: tuple[int, ReadoutRecord] | None = None,
    step: int | None = None,
    moved_from: int | None = None,
) -> bool:
    """Add readouts to the series of ``trial``, with at most four attribute writes.

    The series is read back from the storage first, because another process may have extended it.
    A step that has a readout of this trial keeps it. Readouts of a dead attempt (see
    :func:`read_readouts`) are dropped, but for those that count and lie before what is written:
    at ``step`` and after it the network is this attempt's.

    Args:
        trial: The running trial; a :class:`optuna.trial.FixedTrial` works too.
        new: Readouts by step; empty where a readout failed.
        baseline: Step and readout before training. It is stored unless the trial already has an
            earlier readout: its own, an imported one, or, when training resumed from a
            checkpoint, that of the attempt that began it.
        step: The step at which training stands; by default that of the first new readout.
        moved_from: The step at which this trial's baseline was stored before, if it was.

    Returns:
        Whether anything was written.
    """
    stored = stored_trial(trial)
    owner = stored.user_attrs.get(_keys.TRIAL)
    own = is_own(stored, owner)
    reported = getattr(stored, "intermediate_values", {}).keys()
    found = _parse(stored.user_attrs.get(_keys.READOUTS), trial.number)
    series = _counting(found, own=own, reported=reported)
    if not own:
        now = min(new, default=step) if step is None else step
        if now is not None:
            # A readout right before it that has no value is the baseline of another start.
            begun = {s for s in series if s >= now or (s == now - 1 and s not in reported)}
            if max(found, default=0) < 0:
                begun = set(series)  # it died before its first report: nothing can be resumed
            series = {s: r for s, r in series.items() if s not in begun}
    before = dict(series)
    if own and baseline is not None and moved_from in series and baseline[0] not in series:
        series[baseline[0]] = series.pop(moved_from)
    if baseline is not None and not any(s <= baseline[0] for s in series):
        series[baseline[0]] = baseline[1]
    for s, record in new.items():
        series.setdefault(s, record)
    if series == before and (own or not found):
        return False
    series = _thinned(dict(sorted(series.items())))
    # The mark comes after the series: between the two writes, what is new still counts.
    trial.set_user_attr(_keys.READOUTS, {str(s): r.to_json() for s, r in series.items()})
    if owner != trial.number:
        trial.set_user_attr(_keys.TRIAL, trial.number)
    if series:
        latest = series.get(max(new, default=max(series)), series[max(series)])
        trial.set_user_attr(_keys.MAX, latest.max)
        if latest.mean is not None:
            trial.set_user_attr(_keys.MEAN, latest.mean)
    return True


def has_readout(trial: BaseTrial, step: int) -> bool:
    """Whether ``trial`` has a readout at ``step`` that it measured itself or that was imported."""
    attrs = stored_trial(trial).user_attrs
    series = attrs.get(_keys.READOUTS)
    own = is_own(trial, attrs.get(_keys.TRIAL))
    return own and isinstance(series, Mapping) and str(step) in series


def is_untouched(trial: BaseTrial) -> bool:
    """Whether ``trial`` has neither a reported value nor a readout, of whichever attempt."""
    stored = stored_trial(trial)
    return not getattr(stored, "intermediate_values", {}) and not stored.user_attrs.get(
        _keys.READOUTS
    )


def begins_training(trial: BaseTrial, step: int) -> bool:
    """Whether a report at ``step``, still to come, is a training's first, or the first again.

    Else training resumed from a checkpoint.
    """
    reported = getattr(stored_trial(trial), "intermediate_values", {})
    return not reported or step == min(reported)


def write_failure(trial: BaseTrial, step: int, reason: str) -> None:
    """Record why there is no readout at ``step`` (the last 32 such facts are kept, cut to fit)."""
    failures = stored_trial(trial).user_attrs.get(_keys.FAILURES)
    kept = dict(failures) if isinstance(failures, dict) else {}
    kept[str(step)] = _json.cut(reason[:500], _MAX_REASON)
    kept = dict(list(kept.items())[-_MAX_FAILURES:])
    while _json.size(kept) > _json.MAX_BYTES:  # steps may have any number of digits
        del kept[next(iter(kept))]
    trial.set_user_attr(_keys.FAILURES, kept)


def stored_trial(trial: BaseTrial) -> BaseTrial | FrozenTrial:
    """Return ``trial`` as its storage holds it now; the trial itself where it has no storage."""
    storage = getattr(trial, "storage", None)
    trial_id = getattr(trial, "_trial_id", None)
    if isinstance(storage, BaseStorage) and isinstance(trial_id, int):
        return storage.get_trial(trial_id)
    return trial


def _parse(stored: object, number: int) -> dict[int, ReadoutRecord]:
    if stored is None:
        return {}
    series: dict[int, ReadoutRecord] = {}
    problems: list[str] = []
    if not isinstance(stored, Mapping):
        problems.append(f"it must be an object from step to readout, not {stored!r:.80}")
        stored = {}
    for key, value in stored.items():
        try:
            series[int(key)] = ReadoutRecord.from_json(value)
        except (TypeError, ValueError) as error:
            problems.append(f"step {key!r:.40}: {error}")
    if problems:
        warnings.warn(
            f"Ignored {len(problems)} invalid readout(s) in {_keys.READOUTS!r} of trial {number}: "
            f"{problems[0]}.",
            LyapunovWarning,
            stacklevel=3,
        )
    return dict(sorted(series.items()))


def _counting(
    series: dict[int, ReadoutRecord], *, own: bool, reported: Any
) -> dict[int, ReadoutRecord]:
    if own or not series:
        return series
    kept = {step: record for step, record in series.items() if step in reported}
    lowest = min(series)
    if not reported or lowest < min(reported):
        kept = {lowest: series[lowest]} | kept
    return kept


def _thinned(series: dict[int, ReadoutRecord]) -> dict[int, ReadoutRecord]:
    # Old steps go first: every second one of the older half, never the lowest (the baseline).
    while (
        len(series) > 2
        and _json.size({str(s): r.to_json() for s, r in series.items()}) > _json.MAX_BYTES
    ):
        steps = sorted(series)
        for step in steps[1 : max(2, len(steps) // 2) : 2]:
            del series[step]
    return series
