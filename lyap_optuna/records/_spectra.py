"""Whole spectra in a relational database: how they are read, copied and upgraded."""

import itertools
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import torch
from optuna.storages import BaseStorage
from optuna.study import Study

from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.records import _json
from lyap_optuna.records._errors import NoDatabaseError, SpectraError
from lyap_optuna.records._storages import checked_url, engine_of
from lyap_optuna.spectrum.base import kaplan_yorke_dimension

if TYPE_CHECKING:
    import sqlalchemy as sa

_BATCH = 100  # rows held at once while copying


@dataclass(frozen=True)
class SpectrumRecord:
    """A whole spectrum as it is stored in the table ``lyapunov_spectra``.

    Args:
        trial_number: The number of the trial that measured it.
        step: The step of the trial, as in its readouts; the baseline's is before the first.
        layer: Name of the recurrent layer within the model; empty for the model itself.
        state: ``"hidden"`` or ``"full"``.
        exponents: All measured exponents, nats/step, descending, finite (floored at -16).
        std: Their sample standard deviations over the inputs, nats/step, in the same order; None
            for a single input and where an exponent is minus infinity.
        state_size: Dimension of the state.
        sequences: Number of input sequences; ``std / sqrt(sequences)`` is a standard error.
        clipped_fraction: Fraction of the exponents that lay below the floor.
        created_at: When it was stored, UTC, by the clock of the process that stored it.
    """

    trial_number: int
    step: int
    layer: str
    state: str
    exponents: tuple[float, ...]
    std: tuple[float | None, ...]
    state_size: int
    sequences: int
    clipped_fraction: float
    created_at: datetime

    @property
    def max(self) -> float:
        """The maximum exponent, nats/step."""
        return self.exponents[0]

    @property
    def mean(self) -> float:
        """The mean exponent, nats/step."""
        return sum(self.exponents) / len(self.exponents)

    @property
    def variance(self) -> float:
        """The variance of the exponents over the spectrum, (nats/step)^2."""
        mean = self.mean
        return sum((e - mean) ** 2 for e in self.exponents) / len(self.exponents)

    @property
    def kaplan_yorke_dimension(self) -> float:
        """The Kaplan-Yorke dimension; see :class:`~lyap_optuna.LyapunovSpectrum`."""
        exponents = torch.tensor(self.exponents, dtype=torch.float64, device="cpu")
        return kaplan_yorke_dimension(exponents, self.state_size)


def load_spectra(
    study: Study,
    *,
    trial_number: int | None = None,
    step: int | None = None,
    spectra_url: str | None = None,
) -> list[SpectrumRecord]:
    """Return the whole spectra of a study that probes with ``full_spectrum=True`` stored.

    This reads the table ``lyapunov_spectra``, which may be large; everything else in this
    package uses the trials' attributes (:func:`~lyap_optuna.records.read_readouts`).
    Rows of deleted trials are left out, and so are rows that do not validate, with a
    :class:`~lyap_optuna.LyapunovWarning`. Reading creates nothing.

    Args:
        study: A study of an :class:`optuna.storages.RDBStorage`; any other with ``spectra_url``.
        trial_number: Only this trial.
        step: Only this step.
        spectra_url: The database that the probes were given, where they were given one.

    Returns:
        By trial number, step, layer and state. Empty where nothing was stored.

    Raises:
        ValueError: The study's storage is no relational database and ``spectra_url`` is missing,
            or names no database.
        RuntimeError: The table has another schema version; the message says what to do.

    Example:
        >>> import optuna
        >>> import torch
        >>> import lyap_optuna as lyap
        >>> study = optuna.create_study(storage="sqlite:///:memory:")
        >>> trial = study.ask()
        >>> model = torch.nn.GRU(input_size=3, hidden_size=8, batch_first=True)
        >>> probe = lyap.LyapunovProbe(model, torch.randn(10, 50, 3), full_spectrum=True)
        >>> probe.report(trial, 0.5, step=1)
        >>> [(s.trial_number, s.step, len(s.exponents)) for s in lyap.load_spectra(study)]
        [(0, 0, 8), (0, 1, 8)]
    """
    from lyap_optuna.records import _table

    try:
        if spectra_url is not None:
            checked_url(spectra_url, "spectra_url", exists=True)
        engine = engine_of(study._storage, spectra_url)
    except SpectraError as error:
        raise ValueError(
            f"{error} Give the URL of the one that the probes were given as spectra_url=. If they "
            "were given none: 32 quantiles of each spectrum are in the trials' attributes."
        ) from None
    if not _table.exists_in(engine):
        return []
    records: dict[tuple[int, int, str, str], SpectrumRecord] = {}
    for _, record in _valid_rows(engine, study, trial_number, step):
        key = (record.trial_number, record.step, record.layer, record.state)
        records.setdefault(key, record)
    return [records[key] for key in sorted(records)]


