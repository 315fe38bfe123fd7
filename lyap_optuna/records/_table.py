"""The table ``lyapunov_spectra``: its columns, its schema version and its migrations.

Loads SQLAlchemy and Alembic; the rest of the package imports it inside functions.
"""

import random
import time
import weakref
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from optuna.storages._rdb import models
from sqlalchemy.dialects import mysql

from lyap_optuna._version import __version__
from lyap_optuna.records._errors import SpectraError

VERSION_TABLE = "lyapunov_version"
"""Alembic's version table for this schema; Optuna's own is ``alembic_version``."""

_MIGRATIONS = Path(__file__).with_name("migrations")
_ATTEMPTS = 8  # to create the table while other processes do the same

TRIALS: sa.Table = models.TrialModel.__table__
STUDIES: sa.Table = models.StudyModel.__table__

# MariaDB and MySQL compare text without regard to case, and drop fractions of seconds, by default.
_NAME = sa.String(512).with_variant(
    mysql.VARCHAR(512, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)
_TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

METADATA = sa.MetaData()

SPECTRA = sa.Table(
    "lyapunov_spectra",
    METADATA,
    sa.Column("spectrum_id", sa.Integer, primary_key=True),
    # Null where the study is not kept in this database (a `DatabaseSink` with a URL).
    sa.Column(
        "trial_id",
        sa.Integer,
        sa.ForeignKey(TRIALS.c.trial_id, ondelete="CASCADE", name="fk_lyapunov_spectra_trial_id"),
    ),
    # SQLite gives the id of a deleted trial to the next one. These three tell them apart.
    sa.Column("study_name", _NAME, nullable=False),
    sa.Column("trial_number", sa.Integer, nullable=False),
    sa.Column("trial_start", _TIME, nullable=False),
    sa.Column("module", _NAME, nullable=False),  # the layer's name
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(32), nullable=False),
    sa.Column("state_size", sa.Integer, nullable=False),
    sa.Column("inputs", sa.Integer, nullable=False),  # how many sequences
    sa.Column("max_exponent", sa.Double, nullable=False),
    sa.Column("mean_exponent", sa.Double, nullable=False),
    sa.Column("clipped_fraction", sa.Double, nullable=False),
    sa.Column("exponents", sa.JSON, nullable=False),
    sa.Column("std", sa.JSON, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.UniqueConstraint("trial_id", "module", "step", "state", name="uq_lyapunov_spectra_trial_id"),
    sa.Index("ix_lyapunov_spectra_study_name", "study_name", "trial_number"),
)


def identities() -> sa.Select[tuple[int, str, int, datetime]]:
    """Return the query for the columns that say whose a spectrum is, over all trials."""
    return sa.select(
        TRIALS.c.trial_id,
        STUDIES.c.study_name,
        TRIALS.c.number.label("trial_number"),
        TRIALS.c.datetime_start.label("trial_start"),
    ).join(STUDIES, STUDIES.c.study_id == TRIALS.c.study_id)


def of_its_trial() -> sa.ColumnElement[bool]:
    """Return the condition that joins a row to its trial and study, and to no other."""
    return sa.and_(
        SPECTRA.c.trial_id == TRIALS.c.trial_id,
        SPECTRA.c.trial_number == TRIALS.c.number,
        SPECTRA.c.trial_start == TRIALS.c.datetime_start,
        TRIALS.c.study_id == STUDIES.c.study_id,
        STUDIES.c.study_name == SPECTRA.c.study_name,
    )


def stale() -> sa.ColumnElement[bool]:
    """Return the condition of rows whose trial is gone, whoever has its id now."""
    return sa.and_(
        SPECTRA.c.trial_id.is_not(None),
        ~sa.exists().where(of_its_trial()).correlate(SPECTRA),
    )


# The schema version ---------------------------------------------------------------------------

_checked: "weakref.WeakSet[sa.Engine]" = weakref.WeakSet()


def exists_in(engine: sa.Engine) -> bool:
    """Whether the database holds the table, in the version that this release knows.

    Raises:
        SpectraError: It holds an older or a newer version, a damaged table, or somebody else's.
    """
    for _ in range(_ATTEMPTS):
        state = _state(engine)
        if state != "unversioned":
            return state == "ready"
        time.sleep(random.uniform(0, 0.1))  # another process creates it just now
    raise SpectraError(
        f"The table {SPECTRA.name} is there, and its row in {VERSION_TABLE} is not. Run "
        "`lyap-optuna storage upgrade --storage $STORAGE_URL` once, which restores it."
    )


def _state(engine: sa.Engine) -> str:
    """Return ``"absent"``, ``"ready"``, or ``"unversioned"``: ours, and its version is not there.

    Raises:
        SpectraError: The table is of an older or a newer version, is damaged, or is not ours.
    """
    if engine in _checked:
        return "ready"
    version = stored_version(engine)
    if version is not None:
        _check(version)
    inspector = sa.inspect(engine)
    if not inspector.has_table(SPECTRA.name):
        if version is None:
            return "absent"
        raise SpectraError(
            f"The table {SPECTRA.name} is gone, and {VERSION_TABLE} says that it was there. "
            f"Restore it from a backup; or drop {VERSION_TABLE}, and the next spectrum begins a "
            "new one."
        )
    missing = {c.name for c in SPECTRA.c} - {c["name"] for c in inspector.get_columns(SPECTRA.name)}
    if missing and version is None:
        raise SpectraError(
            f"The database holds a table or view {SPECTRA.name} that lyap-optuna did not make: it "
            f"has no {_listed(missing)}. Rename it, or keep spectra in another database "
            "(DatabaseSink(URL))."
        )
    if missing:
        raise SpectraError(
            f"The table {SPECTRA.name} has lost {_listed(missing)}. Restore it from a backup; or, "
            f"where nothing in it is needed, drop it and {VERSION_TABLE}, and the next spectrum "
            "begins a new one."
        )
    if version is None:
        return "unversioned"
    _checked.add(engine)
    return "ready"


def _listed(columns: set[str]) -> str:
    first = [name for name in (column.name for column in SPECTRA.c) if name in columns][:3]
    more = f" and {len(columns) - len(first)} more" if len(columns) > len(first) else ""
    return f"column{'s' if len(columns) > 1 else ''} {', '.join(first)}{more}"


def create(engine: sa.Engine) -> None:
    """Create the table where it is absent. Any number of processes may do so at the same moment.

    Raises:
        SpectraError: The table is there, in an older or a newer version, damaged, or not ours.
    """
    for attempt in range(_ATTEMPTS):
        if _state(engine) == "ready":
            return
        try:
            if not sa.inspect(engine).has_table(TRIALS.name):  # no Optuna study was kept here yet
                models.BaseModel.metadata.create_all(engine)
            with engine.begin() as connection:
                connection.execute(sa.schema.CreateTable(SPECTRA, if_not_exists=True))
                for index in SPECTRA.indexes:
                    index.create(connection, checkfirst=True)
                context = MigrationContext.configure(
                    connection, opts={"version_table": VERSION_TABLE}
                )
                context.stamp(ScriptDirectory.from_config(_config()), "head")
        except sa.exc.DBAPIError:
            # Another process was faster, half-way perhaps. If not, the last attempt tells.
            if attempt == _ATTEMPTS - 1 and _state(engine) != "ready":
                raise
            time.sleep(random.uniform(0, 0.1))


def upgrade(engine: sa.Engine) -> tuple[str | None, str]:
    """Bring the table to this release's version, or create it.

    Rows that deleted studies left behind in SQLite, which does not enforce foreign keys by
    default, are removed.

    Returns:
        The versions before, None where there was no table, and after.

    Raises:
        SpectraError: The table is of a newer release.
    """
    before = stored_version(engine)
    if before is None or before == head():
        create(engine)
    else:
        if before not in _known():
            _check(before)
        with engine.begin() as connection:
            config = _config()
            config.attributes["connection"] = connection  # no URL in any configuration
            command.upgrade(config, "head")
    with engine.begin() as connection:
        connection.execute(sa.delete(SPECTRA).where(stale()))
    return before, head()


def head() -> str:
    """Return the schema version of this release."""
    current = ScriptDirectory.from_config(_config()).get_current_head()
    assert current is not None
    return current


def stored_version(engine: sa.Engine) -> str | None:
    """Return the schema version of a database; None where there is none.

    Raises:
        SpectraError: It has several, or its table is not ours.
    """
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(
                connection, opts={"version_table": VERSION_TABLE}
            ).get_current_heads()
    except (sa.exc.OperationalError, sa.exc.ProgrammingError):
        columns = sa.inspect(engine).get_columns(VERSION_TABLE)  # the server answers?
        if any(column["name"] == "version_num" for column in columns):
            raise
        raise SpectraError(
            f"The database holds a table {VERSION_TABLE} that lyap-optuna did not make. Rename it, "
            "or keep spectra in another database (DatabaseSink(URL))."
        ) from None
    if len(found) > 1:
        raise SpectraError(
            f"The table {VERSION_TABLE} holds several versions, {', '.join(map(repr, found))}, "
            f"where there is one. Delete the rows that are not {head()!r}."
        )
    return found[0] if found else None


def _check(version: str) -> None:
    if version == head():
        return
    found = f"The table {SPECTRA.name} has schema version {version!r:.80}, and lyap-optuna "
    if version in _known():
        raise SpectraError(
            f"{found}{__version__} needs {head()!r}. Run `lyap-optuna storage upgrade --storage "
            "$STORAGE_URL` once."
        )
    raise SpectraError(
        f"{found}{__version__} knows {head()!r} at most: a newer release made it. Run `pip "
        "install --upgrade lyap-optuna`."
    )


def _known() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
