"""What CONTRIBUTING.md adds is added to a copy of the package, and the copy's batteries run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lyap_optuna.testing import (
    DYNAMICS_CHECKS,
    EVIDENCE_CHECKS,
    FIGURE_CHECKS,
    STORAGE_CHECKS,
)

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
ADDED = r"`((?:lyap_optuna|tests)/[\w/]+\.py)`[^`]*?:\n\n```%s\n(.*?)```"
FILES = dict(re.findall(ADDED % "python", GUIDE, re.DOTALL))
DIFFS = re.findall(ADDED % "diff", GUIDE, re.DOTALL)


def applied(text: str, diff: str) -> str:
    """Return ``text`` with each added line behind the line that the diff shows before it."""
    behind = ""
    for line in diff.splitlines():
        if line.startswith("+"):
            assert text.count(f"{behind}\n") == 1, behind
            text = text.replace(f"{behind}\n", f"{behind}\n{line[1:]}\n")
        behind = line[1:]
    return text


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package and its tests to which everything was added."""
    folder = tmp_path_factory.mktemp("contributed")
    for name in ("lyap_optuna", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path, code in FILES.items():
        assert not (folder / path).exists()
        (folder / path).write_text(code)
    for path, diff in DIFFS:
        (folder / path).write_text(applied((folder / path).read_text(), diff))
    return folder


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_guide_adds_one_of_each() -> None:
    rooms = [path.split("/")[-2] for path in FILES]
    assert rooms == ["dynamics", "evidence", "visualization", "cli", "tests"]
    assert len(FILES) == len(DIFFS) == 5


@pytest.mark.slow
def test_the_batteries_take_what_was_added(extended: Path) -> None:
    added = {
        "test_layers and LeakyUnits": DYNAMICS_CHECKS,
        "test_dynamics_are_of_what_the_layer_returns and LeakyUnits": [1],
        "test_evidence and patience": EVIDENCE_CHECKS,
        "test_figures and values": FIGURE_CHECKS,
        "test_storages and list": STORAGE_CHECKS,
        "test_the_page_has_every_figure_of_the_registry": [1],
    }
    said = run(
        extended,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={extended}"),
        *("-o", "markers=slow", "tests/test_battery.py", "tests/test_report.py"),
        *("-k", " or ".join(f"({which})" for which in added)),
    )
    n = sum(len(checks) for checks in added.values())
    assert re.search(rf"^{n} passed", said, re.MULTILINE), said


def test_the_command_is_there(extended: Path) -> None:
    code = (
        "import optuna; from lyap_optuna.cli import main; "
        "study = optuna.create_study(storage='sqlite:///study.db'); study.ask(); study.ask(); "
        "main(['count', '--storage', 'sqlite:///study.db'])"
    )
    assert run(extended, "-c", code).splitlines()[-1] == "2"


def test_the_layer_is_measured_within_a_model(extended: Path) -> None:
    code = """
import math, torch, lyap_optuna as lyap
from lyap_optuna.dynamics.leaky import LeakyUnits
torch.manual_seed(0)
layer = LeakyUnits(2, 3).double()
torch.nn.init.zeros_(layer.recurrent.weight)
found = lyap.lyapunov_readout(torch.nn.Sequential(layer), torch.randn(4, 50, 2).double())
print(abs(found.max - math.log(0.5)) < 1e-9)
"""
    assert run(extended, "-c", code).splitlines()[-1] == "True"  # nothing but the leak is left