def holds_spectra(study: Study) -> bool:
    """Whether the study's storage is a database with a table of spectra.

    Raises:
        RuntimeError: The table has another schema version; the message says what to do.
    """
    from lyap_optuna.records import _table

    try:
        engine = engine_of(study._storage)
    except NoDatabaseError:
        return False
    return bool(_table.exists_in(engine))


def copy_spectra(from_study: Study, to_study: Study) -> int:
    """Copy the spectra of a study to its copy, as :func:`optuna.copy_study` left it.

    Rows that do not validate are left out, with a :class:`~lyap_optuna.LyapunovWarning`.

    Args:
        from_study: A study of a relational database.
        to_study: The copy, whose trials have the same numbers, in a relational database.

    Returns:
        How many were copied.

    Raises:
        SpectraError: One of the two storages holds no spectra, or another schema version.
    """
    from lyap_optuna.records import _table

    source = engine_of(from_study._storage)
    target = engine_of(to_study._storage)
    if not _table.exists_in(source):
        return 0
    import sqlalchemy as sa

    _table.create(target)
    of_copy = _table.identities().where(_table.STUDIES.c.study_name == to_study.study_name)
    with target.begin() as connection:
        identities = {
            row["trial_number"]: dict(row) for row in connection.execute(of_copy).mappings()
        }
        if target.dialect.name == "sqlite":
            # Of an earlier copy that was deleted: nothing but its ids could tell it from this one.
            ids = of_copy.with_only_columns(_table.TRIALS.c.trial_id, maintain_column_froms=True)
            connection.execute(sa.delete(_table.SPECTRA).where(_table.SPECTRA.c.trial_id.in_(ids)))

    def rows() -> Iterator[dict[str, Any]]:
        for row, record in _valid_rows(source, from_study):
            if row.trial_number in identities:  # else it began after the study was copied
                stored = {**row._mapping, **identities[row.trial_number]}
                stored["exponents"], stored["std"] = list(record.exponents), list(record.std)
                yield stored | {"created_at": record.created_at.replace(tzinfo=None)}

    copied, found = 0, rows()
    while batch := list(itertools.islice(found, _BATCH)):
        with target.begin() as connection:
            connection.execute(sa.insert(_table.SPECTRA), batch)
        copied += len(batch)
    return copied


def upgrade_spectra(storage: BaseStorage) -> tuple[str | None, str]:
    """Bring the table in the database of ``storage`` to this release's schema version.

    Returns:
        The versions before, None where there was no table, and after.

    Raises:
        SpectraError: The storage is no relational database, or a newer release made the table.
    """
    from lyap_optuna.records import _table

    return _table.upgrade(engine_of(storage))


# Rows -----------------------------------------------------------------------------------------


def utc(local: datetime | None) -> datetime | None:
    """Return a time of Optuna's, local and without a zone, in UTC, as the tables hold it."""
    return None if local is None else local.astimezone(UTC).replace(tzinfo=None)


def same_start(a: datetime | None, b: datetime | None) -> bool:
    """Whether two times, of which one may have whole seconds, are one trial's beginning."""
    if a is None or b is None:
        return False
    if a.microsecond and b.microsecond:
        return a == b
    # Optuna's column keeps whole seconds in MariaDB, which cuts off, and in MySQL, which rounds.
    return abs(a - b) < timedelta(seconds=1)


