"""Where whole spectra go: into the study's database, into another one, or into files."""

import csv
import json
import math
import os
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage
from optuna.trial import BaseTrial, Trial

from lyap_optuna._files import harmless
from lyap_optuna._logging import get_logger
from lyap_optuna.records import _json
from lyap_optuna.records._artifacts import ARTIFACT, upload
from lyap_optuna.records._errors import NoDatabaseError, SpectraError
from lyap_optuna.records._spectra import same_start, utc
from lyap_optuna.records._storages import checked_url, engine_of, is_proxy, kept, repeated
from lyap_optuna.spectrum import LyapunovSpectrum

if TYPE_CHECKING:
    import sqlalchemy as sa
    from optuna.artifacts._protocol import ArtifactStore

Spectra = Mapping[str, LyapunovSpectrum]

_logger = get_logger(__name__)
_told: "weakref.WeakSet[BaseStorage]" = weakref.WeakSet()


class SpectrumSink(ABC):
    """Where a :class:`~lyap_optuna.LyapunovProbe` stores whole spectra."""

    @abstractmethod
    def write(self, trial: BaseTrial, step: int, spectra: Spectra, old: int | None = None) -> None:
        """Store the spectra of a network; what is stored of a layer at a step stays.

        A trial without a storage (:class:`optuna.trial.FixedTrial`) stores nothing. What is raised
        costs the probe a warning.

        Args:
            trial: The running trial.
            step: The step.
            spectra: By the layer's name, which is empty where the layer was given itself.
            old: The step at which they were stored before, and are no longer.

        Raises:
            SpectraError: They cannot be stored; the message says why and what to do, and holds
                nothing secret.
            Exception: Whatever a database or a store raises.
        """


class DatabaseSink(SpectrumSink):
    """Stores spectra in the table ``lyapunov_spectra``, exponent by exponent.

    The table is created where it is absent, exponents are floored at -16, and a standard deviation
    of NaN is null. :func:`~lyap_optuna.load_spectra` reads them back.

    Args:
        url: The database; None for the study's own. A study that is kept elsewhere (in a journal,
            in memory, behind a gRPC proxy) then says so once, in the log, and none are stored.

    Raises:
        ValueError: It is no URL of a database.

    Example:
        >>> import lyap_optuna as lyap
        >>> sink = lyap.DatabaseSink("sqlite:///spectra.db")
    """

    def __init__(self, url: str | None = None) -> None:
        self._url = None if url is None else checked_url(url, "url")

    def write(self, trial: BaseTrial, step: int, spectra: Spectra, old: int | None = None) -> None:
        """Store spectra, each in a transaction; see :meth:`SpectrumSink.write`."""
        running = kept(trial)
        if running is None:
            return
        storage = running.storage
        try:
            engine = engine_of(storage, self._url)
        except NoDatabaseError as error:
            # Not a warning: 32 quantiles of each spectrum are stored, and nobody asked for more.
            if storage not in _told:
                _told.add(storage)
                _logger.info(
                    f"{error} 32 quantiles of each spectrum are stored with its trial; "
                    "sink=DatabaseSink(URL) in the probe stores them whole."
                )
            return
        identity = None if self._url is None else _identity(running)
        rows = [
            {"module": layer, "step": step, **_columns(spectrum)}
            for layer, spectrum in spectra.items()
        ]
        from lyap_optuna.records import _table

        def insert() -> None:
            _table.create(engine)
            for row in rows:
                _insert(engine, row, running._trial_id, identity, old)

        # A spectrum that is written twice is there once.
        repeated(storage, insert)


class ArtifactSink(SpectrumSink):
    """Uploads the spectra of each step as a file of the running trial, for optuna-dashboard.

    ``lyapunov-spectrum-step-N.csv`` has the columns ``layer`` (empty for the model itself),
    ``index`` (from 1), ``exponent`` and ``std`` (nats/step; empty for a single input).

    Args:
        store: Any of :mod:`optuna.artifacts`.
    """

    def __init__(self, store: "ArtifactStore") -> None:
        self._store = store

    def write(self, trial: BaseTrial, step: int, spectra: Spectra, old: int | None = None) -> None:
        """Upload spectra as one file; see :meth:`SpectrumSink.write`."""
        running = kept(trial)
        if running is None:
            return
        storage, trial_id = running.storage, running._trial_id

        def set_entry(key: str, entry: str) -> None:
            storage.set_trial_system_attr(trial_id, key, entry)

        attrs = {} if old is None else storage.get_trial(trial_id).system_attrs
        for key, entry in attrs.items():
            about = json.loads(entry) if key.startswith(ARTIFACT) else None
            if about and about["filename"] == _file_name(old):
                set_entry(key, json.dumps({**about, "filename": _file_name(step)}))
                return
        with tempfile.TemporaryDirectory(prefix="lyap-") as folder:
            path = os.path.join(folder, _file_name(step))
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["layer", "index", "exponent", "std"])
                for layer, spectrum in spectra.items():
                    both = zip(spectrum.exponents.tolist(), spectrum.std.tolist(), strict=True)
                    for i, (e, s) in enumerate(both, start=1):
                        error = f"{s:.6g}" if math.isfinite(s) else ""
                        writer.writerow(harmless([layer, i, f"{max(e, _json.FLOOR):.6g}", error]))
            upload(self._store, path, set_entry)


