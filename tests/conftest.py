"""Fixtures that every test may use."""

import optuna
import pytest
from _browser import browser, screenshot
from _servers import database_url, new_database, server_database_url

__all__ = ["browser", "database_url", "new_database", "screenshot", "server_database_url"]
"""(One browser for a process: Playwright refuses a second.)"""


@pytest.fixture(autouse=True)
def _verbosity() -> None:
    """Begin with one verbosity of Optuna, whatever another test in this process left behind."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