def _rows(
    engine: "sa.Engine", study: Study, trial_number: int | None, step: int | None
) -> "Iterator[sa.Row[Any]]":
    """Yield the rows that belong to trials of the study, in the order they were stored.

    Between two rows no transaction is open: SQLite could not write into the same file.
    """
    import sqlalchemy as sa

    from lyap_optuna.records import _table

    table = _table.SPECTRA
    chosen = [table.c.study_name == study.study_name]
    if trial_number is not None:
        chosen.append(table.c.trial_number == trial_number)
    if step is not None:
        chosen.append(table.c.step == step)
    here = (
        sa.select(table.c.spectrum_id)
        .select_from(table, _table.TRIALS, _table.STUDIES)
        .where(_table.of_its_trial(), *chosen)
    )
    elsewhere = sa.select(table.c.spectrum_id, table.c.trial_number, table.c.trial_start).where(
        table.c.trial_id.is_(None), *chosen
    )
    with engine.connect() as connection:
        ids = list(connection.scalars(here))
        loose = connection.execute(elsewhere).all()
    if loose:
        trials = study.get_trials(deepcopy=False)
        starts = {trial.number: utc(trial.datetime_start) for trial in trials}
        same = [r for r in loose if same_start(r.trial_start, starts.get(r.trial_number))]
        # Where the study's own database keeps whole seconds, an earlier study of this name may
        # have begun in the same one.
        latest = {r.trial_number: r.trial_start for r in sorted(same, key=lambda r: r.trial_start)}
        ids += [r.spectrum_id for r in same if r.trial_start == latest[r.trial_number]]
    ids.sort()
    # As text: what was edited by hand must not break the reader.
    columns = [
        sa.cast(c, sa.Text).label(c.name) if c.name in ("exponents", "std", "created_at") else c
        for c in table.c
        if c.name not in ("spectrum_id", "trial_id", "trial_start")
    ]
    for first in range(0, len(ids), _BATCH):
        batch = table.c.spectrum_id.in_(ids[first : first + _BATCH])
        with engine.connect() as connection:
            rows = connection.execute(
                sa.select(*columns).where(batch).order_by(table.c.spectrum_id)
            ).all()
        yield from rows


def _valid_rows(
    engine: "sa.Engine", study: Study, trial_number: int | None = None, step: int | None = None
) -> "Iterator[tuple[sa.Row[Any], SpectrumRecord]]":
    problems: list[str] = []
    for row in _rows(engine, study, trial_number, step):
        try:
            record = _parse(row)
        except ValueError as error:
            problems.append(f"trial {row.trial_number}, step {row.step!r:.20}: {error}")
        else:
            yield row, record
    if problems:
        warnings.warn(
            f"Ignored {len(problems)} invalid spectra in lyapunov_spectra: {problems[0]}.",
            LyapunovWarning,
            stacklevel=3,
        )


def _parse(row: "sa.Row[Any]") -> SpectrumRecord:
    # SQLite keeps whatever was written into a column, of whatever type.
    for name, kind in _TYPES.items():
        if not isinstance(value := getattr(row, name), kind):
            raise ValueError(f"{name} must be of type {kind.__name__}, not {value!r:.60}")
    exponents = _numbers(row.exponents, "exponents")
    if any(e is None for e in exponents):
        raise ValueError("exponents must be finite numbers")
    std = _numbers(row.std, "std")
    if len(std) != len(exponents):
        raise ValueError(f"{len(exponents)} exponents but {len(std)} standard deviations")
    clipped = _json.finite(row.clipped_fraction)
    return SpectrumRecord(
        trial_number=row.trial_number,
        step=row.step,
        layer=row.module,
        state=row.state,
        exponents=tuple(e for e in exponents if e is not None),
        std=tuple(std),
        state_size=row.state_size,
        sequences=row.inputs,
        clipped_fraction=0.0 if clipped is None else clipped,
        created_at=datetime.fromisoformat(row.created_at).replace(tzinfo=UTC),
    )


_TYPES = {
    "trial_number": int,
    "step": int,
    "module": str,
    "state": str,
    "state_size": int,
    "inputs": int,
    "created_at": str,
}


def _numbers(text: object, name: str) -> list[float | None]:
    try:
        values = json.loads(text) if isinstance(text, (str, bytes)) else text
    except ValueError:
        values = None
    if not isinstance(values, list) or not values:
        raise ValueError(f"{name} must be a JSON array of numbers, not {text!r:.60}")
    return [_json.finite(value) for value in values]