def _file_name(step: int | None) -> str:
    return f"lyapunov-spectrum-step-{step}.csv"


# Rows of the table -------------------------------------------------------------------------------


def _identity(trial: Trial) -> dict[str, Any]:
    """Return what says whose a row is, of a trial that is kept in another database."""
    frozen = trial.storage.get_trial(trial._trial_id)
    return {
        # Through a proxy, the ids are those of the database behind it, perhaps this one.
        "trial_id": trial._trial_id if is_proxy(trial.storage) else None,
        "study_name": trial.study.study_name,
        "trial_number": frozen.number,
        "trial_start": utc(frozen.datetime_start),
    }


def _columns(spectrum: LyapunovSpectrum) -> dict[str, Any]:
    exponents: list[float] = spectrum.exponents.tolist()
    if not exponents or any(e != e or e == math.inf for e in exponents):
        raise ValueError("An exponent is NaN or infinite: there is no spectrum to store.")
    floored = [max(e, _json.FLOOR) for e in exponents]
    return {
        "state": spectrum.state,
        "state_size": spectrum.state_size,
        "inputs": len(spectrum.per_input),
        "max_exponent": floored[0],
        "mean_exponent": sum(floored) / len(floored),
        "clipped_fraction": sum(e < _json.FLOOR for e in exponents) / len(exponents),
        "exponents": floored,
        "std": [_json.finite(s) for s in spectrum.std.tolist()],
        "created_at": datetime.now(UTC).replace(tzinfo=None),
    }


def _insert(
    engine: "sa.Engine",
    measured: Mapping[str, Any],
    trial_id: int,
    elsewhere: Mapping[str, Any] | None,
    old: int | None,
) -> None:
    """Add a row: of the trial ``trial_id``, or of a trial that may be kept elsewhere."""
    import sqlalchemy as sa

    from lyap_optuna.records import _table

    table, trials, studies = _table.SPECTRA, _table.TRIALS, _table.STUDIES
    if elsewhere is None:
        of = _table.identities().where(trials.c.trial_id == trial_id)
    else:
        of = _table.identities().where(
            studies.c.study_name == elsewhere["study_name"],
            trials.c.number == elsewhere["trial_number"],
        )
    identity: dict[str, Any] = {}
    try:
        with engine.begin() as connection:
            found = connection.execute(of).mappings().first()
            if found is not None and (
                elsewhere is None
                or same_start(found["trial_start"], elsewhere["trial_start"])
                or found["trial_id"] == elsewhere["trial_id"]
            ):
                identity = dict(found)
            elif elsewhere is not None:
                identity = {**elsewhere, "trial_id": None}
            else:
                raise SpectraError("The trial is no longer in the database: its study was deleted.")
            if engine.dialect.name == "sqlite":
                # Elsewhere the foreign key has removed them, and a delete that finds nothing
                # would lock gaps of the index, which makes neighbours deadlock in InnoDB.
                mine = table.c.trial_id == identity["trial_id"]
                connection.execute(sa.delete(table).where(mine, _table.stale()))
            if old is not None:
                its = {name: identity[name] for name in ("study_name", "trial_number")}
                its |= {name: measured[name] for name in ("module", "state")}
                connection.execute(sa.delete(table).filter_by(**its, step=old))
            connection.execute(sa.insert(table).values(**identity, **measured))
    except sa.exc.IntegrityError:
        key = {name: measured[name] for name in ("module", "step", "state")}
        same = sa.select(table.c.spectrum_id).filter_by(trial_id=identity["trial_id"], **key)
        with engine.connect() as connection:
            if connection.execute(same).first() is None:
                raise  # else another process of this trial stored it first
