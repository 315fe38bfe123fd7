"""Whole spectra in a real database: SQLite, PostgreSQL, MariaDB, and what can go wrong there."""

import contextlib
import io
import logging
import math
import multiprocessing
import re
import warnings

import optuna
import pytest
import sqlalchemy as sa
import torch
from _networks import make_inputs, spectrum_of
from _servers import KINDS, execute, server_url
from _storages import Proxy
from alembic import autogenerate, command
from alembic.migration import MigrationContext
from click.testing import CliRunner
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from test_probe import same, train
from torch import nn

import lyap_optuna as lyap
from lyap_optuna.campaign import RetryingStorage
from lyap_optuna.cli import main
from lyap_optuna.records import (
    SpectraError,
    _copies,
    _table,
    copy_study,
    is_incomplete,
    upgrade_spectra,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def make_probe(units=6, seed=0, **options):
    torch.manual_seed(seed)
    model = nn.GRU(3, units, batch_first=True).double()
    return lyap.LyapunovProbe(model, make_inputs(4, 25, 3), full_spectrum=True, **options)


def write(trial, step=1, exponents=(-0.5, -1.0), std=None, *, layer="rnn"):
    lyap.DatabaseSink().write(trial, step, {layer: spectrum_of(exponents, std)})


def engine_of(study):
    return study._storage._backend.engine


def rows(url, columns="trial_id"):
    """What the table holds, whoever it belongs to."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return connection.exec_driver_sql(
            f"SELECT {columns} FROM lyapunov_spectra ORDER BY spectrum_id"
        ).all()


def run(*arguments, code=0):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result.output


@contextlib.contextmanager
def statements(engine):
    """Record the statements and transactions that an engine sends."""
    seen = []

    def note(connection, cursor, statement, *args):
        seen.append(re.sub(r"\s+", " ", statement))

    def commit(connection):
        seen.append("COMMIT")

    sa.event.listen(engine, "before_cursor_execute", note)
    sa.event.listen(engine, "commit", commit)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
        sa.event.remove(engine, "commit", commit)


@pytest.fixture
def log():
    """What the package logs, at Optuna's default verbosity."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logger = logging.getLogger("lyap_optuna")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield text
    logger.removeHandler(handler)
    logger.setLevel(before)


# What is stored is what was measured ----------------------------------------------------------


def test_what_is_loaded_is_what_was_measured(database_url):
    study = optuna.create_study(study_name="<b> 'ü' \n 😀", storage=database_url)
    trial = study.ask()
    probe = make_probe()
    probe.report(trial, 0.5, 1)
    measured = probe.measure().spectrum
    reopened = optuna.load_study(study_name=study.study_name, storage=database_url)
    spectra = lyap.load_spectra(reopened)
    assert [(s.trial_number, s.step) for s in spectra] == [(0, 0), (0, 1)]
    for s in spectra:
        assert s.exponents == tuple(measured.exponents.tolist())  # to the last bit
        assert s.std == tuple(measured.std.tolist())
        assert (s.layer, s.state, s.state_size, s.sequences) == ("", "full", 6, 4)
        assert s.clipped_fraction == 0
        assert s.max == measured.max
        assert s.mean == pytest.approx(measured.mean, abs=1e-15)
        assert s.variance == pytest.approx(measured.variance, rel=1e-12)
        assert s.kaplan_yorke_dimension == measured.kaplan_yorke_dimension
        assert s.created_at.utcoffset().total_seconds() == 0
    assert lyap.load_spectra(study, step=1) == spectra[1:]
    assert lyap.load_spectra(study, trial_number=1) == []
    assert set(study.trials[0].user_attrs) >= {"lyapunov:max", "lyapunov:readouts"}


def test_reading_creates_nothing(database_url):
    study = optuna.create_study(storage=database_url)
    assert lyap.load_spectra(study) == []
    tables = sa.inspect(engine_of(study)).get_table_names()
    assert not [t for t in tables if t.startswith("lyapunov")]


def test_layers_states_and_steps_are_kept_apart(database_url):
    """Names are told apart by case too, which MariaDB does not by default."""
    study = optuna.create_study(storage=database_url)
    trial = study.ask()
    for layer in ("RNN", "rnn", "x" * 512):
        for step in (-1, 0, 3_000_000_000):
            write(trial, step, layer=layer)
    spectra = lyap.load_spectra(study)
    assert len({(s.layer, s.step) for s in spectra}) == 9


def test_the_layer_is_named_as_in_the_model(database_url):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.LSTM(3, 4, batch_first=True))

        def forward(self, x):
            return self.encoder(x)

    study = optuna.create_study(storage=database_url)
    model = nn.DataParallel(Model())
    for options in ({}, {"layer": "encoder.0"}, {"layer": model.module.encoder[0]}):
        probe = lyap.LyapunovProbe(
            model,
            make_inputs(2, 12, 3, dtype=torch.float32),
            full_spectrum=True,
            state="full",
            **options,
        )
        probe.record(study.ask(), 1)
    assert {(s.layer, s.state, len(s.exponents)) for s in lyap.load_spectra(study)} == {
        ("encoder.0", "full", 8)
    }


