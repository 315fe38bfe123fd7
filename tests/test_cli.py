"""The command: what it prints, what it refuses, and what it never shows."""

import csv
import io
import json
import math
import re
import sqlite3
from pathlib import Path

import click
import optuna
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

import lyap_optuna
from lyap_optuna._logging import without_passwords
from lyap_optuna._numbers import number
from lyap_optuna.cli import _format, main
from lyap_optuna.cli._format import cell, dump, printable
from lyap_optuna.cli._storage import scrub, shown_url

NASTY = "<script>alert(1)</script>[bold]x[/bold]:smile:\x1b[31m\nline two"


@pytest.fixture(autouse=True)
def _no_storage_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)


def _run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


def _series(*maxima: float, first: int = 0) -> dict[str, dict[str, float]]:
    return {
        str(step): {"max": m, "mean": m - 1.0, "max_stderr": 0.01, "mean_stderr": 0.02}
        for step, m in enumerate(maxima, start=first)
    }


def _study(url: str, name: str = "tune", n_trials: int = 12, readouts: bool = True) -> str:
    study = optuna.create_study(study_name=name, storage=url)
    for i in range(n_trials):
        value = 1.0 + i / 10
        attrs = {"lyapunov:readouts": _series(-1.0, -0.9 + i / 50)} if readouts else {}
        study.add_trial(
            optuna.create_trial(
                value=value,
                intermediate_values={1: 3.0 + i / 100, 2: value},
                user_attrs=attrs,
                params={"cell": NASTY},
                distributions={
                    "cell": optuna.distributions.CategoricalDistribution([NASTY, "LSTM"])
                },
            )
        )
    return url


@pytest.fixture
def url(tmp_path: Path) -> str:
    return _study(f"sqlite:///{tmp_path}/study.db")


def test_version() -> None:
    assert _run("--version").output == f"lyap-optuna {lyap_optuna.__version__}\n"


def test_rank_puts_the_best_first(url: str) -> None:
    rows = json.loads(_run("rank", "--storage", url, "-f", "json").stdout)
    assert [row["number"] for row in rows] == list(range(12))
    assert [row["rank"] for row in rows] == list(range(1, 13))
    assert rows[0]["value"] == 1.0
    assert rows[0]["state"] == "COMPLETE"


def test_rank_top_and_formats(url: str) -> None:
    assert len(yaml.safe_load(_run("rank", "--storage", url, "-f", "yaml").stdout)) == 12
    rows = list(
        csv.DictReader(
            io.StringIO(_run("rank", "--storage", url, "--top", "3", "-f", "csv").stdout)
        )
    )
    assert [row["number"] for row in rows] == ["0", "1", "2"]
    table = _run("rank", "--storage", url, "--top", "3").stdout
    assert "COMPLETE" in table
    assert "max λ" in table


