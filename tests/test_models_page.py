"""The models of ``docs/models.md``: each against its truth, and the page against the list."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from studies.models.__main__ import KEPT, main, rows_of
from studies.models.cases import CASES, compare
from studies.models.libraries import LIBRARIES

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
LISTED = {case.name: case for group in (*CASES.values(), *LIBRARIES.values()) for case in group}
INSTALLED = [
    name
    for name, case in LISTED.items()
    if not case.module or importlib.util.find_spec(case.module) is not None
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", INSTALLED)
def test_exponents_are_those_of_the_model_that_runs(name):
    case = LISTED[name]
    compared = compare(case, batch=2, steps=30)
    assert compared.path == case.path
    assert compared.error < 1e-9


def cells(line):
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def test_the_page_lists_these_models():
    rows = rows_of(PAGE.read_text())
    assert list(rows) == list(LISTED)
    for name, line in rows.items():
        case, (shown, entries, path, error, cost, line) = LISTED[name], cells(line)
        assert shown == name
        assert entries.count("`") >= 2
        assert path == case.path + ("" if case.whole else ", maximum only")
        assert float(error) < 1e-9
        assert re.fullmatch(r"[\d.]+ %", cost)
        assert line == f"`{case.line}`"


def test_the_command_says_what_the_page_says(tmp_path):
    page = shutil.copy(PAGE, tmp_path / "models.md")
    before = rows_of(PAGE.read_text())
    options = ["--only", "packed", "--repeats", "1", "--write", str(page)]
    done = CliRunner().invoke(main, options, catch_exceptions=False)
    assert done.exit_code == 0
    text = page.read_text()
    after = rows_of(text)
    assert list(after) == list(before)
    for name, line in after.items():
        if "packed" in name:
            assert line in done.output
            old, new = cells(before[name]), cells(line)
            assert (old[:3], old[5]) == (new[:3], new[5])
            assert float(new[3]) < 1e-11
            assert f"| {name} {KEPT} |" not in text
        else:
            assert line == before[name]
            assert f"| {name} {KEPT} |" in text
    assert text.partition("<!--")[0] == PAGE.read_text().partition("<!--")[0]
