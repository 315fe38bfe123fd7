"""What a user gets who installs or imports the package."""

import ast
import configparser
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lyap_optuna

ROOT = Path(__file__).parent.parent

HEAVY = (
    "sklearn",
    "scipy",
    "plotly",
    "pandas",
    "matplotlib",
    "alembic",
    "sqlalchemy.dialects",
    "rich",
    "click",
    "yaml",
    "pydantic",
    "psutil",
    "tenacity",
    "distributed",
    "lightning",
    "pytorch_lightning",
    "skorch",
    "ignite",
    "transformers",
    "sb3_contrib",
    "fastai",
)

OWN_EXTRAS: dict[str, tuple[str, ...]] = {
    "": (),
    "campaign": ("campaign", "dask"),
    "dashboard": ("dashboard",),
    "data": ("studies",),
    "integration": ("lightning", "skorch", "ignite", "transformers", "sb3", "fastai"),
}
"""Parts of the package that import what their extras install, and the rest, which may not."""


def _modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def _heavy(modules: set[str]) -> list[str]:
    return sorted(
        heavy for heavy in HEAVY if any(m == heavy or m.startswith(f"{heavy}.") for m in modules)
    )


def test_what_is_used_loads_torch_and_optuna_and_nothing_else_heavy() -> None:
    modules = _modules_after("import lyap_optuna")
    assert not {"torch", "optuna"} & modules
    modules = _modules_after("import lyap_optuna as lyap\nfor n in lyap.__all__: getattr(lyap, n)")
    assert {"torch", "optuna"} <= modules
    assert _heavy(modules) == []


def test_the_probe_and_a_pruner_without_history_load_nothing_heavy() -> None:
    modules = _modules_after(
        "import lyap_optuna as lyap, torch\n"
        "lyap.LyapunovPruner()\n"
        "lyap.LyapunovProbe(torch.nn.GRU(2, 3), torch.randn(12, 2, 2))\n"
    )
    assert _heavy(modules) == []


def test_visualization_is_reached_as_an_attribute_and_loads_plotly_on_first_use() -> None:
    modules = _modules_after("import lyap_optuna\nlyap_optuna.visualization.plot_spectrum")
    assert "lyap_optuna.visualization" in modules
    assert "plotly" not in modules


def test_the_version_has_one_source() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    holders = [
        path.name
        for path in (ROOT / "lyap_optuna").rglob("*.py")
        if re.search(r"^__version__\s*=", path.read_text(), re.MULTILINE)
    ]
    assert holders == ["_version.py"]


def test_the_installed_version_is_that_of_the_source() -> None:
    try:
        installed = importlib.metadata.version("lyap-optuna")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed, only on the path")
    assert installed == lyap_optuna.__version__


def test_no_tool_is_set_up_in_both_files() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    in_toml = set(project.get("tool", {}))
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    in_cfg = {section.split("-")[0].split(":")[-1] for section in config.sections()}
    assert in_cfg == {"mypy", "pytest"}
    assert not in_cfg & in_toml


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for folder, names in OWN_EXTRAS.items():
        requirements = [*project["dependencies"], *(r for name in names for r in extras[name])]
        declared = {re.split(r"[\s<>=!~\[;]", d)[0].lower() for d in requirements}
        undeclared = _third_party(folder) - declared
        assert not undeclared, folder


def _third_party(folder: str) -> set[str]:
    """Distributions that a part imports, what is in it with extras of their own left out."""
    distribution = {
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
        "dask_jobqueue": "dask-jobqueue",
        "ignite": "pytorch-ignite",
        "optuna_dashboard": "optuna-dashboard",
        "sb3_contrib": "sb3-contrib",
        "stable_baselines3": "stable-baselines3",
    }
    imported = set()
    package = ROOT / "lyap_optuna"
    others = [package / other for other in OWN_EXTRAS if other and other != folder]
    part = package / folder
    for path in [part] if part.is_file() else part.rglob("*.py"):
        if any(other in (path, *path.parents) for other in others):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                imported.add(node.module.split(".")[0])
    third_party = {
        distribution.get(name, name)
        for name in imported
        if name not in sys.stdlib_module_names and name != "lyap_optuna"
    }
    assert third_party & {"torch", "optuna"}
    return third_party


def test_every_public_name_is_there_and_known_beforehand() -> None:
    for name in (*lyap_optuna.__all__, *lyap_optuna._MODULES):
        assert getattr(lyap_optuna, name) is not None
        assert name in dir(lyap_optuna)
    assert {*lyap_optuna._HOMES, "LyapunovWarning", "__version__"} == set(lyap_optuna.__all__)
    for name, home in lyap_optuna._HOMES.items():
        module = importlib.import_module(f"lyap_optuna.{home}")
        assert name in module.__dict__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lyap_optuna.nothing


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["rank", "--help"]])
def test_help_waits_for_no_framework(arguments: list[str]) -> None:
    code = (
        "import sys; from lyap_optuna.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print(sorted({'torch', 'plotly', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
