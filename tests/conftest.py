"""Fixtures that every test may use."""

import optuna
import pytest
from _servers import database_url, new_database, server_database_url

__all__ = ["database_url", "new_database", "server_database_url"]


@pytest.fixture(autouse=True)
def _verbosity() -> None:
    """Begin with one verbosity of Optuna, whatever another test in this process left behind."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