def test_stored_numbers_are_finite(database_url):
    study = optuna.create_study(storage=database_url)
    write(study.ask(), exponents=[0.0, -15.0, -17.0, -math.inf], std=[0.1, 0.2, 0.3, math.nan])
    (s,) = lyap.load_spectra(study)
    assert s.exponents == (0.0, -15.0, -16.0, -16.0)
    assert s.std == (0.1, 0.2, 0.3, None)
    assert s.clipped_fraction == 0.5
    (row,) = rows(database_url, "max_exponent, mean_exponent")
    assert tuple(row) == (0.0, -47 / 4)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            write(study.ask(), exponents=[bad, -1.0])


def test_4096_exponents(database_url):
    """MariaDB and MySQL keep 65,535 bytes in a TEXT column; this takes more than twice that."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randn(4096, generator=generator, dtype=torch.float64).sort(descending=True)[0]
    std = torch.rand(4096, generator=generator, dtype=torch.float64)
    study = optuna.create_study(storage=database_url)
    write(study.ask(), exponents=exponents.tolist(), std=std.tolist())
    (s,) = lyap.load_spectra(study)
    assert s.exponents == tuple(exponents.tolist())
    assert s.std == tuple(std.tolist())
    length = {"sqlite": "LENGTH(exponents)", "postgresql": "LENGTH(exponents::text)"}
    (row,) = rows(
        database_url, length.get(sa.make_url(database_url).get_backend_name(), "LENGTH(exponents)")
    )
    assert row[0] > 65_535


def test_the_first_spectrum_of_a_step_stays(database_url):
    """Several processes of one trial may store the same step."""
    study = optuna.create_study(storage=database_url)
    trial = study.ask()
    write(trial, exponents=[-1.0])
    write(trial, exponents=[-2.0])
    assert [s.max for s in lyap.load_spectra(study)] == [-1.0]
    assert len(rows(database_url)) == 1


def test_a_spectrum_is_one_transaction(database_url):
    study = optuna.create_study(storage=database_url)
    trial = study.ask()
    write(trial, 1)  # makes the table
    with statements(engine_of(study)) as seen:
        write(trial, 2)
    assert seen.count("COMMIT") == 1
    assert len(seen) <= 4
    assert sum(s.startswith("INSERT INTO lyapunov_spectra") for s in seen) == 1


def test_trials_in_threads(database_url):
    study = optuna.create_study(storage=database_url)

    def objective(trial):
        write(trial, exponents=[-float(trial.number)])
        return 0.0

    study.optimize(objective, n_trials=6, n_jobs=2)
    assert [(s.trial_number, s.max) for s in lyap.load_spectra(study)] == [
        (i, -float(i)) for i in range(6)
    ]


def test_training_is_bit_identical(database_url):
    """Not only the exponents leave no trace, their way into the database leaves none either."""
    study = optuna.create_study(storage=database_url)
    outcomes = []
    for probed in (False, True):
        outcome = train(0, probed, trial=study.ask(), full_spectrum=True)
        outcomes.append(outcome | {"random": torch.get_rng_state()})
    for name in outcomes[0]:
        assert same(outcomes[0][name], outcomes[1][name]), name
    assert len(lyap.load_spectra(study)) == 7


# Trials come and go -----------------------------------------------------------------------------


@pytest.mark.parametrize("new_name", ["study", "another"])
def test_sqlite_reuses_trial_ids_and_a_stale_spectrum_is_nobodys(new_database, new_name):
    url = new_database("sqlite")
    study = optuna.create_study(study_name="study", storage=url)
    dead = study.ask()
    for step in (1, 2):
        write(dead, step, exponents=[-1.0])
    optuna.delete_study(study_name="study", storage=url)
    study = optuna.create_study(study_name=new_name, storage=url)
    trial = study.ask()
    assert trial._trial_id == dead._trial_id
    assert trial.number == dead.number
    assert len(rows(url)) == 2  # no foreign key removed them
    assert lyap.load_spectra(study) == []
    write(trial, 2, exponents=[-2.0])
    assert [(s.step, s.max) for s in lyap.load_spectra(study)] == [(2, -2.0)]
    assert len(rows(url)) == 1


def test_upgrade_removes_what_deleted_studies_left_in_sqlite(new_database):
    url = new_database("sqlite")
    for name in ("kept", "deleted"):
        study = optuna.create_study(study_name=name, storage=url)
        write(study.ask())
    optuna.delete_study(study_name="deleted", storage=url)
    assert len(rows(url)) == 2
    run("storage", "upgrade", "--storage", url)
    assert [r[0] for r in rows(url, "study_name")] == ["kept"]


def test_deleting_a_study_deletes_its_spectra_on_servers(server_database_url):
    for name in ("kept", "deleted"):
        study = optuna.create_study(study_name=name, storage=server_database_url)
        for _ in range(2):
            write(study.ask())
    optuna.delete_study(study_name="deleted", storage=server_database_url)
    assert [r[0] for r in rows(server_database_url, "study_name")] == ["kept", "kept"]


def test_a_deleted_study_costs_a_warning_and_no_spectrum(database_url):
    study = optuna.create_study(storage=database_url)
    write(study.ask(), 1)
    trial = study.ask()
    optuna.delete_study(study_name=study.study_name, storage=database_url)
    with pytest.raises(SpectraError, match="its study was deleted"):
        write(trial, 2)


@pytest.mark.parametrize("inherit_values", [False, True])
def test_a_retried_trial_has_its_own_spectra(database_url, inherit_values):
    study = optuna.create_study(storage=database_url)
    dead = study.ask()
    make_probe(seed=1).report(dead, 0.5, 1)
    study.tell(dead, state=optuna.trial.TrialState.FAIL)
    retry = optuna.storages.RetryHeartbeatStaleTrialCallback(
        inherit_intermediate_values=inherit_values
    )
    retry(study, study.trials[0])
    assert lyap.load_spectra(study, trial_number=1) == []
    probe = make_probe(seed=2)
    probe.report(study.ask(), 0.5, 2 if inherit_values else 1)
    spectra = lyap.load_spectra(study)
    steps = [(s.trial_number, s.step) for s in spectra]
    assert steps == [(0, 0), (0, 1), *([(1, 2)] if inherit_values else [(1, 0), (1, 1)])]
    assert spectra[-1].max == probe.measure().max
    assert spectra[0].max != spectra[-1].max


def test_an_enqueued_trial_starts_when_it_runs(database_url):
    study = optuna.create_study(storage=database_url)
    study.enqueue_trial({})
    write(study.ask())
    assert len(lyap.load_spectra(study)) == 1


# Many processes ---------------------------------------------------------------------------------


def _create_at_the_same_moment(url, study_name, trial_id, barrier, failures):
    try:
        study = optuna.load_study(study_name=study_name, storage=url)
        trial = optuna.trial.Trial(study, trial_id)
        barrier.wait(240)
        write(trial, exponents=[-float(trial.number)])
    except BaseException as error:
        failures.put(repr(error))
        raise


def test_many_processes_create_the_table_at_the_same_moment(database_url):
    n = 6
    study = optuna.create_study(storage=database_url)
    trials = [study.ask() for _ in range(n)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_spectra_table"])
    barrier, failures = context.Barrier(n), context.SimpleQueue()
    processes = [
        context.Process(
            target=_create_at_the_same_moment,
            args=(database_url, study.study_name, trial._trial_id, barrier, failures),
        )
        for trial in trials
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert failures.empty() or pytest.fail(failures.get())
    assert [p.exitcode for p in processes] == [0] * n
    assert [s.max for s in lyap.load_spectra(study)] == [-float(i) for i in range(n)]
    assert _table.stored_version(engine_of(study)) == _table.head()


# Schema versions --------------------------------------------------------------------------------


def test_a_newer_release_made_the_table(database_url):
    study = optuna.create_study(storage=database_url)
    write(study.ask(), exponents=[-1.0])
    execute(database_url, "UPDATE lyapunov_version SET version_num = 'v99.0.0.a'")
    study = optuna.load_study(study_name=study.study_name, storage=database_url)
    with pytest.raises(RuntimeError, match=r"'v99.0.0.a'.* newer release .* --upgrade lyap-optuna"):
        lyap.load_spectra(study)
    probe, trial = make_probe(), study.ask()
    with pytest.warns(lyap.LyapunovWarning, match="newer release") as caught:
        probe.report(trial, 0.5, 1)
        probe.report(trial, 0.4, 2)
    assert len(caught) == 1
    assert list(study.trials[1].user_attrs["lyapunov:readouts"]) == ["0", "1", "2"]
    assert "newer release" in run("storage", "upgrade", "--storage", database_url, code=1)
    assert rows(database_url, "max_exponent") == [(-1.0,)]


NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "v9.0.0.a", "v0.1.0.a"


def upgrade():
    with op.batch_alter_table("lyapunov_spectra") as batch:
        batch.add_column(sa.Column("note", sa.String(8), nullable=True))
"""


