"""Files survive a full disk, a kill and what others have planted beside them."""

import csv
import io
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import optuna
import pytest
from _campaigns import Campaign, counts
from _networks import spectrum_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from lyap_optuna._files import AppendLock, harmless, write_whole, written_whole
from lyap_optuna.campaign import CampaignError, open_storage
from lyap_optuna.cli._format import dump
from lyap_optuna.cli._storage import open_storage as open_for_reading
from lyap_optuna.records import (
    ArtifactSink,
    JournalError,
    _journal,
    open_journal,
    write_study_spectra,
)
from lyap_optuna.replay._lines import append_line, read_lines

# A journal whose last line is torn


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A journal of a study with five trials."""
    path = tmp_path_factory.mktemp("journal") / "whole.journal"
    study = optuna.create_study(study_name="s", storage=open_journal(path))
    for k in range(5):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(k, 1)
        study.tell(trial, k)
    return path.read_bytes()


def _told(path: Path) -> list[tuple]:
    # Optuna's own backend is the judge of what a journal holds.
    study = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))
    return [(t.number, t.state, t.params, t.values, t.intermediate_values) for t in study.trials]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_torn_line_costs_nothing_else(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    lines = whole.splitlines(keepends=True)
    n_whole = data.draw(st.integers(1, len(lines) - 1))
    torn = data.draw(
        st.one_of(
            st.integers(1, len(lines[n_whole]) - 1).map(lambda n: lines[n_whole][:n]),
            st.integers(1, 5000).map(lambda n: b"\0" * n),  # a power cut
            st.integers(1, 20).map(lambda n: lines[n_whole][:n] + lines[-1]),  # appended to already
        )
    )
    folder = tmp_path / "one"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path, plain = folder / "c.journal", folder / "plain.journal"
    plain.write_bytes(b"".join(lines[:n_whole]))
    path.write_bytes(plain.read_bytes() + torn)
    before = _told(plain)
    study = optuna.load_study(
        study_name="s", storage=open_storage(str(path), retry_seconds=1, heartbeat_interval=1)
    )
    assert len(study.trials) == len(before)
    trial = study.ask()
    study.tell(trial, 1.0)
    assert _told(path)[: len(before)] == before
    assert len(_told(path)) == len(before) + 1
    assert (folder / "c.journal.torn").read_bytes() == torn
    assert sorted(p.name for p in folder.iterdir()) == [
        "c.journal",
        "c.journal.torn",
        "plain.journal",
    ]


def test_what_was_cut_is_said_and_kept_each_time(
    tmp_path: Path, whole: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.journal"
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "c.journal.torn").symlink_to(victim)
    path.write_bytes(whole)
    logging.getLogger("optuna").addHandler(caplog.handler)
    try:
        for k in (1, 2):
            with path.open("ab") as file:
                file.write(b'{"op_code":4' + b"," * k)
            optuna.load_study(study_name="s", storage=open_journal(path)).set_user_attr("a", k)
    finally:
        logging.getLogger("optuna").removeHandler(caplog.handler)
    assert victim.read_text() == "precious"
    assert (tmp_path / "c.journal.torn2").read_bytes() == b'{"op_code":4,'
    assert (tmp_path / "c.journal.torn3").read_bytes() == b'{"op_code":4,,'
    assert [("13 bytes" in r.message, "14 bytes" in r.message) for r in caplog.records] == [
        (True, False),
        (False, True),
    ]


def test_reading_a_torn_journal_changes_nothing(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "c.journal"
    path.write_bytes(whole[:-7])
    assert len(open_for_reading(str(path)).get_all_studies()) == 1
    assert path.read_bytes() == whole[:-7]


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in ("a line\nhalf a li", '{"name": "config"}\n', "\0\0\0"):
        path.write_text(text)
        with pytest.raises(JournalError, match="not an Optuna journal"):
            open_journal(path)
        assert path.read_text() == text
    path.write_text("1,2\n3,")
    with pytest.raises(ValueError, match="no lines of JSON"):
        append_line(path, {"a": 1})
    assert path.read_text() == "1,2\n3,"
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_damage_in_the_middle_is_named_with_a_way_out(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "my c.journal"
    lines = whole.splitlines(keepends=True)
    lines[6] = lines[6][:9] + lines[6]
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match="line 7: damaged") as caught:
        open_journal(path)
    command = str(caught.value).split("`")[1]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    optuna.load_study(study_name="s", storage=open_journal(tmp_path / "mended.journal"))


def test_threads_that_find_a_torn_line_lose_nothing(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "c.journal"
    path.write_bytes(whole + b'{"op_co')

    def work(name: str) -> None:
        study = optuna.load_study(study_name="s", storage=open_journal(path))
        for k in range(10):
            study.set_user_attr(f"{name}{k}", k)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study = optuna.load_study(study_name="s", storage=open_journal(path))
    assert len(study.user_attrs) == 40


def test_half_a_line_is_not_read_with_the_rest_of_what_takes_its_place(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.journal"
    path.write_bytes(whole)
    backend = open_journal(path)._backend
    lines = whole.splitlines(keepends=True)
    path.write_bytes(whole + b'{"op_code":4,"worker_id":"')

    class Changes(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            read = super().read(size)
            path.write_bytes(whole + lines[-1] * 2)
            return read

    with monkeypatch.context() as patch:
        patch.setattr(_journal, "open", lambda name, *_, **__: Changes(name), raising=False)
        assert list(backend.read_logs(0)) == list(map(json.loads, lines))
    assert list(backend.read_logs(len(lines))) == [json.loads(lines[-1])] * 2


def test_what_does_not_fit_on_the_disk_is_taken_back(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "c.journal"
    path.write_bytes(whole)
    study = optuna.load_study(study_name="s", storage=open_journal(path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for k in range(3):
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 40, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                study.set_user_attr("a", k)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == whole
    study.set_user_attr("a", 3)
    assert study.user_attrs == {"a": 3}
    assert os.listdir(tmp_path) == ["c.journal"]


def test_a_lock_that_was_lost_is_left_to_who_has_it(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "c.journal"
    path.write_bytes(whole)
    stopped, other = AppendLock(str(path)), AppendLock(str(path))
    stopped.acquire()
    AppendLock(str(path)).release()  # as one does that has waited for half a minute
    other.acquire()
    with path.open("ab") as file:
        file.write(b'{"op_code":4,')  # half of what the other writes
    stopped.release()
    assert path.read_bytes() == whole + b'{"op_code":4,'
    assert os.path.lexists(f"{path}.lock")
    other.release()
    assert not os.path.lexists(f"{path}.lock")
    assert path.read_bytes() == whole


FULL = """
from toy import *
import resource

