"""Other libraries, their layers and their training: ``make test-libraries``."""

import importlib.metadata
import os

import pytest
import torch


@pytest.fixture
def witness(monkeypatch):
    """Watches the first model that a callback is about to measure."""
    from _trained import Witness

    from lyap_optuna.integration._reporter import TrialReporter

    watching, begin = Witness(), TrialReporter.begin

    def watched(reporter, model, *args, **kwargs):
        watching.watch(model)
        begin(reporter, model, *args, **kwargs)

    monkeypatch.setattr(TrialReporter, "begin", watched)
    return watching


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter):
    """Print the table of libraries, and where what is installed is not what it tells."""
    if os.environ.get("LYAP_REQUIRE_LIBRARIES") != "1":
        return
    from test_page import ROWS, TABLE

    terminalreporter.section("libraries")
    terminalreporter.write_line(TABLE)
    for name, said in ROWS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        if version != said:
            terminalreporter.write_line(f"{name}: docs/libraries.md has {said}, here is {version}")
