"""The install commands that messages name."""

import json
import shlex
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from lyap_optuna import _extras

ROOT = Path(__file__).parents[1]


class Installed:
    def __init__(self, noted: str | None) -> None:
        self._noted = noted

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self._noted


@pytest.mark.parametrize(
    ("noted", "command"),
    [
        (None, "pip install 'lyap-optuna[dask]'"),
        ("not json", "pip install 'lyap-optuna[dask]'"),
        ("[]", "pip install 'lyap-optuna[dask]'"),
        (json.dumps({"url": "https://host/x.whl", "archive_info": {}}), "'lyap-optuna[dask]'"),
        (json.dumps({"url": "file:///a%20b/c", "dir_info": {}}), "pip install '/a b/c[dask]'"),
        (
            json.dumps({"url": "file:///src", "dir_info": {"editable": True}}),
            "pip install -e '/src[dask]'",
        ),
        (
            json.dumps({"url": "file:///x/lyap_optuna-1-py3-none-any.whl", "archive_info": {}}),
            "pip install '/x/lyap_optuna-1-py3-none-any.whl[dask]'",
        ),
    ],
)
def test_the_command_names_where_the_package_came_from(
    noted: str | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_extras, "distribution", lambda name: Installed(noted))
    assert _extras.how_to_install("dask").endswith(command)
    assert _extras.how_to_install("dask").count("pip install") == 1


@pytest.mark.parametrize("folder", ["it's", "a%20b", "$(x) `y` #", "é漢"])
def test_a_shell_reads_the_folder_as_it_is_called(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = json.dumps({"url": (Path("/src") / folder).as_uri(), "dir_info": {}})
    monkeypatch.setattr(_extras, "distribution", lambda name: Installed(noted))
    words = shlex.split(_extras.how_to_install("dask"))
    assert words == ["pip", "install", f"/src/{folder}[dask]"]


def test_what_is_no_url_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extras, "distribution", lambda name: Installed('{"url": "http://[x"}'))
    assert _extras.how_to_install("dask") == "pip install 'lyap-optuna[dask]'"


def test_a_package_that_was_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Installed:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(_extras, "distribution", missing)
    assert _extras.how_to_install("sb3") == "pip install 'lyap-optuna[sb3]'"


def test_every_extra_that_the_install_page_names_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "install.md").read_text()
    table = page.partition("| extra |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name.strip(" `") for cell in cells for name in cell.split(",")}
    extras = set(project["optional-dependencies"])
    assert named == extras - {"test", "docs"}
