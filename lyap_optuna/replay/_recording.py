"""Recordings: studies whose every trial ran to the end, as small files to pass on.

A recording is one JSON document, compressed by gzip where its name ends in ``.gz``. It holds the
hyperparameters with their distributions, the value reported at every step, the final value, how
long each trial ran where that is known, and the readouts, by state where several were measured (an
entry in another series says its own where that is not ``"hidden"``). Numbers that JSON cannot hold
stand as the strings ``"nan"``, ``"inf"`` and ``"-inf"``.
"""

import contextlib
import gzip
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection, create_study
from optuna.trial import FrozenTrial, TrialState, create_trial

from lyap_optuna._files import write_whole
from lyap_optuna.dynamics import STATES
from lyap_optuna.prediction._study import single_direction
from lyap_optuna.records import (
    ReadoutRecord,
    _keys,
    is_own,
    keeps_order,
    pruned_at,
    read_readouts,
    read_stretches,
    report_order,
)

FORMAT = "lyap-optuna recording"
VERSION = 1

MAX_BYTES = 64 << 20
"""A recording may unpack to so much; those that come with the source have half a megabyte."""


class RecordingError(ValueError):
    """A file that is no recording, or a study that cannot be replayed; the message says why."""


@dataclass(frozen=True)
class RecordedTrial:
    """A trial that ran to its end.

    Args:
        params: Hyperparameters.
        distributions: Their distributions.
        values: Reported value by step, in the order of the reports, at least one.
        final: The value it ended with; NaN where it failed for want of a number.
        readouts: By state, by step, as :class:`~lyap_optuna.LyapunovProbe` stores them.
        seconds: How long it ran, from its beginning to its end; None where that is not known.
    """

    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    values: Mapping[int, float]
    final: float
    readouts: Mapping[str, Mapping[int, Mapping[str, Any]]] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class Recording:
    """A study whose every trial ran to the end.

    Args:
        name: Name of the study.
        direction: ``"minimize"`` or ``"maximize"``.
        trials: The trials, at least one.
        state: Which of the recorded states the predictor sees; None where no trial has readouts.
        attributes: What the study says of itself: ``kind``, ``description``.

    Example:
        >>> import optuna
        >>> from lyap_optuna.replay import Recording
        >>> study = optuna.create_study(study_name="parabola")
        >>> for x in (0.1, 0.2, 0.3):
        ...     study.add_trial(
        ...         optuna.create_trial(
        ...             params={"x": x},
        ...             distributions={"x": optuna.distributions.FloatDistribution(0, 1)},
        ...             intermediate_values={1: x, 2: x**2},
        ...             value=x**2,
        ...         )
        ...     )
        >>> print(Recording.from_study(study).summary())
        parabola: 3 trials of at most 2 reports, best 0.01, median 0.04
    """

    name: str
    direction: str
    trials: Sequence[RecordedTrial]
    state: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def states(self) -> tuple[str, ...]:
        """The states whose readouts were recorded, in order of recording."""
        return tuple(dict.fromkeys(state for trial in self.trials for state in trial.readouts))

    def with_state(self, state: str) -> "Recording":
        """Return the same recording with the readouts of another state.

        Raises:
            ValueError: No trial has readouts of that state.
        """
        if state not in self.states:
            raise ValueError(
                f"Recording {self.name!r} has no readouts of state {state!r}; it has "
                f"{', '.join(map(repr, self.states)) or 'none'}."
            )
        return Recording(self.name, self.direction, self.trials, state, self.attributes)

    @classmethod
    def from_study(cls, study: Study) -> "Recording":
        """Read a study.

        COMPLETE trials count, and trials that failed after they had reported NaN or infinity. A
        study with pruned trials cannot be replayed: how they would have ended is unknown.
        The readouts of ``lyapunov:readouts`` (those that count, after a retry) are those of the
        state ``"recorded"``, or of the first that the study's attribute ``states`` names; those of
        a further state stand in ``lyapunov:readouts:STATE``.

        Raises:
            RecordingError: The study has pruned or running trials, trials with constraints or
                negative steps, or none that counts.
            ValueError: It has several objectives.
        """
        sign = single_direction(study)
        listed = study.user_attrs.get("states")
        first = listed[0] if isinstance(listed, list) and listed else "recorded"
        trials = study.get_trials(deepcopy=False)
        for state, why in (
            (TrialState.PRUNED, "how they would have ended is not known"),
            (TrialState.RUNNING, "they have not ended"),
        ):
            found = [t.number for t in trials if _ended_as(t, study) == state]
            if found:
                raise RecordingError(
                    f"Study {study.study_name!r} cannot be replayed: {len(found)} of its trials "
                    f"are {state.name} (the first is trial {found[0]}) and {why}. Run a study "
                    "with optuna.pruners.NopPruner(), or leave those trials out by copying the "
                    "others into a new study."
                )
        for trial in trials:
            if trial.constraints:
                raise RecordingError(
                    f"Study {study.study_name!r} cannot be replayed: its trials have constraints "
                    f"(the first is trial {trial.number}), which a replay does not know."
                )
            if min(trial.intermediate_values, default=0) < 0:
                raise RecordingError(
                    f"Study {study.study_name!r} cannot be replayed: trial {trial.number} reported "
                    f"at step {min(trial.intermediate_values)}, and Optuna reports from 0 on."
                )
        recorded = [
            _of_trial(trial, first, keeps_order(study._storage))
            for trial in trials
            if trial.intermediate_values
            and (
                trial.state == TrialState.COMPLETE
                or (
                    trial.state == TrialState.FAIL
                    and not all(map(math.isfinite, trial.intermediate_values.values()))
                )
            )
        ]
        if not recorded:
            raise RecordingError(
                f"Study {study.study_name!r} has no COMPLETE trial that reported values."
            )
        attributes = {
            key: value
            for key in ("kind", "description")
            if isinstance(value := study.user_attrs.get(key), str)
        }
        direction = "minimize" if sign > 0 else "maximize"
        recording = cls(study.study_name, direction, recorded, None, attributes)
        states = recording.states
        return recording.with_state(states[0]) if states else recording

    def to_study(self, storage: str | BaseStorage | None = None) -> Study:
        """Create an Optuna study of the recorded trials.

        Args:
            storage: Where; in memory for None.

        Raises:
            optuna.exceptions.DuplicatedStudyError: The storage has a study of that name.
        """
        study = create_study(study_name=self.name, storage=storage, direction=direction_of(self))
        for key, value in self.attributes.items():
            study.set_user_attr(key, value)
        for trial in self.trials:
            failed = math.isnan(trial.final)
            readouts = stored_readouts(trial, self.state)
            attributes: dict[str, Any] = {}
            if readouts:
                attributes[_keys.READOUTS] = {str(s): r for s, r in readouts.items()}
            if list(trial.values) != sorted(trial.values):
                attributes[_keys.ORDER] = list(trial.values)
            study.add_trial(
                create_trial(
                    state=TrialState.FAIL if failed else TrialState.COMPLETE,
                    value=None if failed else trial.final,
                    params=dict(trial.params),
                    distributions=dict(trial.distributions),
                    intermediate_values=dict(trial.values),
                    user_attrs=attributes,
                )
            )
        return study

    def summary(self) -> str:
        """Return one line: how many trials, how long, how good."""
        finite = sorted(t.final for t in self.trials if math.isfinite(t.final))
        if self.direction == "maximize":
            finite.reverse()
        broken = len(self.trials) - len(finite)
        reports = max(len(t.values) for t in self.trials)
        ends = f", best {finite[0]:.4g}, median {finite[len(finite) // 2]:.4g}" if finite else ""
        diverged = f", {broken} without a finite end" if broken else ""
        states = f", readouts: {', '.join(self.states)}" if self.states else ""
        return (
            f"{self.name}: {len(self.trials)} trials of at most {reports} reports{ends}"
            f"{diverged}{states}"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recording; an existing file is replaced as a whole or not at all.

        Raises:
            RecordingError: A hyperparameter holds what JSON cannot (infinity among the choices).
        """
        path = Path(path)
        distributions: dict[str, int] = {}
        trials = []
        for trial in self.trials:
            held = {}
            for name, distribution in trial.distributions.items():
                text = distribution_to_json(distribution)
                held[name] = distributions.setdefault(text, len(distributions))
            trials.append(
                {
                    "params": dict(trial.params),
                    "distributions": held,
                    "values": {str(s): _to_json(v) for s, v in trial.values.items()},
                    "final": _to_json(trial.final),
                    **({} if trial.seconds is None else {"seconds": trial.seconds}),
                    "readouts": {
                        state: {str(s): dict(r) for s, r in series.items()}
                        for state, series in trial.readouts.items()
                    },
                }
            )
        document = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "direction": self.direction,
            "state": self.state,
            "attributes": dict(self.attributes),
            "distributions": list(distributions),
            "trials": trials,
        }
        try:
            content = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        except ValueError as error:
            raise RecordingError(
                f"Recording {self.name!r} cannot be written: a hyperparameter is NaN or infinite "
                f"({error})."
            ) from None
        if path.suffix == ".gz":
            content = gzip.compress(content, compresslevel=9, mtime=0)
        write_whole(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Recording":
        """Read a file that :meth:`save` wrote.

        Raises:
            RecordingError: It cannot be read or is not a recording; the message says where.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                packed = file.read(2) == b"\x1f\x8b"
            with gzip.open(path) if packed else path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise RecordingError(
                    f"{path} is not a recording: its content is larger than {MAX_BYTES >> 20} MB."
                )
            document = json.loads(content)
        except (ValueError, EOFError, zlib.error, gzip.BadGzipFile, RecursionError) as error:
            if isinstance(error, RecordingError):
                raise
            raise RecordingError(f"{path} is not a recording: {error}.") from None
        except OSError as error:
            raise RecordingError(f"{path} cannot be read: {error.strerror or error}.") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise RecordingError(
                f"{path} is not a recording: its 'format' is not {FORMAT!r}. Recordings are "
                "written by Recording.save or `lyap-optuna replay --record`."
            )
        if document.get("version") != VERSION:
            raise RecordingError(
                f"{path} has version {document.get('version')!r} of the format; this "
                f"lyap-optuna reads version {VERSION}."
            )
        try:
            return _of_document(document)
        except (
            AttributeError,
            IndexError,
            KeyError,
            OverflowError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise RecordingError(f"{path} is damaged: {type(error).__name__}: {error}.") from None


def _of_document(document: dict[str, Any]) -> Recording:
    direction = document["direction"]
    if direction not in ("minimize", "maximize"):
        raise ValueError(f"direction must be 'minimize' or 'maximize', not {direction!r:.40}")
    distributions = [json_to_distribution(text) for text in document["distributions"]]
    trials = []
    for number, stored in enumerate(document["trials"]):
        values = {int(s): _from_json(v) for s, v in stored["values"].items()}
        if not values:
            raise ValueError(f"trial {number} has no values")
        if not 0 <= min(values) <= max(values) < 2**63:
            raise ValueError(f"trial {number} has a step that is no step of Optuna's")
        readouts = {
            str(state): {
                int(s): _entry(ReadoutRecord.from_json(r), str(state)) for s, r in series.items()
            }
            for state, series in stored["readouts"].items()
        }
        held = {name: distributions[i] for name, i in stored["distributions"].items()}
        create_trial(params=stored["params"], distributions=held, value=0.0)  # validates
        trials.append(
            RecordedTrial(
                params=stored["params"],
                distributions=held,
                values=values,
                final=_from_json(stored["final"]),
                readouts=readouts,
                seconds=_duration(stored.get("seconds")),
            )
        )
    if not trials:
        raise ValueError("it has no trials")
    recording = Recording(
        name=str(document["name"]),
        direction=direction,
        trials=trials,
        attributes={str(k): str(v) for k, v in document["attributes"].items()},
    )
    state = document["state"]
    return recording if state is None else recording.with_state(state)


def _ended_as(trial: FrozenTrial, study: Study) -> TrialState:
    """Return the state of a trial; PRUNED where it ended COMPLETE although a callback pruned it."""
    complete = trial.state == TrialState.COMPLETE
    cut = complete and pruned_at(trial, keeps_order(study._storage)) is not None
    return TrialState.PRUNED if cut else trial.state


def _of_trial(trial: FrozenTrial, first: str, ordered: bool) -> RecordedTrial:
    counting = {step: _entry(record, first) for step, record in read_readouts(trial).items()}
    readouts: dict[str, dict[int, dict[str, Any]]] = {first: counting} if counting else {}
    own = is_own(trial, trial.user_attrs.get(_keys.TRIAL))
    for key, series in trial.user_attrs.items():
        state = key.removeprefix(f"{_keys.READOUTS}:")
        if state == key or not isinstance(series, Mapping):
            continue
        checked: dict[int, dict[str, Any]] = {}
        for step, stored in series.items():
            with contextlib.suppress(TypeError, ValueError):
                if own or int(step) in counting:
                    checked[int(step)] = _entry(ReadoutRecord.from_json(stored), state)
        if checked:
            readouts[state] = dict(sorted(checked.items()))
    return RecordedTrial(
        params=dict(trial.params),
        distributions=dict(trial.distributions),
        values={step: trial.intermediate_values[step] for step in report_order(trial, ordered)},
        final=trial.values[0] if trial.values is not None else math.nan,
        readouts=readouts,
        seconds=_ran(trial),
    )


def _ran(trial: FrozenTrial) -> float | None:
    """Return the seconds that a trial ran, its rests left out; None where it was added whole."""
    stretches = read_stretches(trial)
    if stretches and stretches[0].index == 0:
        return _duration(round(sum(s.seconds for s in stretches), 3))
    took = trial.duration
    return None if took is None else _duration(round(took.total_seconds(), 3))


def _duration(seconds: Any) -> float | None:
    if seconds is None:
        return None
    took = _from_json(seconds)
    return took if 0.0 < took < math.inf else None


def stored_readouts(trial: RecordedTrial, state: str | None) -> dict[int, dict[str, Any]]:
    """Return the recorded readouts of a state as they are stored with a trial."""
    said = {"state": state} if state in STATES else {}
    series = trial.readouts.get(state, {}) if state is not None else {}
    return {step: {**readout, **said} for step, readout in series.items()}


def _entry(record: ReadoutRecord, series: str) -> dict[str, Any]:
    """Return a readout as a recording holds it: its state only where the series' name is none."""
    stored = record.to_json()
    if series in STATES or record.state == "hidden":
        del stored["state"]
    return stored


def _to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _from_json(value: Any) -> float:
    if isinstance(value, str):
        if value not in ("nan", "inf", "-inf"):
            raise ValueError(f"{value!r:.40} is not a number")
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r:.40} is not a number")
    return float(value)


def direction_of(recording: Recording) -> StudyDirection:
    """Return the direction as Optuna's enumeration."""
    minimize = recording.direction == "minimize"
    return StudyDirection.MINIMIZE if minimize else StudyDirection.MAXIMIZE