def grows(trial):
    # What a worker may write ends within a line: the disk is full.
    if (HERE / "quota").exists():
        limit = int((HERE / "quota").read_text())
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    trial.set_user_attr("ballast", "x" * 20_000)
    return objective(trial)
"""


def test_a_campaign_goes_on_once_its_full_disk_has_space(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, objective="full:grows", trials=2, workers=2)
    (tmp_path / "full.py").write_text(FULL)
    campaign.run()
    journal = tmp_path / "campaign.journal"
    (tmp_path / "quota").write_text(str(journal.stat().st_size + 30_000))
    campaign.write(objective="full:grows", trials=6, workers=2, max_failures=1)
    with pytest.raises(CampaignError, match="File too large"):
        campaign.run()
    before = {t.number: t for t in campaign.trials if t.state.is_finished()}
    (tmp_path / "quota").unlink()
    campaign.run()
    trials = campaign.trials
    assert counts(trials)["COMPLETE"] == 6
    assert "RUNNING" not in counts(trials)
    for number, was in before.items():
        assert trials[number].intermediate_values == was.intermediate_values
        assert trials[number].user_attrs == was.user_attrs
        assert trials[number].state == was.state
    assert not list(tmp_path.glob("campaign.journal.torn*"))


# Lines of results


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), st.integers() | st.text()), min_size=1),
    cut=st.integers(0, 200),
)
@settings(deadline=None, max_examples=40)
def test_lines_are_read_as_far_as_they_are_whole(rows: list[dict], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a" / "rows.jsonl"
        for row in rows:
            append_line(path, row)
        assert list(read_lines(path)) == rows
        content = path.read_bytes()
        path.write_bytes(content[: max(len(content) - cut, 0)])
        kept = list(read_lines(path))
        assert kept == rows[: len(kept)]
        append_line(path, {"after": 1})
        assert list(read_lines(path)) == [*kept, {"after": 1}]
        torn = path.with_name("rows.jsonl.torn")
        whole = path.read_bytes().removesuffix(b'{"after":1}\n')
        assert (
            whole + (torn.read_bytes() if torn.exists() else b"")
            == (content[: max(len(content) - cut, 0)])
        )


def test_a_line_that_does_not_fit_on_the_disk_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_line(path, {"row": 0})
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from lyap_optuna.replay._lines import append_line\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))\n"
        "append_line(Path(sys.argv[1]), {'row': 'x' * 100})"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == [path]
    assert list(read_lines(path)) == [{"row": 0}]
    append_line(path, {"row": 1})
    assert list(read_lines(path)) == [{"row": 0}, {"row": 1}]


# Cells of exported tables


@pytest.mark.parametrize(
    "text",
    [
        *("=1+1", "+1+1", "-1+1", "@SUM(A1)", "=cmd|' /C calc'!A0", "--1", "-", "+1e", "-inf"),
        *(" =1", "\t=1", "\r=1", "\n1", "\ufeff=1", "\u00a0@x", "＝1", "＋1", "－1", "＠x"),
    ],
)
def test_text_never_begins_as_a_formula(text: str) -> None:
    assert harmless([text, "a"]) == ["'" + text.replace("\r", "\n"), "a"]
    for table in (dump([{text: text}], "csv"), dump([{"a": [text]}], "csv")):
        for row in csv.reader(io.StringIO(table, newline="")):
            for cell in row:
                assert cell.strip()[0] in "'a"


@pytest.mark.parametrize("cell", ["", "a=1", "-1.5", "+.5e-3", "1", -1.5, 3, None, True, "a-b"])
def test_numbers_and_plain_text_stay(cell: object) -> None:
    assert harmless([cell]) == [cell]


def test_exported_spectra_hold_no_formula(tmp_path: Path) -> None:
    entry = {"max": -1.0, "mean": -2.0, "quantiles": [-2.0, -1.0]}
    study = optuna.create_study()
    layers = {"=HYPERLINK(1)": entry, "@b": entry}
    study.add_trial(
        optuna.create_trial(
            value=-1.0, user_attrs={"lyapunov:readouts": {"1": {**entry, "layers": layers}}}
        )
    )
    write_study_spectra(str(tmp_path / "s.csv"), study)
    rows = list(csv.reader((tmp_path / "s.csv").open(newline="")))
    assert {row[5] for row in rows[1:]} == {"'=HYPERLINK(1)", "'@b"}
    assert rows[1][2] == "-1"
    trial = study.ask()
    store = FileSystemArtifactStore(tmp_path)
    ArtifactSink(store).write(trial, 1, {"+b": spectrum_of([-1.0], [0.5])})
    (file,) = optuna.artifacts.get_all_artifact_meta(study.trials[1], storage=study._storage)
    rows = store.open_reader(file.artifact_id).read().decode().splitlines()
    assert rows[1] == "'+b,1,-1,0.5"


# Files that are replaced


@pytest.mark.parametrize("step", ["os.fsync", "os.chmod", "os.replace"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a.csv"
    write_whole(path, "old")

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(step, full)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    write_whole(path, "old")

    def write() -> None:
        with written_whole(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 1


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name in ("file/page.html", "folder", "n" * 300):
        with pytest.raises(OSError, match=r"^\[Errno \d+\] ") as raised:
            write_whole(tmp_path / name, "text")
        assert raised.value.filename == str(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_the_longest_name_that_a_folder_takes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("漢" * 83 + ".html")  # 254 bytes of 255
    write_whole(path, "text")
    assert path.read_text() == "text"
