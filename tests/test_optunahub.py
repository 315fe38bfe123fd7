"""The folder that is ready for OptunaHub's registry, loaded as OptunaHub loads it."""

import re
import runpy
from pathlib import Path

import optunahub
import pytest
import yaml

import lyap_optuna as lyap

REGISTRY = Path(__file__).parents[1] / "docs" / "optunahub"
PACKAGE = "pruners/lyapunov"
FOLDER = REGISTRY / PACKAGE


def test_optunahub_loads_the_package():
    module = optunahub.load_local_module(PACKAGE, registry_root=str(REGISTRY))
    assert module.LyapunovPruner is lyap.LyapunovPruner
    assert all(getattr(module, name) is getattr(lyap, name) for name in module.__all__)


def test_the_front_matter_has_what_the_registry_asks_for():
    _, front, text = (FOLDER / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(front)
    assert set(fields) == {"author", "title", "description", "tags", "optuna_versions", "license"}
    assert fields["license"] == "MIT License"
    assert "pruner" in fields["tags"]
    assert all(isinstance(v, str) for v in [*fields["tags"], *fields["optuna_versions"]])
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert headings == ["Abstract", "APIs", "Installation", "Example", "Others"]


def test_the_licence_is_that_of_the_project():
    assert (FOLDER / "LICENSE").read_text() == (REGISTRY.parents[1] / "LICENSE").read_text()


def test_the_readme_shows_the_example():
    shown = re.search(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    assert (FOLDER / "example.py").read_text().endswith(f'"""\n\n{shown[1]}')


@pytest.mark.slow
def test_the_example_runs(monkeypatch, capsys):
    monkeypatch.setattr(
        optunahub,
        "load_module",
        lambda package: optunahub.load_local_module(package, registry_root=str(REGISTRY)),
    )
    study = runpy.run_path(str(FOLDER / "example.py"))["study"]
    assert len(study.trials) == 20
    said = capsys.readouterr().out
    assert said.count("TrialPrediction(") == 5
    assert f"Trial {study.best_trial.number} ran to its end" in said