def test_an_older_table_is_upgraded_by_the_command(database_url, tmp_path, monkeypatch):
    study = optuna.create_study(storage=database_url)
    write(study.ask(), exponents=[-1.0])
    # The next release: one more migration.
    (tmp_path / "next").mkdir()
    (tmp_path / "next" / "v9_0_0_a.py").write_text(NEXT)
    real = _table._config

    def config():
        made = real()
        made.set_main_option("version_locations", f"{_table._MIGRATIONS}/versions:{tmp_path}/next")
        return made

    monkeypatch.setattr(_table, "_config", config)
    study = optuna.load_study(study_name=study.study_name, storage=database_url)
    with pytest.raises(RuntimeError, match=r"'v0.1.0.a'.*`lyap-optuna storage upgrade --storage"):
        lyap.load_spectra(study)
    probe, trial = make_probe(), study.ask()
    with pytest.warns(lyap.LyapunovWarning, match="storage upgrade"):
        probe.report(trial, 0.5, 1)
    output = run("storage", "upgrade", "--storage", database_url)
    assert "from schema v0.1.0.a to v9.0.0.a" in output
    probe.report(trial, 0.5, 2)
    assert [(s.trial_number, s.step) for s in lyap.load_spectra(study)] == [(0, 1), (1, 2)]
    assert rows(database_url, "note") == [(None,), (None,)]
    assert "up to date" in run("storage", "upgrade", "--storage", database_url)


