"""The soak of the databases' page: it draws what it says, and sees what is lost or doubled."""

import json
import tempfile
from pathlib import Path

import optuna
import psutil
import pytest
from click.testing import CliRunner

from lyap_optuna.campaign import open_storage
from studies.soak import objective
from studies.soak.__main__ import main
from studies.soak.audit import Audit, audit, rows_in_database, rows_in_journal
from studies.soak.faults import OF_JOURNALS, OF_SERVERS, draw_faults
from studies.soak.ledger import Ledger, read_ledgers


def test_a_seed_draws_the_same_faults():
    short, long, other = (
        draw_faults(OF_SERVERS, seed, seconds=seconds, gap=8.0)
        for seed, seconds in (("1 x", 600), ("1 x", 6000), ("2 x", 600))
    )
    assert long[: len(short)] == short != other
    assert all(fault.at < 600 for fault in short)
    assert {fault.kind for fault in long} == set(OF_SERVERS)
    assert {f.kind for f in draw_faults(OF_JOURNALS, 0, seconds=6000, gap=8.0)} == set(OF_JOURNALS)


class Study:
    """Trials of the soak's objective in this process, and what the audit says of them."""

    def __init__(self, url: str, folder: Path, *, loses: int | None = None) -> None:
        self.url, self.folder = url, folder
        storage = open_storage(url, retry_seconds=1, heartbeat_interval=60)
        self.study = optuna.create_study(study_name="s", storage=storage)
        for x in (0.1, 0.951, 0.87, 0.201):  # loops from 0 and 1; each way in which trials end
            self.study.enqueue_trial({"x": x})
        if loses is not None:
            objective.make_lossy(self.study._storage, loses)
        ledger = Ledger(folder)
        self.study.optimize(
            lambda trial: objective.train(trial, ledger), n_trials=4, catch=RuntimeError
        )

    def audit(self) -> Audit:
        study = optuna.load_study(
            study_name="s", storage=open_storage(self.url, retry_seconds=1, heartbeat_interval=60)
        )
        journal = "://" not in self.url
        rows = rows_in_journal(self.url, study) if journal else rows_in_database(self.url)
        return audit(study, read_ledgers(self.folder), rows)


@pytest.fixture
def ledgers(tmp_path, monkeypatch):
    monkeypatch.setattr(objective, "PAUSE", 0.0)
    folder = tmp_path / "ledgers"
    folder.mkdir()
    return folder


@pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")
def test_where_nothing_breaks_everything_is_there_once(database_url, ledgers):
    found = Study(database_url, ledgers).audit()
    assert found.problems == []
    assert set(found.states) == {"COMPLETE", "FAIL", "PRUNED"}
    assert set(found.counts) == {"trials", "values", "readouts", "spectra"}
    for count in found.counts.values():
        assert count.sent == count.acknowledged == count.stored > 0


def test_the_audit_sees_what_is_lost_doubled_and_wrong(tmp_path, ledgers):
    path = tmp_path / "s.journal"
    study = Study(str(path), ledgers, loses=10)
    found = study.audit()
    values = found.counts.pop("values")
    assert values.lost == values.sent // 10 > 0
    assert values.stored == values.sent - values.lost
    assert all(count.lost == 0 for count in found.counts.values())

    lines = path.read_text().splitlines()
    again = next(line for line in lines if '"intermediate_value":' in line)
    path.write_text("\n".join([*lines, again]) + "\n")
    assert "doubled: values of trial 0, step 0" in study.audit().problems

    changed = [json.loads(line) for line in lines]
    for line in changed:
        readouts = line.get("user_attr", {}).get("lyapunov:readouts", {})
        if line.get("trial_id") == 0 and "3" in readouts:
            readouts["7"] = readouts["3"]
            readouts["2"]["max"] = 5.0
    path.write_text("".join(json.dumps(line) + "\n" for line in changed))
    problems = [p for p in study.audit().problems if "readouts" in p]
    assert sorted(problems) == [
        "doubled: readouts of trial 0, step 3",
        "lost: readouts of trial 0, step 2",
        "wrong: readouts of trial 0, step 2",
    ]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run(*options: str) -> tuple[int, str]:
        before = psutil.Process().children()
        result = CliRunner().invoke(main, ["--storage", "journal", "--workers", "1", *options])
        assert psutil.Process().children() == before
        return result.exit_code, result.output

    return run


def test_a_storage_that_loses_reports_is_found_out(run):
    code, output = run("--minutes", "0.01", "--loses", "1")
    assert code == 1, output
    assert "lost: values of trial 0, step" in output


@pytest.mark.slow
def test_a_journal_loses_nothing_while_things_break(run):
    code, output = run("--minutes", "0.1", "--gap", "2")
    assert code == 0, output
    assert "0 faults" not in output
    assert "lost:" not in output


@pytest.mark.parametrize(
    "option", ["--minutes=nan", "--minutes=-1", "--gap=0", "--gap=inf", "--workers=0", "--loses=0"]
)
def test_a_number_that_means_nothing_is_refused(option):
    result = CliRunner().invoke(main, ["--storage", "journal", option])
    assert result.exit_code == 2
    assert option.partition("=")[0] in result.output