def test_rank_shows_hyperparameters_the_last_step_and_what_was_predicted_then(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    study = optuna.load_study(study_name="tune", storage=url)
    decision = {"trial": 12, "step": 1, "verdict": "pruned", "predicted_value": 1.75}
    study.add_trial(
        optuna.create_trial(
            state=TrialState.PRUNED,
            intermediate_values={1: 3.0, 2: 2.0},
            user_attrs={"lyapunov:decision": decision},
        )
    )
    rows = json.loads(_run("rank", "--storage", url, "--params", "-f", "json").stdout)
    by_number = {row["number"]: row for row in rows}
    assert by_number[12]["predicted_then"] == 1.75
    assert by_number[12]["then_step"] == 1
    assert by_number[0]["step"] == 1  # of the last readout
    assert [by_number[n]["last_step"] for n in (0, 12)] == [2, 2]
    assert by_number[3]["params_cell"] == NASTY
    assert "params_cell" not in by_number[12]
    shown = _run("rank", "--storage", url, "--params")
    assert "cell=<script>" in shown.stdout
    assert "1.75" in shown.stdout
    assert shown.stderr.count("default predictor") == shown.stderr.count(" from loss so far") == 1
    assert "hyperparameters" not in _run("rank", "--storage", url).stdout


@pytest.mark.parametrize("columns", ["20", "200"])
def test_rank_explains_the_columns_that_it_shows(
    url: str, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = _run("rank", "--storage", url)
    notes = shown.stderr
    assert "Step:" in notes
    assert "Predicted now:" in notes
    assert "Predicted then" not in notes  # nothing has decided on a trial
    assert ("λ" in notes) == ("max λ" in shown.stdout) == (columns == "200")


@pytest.mark.parametrize("columns", [None, "40", "60", "80", "120"])
@pytest.mark.parametrize("command", [("rank",), ("rank", "--params"), ("spectra",)])
def test_a_table_fits_and_has_no_blanks_around_it(
    url: str, command: tuple[str, ...], columns: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    lines = _run(*command, "--storage", url, "-q").stdout.split("\n")
    assert lines[0]
    assert lines[-2]
    assert lines[-1] == ""
    assert all(line == line.rstrip() for line in lines)
    if columns in ("80", "120"):
        assert max(map(len, lines)) <= int(columns)
    assert sum("COMPLETE" in line for line in lines) == (24 if command == ("spectra",) else 12)


@pytest.mark.parametrize("name", ["NO_COLOR", "TERM"])
def test_a_table_has_no_colours_where_none_are_wanted(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1" if name == "NO_COLOR" else "dumb")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*[34]\d", _run("rank", "--storage", url).stdout)


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        found.append((*path, name))
        if isinstance(command, click.Group):
            found += _commands(command, (*path, name))
    return found


@pytest.mark.parametrize("path", [(), *_commands(main)], ids=" ".join)
def test_every_option_and_command_has_help(path: tuple[str, ...]) -> None:
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.opts
    assert "Usage:" in _run(*path, "--help").output


PAGE = (Path(__file__).parents[1] / "docs" / "command_line.md").read_text()


@pytest.mark.parametrize("path", _commands(main), ids=" ".join)
def test_the_page_has_every_command(path: tuple[str, ...]) -> None:
    assert f"`lyap-optuna {path[0]}`" in PAGE
    assert all(f"`{name}`" in PAGE for name in path[1:])


@pytest.mark.parametrize("command", ["rank", "skill", "spectra"])
def test_the_page_has_every_column(command: str, url: str) -> None:
    rows = json.loads(_run(command, "--storage", url, "-f", "json").stdout)
    columns = {key for row in rows for key in row}
    section = PAGE.partition(f"### Columns of `{command}`")[2].partition("###")[0]
    listed = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    named = {name for line in listed for name in re.findall(r"`(\w+)`", line)}
    assert named == columns


def test_the_list_of_commands_is_not_cut() -> None:
    commands = _run("--help").output.partition("Commands:")[2]
    assert "rank" in commands
    assert "..." not in commands


def test_the_storage_may_come_from_the_environment(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", url)
    assert len(json.loads(_run("rank", "-f", "json").stdout)) == 12


def test_a_journal_file_is_recognised(tmp_path: Path, url: str) -> None:
    path = str(tmp_path / "journal.log")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
    optuna.copy_study(from_study_name="tune", from_storage=url, to_storage=storage)
    assert len(json.loads(_run("rank", "--storage", path, "-f", "json").stdout)) == 12


def test_notes_go_to_the_error_stream_and_quiet_drops_them(tmp_path: Path) -> None:
    url = _study(f"sqlite:///{tmp_path}/bare.db", readouts=False)
    result = _run("rank", "--storage", url, "-f", "json")
    json.loads(result.stdout)
    assert "No trial of this study has Lyapunov readouts" in result.stderr
    assert _run("rank", "--storage", url, "-f", "json", "-q").stderr == ""


def test_explain_tells_the_recorded_decision(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=url)
    decision = {"step": 3, "verdict": "pruned", "reason": f"Hopeless {NASTY}", "trial": 0}
    study.add_trial(
        optuna.create_trial(
            state=TrialState.PRUNED,
            intermediate_values={3: 2.0},
            user_attrs={"lyapunov:decision": decision},
        )
    )
    output = _run("explain", "--storage", url, "--trial-number", "0").output
    assert "Hopeless" in output
    assert "[bold]x[/bold]" in output
    assert "\x1b" not in output
    told = json.loads(_run("explain", "--storage", url, "--trial-number", "0", "-f", "json").stdout)
    assert told["state"] == "PRUNED"
    assert told["decisions"][0]["verdict"] == "pruned"


def test_explain_without_readouts_says_so(tmp_path: Path) -> None:
    url = _study(f"sqlite:///{tmp_path}/bare.db", readouts=False)
    output = _run("explain", "--storage", url, "--trial-number", "3").output
    assert output.startswith("Trial 3 ran to its end, step 2, with value 1.3.")
    assert "No trial of this study has Lyapunov readouts" in output


@pytest.mark.parametrize("number", ["12", "-1"])
def test_a_trial_that_does_not_exist(url: str, number: str) -> None:
    output = _run("explain", "--storage", url, "--trial-number", number, code=1).output
    assert f"no trial {number}" in output
    assert "0 to 11" in output


def test_spectra_gives_one_row_per_trial_and_step(url: str) -> None:
    rows = json.loads(_run("spectra", "--storage", url, "-f", "json").stdout)
    assert [(row["number"], row["step"]) for row in rows[:4]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [row["baseline"] for row in rows[:2]] == [True, False]
    assert rows[1]["max"] == pytest.approx(-0.9)
    assert rows[1]["intermediate_value"] == 3.0
    assert rows[0]["intermediate_value"] is None
    assert len(rows) == 24


def test_spectra_as_csv_in_a_file(url: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "readouts.csv"
    result = _run("spectra", "--storage", url, "--trial-number", "3", "-f", "csv", "-o", str(path))
    assert result.stdout == ""
    rows = list(csv.DictReader(path.open()))
    assert [row["step"] for row in rows] == ["0", "1"]
    assert rows[0]["max"] == "-1.0"
    assert [p.name for p in path.parent.iterdir()] == ["readouts.csv"]


def test_spectra_without_readouts_says_how_to_record_them(tmp_path: Path) -> None:
    url = _study(f"sqlite:///{tmp_path}/bare.db", readouts=False)
    output = _run("spectra", "--storage", url, code=1).output
    assert "LyapunovProbe" in output
    assert "probe.report" in output


def test_several_objectives_are_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/two.db"
    optuna.create_study(storage=url, directions=["minimize", "maximize"])
    output = _run("rank", "--storage", url, code=1).output.lower()
    assert "minimize" in output
    assert "maximize" in output


def test_a_study_that_does_not_exist_names_those_that_do(url: str) -> None:
    _study(url, NASTY)
    output = _run("rank", "--storage", url, "--study-name", "tuna", code=1).output
    assert "'tuna'" in output
    assert "'tune'" in output
    assert "[bold]x[/bold]:smile:\\x1b[31m\\nline two" in output
    assert "\x1b" not in output


def test_several_studies_need_a_name(url: str) -> None:
    _study(url, "other")
    assert "--study-name" in _run("rank", "--storage", url, code=2).output
    assert json.loads(_run("rank", "--storage", url, "--study-name", "other", "-f", "json").stdout)


def test_reading_creates_no_file(tmp_path: Path) -> None:
    output = _run("rank", "--storage", f"sqlite:///{tmp_path}/typo.db", code=1).output
    assert "typo.db" in output
    assert list(tmp_path.iterdir()) == []


def test_reading_creates_no_table_in_a_database_of_someone_else(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    assert "no Optuna studies" in _run("rank", "--storage", f"sqlite:///{path}", code=1).output
    assert path.read_bytes() == before


def test_the_path_of_an_sqlite_file_is_answered_with_its_url(url: str, tmp_path: Path) -> None:
    output = _run("rank", "--storage", str(tmp_path / "study.db"), code=1).output
    assert f"sqlite:///{tmp_path}/study.db" in output


def test_a_file_that_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a journal\nat all\n")
    assert "not an Optuna journal file" in _run("rank", "--storage", str(path), code=1).output


def test_no_storage_is_wrong_usage() -> None:
    assert "OPTUNA_STORAGE" in _run("rank", code=2).output


def test_a_password_in_place_of_a_path_is_never_shown() -> None:
    output = _run("rank", "--storage", "sqlite:///user:hunter2@host", code=1).output
    assert "hunter2" not in output
    assert "There is no file" in output


@pytest.mark.parametrize(
    ("storage", "secret"),
    [
        ("postgresql://user:hunter2@localhost:1/db", "hunter2"),
        ("mysql+pymysql://user:hunter2@localhost:1/db", "hunter2"),
        ("postgresql://user:p%40ss:w0rd@localhost:1/db", "w0rd"),
        ("postgresql://user:p@ss/w0rd@localhost:1/db", "w0rd"),
        ("postgresql://localhost:1/db?user=u&password=hunter2", "hunter2"),
        ("redis://:hunter2@localhost:1/0", "hunter2"),
        ("nonsense://user:hunter2@host", "hunter2"),
        ("postgresql://user:hunter2@[bad", "hunter2"),
        ("postgresql:/user:hunter2@host/db", "hunter2"),
        ("postgresql//user:hunter2@host/db", "hunter2"),
        ("postgresql:user:hunter2@host/db", "hunter2"),
        ("user:hunter2@host/db", "hunter2"),
    ],
)
@pytest.mark.parametrize("command", ["rank", "spectra", "demo"])
def test_a_password_is_never_shown(command: str, storage: str, secret: str, tmp_path: Path) -> None:
    extra = ["-o", str(tmp_path / "out")] if command == "demo" else []
    result = CliRunner().invoke(main, ["--debug", command, "--storage", storage, *extra])
    assert result.exit_code == 1
    assert secret not in result.output
    assert "***" in result.output


def test_an_unforeseen_error_shows_no_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("lost postgresql://user:hunter2@host/db")

    monkeypatch.setattr(lyap_optuna, "rank_trials", broken)
    result = CliRunner().invoke(main, ["--debug", "rank", "--storage", url])
    assert result.exit_code == 1
    assert "Traceback" in result.output
    assert "RuntimeError: lost postgresql://user:***@host/db" in result.output
    assert "hunter2" not in result.output


def test_ctrl_c_has_its_own_exit_code(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lyap_optuna, "rank_trials", interrupted)
    _run("rank", "--storage", url, code=130)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no me:hunter2@host/db here", "no me:***@host/db here"),
        ("'me:hunt/er2@host'", "'me:***@host'"),
        ("postgresql:/me:hunter2@host/db", "postgresql:***@host/db"),
        ("postgresql//me:hunter2@host", "postgresql//me:***@host"),
        ("cannot open (:hunter2@host)", "cannot open (:***@host)"),
        ("at 12:30: ask me@host", "at 12:30: ask me@host"),
        ("https://host/path", "https://host/path"),
    ],
)
def test_a_login_without_a_scheme_is_hidden_too(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


def test_shown_url_and_scrub() -> None:
    assert shown_url("sqlite:///a.db") == "sqlite:///a.db"
    assert shown_url("mysql://user@host/db") == "mysql://user@host/db"
    assert shown_url("mysql://user:secret@host/db") == "mysql://user:***@host/db"
    # Remembered from now on, in whatever form a driver repeats it.
    assert scrub("password 'secret' was refused") == "password '***' was refused"


def test_printable_escapes_what_moves_a_terminal() -> None:
    assert printable("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb\\nc\\u202e"
    assert printable("λ Grüße 漢字") == "λ Grüße 漢字"


def test_json_is_valid_where_a_value_is_infinite() -> None:
    text = dump([{"value": float("inf"), "items": (float("nan"), 1.5)}], "json")
    assert json.loads(text) == [{"value": None, "items": [None, 1.5]}]


def test_csv_spreads_lists_and_fills_gaps() -> None:
    text = dump([{"a": 1, "q": [1.0, 2.0]}, {"a": None, "q": []}], "csv")
    assert text == "a,q_0,q_1\n1,1.0,2.0\n,,\n"


def test_cells() -> None:
    assert cell(None) == "-"
    assert cell(True) == "yes"
    assert cell(0.123456) == "0.1235"


_CELLS = st.one_of(
    st.none(),
    st.floats(),
    st.integers(-(10**9), 10**9),
    st.sampled_from([0.0, 1e-300, -1e300, 0.99996, 999.96, 999999.9, math.nan, -math.inf]),
)


def test_a_report_goes_to_standard_output_or_to_a_file(url: str, tmp_path: Path) -> None:
    page = _run("report", "--storage", url, "-o", "-").stdout
    assert page.startswith("<!DOCTYPE html>")
    made = tmp_path / "made" / "report.html"
    _run("report", "--storage", url, "-o", str(made))
    assert made.read_text() == page
    for command in (["report", "-o"], ["spectra", "-o"], ["explain", "--plot"]):
        refused = _run(*command, f"{tmp_path}/folder/", "--storage", url, code=2)
        assert "is a folder; name the file" in refused.output
    assert not (tmp_path / "folder").exists()


def test_explain_says_which_trials_there_are(url: str, tmp_path: Path) -> None:
    asked = _run("explain", "--storage", url, code=2).output
    wrong = _run("explain", "--storage", url, "--trial-number", "99", code=1).output
    for said in (asked, wrong):
        assert "12 trials, numbered 0 to 11 (12 COMPLETE)" in said
        assert "lyap-optuna rank" in said
    one = f"sqlite:///{tmp_path / 'one.db'}"
    _study(one, n_trials=1)
    assert _run("explain", "--storage", one).stdout.startswith("Trial 0 ran to its end")


def test_a_study_with_nothing_to_rank_or_measure_says_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'failed.db'}"
    study = optuna.create_study(study_name="failed", storage=url)
    assert _run("rank", "--storage", url).stdout == "Study 'failed' has no trial to rank yet.\n"
    study.add_trial(optuna.create_trial(state=TrialState.FAIL))
    assert _run("rank", "--storage", url).stdout.endswith("to rank yet: 1 FAIL.\n")
    assert json.loads(_run("rank", "--storage", url, "-f", "json").stdout) == []
    assert _run("skill", "--storage", url).stdout.startswith("Too few trials ran to their end")
    assert "no trial yet" not in _run("explain", "--storage", url).stdout


@pytest.mark.parametrize("target", ["sqlite:////no/such/folder/x.db", "foo://me:hunter2@host"])
def test_a_copy_to_what_does_not_open_says_so(url: str, target: str) -> None:
    said = _run("storage", "copy", "--storage", url, "--to-storage", target, code=1).output
    assert said.startswith("Error: The storage ")
    assert "does not open" in said
    assert "hunter2" not in said


@pytest.mark.parametrize("columns", ["60", "80", "120", None])
@given(st.lists(st.tuples(_CELLS, _CELLS, st.text(max_size=40)), min_size=1, max_size=8))
def test_columns_of_a_table_line_up(
    columns: str | None, rows: list[tuple[float | None, float | None, str]]
) -> None:
    made = [{"a": a, "name": f"n{i}x", "b": b} for i, (a, b, _) in enumerate(rows)]
    runner = CliRunner()
    headings = {"a": "first\nnumber", "name": "a name", "b": "second"}
    command = click.Command("t", callback=lambda: _format.show(_format.table(made, headings)))
    lines = runner.invoke(command, env={"COLUMNS": columns}).output.splitlines()
    head, rule, body = lines[1], lines[2], lines[3:]
    assert len(body) == len(rows)
    name = head.index("a name")
    right = head.index("number") + len("number")
    assert set(rule) == {"─"}
    points = set()
    for i, (line, row) in enumerate(zip(body, made, strict=True)):
        assert line == line.rstrip()
        assert line.index(f"n{i}x") == name
        first, second = line[:name].strip(), line[name + len(f"n{i}x") :].strip()
        assert (first, second) == (cell(row["a"]), cell(row["b"]))
        assert len(line[:name].rstrip()) <= right
        if "." in first and isinstance(row["a"], float):
            points.add(line.index("."))
        if not any(isinstance(r["a"], float) for r in made):
            assert len(line[:name].rstrip()) == right  # whole numbers end below the heading's end
    assert len(points) <= 1


@given(st.floats(-1e308, 1e308))
def test_numbers_in_tables_have_four_significant_digits(value: float) -> None:
    text = number(value)
    assert float(text) == pytest.approx(value, rel=0.5e-3, abs=0)
    digits = text.lstrip("-").split("e")[0].replace(".", "").lstrip("0")
    assert value == 0 or len(digits) >= 4
    assert number(-value) == ("0" if value == 0 else text[1:] if value < 0 else f"-{text}")


@pytest.mark.parametrize("text", ["words", "12 of 40", "to the end", "from here"])
def test_words_go_left_and_what_stands_for_a_number_right(text: str) -> None:
    rows = [{"w": text, "n": "to 0.5"}, {"w": "3", "n": "from -1e+06"}, {"w": None, "n": "never"}]
    rows += [{"w": "", "n": "-inf to 3 %"}, {"w": True, "n": "18% (13-)"}]
    rows += [{"w": "12", "n": "250 epochs"}]
    made = _format.table(rows, {"w": "a very long heading", "n": "another heading"})
    words, numbers = ([str(text) for text in column.cells] for column in made.columns)
    assert words == [text, "3", "-", "", "yes", "12"]
    assert {len(number) for number in numbers} == {len("another heading")}
    assert not any(number.endswith(" ") for number in numbers)