def test_the_upgrade_creates_the_table(database_url):
    study = optuna.create_study(storage=database_url)
    assert "Created the table" in run("storage", "upgrade", "--storage", database_url)
    assert lyap.load_spectra(study) == []
    write(study.ask())
    assert len(rows(database_url)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_table_equals_a_migrated_one(new_database, kind):
    """A database of any age, brought to the head by Alembic, is what `create` makes at once."""
    name, inspected = "lyapunov_spectra", []
    for migrated in (False, True):
        engine = RDBStorage(new_database(kind)).engine
        if migrated:
            with engine.begin() as connection:
                config = _table._config()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        else:
            _table.create(engine)
        with engine.connect() as connection:
            options = {
                "version_table": _table.VERSION_TABLE,
                "include_name": lambda found, kind, _: kind != "table" or found == name,
            }
            context = MigrationContext.configure(connection, opts=options)
            assert autogenerate.compare_metadata(context, _table.METADATA) == []
        inspector = sa.inspect(engine)
        inspected.append(
            [
                [{k: str(v) for k, v in c.items()} for c in inspector.get_columns(name)],
                inspector.get_foreign_keys(name)[0]["options"],
                sorted(map(str, inspector.get_unique_constraints(name))),
                sorted(map(str, inspector.get_indexes(name))),
            ]
        )
    assert inspected[0] == inspected[1]
    assert inspected[0][1]["ondelete"] == "CASCADE"


def test_optunas_own_schema_version_is_left_alone(database_url):
    study = optuna.create_study(storage=database_url)
    before = engine_of(study), RDBStorage(database_url).get_current_version()
    write(study.ask())
    assert RDBStorage(database_url).get_current_version() == before[1]


# Copies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [("sqlite", "postgresql"), ("postgresql", "mariadb"), ("mariadb", "sqlite")],
)
def test_copy_study_leaves_spectra_behind_and_storage_copy_does_not(new_database, source, target):
    source, target = new_database(source), new_database(target)
    other = optuna.create_study(study_name="other", storage=target)
    write(other.ask())  # ids and numbers differ
    study = optuna.create_study(study_name="a", storage=source)
    study.enqueue_trial({})
    for _ in range(3):
        trial = study.ask()
        make_probe(seed=trial.number).report(trial, 0.5, 1)
        study.tell(trial, 0.5)
    optuna.copy_study(from_study_name="a", from_storage=source, to_storage=target)
    assert lyap.load_spectra(optuna.load_study(study_name="a", storage=target)) == []
    arguments = ("storage", "copy", "--storage", source, "--study-name", "a", "--to-storage")
    for url, name in ((target, "b"), (source, "c")):  # elsewhere, and into the same database
        output = run(*arguments, url, "--to-study-name", name)
        assert "3 trials, 6 spectra" in output
        copied = optuna.load_study(study_name=name, storage=url)
        assert lyap.load_spectra(copied) == lyap.load_spectra(study)
    assert "already holds a study 'a'" in run(*arguments, target, code=1)
    assert len(lyap.load_spectra(other)) == 1


def test_a_copy_that_fails_leaves_no_study(new_database):
    source, target = new_database("sqlite"), new_database("sqlite")
    study = optuna.create_study(study_name="a", storage=source)
    write(study.ask())
    write(optuna.create_study(study_name="other", storage=target).ask())
    execute(target, "UPDATE lyapunov_version SET version_num = 'v99.0.0.a'")
    output = run(
        "storage", "copy", "--storage", source, "--study-name", "a", "--to-storage", target, code=1
    )
    assert "newer release" in output
    assert optuna.get_all_study_names(target) == ["other"]


class Killed(BaseException):
    """What a process that was killed does after it: nothing."""


WRITES = ("create_new_study", "set_study_system_attr", "set_study_user_attr", "_create_new_trial")


def kill_at(monkeypatch, n_writes, *, before):
    """Let a process die right before or after one of its writes; whether it came so far."""
    done = []

    def dying(write):
        def call(*args, **kwargs):
            done.append(write)
            if len(done) == n_writes and before:
                raise Killed
            if len(done) > n_writes:
                raise Killed
            result = write(*args, **kwargs)
            if len(done) == n_writes:
                raise Killed
            return result

        return call

    for name in WRITES:
        monkeypatch.setattr(RDBStorage, name, dying(getattr(RDBStorage, name)))
    spectra = _copies.copy_spectra
    monkeypatch.setattr(_copies, "copy_spectra", dying(spectra))
    return done


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [True, False])
def test_a_copy_killed_anywhere_is_made_anew(new_database, monkeypatch, kind, before):
    source, target = new_database("sqlite"), new_database(kind)
    study = optuna.create_study(study_name="a", storage=source)
    study.set_user_attr("u", 1)
    for _ in range(2):
        trial = study.ask()
        make_probe(seed=trial.number).report(trial, 0.5, 1)
        study.tell(trial, 0.5)
    trials, spectra = study.trials, lyap.load_spectra(study)
    optuna.create_study(study_name="other", storage=target)
    for n_writes in range(1, 20):
        into = optuna.storages.get_storage(target)
        with monkeypatch.context() as patched:
            writes = kill_at(patched, n_writes, before=before)
            with contextlib.suppress(Killed):
                copy_study(study, into, "a")
            if len(writes) < n_writes:
                break
        try:
            copy_study(study, optuna.storages.get_storage(target), "a")
        except optuna.exceptions.DuplicatedStudyError:
            assert n_writes == 7  # its last write was done
        copied = optuna.load_study(study_name="a", storage=target)
        assert not is_incomplete(copied)
        assert [t.values for t in copied.trials] == [t.values for t in trials]
        assert [t.user_attrs for t in copied.trials] == [t.user_attrs for t in trials]
        assert copied.user_attrs == study.user_attrs
        assert lyap.load_spectra(copied) == spectra
        assert len(spectra) == 4
        optuna.delete_study(study_name="a", storage=target)
    assert n_writes == 8
    assert sorted(optuna.get_all_study_names(target)) == ["a", "other"]


