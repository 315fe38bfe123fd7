"""The series of readouts of a trial: how it is written, read back and judged after a retry."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import BaseTrial, FrozenTrial

from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.records import _json, _keys


@dataclass(frozen=True)
class ReadoutRecord:
    """A readout as it is stored with a trial.

    Args:
        max: Maximum exponent, nats/step, finite (floored at -16).
        mean: Mean exponent, nats/step, finite (floored at -16).
        max_stderr: Standard error of ``max`` over the inputs; None for a single input.
        mean_stderr: Standard error of ``mean`` over the inputs; None for a single input.
        quantiles: Quantiles of the whole spectrum at equally spaced probabilities from 0 to 1
            (32 of them when the probe wrote them), ascending; None where it was not measured.
        clipped_fraction: Fraction of the spectrum that lay below the floor; None where the
            whole spectrum was not measured.
        floored: Whether ``max`` or ``mean`` lay below the floor.
    """

    max: float
    mean: float
    max_stderr: float | None = None
    mean_stderr: float | None = None
    quantiles: tuple[float, ...] | None = None
    clipped_fraction: float | None = None
    floored: bool = False

    @classmethod
    def from_measurement(
        cls,
        *,
        max: float,
        mean: float,
        max_stderr: float | None,
        mean_stderr: float | None,
        quantiles: tuple[float, ...] | None = None,
        clipped_fraction: float | None = None,
    ) -> "ReadoutRecord":
        """Floor and round what was measured, so that it can be stored.

        Raises:
            ValueError: ``max`` or ``mean`` is NaN or plus infinity.
        """
        for name, value in (("max", max), ("mean", mean)):
            if math.isnan(value) or value == math.inf:
                raise ValueError(f"The {name} exponent is {value}: there is no readout to store.")

        def stored(value: float) -> float:
            # An exact 0.0 stays 0.0; rounding cannot carry a value below the floor.
            return float(f"{_max(value, _json.FLOOR):.6g}")

        return cls(
            max=stored(max),
            mean=stored(mean),
            max_stderr=_json.rounded(max_stderr),
            mean_stderr=_json.rounded(mean_stderr),
            quantiles=None if quantiles is None else tuple(stored(q) for q in quantiles),
            clipped_fraction=_json.rounded(clipped_fraction),
            floored=min(max, mean) < _json.FLOOR,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object that is stored for one step."""
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
        return stored

    @classmethod
    def from_json(cls, stored: object) -> "ReadoutRecord":
        """Validate one stored object.

        Raises:
            ValueError: It is not an object with finite ``max`` and ``mean``.
        """
        if not isinstance(stored, Mapping):
            raise ValueError(f"a readout must be an object, not {stored!r:.80}")
        numbers = {name: _json.finite(stored.get(name)) for name in ("max", "mean")}
        if numbers["max"] is None or numbers["mean"] is None:
            raise ValueError(f"max and mean must be finite numbers, in {dict(stored)!r:.200}")
        quantiles = stored.get("quantiles")
        if isinstance(quantiles, (list, tuple)):
            checked = [number for q in quantiles if (number := _json.finite(q)) is not None]
            complete = bool(checked) and len(checked) == len(quantiles)
            quantiles = tuple(checked) if complete else None
        else:
            quantiles = None
        return cls(
            max=numbers["max"],
            mean=numbers["mean"],
            max_stderr=_json.finite(stored.get("max_stderr")),
            mean_stderr=_json.finite(stored.get("mean_stderr")),
            quantiles=quantiles,
            clipped_fraction=_json.finite(stored.get("clipped_fraction")),
            floored=stored.get("floored") is True,
        )


_max = max


def read_readouts(trial: FrozenTrial) -> dict[int, ReadoutRecord]:
    """Return the readouts that count for ``trial``, by ascending step.

    Whatever wrote them counts: the probe, a script, an import. What does not validate is left
    out with a :class:`~lyap_optuna.LyapunovWarning`. In a retried trial
    (:class:`optuna.storages.RetryHeartbeatStaleTrialCallback` copies every attribute), readouts
    of the dead attempt count only as the baseline and at steps at which this trial has a
    reported value.

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
    owner = trial.user_attrs.get(_keys.TRIAL)
    return _counting(
        _parse(trial.user_attrs.get(_keys.READOUTS), trial.number),
        own=owner is None or owner == trial.number,
        reported=trial.intermediate_values.keys(),
    )


def baseline_step(trial: FrozenTrial, readouts: Mapping[int, ReadoutRecord]) -> int | None:
    """Return the step of the readout taken before training, or None.

    It is the last readout before the first reported step. Without a reported value, or without
    an earlier readout, there is no baseline.
    """
    if not trial.intermediate_values:
        return None
    first_reported = min(trial.intermediate_values)
    return max((step for step in readouts if step < first_reported), default=None)


def write_readouts(
    trial: BaseTrial,
    new: Mapping[int, ReadoutRecord],
    *,
    baseline: tuple[int, ReadoutRecord] | None = None,
    step: int | None = None,
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

    Returns:
        Whether anything was written.
    """
    stored = stored_trial(trial)
    owner = stored.user_attrs.get(_keys.TRIAL)
    own = owner is None or owner == trial.number
    reported = getattr(stored, "intermediate_values", {}).keys()
    found = _parse(stored.user_attrs.get(_keys.READOUTS), trial.number)
    series = _counting(found, own=own, reported=reported)
    if not own:
        now = min(new, default=step) if step is None else step
        if now is not None:
            # A readout right before it that has no value is the baseline of another start.
            begun = {s for s in series if s >= now or (s == now - 1 and s not in reported)}
            series = {s: r for s, r in series.items() if s not in begun}
    before = dict(series)
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
        latest = series[max(series)]
        trial.set_user_attr(_keys.MAX, latest.max)
        trial.set_user_attr(_keys.MEAN, latest.mean)
    return True


def has_readout(trial: BaseTrial, step: int) -> bool:
    """Whether ``trial`` has a readout at ``step`` that it measured itself or that was imported."""
    attrs = stored_trial(trial).user_attrs
    series = attrs.get(_keys.READOUTS)
    own = attrs.get(_keys.TRIAL) in (None, trial.number)
    return own and isinstance(series, Mapping) and str(step) in series


def begins_training(trial: BaseTrial, step: int) -> bool:
    """Whether no value was reported before ``step``: else training resumed from a checkpoint."""
    reported = getattr(stored_trial(trial), "intermediate_values", {})
    return all(earlier >= step for earlier in reported)


def write_failure(trial: BaseTrial, step: int, reason: str) -> None:
    """Record why there is no readout at ``step`` (the last 32 such facts are kept)."""
    failures = stored_trial(trial).user_attrs.get(_keys.FAILURES)
    kept = dict(failures) if isinstance(failures, dict) else {}
    kept[str(step)] = reason[:500]
    trial.set_user_attr(_keys.FAILURES, dict(list(kept.items())[-32:]))


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
