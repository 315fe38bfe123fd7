"""Campaigns: what a file may say, and that no trial is lost or run twice whatever happens."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import distributed
import optuna
import psutil
import pytest
import sqlalchemy as sa
from _campaigns import Campaign, counts
from click.testing import CliRunner, Result
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import TrialState

from lyap_optuna._extras import how_to_install
from lyap_optuna.campaign import (
    CampaignConfig,
    CampaignError,
    CampaignFileError,
    _sole,
    load_config,
    open_storage,
    open_study,
    previous_attempt,
    storage_of,
)
from lyap_optuna.campaign._objective import check_name
from lyap_optuna.campaign._recovery import (
    REPEATS,
    Settled,
    marked,
    owner,
    process_is_gone,
    repeat_interrupted,
    settle,
)
from lyap_optuna.campaign._retry import INTERRUPTED, WORKER
from lyap_optuna.campaign._sole import SoleRun
from lyap_optuna.campaign._worker import worker_seed
from lyap_optuna.cli import main
from lyap_optuna.cli._campaign import _best_value, _how_it_ended
from lyap_optuna.records import Decision, write_decision

OBJECTIVES = '''
import os
import signal
import time

import optuna
import psutil
import torch


def square(trial):
    x = trial.suggest_float("x", -1.0, 1.0)
    for step in range(6):
        trial.report(x * x + 1 / (1 + step), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x * x


def odd_ones_pruned(trial):
    x = trial.suggest_float("x", -1.0, 1.0)
    trial.report(x, 0)
    trial.set_user_attr("threads", torch.get_num_threads())
    trial.set_user_attr("omp", os.environ["OMP_NUM_THREADS"])
    trial.set_user_attr("pid", os.getpid())
    if trial.number % 2:
        raise optuna.TrialPruned
    return x


def first_attempts_die(trial):
    x = trial.suggest_float("x", -1.0, 1.0)
    trial.report(x, 0)
    if trial.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def always_dies(trial):
    trial.suggest_float("x", -1.0, 1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def looks_around(trial):
    """Store what `ps` shows of this process and its parents."""
    x = trial.suggest_float("x", -1.0, 1.0)
    process = psutil.Process()
    lines = [" ".join(p.cmdline()) for p in [process, *process.parents()]]
    trial.set_user_attr("lines", lines)
    trial.set_user_attr("pid", os.getpid())
    time.sleep(0.1)  # so that the other worker has its share
    return x


def fails(trial):
    trial.suggest_float("x", -1.0, 1.0)
    raise ValueError("cannot reach postgresql://me:hunter2@host/db")


def on_a_grid(trial):
    return trial.suggest_int("i", 0, 2)


def until_stopped(trial):
    """Trial 0 ends; the others report until they are stopped, and ask for that once."""
    x = trial.suggest_float("x", -1.0, 1.0)
    if trial.number == 0 or os.path.exists("go"):
        return x
    number = getattr(signal, os.environ["LYAP_TEST_SIGNAL"])
    for step in range(3000):
        trial.report(x, step)
        if trial.should_prune():
            raise optuna.TrialPruned
        if step == 1 and trial.number == 1:
            os.kill(os.getppid(), number)
        time.sleep(0.01)
    return x


def never_reports(trial):
    """Trial 1 asks to be stopped, and again after the note of the first time can be seen."""
    x = trial.suggest_float("x", -1.0, 1.0)
    if trial.number == 0:
        return x
    for _ in range(300):
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(0.1)
    return x
'''


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that writes a campaign file into a folder that has objectives."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "objectives.py").write_text(OBJECTIVES)

    def write(objective: str = "square", **content: object) -> Path:
        content = {"study": "tune", "objective": f"objectives:{objective}", "trials": 4} | content
        path = tmp_path / "campaign.yaml"
        path.write_text("".join(f"{key}: {json.dumps(v)}\n" for key, v in content.items()))
        return path

    return write


def _run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["campaign", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def _in_a_process(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "from lyap_optuna.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "campaign", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )


def _study(path: Path) -> Study:
    config = load_config(path)
    return open_study(config, storage_of(config, config.workers or 1), create=False)


def _states(study: Study) -> list[str]:
    return sorted(trial.state.name for trial in study.get_trials(deepcopy=False))


# The file.


def _refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(CampaignFileError) as caught:
        load_config(path)
    return str(caught.value).replace(str(path), "FILE")


MINIMAL = "study: tune\nobjective: package.module:function\ntrials: 20\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "workrs: 2\n", "FILE, line 4: workrs: unknown key. Did you mean workers?"),
        (MINIMAL + "workers: two\n", "FILE, line 4: workers: Input should be a valid integer"),
        (MINIMAL + "workers: '2'\n", "FILE, line 4: workers: Input should be a valid integer"),
        (MINIMAL + "trials: 3\n", "FILE, line 4: trials: given twice."),
        (MINIMAL.replace("20", "0"), "FILE, line 3: trials: Input should be greater than 0"),
        (MINIMAL.replace(":function", ""), "FILE, line 2: objective: must have the form"),
        ("study: tune\ntrials: 3\n", "FILE, line 1: objective: Field required"),
        (MINIMAL + "sampler: TPESampler\n  x: 1\n", "FILE, line 5: mapping values are not"),
        (MINIMAL + "sampler:\n  name: TPESample\n", "FILE, line 4: sampler: there is no"),
        (MINIMAL + "sampler:\n  name: TPESampler\n  n: 1\n", "does not accept these options"),
        (MINIMAL + "pruner: Lyapunov\n", "Did you mean LyapunovPruner"),
        (MINIMAL + "strategy: {name: screen}\n", "FILE, line 4: strategy"),
        (MINIMAL + "strategy: {name: freeze_thaw, steps: 2}\n", "steps: unknown key"),
        (MINIMAL + "strategy: {name: freeze_thaw, max_pause: 2}\n", "Did you mean max_paused?"),
        (MINIMAL + "strategy: freezethaw\n", "line 4: strategy: give prune or freeze_thaw, or"),
        (MINIMAL + "strategy: {n_steps: 9}\n", "line 4: strategy: give prune or freeze_thaw, or"),
        (
            MINIMAL + "pruner: MedianPruner\nstrategy: freeze_thaw\n",
            "pruner has no place beside the strategy freeze_thaw",
        ),
        (MINIMAL + "storage: ${NO_SUCH_VARIABLE}\n", "NO_SUCH_VARIABLE is not set"),
        ("study: !!python/object/apply:os.getcwd []\n", "FILE, line 1: could not determine"),
        ("- study\n", "FILE, line 1: a campaign file is a mapping"),
        ("", "FILE, line 1: a campaign file is a mapping"),
    ],
)
def test_a_file_that_is_not_valid_is_refused_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    assert message in _refused(tmp_path, text)


def _bomb(levels: int, wide: int = 9) -> str:
    rows = ["a0: &a0 [x]\n"]
    rows += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * wide)}]\n" for i in range(1, levels)]
    return "".join(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_bomb(9) + MINIMAL, "line 5: more than 10000 values, with aliases written out"),
        (MINIMAL + _bomb(400, 2), "values, with aliases written out"),
        (MINIMAL + "sampler: {name: &a [*b, *b], b: &b [*a]}\n", "FILE, line 4: found undefined"),
        (MINIMAL + "sampler: &a {name: TPESampler, x: *a}\n", "line 4: a value that contains"),
        (MINIMAL + "sampler: &a [*a]\n", "FILE, line 4: a value that contains itself"),
        (MINIMAL + "dask: " + "[" * 5000, "FILE, line 4: more than 20 levels deep"),
        (MINIMAL + "dask: " + "{a: " * 5000, "FILE, line 4: more than 20 levels deep"),
        (MINIMAL + "- " * 5000, "FILE, line 4:"),
        (MINIMAL + "x: " + "y" * 70_000, "FILE, line 4: the file is larger than 65536 bytes"),
        (MINIMAL + "? [a, b]\n: 1\n", "FILE, line 4: a key must be text"),
        (MINIMAL + "? {a: b}\n: 1\n", "FILE, line 4: a key must be text"),
        (MINIMAL + "pruner: {? [a] : 1}\n", "FILE, line 4: a key must be text"),
        (MINIMAL + "2: 1\n", "FILE, line 4: a key must be text"),
        (MINIMAL + "null: 1\n", "FILE, line 4: a key must be text"),
        (MINIMAL + "<<: [1]\n", "FILE, line 4: expected a mapping"),
        (MINIMAL + "<<: 1\n", "FILE, line 4: expected a mapping"),
        (MINIMAL + "seed: !!int x\n", "FILE, line 4: "),
        (MINIMAL + "seed: !!float ''\n", "FILE, line 4: "),
        (MINIMAL + "seed: !!timestamp x\n", "FILE, line 4: "),
        (MINIMAL + "seed: 2001-99-99\n", "FILE, line 4: month must be"),
        (MINIMAL + "seed: !!bool maybe\n", "FILE, line 4: "),
        (MINIMAL + "seed: !!binary 1\n", "FILE, line 4: "),
        (MINIMAL + f"seed: {'9' * 5000}\n", "FILE, line 4: "),
        (MINIMAL + f"seed: 0x{'f' * 5000}\n", "FILE, line 4: a number must be finite"),
        (MINIMAL + f"seed: 1{':59' * 20_000}\n", "FILE, line 4: a number must be finite"),
        (MINIMAL + "retry_seconds: .inf\n", "FILE, line 4: a number must be finite"),
        (MINIMAL + "time_limit: .nan\n", "FILE, line 4: a number must be finite"),
        (MINIMAL + "time_limit: 1.0e+999\n", "FILE, line 4: a number must be finite"),
        (MINIMAL + "time_limit: 1.0e+12\n", "FILE, line 4: time_limit: Input should be less"),
        (MINIMAL + f"heartbeat_interval: {10**21}\n", "FILE, line 4: a number must be finite"),
        (MINIMAL + f"heartbeat_interval: {10**10}\n", "line 4: heartbeat_interval: Input should"),
        (MINIMAL + f"retry_seconds: {10**10}\n", "line 4: retry_seconds: Input should"),
        (MINIMAL + f"workers: {10**6}\n", "FILE, line 4: workers: Input should be less"),
        (MINIMAL + f"threads_per_worker: {10**12}\n", "line 4: threads_per_worker: Input should"),
        (MINIMAL.replace("20", str(2**31)), "FILE, line 3: trials: Input should be less"),
        (MINIMAL + "sampler: {name: TPESampler, n_startup_trials: .inf}\n", "line 4: a number"),
        (MINIMAL.replace("tune", '"a\\0b"'), "FILE, line 1: text must not hold the character NUL"),
        (MINIMAL.replace("tune", '"a\\ud800b"'), "FILE, line 1: text must be valid Unicode"),
        (MINIMAL.replace("tune", "t" * 600), "FILE, line 1: study: String should have at most"),
        (MINIMAL + "x: a\x07b\n", "FILE, line 4: special characters are not allowed"),
        (MINIMAL + "storage: /proc/no\0pe\n", "FILE, line 4: special characters"),
    ],
    ids=lambda text: repr(text)[-30:],
)
def test_a_file_that_would_exhaust_or_crash_is_refused_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    assert message in _refused(tmp_path, text)


def test_aliases_that_stay_small_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("sampler: &x {name: TPESampler, seed: &n 3}\ntrials: *n\n" + MINIMAL[:-11])
    assert load_config(path).trials == 3


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(MINIMAL.encode() + b"seed: \xff\n")
    with pytest.raises(CampaignFileError, match="line 4: it is not UTF-8"):
        load_config(path)
    with pytest.raises(CampaignFileError, match="cannot be read"):
        load_config(tmp_path)
    with pytest.raises(CampaignFileError, match="/dev/zero"):
        load_config("/dev/zero")


@pytest.mark.parametrize(
    "storage",
    [
        "me:hunter2@db.example/optuna",
        "me:hunter2@db.example:5432/optuna",
        ":hunter2@db.example",
        "//me:hunter2@db.example/optuna",
        "://me:hunter2@db.example/optuna",
        "postgresql:/me:hunter2@db.example/optuna",
        "postgresql//me:hunter2@db.example/optuna",
        "postgresql:me:hunter2@db.example/optuna",
        "db.example/optuna?user=me&password=hunter2",
        "host=db.example user=me password=hunter2",
        "host=db.example user=me passwd = hunter2",
    ],
)
@pytest.mark.parametrize("command", ["run", "status"])
def test_a_url_without_its_scheme_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DB_URL", storage)
    for text in ("${DB_URL}", storage):
        Path("file.yaml").write_text(MINIMAL + f"storage: '{text}'\n")
        result = CliRunner().invoke(main, ["campaign", command, "file.yaml"])
        assert result.exit_code == 1
        assert "file.yaml, line 4: storage: it holds a login" in result.output
        assert "hunter2" not in result.output
    with pytest.raises(ValueError, match="begins with no scheme") as caught:
        open_storage(storage, retry_seconds=1, heartbeat_interval=1)
    assert "hunter2" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file.yaml"]


@pytest.mark.parametrize("path", ["a/c.journal", "./12:30@gpu/c.journal", "me@host/c.journal"])
def test_a_path_is_still_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    open_storage(path, retry_seconds=1, heartbeat_interval=1)
    assert Path(path).exists()


def test_a_place_that_cannot_be_written_to_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file.yaml"
    for place in ("/proc/nope/x.journal", str(tmp_path / "file" / "x.journal"), str(tmp_path)):
        text = MINIMAL.replace("package.module:function", "json:loads")
        path.write_text(text + f"workers: 2\nstorage: {place}\n")
        result = CliRunner().invoke(main, ["campaign", "run", str(path)])
        assert result.exit_code == 1
        assert f"{path}, line 5: storage: " in result.output


def test_all_that_is_wrong_is_told_at_once_and_the_password_is_not(tmp_path: Path) -> None:
    text = MINIMAL + "storage: postgresql://me:hunter2@host/db\nworkers: two\nseeed: 3\n"
    told = _refused(tmp_path, text)
    assert "line 5: workers" in told
    assert "line 6: seeed" in told
    assert "hunter2" not in told


def test_defaults_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(MINIMAL + "storage: postgresql://me:${SECRET}@host/db\n")
    monkeypatch.setenv("SECRET", "hunter2")
    config = load_config(path)
    assert storage_of(config, 4) == "postgresql://me:hunter2@host/db"
    assert "hunter2" not in f"{config} {config!r}"
    assert config.direction == "minimize"
    assert config.strategy.name == "prune"


def test_the_docs_describe_every_key_and_their_examples_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "campaigns.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(
        CampaignConfig.model_fields
    )
    monkeypatch.setenv("DB_PASSWORD", "hunter2")
    examples = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 3
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.yaml"
        path.write_text(example if "study:" in example.split("#")[0] else MINIMAL + example)
        load_config(path)


def test_one_worker_uses_sqlite_and_several_a_journal(campaign: Callable[..., Path]) -> None:
    config = load_config(campaign())
    assert storage_of(config, 1) == f"sqlite:///{config.path.with_suffix('.db')}"
    assert storage_of(config, 2) == str(config.path.with_suffix(".journal"))
    config.path.with_suffix(".journal").touch()
    assert storage_of(config, 1) == str(config.path.with_suffix(".journal"))
    config.path.with_suffix(".db").touch()
    with pytest.raises(ValueError, match="cannot share an SQLite file"):
        storage_of(config, 2)
    with pytest.raises(ValueError, match="cannot share an SQLite file"):
        storage_of(load_config(campaign(storage="sqlite:///x.db")), 2)


def test_seeds_differ_unless_the_sampler_shares_a_sequence() -> None:
    def seeds(sampler: str) -> set[int]:
        config = CampaignConfig.model_validate(
            {"study": "s", "objective": "m:f", "trials": 5, "seed": 7, "sampler": sampler}
        )
        return {worker_seed(config, index, n) for index in range(3) for n in (0, 10)}

    assert len(seeds("RandomSampler")) == 6
    assert seeds("RandomSampler") == seeds("RandomSampler")
    assert seeds("QMCSampler") == {7}


# What happens to trials that did not end by themselves, without any process.


@pytest.fixture
def journal(tmp_path: Path) -> Study:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    return optuna.create_study(storage=storage)


def recover(study: Study, dead: Callable[[Mapping[str, Any]], bool], **options: Any) -> Settled:
    return settle(study, marked(study, dead), lambda number: False, **options)


def _running(study: Study, task: str = "t", **mark: object) -> optuna.Trial:
    trial = study.ask()
    trial.suggest_float("x", 0.0, 1.0)
    trial.set_user_attr(WORKER, owner(task) | mark)
    return trial


def test_a_dead_workers_trial_is_retried_once_with_its_attributes(journal: Study) -> None:
    first = _running(journal)
    first.set_user_attr("note", "kept")
    assert recover(journal, lambda mark: mark["task"] == "other") == Settled()
    assert recover(journal, lambda mark: mark["task"] == "t") == Settled([0])
    assert recover(journal, lambda mark: True) == Settled()
    second = journal.ask()
    assert second.params == first.params
    assert second.user_attrs == {"note": "kept"}  # and not the mark of the dead
    assert previous_attempt(second) == 0
    second.set_user_attr(WORKER, owner("t"))
    assert recover(journal, lambda mark: True) == Settled([1])
    assert _states(journal) == ["FAIL", "FAIL"]


def test_an_interrupted_trial_is_queued_exactly_once(journal: Study) -> None:
    first = _running(journal)
    first.report(0.5, 0)
    assert recover(journal, lambda mark: mark["task"] == "t", interrupted=True) == Settled([0])
    assert [repeat_interrupted(journal) for _ in range(3)] == [1, 0, 0]
    second = journal.ask()
    assert second.suggest_float("x", 0.0, 1.0) == first.params["x"]
    assert second.user_attrs[REPEATS] == 0
    assert previous_attempt(second) == 0
    # Once more: the repetition is interrupted too, and its worker dies on the way.
    second.set_user_attr(WORKER, owner("u"))
    second.set_user_attr(INTERRUPTED, True)
    assert recover(journal, lambda mark: True) == Settled([1])
    assert [repeat_interrupted(journal) for _ in range(3)] == [1, 0, 0]
    assert journal.ask().user_attrs[REPEATS] == 1
    assert _states(journal) == ["FAIL", "FAIL", "RUNNING"]


def test_the_previous_attempt_is_the_latest(journal: Study) -> None:
    journal.enqueue_trial({"x": 0.5}, user_attrs={"lyapunov:continues": 40})
    for _ in range(2):
        trial = journal.ask()
        trial.set_user_attr(WORKER, owner("t"))
        attempts = [previous_attempt(trial)]
        recover(journal, lambda mark: True, interrupted=True)
        repeat_interrupted(journal)
        again = journal.ask()
        again.set_user_attr(WORKER, owner("t"))
        attempts.append(previous_attempt(again))
        recover(journal, lambda mark: True)
        assert attempts == [40 if trial.number == 0 else trial.number - 1, trial.number]
    last = journal.ask()
    assert previous_attempt(last) == last.number - 1
    assert last.user_attrs["lyapunov:continues"] == 40


def test_only_processes_of_this_machine_that_have_ended_are_gone() -> None:
    parent = psutil.Process(os.getppid())
    alive = owner("t") | {"pid": parent.pid, "started": parent.create_time()}
    assert not process_is_gone(owner("t"))
    assert not process_is_gone(alive)
    assert process_is_gone(alive | {"started": 0.0})  # the process id was given to another
    assert not process_is_gone(alive | {"started": 0.0, "host": "elsewhere"})
    for odd in ({"pid": "1"}, {"pid": None}, {"pid": [1]}, {"host": 3}, {"host": None}):
        assert not process_is_gone(alive | {"started": 0.0} | odd)
    assert process_is_gone(alive | {"pid": 2**70})


@pytest.mark.parametrize("step", [-7200.0, -2.0, 0.5, 2.0, 1e9])
def test_a_clock_that_is_set_makes_nobody_gone(
    monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    parent = psutil.Process(os.getppid())
    mark = owner("t") | {"pid": parent.pid, "started": parent.create_time()}
    create_time, boot_time = psutil.Process.create_time, psutil.boot_time
    monkeypatch.setattr(psutil, "boot_time", lambda: boot_time() + step)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + step)
    assert not process_is_gone(mark)
    assert process_is_gone(mark | {"started": mark["started"] - 60})


def test_what_cannot_be_told_from_here_is_not_gone() -> None:
    dead = owner("t") | {"pid": 2**22 + 1}
    boot, namespace = dead["space"].split()
    assert process_is_gone(dead)
    assert not process_is_gone(dead | {"space": f"{boot} pid:[1]"})  # another container
    assert not process_is_gone(dead | {"space": f"{boot} pid:[1]"}, one_machine=True)
    rebooted = dead | {"space": f"00000000-0000 {namespace}"}  # or a machine of the same name
    assert not process_is_gone(rebooted)
    assert process_is_gone(rebooted, one_machine=True)
    assert not process_is_gone(rebooted | {"host": "elsewhere"}, one_machine=True)
    for missing in ("space", "started", "booted", "pid", "host"):
        part = {key: value for key, value in dead.items() if key != missing}
        assert process_is_gone(part) == (missing in ("started", "booted"))
        alive = part | ({"pid": os.getppid()} if missing != "pid" else {})
        assert not process_is_gone(alive | {"started": None})


# One run at a time


@pytest.mark.parametrize("workers", [1, 3])
def test_two_runs_at_once_never_run_more_than_the_total(tmp_path: Path, workers: int) -> None:
    toy = Campaign(tmp_path, objective="toy:slow", trials=6, workers=workers)
    with toy.process() as first, toy.process() as second:
        outputs = [process.communicate(timeout=110)[0] for process in (first, second)]
    assert sorted([first.returncode, second.returncode]) in ([0, 0], [0, 1])
    for process, output in zip((first, second), outputs, strict=True):
        assert process.returncode == 0 or "The campaign is running already: process" in output
    assert counts(toy.trials) == {"COMPLETE": 6}


def test_a_run_is_refused_while_another_runs_and_then_goes_on(tmp_path: Path) -> None:
    toy = Campaign(tmp_path, trials=2, workers=2)
    hold = toy.hold()
    with toy.process() as process:
        for number in (0, 1):
            toy.pid_at(number, 0)
        with pytest.raises(CampaignError, match=f"running already: process {process.pid} on"):
            toy.run()
        assert counts(toy.trials) == {"RUNNING": 2}
        hold.unlink()
        process.communicate(timeout=110)
    assert counts(toy.trials) == {"COMPLETE": 2}
    toy.write(trials=3, workers=2)
    toy.run()
    toy.run()
    assert counts(toy.trials) == {"COMPLETE": 3}


def _begin(study: Study, run: str, notes: list[str] | None = None) -> SoleRun:
    return SoleRun(study, run, one_machine=False, note=(notes or []).append)


def test_a_run_elsewhere_is_known_by_its_signs_of_life(
    journal: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sole, "_BEAT_SECONDS", 0.3)
    monkeypatch.setattr(_sole, "_SETTLE_SECONDS", 0.0)

    def elsewhere(beat: int) -> None:
        mark = owner("", "theirs") | {"host": "elsewhere", "beat": beat}
        journal._storage.set_study_system_attr(journal._study_id, "lyapunov:campaign_run", mark)

    elsewhere(0)
    beating = threading.Timer(0.2, elsewhere, [1])
    beating.start()
    with pytest.raises(CampaignError, match=r"process \d+ on elsewhere"):
        _begin(journal, "ours")
    beating.join()
    _begin(journal, "ours").release()  # no sign came
    _begin(journal, "ours again").release()


def test_a_run_whose_place_was_taken_ends(journal: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sole, "_SETTLE_SECONDS", 0.0)
    first = _begin(journal, "first")
    first.beat()
    monkeypatch.setattr(_sole, "_BEAT_SECONDS", -1.0)
    first.beat()
    with pytest.raises(CampaignError, match="running already"):
        _begin(journal, "second")
    monkeypatch.setattr(_sole, "_has_ended", lambda *_: True)
    second = _begin(journal, "second")
    with pytest.raises(CampaignError, match="running already"):
        first.beat()
    first.release()
    second.beat()
    second.release()
    for odd in (3, "run", {"run": [1]}, {"run": "x", "pid": "y", "host": 3}, None):
        key = "lyapunov:campaign_run"
        journal._storage.set_study_system_attr(journal._study_id, key, odd)
        _begin(journal, "third").release()


def test_hand_edited_marks_are_ignored(journal: Study) -> None:
    for odd in (None, 3, "worker", ["task"], {}):
        journal.ask().set_user_attr(WORKER, odd)
    assert recover(journal, process_is_gone) == Settled()
    trial = journal.ask()
    trial.set_user_attr(REPEATS, "zero")
    assert previous_attempt(trial) is None


@pytest.mark.filterwarnings("ignore::lyap_optuna.LyapunovWarning")
def test_status_shows_odd_names_and_attributes_harmlessly(campaign: Callable[..., Path]) -> None:
    config = load_config(path := campaign(study="<b>[red]x\n\x1b[31m"))
    study = open_study(config, storage_of(config, 1))
    for odd in ("<script>", float("nan"), True, [1], {"a": None}, None):
        keys = ("worker", "interrupted", "repeats", "continues", "screen", "readouts", "trial")
        attrs = {f"lyapunov:{key}": odd for key in keys}
        for value in (1.0, None):
            state = TrialState.FAIL if value is None else TrialState.COMPLETE
            study.add_trial(optuna.create_trial(state=state, value=value, user_attrs=attrs))
    output = _run("status", path).output
    assert "<b>[red]x\\n\\x1b[31m" in output
    assert "\x1b" not in output
    assert json.loads(_run("status", path, "-f", "json").output)["complete"] == 6
    assert repeat_interrupted(study) == 1  # that with True


# Whole campaigns.


def test_one_worker_runs_to_the_total_and_the_same_file_goes_on(
    campaign: Callable[..., Path], tmp_path: Path
) -> None:
    path = campaign("odd_ones_pruned", trials=3, threads_per_worker=1)
    assert "not begun" in _run("status", path, code=1).output
    assert not list(tmp_path.glob("campaign.db"))
    assert "2 COMPLETE, 1 PRUNED" in _run("run", path).output
    assert (tmp_path / "campaign.db").exists()
    assert _states(_study(path)) == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert "Trials that ended in this run: none" in _run("run", path).output
    campaign("odd_ones_pruned", trials=5, threads_per_worker=1)
    assert "1 COMPLETE, 1 PRUNED" in _run("run", path).output
    study = _study(path)
    assert _states(study) == ["COMPLETE", "COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert len({trial.params["x"] for trial in study.trials}) == 5  # no sequence begins anew
    status = json.loads(_run("status", path, "-f", "json").output)
    assert (status["complete"], status["pruned"], status["missing"]) == (3, 2, 0)
    assert "5 of 5" in _run("status", path).output


def test_several_workers_share_a_journal_and_have_their_threads(
    campaign: Callable[..., Path], tmp_path: Path
) -> None:
    path = campaign("odd_ones_pruned", trials=12, workers=2, threads_per_worker=2)
    _run("run", path)
    study = _study(path)
    assert isinstance(study._storage, JournalStorage)
    assert not (tmp_path / "campaign.db").exists()
    assert _states(study) == ["COMPLETE"] * 6 + ["PRUNED"] * 6
    assert len({trial.params["x"] for trial in study.trials}) == 12
    assert {trial.user_attrs["threads"] for trial in study.trials} == {2}
    assert {trial.user_attrs["omp"] for trial in study.trials} == {"2"}
    assert os.getpid() not in {trial.user_attrs["pid"] for trial in study.trials}
    assert all(process_is_gone(trial.user_attrs[WORKER]) for trial in study.trials)


def test_a_killed_workers_trial_is_failed_and_retried_once(campaign: Callable[..., Path]) -> None:
    path = campaign("first_attempts_die", trials=4, workers=2)
    assert "Its trial 1 failed and is queued again" in _run("run", path).output
    trials = _study(path).trials
    assert [t.number for t in trials if t.state == TrialState.FAIL] == [1]
    retries = [t for t in trials if t.system_attrs.get("retry_history")]
    assert [t.system_attrs["retry_history"] for t in retries] == [[1]]
    assert retries[0].params == trials[1].params
    assert retries[0].state == TrialState.COMPLETE
    assert sum(t.state == TrialState.COMPLETE for t in trials) == 4


@pytest.mark.slow
def test_a_campaign_whose_workers_always_die_ends_with_an_error(
    campaign: Callable[..., Path],
) -> None:
    path = campaign("always_dies", max_failures=1)
    assert "2 failures in this run" in _run("run", path, code=1).output
    first, second = _study(path).trials
    assert first.state == second.state == TrialState.FAIL
    assert first.params == second.params


def test_failures_are_told_without_passwords_and_bounded(campaign: Callable[..., Path]) -> None:
    path = campaign("fails", max_failures=1)
    output = _run("run", path, code=1).output
    assert "cannot reach postgresql://me:***@host/db" in output
    assert "hunter2" not in output
    assert _states(_study(path)) == ["FAIL", "FAIL"]


def test_an_objective_that_cannot_be_imported_is_told_and_leaves_nothing(
    campaign: Callable[..., Path],
) -> None:
    path = campaign("nothing")
    before = sorted(path.parent.iterdir())
    output = _run("run", path, code=1).output
    assert "The objective objectives:nothing cannot be imported" in output
    left = set(path.parent.iterdir()) - set(before)
    assert {entry.name for entry in left} <= {"__pycache__"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train:objective", None),
        ("train:objectiv", "there is no 'objectiv' in"),
        ("trian:objective", "there is no module 'trian'"),
        ("pack.inner:objective", None),
        ("pack.inner:other", "there is no 'other' in"),
        ("pack.outer:objective", "there is no module 'pack.outer'"),
        ("train.inner:objective", "there is no module 'train.inner'"),
        ("starred:anything", None),  # may be: importing it tells
        ("broken:objective", None),
        ("json:loads", None),
        ("sys:exit", None),
        ("optuna.samplers:TPESampler", None),
    ],
)
def test_a_misspelt_objective_is_found_without_running_anything(
    tmp_path: Path, name: str, said: str | None
) -> None:
    runs = "raise SystemExit('was run')\n"
    (tmp_path / "train.py").write_text(f"{runs}def objective(trial): ...\n")
    (tmp_path / "starred.py").write_text(f"{runs}from train import *\n")
    (tmp_path / "broken.py").write_text(f"{runs}def objective(trial:\n")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text(runs)
    (tmp_path / "pack" / "inner.py").write_text(f"{runs}objective = None\n")
    if said is None:
        check_name(name, str(tmp_path))
    else:
        with pytest.raises(ValueError, match=said):
            check_name(name, str(tmp_path))


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_how_trials_ended_is_told_in_a_line(direction: str) -> None:
    study = optuna.create_study(direction=direction)
    decision = Decision(1, "pruned", probability=0.0123, min_probability=0.0987)
    for values, state in (
        ([2.0], TrialState.COMPLETE),
        ([1.0], TrialState.COMPLETE),
        (None, TrialState.PRUNED),
        (None, TrialState.FAIL),
    ):
        trial = study.ask()
        trial.report(0.5, 0)
        trial.report(0.25, 1)
        if state == TrialState.PRUNED:
            stored = study._storage.get_trial(trial._trial_id)
            write_decision(study, stored, decision)
        study.tell(trial, values, state=state)
    told = [
        _how_it_ended(trial, interrupted=trial.state == TrialState.FAIL, best=trial.number == 1)
        for trial in study.trials
    ]
    assert told == [
        "Trial 0: COMPLETE after 2 epochs, value 2.000",
        "Trial 1: COMPLETE after 2 epochs, value 1.000, the best so far",
        "Trial 2: PRUNED after 2 epochs, as its chance of ending among the best was 0.012, "
        "below 0.099",
        "Trial 3: interrupted after 2 epochs",
    ]
    assert _best_value(direction, study.trials) == (1.0 if direction == "minimize" else 2.0)
    assert _best_value(direction, study.trials[2:]) is None
    assert _best_value(direction, study.trials[2:], 7.0) == 7.0


@pytest.mark.slow
def test_a_grid_ends_the_campaign(campaign: Callable[..., Path]) -> None:
    grid = {"name": "GridSampler", "search_space": {"i": [0, 1, 2]}}
    path = campaign("on_a_grid", trials=10, sampler=grid)
    assert "stopped the study, 7 trials before" in _run("run", path).output
    assert sorted(trial.params["i"] for trial in _study(path).trials) == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_stops_trials_at_a_report_and_running_again_repeats_them(
    campaign: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    path = campaign("until_stopped", trials=4, workers=2)
    stopped = _in_a_process("run", path, LYAP_TEST_SIGNAL=name)
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    study = _study(path)
    interrupted = [t for t in study.trials if t.state == TrialState.FAIL]
    assert all(t.user_attrs[INTERRUPTED] is True for t in interrupted)
    assert all(t.intermediate_values for t in interrupted)
    assert 1 in {t.number for t in interrupted}
    assert study.get_trials(states=(TrialState.RUNNING,)) == []
    waiting = study.get_trials(states=(TrialState.WAITING,))
    assert sorted(t.user_attrs[REPEATS] for t in waiting) == sorted(t.number for t in interrupted)
    if name == "SIGTERM":
        return
    (tmp_path / "go").touch()
    _run("run", path)
    after = _study(path).trials
    assert sum(t.state == TrialState.COMPLETE for t in after) == 4
    for trial in interrupted:
        (again,) = (t for t in after if t.user_attrs.get(REPEATS) == trial.number)
        assert again.params == trial.params
        assert again.state == TrialState.COMPLETE


@pytest.mark.slow
def test_a_ctrl_c_while_a_worker_starts_is_not_for_the_worker(
    campaign: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if '--multiprocessing-fork' in sys.orig_argv:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    open('sent', 'w').close()\n"
    )
    root = Path(__file__).parent.parent
    done = _in_a_process("run", campaign(trials=1), PYTHONPATH=f"{tmp_path}{os.pathsep}{root}")
    assert (done.returncode, (tmp_path / "sent").exists()) == (0, True), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_second_signal_stops_at_once(campaign: Callable[..., Path]) -> None:
    path = campaign("never_reports", trials=2)
    stopped = _in_a_process("run", path)
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    _, stopped_trial, again = _study(path).trials
    assert (stopped_trial.state, again.state) == (TrialState.FAIL, TrialState.WAITING)
    assert stopped_trial.user_attrs[INTERRUPTED] is True
    assert again.user_attrs[REPEATS] == 1
    assert again.system_attrs["fixed_params"] == stopped_trial.params


@pytest.mark.slow
def test_a_time_limit_stops_at_a_report(campaign: Callable[..., Path]) -> None:
    path = campaign("until_stopped", trials=2, time_limit=0.001)
    assert "Stopped (time limit)" in _run("run", path).output


def _with_password(url: str) -> str:
    """The server trusts any password."""
    return sa.make_url(url).set(password="hunter2").render_as_string(hide_password=False)


@pytest.mark.slow
def test_a_password_is_not_seen_in_ps_or_in_the_output(
    campaign: Callable[..., Path],
    new_database: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = _with_password(new_database("postgresql"))
    path = campaign("looks_around", trials=2, storage="${SECRET_URL}")
    done = _in_a_process("run", path, SECRET_URL=url)
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    study = optuna.load_study(study_name="tune", storage=url)
    lines = [line for trial in study.trials for line in trial.user_attrs["lines"]]
    assert any("campaign run" in line for line in lines)
    assert not any("hunter2" in line for line in lines)
    wrong = sa.make_url(url).set(port=1).render_as_string(hide_password=False)
    monkeypatch.setenv("SECRET_URL", wrong)
    output = _run("run", path, code=1).output
    assert "The storage failed" in output
    assert "hunter2" not in output


@pytest.mark.slow
def test_a_dask_cluster_runs_the_same_campaign(
    campaign: Callable[..., Path],
    new_database: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    path = campaign("looks_around", trials=6, storage=new_database("postgresql"))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        output = _run("run", path, "--dask", cluster.scheduler_address).output
    assert "6 COMPLETE" in output
    trials = _study(path).trials
    assert _states(_study(path)) == ["COMPLETE"] * 6
    assert len({trial.user_attrs["pid"] for trial in trials}) == 2
    assert len({trial.params["x"] for trial in trials}) == 6


def test_the_command_says_what_is_missing_where_the_extra_is_not_installed(
    campaign: Callable[..., Path],
) -> None:
    path = campaign()
    code = "import sys; sys.modules['pydantic'] = None; from lyap_optuna.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "campaign", "status", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert how_to_install("campaign") in done.stderr