def test_an_incomplete_copy_says_so_and_is_no_source(new_database, monkeypatch):
    source, target = new_database("sqlite"), new_database("sqlite")
    study = optuna.create_study(study_name="a", storage=source)
    study.enqueue_trial({})
    with monkeypatch.context() as patched:
        kill_at(patched, 3, before=False)
        with pytest.raises(Killed):
            copy_study(study, optuna.storages.get_storage(target), "a")
    assert "is an incomplete copy" in run("rank", "--storage", target)
    arguments = ("storage", "copy", "--storage", target, "--to-storage", target)
    assert "itself an incomplete copy" in run(*arguments, code=1)
    assert optuna.get_all_study_names(target) == ["a"]
    assert "1 trials, 0 spectra" in run("storage", "copy", "--storage", source, *arguments[4:])
    assert "incomplete" not in run("rank", "--storage", target)


def test_of_two_copies_at_once_one_is_whole(new_database, monkeypatch):
    source, target = new_database("sqlite"), new_database("sqlite")
    study = optuna.create_study(study_name="a", storage=source)
    for _ in range(3):
        study.enqueue_trial({})
    add = optuna.Study.add_trial
    added = []

    def overtaken(copy, trial):
        add(copy, trial)
        added.append(trial)
        if len(added) == 2:
            copy_study(study, optuna.storages.get_storage(target), "a")

    monkeypatch.setattr(optuna.Study, "add_trial", overtaken)
    with pytest.raises(SpectraError, match="has taken its place"):
        copy_study(study, optuna.storages.get_storage(target), "a")
    whole = optuna.load_study(study_name="a", storage=target)
    assert len(whole.trials) == 3
    assert not is_incomplete(whole)


def test_copying_a_study_without_spectra(new_database):
    source, target = new_database("sqlite"), new_database("sqlite")
    optuna.create_study(study_name="a", storage=source)
    output = run("storage", "copy", "--storage", source, "--to-storage", target)
    assert "0 trials, 0 spectra" in output


# A table that is not as this package made it ----------------------------------------------------


FOREIGN = {
    "few columns": "CREATE TABLE lyapunov_spectra (a INTEGER)",
    "our names": "CREATE TABLE lyapunov_spectra (study_name VARCHAR(50), trial_number INTEGER, "
    "trial_id INTEGER, step INTEGER, theirs VARCHAR(9))",
    "a view": "CREATE VIEW lyapunov_spectra AS SELECT study_name, study_id AS step FROM studies",
    "their versions": "CREATE TABLE lyapunov_version (version INTEGER)",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_foreign_table_is_left_alone(new_database, kind, foreign):
    url = new_database(kind)
    study = optuna.create_study(study_name="s", storage=url)
    execute(url, FOREIGN[foreign])
    trial = study.ask()
    with pytest.warns(lyap.LyapunovWarning, match="that lyap-optuna did not make"):
        make_probe().report(trial, 0.5, 1)
    assert len(study.trials[0].user_attrs["lyapunov:readouts"]) == 2
    for attempt in (
        lambda: lyap.load_spectra(optuna.load_study(study_name="s", storage=url)),
        lambda: upgrade_spectra(RDBStorage(url)),
    ):
        with pytest.raises(SpectraError, match=r"did not make.*Rename it"):
            attempt()
    inspector = sa.inspect(sa.create_engine(url))
    assert not inspector.has_table("lyapunov_version") or foreign == "their versions"
    if foreign in ("few columns", "our names"):
        assert inspector.get_indexes("lyapunov_spectra") == []
    if foreign == "their versions":
        assert not inspector.has_table("lyapunov_spectra")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("DELETE FROM lyapunov_version", "its row in lyapunov_version is not"),
        ("DROP TABLE lyapunov_version", "its row in lyapunov_version is not"),
        ("INSERT INTO lyapunov_version VALUES ('v9')", "holds several versions"),
        ("ALTER TABLE lyapunov_spectra DROP COLUMN std", "has lost column std"),
        ("ALTER TABLE lyapunov_spectra DROP COLUMN max_exponent", "has lost column max_exponent"),
        ("DROP TABLE lyapunov_spectra", "lyapunov_spectra is gone"),
    ],
)
def test_damage_is_an_error_with_a_way_out_and_never_an_empty_list(
    new_database, kind, damage, message
):
    url = new_database(kind)
    study = optuna.create_study(study_name="s", storage=url)
    trial = study.ask()
    make_probe().report(trial, 0.5, 1)
    before = lyap.load_spectra(study)
    assert len(before) == 2
    execute(url, damage)
    again = optuna.load_study(study_name="s", storage=url)
    with pytest.raises(SpectraError, match=message) as caught:
        lyap.load_spectra(again)
    way_out = str(caught.value)
    if "storage upgrade" in way_out:
        assert "from schema" not in run("storage", "upgrade", "--storage", url)
        assert lyap.load_spectra(optuna.load_study(study_name="s", storage=url)) == before
    elif "Delete the rows" in way_out:
        execute(url, f"DELETE FROM lyapunov_version WHERE NOT version_num = '{_table.head()}'")
        assert lyap.load_spectra(optuna.load_study(study_name="s", storage=url)) == before
    else:
        if "drop it" in way_out:
            execute(url, "DROP TABLE lyapunov_spectra")
        execute(url, "DROP TABLE lyapunov_version")
        again = optuna.load_study(study_name="s", storage=url)
        assert lyap.load_spectra(again) == []
        write(again.ask(), step=2)
        assert len(lyap.load_spectra(again)) == 1


