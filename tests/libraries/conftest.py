"""Other libraries, their layers and their training: ``make test-libraries``."""

import importlib.metadata
import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter):
    """Print the table of libraries: what was tested here."""
    if os.environ.get("LYAP_REQUIRE_LIBRARIES") != "1":
        return
    from test_page import ROWS

    terminalreporter.section("libraries")
    for name, said in ROWS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        note = "" if version == said else f" (docs/libraries.md: {said})"
        terminalreporter.write_line(f"{name:22}{version}{note}")
