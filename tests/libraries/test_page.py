"""The page of libraries: its blocks run, and its table says what was tested."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from _truth import library

from studies.libraries.tasks import TASKS
from studies.pages import read_block

PAGE = (Path(__file__).parents[2] / "docs" / "libraries.md").read_text()
TABLE = read_block(PAGE, "make study-libraries").strip()
ROWS = re.findall(r"^\| ([\w-]+) \| (\d[\d.]*) \|", TABLE, re.MULTILINE)
FORECASTING = ("darts", "neuralforecast", "pytorch-forecasting", "gluonts")

pytestmark = pytest.mark.filterwarnings("ignore")


def sections():
    """Blocks by heading; those before the first, which the others go on from, come first."""
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_every_library_has_a_row_of_the_version_that_is_tested():
    assert [name for name, _ in ROWS] == [task.package for task in TASKS]
    for name, version in ROWS:
        library(name.replace("-", "_"))
        assert importlib.metadata.version(name) == version, name


@pytest.mark.parametrize(
    "kind",
    [
        FORECASTING,
        ("Hugging Face transformers", "accelerate"),
        ("Stable-Baselines3",),
        ("fastai",),
    ],
    ids=lambda k: k[-1],
)
def test_the_blocks_run(kind, tmp_path, monkeypatch):
    for task in TASKS:
        library(task.package.replace("-", "_"))
    monkeypatch.chdir(tmp_path)
    found, names = sections(), {}
    headings = {heading.lower().replace(" ", "-"): heading for heading in found}
    for code in blocks(found[""]):
        exec(compile(code, "libraries.md", "exec"), names)  # our own documentation
    for heading in kind:
        section = found.get(heading) or found[headings[heading]]
        assert blocks(section)
        names.pop("study", None)
        for code in blocks(section):
            exec(compile(code, "libraries.md", "exec"), names)
        if (study := names.get("study")) is not None:
            assert all("lyapunov:readouts" in t.user_attrs for t in study.trials), heading