# Databases that refuse --------------------------------------------------------------------------


@contextlib.contextmanager
def read_only(url):
    """Yield the URL of the same database for a user who may only read."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        yield f"sqlite:///file:{parsed.database}?mode=ro&uri=true"
        return
    user = f"u{parsed.database[-16:]}"
    server = server_url({"mysql": "mariadb"}.get(parsed.get_backend_name(), "postgresql"))
    if parsed.get_backend_name() == "postgresql":
        execute(server, f"CREATE ROLE {user} LOGIN PASSWORD 's3cret'")
        execute(url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user}")
        drop = f"DROP OWNED BY {user}"
    else:
        execute(server, f"CREATE USER {user} IDENTIFIED BY 's3cret'")
        execute(server, f"GRANT SELECT ON {parsed.database}.* TO {user}")
        drop = "DO 0"
    try:
        yield parsed.set(username=user, password="s3cret").render_as_string(hide_password=False)
    finally:
        execute(url, drop)
        execute(server, f"DROP {'ROLE' if 'postgresql' in url else 'USER'} {user}")


@pytest.mark.parametrize("with_table", [False, True])
def test_a_read_only_database_harms_no_training(database_url, with_table):
    study = optuna.create_study(storage=database_url)
    if with_table:
        write(study.ask(), exponents=[-1.0])
    trial_id = study.ask()._trial_id
    alone = train(0, False)
    with read_only(database_url) as url:
        study = optuna.load_study(
            study_name=study.study_name,
            storage=RDBStorage(url, skip_table_creation=True),
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
        trial = optuna.trial.Trial(study, trial_id)

        class Recording:
            """Training that records readouts without a loss: no write is Optuna's own."""

            def report(self, value, step):
                pass

            def __getattr__(self, name):
                return getattr(trial, name)

        with pytest.warns(lyap.LyapunovWarning) as caught:
            probed = train(0, True, trial=Recording(), full_spectrum=True)
        # Connections that earlier tests left to the garbage collector warn where they like.
        ours = [str(w.message) for w in caught if issubclass(w.category, lyap.LyapunovWarning)]
        assert len(ours) == 1
        (message,) = ours
        assert re.search(r"not stored \(StorageInternalError: .*(read-?only|denied)", message)
        assert "s3cret" not in message
        for name in alone:
            assert same(alone[name], probed[name]), name
        assert [s.max for s in lyap.load_spectra(study)] == [-1.0] * with_table
        with pytest.raises(optuna.exceptions.StorageInternalError):  # as `trial.report` itself
            make_probe().report(trial, 0.5, 1)
    study = optuna.load_study(study_name=study.study_name, storage=database_url)
    assert study.trials[-1].user_attrs == {}
    assert len(lyap.load_spectra(study)) == with_table


def test_without_the_right_to_create_tables_readouts_are_stored(new_database):
    url = new_database("postgresql")
    study = optuna.create_study(study_name="a", storage=url)
    with read_only(url) as worker_url:
        worker = sa.make_url(worker_url).username

        def grant():
            for what in ("TABLES", "SEQUENCES"):
                execute(url, f"GRANT ALL ON ALL {what} IN SCHEMA public TO {worker}")

        grant()
        execute(url, f"REVOKE CREATE ON SCHEMA public FROM {worker}")
        storage = RDBStorage(worker_url, skip_table_creation=True)
        study = optuna.load_study(study_name="a", storage=storage)
        probe, trial = make_probe(), study.ask()
        with pytest.warns(lyap.LyapunovWarning, match="permission denied .*readout was") as caught:
            probe.report(trial, 0.5, 1)
            probe.report(trial, 0.5, 2)
        assert len(caught) == 1
        assert list(study.trials[0].user_attrs["lyapunov:readouts"]) == ["0", "1", "2"]
        run("storage", "upgrade", "--storage", url)  # by the administrator
        grant()
        probe.report(trial, 0.5, 3)
        assert [s.step for s in lyap.load_spectra(study)] == [3]


# Storages that are no databases -----------------------------------------------------------------


