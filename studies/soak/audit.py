"""What a storage holds, beside what was sent to it."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

import lyap_optuna as lyap
from lyap_optuna.campaign import previous_attempt
from lyap_optuna.records import FLOOR, read_readouts

UNTRAINED = -1
"""The step at which a probe stores its baseline, until the first report tells where loops begin."""

TOLERANCE = 1e-5
"""Readouts are stored with six digits. Two of one trial differ by a hundredth and more."""

Place = tuple[int, ...]
"""Number of a trial, and a step."""


@dataclass
class Count:
    """What became of one kind of thing.

    Args:
        sent: Times that a worker began to send one.
        acknowledged: Times that the call returned, and nothing warned.
        stored: How many of those sent are there.
        lost: Acknowledged ones that are not.
        doubled: Sent once, and there twice.
        wrong: There, and never sent so.
    """

    sent: int = 0
    acknowledged: int = 0
    stored: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0


@dataclass
class Audit:
    """What became of everything.

    Args:
        states: How many trials are in each state.
        counts: Of trials, values, readouts and whole spectra. A trial is sent when it is begun,
            and acknowledged by that too.
        problems: A line about each thing that was lost, doubled or wrong.
    """

    states: Counter[str] = field(default_factory=Counter)
    counts: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))
    problems: list[str] = field(default_factory=list)

    def note(self, kind: str, fate: str, place: Sequence[int]) -> None:
        """Count something that should not be."""
        count = self.counts[kind]
        setattr(count, fate, getattr(count, fate) + 1)
        self.problems.append(f"{fate}: {kind} of trial {', step '.join(map(str, place))}")


@dataclass
class _Sent:
    """What the ledgers say of one trial."""

    x: float = math.nan
    first: int = 0
    begun: int = 0
    values: dict[int, float] = field(default_factory=dict)
    readouts: dict[int, tuple[float, ...]] = field(default_factory=dict)
    spectra: dict[int, tuple[float, ...]] = field(default_factory=dict)
    acknowledged: dict[int, bool] = field(default_factory=dict)  # by step: with its readout?
    returned: float | None = None

    def has_begun(self) -> bool:
        """Whether the first report, with baseline and readout, was acknowledged."""
        return self.acknowledged.get(self.first, False)


def audit(study: optuna.Study, ledgers: Iterable[Mapping[str, Any]], rows: "Rows") -> Audit:
    """Hold a study against the ledgers of its workers.

    Args:
        study: The study, with no worker at work.
        ledgers: Their lines.
        rows: How often each value and each spectrum is there.
    """
    found, sent = Audit(), _by_trial(ledgers)
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    found.states.update(trial.state.name for trial in trials.values())
    spectra: dict[int, dict[int, tuple[float, ...]]] = defaultdict(dict)
    if rows.spectra is not None:
        for record in lyap.load_spectra(study):
            spectra[record.trial_number][record.step] = record.exponents
    for number, ledger in sent.items():
        _audit_trial(found, number, ledger, trials.get(number))
        if number in trials:
            _audit_values(found, number, ledger, trials[number])
            _audit_readouts(found, number, ledger, trials[number])
            if rows.spectra is not None:
                _audit_spectra(found, number, ledger, spectra[number])
    repeated: Counter[Place] = Counter()
    for trial in trials.values():
        if (before := previous_attempt(trial)) is not None:
            repeated[(before,)] += 1
    places: dict[str, Mapping[Place, int]] = {
        "trials": repeated,
        "values": rows.values,
        "spectra": rows.spectra or {},
    }
    for kind, counted in places.items():
        for place, times in counted.items():
            if times > 1:
                found.note(kind, "doubled", place)
    return found


def _by_trial(ledgers: Iterable[Mapping[str, Any]]) -> dict[int, _Sent]:
    sent: dict[int, _Sent] = defaultdict(_Sent)
    for line in ledgers:
        of, step = sent[line["trial"]], line.get("step", 0)
        match line["what"]:
            case "begun":
                of.begun += 1
                of.x, of.first = line["x"], line["first"]
            case "sent":
                if "value" in line:
                    of.values[step] = line["value"]
                if "readout" in line:
                    of.readouts[step] = tuple(line["readout"])
                    of.spectra[step] = tuple(max(e, FLOOR) for e in line["exponents"])
            case "acknowledged":
                of.acknowledged[step] = line.get("readout", False)
            case "returned":
                of.returned = line["value"]
    return sent


def _audit_trial(found: Audit, number: int, sent: _Sent, trial: FrozenTrial | None) -> None:
    count = found.counts["trials"]
    count.sent += 1
    count.acknowledged += 1
    if sent.begun > 1:
        found.note("trials", "doubled", (number,))
    if trial is None:
        found.note("trials", "lost", (number,))
        return
    count.stored += 1
    wrong_end = trial.state == TrialState.COMPLETE and trial.value != sent.returned
    if wrong_end or trial.params != {"x": sent.x}:
        found.note("trials", "wrong", (number,))


def _audit_values(found: Audit, number: int, sent: _Sent, trial: FrozenTrial) -> None:
    count, stored = found.counts["values"], trial.intermediate_values
    for step, value in sent.values.items():
        count.sent += 1
        count.acknowledged += step in sent.acknowledged
        if stored.get(step) == value:
            count.stored += 1
        elif step in stored:
            found.note("values", "wrong", (number, step))
        elif step in sent.acknowledged:
            found.note("values", "lost", (number, step))
    for step in stored.keys() - sent.values.keys():
        found.note("values", "wrong", (number, step))


def _audit_readouts(found: Audit, number: int, sent: _Sent, trial: FrozenTrial) -> None:
    stored = {step: (r.max, r.mean) for step, r in read_readouts(trial).items()}
    # Until a retry has written its own, it has those of the attempt before it.
    own = trial.user_attrs.get("lyapunov:trial") in (None, number)
    _place(found, "readouts", number, sent, sent.readouts, stored, others=not own)


def _audit_spectra(
    found: Audit, number: int, sent: _Sent, stored: Mapping[int, tuple[float, ...]]
) -> None:
    _place(found, "spectra", number, sent, sent.spectra, stored, others=False)


def _place(
    found: Audit,
    kind: str,
    number: int,
    sent: _Sent,
    measured: Mapping[int, tuple[float, ...]],
    stored: Mapping[int, tuple[float | None, ...]],
    *,
    others: bool,
) -> None:
    """Look for each measurement among those stored, by what it is, not by where it stands."""
    count, left = found.counts[kind], set(stored)
    for step, numbers in measured.items():
        places = [s for s, other in stored.items() if _same(numbers, other)]
        left -= set(places)
        allowed, acknowledged = {step}, sent.acknowledged.get(step, False)
        if step == UNTRAINED:
            allowed = {sent.first - 1} | ({UNTRAINED} if not sent.has_begun() else set())
            # The constructor stores the readout, the first report the whole spectrum.
            acknowledged = sent.has_begun() or (acknowledged and kind == "readouts")
        count.sent += 1
        count.acknowledged += acknowledged
        count.stored += bool(places)
        if len(places) > 1:
            found.note(kind, "doubled", (number, step))
        elif not places and acknowledged:
            found.note(kind, "lost", (number, step))
        elif not set(places) <= allowed:
            found.note(kind, "wrong", (number, step))
    for step in left if not others else ():
        found.note(kind, "wrong", (number, step))


def _same(numbers: Sequence[float], other: Sequence[float | None]) -> bool:
    return len(numbers) == len(other) and all(
        b is not None and math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        for a, b in zip(numbers, other, strict=True)
    )


# How often each thing is there -------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """How often each value and each spectrum is there; spectra None where there is no table."""

    values: Counter[Place]
    spectra: Counter[Place] | None = None


def rows_in_database(url: str) -> Rows:
    """Count the rows of a database, whatever its constraints say."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)

    def places(table: str) -> Counter[Place]:
        if not sa.inspect(engine).has_table(table):  # it is made for the first row
            return Counter()
        with engine.connect() as connection:
            query = f"SELECT t.number, r.step FROM {table} r JOIN trials t USING (trial_id)"
            return Counter(map(tuple, connection.execute(sa.text(query))))

    return Rows(places("trial_intermediate_values"), places("lyapunov_spectra"))


def rows_in_journal(path: str, study: optuna.Study) -> Rows:
    """Count the lines of a journal that report a value."""
    numbers = {trial._trial_id: trial.number for trial in study.get_trials(deepcopy=False)}
    values: Counter[Place] = Counter()
    with open(path, encoding="utf-8") as file:
        for line in map(json.loads, file):
            if "intermediate_value" in line:
                values[numbers[line["trial_id"]], line["step"]] += 1
    return Rows(values)
