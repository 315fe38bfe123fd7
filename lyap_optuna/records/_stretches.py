"""When a trial that was paused ran, what was thought of it, and for whom it rested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, Trial

from lyap_optuna.records import _json, _keys
from lyap_optuna.records._readouts import is_own

MAX_STRETCHES = 64
"""Of a trial that was paused more often, the latest are kept: some kilobytes."""


@dataclass(frozen=True)
class Stretch:
    """A stretch of a trial's life in which it ran, from one rest to the next.

    Args:
        start: When it began, seconds after the trial did.
        seconds: How long it ran.
        reports: Reports that it made.
        before: Chance of ending among the best when it began; None for the first stretch, and
            where nothing could be predicted.
        after: The same when it ended and another trial was chosen; None likewise, and while
            none was.
        instead: Number of the trial that was chosen; None for a new one.
        index: Which of the trial's stretches it is, from 0.
    """

    start: float
    seconds: float
    reports: int
    before: float | None = None
    after: float | None = None
    instead: int | None = None
    index: int = 0


def write_stretches(trial: Trial, stretches: Sequence[Stretch]) -> None:
    """Store the stretches of a running trial, the latest 64, in one attribute."""
    kept = stretches[-MAX_STRETCHES:]
    rows = [
        [
            round(s.start, 3),
            round(s.seconds, 3),
            s.reports,
            _json.rounded(s.before),
            _json.rounded(s.after),
            s.instead,
        ]
        for s in kept
    ]
    first = len(stretches) - len(kept)
    trial.set_user_attr(_keys.STRETCHES, {"trial": trial.number, "first": first, "stretches": rows})


def read_stretches(trial: FrozenTrial) -> list[Stretch]:
    """Return the stretches of a trial that has rested, oldest first; none of any other trial.

    Those that a retried trial inherited from the dead attempt, and what is no stretch, are left
    out.
    """
    stored = trial.user_attrs.get(_keys.STRETCHES)
    if not isinstance(stored, Mapping) or not is_own(trial, stored.get("trial")):
        return []
    rows, first = stored.get("stretches"), _count(stored.get("first")) or 0
    found = []
    for i, row in enumerate(rows if isinstance(rows, list) else []):
        if not isinstance(row, list) or len(row) != 6:
            continue
        start, seconds, before, after = (_json.finite(row[k]) for k in (0, 1, 3, 4))
        reports, instead = _count(row[2]), _count(row[5])
        if start is not None and seconds is not None and reports is not None:
            found.append(Stretch(start, seconds, reports, before, after, instead, first + i))
    return found


def _count(value: Any) -> int | None:
    counts = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if counts else None