def test_in_memory_and_journal_studies_say_why_once(tmp_path, log):
    journal = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    for storage, where in ((None, "in memory"), (journal, "in a journal")):
        study = optuna.create_study(storage=storage)
        for _ in range(2):
            probe, trial = make_probe(), study.ask()
            probe.report(trial, 0.5, 1)
            probe.report(trial, 0.4, 2)
        said = log.getvalue().splitlines()
        assert len([line for line in said if f"kept {where}" in line]) == 1
        assert "sink=DatabaseSink(URL)" in said[-1]
        with pytest.raises(ValueError, match=f"kept {where}.*spectra_url="):
            lyap.load_spectra(study)


def test_a_trial_without_a_storage_stores_no_spectrum_and_says_nothing(log):
    make_probe().report(optuna.trial.FixedTrial({}), 0.5, 1)
    assert log.getvalue() == ""


def test_a_journal_study_with_a_database_for_its_spectra(database_url, tmp_path):
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    study = optuna.create_study(study_name="a", storage=storage)
    probe = make_probe(sink=lyap.DatabaseSink(database_url))
    probe.report(study.ask(), 0.5, 1)
    spectra = lyap.load_spectra(study, spectra_url=database_url)
    assert [(s.trial_number, s.step) for s in spectra] == [(0, 0), (0, 1)]
    assert spectra[1].max == probe.measure().spectrum.max
    assert {r[0] for r in rows(database_url)} == {None}
    # Copied into that database, the study finds its spectra there.
    optuna.copy_study(from_study_name="a", from_storage=storage, to_storage=database_url)
    assert lyap.load_spectra(optuna.load_study(study_name="a", storage=database_url)) == spectra


def test_a_journal_study_made_again_under_its_name_has_no_stale_spectra(database_url, tmp_path):
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    optuna.create_study(study_name="a", storage=storage).ask()
    study = optuna.load_study(study_name="a", storage=storage)
    make_probe(seed=1, sink=lyap.DatabaseSink(database_url)).report(study.ask(), 0.5, 1)
    optuna.delete_study(study_name="a", storage=storage)
    study = optuna.create_study(study_name="a", storage=storage)
    for _ in range(2):
        trial = study.ask()
    assert lyap.load_spectra(study, spectra_url=database_url) == []
    probe = make_probe(seed=2, sink=lyap.DatabaseSink(database_url))
    probe.report(trial, 0.5, 1)
    there = lyap.load_spectra(study, spectra_url=database_url)
    assert [(s.trial_number, s.step) for s in there] == [(1, 0), (1, 1)]
    assert {s.max for s in there} == {probe.measure().max}


def test_reading_makes_no_file(tmp_path):
    url = f"sqlite:///{tmp_path / 'absent.db'}"
    with pytest.raises(ValueError, match="does not exist"):
        lyap.load_spectra(optuna.create_study(), spectra_url=url)
    assert list(tmp_path.iterdir()) == []


def test_behind_a_grpc_proxy(database_url, log):
    server = Proxy(RDBStorage(database_url))
    proxy = optuna.storages.GrpcStorageProxy(host="localhost", port=server.port)
    try:
        proxy.wait_server_ready(timeout=30)
        study = optuna.create_study(study_name="a", storage=proxy)
        trial = study.ask()
        make_probe().report(trial, 0.5, 1)
        assert re.search(r"gRPC proxy.*sink=DatabaseSink", log.getvalue())
        trial = study.ask()
        make_probe(sink=lyap.DatabaseSink(database_url)).report(trial, 0.5, 1)
        there = lyap.load_spectra(study, spectra_url=database_url)
        assert [(s.trial_number, s.step) for s in there] == [(1, 0), (1, 1)]
        # In the proxy's own database, they belong to its trials.
        assert {r[0] for r in rows(database_url)} == {trial._trial_id}
        assert lyap.load_spectra(optuna.load_study(study_name="a", storage=database_url)) == there
    finally:
        proxy.close()
        server.stop()


def test_every_way_to_an_rdb_storage_is_recognised(new_database):
    url = new_database("sqlite")
    for storage in (url, RDBStorage(url), RetryingStorage(url)):
        study = optuna.create_study(storage=storage)
        write(study.ask())
        assert len(lyap.load_spectra(study)) == 1


def test_a_storage_that_waits_for_its_database_repeats_spectra_too(new_database, monkeypatch):
    study = optuna.create_study(storage=RetryingStorage(new_database("sqlite")))
    failures, create = [sa.exc.TimeoutError()], _table.create

    def create_at_last(engine):
        if failures:
            raise failures.pop()
        create(engine)

    monkeypatch.setattr(_table, "create", create_at_last)
    write(study.ask())
    assert not failures
    assert len(lyap.load_spectra(study)) == 1


# Cost -------------------------------------------------------------------------------------------


def test_opening_a_study_never_reads_the_table(database_url):
    study = optuna.create_study(study_name="a", storage=database_url)
    for _ in range(12):
        trial = study.ask()
        make_probe(seed=trial.number).report(trial, 0.5 + trial.number, 1)
        study.tell(trial, 0.5 + trial.number)
    study = optuna.load_study(study_name="a", storage=database_url, pruner=lyap.LyapunovPruner())
    with statements(engine_of(study)) as seen:
        study.get_trials()
        lyap.rank_trials(study)
        lyap.prediction_skill(study)
        lyap.visualization.plot_spectrum(study)
        trial = study.ask()
        trial.report(1.0, 1)
        trial.should_prune()
    assert seen
    assert not [s for s in seen if "lyapunov_spectra" in s]
    with statements(engine_of(study)) as seen:
        lyap.load_spectra(study)
    assert [s for s in seen if "lyapunov_spectra" in s]


def test_reading_a_trial_does_not_scan_the_table(new_database):
    study = optuna.create_study(study_name="a", storage=new_database("sqlite"))
    write(study.ask())
    with statements(engine_of(study)) as seen:
        lyap.load_spectra(study, trial_number=0)
    with engine_of(study).connect() as connection:
        for statement in seen:
            if "lyapunov_spectra" in statement:
                arguments = ("a", 0) if "study_name" in statement else (1,)
                arguments = arguments[: statement.count("?")]
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", arguments)
                assert not [step for *_, step in plan if "SCAN lyapunov_spectra" in step]


# What people do to databases --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("exponents", "oops"),
        ("exponents", '[1, "x"]'),
        ("exponents", "[NaN]"),
        ("exponents", "{}"),
        ("exponents", "[]"),
        ("std", "[0.1]"),
        ("std", "3"),
        ("created_at", "yesterday"),
        ("state_size", "many"),
    ],
)
def test_what_does_not_validate_is_ignored_with_a_warning(new_database, column, value):
    url = new_database("sqlite")
    study = optuna.create_study(storage=url)
    trial = study.ask()
    write(trial, 1)
    write(trial, 2)
    execute(url, f"UPDATE lyapunov_spectra SET {column} = '{value}' WHERE step = 1")
    with pytest.warns(lyap.LyapunovWarning, match=r"Ignored 1 invalid .* trial 0, step 1"):
        spectra = lyap.load_spectra(study)
    assert [s.step for s in spectra] == [2]
    with pytest.warns(lyap.LyapunovWarning, match=r"Ignored 1 invalid .* trial 0, step 1"):
        copy = ("storage", "copy", "--storage", url, "--to-storage", url, "--to-study-name", "copy")
        assert "1 trials, 1 spectra" in run(*copy)
    assert lyap.load_spectra(optuna.load_study(study_name="copy", storage=url)) == spectra


# Passwords --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:s3cret@127.0.0.1:1/d",
        "mysql+pymysql://u:s3cret@127.0.0.1:1/d",
        "mysql+pymysql://127.0.0.1:1/d?user=u&password=s3cret",
        "postgresql+nodriver://u:s3cret@127.0.0.1:1/d",
    ],
)
def test_passwords_reach_no_warning_no_log_and_no_attribute(url, log):
    study = optuna.create_study()
    logging.getLogger("lyap_optuna").setLevel(logging.DEBUG)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe = make_probe(sink=lyap.DatabaseSink(url))
        probe.report(study.ask(), 0.5, 1)
    assert [w for w in caught if "spectrum at step 0 was not stored" in str(w.message)]
    assert "Traceback" in log.getvalue()
    shown = [log.getvalue(), repr(study.trials), *(str(w.message) for w in caught)]
    assert not [text for text in shown if "s3cret" in text]
    for command_line in (
        ("storage", "upgrade", "--storage", url),
        ("--debug", "storage", "upgrade", "--storage", url),
    ):
        assert "s3cret" not in run(*command_line, code=1)


@pytest.mark.parametrize(
    "text", ["postgresql://u:s3cret@h/d", "mysql://h/d?user=u&password=s3cret", "pwd=s3cret host=h"]
)
def test_a_driver_that_shows_the_url_is_not_repeated(log, monkeypatch, text):
    def refuse(*args, **kwargs):
        raise sa.exc.OperationalError("INSERT", {}, Exception(f"cannot connect to {text}"))

    logging.getLogger("lyap_optuna").setLevel(logging.DEBUG)
    monkeypatch.setattr(lyap.DatabaseSink, "write", refuse)
    with pytest.warns(lyap.LyapunovWarning, match=r"OperationalError: cannot connect.*\*\*\*") as w:
        make_probe().report(optuna.create_study().ask(), 0.5, 1)
    assert "s3cret" not in str(w[0].message)
    assert "cannot connect" in log.getvalue()
    assert "s3cret" not in log.getvalue()


def test_passwords_of_the_target_of_a_copy(new_database):
    source = new_database("sqlite")
    optuna.create_study(storage=source)
    target = "postgresql+psycopg://u:s3cret@127.0.0.1:1/d"
    arguments = ("storage", "copy", "--storage", source, "--to-storage", target)
    assert "s3cret" not in run("--debug", *arguments, code=1)


@pytest.mark.parametrize(
    "url", ["u:s3cret@host", "s3cret", "", 3, b"s3cret", "postgresql://u:s3cret@h:port/d"]
)
def test_what_is_no_url_of_a_database_is_refused(url):
    with pytest.raises(ValueError, match="url must be the URL of a database") as caught:
        lyap.DatabaseSink(url)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ValueError, match="spectra_url must be the URL of a database") as caught:
        lyap.load_spectra(optuna.create_study(), spectra_url=url)
    assert "s3cret" not in str(caught.value)
